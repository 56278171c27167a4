"""`bnsmooth show`: describe a table, or write it as CSV."""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from bnsmooth_cli.cli import terminal

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
    if csv == "-":
        _print_csv(table)
    elif csv is not None:
        from bnsmooth_cli.storage.exports import write_csv

        write_csv(table, csv, force)
        terminal.say(csv)
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

    description = describe(table)
    terminal.say(table)
    _print_facts(description.facts)
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


def _print_facts(facts: list[tuple[str, str]]) -> None:
    """Print labels with their texts next to them, wrapped to the terminal."""
    labels = [terminal.plain(label)[:24] for label, _ in facts]
    margin = max(map(cell_len, labels)) + 4
    for label, (_, text) in zip(labels, facts, strict=True):
        width = max(terminal.out.width - margin, 20)
        for i, line in enumerate(Text(terminal.plain(text)).wrap(terminal.out, width)):
            terminal.say(f"  {'' if i else label:{margin - 2}}{line.plain}".rstrip())


def _print_block(title: str, frame: pd.DataFrame, rest: str = "", most: int | None = terminal.MAX_ROWS) -> None:
    """Print the columns that fit next to each other. Their names are wrapped to the width of the values."""
    heads: dict[str, str] = {}
    left = terminal.out.width
    for name in map(str, frame):
        words = terminal.plain(name).split("_")
        width = max(1, *map(cell_len, [*words, *(terminal.cell(value) for value in frame[name])]))
        head = "\n".join(textwrap.wrap(" ".join(words), width))
        if (width < left or not heads) and head not in heads.values():
            heads[name] = head
            left -= width + 1
    missing = len(frame.columns) - len(heads)
    note = f"{missing} more column{'s' * (missing > 1)}: a wider terminal{rest}" if missing else ""
    terminal.say("")
    terminal.summary(title, frame[[*heads]].rename(columns=heads), [*heads.values()], note, most)
