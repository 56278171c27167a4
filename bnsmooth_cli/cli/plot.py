"""`bnsmooth plot`: tables to figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli.cli import terminal


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE", help="Tables of one kind; for ics also the runs' train tables."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FIGURE", help="The figure: .png, .svg or .pdf.")],
) -> None:
    """Draw a figure from tables of one kind, runs overlaid.

    The kind of the tables says which figure: train (figures 1, 12a, 13), landscape (4a-b, 9, 11), smoothness (4c), ics
    (3; with the runs' train tables beside them, their curves lead), activations, theory, surface, compare.

    [bold]Examples[/]

      bnsmooth plot runs/*/landscape.parquet -o landscape.png

      bnsmooth plot runs/*/ics.parquet runs/*/train.parquet -o ics.pdf
    """
    from bnsmooth_cli.figures import plot_tables

    plot_tables(sources, output)
    terminal.say(output)
