"""`bnsmooth plot`: draw tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal

_OTHERS = "; ".join(
    f"{' or '.join(drawing.name for drawing in kind.figures[1:])} ({kind.name})"
    for kind in kinds.KINDS
    if kind.figures[1:]
)


def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE", help="Tables of one kind; ics tables also with the runs' train tables."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FIGURE", help="The figure: .png, .svg or .pdf.")],
    figure: Annotated[
        str | None,
        typer.Option("--figure", metavar="NAME", show_default=False, help=f"Another figure of the kind: {_OTHERS}."),
    ] = None,
) -> None:
    """Plot one or more tables of the same kind, with runs overlaid.

    The kind determines the figure. These kinds can be plotted; parentheses name the matching figures of the paper:
    FIGURES. Of a kind with several figures, the first is drawn unless --figure names another. If ics tables are
    accompanied by train tables of the same runs, the training curves become the first panel.

    [bold]Examples[/]

      bnsmooth plot runs/*/landscape.parquet -o landscape.png

      bnsmooth plot runs/*/landscape.parquet --figure steps -o steps.png

      bnsmooth plot runs/*/ics.parquet runs/*/train.parquet -o ics.pdf
    """
    from bnsmooth_cli.figures import plot_tables

    plot_tables(sources, output, figure)
    terminal.say(output)


def _figures(kind: kinds.Kind) -> str:
    """The kind with its figures, and the paper's figures that they correspond to."""
    texts = [f"{drawing.name}: {drawing.draws}" if kind.figures[1:] else drawing.draws for drawing in kind.figures]
    return f"{kind.name} ({'; '.join(texts)})" if any(texts) else kind.name


plot.__doc__ = str(plot.__doc__).replace("FIGURES", ", ".join(_figures(kind) for kind in kinds.KINDS if kind.figures))
