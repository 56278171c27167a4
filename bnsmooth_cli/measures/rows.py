"""The columns that every measured row starts with."""

from __future__ import annotations

import pandas as pd

from bnsmooth_cli.points.point import Point


def label(point: Point, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a measurement behind the point's `run, problem, norm, lr, seed, step`."""
    config = point.config
    values: tuple[str | float, ...] = (point.run, config.problem, config.norm, config.lr, config.seed, point.step)
    lead: dict[str, object] = dict(zip(("run", "problem", "norm", "lr", "seed", "step"), values, strict=True))
    return pd.DataFrame(lead | {str(name): rows[name] for name in rows}, index=rows.index)
