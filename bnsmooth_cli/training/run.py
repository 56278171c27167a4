"""The training run: a trajectory from its start to its end, with its checkpoints and its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli import __version__, kinds, problems, stopping, user_code
from bnsmooth_cli.config import CODE, Config
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.networks.precision import widest
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.files import check_writable
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.storage.stretches import before, changed, joined, machine_of, recorded, stretch
from bnsmooth_cli.training import needs
from bnsmooth_cli.training.devices import choose_device, machine
from bnsmooth_cli.training.saving import Saver
from bnsmooth_cli.training.trajectory import RECORD, Trajectory
from bnsmooth_cli.user_code import digest, is_code

#: Steps between two reads of the recorded losses. Each read waits for the device.
READ_EVERY: Final = 25

Progress = Callable[[int, float], None]  # (step, loss)
Rows = Callable[[int], pd.DataFrame]  # (step): the rows of the train table from that step on, as far as they are known
Evaluated = Callable[[int, float, float], None]  # (step, test loss, test accuracy)


@dataclass
class Observer:
    """Looks at the states and the rows of a run while it trains, and changes none of them. This one looks at no step.

    Attributes:
        steps: The steps to look at.
    """

    steps: Container[int] = ()

    def look(self, trajectory: Trajectory) -> None:
        """Look at the present state, before the step to the next one."""

    def hear(self, rows: Rows) -> None:
        """Rows of the train table have become known."""

    @property
    def kept(self) -> str:
        """What is kept of what was seen, for the user."""
        return ""

    def keep(self) -> None:
        """Make what was seen durable: a checkpoint follows, after which these steps are not passed again."""


#: Begins to observe a run whose folder is prepared and locked.
Observe = Callable[[Run, Problem], AbstractContextManager[Observer]]


@torch.inference_mode(False)
@torch.enable_grad()
def train_config(
    config: Config,
    output: Path | str | None = None,
    *,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    parents: bool = True,
    progress: Progress | None = None,
    evaluated: Evaluated | None = None,
    problem: Problem | None = None,
    observe: Observe = lambda run, problem: nullcontext(Observer()),
) -> Run:
    """Train a run to its end, or resume it from its last checkpoint. A finished run is returned as it is.

    Args:
        config: The configuration.
        output: The folder of the run; `runs/<name of the run>` by default.
        device: "auto", "cpu", "cuda" or "mps".
        resume: Whether an unfinished run in the folder is resumed; otherwise it starts again.
        force: Whether any run in the folder is replaced.
        parents: Whether the folders above a new run's are made too; otherwise they must exist.
        progress: Called with the step that is reached and the last loss before it: where training begins, with NaN at
            step 0; then every 25 steps and at each checkpoint.
        evaluated: Called with the step, the test loss and the test accuracy after each evaluation on the test set.
        problem: The configuration's problem, if it is open already.
        observe: Called if there is something to train.

    Returns:
        The run.

    Raises:
        InputError: If a setting is invalid, the folder holds a run with another configuration, or the run cannot fit
            into the memory or the disk.
        stopping.Interrupted, stopping.Terminated, stopping.Withdrawn: If the work was told to stop. The rows and a
            checkpoint of the step that was reached are written.
    """
    problem = problem or problems.build(config, choose_device(device))
    path = runs.default_folder(problem.config) if output is None else Path(output)
    if output is None and not path.exists() and (begun := runs.shorter(problem.config)) is not None:
        said = f"{begun.path}: has the first {begun.config.steps} steps of this run; -o {begun.path} would extend it"
        remark(said)
    needs.check(problem, path, resume=resume, force=force)
    _ = problem.initial  # reports a norm or size that does not fit before anything is written
    run = runs.prepare(path, problem.config, resume=resume, force=force, parents=parents)
    with run.locked():
        ended = run.outcome()
        if ended is not None and (names := user_code.changed(ended)):
            said = f"{run.path}: was trained before {names} changed; restore that, or --force trains it again"
            remark(said)
        if ended is None:
            check_writable(run.train_path)
            with observe(run, problem) as observer, stopping.deferred():
                _train(run, problem, progress, evaluated, observer)
    return run


def _train(
    run: Run, problem: Problem, progress: Progress | None, evaluated: Evaluated | None, observer: Observer
) -> None:
    """Train from the last checkpoint, or the start, and write checkpoints and train.parquet.

    Row t of the table records the loss, accuracy and gradient norm at theta_t; no step follows the last row. A loss
    that is not finite ends the run as diverged: its row is the last one, and the provenance records its step. The
    provenance also has `Problem.baseline`, which tells whether the run has learnt anything.
    """
    # Made only here: if the run's folder is moved away during training, it must not appear again.
    run.checkpoint_path(0).parent.mkdir(exist_ok=True)
    baseline = problem.baseline()  # the trajectory takes the problem's network
    trajectory = Trajectory(problem)
    trajectory.optimiser.check()
    rows = _resume(run, trajectory)
    if names := user_code.changed(rows.attrs.get("bnsmooth", {})):
        raise InputError(
            f"{run.path}: {names} has changed since step {len(rows)} was reached; restore it, or --force trains again"
        )
    log = _Log(run, rows, problem.device, observer.hear)
    log.about = ({"baseline": baseline} if baseline else {}) | _code(run, problem)
    if log.earlier and (differing := changed(machine_of(log.earlier[-1]), log.machine)):
        said = f"{run.path}: resumed at step {trajectory.step} by another machine or program ({'; '.join(differing)}); "
        remark(said + "its last bits may differ from those of an uninterrupted run")
    config = run.config
    if runs.open_run(run.path).config != config:  # more steps than before, or other intervals
        runs.write_config(run)
    with Saver(run) as saver:
        first = trajectory.step
        for step in range(first, config.steps + 1):
            last, lr = step == config.steps, trajectory.optimiser.lr(step)
            saving, looking = last or step % config.save_every == 0, step in observer.steps
            if step == first or saving or looking or log.count == READ_EVERY:
                diverged = log.read()
                if diverged is not None:
                    saver.table(*log.written(diverged_at=diverged))
                    return
                if progress is not None:
                    progress(step, log.last_loss)
            if looking:
                observer.look(trajectory)
                if stopping.told():  # maybe before all was seen
                    _stop(run, log, trajectory, observer, saver)
            if saving:
                observer.keep()
                saver.checkpoint(*log.written(), step, trajectory.state())
            if problem.test_size and (last or step % (config.eval_every or config.steps) == 0):
                log.tests[step] = problem.evaluate(trajectory.model)
                if evaluated is not None:
                    evaluated(step, *log.tests[step])
            if not last:
                log.add(trajectory.advance(), lr)
                if stopping.told():
                    _stop(run, log, trajectory, observer, saver)
        log.add(trajectory.gradients(update_statistics=False)[0], lr)
        problem.check_data()
        saver.table(*log.written(diverged_at=log.read(), last_step=config.steps))


def _stop(run: Run, log: _Log, trajectory: Trajectory, observer: Observer, saver: Saver) -> NoReturn:
    """Keep the rows and the state of the present step, and end. If the run has diverged, the last checkpoint stands."""
    kept = "the last checkpoint"
    if log.read() is None:
        observer.keep()
        saver.checkpoint(*log.written(), trajectory.step, trajectory.state(), stopped=True)
        kept = f"step {trajectory.step} of {run.config.steps}"
    saver.wait()
    stopping.stop("; ".join(filter(None, (f"{run.path} keeps {kept}", observer.kept))))


def _code(run: Run, problem: Problem) -> dict[str, Any]:
    """Digests of the user's code, for `points.reaching`."""
    if not problem.has_users_code and not is_code(run.config.optimizer):
        return {}
    names = [getattr(run.config, name) for name in CODE]
    return {"code": {name: state for name in names if (state := digest(name)) is not None}}


def _resume(run: Run, trajectory: Trajectory) -> pd.DataFrame:
    """Load the run's last usable checkpoint into the trajectory, and return the train table's rows before it."""
    empty = pd.DataFrame(columns=list(kinds.get("train").columns))
    if not (states := run.resumable()):
        return empty
    rows = tables.read_table(run.train_path, "train")
    for step, path in states.items():
        if step <= len(rows):
            trajectory.load(path, step)
            return rows[:step]
    return empty


class _Log:
    """The growing train table. Losses stay on the device between two reads.

    Attributes:
        tests: The test loss and accuracy by step.
        count: The number of unread records.
        earlier: The stretches of the rows that are known from the start.
        machine: What computes the other rows.
        about: Entries of the table's provenance.
    """

    def __init__(self, run: Run, rows: pd.DataFrame, device: torch.device, hear: Callable[[Rows], None]) -> None:
        known = rows[[*RECORD]].fillna({"penalty": 0.0})  # earlier versions had no penalty, nor its column
        self._records: list[np.ndarray[Any, Any]] = [known.to_numpy(np.float64)]
        tested = rows[rows["test_loss"].notna() | rows["test_accuracy"].notna()]
        self.tests = {int(r.step): (r.test_loss, r.test_accuracy) for r in tested.itertuples()}
        self._pending = torch.empty(READ_EVERY, len(RECORD), device=device, dtype=widest(device))
        self.count = 0
        self.earlier = before(recorded(rows.attrs.get("bnsmooth", {}), len(rows) - 1), len(rows))
        self.machine, self._begun = machine(device), len(rows)
        self.about: dict[str, Any] = {}
        self._run, self._hear = run, hear
        lrs = enumerate(rows["step_lr"])  # which earlier versions lack
        self._lrs = [run.config.lr_at(step) if math.isnan(lr) else float(lr) for step, lr in lrs]

    def add(self, record: Tensor, lr: float) -> None:
        """Add the columns of RECORD of a step, a tensor (4,) on the device, and the step's learning rate."""
        self._pending[self.count] = record
        self._lrs.append(lr)
        self.count += 1

    def read(self) -> int | None:
        """Read the pending records up to the first loss that is not finite. Returns the step of that loss, or None."""
        new = self._pending[: self.count].cpu().numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(new[:, 0]))
        if len(bad):
            new = new[: bad[0] + 1]
        self._records.append(new)
        self.count = 0
        self._hear(self.rows)
        return sum(map(len, self._records)) - 1 if len(bad) else None

    @property
    def last_loss(self) -> float:
        """The last loss that was read."""
        return float(self._records[-1][-1, 0]) if len(self._records[-1]) else math.nan

    def written(self, **outcome: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The table of the rows that were read, and its provenance with the outcome of the run."""
        run, last = self._run, sum(map(len, self._records)) - 1
        mine = [stretch(self._begun, last, self.machine)] if last >= self._begun else []
        provenance = {
            "version": __version__,
            "torch": torch.__version__,
            "runs": {run.name: run.config.as_dict()},
            "stretches": joined([*self.earlier, *mine]),
            **self.about,
            **outcome,
        }
        return self.rows(), provenance

    def rows(self, first: int = 0) -> pd.DataFrame:
        """The rows of the table that were read, from a step on."""
        run, config = self._run, self._run.config
        frame = pd.DataFrame(np.concatenate(self._records)[first:], columns=list(RECORD))
        frame.insert(0, "step", np.arange(first, first + len(frame)))
        frame["step_lr"] = self._lrs[first : first + len(frame)]
        tests = pd.DataFrame.from_dict(
            self.tests, orient="index", columns=["test_loss", "test_accuracy"], dtype="float64"
        )
        return frame.join(tests, on="step").assign(
            run=run.name, problem=config.problem, norm=config.norm, lr=config.lr, seed=config.seed,
            settings=config.settings_text,
        )  # fmt: skip
