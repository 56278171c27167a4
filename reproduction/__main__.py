"""Train, measure, gather, draw and write, at a scale (again: go on). `page` draws and writes from the tables alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduction import page
from reproduction.gather import gather
from reproduction.scales import SCALES, Plan, plans


def reproduce(
    found: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any], jobs: int, data: str | None = None
) -> None:
    """Execute the studies in `work`, one after the other, and leave what they say in `folder`."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({"CIFAR10": data} if data else {})}  # for variants.py
    for plan in found:
        print(f"{plan.name}: {plan.purpose}", flush=True)
        begun = time.time()
        try:
            for words in plan.commands(work / plan.name, jobs):
                subprocess.run([sys.executable, "-m", "bnsmooth_cli", *words], check=True, env=environment)
        finally:  # interrupted, it has taken its time all the same
            with (work / "times.jsonl").open("a") as stream:
                stream.write(json.dumps({"study": plan.name, "seconds": round(time.time() - begun, 1)}) + "\n")
    gather(found, work, folder, facts)
    page.draw(folder)
    page.write(folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("scale", choices=[*SCALES, "page"], help="how much is trained; page: nothing")
    parser.add_argument("--data", help="where CIFAR-10 is, for quarter and paper (default: it is downloaded)")
    parser.add_argument("--note", default="", help="a word about the data, for the page")
    parser.add_argument("--steps", type=int, help="the most steps of any run")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("paper"), help="the studies' folder (default: paper)")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/reproduction"), help="the page's folder")
    given = parser.parse_args()
    if given.scale == "page":
        page.draw(given.output)
        page.write(given.output)
        return
    if given.scale == "quick" and given.data:
        parser.error("quick takes the built-in images; --data is for quarter and paper")
    data = None if given.scale == "quick" else "CIFAR-10"
    facts = {"scale": given.scale, "data": data, "note": given.note}
    found = plans(given.scale, given.data, given.steps)
    reproduce(found, given.work / given.scale, given.output, facts, given.jobs, given.data)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
