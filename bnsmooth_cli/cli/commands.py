"""All commands as one application."""

from __future__ import annotations

import importlib
import inspect
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

import bnsmooth_cli
from bnsmooth_cli import kinds
from bnsmooth_cli.cli.options import OutputOptions, grouped, printing

#: Every command, in the order of the help: those that write a kind of table, those that read files, and the others.
COMMANDS: Final = (*dict.fromkeys(kind.command for kind in kinds.KINDS), "plot", "report", "show", "list", "env")


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


@grouped
def bnsmooth(
    output: OutputOptions,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Does a normalisation layer make the loss landscape smoother, and do networks train better where it does?

    bnsmooth runs the experiments of Santurkar et al., "How Does Batch Normalization Help Optimization?" (2018). It
    trains networks with different norms, measures the loss landscape and internal covariate shift, tests the theorems,
    and compares and plots the results. Every command writes a Parquet table that the next one reads.
    """
    output.apply()


class _Commands(TyperGroup):
    """The commands. A KeyboardInterrupt is returned: typer would make a status of it and lose what it says."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            return error


app = typer.Typer(
    name="bnsmooth",
    cls=_Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=help_text(bnsmooth),
    epilog="Start with: [bold]bnsmooth train --norm batch[/], then [bold]bnsmooth landscape --norm batch[/]",
)
app.callback()(bnsmooth)
for _name in COMMANDS:
    _module = importlib.import_module(f"bnsmooth_cli.cli.{_name}")
    _function = getattr(_module, _name, None) or getattr(_module, f"{_name}_")  # `list` is a name of Python's
    app.command(_name, help=help_text(_function))(printing(_name, _function))
