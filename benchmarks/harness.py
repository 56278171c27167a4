"""Rows of the benchmark: check that our work and its reference agree, time them in turns, and write the page."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from bnsmooth_cli.storage.files import atomic

Work = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """A line of the table: seconds of our work and of the reference (None: not timed), their ratio, and its goal."""

    row: str
    case: str
    reference: str
    ours_s: float | None
    reference_s: float | None
    ratio: float
    goal: str
    met: bool


@dataclass
class Choices:
    """What the command line chooses for the rows of long work: the steps (0 for the row's own) and the images."""

    steps: int = 0
    data: str = "shapes"


CHOICES: Final = Choices()

Rows = Callable[[], Iterator[Result]]
ROWS: dict[str, Rows] = {}  # by name


def row(name: str, threads: int | None = None) -> Callable[[Rows], Rows]:
    """Register a function as a row. `threads` replaces torch's choice of the number of threads."""

    def register(function: Rows) -> Rows:
        def timed() -> Iterator[Result]:
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                yield from function()
            finally:
                torch.set_num_threads(before)

        ROWS[name] = timed
        return function

    return register


def medians(*works: Work, repeats: int = 9, warm_up: bool = True) -> list[float]:
    """The median seconds of each piece of work, after a warm-up; in turns, so that other load slows all of them."""
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(0 if warm_up else 1, repeats + 1):
        for work, spent in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def faster(row: str, case: str, reference: str, ours_s: float, reference_s: float, goal: float) -> Result:
    """A result whose ratio is the time of the reference over ours."""
    ratio = reference_s / ours_s
    return Result(row, case, reference, ours_s, reference_s, ratio, f"at least {goal:g}x faster", ratio >= goal)


def within(row: str, case: str, reference: str, ours_s: float, reference_s: float, goal: float) -> Result:
    """A result whose ratio is our time over that of the reference."""
    ratio = ours_s / reference_s
    return Result(row, case, reference, ours_s, reference_s, ratio, f"at most {goal:g}x", ratio <= goal)


def agree(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> None:
    """Check that two results differ by at most the tolerance, relative to the norm of the reference.

    Raises:
        AssertionError: If they differ by more.
    """
    error = float(torch.linalg.vector_norm(ours - reference) / torch.linalg.vector_norm(reference))
    if not error <= tolerance:
        raise AssertionError(f"a relative difference of {error:.2g}, above {tolerance:g}: nothing to time")


def machine() -> dict[str, str]:
    """The machine and the versions of the measurement."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {threads} thread{'s' * (threads != 1)}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def write(path: Path, results: list[Result]) -> None:
    """Write the results as JSON, and as a page of Markdown beside it."""
    content = {**machine(), "results": [asdict(result) for result in results]}
    texts = {path: json.dumps(content, indent=2) + "\n", path.with_suffix(".md"): page(content)}
    for target, text in texts.items():
        with atomic(target) as temporary:
            temporary.write_text(text)


PAGE: Final = """# Speed

`make bench` times each piece of bnsmooth's work against a reference, usually the same work in plain PyTorch, and writes
this page. The two must agree before they are timed. They run in turns in one process, and the times are medians; work
of many seconds is timed once.

What the ratio is depends on the goal. For "at least 3x faster" it is the reference's time over ours, so higher is
better. For "at most 2x" it is our time over the reference's, so lower is better. For "at most 1 s more" it is the
seconds that bnsmooth takes more. {met} of {all} goals are met.

{machine}; GPU: {gpu}; {versions}.

| row | case | against | ours | reference | ratio | goal |
| --- | --- | --- | ---: | ---: | ---: | --- |
"""


def page(content: dict[str, Any]) -> str:
    """The page of Markdown for the JSON that `write` writes."""
    results = [Result(**result) for result in content["results"]]
    facts = {name: value for name, value in content.items() if name != "results"}
    lines = [
        f"| {r.row} | {r.case} | {r.reference} | {duration(r.ours_s)} | {duration(r.reference_s)} "
        f"| {r.ratio:.2f} | {r.goal}{'' if r.met else ' (missed)'} |\n"
        for r in results
    ]
    return PAGE.format(met=sum(r.met for r in results), all=len(results), **facts) + "".join(lines)


def duration(seconds: float | None) -> str:
    """Seconds, or milliseconds below one second."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"
