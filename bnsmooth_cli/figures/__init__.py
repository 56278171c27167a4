"""Figures of tables, as matplotlib Figures. Imports neither torch nor pyplot, so no global state is kept."""

from __future__ import annotations

import pkgutil
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import page
from bnsmooth_cli.paper.matching import curves, distances, select
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic

#: The largest number of values of a column that fits in a figure.
MAX_SHOWN: Final = {"problem": 12, "norm": 40, "lr": 40}
#: Larger numbers are drawn as overflows, because matplotlib squares numbers internally.
_MAX_DRAWN: Final = 1e200
#: Suffix -> metadata that leaves out the date, so that equal figures are equal bytes.
_METADATA: Final[dict[str, dict[str, None]]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def render(
    kind: str,
    table: pd.DataFrame,
    training: pd.DataFrame | None = None,
    figure: str | None = None,
    paper: str | None = None,
) -> Figure:
    """The figure of a table. Problems are drawn below each other.

    Equal tables give equal files if they are saved under `matplotlib.rc_context(style.SAVE)`.

    Args:
        kind: The kind of table.
        table: The rows of one table, or of several of the kind concatenated.
        training: For "ics", the train tables of the same runs; their training curves become the first panel (figure 3).
        figure: The figure of the kind by its name in `kinds`; by default the one that corresponds to `paper`, otherwise
            the first one.
        paper: Figures of the paper whose curves are drawn under those of the table, up to the problem's last step
            there, as "4a" or "4a,4b"; "4" stands for all parts of figure 4 that this kind of table shows. Only runs
            that the table has are drawn.

    Raises:
        InputError: If the kind is unknown or has no such figure; if the table has no rows or too many norms; or if the
            paper has no such figure, or its figure shows none of the table's runs.
    """
    drawing = kinds.drawing(kind, figure)
    if table.empty:
        raise InputError(f"no rows to plot in the {kind} table")
    for column, most in MAX_SHOWN.items():
        if (count := table[column].nunique()) > most:
            raise InputError(f"a figure shows at most {most} of '{column}'; these are {count}")
    numbers = table.select_dtypes("float")
    table = table.assign(
        **{str(name): column.where(column.abs() < _MAX_DRAWN, column * np.inf) for name, column in numbers.items()}
    )
    more: dict[Hashable, dict[str, pd.DataFrame | None]] = {problem: {} for problem in table["problem"].unique()}
    if kind == "ics":
        more = {problem: {"training": training} for problem in more}
    if paper is not None:
        shown = _by_kind(kind, table, training)
        chosen = select(paper, kind, shown, figure)
        theirs = curves(chosen, shown)
        # Beside the paper's whole curve, a short run would be a sliver.
        last = pd.concat([rows[["problem", "step"]] for rows in shown.values()]).groupby("problem")["step"].max()
        for problem, rows in theirs[theirs["step"] <= theirs["problem"].map(last)].groupby("problem"):
            more[problem]["paper"] = rows
        drawing = next((kinds.drawing(kind, entry.drawing) for entry in chosen if entry.table == kind), drawing)
    panels = pkgutil.resolve_name(f"{__name__}.{drawing.panels}")
    with matplotlib.rc_context(style.RC):
        return page(
            (_title(rows), panels(rows, **more[problem])) for problem, rows in table.groupby("problem", sort=False)
        )


def _by_kind(kind: str, table: pd.DataFrame, training: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The tables that are drawn: the training curves only of the runs in the ics table."""
    if training is None or kind != "ics":
        return {kind: table}
    return {kind: table, "train": training[training["run"].isin(table["run"])]}


def _title(table: pd.DataFrame) -> str:
    """The problem, and the learning rate if there is only one."""
    lrs = style.lrs_of(table)
    return ", ".join([str(table["problem"].iloc[0]), *(style.lr_text(lr) for lr in lrs if len(lrs) == 1)])


def plot(
    table: pd.DataFrame, training: pd.DataFrame | None = None, *, figure: str | None = None, paper: str | None = None
) -> Figure:
    """Draw the rows of a table of any kind.

    Args:
        table: Rows from a measurement, `read_table` or `compare`, or several such results concatenated.
        training: As in `render`.
        figure: The figure's name, for kinds with several figures: "bands" or "steps" for a landscape.
        paper: Figures of the paper to draw under the table's curves, as in `render`: "4a,4b" or "4".

    Raises:
        InputError: If no kind of table has these columns, or it cannot be drawn, alone or with the paper's curves.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     figure = bns.plot(bns.landscape(bns.load_point(run)))
    >>> len(figure.axes)
    2
    """
    return render(tables.kind_of(table), table, training, figure, paper)


def plot_tables(
    sources: Sequence[Path], output: Path, figure: str | None = None, paper: str | None = None
) -> pd.DataFrame:
    """Draw tables into a PNG, SVG or PDF.

    Args:
        sources: Tables of one kind; with ics tables also train tables, whose curves become the first panel.
        output: The file of the figure.
        figure: As in `render`.
        paper: As in `render`.

    Returns:
        The distances from the paper's curves, as `paper.matching.distances` returns them; no rows without `paper`.

    Raises:
        InputError: If the tables are of several kinds, one cannot be read or is empty, the suffix is not supported, or
            `render` refuses.
    """
    metadata = _METADATA.get(output.suffix.lower())
    if metadata is None:
        raise InputError(f"-o {output}: the suffix of the figure has to be one of {', '.join(_METADATA)}")
    frames = [tables.read_table(path) for path in sources]
    names = [frame.attrs["bnsmooth"]["kind"] for frame in frames]
    kind = "ics" if set(names) == {"ics", "train"} else names[0]
    for path, name, frame in zip(sources, names, frames, strict=True):
        if frame.empty:
            raise InputError(f"{path}: no rows to plot")
        if name != kind and (kind, name) != ("ics", "train"):
            raise InputError(f"{path}: of kind {name} among tables of kind {kind}; plot one kind at a time")
    table = pd.concat([frame for frame, name in zip(frames, names, strict=True) if name == kind])
    rest = [frame for frame, name in zip(frames, names, strict=True) if name != kind]
    training = pd.concat(rest) if rest else None
    try:
        drawn = render(kind, table, training, figure, paper)
    except InputError as error:
        raise InputError(f"{sources[0]}{' and others' * (len(sources) > 1)}: {error}") from error
    with atomic(output) as temporary, matplotlib.rc_context(style.SAVE):
        drawn.savefig(temporary, metadata=metadata)
    shown = _by_kind(kind, table, training)
    return distances([] if paper is None else select(paper, kind, shown, figure), shown)
