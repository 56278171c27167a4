"""Run many tries of all trials: `python tests/reliability/torture.py`. It resumes after an interruption.

The outcome of each try is a line of `torture/<trial>.jsonl`; a table at the end has the sums.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from trials import TRIALS

from bnsmooth_cli.storage.locks import locked

#: The number of tries of a trial, by the beginning of its name.
COUNTS = {"kill": 100, "told": 100, "study": 1, "broken": 1000, "options": 200, "networks": 200, "long": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="the trials to run, by the beginning of their names")
    parser.add_argument("-o", "--output", type=Path, default=Path("torture"), help="where results are kept")
    parser.add_argument(
        "--tries",
        type=int,
        help="in place of 100 kills, 1,000 broken files, 200 times 20 lines or networks, and so on",
    )
    arguments = parser.parse_args()
    names = [name for name in TRIALS if not arguments.only or name.startswith(tuple(arguments.only))]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (
        locked(arguments.output, "torture"),
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool,
        Progress(console=Console(stderr=True)) as bar,
    ):
        done = bar.add_task("torture", total=len(names))
        waiting = [pool.submit(torture, name, arguments.tries, arguments.output) for name in names]
        for future in as_completed(waiting):
            future.result()
            bar.advance(done)
    return report(names, arguments.output)


def torture(name: str, tries: int | None, output: Path) -> None:
    """Run the tries of a trial that its log does not have yet."""
    log = _log(name, output)
    before = len(log.read_text().splitlines()) if log.exists() else 0
    numbers = range(before, tries or COUNTS[name.split(":")[0]])
    if not numbers:
        return
    folder = log.with_suffix("").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    attempt = TRIALS[name](folder)
    with log.open("a") as stream:
        for number in numbers:
            if not (parent := parent_process()) or not parent.is_alive():
                return
            stream.write(json.dumps({"number": number, **asdict(attempt(number))}) + "\n")
            stream.flush()


def _log(name: str, output: Path) -> Path:
    return output / f"{re.sub('[^A-Za-z.]+', '-', name)}.jsonl"


def report(names: list[str], output: Path) -> int:
    """Print a table of the tries and all faults; return 1 if there is a fault, else 0."""
    table = Table("trial", "tries", "refused", "same result", "other result", "slowest", "most memory", "faults")
    faults = []
    for name in names:
        tries = [json.loads(line) for line in _log(name, output).read_text().splitlines()]
        sound = Counter(one["came_to"] for one in tries if not one["fault"])
        bad = [one for one in tries if one["fault"]]
        faults += [(name, one) for one in bad]
        slowest, memory = (max(one[key] for one in tries) for key in ("seconds", "more_memory"))
        table.add_row(
            name, str(len(tries)), *(str(sound[what]) for what in ("refused", "same result", "other result")),
            f"{slowest:.1f} s", f"{max(0, memory) / 2**20:.0f} MiB", str(len(bad)),
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    for name, one in faults:
        console.print(f"{name}, try {one['number']} ({one['what']}): {one['fault']}", markup=False, soft_wrap=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
