"""The paper's own figures as numbers: what each shows, and its curves in the columns of our tables.

The curves were read from the vector graphics of Santurkar et al. (arXiv 1805.11604v3). Each is a Parquet file in
`tables/`, named by the figure's number in the published version. Imports no torch, and pandas only to read a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import unknown

if TYPE_CHECKING:
    import pandas as pd

METADATA_KEY: Final = b"bnsmooth-paper"
#: The columns that tell the rows of a figure apart, as far as it has them.
KEYS: Final = ("run", "problem", "norm", "lr", "seed", "step", "layer", "alpha", "step_size")


@dataclass(frozen=True)
class Axis:
    """What a figure draws against one vertical axis.

    Attributes:
        columns: The column of a curve, or the columns of the lower and the upper edge of a band.
        log: Whether the axis is logarithmic in the paper.
        unit: The unit of a linear axis, for distances.
        per_column: The number of these units in one unit of the column.
    """

    columns: tuple[str, ...]
    log: bool = False
    unit: str = "units"
    per_column: float = 1.0

    @property
    def quantity(self) -> str:
        """What it shows: the column, or the name that both edges of a band share."""
        return self.columns[0] if len(self.columns) == 1 else self.columns[0].removesuffix("_min")


@dataclass(frozen=True)
class PaperFigure:
    """A part of a figure of the paper whose curves are known as numbers.

    Attributes:
        name: Its number in the published version, with the name of the part.
        text: What it shows.
        problem: The problem.
        kind: The kind of table that has its columns.
        axes: Its vertical axes.
        table: The kind of table that `plot` draws it from.
        drawing: The figure of that kind that corresponds to it.
    """

    name: str
    text: str
    problem: str
    kind: str
    axes: tuple[Axis, ...]
    table: str
    drawing: str

    def columns(self) -> list[str]:
        """The columns that it shows."""
        return [column for axis in self.axes for column in axis.columns]

    @property
    def shows_lengths(self) -> bool:
        """Whether it shows lengths of a gradient's change along a line, and is drawn from landscapes."""
        return self.table == "landscape" and not {"predictiveness_min", "grad_distance"}.isdisjoint(self.columns())


_ACCURACY: Final = (Axis(("accuracy",), unit="points", per_column=100),)
_TEST_ACCURACY: Final = (Axis(("test_accuracy",), unit="points", per_column=100),)
_LOSS: Final = (Axis(("loss",), log=True),)


def _training(name: str, problem: str, text: str, axes: tuple[Axis, ...]) -> PaperFigure:
    return PaperFigure(name, text, problem, "train", axes, "train", "curves")


def _shift(name: str, problem: str) -> PaperFigure:
    axes = (Axis(("ics",), log=True), Axis(("cosine",)))
    return PaperFigure(name, "internal covariate shift", problem, "ics", axes, "ics", "shift")


def _line(names: Sequence[str], problem: str, log: bool) -> tuple[PaperFigure, ...]:
    """The three figures of the line probe. `log` is about the last two; the loss is always on a logarithmic axis."""
    loss = Axis(("loss_min", "loss_max"), log=True)
    change, beta = Axis(("predictiveness_min", "predictiveness_max"), log), Axis(("beta",), log)
    return (
        PaperFigure(names[0], "range of the loss along the gradient", problem, "smoothness", (loss,), "landscape",
                    "bands"),
        PaperFigure(names[1], "range of the gradient predictiveness", problem, "smoothness", (change,), "landscape",
                    "bands"),
        PaperFigure(names[2], "effective beta-smoothness", problem, "smoothness", (beta,), "smoothness", "curves"),
    )  # fmt: skip


def _moments(name: str, text: str, columns: Sequence[str]) -> PaperFigure:
    axes = tuple(Axis((column,)) for column in columns)
    return PaperFigure(name, text, "vgg", "activations", axes, "activations", "moments")


def _lengths(name: str, problem: str) -> PaperFigure:
    axes = (Axis(("grad_distance",), log=True),)
    return PaperFigure(name, "gradient difference over the step length", problem, "landscape", axes, "landscape",
                       "steps")  # fmt: skip


#: In the paper's order. Where several figures show a column of the same run, `rows` takes it from the first.
FIGURES: Final = (
    _training("1a", "vgg", "training accuracy", _ACCURACY),
    _training("1b", "vgg", "test accuracy", _TEST_ACCURACY),
    _training("2", "vgg", "training accuracy", _ACCURACY),
    _training("3a-accuracy", "vgg", "training accuracy", _ACCURACY),
    _shift("3a-ics", "vgg"),
    _training("3b-loss", "dln", "training loss", _LOSS),
    _shift("3b-ics", "dln"),
    *_line(("4a", "4b", "4c"), "vgg", log=False),
    _moments("7a", "changes of the moments between measured steps", ("mean_change", "var_change")),
    _moments("7b", "changes of the moments since the first step", ("mean_drift", "var_drift")),
    *_line(("9a", "9b", "9c"), "dln", log=True),
    _lengths("10a", "vgg"),
    _lengths("10b", "dln"),
    _training("11a", "vgg", "training accuracy", _ACCURACY),
    *_line(("11b", "11c", "11d"), "vgg", log=False),
    _training("12a", "dln", "training loss", _LOSS),
    *_line(("12b", "12c", "12d"), "dln", log=True),
    _training("13a", "vgg", "training accuracy", _ACCURACY),
    _training("13b", "dln", "training loss", _LOSS),
)


def figures() -> list[str]:
    """The names of the figures whose curves are known: their numbers in the published version.

    >>> figures()[:5]
    ['1a', '1b', '2', '3a-accuracy', '3a-ics']
    """
    return [figure.name for figure in FIGURES]


def find(name: str) -> list[PaperFigure]:
    """The figure with this name, or all parts of a figure.

    Args:
        name: The name of a figure, such as "4c", or the beginning of several, such as "4".

    Raises:
        InputError: If there is no such figure.

    >>> [figure.name for figure in find("4")], [figure.name for figure in find("1")]
    (['4a', '4b', '4c'], ['1a', '1b'])
    """
    found = [figure for figure in FIGURES if re.match(rf"{re.escape(name)}(?![0-9])", figure.name)] if name else []
    if not found:
        raise unknown("figure of the paper", name, figures())
    exact = [figure for figure in found if figure.name == name]
    return exact or found


def read(name: str) -> pd.DataFrame:
    """The curves of one figure of the paper.

    Args:
        name: The name of a figure; `figures` lists them.

    Returns:
        The columns that identify a run's row (run, problem, norm, lr, seed, step; layer; alpha and step_size), those
        that the figure shows, in the units of our tables (an accuracy is a fraction), and `drawn`: false where the
        plotting library left out a vertex, so that a value of the row is interpolated along the drawn line. The paper
        shows one run of each and states no seed; `seed` is 0. `.attrs["paper"]` has the source and how it was read.

    Raises:
        InputError: If there is no such figure.

    >>> table = read("4c")
    >>> table.query("norm == 'none' and step == 0").beta.item(), table.attrs["paper"]["tolerance"]
    (11.523, '0.03')
    """
    if name not in figures():
        raise unknown("figure of the paper", name, figures())
    import pyarrow.parquet as pq

    with (resources.files(__name__) / "tables" / f"{name}.parquet").open("rb") as stream:
        table = pq.read_table(stream)
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    frame.attrs["paper"] = json.loads(table.schema.metadata[METADATA_KEY])
    return frame


def rows(kind: str, problem: str, norm: str, lr: float) -> pd.DataFrame:
    """What all figures together show of one run of the paper, as rows of a kind of table.

    A column comes from the first figure that shows it for this run.

    Args:
        kind: The kind of table.
        problem: The problem.
        norm: The norm.
        lr: The learning rate.

    Returns:
        All columns of the kind, NaN where no figure shows them; no rows if the paper does not show this run.
        `.attrs["figures"]` names the figures that the columns come from.

    >>> table = rows("smoothness", "vgg", "batch", 0.1)
    >>> len(table), table.attrs["figures"], bool(table.beta.notna().all()), bool(table.sharpness.isna().all())
    (151, ['4a', '4b', '4c'], True, True)
    """
    import numpy as np
    import pandas as pd

    columns = list(kinds.get(kind).columns)
    merged, used = pd.DataFrame(columns=list(KEYS[:6])), []
    for figure in (figure for figure in FIGURES if (figure.kind, figure.problem) == (kind, problem)):
        table = read(figure.name)
        table = table[(table["norm"] == norm) & np.isclose(table["lr"], lr, rtol=1e-6, atol=0)]
        new = [column for column in figure.columns() if column not in merged]
        if len(table) and new:
            keys = [key for key in KEYS if key in table]
            merged = table[[*keys, *new]] if merged.empty else merged.merge(table[[*keys, *new]], "outer", keys)
            used.append(figure.name)
    merged = merged.sort_values([key for key in KEYS if key in merged], ignore_index=True).reindex(columns=columns)
    merged.attrs = {"figures": used}
    return merged
