"""The training run: the trajectory walked to its end, with its checkpoints and its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bnsmooth_cli import __version__, kinds, problems
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.custom import Builder
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.files import check_writable
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.trajectory import Trajectory
from bnsmooth_cli.user_code import name_of

#: Steps between two reads of the recorded losses, each of which waits for the device.
READ_EVERY: Final = 25

Progress = Callable[[int, float], None]  # (step, loss)


class _Log:
    """The train table while it grows; losses stay on the device between two reads."""

    def __init__(self, rows: pd.DataFrame, device: torch.device) -> None:
        self.records: list[np.ndarray[Any, Any]] = [rows[["loss", "accuracy", "grad_norm"]].to_numpy(np.float64)]
        tested = rows[rows["test_loss"].notna() | rows["test_accuracy"].notna()]
        self.tests = {int(r.step): (r.test_loss, r.test_accuracy) for r in tested.itertuples()}
        self.pending = torch.empty(READ_EVERY, 3, device=device)
        self.count = 0
        self.length = len(rows)

    def add(self, record: Tensor) -> None:
        self.pending[self.count] = record
        self.count += 1

    def read(self) -> int | None:
        """Fetch what is pending; the first step whose loss is not finite, where there is one."""
        new = self.pending[: self.count].cpu().numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(new[:, 0]))
        if len(bad):
            new = new[: bad[0] + 1]
        self.records.append(new)
        self.length += len(new)
        self.count = 0
        return self.length - 1 if len(bad) else None

    @property
    def last_loss(self) -> float:
        return float(self.records[-1][-1, 0]) if len(self.records[-1]) else math.nan

    def table(self, run: Run) -> pd.DataFrame:
        loss, accuracy, grad_norm = np.concatenate(self.records).T
        config = run.config
        frame = pd.DataFrame(
            {"step": np.arange(self.length), "loss": loss, "accuracy": accuracy, "grad_norm": grad_norm}
        )
        tests = pd.DataFrame.from_dict(
            self.tests, orient="index", columns=["test_loss", "test_accuracy"], dtype="float64"
        )
        return frame.join(tests, on="step").assign(
            run=run.name, problem=config.problem, norm=config.norm, lr=config.lr, seed=config.seed
        )


def train_run(run: Run, problem: Problem, progress: Progress | None = None) -> Run:
    """Train a run to its end from its last checkpoint (or the start), writing checkpoints and train.parquet.

    The row of step t holds what training saw at theta_t; the last row, at theta_steps, is not stepped from. A loss
    that is not finite ends the run as diverged: its row is the last, and the table's provenance says so.
    """
    with run.locked():
        if run.outcome() is not None:
            return run
        check_writable(run.train_path)
        # Made once: a run whose folder is moved away meanwhile must not make another.
        run.checkpoint_path(0).parent.mkdir(exist_ok=True)
        trajectory = Trajectory(problem)
        log = _Log(_continue(run, trajectory), problem.device)
        config = run.config
        if runs.read_config(run.path) != config:  # more steps than before
            runs.write_config(run)
        while True:
            step = trajectory.step
            last = step == config.steps
            saving = last or step % config.save_every == 0
            if saving or log.count == READ_EVERY:
                diverged = log.read()
                if diverged is not None:
                    _write(run, log, diverged_at=diverged)
                    return run
                if progress is not None:
                    progress(step, log.last_loss)
            if saving:
                # The table first: whatever checkpoint there is, the rows before it are on disk.
                _write(run, log)
                runs.write_checkpoint(run.checkpoint_path(step), run.name, config, step, trajectory.state())
            if problem.test_size and (last or step % (config.eval_every or config.steps) == 0):
                log.tests[step] = problem.evaluate(trajectory.model)
            if last:
                log.add(trajectory.gradients(update_statistics=False)[0])
                diverged = log.read()
                _write(run, log, diverged_at=diverged, last_step=step)
                return run
            log.add(trajectory.advance())


def _continue(run: Run, trajectory: Trajectory) -> pd.DataFrame:
    """Bring the trajectory to the run's last usable checkpoint; the rows recorded before it."""
    empty = pd.DataFrame(columns=list(kinds.get("train").columns))
    if not run.train_path.is_file():
        return empty
    rows = tables.read_table(run.train_path, "train")
    for step, path in reversed(run.checkpoints().items()):
        if step <= min(len(rows), run.config.steps):
            trajectory.load(path, step)
            return rows[:step]
    return empty


def _write(run: Run, log: _Log, **outcome: int | None) -> None:
    if not (run.path / "config.json").is_file():
        raise InputError(f"{run.path}: was removed, or moved, while it was trained; train it again")
    provenance = {
        "version": __version__,
        "torch": torch.__version__,
        "runs": {run.name: run.config.as_dict()},
        **outcome,
    }
    tables.write_table(run.train_path, "train", [log.table(run)], provenance, make_folder=False)


def train(
    problem: str | Builder = "vgg",
    norm: str | Callable[[int], nn.Module] = "batch",
    *,
    preset: str = "quick",
    seed: int = 0,
    output: Path | str | None = None,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train a run, or continue or find it: `settings` are the other fields of Config, in place of the preset's.

    The problem and the norm may be code of one's own: as "module:name", or the function or class itself.
    Returns the run, whose directory is `output` or `runs/<its name>`. Raises InputError for settings that do not fit,
    or a directory that holds another configuration.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train("dln", "l1", steps=10, samples=20, output=f"{folder}/run")
    ...     len(tables.read_table(run.train_path))
    11
    """
    config = resolve(name_of(problem), preset, name_of(norm), seed, **settings)
    return train_config(config, output, device=device, resume=resume, force=force, progress=progress)


def train_config(
    config: Config,
    output: Path | str | None = None,
    *,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Run:
    """`train` for a configuration at hand."""
    path = Path("runs") / config.name if output is None else Path(output)
    problem = problems.build(config, choose_device(device))
    _ = problem.initial  # a norm or a size that does not fit is found before anything is written
    run = runs.prepare(path, problem.config, resume=resume, force=force)
    return train_run(run, problem, progress)
