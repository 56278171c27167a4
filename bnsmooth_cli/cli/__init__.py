"""The command line: one module per command. A command parses, calls the library and prints; it computes nothing.

Modules that take long to import (torch, pandas) are imported inside the functions that use them, so that `bnsmooth
--help` starts without them.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn

import typer

import bnsmooth_cli
from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.errors import IncompleteError, InputError, Remark
from bnsmooth_cli.memory import keep_freed_memory

#: Every command, in the order of the help: those that write a kind of table, then those that read tables.
COMMANDS: Final = (*dict.fromkeys(kind.command for kind in kinds.KINDS), "plot", "report", "show")


def help_text(function: Any) -> str:
    """A command's docstring with each paragraph on one line, so that the help wraps at the terminal's width.

    >>> def command():
    ...     '''Do this.
    ...
    ...     One sentence over
    ...     two lines.
    ...     '''
    >>> help_text(command)
    'Do this.\\n\\nOne sentence over two lines.'
    """
    paragraphs = inspect.cleandoc(function.__doc__).split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bnsmooth {bnsmooth_cli.__version__}")
        raise typer.Exit


def bnsmooth(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Does a normalisation make the loss landscape smoother, and does that explain why it trains better?

    bnsmooth runs the experiments of Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018). It
    trains networks with different norms, measures the loss landscape and internal covariate shift, verifies the
    theorems, and compares and plots the results. Every command writes a Parquet table that the next one reads.
    """


app = typer.Typer(
    name="bnsmooth",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=help_text(bnsmooth),
    epilog="Start with: [bold]bnsmooth train --norm batch[/], then [bold]bnsmooth landscape --norm batch[/]",
)
app.callback()(bnsmooth)
for _name in COMMANDS:
    _function = getattr(importlib.import_module(f"{__name__}.{_name}"), _name)
    app.command(_name, help=help_text(_function))(_function)


_INTERRUPTED: Final = 130
_MAX_MESSAGE: Final = 10_000  # characters; a file can contain a path of any length


def main() -> NoReturn:
    """Run the command line.

    An error is one line on stderr. The exit status is 0 for success, 1 for a failure, 2 for wrong usage or input, and
    130 for an interruption.
    """
    keep_freed_memory()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the calling process closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open for the lifetime of the process
        getattr(sys, name).reconfigure(errors="backslashreplace")  # file names need not be valid Unicode
    command = typer.main.get_command(app)
    warnings.showwarning = functools.partial(_remark, warnings.showwarning)
    try:
        code = command.main(sys.argv[1:] or ["--help"], prog_name="bnsmooth", standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns KeyboardInterrupt into this status and prints nothing
            code = _explain(KeyboardInterrupt())
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv[1:]:
            raise
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


_remarks: set[str] = set()  # that have been printed


def _remark(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Print a remark as one line, once; leave the other warnings to `others`."""
    if not issubclass(category, Remark):
        others(message, category, *place)
    elif str(message) not in _remarks:
        _remarks.add(str(message))
        terminal.complain(f"note: {message}")


def _explain(error: BaseException) -> int:
    """Print an error as one line; return the exit status."""
    if isinstance(error, KeyboardInterrupt):
        message, code = "interrupted; no file is half written; run the same command again to finish", _INTERRUPTED
    elif isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, IncompleteError):
        message, code = str(error), 1
    elif hasattr(error, "format_message"):  # wrong usage, with typer's message
        message, code = error.format_message(), 2
    elif isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again at exit
        return 1
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
