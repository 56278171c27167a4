"""Being told to stop: SIGINT and SIGTERM wait until the present step or point has ended and its results are kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

#: The signals that end work in an orderly way, with the handlers that we replace: a user's own handler is left alone.
_REPLACED: Final = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL,),
}


class Interrupted(KeyboardInterrupt):
    """Raised after SIGINT, once the results are kept. The message says what is kept."""


class Terminated(SystemExit):
    """Raised after SIGTERM, once the results are kept. The message says what is kept."""

    def __init__(self, kept: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.kept = kept

    def __str__(self) -> str:
        return self.kept


class Withdrawn(Exception):
    """Raised in a worker whose work is no longer wanted here, once its results are kept."""


_depth = 0  # of nested `deferred` blocks in the main thread
_told: int | None = None  # the signal that has arrived in the outermost block
_here = threading.local()  # `.checks`: the reasons to stop of the work in this thread


def _note(number: int, frame: FrameType | None) -> None:
    """The handler: note the first signal; end at once at the second."""
    global _told
    if _told is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _told = number


@contextmanager
def deferred() -> Iterator[None]:
    """While the block runs, a first SIGINT or SIGTERM is only noted, for `told`, and a second one ends the process.

    Blocks may be nested. Outside of the main thread, which alone receives signals, the block changes nothing. A signal
    that arrives too late for any `told` in the block takes effect when the block ends.
    """
    global _depth, _told
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {}
    if _depth == 0:
        _told = None
        for number, handlers in _REPLACED.items():
            if (before := signal.getsignal(number)) in handlers:
                replaced[number] = before
                signal.signal(number, _note)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for number, before in replaced.items():
            signal.signal(number, before)
    if _depth == 0 and _told is not None:
        stop("all files are complete")


@contextmanager
def heeding(check: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, work in this thread is also told to stop where `check` returns true."""
    checks = [*getattr(_here, "checks", []), check]
    before, _here.checks = checks[:-1], checks
    try:
        yield
    finally:
        _here.checks = before


def told() -> bool:
    """Whether the work in this thread has been told to stop. It then keeps its results and calls `stop`."""
    return _signalled() or any(check() for check in getattr(_here, "checks", []))


def _signalled() -> bool:
    return _told is not None and threading.current_thread() is threading.main_thread()


def stop(kept: str) -> NoReturn:
    """End the work that was told to stop.

    Args:
        kept: What is kept, for the user.

    Raises:
        Interrupted: After SIGINT.
        Terminated: After SIGTERM.
        Withdrawn: If no signal has arrived, and a check of `heeding` tells to stop.
    """
    global _told
    if not _signalled():
        raise Withdrawn(kept)
    number, _told = _told, None
    raise Interrupted(kept) if number == signal.SIGINT else Terminated(kept)
