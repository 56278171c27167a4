"""Run rows of the benchmark (default: all), print a table of the results, and save them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import command_line, growth, linear, long_work, memory, norms, optimisers, spectrum, vgg
from benchmarks.harness import CHOICES, ROWS, Result, duration, machine, write
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.memory import keep_freed_memory
from bnsmooth_cli.storage.files import check_writable

__all__ = [
    "command_line",
    "growth",
    "linear",
    "long_work",
    "memory",
    "norms",
    "optimisers",
    "spectrum",
    "vgg",
]  # importing a module registers its rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--steps", type=int, default=0, help="steps of the row one-pass (default: about two minutes)")
    parser.add_argument("--data", default="shapes", help="images of the rows one-pass and checkpoints")
    arguments = parser.parse_args()
    CHOICES.steps, CHOICES.data = arguments.steps, arguments.data
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are {', '.join(ROWS)})")
    try:
        check_writable(arguments.output)
    except InputError as error:
        parser.error(str(error))
    keep_freed_memory()  # as the command line does
    console, results = Console(), list[Result]()
    console.width = max(console.width, 120)
    for name in arguments.rows or ROWS:
        start = time.perf_counter()
        results += ROWS[name]()
        console.print(f"[dim]{name}: {time.perf_counter() - start:.0f} s[/]", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("row", "case", "against"):
        table.add_column(column, overflow="fold")
    for column in ("ours", "reference", "ratio", "goal"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        style = "" if r.met else "bold red"
        ratio = f"[{style}]{r.ratio:.2f}[/]" if style else f"{r.ratio:.2f}"
        table.add_row(r.row, r.case, r.reference, duration(r.ours_s), duration(r.reference_s), ratio, r.goal)
    console.print(table)
    for name, value in machine().items():
        console.print(f"{name}: {value}", highlight=False)
    write(arguments.output, results)
    missed = [f"{r.row} ({r.case})" for r in results if not r.met]
    console.print(f"{len(results) - len(missed)} of {len(results)} goals met; {arguments.output}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; no results were written")
