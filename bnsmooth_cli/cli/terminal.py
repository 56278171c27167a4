"""What the user sees: progress on stderr during the work, and a one-screen summary on stdout at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

#: Without markup, because the names of runs and folders may look like it.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, markup=False, highlight=False, emoji=False)
MAX_ROWS: Final = 18  # of a summary, so that it fits on one screen


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.3g}/s")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar with rate, remaining time and a note, and yield its update: a function of (done, total, note)."""
    if not err.is_terminal:
        yield lambda done, total, note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def plain(text: str) -> str:
    r"""Escape the characters of a line that a terminal would obey, such as those in the name of a folder.

    >>> plain("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: object) -> None:
    """Print a line on stdout."""
    out.print(plain(str(line)), soft_wrap=True)


def complain(message: str) -> None:
    """Print a line on stderr, without ending the command."""
    err.print(plain(f"bnsmooth: {message}"), soft_wrap=True)


def summary(
    title: str,
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    note: str = "",
    max_rows: int | None = MAX_ROWS,
) -> None:
    """Print a table. If all rows belong to one run, its name goes into the title instead of a column.

    Args:
        title: The line above the table.
        frame: The table.
        columns: The columns to print; None prints all of them.
        note: The line below the table.
        max_rows: The largest number of rows. A longer table is thinned evenly, keeping the first and the last row.
    """
    columns = list(frame.columns) if columns is None else columns
    if "run" in columns and len(columns) > 1 and frame["run"].nunique() == 1:
        title, columns = f"{frame['run'].iloc[0]}: {title}", [name for name in columns if name != "run"]
    shown = frame
    if max_rows is not None and len(frame) > max_rows:
        shown = frame.iloc[[round(i * (len(frame) - 1) / (max_rows - 1)) for i in range(max_rows)]]
        note = f"{max_rows} of {len(frame)} rows. {note}".strip()
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    columns_of_cells = []
    for column in columns:
        numeric = frame[column].dtype.kind not in "OU"
        cells = [cell(value) for value in shown[column]]
        words = " ".join([*cells, *column.split("_")]).split()
        width = 12 if column == "run" else max(map(len, words))  # a narrow terminal folds only names and sentences
        table.add_column(
            column.replace("_", " "), justify="right" if numeric else "left", min_width=width, overflow="fold"
        )
        columns_of_cells.append(cells)
    for row in zip(*columns_of_cells, strict=True):
        table.add_row(*row)
    out.print(plain(title), style="bold", soft_wrap=True)
    out.print(table)
    if note:
        say(note)


def cell(value: object) -> str:
    """Format a value for a summary: a number to three significant digits.

    >>> cell(0.123456), cell(250.0), cell(float("nan")), cell("l1")
    ('0.123', '250', '-', 'l1')
    """
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return plain(str(value))
