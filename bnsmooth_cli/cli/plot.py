"""`bnsmooth plot`: draw tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE", help="Tables of one kind; ics tables also with the runs' train tables."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FIGURE", help="The figure: .png, .svg or .pdf.")],
) -> None:
    """Plot one or more tables of the same kind, with runs overlaid.

    The kind determines the figure. These kinds can be plotted; parentheses name the matching figures of the paper:
    FIGURES. If ics tables are accompanied by train tables of the same runs, the training curves become the first panel.

    [bold]Examples[/]

      bnsmooth plot runs/*/landscape.parquet -o landscape.png

      bnsmooth plot runs/*/ics.parquet runs/*/train.parquet -o ics.pdf
    """
    from bnsmooth_cli.figures import plot_tables

    plot_tables(sources, output)
    terminal.say(output)


_FIGURES = [f"{kind.name} ({kind.draws})" if kind.draws else kind.name for kind in kinds.KINDS if kind.figure]
plot.__doc__ = str(plot.__doc__).replace("FIGURES", ", ".join(_FIGURES))
