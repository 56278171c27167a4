"""How many seeds the verdicts on the claims take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli.studies.claims import CLAIMS, EVERY, EXISTS, IDENTITY
from bnsmooth_cli.studies.statistics import seeds_for
from bnsmooth_cli.studies.verdicts import NOT_MEASURED, refutes

#: The effects of a plan without runs, in standard deviations over seeds.
EFFECTS: Final = (0.5, 1.0, 2.0)


def plan(problem: str, lrs: Sequence[float], judged: pd.DataFrame | None = None) -> pd.DataFrame:
    """How many seeds each claim takes for a verdict with power `statistics.POWER`.

    The number for *reproduced* assumes that every deciding part has the effect, and that parts are independent; parts
    that depend on each other take fewer. The number for *not reproduced* assumes the same effect against the rule in
    one part.

    Args:
        problem: The problem.
        lrs: The learning rates.
        judged: A table of kind `compare-claims` of this problem. The effects are then also estimated from its values.

    Returns:
        One row per claim that tests over seeds decide. Columns:

        - `claim`, `title`, and `tests`, the number of tests that decide it.
        - `seeds_0.5`, `seeds_1`, `seeds_2`: the seeds for *reproduced* if each effect is so many standard deviations.
        - `refuted_1`: the seeds for *not reproduced* if the effect of one part is one standard deviation.
        - with `judged`, also `weakest`, the smallest estimated effect of a deciding part in standard deviations,
          `weakest_part`, and `seeds`, the seeds for *reproduced* with the estimated effects. `seeds` is null if an
          effect has the wrong sign or fewer than three values, or if a part was not measured.

    >>> plan("dln", [1e-6]).set_index("claim").loc[1, ["tests", "seeds_1", "refuted_1"]].astype(float).tolist()
    [1.0, 13.0, 13.0]
    """
    rows = []
    for claim in CLAIMS:
        known = None if judged is None else set(judged["part"])
        parts = [
            part
            for part in claim.parts
            if part.judged not in (EVERY, IDENTITY)
            and (part.text in known if known is not None else part.applies(problem, problem != "dln"))
        ]
        tests = sum(part.at(lr) and part.decides(problem, lr) for part in parts for lr in lrs)
        if not tests:
            continue
        row: dict[str, Any] = {"claim": claim.number, "title": claim.title, "tests": tests}
        exists = any(part.judged == EXISTS for part in parts)
        # One learning rate shows a claim of existence, corrected for all that were tried. Only the paper's refutes it.
        agreeing, tried = (1, tests) if exists else (tests, 1)
        row |= {f"seeds_{effect:g}": seeds_for([effect] * agreeing, tried) for effect in EFFECTS}
        refuting = sum(refutes(problem, lr) for lr in lrs) if exists else tests
        row["refuted_1"] = seeds_for([1.0], refuting) if refuting else None
        if judged is not None:
            row |= _estimated(judged[judged["claim"] == claim.number], exists)
        rows.append(row)
    return pd.DataFrame(rows)


def _estimated(parts: pd.DataFrame, exists: bool) -> dict[str, Any]:
    """The weakest effect of a claim's deciding parts, and the seeds that the effects take.

    `exists` says whether the claim is that something holds at some learning rate.
    """
    decides = parts[parts["decides"].eq(True)]
    tested = decides[decides["p_value"].notna()]
    effects = {(row["part"], row["rule"], row["lr"]): effect(np.asarray(row["values"], np.float64), row["rule"])
               for _, row in tested.iterrows()}  # fmt: skip
    if not effects:
        return {"weakest": math.nan, "weakest_part": "", "seeds": None}
    if exists:  # the learning rate that shows it best suffices
        best = max(effects, key=lambda part: -math.inf if math.isnan(effects[part]) else effects[part])
        effects = {best: effects[best]}
    weakest = min(effects, key=lambda part: -math.inf if math.isnan(effects[part]) else effects[part])
    known = not any(map(math.isnan, effects.values())) and not decides["part_verdict"].eq(NOT_MEASURED).any()
    tried = int(parts["p_value"].notna().sum()) if exists else 1
    return {"weakest": effects[weakest], "weakest_part": weakest[0],
            "seeds": seeds_for([*effects.values()], tried) if known else None}  # fmt: skip


def effect(values: np.ndarray[Any, np.dtype[np.float64]], rule: str) -> float:
    """How far the mean of values lies beyond the bound of a rule, in standard deviations.

    Positive values under a positive bound are ratios, whose logarithms are compared.

    Args:
        values: One value per seed.
        rule: The rule, such as "< 0.95".

    Returns:
        The effect, positive on the rule's side, infinite if the values do not differ; NaN for fewer than three finite
        values.

    >>> round(effect(np.array([0.5, 0.6, 0.7]), "< 0.95"), 2), effect(np.array([0.5, 0.6]), "< 0.95")
    (2.78, nan)
    """
    side, bound = rule.split()[0], float(rule.split()[1])
    known = values[np.isfinite(values)]
    if len(known) < 3 or len(known) < len(values):
        return math.nan
    if bound > 0 and (known > 0).all():
        known, bound = np.log(known), math.log(bound)
    distance = (known.mean() - bound) * (1 if side == ">" else -1)
    spread = known.std(ddof=1)
    return float(distance / spread) if spread else math.copysign(math.inf, distance)
