"""The remaining work on one run of a study, and its execution. Only the execution imports torch."""

from __future__ import annotations

import math
import platform
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from bnsmooth_cli import __version__
from bnsmooth_cli.config import CODE, Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.wanted import Wanted
from bnsmooth_cli.stopping import Withdrawn, heeding, stop, told
from bnsmooth_cli.storage.journal import begin_anew
from bnsmooth_cli.storage.live import Exports, Live
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies import executors
from bnsmooth_cli.studies.progress import Reporter
from bnsmooth_cli.user_code import allow


@dataclass(frozen=True)
class Task:
    """The remaining work on one run of a study, as a worker receives it. It is false if nothing remains.

    Attributes:
        path: The folder of the run.
        config: The configuration of the run.
        reached: The step that its training has reached: the last one if it has finished or diverged.
        wanted: The tables that remain to be measured.
        threads: CPU threads.
        device: `auto`, `cpu`, `cuda` or `mps`.
        force: Whether existing tables are measured again (`begin_anew`).
        version: The version of bnsmooth that the worker must have.
        modules: The folder in which the worker finds the user's own modules.
        exports: The programs that get the numbers while they are computed.
    """

    path: Path
    config: Config
    reached: int
    wanted: Wanted
    threads: int
    device: str
    force: bool
    version: str = __version__
    modules: Path = field(default_factory=Path.cwd)
    exports: Exports = Exports()  # noqa: RUF009  immutable

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.path.name

    def begin_anew(self) -> None:
        """Mark the tables that are measured again, before any work: a command that resumes measures them again."""
        if self.force and self.path.is_dir():
            source = Run(self.path, self.config).source()
            for kind in self.wanted.kinds:
                begin_anew(source.table_path(kind), kind)

    def __bool__(self) -> bool:
        return bool(self.wanted.kinds) or self.reached < self.config.steps


@dataclass
class TrainingNote:
    """What is told of a run while it trains: its last loss, and its last evaluation.

    >>> note = TrainingNote()
    >>> note.trained(0, math.nan), note.trained(25, 0.51234), note.evaluated(25, 0.9, 0.75), note.trained(50, 0.5)
    ('', 'loss 0.5123', 'loss 0.5123, test accuracy 0.75', 'loss 0.5, test accuracy 0.75 at step 25')
    """

    loss: float = math.nan
    test: str = ""
    tested_at: int = -1

    def trained(self, step: int, loss: float) -> str:
        """The note after a training step."""
        self.loss = loss
        return self._at(step)

    def evaluated(self, step: int, test_loss: float, test_accuracy: float) -> str:
        """The note after an evaluation on the test set."""
        accuracy = not math.isnan(test_accuracy)
        self.test = f"test accuracy {test_accuracy:.4g}" if accuracy else f"test loss {test_loss:.4g}"
        self.tested_at = step
        return self._at(step)

    def _at(self, step: int) -> str:
        loss = "" if math.isnan(self.loss) else f"loss {self.loss:.4g}"
        test = self.test if step == self.tested_at or not self.test else f"{self.test} at step {self.tested_at}"
        return ", ".join(filter(None, (loss, test)))


def remaining(run: Run, wanted: Wanted, threads: int, device: str, force: bool) -> Task:
    """The remaining work on a run, which may not exist yet. The arguments are those of `Task`.

    Raises:
        InputError: If the run's folder holds a run of another configuration, or a table of other options.
        DamagedError: If a file of the run is damaged.
    """
    reached, steps = 0, run.config.steps
    if (run.path / "config.json").exists():
        existing = open_run(run.path).config
        if differences := existing.differences(run.config):
            raise InputError(f"{run.path}: a run of another configuration ({'; '.join(differences)}); move it away")
        ended = run.outcome() is not None
        if ended:
            reached, run = steps, Run(run.path, run.config.changed(**existing.incidental()))
        else:
            reached = min(next(iter(run.resumable()), 0), steps - 1)  # the last step's row is still to come
        if reached and not force:
            from bnsmooth_cli.measures.one_pass import measured

            source = Run(run.path, existing.changed(steps=steps)).source()
            lacking = tuple(kind for kind in wanted.kinds if not measured(kind, source, wanted))
            wanted = replace(wanted, kinds=lacking if ended else wanted.kinds)
    path = run.path.absolute()  # a worker may have another working directory
    return Task(path, run.config, reached, wanted, threads, device, force)


def work(task: Task, reports: Path) -> float | Withdrawn:
    """Execute a task in this process.

    Returns:
        The seconds that it took; or Withdrawn, if the folder of `progress.reports` is gone or this Dask worker is
        closing. The results are then kept.
    """
    executors.check_version(task.version, platform.node())
    try:
        with (
            Reporter(reports, task.name) as report,
            report.remarking(),
            heeding(report.withdrawn),
            heeding(executors.closing()),
        ):
            return _work(task, report)
    except Withdrawn as withdrawn:  # as a result, because a Dask worker prints exceptions
        return withdrawn


def _work(task: Task, report: Reporter) -> float:
    import torch

    from bnsmooth_cli.measures.one_pass import train_and_measure
    from bnsmooth_cli.memory import keep_freed_memory

    if told():  # while torch was imported
        stop(f"{task.path} has not begun")
    begun, config, note = time.monotonic(), task.config, TrainingNote()
    allow(*(getattr(config, name) for name in CODE), folder=task.modules)  # the user named them where the task was made
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        train_and_measure(
            config,
            task.path,
            task.wanted,
            device=task.device,
            parents=False,  # a study's folder that was removed must not appear again
            progress=lambda step, loss: report("train", step, config.steps, note.trained(step, loss)),
            evaluated=lambda step, *test: report("train", step, config.steps, note.evaluated(step, *test)),
            measuring=lambda _, step, done, total: report("measure", done, total, f"step {step}"),
            live=Live(task.exports),
        )
    finally:
        torch.set_num_threads(threads)
    return time.monotonic() - begun
