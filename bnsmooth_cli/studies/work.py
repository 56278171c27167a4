"""The work on one run of a study: what remains of it, and doing it. No torch until a run is worked on."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

from bnsmooth_cli import __version__
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies.executors import check_version
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import Grid
from bnsmooth_cli.studies.progress import Permit, Reporter
from bnsmooth_cli.user_code import allow


@dataclass(frozen=True)
class Task:
    """One run of a study and its measurements: everything that a worker is told.

    Attributes:
        study: The folder of the study.
        config: The configuration of the run.
        measure: The kinds of tables to measure.
        every, at: The steps to measure, as in `Grid`.
        threads: CPU threads.
        device: `auto`, `cpu`, `cuda` or `mps`.
        force: Whether existing tables are measured again.
        permit: The name of the permit under which it works.
        version: The version of bnsmooth that the worker must have.
        modules: The folder in which the worker finds the user's own modules.
    """

    study: Path
    config: Config
    measure: tuple[str, ...]
    every: int | None
    at: tuple[int, ...] | None
    threads: int
    device: str
    force: bool
    permit: str = ""
    version: str = __version__
    modules: Path = field(default_factory=Path.cwd)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.name

    @property
    def run(self) -> Run:
        """The run, which may not exist yet."""
        return Study(self.study).run_of(self.config)

    def remaining(self) -> Remaining:
        """What remains to be done.

        Raises:
            InputError: If the run's folder holds a run of another configuration, or a table of other steps.
            DamagedError: If a file of the run is damaged.
        """
        reached = self._reached()
        return Remaining(self, reached, self._missing() if reached else self.measure)

    def _reached(self) -> int:
        run = self.run
        if not (run.path / "config.json").exists():
            return 0
        if differences := open_run(run.path).config.differences(run.config):
            raise InputError(f"{run.path}: a run of another configuration ({'; '.join(differences)}); move it away")
        if run.outcome() is not None:
            return self.config.steps
        saved = run.checkpoints() if run.train_path.is_file() else ()  # without its rows, training begins again
        return min(max(saved, default=0), self.config.steps - 1)  # the last step's row is still to come

    def _missing(self) -> tuple[str, ...]:
        if self.force:
            return self.measure
        from bnsmooth_cli.measures.measuring import measured

        config = open_run(self.run.path).config.changed(steps=self.config.steps)
        source = Run(self.run.path, config).source()
        return tuple(kind for kind in self.measure if not measured(kind, source, self.every, self.at))


@dataclass(frozen=True)
class Remaining:
    """What remains of a task: training from step `reached`, and the `tables` that are missing.

    A finished or diverged run has reached its last step.
    """

    task: Task
    reached: int
    tables: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.tables) or self.reached < self.task.config.steps


def tasks(study: Study, grid: Grid, device: str = "auto", force: bool = False) -> list[Task]:
    """One task for each run of the grid, finished or not."""
    folder = study.path.resolve()  # a worker may have another working directory
    return [
        Task(folder, config, grid.measure, grid.every, grid.at, grid.threads, device, force)
        for config in grid.configs()
    ]


def work(task: Task) -> float:
    """Do what remains of a task, in the process that calls it; the seconds that it took."""
    check_version(task.version, platform.node())
    import torch

    from bnsmooth_cli.measures.measuring import measure
    from bnsmooth_cli.memory import keep_freed_memory
    from bnsmooth_cli.training.run import train_config

    begun, config = time.monotonic(), task.config
    allow(config.norm, config.problem, folder=task.modules)  # whoever made the task has named them
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    report = Reporter(Permit(task.study, task.permit).file(task.name))
    try:
        run = train_config(
            config,
            task.run.path,
            device=task.device,
            progress=lambda step, loss: report("train", step, config.steps, f"loss {loss:.4g}"),
        )
        for kind in task.measure:
            measure(
                kind,
                [run.source()],
                every=task.every,
                at=task.at,
                device=task.device,
                force=task.force,
                progress=lambda _, step, done, total, kind=kind: report(kind, done, total, f"step {step}"),  # type: ignore[misc]
            )
    finally:
        report.end()
        torch.set_num_threads(threads)
    return time.monotonic() - begun
