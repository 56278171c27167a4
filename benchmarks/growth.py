"""How time grows with the size of a problem: every piece of work against itself at half the size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import bnsmooth_cli as bns
from benchmarks.harness import Result, medians, row, within
from bnsmooth_cli import kinds, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.landscape import line_alphas
from bnsmooth_cli.storage import tables
from bnsmooth_cli.training.trajectory import Trajectory

SLACK = 2.2  # twice the size may take twice the time, and a tenth more by noise


@row("growth")
def growth() -> Iterator[Result]:
    """Line probe against points, ICS against depth, training against samples, reading against rows."""
    with tempfile.TemporaryDirectory() as folder:
        point = bns.load_point(bns.train("vgg", "batch", steps=5, output=f"{folder}/v", device="cpu"), device="cpu")
        ours_s, half = medians(
            lambda: bns.landscape(point, line_alphas("vgg", points=8)),
            lambda: bns.landscape(point, line_alphas("vgg", points=4)),
            repeats=3,
        )
        yield within("growth", "line probe, 8 points", "4 points", ours_s, half, SLACK)
        points = [
            bns.load_point(bns.train("dln", "batch", steps=5, depth=depth, output=f"{folder}/{depth}", device="cpu"))
            for depth in (24, 12)
        ]
        ours_s, half = medians(*(lambda point=point: bns.ics(point) for point in points), repeats=15)
        yield within("growth", "ICS, depth 24", "depth 12", ours_s, half, SLACK)
        walks = [Trajectory(problems.build(resolve("dln", norm="l1", samples=n))) for n in (4000, 2000)]
        ours_s, half = medians(*(walk.advance for walk in walks), repeats=30)
        yield within("growth", "l1 DLN step, 4,000 samples", "2,000", ours_s, half, SLACK)
        paths = [Path(folder) / f"{rows}.parquet" for rows in (1_000_000, 500_000)]
        for path in paths:
            rows = int(path.stem)
            frame = pd.DataFrame({name: np.zeros(rows) for name in kinds.get("train").columns})
            frame = frame.assign(run="run", problem="dln", norm="batch", settings="", seed=0, step=np.arange(rows))
            tables.write_table(path, "train", [frame], {})
        ours_s, half = medians(*(lambda path=path: bns.read_table(path) for path in paths), repeats=7)
        yield within("growth", "reading 1,000,000 rows", "500,000 rows", ours_s, half, SLACK)
