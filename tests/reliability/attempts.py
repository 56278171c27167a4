"""Commands and runs that the trials share, and how the end of a command is judged."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import GIB, Ended, command

from bnsmooth_cli import kinds

DLN = "--problem dln --depth 4 --dimension 4 --samples 30 --lr 1e-4"
DEFAULT_DLN = "--problem dln --depth 5 --dimension 4 --samples 30"
VGG = "--problem vgg --width 0.05 --batch-size 8 --save-every 1"
#: A run of AdamW, and the rest of a recipe of today.
ADAMW = f"{DLN.replace('--lr 1e-4', '--lr 1e-3')} --norm batch --optimizer adamw"
RECIPE = f"{ADAMW} --schedule cosine --warmup 10 --clip 1 --weight-decay 0.1"
#: The kinds of tables that a study takes.
KINDS = kinds.measured(studied=True)
_OPTIONS = {
    "surface": "--points 3", "smoothness-by-layer": "--by-layer", "spectrum-by-layer": "--by-layer --top 2",
    "spectrum-ggn": "--curvature ggn", "spectrum-density": "--density --nodes 5",
    "spectrum-ggn-density": "--curvature ggn --density --nodes 5",
    **{f"{command}-{name}": f"--direction {name}"
       for command in ("landscape", "smoothness") for name in kinds.DIRECTIONS},
}  # fmt: skip
#: Kind -> the command that measures it, without the run.
MEASURE = {name: f"{kinds.get(name).command} {_OPTIONS.get(name, '')}".strip() for name in kinds.measured()}
#: A run that most trials begin with, and one to compare it with.
TRAINED = f"train {DLN} --norm batch --steps 20 --save-every 4 -o run"
OTHER = f"train {DLN} --norm none --steps 20 --save-every 4 -o other"
STUDY = (
    "compare --norms none,batch --problem dln --depth 4 --dimension 4 --samples 30 --lrs 1e-4 --steps 12 --save-every 4"
    " --measure smoothness -o study"
)


@dataclass(frozen=True)
class Try:
    """The outcome of a try: "refused", "same result" or "other result", and the fault if there is one."""

    what: str
    came_to: str
    fault: str
    seconds: float
    #: Memory beyond what the valid file takes, in bytes.
    more_memory: int


#: The number of a try to its outcome.
Attempt = Callable[[int], Try]


def run(line: str, folder: Path, **more: Any) -> Ended:
    return command(shlex.split(line), folder, **more)


def start(line: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bnsmooth_cli", *line.split()], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def fill(disk: Path) -> None:
    """Write a file `filler` until the disk is full."""
    with open(disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


def done(line: str, folder: Path) -> Ended:
    """Run a command that must succeed."""
    ended = run(line, folder)
    assert ended.code == 0, (line, ended.err)
    return ended


def prepared(
    folder: Path, before: tuple[str, ...], line: str, run: Callable[[str, Path], Ended] = run
) -> tuple[Path, float, dict[str, bytes]]:
    """A folder in which commands have run, how long another command takes there, and the files that it leaves."""
    base, whole = folder / "base", folder / "whole"
    base.mkdir(parents=True)
    for one in before:
        done(one, base)
    shutil.copytree(base, whole)
    ended = run(line, whole)
    assert ended.code == 0, (line, ended.err)
    return base, ended.seconds, contents(whole)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without locks, caches and the log of a study, which has times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("lock", "log.json")) and ".cache" not in path.parts
    }


def judge(ended: Ended, named: str, more_memory: int = 0) -> str:
    """The fault in how a command ended after broken input; empty if there is none."""
    if ended.timed_out:
        return "hung"
    if ended.code not in (0, 1, 2):
        return f"exit status {ended.code}: {ended.err[-300:]}"
    if more_memory > 2 * GIB:
        return f"took {more_memory / GIB:.1f} GiB more than the valid file"
    lines = [line for line in ended.err.splitlines() if line.startswith("bnsmooth: ")]
    if "Traceback" in ended.err or "--debug shows where" in ended.err:
        return f"not foreseen: {ended.err[-600:]}"
    if ended.code and not lines:
        return f"no message: {ended.err[-300:]}"
    if ended.code and len(ended.err.splitlines()) != len(lines):
        return f"more than lines of ours: {ended.err[-300:]}"
    if ended.code and named not in ended.err:
        return f"does not name {named}: {ended.err[-300:]}"
    return ""
