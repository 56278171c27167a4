"""How a study's runs are brought about: what one is, what is missing of it, and all of them on an executor."""

from __future__ import annotations

import json
import platform
import shutil
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import __version__
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies.executors import check_version
from bnsmooth_cli.studies.grid import Grid, Study
from bnsmooth_cli.user_code import allow

#: A run whose worker died is begun again from its last checkpoint; after so many workers it has failed.
ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Task:
    """One run of a study and its measurements: all that a worker is told."""

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
    #: Where the command was given: a worker finds the user's own norm and problem there.
    modules: Path = field(default_factory=Path.cwd)

    @property
    def run(self) -> Run:
        """The run, which may not be there yet."""
        return Study(self.study).run(self.config)

    def trained(self) -> int:
        """The step that its training has reached; the length of the run where it is finished, or has diverged."""
        run = self.run
        if not (run.path / "config.json").exists():
            return 0
        if differences := open_run(run.path).config.differences(run.config):
            raise InputError(f"{run.path}: a run of another configuration ({'; '.join(differences)}); move it away")
        if run.outcome() is not None:
            return self.config.steps
        saved = run.checkpoints() if run.train_path.is_file() else ()  # without its rows training begins again
        return min(max(saved, default=0), self.config.steps - 1)  # the last step's row is still to come

    def missing(self) -> tuple[str, ...]:
        """The tables that are still to be measured; InputError where one is there, of other steps."""
        if not self.trained() or self.force:
            return self.measure
        from bnsmooth_cli.measures.measuring import measured

        config = replace(open_run(self.run.path).config, steps=self.config.steps)
        source = Run(self.run.path, config).source()
        return tuple(kind for kind in self.measure if not measured(kind, source, self.every, self.at))


def tasks(study: Study, grid: Grid, device: str = "auto", force: bool = False) -> list[Task]:
    """A task for every run of the grid, finished ones too."""
    folder = study.path.resolve()  # a worker may have another working directory
    return [
        Task(folder, config, grid.measure, grid.every, grid.at, grid.threads, device, force)
        for config in grid.configs()
    ]


class Stopped(Exception):
    """Told to a run by whoever started the study."""


class Progress:
    """Where a run is, in a file that whoever started the study reads, wherever the run executes.

    The files are in a folder that the command makes, its permit: once that is gone every run ends, raising Stopped,
    those that have not begun at once, the others when they next say where they are.
    """

    EVERY: Final = 0.5  # seconds

    def __init__(self, task: Task) -> None:
        self._path = task.study / ".progress" / task.permit / f"{task.config.name}.json"
        self._last = -self.EVERY
        self("start", 0, 1)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Say what the run is doing; seldom enough to cost nothing."""
        now = time.monotonic()
        if now - self._last < self.EVERY:
            return
        self._last = now
        try:
            self._path.write_text(json.dumps({"what": what, "done": done, "total": total, "note": note}))
        except FileNotFoundError:
            raise Stopped from None
        except OSError:  # no space left: the run itself will say so
            pass

    def end(self) -> None:
        """Leave nothing behind."""
        self._path.unlink(missing_ok=True)

    @staticmethod
    def permit(study: Path) -> str:
        """Permit runs to work on a study, and no others than those that carry this name."""
        Progress.stop(study)
        folder = study / ".progress" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder.name

    @staticmethod
    def read(study: Path) -> dict[str, dict[str, Any]]:
        """What every running run is doing, by name."""
        found = {}
        with suppress(FileNotFoundError):  # stopped this moment
            for path in sorted((study / ".progress").glob("*/*.json")):
                with suppress(OSError, ValueError):  # ended, or being written, this moment
                    found[path.stem] = json.loads(path.read_text())
        return found

    @staticmethod
    def stop(study: Path) -> None:
        """Stop every run of a study, and forget what was left by a killed one."""
        with suppress(FileNotFoundError):  # renamed at once: no run can write there any more
            (study / ".progress").rename(study / f".stopped-{uuid.uuid4().hex}")
        for gone in study.glob(".stopped-*"):
            shutil.rmtree(gone, ignore_errors=True) if gone.is_dir() else gone.unlink()


def work(task: Task) -> float:
    """Train and measure one run, or what is missing of it; the seconds that it took. What a worker does."""
    check_version(task.version, platform.node())
    import torch

    from bnsmooth_cli.measures.measuring import measure
    from bnsmooth_cli.memory import keep_freed_memory
    from bnsmooth_cli.training.run import train_config

    begun, config = time.monotonic(), task.config
    allow(config.norm, config.problem, folder=task.modules)  # whoever gave the task has named them
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    progress = Progress(task)
    try:
        run = train_config(
            config,
            task.run.path,
            device=task.device,
            progress=lambda step, loss: progress("train", step, config.steps, f"loss {loss:.4g}"),
        )
        for kind in task.measure:
            measure(
                kind,
                [run.source()],
                every=task.every,
                at=task.at,
                device=task.device,
                force=task.force,
                progress=lambda _, step, done, total, kind=kind: progress(kind, done, total, f"step {step}"),  # type: ignore[misc]
            )
    finally:
        progress.end()
        torch.set_num_threads(threads)
    return time.monotonic() - begun


def execute(executor: Executor, todo: Sequence[Task]) -> Iterator[tuple[Task, float | str]]:
    """Each task once it is over, with the seconds that it took or the reason why it failed.

    A task whose worker died is given to another, which goes on from its last checkpoint; a Dask cluster does so itself.
    """
    waiting = deque((task, 1) for task in todo)
    running: dict[Future[float], tuple[Task, int]] = {}
    while waiting or running:
        if waiting:
            task, attempt = waiting.popleft()
            running[executor.submit(work, task)] = task, attempt
        # An executor that works in this very thread is asked after every task, any other once it has them all; not for
        # long, as a signal that another thread of the process gets wakes no sleeper.
        over, _ = wait(running, timeout=0 if waiting else Progress.EVERY, return_when=FIRST_COMPLETED)
        for future in over:
            task, attempt = running.pop(future)
            try:
                yield task, future.result()
            except BrokenExecutor:
                if attempt < ATTEMPTS:
                    waiting.append((task, attempt + 1))
                else:
                    yield task, f"its worker process died {ATTEMPTS} times; was there too little memory?"
            except CancelledError:
                yield task, "the cluster that it was handed to has gone; the same command goes on"
            except InputError as error:
                yield task, str(error)
            except Exception as error:  # whatever ends one run, the others go on
                yield task, f"{type(error).__name__}: {' '.join(str(error).split())}"
