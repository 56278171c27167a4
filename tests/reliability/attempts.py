"""What one try to break bnsmooth came to, and what is wrong with how a command ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import GIB, Ended, command

DLN = "--problem dln --depth 4 --dimension 4 --samples 30 --lr 1e-4"
VGG = "--problem vgg --width 0.05 --batch-size 8 --save-every 1"
KINDS = ("landscape", "smoothness", "ics", "activations", "theory")
#: A run that most trials begin with, and one to compare it with.
TRAINED = f"train {DLN} --norm batch --steps 20 --save-every 4 -o run"
OTHER = f"train {DLN} --norm none --steps 20 --save-every 4 -o other"
STUDY = (
    "compare --norms none,batch --problem dln --depth 4 --dimension 4 --samples 30 --lrs 1e-4 --steps 12 --save-every 4"
    " --measure smoothness -o study"
)


@dataclass(frozen=True)
class Try:
    """What one try came to: it was refused in one line, or gave a result; or else the fault."""

    what: str
    came_to: str
    fault: str
    seconds: float
    #: Memory beyond what the valid file takes, in bytes.
    more_memory: int


#: A number to what that try came to.
Attempt = Callable[[int], Try]


def run(line: str, folder: Path, **more: Any) -> Ended:
    return command(shlex.split(line), folder, **more)


def done(line: str, folder: Path) -> Ended:
    """A command that must succeed."""
    ended = run(line, folder)
    assert ended.code == 0, (line, ended.err)
    return ended


def contents(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, but for locks and caches."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("lock", "lock.owner")) and ".cache" not in path.parts
    }


def judge(ended: Ended, named: str, more_memory: int = 0) -> str:
    """What is wrong with how a command ended that was handed something broken; nothing where all is well."""
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
