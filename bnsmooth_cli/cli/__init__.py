"""The command line: one module per command. A command parses, calls the library and prints; it computes nothing.

Modules that take long to import (torch, pandas) are imported inside the functions that use them, so that `bnsmooth
--help` starts without them.
"""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import sys
import time
from collections.abc import Callable, Container
from typing import Any, Final, NoReturn

from bnsmooth_cli import stopping
from bnsmooth_cli.cli import log

#: When the command began, but for the start of Python itself.
BEGUN: Final = time.monotonic()
_MAX_MESSAGE: Final = 10_000  # characters; a file can contain a path of any length
#: Flags that make a command start again. Once results are kept, the command that continues must not have them.
_ANEW: Final = ("--force", "--no-resume")
_WHOLE: Final = "no file is half written"


def main() -> NoReturn:
    """Run the command line.

    An error is one line on stderr. The exit status is 0 for success (also if nobody reads stdout to its end), 1 for a
    failure, 2 for wrong usage or input, 130 after SIGINT and 143 after SIGTERM.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the calling process closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open for the lifetime of the process
        getattr(sys, name).reconfigure(errors="backslashreplace")  # file names need not be valid Unicode
    stopping.obey(_ended_at_once)  # before the imports, which take a while
    log.end()
    try:
        result = _run(sys.argv[1:] or ["--help"])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, stopping.Terminated) as error:
        result = error
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # for which typer exits with 1
            raise
        result = error.__context__
    if isinstance(result, BaseException):
        if "--debug" in sys.argv[1:]:
            raise result
        result = _explain(result)
    stopping.over()
    sys.exit(result if isinstance(result, int) else 0)


def _run(words: list[str]) -> object:
    import functools
    import warnings

    import typer

    from bnsmooth_cli.cli import terminal
    from bnsmooth_cli.cli.commands import app
    from bnsmooth_cli.cli.options import path_flags
    from bnsmooth_cli.memory import keep_freed_memory

    terminal.reset()
    keep_freed_memory()
    warnings.showwarning = functools.partial(_remark, set(), warnings.showwarning)
    _check_words(words, {flag for command in app.registered_commands for flag in path_flags(command.callback)})
    result = typer.main.get_command(app).main(words, prog_name="bnsmooth", standalone_mode=False)
    return KeyboardInterrupt() if result == 130 else result  # typer's status after Ctrl-C between words and command


def _check_words(words: list[str], paths: Container[str]) -> None:
    """Refuse an empty path, which would stand for the present folder: it comes from a variable that is not set.

    Args:
        words: The command line.
        paths: The options whose values are paths. So are the arguments.
    """
    from bnsmooth_cli.errors import InputError

    for before, word in itertools.pairwise(["", *words]):
        option = before if not word and before.startswith("-") else word[:-1] if word.endswith("=") else ""
        if option in paths or (not word and not before.startswith("-")):
            raise InputError(f"{option or 'the command'}: an empty text is given; is a variable not set?")


def _remark(
    printed: set[str], others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Print a remark as one line, if it is not among those `printed`; leave the other warnings to `others`."""
    from bnsmooth_cli.cli import terminal
    from bnsmooth_cli.errors import Remark

    if "missing from font(s)" in str(message):  # matplotlib's, once for each character and each time it is measured
        message, category = "the figure's font lacks some characters of its texts, so boxes are drawn for them", Remark
    if not issubclass(category, Remark):
        others(message, category, *place)
    elif str(message) not in printed:
        printed.add(str(message))
        terminal.inform(f"bnsmooth: note: {message}")


def stopped(kept: str, begun: bool = True) -> str:
    """What the user reads after a signal: what is kept, and the command that continues.

    Args:
        kept: What is kept.
        begun: Whether the work has begun. If it has not, the same command is repeated with all of its flags.

    >>> sys.argv = ["bnsmooth", "train", "--force", "-o", "my runs/x"]
    >>> stopped("my runs/x keeps step 137 of 300")
    "stopped; my runs/x keeps step 137 of 300; continue with: bnsmooth train -o 'my runs/x'"
    """
    words = [word for word in sys.argv[1:] if word not in _ANEW or not begun]
    return f"stopped; {kept}; continue with: {shlex.join(['bnsmooth', *words])}"


def _ended_at_once(number: int) -> None:
    """Write the line of a command that a signal ends at once. The console may be in use, so this does without it."""
    line = f"bnsmooth: {stopped(_WHOLE, stopping.begun())}"[:_MAX_MESSAGE]
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    # On a terminal, clear the progress bar in this line and show the cursor, which the bar hides.
    clean = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
    log.write(plain)
    os.write(2, f"{clean}{plain}\n".encode(errors="backslashreplace"))


def _explain(error: BaseException) -> int:
    """Print an error as one line; return the exit status."""
    from bnsmooth_cli.cli import terminal
    from bnsmooth_cli.errors import IncompleteError, InputError

    stopping.over()
    if isinstance(error, (KeyboardInterrupt, stopping.Terminated)):
        kept, code = str(error), 143 if isinstance(error, stopping.Terminated) else 130
        message = stopped(kept or _WHOLE, begun=bool(kept))
    elif isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, IncompleteError):
        message, code = str(error), 1
    elif hasattr(error, "format_message"):  # wrong usage, with typer's message
        message, code = error.format_message(), 2
    elif isinstance(error, BrokenPipeError):  # the reader has seen enough, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again at exit
        return 0
    elif isinstance(error, OSError) and error.filename is not None:
        message, code = f"{os.fsdecode(error.filename)}: {error.strerror}", 2
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EBADF):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, code = f"standard output: cannot be written ({error.strerror}); the command's files are complete", 2
    elif isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # pathlib, before Python 3.13
        message, code = str(error), 2
    else:
        message, code = f"{type(error).__name__}: {error} (--debug shows where)", 1
    terminal.complain(" ".join(message.split())[:_MAX_MESSAGE])
    return code
