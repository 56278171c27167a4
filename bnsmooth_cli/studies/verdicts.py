"""The verdicts: the tests of the claims' parts over seeds, and what they say together. Reads tables only, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds
from bnsmooth_cli.presets import in_paper
from bnsmooth_cli.studies.claims import CLAIMS, EVERY, EXISTS, IDENTITY, MEDIAN, Claim, Part, learns, trains
from bnsmooth_cli.studies.evidence import Case, Record, cases, published
from bnsmooth_cli.studies.statistics import LEVEL, SEEDS, holm, interval, median, power, sign_test

REPRODUCED: Final = "reproduced"
NOT_REPRODUCED: Final = "not reproduced"
INCONCLUSIVE: Final = "inconclusive"
NOT_MEASURED: Final = "not measured"
#: The verdict at a learning rate where no network that the claim is about trains, or on cases without their condition.
NOT_APPLICABLE: Final = "not applicable"
VERIFIED: Final = "identity verified"
VIOLATED: Final = "identity violated"
REPORTED: Final = "reported"
#: The only part of a claim that is about none of the problem's learning rates.
ELSEWHERE: Final = "(about other problems or learning rates)"

_OTHER_SIDE: Final = {"<": ">", ">": "<"}
#: A claim has the first of these verdicts that a part of it has.
ORDER: Final = (VIOLATED, NOT_REPRODUCED, NOT_MEASURED, INCONCLUSIVE, REPRODUCED, VERIFIED, NOT_APPLICABLE)
_TONES: Final = {REPRODUCED: "good", VERIFIED: "good", NOT_REPRODUCED: "bad", VIOLATED: "bad", INCONCLUSIVE: "open"}
#: The learning rates at which the paper's figures show the plain network not to train.
_SHOWN_TO_FAIL: Final = {"vgg": 0.5}


def claims(records: Iterable[Record]) -> pd.DataFrame:
    """Judge the claims by runs: one row per part of a claim and learning rate.

    A part is tested by two one-sided sign tests, that its median obeys the rule and that it breaks it. A claim is
    reproduced if every part that decides is, each at level LEVEL: an intersection-union test, which has that level too
    (Berger 1982). It is not reproduced if a part breaks its rule at that level, adjusted for the number of parts and
    learning rates (Holm 1979). docs/claims.md has all rules.

    Args:
        records: The runs, all of the same problem and settings.

    Returns:
        The columns of a table of kind `compare-claims`. In place of a command, the column `command` has the changes to
        a request that would measure what is missing (`norms`, `measure` and `lrs`), or None. Of a built-in problem that
        is not the paper's, only the claims about the theory have rows.
    """
    records = list(records)
    problem, classifies = records[0].problem, any(record.classifies for record in records)
    grouped = cases(records)
    rows = []
    for claim in CLAIMS:
        parts = [part for part in claim.parts if part.applies(problem, classifies)]
        if parts or in_paper(problem):
            rows += _judge(claim, parts, grouped, problem)
    settings = records[0].settings
    return pd.DataFrame(rows, columns=list(kinds.get("compare-claims").columns)).assign(settings=settings)


def tone(verdict: str) -> str:
    """What a verdict means for the claim, for its colour: `good`, `bad`, `open` or `none`.

    >>> tone("reproduced"), tone("not measured")
    ('good', 'none')
    """
    return _TONES.get(verdict, "none")


def is_aside(part: Mapping[str, Any] | pd.Series[Any]) -> bool:
    """Whether a part is judged and does not decide, given its row: its verdict is then in parentheses.

    >>> [is_aside({"decides": False, "part_verdict": verdict}) for verdict in (REPRODUCED, REPORTED)]
    [True, False]
    """
    return not part["decides"] and part["part_verdict"] not in (REPORTED, NOT_MEASURED, NOT_APPLICABLE)


def headline(parts: pd.DataFrame) -> str:
    """The verdict on a claim with what its parts say, so that it is plain what the verdict rests on.

    >>> headline(pd.DataFrame({"verdict": "inconclusive", "part_verdict": ["inconclusive", "reproduced", "reported"],
    ...                        "decides": [True, True, False]}))
    'inconclusive: 1 of 2 parts reproduced, 1 inconclusive'
    """
    verdict = str(parts["verdict"].iloc[0])
    deciding = parts["part_verdict"][parts["decides"].eq(True)]
    if len(deciding) < 2:
        return verdict
    if deciding.nunique() == 1:
        return f"{verdict}: {'both' if len(deciding) == 2 else f'all {len(deciding)}'} parts"
    counts = [f"{number} {word}" for word in reversed(ORDER) if (number := int(deciding.eq(word).sum()))]
    first, *others = [count.replace(" ", f" of {len(deciding)} parts ", 1) if i == 0 else count
                      for i, count in enumerate(counts)]  # fmt: skip
    return f"{verdict}: {', '.join([first, *others])}"


def deciding(parts: pd.DataFrame) -> pd.Series[Any]:
    """The row of a claim that its verdict rests on: the first part with that verdict."""
    agreeing = parts[(parts["part_verdict"] == parts["verdict"]) & parts["decides"].eq(True)]
    return (agreeing if len(agreeing) else parts).iloc[0]


def _judge(claim: Claim, parts: Sequence[Part], grouped: dict[float, list[Case]], problem: str) -> list[dict[str, Any]]:
    """The rows of a claim: the parts that apply to the problem."""
    rows: list[dict[str, Any]] = []
    for part in parts:
        rows += _rows(claim, part, grouped, problem)
    if not rows:
        rows = [{"part": ELSEWHERE, "rule": REPORTED, "judged": REPORTED, "seeds": 0, "decides": False,
                 "part_verdict": NOT_APPLICABLE, "p_against": None, "values": [], "command": None}]  # fmt: skip
    needed = [part for part in parts if part.rule is not None and part.judged != EXISTS]
    rows += _lacking(needed, rows, problem, list(grouped))
    tested = [row for row in rows if row["decides"] and row["p_against"] is not None]
    for row, adjusted in zip(tested, holm([row["p_against"] for row in tested]), strict=True):
        row["p_against"] = adjusted
    for row in rows:
        against = row["p_against"] is not None and row["p_against"] <= LEVEL
        if row["part_verdict"] == INCONCLUSIVE and against and (row["decides"] or row["judged"] == MEDIAN):
            row["part_verdict"] = NOT_REPRODUCED
    verdict = _verdict(rows)
    strength = _power(tested, sum(row["judged"] == EXISTS and row.get("p_value") is not None for row in rows))
    about = {"problem": problem, "claim": claim.number, "title": claim.title, "verdict": verdict, "power": strength}
    return [{**row, **about} for row in rows]


def _power(tested: Sequence[dict[str, Any]], tried: int) -> float:
    """The probability that every deciding part is found, for independent parts and effects of one standard deviation.

    Of a claim that something holds at some learning rate, one suffices, at the level for all that were tried.

    Args:
        tested: The rows of the deciding parts.
        tried: The number of learning rates at which such a claim was tested.
    """
    existing = [power(row["seeds"], 1.0, tried) for row in tested if row["judged"] == EXISTS]
    others = [power(row["seeds"], 1.0) for row in tested if row["judged"] != EXISTS]
    return math.prod([*others, *([max(existing)] if existing else [])]) if tested else math.nan


def _rows(claim: Claim, part: Part, grouped: dict[float, list[Case]], problem: str) -> list[dict[str, Any]]:
    unmeasured = _unmeasured(part, problem, list(grouped))
    rows = []
    for lr, of_lr in grouped.items():
        if not part.at(lr) or not any(case.has(part.needs, ()) for case in of_lr):
            continue
        at_lr = {"lr": lr, "decides": part.decides(problem, lr), "paper": shown(part, problem, lr)}
        about = {**unmeasured, **at_lr, "command": None}
        if not _applicable(claim, of_lr):
            rows.append({**about, "part_verdict": NOT_APPLICABLE, "decides": False})
            continue
        measured = [case for case in of_lr if case.has(part.needs, part.tables)]
        if not measured:
            # A claim needs its measurements wherever all of its norms have run; theory is about single networks.
            if part.needs and any(case.has(claim.needs, ()) for case in of_lr):
                rows.append({**unmeasured, **at_lr})
            continue
        values = np.array([part.value(case) for case in measured], np.float64)
        rows.append({**about, **_tested(part, values)})
    if part.judged == EXISTS and not _exists(rows, problem):
        lr = _SHOWN_TO_FAIL.get(problem, float(f"{10 * max(grouped):.6g}"))
        return [*rows, {**unmeasured, "command": {**unmeasured["command"], "lrs": [lr]}}]
    return rows or ([unmeasured] if any(map(part.at, grouped)) else [])


def _unmeasured(part: Part, problem: str, lrs: Sequence[float]) -> dict[str, Any]:
    """The row of a part that is not measured; it is needed if the part decides at one of these learning rates."""
    needed: dict[str, list[Any]] = {"norms": list(part.needs), "measure": list(part.tables)}
    decides = any(part.at(lr) and part.decides(problem, lr) for lr in lrs)
    return {"part": part.text, "rule": part.wanted, "judged": part.judged, "lr": np.nan, "seeds": 0,
            "decides": decides, "p_against": None, "values": [], "part_verdict": NOT_MEASURED,
            "command": {name: values for name, values in needed.items() if values}}  # fmt: skip


def _lacking(
    parts: Sequence[Part], rows: Sequence[dict[str, Any]], problem: str, lrs: Sequence[float]
) -> list[dict[str, Any]]:
    """The rows that a claim's most complete learning rate lacks.

    Norms may differ from learning rate to learning rate, but a claim is not put together of several: BatchNorm's
    advantage at one says nothing of the norms that match it at another.
    """
    found = {(row["part"], row["lr"]) for row in rows if row["part_verdict"] != NOT_APPLICABLE}
    # What is measured nowhere is said already.
    known = [part for part in parts if any((part.text, lr) in found for lr in lrs)]
    if not known:
        return []
    lacking = {lr: [part for part in known if part.at(lr) and (part.text, lr) not in found] for lr in lrs}
    lr = min(lacking, key=lambda lr: len(lacking[lr]))
    return [{**_unmeasured(part, problem, [lr]), "lr": lr} for part in lacking[lr]]


def _applicable(claim: Claim, of_lr: Sequence[Case]) -> bool:
    """Whether, in some seed, one of the networks that the claim is about trains (or each of them), or may do so."""
    test = learns if claim.together else trains
    able = [any(test(case, norm) in (True, None) for case in of_lr) for norm in claim.norms]
    return all(able) if claim.together else any(able) or not able


def _tested(part: Part, values: NDArray[np.float64]) -> dict[str, Any]:
    """The statistics of a part's values, and its verdict before the correction for the number of parts."""
    low, high, confidence = interval(values)
    undefined = int(np.isnan(values).sum())
    row: dict[str, Any] = {"seeds": len(values), "undefined": undefined, "median": median(values), "low": low,
                           "high": high, "confidence": confidence, "values": values}  # fmt: skip
    if part.rule is None:
        return {**row, "part_verdict": REPORTED}
    if part.judged in (IDENTITY, EVERY):
        return {**row, "part_verdict": _of_every_case(part, values)}
    side, bound = part.rule
    p_value = sign_test(values, bound, side)
    verdict = REPRODUCED if p_value <= LEVEL else INCONCLUSIVE
    against = sign_test(values, bound, _OTHER_SIDE[side])
    return {**row, "p_value": p_value, "p_against": against, "part_verdict": verdict}


def _of_every_case(part: Part, shares: NDArray[np.float64]) -> str:
    """The verdict on a statement that holds in every case or not at all, from the shares of cases where it holds."""
    if (shares < 1).any():
        return VIOLATED if part.judged == IDENTITY else NOT_REPRODUCED
    known = int((shares == 1).sum())
    if not known:
        return NOT_APPLICABLE
    if part.judged == IDENTITY:
        return VERIFIED
    return REPRODUCED if known >= SEEDS else INCONCLUSIVE


def _exists(rows: list[dict[str, Any]], problem: str) -> bool:
    """Judge a claim that something holds at some learning rate, and return whether these learning rates decide it.

    The p-values are corrected for having tried several. Only the learning rate at which the paper shows it can refute
    the claim: where it does not hold at another one, it may hold at a further one.
    """
    tested = [row for row in rows if row["part_verdict"] in (REPRODUCED, INCONCLUSIVE)]
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_value"] = adjusted
        row["part_verdict"] = REPRODUCED if adjusted <= LEVEL else INCONCLUSIVE
    found = any(row["part_verdict"] == REPRODUCED for row in tested)
    for row in tested:
        row["decides"] = row["part_verdict"] == REPRODUCED if found else refutes(problem, row["lr"])
    return any(row["decides"] for row in tested)


def refutes(problem: str, lr: float) -> bool:
    """Whether the paper's figures show at a learning rate that the plain network does not train."""
    return math.isclose(lr, _SHOWN_TO_FAIL.get(problem, math.nan), rel_tol=1e-6)


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    verdicts = {row["part_verdict"] for row in rows if row["decides"] or row["part_verdict"] == NOT_APPLICABLE}
    return next((verdict for verdict in ORDER if verdict in verdicts), INCONCLUSIVE)


def shown(part: Part, problem: str, lr: float) -> float:
    """The statistic of the paper's own figures at a learning rate; NaN if they do not show what it needs."""
    records = {record.norm: record for record in published(problem) if math.isclose(record.lr, lr, rel_tol=1e-6)}
    case = Case(records)
    if not part.needs or not case.has(part.needs, part.tables):
        return math.nan
    return part.value(case)
