"""`bnsmooth train`: train one run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import (
    ExportOptions,
    MachineOptions,
    Options,
    RunOptions,
    StepOptions,
    WantedOptions,
    grouped,
    option,
    say_exported,
    say_places,
)
from bnsmooth_cli.cli.progress import Reports
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    from bnsmooth_cli.measures.wanted import Wanted
    from bnsmooth_cli.storage.runs import Run


@dataclass(frozen=True)
class FolderOptions(Options):
    """The run's folder, and whether an unfinished run in it is resumed."""

    output: Path | None = option(
        "Directory of the run (default: runs/NAME, where NAME has the settings that are not the preset's).",
        None,
        flags="--output -o",
        metavar="RUN_DIR",
    )
    resume: bool = option(
        "Resume an unfinished run, or start it again.", None, default=True, flags="--resume/--no-resume"
    )
    name: str | None = option("Name of the run, instead of the default one: its directory is runs/NAME.", None)
    tag: str | None = option(
        "Put a word of your own into the default name, before the seed, as in vgg-batch-lr0.1-TAG-seed0.", None,
        metavar="TAG",
    )  # fmt: skip
    dry_run: bool = option(
        "Estimate the time, memory and disk that the run takes. Nothing is written.", None, default=False
    )

    def chosen(self, config: Config) -> Path | None:
        """The directory of the run, if the options name one.

        Raises:
            InputError: If a name is not safe as that of a directory, or more than one option names the run.
        """
        names = {"--output": self.output, "--name": self.name, "--tag": self.tag}
        given = [flag for flag, value in names.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: give only one of them, since each names the run")
        for flag, word in (("--name", self.name), ("--tag", self.tag)):
            if word is not None and not _SAFE.fullmatch(word):
                raise InputError(
                    f"{flag} '{word[:40]}': give letters, digits and . _ + - only, at most 100, not beginning or "
                    "ending with a sign; con, nul and the like are devices on Windows"
                )
        name = self.name
        if self.tag is not None:
            seed = f"-seed{config.seed}"
            name = f"{config.name.removesuffix(seed)}-{self.tag}{seed}"
        return self.output if name is None else Path("runs") / name


#: Names of files on every system: Windows keeps some for devices.
_SAFE: Final = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9]([A-Za-z0-9._+-]{0,98}[A-Za-z0-9])?")


@grouped
def train(
    run: RunOptions,
    wanted: WantedOptions,
    steps: StepOptions,
    machine: MachineOptions,
    export: ExportOptions,
    folder: FolderOptions,
) -> None:
    """Train a network and write a run: config.json, checkpoints and train.parquet.

    A finished run with the same settings is reused, and an unfinished one is resumed. Training that is interrupted
    keeps its present step, and the same command resumes it there.

    With --measure, the run is measured as it trains. The measuring commands write the same tables afterwards, but they
    have to train forward from the checkpoints again.

    [bold]Examples[/]

      bnsmooth train --norm l1

      bnsmooth train --problem dln --norm batch --preset paper --seed 1

      bnsmooth train --norm none --data path/to/cifar10 --steps 3000

      bnsmooth train --norm batch --measure landscape,smoothness,ics --every 100

      bnsmooth train --preset paper --data path/to/cifar10 --dry-run
    """
    config = run.config()  # a wrong setting is refused before torch is imported
    path = folder.chosen(config)
    machine.apply()
    live = export.live()
    chosen = _chosen(wanted, steps)
    if folder.dry_run:
        from bnsmooth_cli.storage.runs import Run, default_folder

        _print_cost(Run(path or default_folder(config), config), chosen, folder, machine)
        return
    trained = train_or_find(
        config, chosen, output=path, resume=folder.resume, device=machine.device, force=machine.force,
        live=live,
    )  # fmt: skip
    from bnsmooth_cli.storage.tables import read_table

    rows = read_table(trained.train_path, "train")
    columns = ["step", "loss", "grad_norm"]
    tested = rows[rows["test_loss"].notna()]
    if tested.empty:  # about a dozen evenly spaced steps, the last among them
        rows = rows.iloc[sorted({round(i * (len(rows) - 1) / 10) for i in range(11)})]
    else:
        rows, columns = tested, ["step", "loss", "accuracy", "test_loss", "test_accuracy"]
    if rows["step_lr"].nunique() > 1:
        columns.append("step_lr")
    terminal.wrote(trained.train_path)
    say_exported(live, trained.train_path)
    for kind in chosen.kinds:
        table = trained.source().table_path(kind)
        terminal.wrote(table)
        say_exported(live, table)
    say_places(live)
    terminal.summary(trained.name, rows[columns].dropna(axis=1, how="all"), note=_outcome(trained))


def _chosen(wanted: WantedOptions, steps: StepOptions) -> Wanted:
    """What is measured.

    Raises:
        InputError: If steps are given, and nothing to measure at them.
    """
    from bnsmooth_cli.measures.wanted import Wanted

    at = steps.chosen()
    names = tuple(kind.strip() for kind in (wanted.measure or "").split(",") if kind.strip())
    found = Wanted(
        names, at["every"], None if at["at"] is None else tuple(at["at"]), bool(wanted.probe), wanted.batches or 0
    )
    if not names and (given := [*steps.given(), *found.asked]):
        raise InputError(f"--{given[0]}: an option of --measure; add --measure A,B, or leave it out")
    return found


def _print_cost(run: Run, wanted: Wanted, folder: FolderOptions, machine: MachineOptions) -> None:
    """Print what a run would take."""
    import torch

    from bnsmooth_cli.cli.studying import print_cost
    from bnsmooth_cli.studies.work import Task, remaining

    config, threads = run.config, torch.get_num_threads()
    wanted.check(config.steps)
    task = Task(run.path, config, 0, wanted, threads, machine.device, force=True)
    if not machine.force:
        existing = remaining(run, wanted, threads, machine.device, force=False)
        if folder.resume or existing.reached == config.steps:
            task = existing
    print_cost("what the run would do", [task], jobs=1)


def train_or_find(config: Config, wanted: Wanted | None = None, **arguments: Any) -> Run:
    """Train a run and report its progress, or return the finished one. `arguments` are those of `train_and_measure`."""
    from bnsmooth_cli.measures.one_pass import train_and_measure
    from bnsmooth_cli.measures.wanted import NOTHING
    from bnsmooth_cli.storage.runs import default_folder
    from bnsmooth_cli.studies.work import TrainingNote

    wanted, note, begun = wanted or NOTHING, TrainingNote(), False
    path = arguments.get("output") or default_folder(config)
    # Where the test set is evaluated, the evaluations are what a log tells of.
    milestone = config.eval_every is None or bool(wanted.kinds)

    terminal.explain(f"{path}: {_computing(str(arguments.get('device', 'auto')))}")
    with Reports() as reports:

        def trained(step: int, loss: float) -> None:
            nonlocal begun
            if not begun and step:
                terminal.inform(f"{path}: continuing from step {step}")
            begun = True
            reports.update(path.name, "train", step, config.steps, note.trained(step, loss), milestone=milestone)

        def evaluated(step: int, *test: float) -> None:
            reports.update(path.name, "train", step, config.steps, note.evaluated(step, *test))

        def measuring(_: str, step: int, done: int, total: int) -> None:
            reports.update(path.name, "measure", done, total, f"next step {step}")

        return train_and_measure(
            config, wanted=wanted, progress=trained, evaluated=evaluated, measuring=measuring, **arguments
        )


def _computing(device: str) -> str:
    """What computes, in words."""
    from bnsmooth_cli.storage.stretches import described
    from bnsmooth_cli.training.devices import choose_device, machine

    return described(machine(choose_device(device)))


def _outcome(run: Run) -> str:
    diverged = (run.outcome() or {}).get("diverged_at")
    end = f"finished at step {run.config.steps}" if diverged is None else f"diverged at step {diverged}"
    return f"{end}; {len(run.checkpoints())} checkpoints in {run.path}"
