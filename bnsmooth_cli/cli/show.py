"""`bnsmooth show`: what a table is, what it holds, and all of it as CSV."""

from __future__ import annotations

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
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table of any command.")],
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", show_default=False, help="Write all rows as CSV instead; - is standard output."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the CSV file.")] = False,
) -> None:
    """Show what a table says of itself, a line a column, its first and last rows; or write it as CSV.

    The CSV has every digit; a null is empty, and a list is its numbers with spaces between them.

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
    """Onto stdout, as it is; a terminal, which obeys what it is given, has it line by line."""
    from bnsmooth_cli.storage.exports import csv_lines

    for line in csv_lines(table):
        if sys.stdout.isatty():
            terminal.say(line)
        else:
            sys.stdout.buffer.write(f"{line}\n".encode())
    sys.stdout.flush()


def _print(table: Path) -> None:
    from bnsmooth_cli.storage.description import ENDS, describe

    found = describe(table)
    terminal.say(table)
    _facts(found.facts)
    if len(found.runs):
        _block("what the runs differ in", found.runs)
    if len(found.numbers):
        overflows = ["overflows"] if found.numbers["overflows"].any() else []
        columns = ["column", "values", "min", "median", "max", *overflows]
        _block("columns of numbers", found.numbers[columns], most=None)
    if len(found.words):
        _block("columns of words", found.words, most=None)
    if found.rows.size:
        title = f"the first and the last {ENDS} rows" if found.count > len(found.rows) else "all rows"
        _block(title, found.rows, ", or --csv FILE")


def _facts(facts: list[tuple[str, str]]) -> None:
    """Labels, and texts in lines of the terminal's width beside them."""
    labels = [terminal.plain(label)[:24] for label, _ in facts]
    margin = max(map(cell_len, labels)) + 4
    for label, (_, text) in zip(labels, facts, strict=True):
        width = max(terminal.out.width - margin, 20)
        for i, line in enumerate(Text(terminal.plain(text)).wrap(terminal.out, width)):
            terminal.say(f"  {'' if i else label:{margin - 2}}{line.plain}".rstrip())


def _block(title: str, frame: pd.DataFrame, rest: str = "", most: int | None = terminal.MAX_ROWS) -> None:
    """A summary of the columns that fit beside each other, under names as narrow as their values."""
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
