"""The command line: parses, calls, prints, computes nothing. One module a subcommand.

What takes long to import (torch, pandas) is imported where it is used: `bnsmooth --help` uses none of it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Final, NoReturn

import typer

from bnsmooth_cli import __version__
from bnsmooth_cli.cli import (
    activations,
    compare,
    ics,
    landscape,
    plot,
    report,
    show,
    smoothness,
    surface,
    terminal,
    theory,
    train,
)
from bnsmooth_cli.errors import IncompleteError, InputError
from bnsmooth_cli.memory import keep_freed_memory

app = typer.Typer(
    name="bnsmooth",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("landscape")(landscape.landscape)
app.command("smoothness")(smoothness.smoothness)
app.command("ics")(ics.ics)
app.command("activations")(activations.activations)
app.command("theory")(theory.theory)
app.command("surface")(surface.surface)
app.command("compare")(compare.compare)
app.command("plot")(plot.plot)
app.command("report")(report.report)
app.command("show")(show.show)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bnsmooth {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with: [bold]bnsmooth train --norm batch[/], then [bold]bnsmooth landscape --norm batch[/]")
def bnsmooth(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Does a normalisation make the loss landscape smoother, and does that explain why it trains better?

    The experiments of Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018): train networks with
    different norms, probe the loss along the gradient, measure smoothness, internal covariate shift and the inputs'
    distributions, verify the theorems, compare, plot. Every stage writes a Parquet table that the next one reads.
    """


_INTERRUPTED: Final = 130
_LONGEST: Final = 10_000  # characters of a line: a path of a file's own choosing may have more


def main() -> NoReturn:
    """Run the command line; an error is one line on stderr: 2 wrong use or input, 1 failure, 130 interrupted."""
    keep_freed_memory()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever began the command
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        getattr(sys, name).reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="bnsmooth", standalone_mode=False)
        if code == _INTERRUPTED:  # typer makes this of a KeyboardInterrupt, and says nothing
            code = _explain(KeyboardInterrupt())
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv[1:]:
            raise
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: BaseException) -> int:
    """Print the line that an error deserves; the exit status."""
    if isinstance(error, KeyboardInterrupt):
        message, code = (
            "interrupted; nothing is half written, and the same command goes on from what is there",
            _INTERRUPTED,
        )
    elif isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, IncompleteError):
        message, code = str(error), 1
    elif hasattr(error, "format_message"):  # wrong use, as typer words it
        message, code = error.format_message(), 2
    elif isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its exit
        return 1
    elif isinstance(error, OSError) and error.filename is not None:
        message, code = f"{os.fsdecode(error.filename)}: {error.strerror}", 2
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EBADF):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, code = f"standard output: cannot be written ({error.strerror}); what the command makes is made", 2
    elif isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # pathlib's, before Python 3.13
        message, code = str(error), 2
    else:
        message, code = f"{type(error).__name__}: {error} (--debug shows where)", 1
    terminal.complain(" ".join(message.split())[:_LONGEST])
    return code
