"""`bnsmooth train`: train one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import ExportOptions, MachineOptions, Options, RunOptions, grouped, option
from bnsmooth_cli.config import Config

if TYPE_CHECKING:
    from bnsmooth_cli.storage.runs import Run


@dataclass(frozen=True)
class FolderOptions(Options):
    """The run's folder, and whether an unfinished run in it is resumed."""

    output: Path | None = option(
        "Directory of the run (default: runs/PROBLEM-NORM-lrLR-seedSEED).",
        None,
        flags="--output -o",
        metavar="RUN_DIR",
    )
    resume: bool = option(
        "Resume an unfinished run, or start it again.", None, default=True, flags="--resume/--no-resume"
    )


@grouped
def train(run: RunOptions, machine: MachineOptions, export: ExportOptions, folder: FolderOptions) -> None:
    """Train a network and write a run: config.json, checkpoints and train.parquet.

    A finished run with the same settings is reused, and an unfinished one is resumed. Training can be interrupted at
    any time.

    [bold]Examples[/]

      bnsmooth train --norm l1

      bnsmooth train --problem dln --norm batch --preset paper --seed 1

      bnsmooth train --norm none --data path/to/cifar10 --steps 3000
    """
    machine.apply()
    export.check()
    trained = train_or_find(
        run.config(), output=folder.output, resume=folder.resume, device=machine.device, force=machine.force
    )
    from bnsmooth_cli.storage.tables import read_table

    rows = read_table(trained.train_path, "train")
    columns = ["step", "loss", "grad_norm"]
    tested = rows[rows["test_loss"].notna()]
    if tested.empty:  # about a dozen evenly spaced steps, the last among them
        rows = rows.iloc[sorted({round(i * (len(rows) - 1) / 10) for i in range(11)})]
    else:
        rows, columns = tested, ["step", "loss", "accuracy", "test_loss", "test_accuracy"]
    export.write(trained.train_path)
    terminal.summary(trained.name, rows[columns].dropna(axis=1, how="all"), note=_outcome(trained))


def train_or_find(config: Config, **arguments: Any) -> Run:
    """Train a run with a progress bar, or return the finished one. `arguments` are passed to `train_config`."""
    from bnsmooth_cli.training.run import train_config

    with terminal.progress(f"train {config.name}") as update:
        report = lambda step, loss: update(step, config.steps, f"loss {loss:.4g}")  # noqa: E731
        return train_config(config, progress=report, **arguments)


def _outcome(run: Run) -> str:
    diverged = (run.outcome() or {}).get("diverged_at")
    end = f"finished at step {run.config.steps}" if diverged is None else f"diverged at step {diverged}"
    return f"{end}; {len(run.checkpoints())} checkpoints in {run.path}"
