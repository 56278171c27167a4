"""Commands in forked processes, which can be killed and measured, and which share the parent's imports."""

from __future__ import annotations

import importlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from complaints import complaints

from bnsmooth_cli import cli

# What commands import is imported once, before any fork.
for _name in ("figures", "measures.measuring", "report", "studies.run", "studies.outcome", "data.images"):
    importlib.import_module(f"bnsmooth_cli.{_name}")
for _name in ("matplotlib.backends.backend_agg", "torch._dynamo"):  # the latter by torch's optimisers
    importlib.import_module(_name)

GIB = 2**30


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative for a signal), output, duration and memory.

    `err` is stderr without the lines of progress.
    """

    code: int
    out: str
    err: str
    seconds: float
    #: The largest resident memory in bytes, with what this process already had.
    peak: int

    @property
    def timed_out(self) -> bool:
        return self.code == -signal.SIGALRM


def command(
    words: Sequence[str], folder: Path, *, seconds: float = 60.0, signals: Sequence[tuple[float, int]] = ()
) -> Ended:
    """Run `bnsmooth WORDS` in a folder. A command that takes longer than `seconds` is stopped and has `timed_out`.

    Each of `signals` is sent after so many seconds, if the command still runs. The address space may grow by at most
    4 GiB.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(words, folder, out, err)
        pidfd = os.pidfd_open(process)
        try:
            for moment, number in [*signals, (seconds, signal.SIGALRM)]:
                if select.select([pidfd], [], [], max(0.0, begun + moment - time.monotonic()))[0]:
                    break
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
        _, status, usage = os.wait4(process, 0)
        taken = time.monotonic() - begun
        for stream in (out, err):
            stream.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, out.read(), complaints(err.read()), taken, usage.ru_maxrss * 1024)


def _become(words: Sequence[str], folder: Path, out: IO[str], err: IO[str]) -> None:
    """Run the command in the forked process and exit."""
    code = 70
    try:
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        # New streams, because the test runner has replaced them.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * GIB, resource.RLIM_INFINITY))
        torch.set_num_threads(1)
        sys.argv = ["bnsmooth", *map(str, words)]
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
