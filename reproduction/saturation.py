r"""The experiment on effective beta: does the network set it, or the shortest step of the probe?

Beta is the largest $\|g - g(\theta - \eta g)\| / \|\eta g\|$ over the step lengths $\eta = \alpha \cdot lr$. Where the
gradient vanishes within the shortest step, the ratio there is $1 / (\alpha_{min} lr)$ in any network: the probe is
saturated. At the edge of stability (Cohen et al. 2021), the sharpness stays near 2 / lr, whatever is probed. The two
differ in how beta depends on the shortest step, so the line is probed from 1/16 of a learning rate on, and beta is
computed for shortest steps from 1/16 to 1.

The rule, written before any result: a group of points is *saturated* if the median of beta * lr is within 10% of
1 / alpha_min for every shortest step from 1/4 to 1; it is at the *edge of stability* if it is within 10% of 2 for every
shortest step up to 1/2; otherwise the experiment does not decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.metrics import EARLY, measured_rows
from reproduction.scales import PLAIN

#: The shortest steps that are compared, in learning rates.
SHORTEST: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_ALPHAS: Final = {"vgg": (*SHORTEST, 2.0, 4.0), "dln": (*SHORTEST, 10.0, 30.0)}
_POINTS: Final = 16  # measured steps of a run
_TOLERANCE: Final = 0.1


def probe(runs: Sequence[Run], table: Path) -> None:
    """Measure the lines of the runs of `none` and `batch` into one table of kind `landscape`, unless it has them.

    Args:
        runs: The runs of a study, all of the same problem.
        table: The file.
    """
    chosen = [run for run in runs if run.config.norm in PLAIN and run.outcome() is not None]
    if not chosen:
        return
    config = chosen[0].config
    at = sorted({round(step) for step in np.linspace(0, config.steps, _POINTS)})
    kept = [step for step in at if all(step <= max(run.checkpoints()) for run in chosen)]
    options = {"alphas": list(_ALPHAS[config.problem])}
    measure("landscape", [run.source() for run in chosen], table, at=kept, options=options, force=True)


def curvatures(runs: Sequence[Run], rows: pd.DataFrame) -> pd.DataFrame:
    """The curvature along the gradient and the sharpness at the probed steps of the runs, from their own tables."""
    measured = pd.concat([measured_rows(run, "smoothness") for run in runs], ignore_index=True)
    points = rows[["run", "step"]].drop_duplicates()
    return measured.merge(points, on=["run", "step"])[["run", "norm", "lr", "step", "curvature", "sharpness"]]


def betas(rows: pd.DataFrame) -> pd.DataFrame:
    """Beta * lr at each point for each of the shortest steps: a row for each point, a column for each step.

    Args:
        rows: Rows of kind `landscape`.
    """
    line = rows[rows["alpha"] > 0].assign(ratio=rows["grad_distance"] / rows["distance"] * rows["lr"])
    points = ["problem", "norm", "lr", "run", "step"]
    columns = {shortest: line[line["alpha"] >= shortest].groupby(points)["ratio"].max() for shortest in SHORTEST}
    return pd.DataFrame(columns).reset_index()


def verdict(medians: Mapping[float, float]) -> str:
    """What the medians of beta * lr by shortest step say, by the rule of the module.

    >>> verdict({1 / 16: 9.0, 1 / 8: 7.0, 1 / 4: 3.9, 1 / 2: 2.0, 1.0: 1.0})
    'saturated'
    >>> verdict({1 / 16: 2.0, 1 / 8: 2.1, 1 / 4: 2.0, 1 / 2: 2.0, 1.0: 1.7})
    'edge of stability'
    """

    def near(shortest: float, value: float) -> bool:
        return abs(medians[shortest] / value - 1) <= _TOLERANCE

    if all(near(shortest, 1 / shortest) for shortest in SHORTEST if shortest >= 1 / 4):
        return "saturated"
    if all(near(shortest, 2.0) for shortest in SHORTEST if shortest <= 1 / 2):
        return "edge of stability"
    return "not decided"


def groups(rows: pd.DataFrame, curvature: pd.DataFrame, steps: int) -> Iterator[tuple[str, float, str, pd.Series]]:
    """The medians of each norm and learning rate, early in training and later.

    Args:
        rows: Rows of kind `landscape`.
        curvature: What `curvatures` returned for them.
        steps: The length of the runs.

    Yields:
        The norm, the learning rate, "early" or "later", and the medians: beta * lr by shortest step, `curvature` and
        `sharpness` times lr, and the number of `points`.
    """
    table = betas(rows).merge(curvature, on=["run", "norm", "lr", "step"], how="left")
    table = table.assign(when=np.where(table["step"] <= EARLY * steps, "early", "later"))
    for (lr, norm, when), points in table.groupby(["lr", "norm", "when"]):
        medians = points[[*SHORTEST]].replace(np.inf, np.nan).median()
        for name in ("curvature", "sharpness"):
            medians[name] = (points[name] * lr).median()
        medians["points"] = len(points)
        yield str(norm), float(lr), str(when), medians
