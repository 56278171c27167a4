"""Trials of commands that are told to stop: SIGTERM and SIGINT at random moments, and for studies also SIGKILL."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attempts import DLN, MEASURE, RECIPE, STUDY, TRAINED, VGG, Attempt, Try, contents, prepared, run, wait_for
from complaints import complaints
from forked import Ended
from kills import unreadable

STOP = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Told:
    """A trial: a try tells the command to stop one to three times, with one to three signals each time.

    It goes on with the command that the message names, which has to finish in the end.

    Attributes:
        line: The command.
        before: Commands to run before.
        workers: Whether it has worker processes. The signals then go to its main process or to all of them.
    """

    line: str
    before: tuple[str, ...] = ()
    workers: bool = False

    def prepare(self, folder: Path) -> Attempt:
        base, length, expected = prepared(folder, self.before, self.line, session if self.workers else run)

        def attempt(number: int) -> Try:
            chance = random.Random(number)
            here = folder / f"told-{number}"
            shutil.copytree(base, here)
            stops, line = 0, self.line
            for _ in range(chance.randint(1, 3)):
                at, signals = chance.uniform(0, length), []
                for _ in range(chance.choice((1, 1, 1, 2, 3))):
                    signals.append((at, chance.choice(STOP)))
                    at += chance.choice((0.0, 0.01, 0.3))
                if self.workers:
                    ended = session(line, here, signals, whole=chance.random() < 0.5)
                else:
                    ended = run(line, here, signals=signals)
                if fault := wrong_end(ended, signals) or unreadable(here):
                    return Try(f"{signals}", "", fault, 0.0, 0)
                if ended.err:
                    stops += 1
                    line = ended.err.rstrip("\n").partition("; continue with: bnsmooth ")[2]
            last = session(line, here) if self.workers else run(line, here)
            fault = other(last, contents(here), expected)
            if not fault:
                shutil.rmtree(here)
            return Try(f"told {stops} times", "same result", fault, last.seconds, 0)

        return attempt


def wrong_end(ended: Ended, signals: list[tuple[float, int]]) -> str:
    """The fault in how a command ended that was told to stop; empty if there is none."""
    if ended.code == 0:  # it was over
        return f"says {ended.err}" if ended.err else ""
    numbers = {number for _, number in signals}
    # It had not begun, or it had printed all. Then a second signal ends it silently, and the interpreter, which gives
    # up the handlers first when it ends, may die of the first.
    if not ended.err and ended.out.endswith(".claims.parquet\n"):
        silent = numbers | ({-128 - number for number in numbers} if len(signals) > 1 else set())
        return "" if -ended.code in silent else f"exit status {ended.code}, after its output"
    if -ended.code in numbers and not ended.err and not ended.out:
        return ""
    if ended.code not in {128 + number for number in numbers}:
        return f"exit status {ended.code}: {ended.err[-600:]}"
    if ended.err.count("\n") != 1 or not ended.err.startswith("bnsmooth: stopped; "):
        return f"not one line of ours: {ended.err[-600:]}"
    return ""


def other(last: Ended, found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """The fault in the last try of a command; empty if it gives the expected files."""
    if last.code:
        return f"does not finish: {last.err}"
    if found != expected:
        return f"other files: {sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))}"
    return ""


def session(
    line: str,
    folder: Path,
    signals: Sequence[tuple[float, int]] = (),
    *,
    whole: bool = False,
    begun: Callable[[], object] | None = None,
) -> Ended:
    """Run a command in an interpreter and a session of its own, until all of its processes have ended.

    Args:
        line: The command.
        folder: Where it runs.
        signals: The signals to send, and when.
        whole: Whether they go to the whole session, or to the main process alone.
        begun: The time 0 of the signals is when this holds; without it, the start of the command.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bnsmooth_cli", *shlex.split(line)], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / ".cache")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    started = time.monotonic()
    # Before this, the interpreter itself starts, and answers a signal with a traceback.
    wait_for(lambda: process.poll() is not None or _heeds(process.pid, signal.SIGTERM))
    if begun is not None:
        wait_for(lambda: process.poll() is not None or begun())
    zero = started if begun is None else time.monotonic()
    for moment, number in signals:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, zero + moment - time.monotonic()))
        with suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=120)
    wait_for(lambda: not members(process.pid))
    return Ended(process.returncode, out, complaints(err), time.monotonic() - started, 0)


def working(study: Path) -> Callable[[], object]:
    """A check whether a run of a study is at work."""
    return lambda: [*study.glob(".progress/*/*.json")]


def _heeds(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal, on Linux."""
    (caught,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def members(session: int) -> list[int]:
    """The processes of a session that have not ended, on Linux."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it ended in the meantime
            state, _, _, of = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state not in "ZX":
                found.append(int(process))
    return found


#: How often a study is broken off in a try.
TIMES = 10


@dataclass(frozen=True)
class BrokenOff:
    """A trial: a try kills, terminates or interrupts a study ten times at random moments, and then lets it finish."""

    line: str

    def prepare(self, folder: Path) -> Attempt:
        _, length, expected = prepared(folder, (), self.line, session)

        def attempt(number: int) -> Try:
            chance, came_to = random.Random(number), Counter[str]()
            here = folder / f"study-{number}"
            here.mkdir()
            for _ in range(TIMES):
                moment, how = chance.uniform(0, length / 8), chance.choice((signal.SIGKILL, *STOP))
                whole = chance.random() < 0.5
                ended = session(self.line, here, [(moment, how)], whole=whole, begun=working(here / "study"))
                fault = ended.err if ended.code == -signal.SIGKILL else wrong_end(ended, [(moment, how)])
                if fault := fault or unreadable(here):
                    return Try(f"{how.name} after {moment:.1f} s of work", "", fault, 0.0, 0)
                came_to[how.name if ended.code else "finished"] += 1
            last = session(self.line, here)
            fault = other(last, contents(here), expected)
            if not fault:
                shutil.rmtree(here)
            return Try(f"{dict(came_to)} of {length:.0f} s", "same result", fault, last.seconds, 0)

        return attempt


_TRAIN = f"train {DLN} --norm l1 --steps 60 --save-every 3 -o run"
_MEASURED = "--measure landscape,smoothness,ics,activations --every 4"
TOLD: dict[str, Told] = {
    "train": Told(_TRAIN),
    "train, measured": Told(f"{_TRAIN} {_MEASURED}"),
    "train, AdamW": Told(f"train {RECIPE} --steps 60 --save-every 3 -o run"),
    "train, VGG": Told(f"train {VGG} --norm batch --steps 6 --eval-every 1 -o run"),
    **{kind: Told(f"{line} run", (TRAINED,)) for kind, line in MEASURE.items()},
    "compare, a grid": Told(STUDY),
    "compare, a grid with workers": Told(f"{STUDY} --jobs 2", workers=True),
}
_FOUR = "compare --norms none,batch --seeds 0-1 --jobs 2 --measure landscape,smoothness,ics,activations -o study"
BROKEN_OFF: dict[str, BrokenOff] = {
    "dln": BrokenOff(f"{_FOUR} {DLN.replace('--lr ', '--lrs ')} --steps 3000 --save-every 300 --every 100"),
    "VGG": BrokenOff(f"{_FOUR} --problem vgg --width 0.1 --batch-size 16 --steps 60 --save-every 20 --every 10"),
}
