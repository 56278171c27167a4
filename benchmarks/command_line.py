"""How long the command line takes to start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import bnsmooth_cli as bns
from benchmarks.harness import Result, medians, row
from bnsmooth_cli.measures.measuring import measure


@row("start-up")
def start_up() -> Iterator[Result]:
    """The extra seconds of `--help` over an empty Python, and of `plot` over importing pyplot."""

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as folder:
        trained = bns.train("dln", "batch", steps=50, save_every=10, output=f"{folder}/run", device="cpu")
        (table,) = measure("landscape", [trained.source()], device="cpu")
        plot = ("-m", "bnsmooth_cli", "plot", str(table), "-o", f"{folder}/figure.png")
        times = medians(
            lambda: run("-m", "bnsmooth_cli", "--help"),
            lambda: run("-c", "pass"),
            lambda: run(*plot),
            lambda: run("-c", "import matplotlib.pyplot"),
            repeats=5,
        )
    for case, reference, ours, reference_s, goal in (
        ("--help", "python -c pass", times[0], times[1], 0.35),
        ("plot", "import matplotlib.pyplot", times[2], times[3], 1.0),
    ):
        more = ours - reference_s
        yield Result("start-up", case, reference, ours, reference_s, more, f"at most {goal:g} s more", more <= goal)
