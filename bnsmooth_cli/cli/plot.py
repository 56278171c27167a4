"""`bnsmooth plot`: draw tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import Options, completion, grouped, integers, option
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.paper import figures

_OTHERS = "; ".join(
    f"{' or '.join(drawing.name for drawing in kind.figures[1:])} ({kind.name})"
    for kind in kinds.KINDS
    if kind.figures[1:]
)
_FIGURES = tuple(dict.fromkeys(drawing.name for kind in kinds.KINDS for drawing in kind.figures))

_FORM = "The form of the figure"
_ROWS = "The rows that are drawn"


@dataclass(frozen=True)
class FormOptions(Options):
    """The size, title and style of the figure. The fields are those of `figures.format.Format`."""

    size: str | None = option(
        "; ".join(f"{name}: {size.width:g} inches wide, {size.text}" for name, size in kinds.SIZES.items()) + ".",
        _FORM, choices=tuple(kinds.SIZES),
    )  # fmt: skip
    width: float | None = option("Width, instead of the size's.", _FORM, metavar="INCHES")
    height: float | None = option("Height (default: what the panels take).", _FORM, metavar="INCHES")
    dpi: int | None = option("Pixels per inch (default: 150; 300 for column and page).", _FORM, metavar="N")
    title: str | None = option("Title, instead of the one made from the rows; '' for none.", _FORM, metavar="TEXT")
    style: str = option(
        "; ".join(f"{name}: {text}" for name, text in kinds.STYLES.items()) + ".",
        _FORM, default="paper", choices=tuple(kinds.STYLES),
    )  # fmt: skip


@dataclass(frozen=True)
class RowOptions(Options):
    """The rows that are drawn."""

    layers: str | None = option("Draw these layers, by name or else by number, as in conv1,fc2.", _ROWS, metavar="A,B")
    units: str | None = option("Draw these units, counted from 0.", _ROWS, metavar="A,B")
    steps: str | None = option("Draw these steps, as in 0-100, or one step.", _ROWS, metavar="A-B")

    def chosen(self) -> dict[str, Any]:
        """The fields of `figures.rows.Selection`."""
        return {
            "layers": None if self.layers is None else [name.strip() for name in self.layers.split(",")],
            "units": None if self.units is None else integers("--units", self.units, "0,3,7"),
            "steps": None if self.steps is None else _range(self.steps),
        }


def _range(text: str) -> tuple[int, int]:
    """The first and the last step of "A-B" or "A".

    >>> _range("0-100"), _range("50")
    ((0, 100), (50, 50))
    """
    found = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18}))?\s*", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise InputError(f"--steps {text[:40]}: give the first and the last step, as in 0-100, or one step")
    return int(found[1]), int(found[2] or found[1])


@grouped
def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE", help="Tables of one kind; ics tables also with the runs' train tables."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FIGURE", help="The figure: .png, .svg or .pdf.")],
    rows: RowOptions,
    form: FormOptions,
    figure: Annotated[
        str | None,
        typer.Option(
            "--figure",
            metavar="NAME",
            show_default=False,
            help=f"Another figure of the kind: {_OTHERS}.",
            autocompletion=completion(_FIGURES),
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            "--paper",
            metavar="N,N",
            show_default=False,
            help="Draw the curves of these figures of the paper under the "
            "table's, as 4c or 4a,4b; 4 means all parts. Prints the distances.",
            autocompletion=completion(figures(), listed=True),
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another file of this name.")] = False,
) -> None:
    """Plot one or more tables of the same kind, with runs overlaid.

    The kind determines the figure. These kinds can be plotted; parentheses name the matching figures of the paper:
    FIGURES. Of a kind with several figures, the first is drawn unless --figure names another. If ics tables are
    accompanied by train tables of the same runs, the training curves become the first panel.

    With --paper, the paper's own curves are drawn under those of the table: thin lines, for the norms, learning rates
    and layers that the table has. The distance of a curve is the median, over the steps that both have measured, of the
    difference between the median of the seeds and the paper's value: in decades where the paper's axis is logarithmic,
    otherwise in the axis' units. A band counts with both edges. Figures: PAPER.

    Runs with different settings, such as their data or width, are drawn apart, with what differs in the legend. A run
    that diverges, ends early or leaves the axis has a mark, beside which "2 of 5" counts such seeds.

    [bold]Examples[/]

      bnsmooth plot runs/*/landscape.parquet -o landscape.png

      bnsmooth plot runs/*/landscape.parquet --figure steps -o steps.png

      bnsmooth plot runs/*/smoothness.parquet --paper 4c -o beta.png

      bnsmooth plot runs/*/ics.parquet runs/*/train.parquet -o ics.pdf

      bnsmooth plot runs/*/ics.parquet --layers conv2,fc1 --steps 0-100 --size column -o ics.svg

      bnsmooth plot runs/*/train.parquet --style dark --width 8 --title "Training" -o slide.png
    """
    from bnsmooth_cli.figures import plot_tables
    from bnsmooth_cli.figures.format import Format
    from bnsmooth_cli.figures.rows import Selection

    selection = Selection(**rows.chosen())
    distances = plot_tables(
        sources, output, figure, paper, form=Format(**form.given()), selection=selection, force=force
    )
    terminal.wrote(output)
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
