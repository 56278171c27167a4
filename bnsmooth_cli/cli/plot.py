"""`bnsmooth plot`: draw tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.paper import figures

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
    paper: Annotated[
        str | None,
        typer.Option(
            "--paper",
            metavar="N,N",
            show_default=False,
            help="Draw the curves of these figures of the paper under the "
            "table's, as 4c or 4a,4b; 4 means all parts. Prints the distances.",
        ),
    ] = None,
) -> None:
    """Plot one or more tables of the same kind, with runs overlaid.

    The kind determines the figure. These kinds can be plotted; parentheses name the matching figures of the paper:
    FIGURES. Of a kind with several figures, the first is drawn unless --figure names another. If ics tables are
    accompanied by train tables of the same runs, the training curves become the first panel.

    With --paper, the paper's own curves are drawn under those of the table: thin lines, for the norms, learning rates
    and layers that the table has. The distance of a curve is the median, over the steps that both have measured, of the
    difference between the median of the seeds and the paper's value: in decades where the paper's axis is logarithmic,
    otherwise in the axis' units. A band counts with both edges. Figures: PAPER.

    [bold]Examples[/]

      bnsmooth plot runs/*/landscape.parquet -o landscape.png

      bnsmooth plot runs/*/landscape.parquet --figure steps -o steps.png

      bnsmooth plot runs/*/smoothness.parquet --paper 4c -o beta.png

      bnsmooth plot runs/*/ics.parquet runs/*/train.parquet -o ics.pdf
    """
    from bnsmooth_cli.figures import plot_tables

    distances = plot_tables(sources, output, figure, paper)
    terminal.say(output)
    if paper is not None:
        shown = distances.dropna(axis=1, how="all")
        terminal.summary("distance from the paper's curves, median over steps", shown, max_rows=None)


def _figures(kind: kinds.Kind) -> str:
    """The kind with its figures, and the paper's figures that they correspond to."""
    texts = [
        f"{drawing.name}: {drawing.draws}" if kind.figures[1:] else drawing.draws
        for drawing in kind.figures
        if drawing.draws
    ]
    return f"{kind.name} ({'; '.join(texts)})" if texts else kind.name


plot.__doc__ = str(plot.__doc__).replace("FIGURES", ", ".join(_figures(kind) for kind in kinds.KINDS if kind.figures))
plot.__doc__ = plot.__doc__.replace("PAPER", ", ".join(figures()))
