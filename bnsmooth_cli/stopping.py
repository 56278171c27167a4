"""Being told to stop: SIGINT and SIGTERM wait until the present step or point has ended and its results are kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn

#: The signals that end work in an orderly way, with the handlers that we replace: a user's own handler is left alone.
_REPLACED: Final = {
    signal.SIGINT: (signal.default_int_handler, signal.SIG_DFL),
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
    """Raised in a worker whose work is no longer wanted there, once its results are kept."""


_lock = threading.RLock()  # guards the next three
_depth = 0  # of nested `deferred` blocks in the main thread
_told: int | None = None  # the signal that has arrived in the outermost block
_over = False  # whether `over` was called

_here = threading.local()  # `.checks`: the reasons to stop of the work in this thread
_before: dict[int, Any] = {}  # the handlers that the outermost block has replaced
_undo: list[Callable[[], object]] = []  # the calls of the `undone` blocks that run
_end: Callable[[int], None] | None = None  # what `obey` does before the process ends; None if it was not called


@contextmanager
def deferred() -> Iterator[None]:
    """While the block runs, a first SIGINT or SIGTERM is only noted, for `told`. A second one acts as if there were no
    block.

    Blocks may be nested. Outside of the main thread, which alone receives signals, the block changes nothing. A signal
    that arrives too late for any `told` in the block takes effect when the block ends.
    """
    global _depth, _told
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _lock:
        if _depth == 0:
            _told = None
        _depth += 1
    try:
        if _depth == 1:
            _replace(_note, _before)
        yield
    finally:
        with _lock:
            _depth -= 1
            late = _told if _depth == 0 else None
        if _depth == 0:
            for number, handler in _before.items():
                signal.signal(number, handler)
            _before.clear()
    if late is not None:
        raise _exception(late, "all files are complete")


@contextmanager
def heeding(check: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, work in this thread is also told to stop where `check` returns true."""
    before = getattr(_here, "checks", ())
    _here.checks = (*before, check)
    try:
        yield
    finally:
        _here.checks = before


def begun() -> bool:
    """Whether work has begun that keeps its results: a block of `deferred` runs in the main thread."""
    return _depth > 0


def told() -> bool:
    """Whether the work in this thread has been told to stop. It then keeps its results and calls `stop`."""
    return _signal() is not None or any(check() for check in getattr(_here, "checks", ()))


def stop(kept: str) -> NoReturn:
    """End the work that was told to stop.

    Args:
        kept: What is kept, for the user.

    Raises:
        Interrupted: After SIGINT.
        Terminated: After SIGTERM.
        Withdrawn: If no signal has arrived, and a check of `heeding` tells to stop.
    """
    number = _signal()
    raise Withdrawn(kept) if number is None else _exception(number, kept)


def _signal() -> int | None:
    """The signal that the work in this thread has to heed."""
    return _told if _depth and threading.current_thread() is threading.main_thread() else None


def _exception(number: int, kept: str) -> BaseException:
    return Interrupted(kept) if number == signal.SIGINT else Terminated(kept)


def _replace(handler: Callable[[int, FrameType | None], None], before: dict[int, Any]) -> None:
    """Install a handler in place of the usual ones, which go to `before`."""
    for number, usual in _REPLACED.items():
        if (present := signal.getsignal(number)) in usual:
            before[number] = present
            signal.signal(number, handler)


def _noted(number: int) -> bool:
    """Note a signal if it can wait. False if it has to act at once."""
    global _told
    with _lock:
        if _told is None and (_depth or _over):
            _told = number
            return True
        return False


def _note(number: int, frame: FrameType | None) -> None:
    """The handler in a block of `deferred`, if `obey` was not called."""
    if _noted(number):
        return
    if callable(before := _before[number]):
        before(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


# A process of our own, such as the command line, ends by itself. An exception in a handler could arise anywhere: it may
# be swallowed, or be reported by the interpreter. A handler also waits for the operation that the main thread is in,
# which may be the backward pass of a large network. Therefore another thread hears of the signals.


def obey(end: Callable[[int], None]) -> None:
    """From now on, a signal that no block defers ends this process at once, with status 128 + number.

    Handlers that are not the usual ones are left alone, such as those of a user or of `nohup`. On Windows, and outside
    of the main thread, nothing changes.

    Args:
        end: Called with the number of the signal before the process ends, in another thread. Whatever is written to
            stderr after that is lost.
    """
    global _end, _over, _told
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    if _end is None:
        heard, hears = os.pipe()
        os.set_blocking(hears, False)
        signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(heard,), name="bnsmooth-signals", daemon=True).start()
    _end, _over, _told = end, False, None
    _replace(_hear, {})


def over() -> None:
    """The work is done, and what is left takes moments: ignore a first signal, and end silently at a second one."""
    global _over, _told
    with _lock:
        _over, _told = True, None


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """If a signal ends this process at once while the block runs, call `undo` first.

    It may be called in the middle of any operation of the block.
    """
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


def _hear(number: int, frame: FrameType | None) -> None:
    """The handler of `obey`: `_listen` does what there is to do."""


def _listen(heard: int) -> None:
    while True:
        for number in os.read(heard, 64):
            with _lock:  # the main thread can then neither call `over`, and print a second line, nor begin new work
                if signal.getsignal(number) is _hear and not _noted(number):
                    _end_at_once(number)


def _end_at_once(number: int) -> None:
    with suppress(Exception):
        if _end is not None and not _over:
            _end(number)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for undo in reversed(_undo):
        with suppress(Exception):
            undo()
    os._exit(128 + number)


def _forget() -> None:
    """In a forked process: signals mean what they usually mean, and are not heard by the parent."""
    global _depth, _told, _end, _lock
    if _end is not None:
        signal.set_wakeup_fd(-1)
    for number, usual in _REPLACED.items():
        if signal.getsignal(number) in (_hear, _note):
            signal.signal(number, usual[0])
    _depth, _told, _end, _lock = 0, None, None, threading.RLock()
    _before.clear()
    _undo.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
