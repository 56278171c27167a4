"""Tables to figures: `render` turns the rows of one kind, over any number of runs, into a matplotlib Figure.
No torch and no pyplot here: figures hold no global state, and the caller saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.figures import ics, style
from bnsmooth_cli.figures.panels import Panel, page
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic

#: Of each in one figure: what a page has room for, and nobody waits for more.
MOST: Final = {"problem": 12, "norm": 40, "lr": 40}


def render(kind: str, table: pd.DataFrame, training: pd.DataFrame | None = None) -> Figure:
    """The figure of a table, or of several concatenated ones of one kind; problems stand below each other.

    `training`, the train table of the same runs, puts their training curve beside an "ics" figure (figure 3).
    Equal tables give equal files if they are saved under `matplotlib.rc_context(style.SAVE)`.
    Raises InputError, a ValueError, for an unknown kind and for a table without rows.
    """
    if kinds.get(kind).figure is None:
        raise unknown("kind of figure", kind, [one.name for one in kinds.KINDS if one.figure])
    if table.empty:
        raise InputError(f"no rows to plot in the {kind} table")
    for column, most in MOST.items():
        if (count := table[column].nunique()) > most:
            raise InputError(f"a figure shows at most {most} of '{column}'; these are {count}")
    table = _drawable(table)
    with matplotlib.rc_context(style.RC):
        return page([_block(kind, rows, training) for _, rows in table.groupby("problem", sort=False)])


_LARGEST: Final = 1e200  # what is larger is drawn as an overflow: an axis has no room for its square


def _drawable(table: pd.DataFrame) -> pd.DataFrame:
    numbers = table.select_dtypes("float")
    return table.assign(
        **{str(name): column.where(column.abs() < _LARGEST, column * np.inf) for name, column in numbers.items()}
    )


def _block(kind: str, table: pd.DataFrame, training: pd.DataFrame | None) -> tuple[str, list[list[Panel]]]:
    lrs = style.lrs_of(table)
    title = ", ".join([str(table["problem"].iloc[0]), *([style.lr_text(lrs[0])] if len(lrs) == 1 else [])])
    if kind == "ics" and training is not None:
        return title, ics.panels(table, training[training["run"].isin(table["run"])])
    reference = kinds.get(kind).figure
    assert reference is not None
    return title, kinds.load(reference, "figures")(table)


def plot(table: pd.DataFrame, training: pd.DataFrame | None = None) -> Figure:
    """The figure of what a measurement, `read_table` or `compare` gave, or several concatenated: `render` of its kind.

    Raises InputError for rows of no kind of table, or of one that has no figure.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     figure = bns.plot(bns.landscape(bns.load_point(run)))
    >>> len(figure.axes)
    2
    """
    return render(tables.kind_of(table), table, training)


def plot_tables(sources: Sequence[Path], output: Path) -> None:
    """Draw tables of one kind into a PNG, SVG or PDF; beside ics tables, train tables give the leading panel.

    Raises InputError for tables of several kinds, an unreadable one, or another suffix.
    """
    metadata = _METADATA.get(output.suffix.lower())
    if metadata is None:
        raise InputError(f"-o {output}: the figure's suffix says what it is: {', '.join(_METADATA)}")
    frames = [tables.read_table(path) for path in sources]
    kinds = [frame.attrs["bnsmooth"]["kind"] for frame in frames]
    kind = "ics" if set(kinds) == {"ics", "train"} else kinds[0]
    for path, other, frame in zip(sources, kinds, frames, strict=True):
        if frame.empty:
            raise InputError(f"{path}: no rows to plot")
        if other != kind and (kind, other) != ("ics", "train"):
            raise InputError(f"{path}: of kind {other} among tables of kind {kind}; plot one kind at a time")
    chosen = [frame for frame, other in zip(frames, kinds, strict=True) if other == kind]
    training = [frame for frame, other in zip(frames, kinds, strict=True) if other != kind]
    try:
        figure = render(kind, pd.concat(chosen), pd.concat(training) if training else None)
    except InputError as error:
        raise InputError(f"{sources[0]}{' and others' * (len(sources) > 1)}: {error}") from error
    with atomic(output) as temporary, matplotlib.rc_context(style.SAVE):
        figure.savefig(temporary, metadata=metadata)


#: Suffix -> metadata that keeps equal figures equal bytes.
_METADATA: Final[dict[str, dict[str, None]]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
