"""Train, measure, gather, draw and write, at a scale (again: go on). `page` draws and writes from the tables alone."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reproduction import page
from reproduction.gather import add_time, gather
from reproduction.scales import SCALES, Plan, plans


def reproduce(found: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any], data: str | None = None) -> int:
    """Execute the studies in `work`, one after the other, and leave what they say in `folder`; the exit status.

    A study of which a run has failed (status 1) is told of what it has; anything else ends it.
    """
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({"CIFAR10": data} if data else {})}  # for variants.py
    worst = 0
    for plan in found:
        print(f"{plan.name}: {plan.purpose}", flush=True)
        for words in plan.commands(work / plan.name, facts["jobs"]):
            begun, before = time.time(), _changed(work / plan.name)
            status = _run([sys.executable, "-m", "bnsmooth_cli", *words], environment)
            if _changed(work / plan.name) != before:  # to find everything finished is no part of what it takes
                add_time(work, plan.name, time.time() - begun)
            if status not in (0, 1):
                return status
            worst = max(worst, status)
    gather(found, work, folder, facts)
    page.draw(folder)
    page.write(folder)
    return worst


def _changed(study: Path) -> float:
    """When a file of a study's runs was last written."""
    return max((path.stat().st_mtime for path in study.glob("runs/*/*.parquet")), default=0.0)


def _run(words: list[str], environment: dict[str, str]) -> int:
    """The exit status of a command that gets Ctrl-C itself, and ends its runs in order before it ends."""
    with subprocess.Popen(words, env=environment) as process:
        while True:
            with suppress(KeyboardInterrupt):
                return process.wait()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("scale", choices=[*SCALES, "page"], help="how much is trained; page: nothing")
    parser.add_argument(
        "--data", type=Path, help="where CIFAR-10 is, for quarter and paper (default: it is downloaded)"
    )
    parser.add_argument("--note", default="", help="a word about the data, for the page")
    parser.add_argument("--steps", type=int, help="the most steps of any run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("paper"), help="the studies' folder (default: paper)")
    parser.add_argument(
        "-o", "--output", type=Path, help="the page's folder (default: docs/reproduction, of quick its quick)"
    )
    given = parser.parse_args()
    if given.scale in ("page", "quick") and given.data:
        parser.error(f"{given.scale} takes no --data; that is for quarter and paper")
    if given.data and not given.data.exists():
        parser.error(f"--data {given.data}: no such file or folder")
    for name in ("steps", "jobs"):
        if (value := getattr(given, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: give a whole number of at least 1")
    output = given.output or Path("docs/reproduction", *["quick"] * (given.scale == "quick"))
    if given.scale == "page":
        if not (output / "reproduction.json").is_file():
            parser.error(f"-o {output}: has no reproduction.json to write a page of; make paper leaves one")
        page.draw(output)
        page.write(output)
        return 0
    facts = {"scale": given.scale, "data": None if given.scale == "quick" else "CIFAR-10", "note": given.note,
             "steps": given.steps, "jobs": given.jobs}  # fmt: skip
    data = str(given.data) if given.data else None
    # A study's runs have one length, so that another one is another study.
    work = given.work / (f"{given.scale}-{given.steps}" if given.steps else given.scale)
    return reproduce(plans(given.scale, data, given.steps), work, output, facts, data)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError) as error:  # a table or a fact that cannot be read, or a page that cannot be written
        print(f"reproduction: {error}", file=sys.stderr)
        sys.exit(2)
