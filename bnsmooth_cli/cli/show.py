"""`bnsmooth show`: describe a table, or write it as CSV."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.layout import cell, plain
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def show(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table that any command wrote.")],
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", show_default=False, help="Write all rows as CSV instead; - is standard output."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the CSV file.")] = False,
) -> None:
    """Show where a table comes from, a summary of each column, and the first and last rows; or write it as CSV.

    The CSV keeps every digit. A null becomes an empty cell, and a list becomes numbers separated by spaces.

    [bold]Examples[/]

      bnsmooth show runs/vgg-batch-lr0.1-seed0/train.parquet

      bnsmooth show study/compare.parquet --csv compare.csv

      bnsmooth show runs/vgg-batch-lr0.1-seed0/ics.parquet --csv - | head
    """
    if csv == "-" and terminal.is_json():
        raise InputError("--csv -: cannot share standard output with --json; leave out one, or give --csv a file")
    if csv == "-":
        _print_csv(table)
    elif csv is not None:
        from bnsmooth_cli.storage.exports import write_csv

        write_csv(table, csv, force)
        terminal.wrote(csv)
    else:
        _print(table)


def _print_csv(table: Path) -> None:
    """Write CSV to stdout. For a terminal, which would obey them, control characters are escaped."""
    from bnsmooth_cli.storage.exports import stream_csv

    if sys.stdout.isatty():
        text = io.BytesIO()
        stream_csv(table, text)
        for line in text.getvalue().decode().removesuffix("\n").split("\n"):
            terminal.say(line)
    else:
        stream_csv(table, sys.stdout.buffer)
    sys.stdout.flush()


def _print(table: Path) -> None:
    from bnsmooth_cli.storage.description import ENDS, describe

    terminal.insist()
    description = describe(table)
    terminal.wrote(table)
    terminal.facts(description.facts)
    if len(description.runs):
        _print_block("settings that differ between the runs", description.runs)
    if len(description.numbers):
        overflows = ["overflows"] if description.numbers["overflows"].any() else []
        columns = ["column", "values", "min", "median", "max", *overflows]
        _print_block("columns of numbers", description.numbers[columns], most=None)
    if len(description.others):
        _print_block("other columns", description.others, most=None)
    if description.rows.size:
        ends = description.count > len(description.rows)
        _print_block(f"the first and the last {ENDS} rows" if ends else "all rows", description.rows, ", or --csv FILE")


def _print_block(title: str, frame: pd.DataFrame, rest: str = "", most: int | None = terminal.MAX_ROWS) -> None:
    """Print the columns that fit next to each other in a terminal; all of them elsewhere."""
    fitting = [*frame] if not terminal.out.is_terminal else _fitting(frame, terminal.out.width)
    missing = len(frame.columns) - len(fitting)
    note = f"{missing} more column{'s' * (missing > 1)}: a wider terminal{rest}" if missing else ""
    terminal.say("")
    terminal.summary(title, frame, fitting, note, most, exact=frame)


def _fitting(frame: pd.DataFrame, width: int) -> list[str]:
    """The columns that fit into a width, whose names may be stacked; at least one."""
    fitting: list[str] = []
    for name in map(str, frame):
        words = plain(name).split("_")
        needed = max(map(cell_len, [*words, *(cell(value) for value in frame[name])]))
        if needed <= width or not fitting:
            fitting.append(name)
            width -= needed + 1
    return fitting
