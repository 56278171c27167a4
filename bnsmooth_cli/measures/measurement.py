"""What a measurement is: how its rows are computed, planned and linked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bnsmooth_cli.storage.runs import CheckpointSource


@dataclass(frozen=True)
class Measurement:
    """A measurement, named by its kind in `bnsmooth_cli.kinds`.

    Attributes:
        rows: Computes the rows at a point.
        plan: Validates the command's options against a run's configuration and returns the keyword arguments of `rows`.
        since: Completes the rows of a step from those of the measured step before it.
        given: What `rows` needs of the source beside the point, as further keyword arguments.
        last_only: Whether only the last checkpoint is measured unless steps are chosen.
    """

    rows: Callable[..., pd.DataFrame]
    plan: Callable[..., dict[str, Any]]
    since: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] = lambda before, rows: rows
    given: Callable[[CheckpointSource, dict[str, Any], str], dict[str, Any]] = lambda source, options, device: {}
    last_only: bool = False
