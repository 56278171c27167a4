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
from typing import Any, Final

from bnsmooth_cli import stopping
from bnsmooth_cli.bars import Bar, wanted
from bnsmooth_cli.errors import Remark, remark

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: How often a run writes its progress and a study reads it, in seconds.
INTERVAL: Final = 0.5
#: How long a worker waits for the one that had its run before, in seconds. The run's own lock refuses it after that.
HANDOVER: Final = 60
_own: set[Path] = set()  # the folders of `reports` that this process has made
_REMARKS: Final = ".remarks"  # the ending of the file with a run's remarks, one a line


def duration(seconds: float) -> str:
    """A duration to two or three digits.

    >>> duration(42.4), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"


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


class StudyBar(StudyProgress):
    """A progress bar for a whole study. Its note is on the run that has reported last."""

    def __init__(self) -> None:
        # One bar, because Jupyter cannot show several lines of text that change.
        self._bar = Bar("study", "runs", "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]")
        self._parts: dict[str, float] = {}  # how much is done of each run that was planned
        self._ended = 0

    def __enter__(self) -> StudyBar:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.end(whole=kind is None)

    def planned(self, runs: Sequence[str]) -> None:
        self._parts = dict.fromkeys(runs, 0.0)
        self._show()

    def advanced(self, run: str, stage: str, done: int, total: int, note: str) -> None:
        self._parts[run] = max(
            self._parts.get(run, 0.0), done / max(total, 1)
        )  # a run may be resumed, or measured next
        self._show(f"{run}: {stage} {done}/{total}" + f", {note}" * bool(note))

    def finished(self, run: str, seconds: float) -> None:
        self._parts[run] = 1.0
        self._ended += 1
        self._show()

    def failed(self, run: str, reason: str) -> None:
        super().failed(run, reason)
        if run in self._parts:
            self.finished(run, 0.0)

    def _show(self, note: str = "") -> None:
        runs = len(self._parts)
        self._bar(sum(self._parts.values()), runs, note, f"study: {self._ended} of {runs} runs")


@contextmanager
def shown(progress: StudyProgress | bool | None) -> Iterator[StudyProgress]:
    """The callbacks that a caller has given, or those of a bar, or none (`bars.wanted`)."""
    if isinstance(progress, StudyProgress):
        yield progress
    elif wanted(progress):
        with StudyBar() as bar:
            yield bar
    else:
        yield StudyProgress()


@contextmanager
def reports(study: Path) -> Iterator[Path]:
    """A folder in which the runs of one command report their progress. Runs may work only while it exists.

    Reports are files because every worker sees the study's folder. The folder is removed by `withdraw`, or when the
    block ends.
    """
    folder = study.absolute() / ".progress" / uuid.uuid4().hex  # a worker may have another working directory
    withdraw(folder)
    folder.mkdir(parents=True)
    _own.add(folder)
    with stopping.undone(lambda: withdraw(folder)):
        try:
            yield folder
        finally:
            withdraw(folder)
            _own.discard(folder)


def withdraw(folder: Path) -> set[str]:
    """Remove the folder of `reports`. Runs that have not begun will end at once, and the others after their present
    step or point. Returns the names of the others."""
    begun = {path.stem for path in folder.glob("*.json")}
    clear(folder.parents[1])
    return begun


def clear(study: Path) -> None:
    """Remove what the `reports` of a study have left, also those of commands that were killed."""
    with suppress(FileNotFoundError):  # renamed, so that no run can write there from now on
        (study / ".progress").rename(study / f".stopped-{uuid.uuid4().hex}")
    for stopped in study.glob(".stopped-*"):
        shutil.rmtree(stopped, ignore_errors=True) if stopped.is_dir() else stopped.unlink()


class Reporter:
    """Writes the progress of one run to its file in the folder of `reports`, while the `with` block runs.

    If another worker still holds the run, because it has just been told to stop, the block begins when that has ended.

    Raises:
        Withdrawn: If the folder is gone.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder, self._file = folder, folder / f"{run}.json"
        self._reported = self._looked = -INTERVAL
        self._gone = False
        self._remarks: set[str] = set()

    def __enter__(self) -> Reporter:
        with suppress(FileNotFoundError):
            self._stream = self._file.open("a")
            end = time.monotonic() + HANDOVER
            while not _lock(self._stream.fileno()) and not self.withdrawn() and time.monotonic() < end:
                time.sleep(INTERVAL / 5)
        if self.withdrawn():
            raise stopping.Withdrawn("the study has ended")
        self("start", 0, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)
        self._stream.close()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report, unless the last report is too recent."""
        now = time.monotonic()
        if now - self._reported >= INTERVAL:
            self._reported = now
            with suppress(OSError):  # withdrawn, or the disk is full, which the run itself will report
                self._file.write_text(json.dumps([stage, done, total, note]))

    def remark(self, text: str) -> None:
        """Report a remark for the study's user, once."""
        if text not in self._remarks:
            self._remarks.add(text)
            with suppress(OSError), self._file.with_suffix(_REMARKS).open("a") as stream:
                stream.write(json.dumps(text) + "\n")

    @contextmanager
    def remarking(self) -> Iterator[None]:
        """Report the remarks of the block, unless this process is the study's own."""
        if self._folder in _own:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always", Remark)
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if issubclass(category, Remark):
                    self.remark(str(message))
                else:
                    others(message, category, *place)

            warnings.showwarning = show  # type: ignore[assignment]
            yield

    def withdrawn(self) -> bool:
        """Whether the folder is gone. It is looked for every INTERVAL seconds at most, so calls are cheap."""
        now = time.monotonic()
        if not self._gone and now - self._looked >= INTERVAL:
            self._looked, self._gone = now, not self._folder.is_dir()
        return self._gone


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed. False if another process holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


class Watch:
    """Passes the reports of the runs to the caller's callbacks, from a thread, until the `with` block ends."""

    def __init__(self, folder: Path, progress: StudyProgress) -> None:
        self._folder, self._progress = folder, progress
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._remarks: set[str] = set()
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
            with self._lock:
                self._tell_remarks()
            for path in sorted(self._folder.glob("*.json")):
                try:
                    report = json.loads(path.read_text())
                except (OSError, ValueError):  # removed, or being written, at this moment
                    continue
                with self._lock:
                    if path.stem not in self._ended:
                        self._start(path.stem)
                        self._progress.advanced(path.stem, *report)

    def _tell_remarks(self) -> None:
        """Pass on the remarks that are new, as warnings of this process."""
        for path in sorted(self._folder.glob(f"*{_REMARKS}")):
            with suppress(OSError, ValueError):  # removed, or being written, at this moment
                for line in path.read_text().splitlines():
                    if (text := json.loads(line)) not in self._remarks:
                        self._remarks.add(text)
                        remark(text)

    def _start(self, run: str) -> None:
        if run not in self._started:
            self._started.add(run)
            self._progress.started(run)

    def end(self, run: str, result: float | str) -> None:
        """Report the end of a run: the seconds that it took, or why it failed."""
        with self._lock:
            self._tell_remarks()
            self._ended.add(run)
            if isinstance(result, str):
                self._progress.failed(run, result)
            else:
                self._start(run)
                self._progress.finished(run, result)
