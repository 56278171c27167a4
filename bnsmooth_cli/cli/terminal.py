"""What the user sees: progress on stderr while work goes on, a one-screen summary on stdout when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

#: No markup: names of runs and folders are in what is printed, and may look like it.
out = Console(highlight=False, markup=False, emoji=False)
_err = Console(stderr=True, markup=False, highlight=False, emoji=False)
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


@contextmanager
def board(what: str, total: int) -> Iterator[tuple[Callable[[dict[str, dict[str, Any]]], None], Callable[[], None]]]:
    """A bar for the whole and one for each part at work: (show the parts, count one as finished)."""
    if not _err.is_terminal:
        yield (lambda parts: None), (lambda: None)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=_err, transient=True) as bars:
        whole = bars.add_task(what, total=total, note="runs")
        shown: dict[str, tuple[TaskID, str]] = {}

        def show(parts: dict[str, dict[str, Any]]) -> None:
            for name in shown.keys() - parts.keys():
                bars.remove_task(shown.pop(name)[0])
            for name, part in parts.items():
                stage = str(part.get("what", "starts"))
                if name in shown and shown[name][1] != stage:  # its rate was another one
                    bars.remove_task(shown.pop(name)[0])
                if name not in shown:
                    shown[name] = bars.add_task(f"{name} {stage}", total=None, note=""), stage
                bars.update(
                    shown[name][0],
                    completed=part.get("done", 0),
                    total=part.get("total"),
                    note=str(part.get("note", "")),
                )

        yield show, lambda: bars.advance(whole)


def plain(text: str) -> str:
    r"""A line as it may be printed: what a terminal would obey, in the name of a folder say, as an escape.

    >>> plain("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: object) -> None:
    """A line on stdout."""
    out.print(plain(str(line)), soft_wrap=True)


def complain(message: str) -> None:
    """A line on stderr that does not end the command."""
    _err.print(plain(f"bnsmooth: {message}"), soft_wrap=True)


def summary(
    title: str, frame: pd.DataFrame, columns: Sequence[str], note: str = "", most: int | None = MAX_ROWS
) -> None:
    """Print some rows and columns of a table; of a long one `most` evenly spaced rows, the first and last among them.

    Where all rows are one run's, its name goes into the title.
    """
    if "run" in columns and len(columns) > 1 and frame["run"].nunique() == 1:
        title, columns = f"{frame['run'].iloc[0]}: {title}", [name for name in columns if name != "run"]
    shown = frame
    if most is not None and len(frame) > most:
        shown = frame.iloc[[round(i * (len(frame) - 1) / (most - 1)) for i in range(most)]]
        note = f"{most} of {len(frame)} rows. {note}".strip()
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    columns_of_cells = []
    for column in columns:
        numeric = frame[column].dtype.kind not in "OU"
        cells = [cell(value) for value in shown[column]]
        words = " ".join([*cells, *column.split("_")]).split()
        width = 12 if column == "run" else max(map(len, words))  # a narrow terminal folds names and sentences alone
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
    """A value of a table as a summary shows it: a number to three digits.

    >>> cell(0.123456), cell(250.0), cell(float("nan")), cell("l1")
    ('0.123', '250', '-', 'l1')
    """
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return plain(str(value))
