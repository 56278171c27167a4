"""What the user sees: progress on stderr while work goes on, a one-screen summary on stdout when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

out = Console(highlight=False)
_err = Console(stderr=True)
MAX_ROWS = 18  # of a summary: one screen


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.3g}/s")


def _silent(done: int, total: int, note: str = "") -> None:
    """What progress is where nobody looks at it."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with rate, time left and a note: call it with (done, total, note). Nothing where stderr is no terminal."""
    if not _err.is_terminal:
        yield _silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task(what, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def summary(title: str, frame: pd.DataFrame, columns: Sequence[str], note: str = "") -> None:
    """Print some rows and columns of a table; of a long one evenly spaced rows, the first and last among them.

    Where all rows are one run's, its name goes into the title.
    """
    if "run" in columns and len(columns) > 1 and frame["run"].nunique() == 1:
        title, columns = f"{frame['run'].iloc[0]}: {title}", [name for name in columns if name != "run"]
    shown = frame
    if len(frame) > MAX_ROWS:
        shown = frame.iloc[[round(i * (len(frame) - 1) / (MAX_ROWS - 1)) for i in range(MAX_ROWS)]]
        note = f"{MAX_ROWS} of {len(frame)} rows. {note}".strip()
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    columns_of_cells = []
    for column in columns:
        numeric = frame[column].dtype.kind not in "OU"
        cells = [_cell(value) for value in shown[column]]
        words = [*cells, *column.split("_")]
        width = 12 if column == "run" else max(map(len, words))  # a narrow terminal folds names, never numbers
        table.add_column(
            column.replace("_", " "), justify="right" if numeric else "left", min_width=width, overflow="fold"
        )
        columns_of_cells.append(cells)
    for row in zip(*columns_of_cells, strict=True):
        table.add_row(*row)
    out.print(f"[bold]{title}[/]", soft_wrap=True)
    out.print(table)
    if note:
        out.print(note, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return str(value)
