"""How a study reports its progress: from the runs, through files, to the caller's callbacks. No torch here."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: How often a run writes its progress and a study reads it, in seconds.
INTERVAL: Final = 0.5


class StudyProgress:
    """Callbacks for the progress of `bns.study`. Subclass it and override the methods that you need.

    Calls never overlap. `started` and `advanced` are called from a thread that checks the runs twice a second, so a
    short run may never advance. By default, failures and messages become warnings, and other calls do nothing.

    >>> class Printed(StudyProgress):
    ...     def finished(self, run, seconds):
    ...         print(f"{run} has finished")
    """

    def planned(self, runs: Sequence[str]) -> None:
        """The study will train or measure these runs. Finished runs are left out."""

    def started(self, run: str) -> None:
        """A run has started."""

    def advanced(self, run: str, stage: str, done: int, total: int, note: str) -> None:
        """A run has completed `done` of `total` steps of `train`, or points of a measurement."""

    def finished(self, run: str, seconds: float) -> None:
        """A run has been trained and measured."""

    def failed(self, run: str, reason: str) -> None:
        """A run has failed, or cannot be read. The other runs continue."""
        warnings.warn(f"{run} failed, the other runs continue: {reason}", stacklevel=2)

    def message(self, text: str) -> None:
        """Information for the user, such as that a cluster has no workers yet."""
        warnings.warn(text, stacklevel=2)


class Stopped(Exception):
    """Raised in a run whose study has been stopped."""


@contextmanager
def reports(study: Path) -> Iterator[Path]:
    """A folder in which the runs of one command report their progress. Runs may work only while it exists.

    Reports are files because every worker sees the study's folder. The folder is removed when the block ends. Runs that
    have not begun then end at once, and the others end at their next report.
    """
    _withdraw(study)
    folder = study.absolute() / ".progress" / uuid.uuid4().hex  # a worker may have another working directory
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _withdraw(study)


def _withdraw(study: Path) -> None:
    with suppress(FileNotFoundError):  # renamed, so that no run can write there from now on
        (study / ".progress").rename(study / f".stopped-{uuid.uuid4().hex}")
    for stopped in study.glob(".stopped-*"):
        shutil.rmtree(stopped, ignore_errors=True) if stopped.is_dir() else stopped.unlink()


class Reporter:
    """Writes the progress of one run to its file in the folder of `reports`.

    Raises:
        Stopped: If the folder is gone.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._file, self._last = folder / f"{run}.json", -INTERVAL
        self("start", 0, 1)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report, unless the last report is too recent."""
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return
        self._last = now
        try:
            self._file.write_text(json.dumps([stage, done, total, note]))
        except FileNotFoundError:
            raise Stopped from None
        except OSError:  # the disk is full, which the run itself will report
            pass

    def end(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)


class Watch:
    """Passes the reports of the runs to the caller's callbacks, from a thread, until the `with` block ends."""

    def __init__(self, folder: Path, progress: StudyProgress) -> None:
        self._folder, self._progress = folder, progress
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(INTERVAL):
            for path in sorted(self._folder.glob("*.json")):
                try:
                    report = json.loads(path.read_text())
                except (OSError, ValueError):  # removed, or being written, at this moment
                    continue
                with self._lock:
                    if path.stem not in self._ended:
                        self._start(path.stem)
                        self._progress.advanced(path.stem, *report)

    def _start(self, run: str) -> None:
        if run not in self._started:
            self._started.add(run)
            self._progress.started(run)

    def end(self, run: str, result: float | str) -> None:
        """Report the end of a run: the seconds that it took, or why it failed."""
        with self._lock:
            self._ended.add(run)
            if isinstance(result, str):
                self._progress.failed(run, result)
            else:
                self._start(run)
                self._progress.finished(run, result)
