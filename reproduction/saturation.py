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
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measuring import execute, plan
from bnsmooth_cli.report import number
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.metrics import measured_rows
from reproduction.scales import PLAIN

#: The shortest steps that are compared, in learning rates.
SHORTEST: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_ALPHAS: Final = {"vgg": (*SHORTEST, 2.0, 4.0), "dln": (*SHORTEST, 10.0, 30.0)}
_POINTS: Final = 16  # measured steps of a run
#: Early is this first part of a run.
EARLY: Final = 0.1
_TOLERANCE: Final = 0.1


def probe(runs: Sequence[Run], table: Path) -> None:
    """Measure the lines of `none` and `batch`, at the paper's learning rate, unless the table has them.

    Runs whose checkpoints are gone are left out.

    Args:
        runs: The runs of a study, all of the same problem.
        table: The file, of kind `landscape`.
    """
    chosen = [
        run for run in runs
        if run.config.norm in PLAIN and run.config.lr == paper_lr(run.config.problem) and run.checkpoints()
    ]  # fmt: skip
    measured = [set(measured_rows(run, "smoothness", ["step"])["step"]) for run in chosen]
    common = sorted(set.intersection(*measured)) if measured else []
    if not common:
        return
    at = sorted({common[round(place)] for place in np.linspace(0, len(common) - 1, _POINTS)})
    options = {"alphas": list(_ALPHAS[chosen[0].config.problem])}
    (request,) = plan("landscape", [run.source() for run in chosen], table, at=at, options=options)
    with suppress(InputError):  # a table of other runs or steps
        if request.answered():
            return
    execute([request])


def paper_lr(problem: str) -> float:
    """The learning rate of most of the paper's figures."""
    return resolve(problem, "paper").lr


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of the lines with `ratio`, the change of the gradient per distance, times lr.

    Args:
        rows: Rows of kind `landscape`.
    """
    changed = rows["grad_distance"].fillna(np.inf)  # on the line, NaN is an overflow
    return rows.assign(ratio=changed / rows["distance"] * rows["lr"]).query("alpha > 0")


def betas(rows: pd.DataFrame) -> pd.DataFrame:
    """Beta * lr at each point for each of the shortest steps: a row for each point, a column for each step.

    Args:
        rows: Rows of kind `landscape`.
    """
    line = ratios(rows)
    points = ["norm", "lr", "seed", "step"]
    columns = {shortest: line[line["alpha"] >= shortest].groupby(points)["ratio"].max() for shortest in SHORTEST}
    return pd.DataFrame(columns).reset_index()


def verdict(medians: Mapping[Any, float]) -> str:
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


def groups(line: pd.DataFrame, smoothness: pd.DataFrame) -> Iterator[tuple[str, str, dict[Any, float]]]:
    """The medians of each norm, early in training and later.

    Args:
        line: The probed lines, of kind `landscape`.
        smoothness: Rows of kind `smoothness` of the same runs.

    Yields:
        The norm, "early" or "later", and the medians over points: beta * lr by shortest step, `curvature` and
        `sharpness` times lr; also the number of `points`.
    """
    keys = ["norm", "lr", "seed", "step"]
    table = betas(line).merge(smoothness[[*keys, "curvature", "sharpness"]], on=keys)
    for name in ("curvature", "sharpness"):
        table[name] *= table["lr"]
    when = np.where(table["step"] <= EARLY * line["step"].max(), "early", "later")
    for (norm, part), points in table.groupby([table["norm"], when]):
        medians = points[[*SHORTEST, "curvature", "sharpness"]].median()
        yield str(norm), str(part), {**medians.to_dict(), "points": len(points)}


HEADINGS: Final = (
    "problem", "norm", "part of the run", "runs", "points", *(f"shortest step {shortest:g}" for shortest in SHORTEST),
    "curvature × lr", "sharpness × lr", "verdict",
)  # fmt: skip


def rows(line: pd.DataFrame, smoothness: pd.DataFrame) -> list[list[str]]:
    """The rows of the table with HEADINGS, from the same tables as `groups`."""
    return [
        [str(line["problem"].iloc[0]), f"`{norm}`", part,
         str(line[line["norm"] == norm]["run"].nunique()), str(int(medians["points"])),
         *(number(medians[name]) for name in (*SHORTEST, "curvature", "sharpness")), verdict(medians)]
        for norm, part, medians in groups(line, smoothness)
    ]  # fmt: skip
