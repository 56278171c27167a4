"""The columns that every measured row starts with."""

from __future__ import annotations

import pandas as pd

from bnsmooth_cli.points import Point


def label(point: Point, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a measurement behind the point's `run, problem, norm, lr, seed, step`."""
    config = point.config
    values: tuple[str | float, ...] = (point.run, config.problem, config.norm, config.lr, config.seed, point.step)
    for place, (column, value) in enumerate(zip(("run", "problem", "norm", "lr", "seed", "step"), values, strict=True)):
        rows.insert(place, column, value)
    return rows
