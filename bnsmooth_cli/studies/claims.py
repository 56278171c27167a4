"""The paper's claims, the rule that judges each, and the verdicts on a study. Reads tables only, no torch.

`python -m bnsmooth_cli.studies.claims` prints docs/claims.md.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.comparison import published, worst_where_diverged
from bnsmooth_cli.studies.metrics import KIND_OF, measured_rows, of_claims
from bnsmooth_cli.studies.statistics import interval, median

REPRODUCED: Final = "reproduced"
NOT_REPRODUCED: Final = "not reproduced"
INCONCLUSIVE: Final = "inconclusive"
NOT_MEASURED: Final = "not measured"
#: The verdict on a part at a learning rate where no seed has the value, for example because both runs diverged.
UNDEFINED: Final = "undefined"

#: The smallest number of seeds for a verdict. All of them agree by chance with a probability of 1/32, below 5%.
SEEDS: Final = 5
#: The share of BatchNorm's advantage over the plain network that counts as "about as well".
SHARE: Final = 0.75
#: A run stalls if its loss ends above this share of its first loss.
STALLED: Final = 0.9


class Metrics:
    """The metrics of all runs: Series over (lr, seed), by norm."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table.set_index(["norm", "lr", "seed"])
        self.problem = str(table["problem"].iloc[0])
        self.lrs = sorted(table["lr"].unique())
        self.norms = set(table["norm"])

    def __call__(self, norm: str, metric: str) -> pd.Series[float]:
        """A metric of the runs of a norm."""
        return self._table[metric].xs(norm, level="norm").astype("float64")

    def ratio(self, metric: str, norm: str, to: str = "none") -> pd.Series[float]:
        """The ratio of a metric between two norms, seed by seed."""
        return self(norm, metric) / self(to, metric)

    def share(self, metric: str, norm: str, log: bool) -> pd.Series[float]:
        """The share of BatchNorm's advantage over none that a norm achieves; NaN if BatchNorm has no advantage.

        If `none` diverged and BatchNorm did not, a norm has the whole advantage unless it diverged too.
        """
        plain, batch, other = (self(name, metric) for name in ("none", "batch", norm))
        if log:
            plain, batch, other = (pd.Series(np.log(v), index=v.index) for v in (plain, batch, other))
        advantage = batch - plain
        better = advantage < 0 if log else advantage > 0  # less of a loss or beta is better
        share = (other - plain) / advantage.where(better)
        return share.mask(np.isinf(plain) & np.isfinite(batch), np.isfinite(other).astype("float64"))

    def trains(self, norm: str) -> pd.Series[float]:
        """1 for a run that trains, 0 for one that diverges or stalls; NaN if its loss is unknown."""
        final, initial = self(norm, "final_loss"), self(norm, "initial_loss")
        return (final <= STALLED * initial).astype("float64").where(final.notna())

    def everywhere(self, metric: str) -> pd.Series[float]:
        """The smallest value of a metric over the norms that have it."""
        return self._table[metric].astype("float64").groupby(["lr", "seed"]).min()

    def has(self, norm: str, metric: str, lr: float | None = None) -> bool:
        """Whether any run of a norm (of any norm, for "") has the metric; an lr without runs counts too."""
        table = self._table.reset_index()
        if norm:
            table = table[table["norm"] == norm]
        if lr is not None:
            table = table[table["lr"] == lr]
        return bool(table[metric].notna().any()) or (lr is not None and table.empty)


@dataclass(frozen=True)
class Part:
    """A part of a claim: a statistic with one value for each seed and learning rate, and a rule for its interval.

    Attributes:
        text: The statistic in words.
        value: Computes it.
        needs: The norms whose runs it needs; empty for all norms.
        metric: A metric that runs have if and only if the statistic was measured.
        rule: Where the interval must lie; None if the statistic is reported but not judged.
        problem: The only problem that the part applies to; None for all problems.
        lrs: "every" if the claim is about each learning rate; "some" if one suffices, so that others decide nothing.
        always: Whether every seed must obey the rule, not only the median.
    """

    text: str
    value: Callable[[Metrics], pd.Series[float]]
    needs: tuple[str, ...]
    metric: str = "final_loss"
    rule: tuple[str, float] | None = None
    problem: str | None = None
    lrs: str = "every"
    always: bool = False

    @property
    def tables(self) -> list[str]:
        """The kinds of tables to measure for it; empty if the train table is enough."""
        return [kind for kind in (KIND_OF[self.metric],) if kind != "train"]

    @property
    def wanted(self) -> str:
        """The rule in words."""
        return "reported" if self.rule is None else f"{self.rule[0]} {self.rule[1]:.3g}"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its number in docs/claims.md, a short title for the terminal, the title, and its parts."""

    number: int
    short: str
    title: str
    parts: tuple[Part, ...]


_PLAIN: Final = ("none", "batch")
_LP: Final = ("l1", "l2", "linf")


def _faster(of: Metrics) -> pd.Series[float]:
    ratio = of.ratio("steps_to_loss", "batch")
    plain, batch = (of.trains(norm).reindex(ratio.index) for norm in _PLAIN)
    ratio = ratio.mask((plain == 0) & (batch == 0))  # undefined if neither trains
    return ratio.mask((plain == 0) & (batch == 1), 0.0).mask((plain == 1) & (batch == 0), np.inf)


def _survives(of: Metrics) -> pd.Series[float]:
    plain, batch = of.trains("none"), of.trains("batch")
    failing = plain.groupby("lr").transform("median") < 1
    return (batch.reindex(plain.index) - plain)[failing]


def _merit(of: Metrics, norm: str) -> pd.Series[float]:
    if of.problem == "dln":
        return of.share("final_loss", norm, log=True)
    return of.share("final_test_accuracy", norm, log=False)


def _as_well(norm: str) -> Part:
    return Part(
        f"{norm}: share of BatchNorm's advantage over none, in test accuracy (dln: in the logarithm of the loss)",
        lambda of: _merit(of, norm), (*_PLAIN, norm), rule=(">=", SHARE),
    )  # fmt: skip


def _as_smooth(norm: str) -> Part:
    return Part(
        f"{norm}: share of BatchNorm's advantage over none in the logarithm of effective beta",
        lambda of: of.share("beta", norm, log=True), (*_PLAIN, norm), "beta", (">=", SHARE),
    )  # fmt: skip


def _smoother(metric: str, words: str, bound: float = 1.0, measured: str = "") -> Part:
    return Part(
        f"{words}, batch / none", lambda of: of.ratio(metric, "batch"), _PLAIN, measured or metric, ("<", bound)
    )


#: The metrics of how far layer inputs move between measured steps, in words. Figure 7 shows the last two.
_MOVEMENT: Final = {
    "movement": "how far layer inputs move between measured steps, in deviations",
    "mean_change": "change of the layer inputs' mean between measured steps",
    "var_change": "change of the layer inputs' variance between measured steps",
}


def _moves(norm: str, to: str = "none") -> tuple[Part, ...]:
    return tuple(
        Part(f"{words}, {norm} / {to}", functools.partial(_ratio, metric, norm, to), (norm, to), metric, (">", 1.0))
        for metric, words in _MOVEMENT.items()
    )


def _ratio(metric: str, norm: str, to: str, of: Metrics) -> pd.Series[float]:
    return of.ratio(metric, norm, to)


def _heavy(norm: str) -> Part:
    return Part(
        f"{norm}: size of the layer inputs' excess kurtosis",
        lambda of: of(norm, "kurtosis"), (norm,), "kurtosis", (">=", 0.5),
    )  # fmt: skip


def _statement(number: int, statement: str, words: str, *more: Part) -> Claim:
    holds = Part(
        f"share of layers, units and steps where {statement} holds, of the norm with the least",
        lambda of: of.everywhere(f"holds {statement}"), (), "condition", (">=", 1.0), always=True,
    )  # fmt: skip
    kind = "observation" if statement == "4.3" else "lemma" if statement == "4.5" else "theorem"
    return Claim(number, f"{kind} {statement}", f"{words} ({statement})", (holds, *more))


CLAIMS: Final = (
    Claim(1, "batch trains faster", "BatchNorm trains faster than none at each learning rate", (
        Part("steps to none's last training loss, batch / none", _faster, _PLAIN, rule=("<", 1.0)),
    )),
    Claim(2, "batch survives more lrs",
          "BatchNorm keeps training at learning rates where none diverges or stalls", (
        Part("batch trains (1 or 0) less none trains, where none fails", _survives, _PLAIN, rule=(">=", 1.0),
             lrs="some"),
    )),
    Claim(3, "noisy-batch as well",
          "Noisy BatchNorm trains about as well as BatchNorm though its layer inputs are the least stable", (
        _as_well("noisy-batch"), *_moves("noisy-batch"), *_moves("noisy-batch", "batch"),
        Part("noisy-none trains (1 or 0)", lambda of: of.trains("noisy-none"), ("noisy-none",), rule=("<=", 0.0)),
    )),
    Claim(4, "shift not smaller", "Internal covariate shift is not smaller with BatchNorm", (
        Part("l2 distance of the layers' gradients, batch / none", lambda of: of.ratio("ics", "batch"), _PLAIN, "ics",
             (">=", 1.0)),
        Part("cosine of the layers' gradients, batch less none",
             lambda of: of("batch", "cosine") - of("none", "cosine"), _PLAIN, "ics", ("<=", 0.0)),
        Part("cosine of none", lambda of: of("none", "cosine"), ("none",), "ics", (">=", 0.9), "dln"),
        Part("size of the cosine of batch", lambda of: of("batch", "cosine").abs(), ("batch",), "ics", ("<=", 0.1),
             "dln"),
    )),
    Claim(5, "loss varies less",
          "The loss varies less along the gradient with BatchNorm, most of all early", (
        _smoother("loss_range", "range of the loss on the line"),
        Part("that ratio early, over that ratio later", lambda of: of.ratio("early loss_range", "batch") / of.ratio(
            "late loss_range", "batch"), _PLAIN, "early loss_range", ("<", 1.0)),
    )),
    Claim(6, "gradients predictive",
          "Gradients are more predictive with BatchNorm, early by about two orders of magnitude", (
        _smoother("predictiveness", "largest change of the gradient on the line"),
        _smoother("early predictiveness", "the same early", 10**-1.5),
    )),
    Claim(7, "beta lower", "Effective beta-smoothness is lower with BatchNorm", (
        _smoother("beta", "effective beta"),
        _smoother("beta_unsaturated", "effective beta at points that are not saturated", measured="saturated"),
    )),
    Claim(8, "l_p as well as batch",
          "l_p norms train about as well as BatchNorm and smooth as much; on the DLN l1 beats BatchNorm", (
        *map(_as_well, _LP), *map(_as_smooth, _LP),
        Part("last training loss, l1 / batch", lambda of: of.ratio("final_loss", "l1", "batch"), ("l1", "batch"),
             rule=("<", 1.0), problem="dln"),
    )),
    Claim(9, "l_p inputs move more",
          "l_p norms leave non-Gaussian layer inputs, which move more than the plain network's", (
        *map(_heavy, _LP), *itertools.chain.from_iterable(map(_moves, _LP)),
    )),
    _statement(10, "4.1", "BatchNorm's gradient is the plain one, rescaled and reduced",
        Part("reduction of the squared gradient, median over units", lambda of: of.everywhere("reduction"), (),
             "condition")),
    _statement(11, "4.2", "The gradient's own quadratic form is reduced: more predictive gradients",
        Part("share of units where 4.2's conditions hold", lambda of: of.everywhere("condition"), (), "condition")),
    _statement(12, "4.3", "Minima are preserved: a gamma and beta give identical activations"),
    _statement(13, "4.4", "The worst-case gradient of the weights is reduced"),
    _statement(14, "4.5", "The nearest optimum is closer to the initial weights"),
    Claim(15, "random directions alike", "Random directions behave like the gradient's: the loss and its gradient vary "
          "less with BatchNorm", (
        _smoother("random_loss_range", "range of the loss along a random direction"),
        _smoother("random_predictiveness", "largest change of the gradient along a random direction"),
    )),
)  # fmt: skip


def claims(comparison: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Judge the claims: one row per part of a claim and learning rate.

    A part is reproduced if the whole interval of its median over at least SEEDS seeds obeys its rule, and not
    reproduced if no value of it does. A claim is not reproduced if any part is not; otherwise it is not measured,
    inconclusive or reproduced, in this order.

    Args:
        comparison: The comparison of the runs.
        runs: The runs, all of the same problem.

    Returns:
        The columns of a table of kind `compare-claims`. In place of a command, the column `command` has the changes to
        a request that would measure what is missing (`norms`, `measure` and `lrs`), or None.
    """
    rows = []
    more = [of_claims(functools.partial(measured_rows, run), run.config.steps) for run in runs]
    more = pd.DataFrame(more).assign(run=[run.name for run in runs])
    of = Metrics(worst_where_diverged(comparison).merge(more, on="run"))
    shown = published(of.problem, tuple(of.lrs))
    of_paper = None if shown.empty else Metrics(worst_where_diverged(shown))
    for claim in CLAIMS:
        parts = [
            {**row, "paper": _shown(part, of_paper, row["lr"])}
            for part in claim.parts
            if part.problem in (None, of.problem)
            for row in _judge(part, of)
        ]
        verdicts = [row["part_verdict"] for row in parts]
        order = (NOT_REPRODUCED, NOT_MEASURED, INCONCLUSIVE, REPRODUCED)
        verdict = next((verdict for verdict in order if verdict in verdicts), INCONCLUSIVE)
        about = {"problem": of.problem, "claim": claim.number, "title": claim.title, "verdict": verdict}
        rows += [{**about, **row} for row in parts]
    return pd.DataFrame(rows, columns=list(kinds.get("compare-claims").columns))


def deciding(parts: pd.DataFrame) -> pd.Series[Any]:
    """The row of a claim that its verdict rests on: the first part with that verdict."""
    agreeing = parts[parts["part_verdict"] == parts["verdict"]]
    return (agreeing if len(agreeing) else parts).iloc[0]


def _shown(part: Part, of_paper: Metrics | None, lr: float) -> float:
    """The statistic of the paper's own figures at a learning rate; NaN if they do not show what it needs."""
    if of_paper is None or not of_paper.norms.issuperset(part.needs):
        return np.nan
    values = part.value(of_paper)
    at_lr = values[np.isclose(values.index.get_level_values("lr").to_numpy(np.float64), lr, rtol=1e-6, atol=0)]
    return float(at_lr.iloc[0]) if len(at_lr) else np.nan


def _judge(part: Part, of: Metrics) -> list[dict[str, Any]]:
    def is_missing(lr: float | None = None) -> bool:
        return not all(of.has(norm, part.metric, lr) for norm in part.needs or ("",))

    row: dict[str, object] = {"part": part.text, "rule": part.wanted, "lr": np.nan, "seeds": 0, "command": None}
    needed = {"norms": list(part.needs), "measure": part.tables}
    missing: dict[str, list[Any]] = {name: values for name, values in needed.items() if values}
    if is_missing():
        return [{**row, "part_verdict": NOT_MEASURED, "command": missing}]
    values = part.value(of)
    if values.empty:  # only for claim 2, if `none` trains at every learning rate
        further = float(f"{max(of.lrs) * (10 if of.problem == 'dln' else 5):.6g}")
        return [{**row, "part_verdict": NOT_MEASURED, "command": {**missing, "lrs": [further]}}]
    rows = []
    for lr, at_lr in values.groupby("lr"):
        known = at_lr.dropna().to_numpy(np.float64)
        low, high = interval(known)
        statistics = {"lr": lr, "seeds": len(known), "median": median(known), "low": low, "high": high}
        judged = {**row, **statistics, "part_verdict": _verdict(part, known, (low, high))}
        if not len(known) and is_missing(float(str(lr))):
            judged |= {"part_verdict": NOT_MEASURED, "command": {**missing, "lrs": [lr]}}
        rows.append(judged)
    if part.lrs == "some" and any(row["part_verdict"] == REPRODUCED for row in rows):
        rows = [row if row["part_verdict"] == REPRODUCED else {**row, "part_verdict": UNDEFINED} for row in rows]
    return rows


def _verdict(part: Part, values: NDArray[np.float64], ends: tuple[float, float]) -> str:
    if part.rule is None:
        return "reported"
    sign, bound = part.rule
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[sign]
    if part.always and not compare(values, bound).all():
        return NOT_REPRODUCED
    if not len(values):
        return UNDEFINED
    if len(values) < SEEDS or np.isnan(ends).any():
        return INCONCLUSIVE
    obeys = [compare(end, bound) for end in ends]
    return REPRODUCED if all(obeys) else INCONCLUSIVE if any(obeys) else NOT_REPRODUCED


_RULES: Final = """\
# The claims, and the rules that they are judged by

Made by `python -m bnsmooth_cli.studies.claims`. The rules stand here before any result does; `bnsmooth compare` applies
them, and writes every number to `compare.claims.parquet`.

- A value is one seed's at one learning rate, compared with the runs of the same seed and learning rate. Figures over a
  run are medians over its measured steps (and layers from the second on, and units), each step weighing as many
  training steps as lie nearest to it: to measure the beginning closely does not make it the whole.
- The statistic is the median over seeds, with a 95% percentile bootstrap interval (SciPy, 9,999 resamples).
- **reproduced**: at every learning rate the whole interval of every part obeys its rule, over at least {SEEDS} seeds.
  {SEEDS} that agree have by chance a probability of 1/{chance}; fewer are always **inconclusive**. With {SEEDS} seeds
  the interval is the range of all of them.
- **not reproduced**: the whole interval of some part breaks its rule. **inconclusive**: neither.
- **not measured**: a norm or a table that the claim needs is missing; the command that would make it is named.
- A part without a value (both runs diverged, or BatchNorm has no advantage to have a share of) is *undefined* at that
  learning rate, and decides nothing.
- A run *trains* where it does not diverge and its loss ends at or below {STALLED} of the first. *Early* is the first
  tenth of the steps. A diverged run's last loss counts as infinite, its accuracy as 0.
- "About as well" is three quarters of BatchNorm's advantage over the plain network, in test accuracy; in the linear
  network in the logarithm of the loss. Where the plain network alone diverges, a norm that does not has all of it.
- Claim 1: where the plain network does not train and BatchNorm does, its steps count as 0 of the plain network's.
  Claim 2 is said of some learning rate: once it is reproduced at one, others decide nothing.
- A saturated point is one where the probe sets beta, not the network: beta is 1 / (the shortest step), where 90% of the
  gradient is lost. Where every point of a run is saturated, it has no beta at other points.
- Beside an answer stands the same statistic of the paper's own figures, computed by the same code from their curves at
  that learning rate, where they show what it needs. It is one run of the paper's, and decides nothing.
- The statements of the theory hold or do not, whatever the seed: their rule is that they hold in every case, and one
  case where they do not refutes them, whatever the number of seeds.

| claim | statistic | rule | needs |
| --- | --- | --- | --- |
"""


def page() -> str:
    """docs/claims.md."""
    lines = [*_RULES.format(SEEDS=SEEDS, chance=2**SEEDS, STALLED=STALLED).splitlines()]
    for claim in CLAIMS:
        for i, part in enumerate(claim.parts):
            title = f"{claim.number}. {claim.title}" if i == 0 else ""
            only = f" ({part.problem} only)" if part.problem else ""
            needs = ", ".join([*part.needs, *(f"`{table}`" for table in part.tables)])
            lines.append(f"| {title} | {part.text}{only} | {part.wanted} | {needs} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
