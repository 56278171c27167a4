"""The paper's claims, each with its rule, and what the runs of a study say to them. Reads tables only, no torch.

`python -m bnsmooth_cli.studies.claims` prints docs/claims.md.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.comparison import measured_rows, smoothness_rows, worst_where_diverged
from bnsmooth_cli.studies.statistics import interval, median, over_steps

REPRODUCED: Final = "reproduced"
NOT_REPRODUCED: Final = "not reproduced"
INCONCLUSIVE: Final = "inconclusive"
NOT_MEASURED: Final = "not measured"
UNDEFINED: Final = "undefined"  # of a part at a learning rate: no seed has the value, where both runs diverged, say

#: The least number of seeds for a verdict: as many that agree have by chance a probability of 1/32, below 5%.
SEEDS: Final = 5
#: What "about as well" is: so much of BatchNorm's advantage over the plain network.
SHARE: Final = 0.75
#: A run stops training, or stalls, where its loss ends above this share of the one it began with.
STALLED: Final = 0.9
#: Early is the first tenth of a run's steps.
EARLY: Final = 0.1


class Figures:
    """Every run's figures, by norm: Series over (lr, seed)."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table.set_index(["norm", "lr", "seed"])
        self.problem = str(table["problem"].iloc[0])
        self.lrs = sorted(table["lr"].unique())

    def __call__(self, norm: str, figure: str) -> pd.Series[float]:
        """A figure of a norm's runs."""
        return self._table[figure].xs(norm, level="norm").astype("float64")

    def ratio(self, figure: str, norm: str, to: str = "none") -> pd.Series[float]:
        """Of a figure, seed by seed."""
        return self(norm, figure) / self(to, figure)

    def share(self, figure: str, norm: str, log: bool) -> pd.Series[float]:
        """How much of BatchNorm's advantage over none a norm has; NaN where BatchNorm has none.

        Where none alone diverged, a norm has all of it if it did not, and nothing if it did.
        """
        plain, batch, other = (self(name, figure) for name in ("none", "batch", norm))
        if log:
            plain, batch, other = (pd.Series(np.log(v), index=v.index) for v in (plain, batch, other))
        advantage = batch - plain
        better = advantage < 0 if log else advantage > 0  # losses and beta in logarithms, less is better
        share = (other - plain) / advantage.where(better)
        return share.mask(np.isinf(plain) & np.isfinite(batch), np.isfinite(other).astype("float64"))

    def trains(self, norm: str) -> pd.Series[float]:
        """1 where a run trains, 0 where it diverges or stalls."""
        return (self(norm, "final_loss") <= STALLED * self(norm, "initial_loss")).astype("float64")

    def everywhere(self, figure: str) -> pd.Series[float]:
        """The smallest of a figure over the norms that have it."""
        return self._table[figure].astype("float64").groupby(["lr", "seed"]).min()

    def has(self, norm: str, figure: str, lr: float | None = None) -> bool:
        """Whether any run of a norm (of any norm, for ""), at a learning rate, has the figure; True without a run."""
        found = self._table[figure]
        if norm:
            found = found[found.index.get_level_values("norm") == norm]
        if lr is not None:
            found = found[found.index.get_level_values("lr") == lr]
            return found.empty or bool(found.notna().any())
        return bool(found.notna().any())


@dataclass(frozen=True)
class Part:
    """A statistic that a claim rests on, a value a seed and learning rate, and where its interval is to lie.

    `needs` names the norms whose runs and the kind of table it is made of ("" for the train table);
    a rule of None is reported and not judged. `problem` is the only one that it is said of.
    """

    text: str
    value: Callable[[Figures], pd.Series[float]]
    needs: tuple[str, ...]
    table: str = ""
    rule: tuple[str, float] | None = None
    problem: str | None = None
    #: A figure whose presence says that the statistic was measured, where it is not the table's own.
    figure: str = ""
    #: What the claim says of the learning rates: of "every", or of "some", where those without decide nothing.
    lrs: str = "every"
    #: Whether every seed is to obey the rule, and not just the median.
    always: bool = False

    @property
    def sign(self) -> str:
        """A figure that runs have where the statistic was measured."""
        return self.figure or _SIGN[self.table]

    @property
    def wanted(self) -> str:
        """The rule in words."""
        return "reported" if self.rule is None else f"{self.rule[0]} {self.rule[1]:.3g}"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, numbered as in docs/claims.md."""

    number: int
    short: str
    title: str
    parts: tuple[Part, ...]


#: A figure by which a kind of table is known to have been measured.
_SIGN: Final = {"": "steps", "smoothness": "beta", "ics": "ics", "activations": "kurtosis", "theory": "condition"}
_PLAIN: Final = ("none", "batch")
_LP: Final = ("l1", "l2", "linf")


def _faster(of: Figures) -> pd.Series[float]:
    ratio = of.ratio("steps_to_loss", "batch")
    plain, batch = (of.trains(norm).reindex(ratio.index) for norm in _PLAIN)
    ratio = ratio.mask((plain == 0) & (batch == 0))  # neither gets anywhere
    return ratio.mask((plain == 0) & (batch == 1), 0.0).mask((plain == 1) & (batch == 0), np.inf)


def _survives(of: Figures) -> pd.Series[float]:
    plain, batch = of.trains("none"), of.trains("batch")
    failing = plain.groupby("lr").transform("median") < 1
    return (batch.reindex(plain.index) - plain)[failing]


def _merit(of: Figures, norm: str) -> pd.Series[float]:
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
        lambda of: of.share("beta", norm, log=True), (*_PLAIN, norm), "smoothness", (">=", SHARE),
    )  # fmt: skip


def _smoother(figure: str, words: str, bound: float = 1.0) -> Part:
    return Part(
        f"{words}, batch / none",
        lambda of: of.ratio(figure, "batch"), _PLAIN, "smoothness", ("<", bound), figure=figure,
    )  # fmt: skip


def _moves(norm: str, to: str = "none") -> Part:
    return Part(
        f"how far layer inputs move between measured steps, {norm} / {to}",
        lambda of: of.ratio("movement", norm, to), (norm, to), "activations", (">", 1.0), figure="movement",
    )  # fmt: skip


def _heavy(norm: str) -> Part:
    return Part(
        f"{norm}: size of the layer inputs' excess kurtosis",
        lambda of: of(norm, "kurtosis"), (norm,), "activations", (">=", 0.5),
    )  # fmt: skip


def _statement(number: int, statement: str, words: str, *more: Part) -> Claim:
    holds = Part(
        f"share of layers, units and steps where {statement} holds, of the norm with the least",
        lambda of: of.everywhere(f"holds {statement}"), (), "theory", (">=", 1.0), always=True,
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
        _as_well("noisy-batch"), _moves("noisy-batch"), _moves("noisy-batch", "batch"),
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
            "late loss_range", "batch"), _PLAIN, "smoothness", ("<", 1.0), figure="early loss_range"),
    )),
    Claim(6, "gradients predictive",
          "Gradients are more predictive with BatchNorm, early by about two orders of magnitude", (
        _smoother("predictiveness", "largest change of the gradient on the line"),
        _smoother("early predictiveness", "the same early", 10**-1.5),
    )),
    Claim(7, "beta lower", "Effective beta-smoothness is lower with BatchNorm", (_smoother("beta", "effective beta"),)),
    Claim(8, "l_p as well as batch",
          "l_p norms train about as well as BatchNorm and smooth as much; on the DLN l1 beats BatchNorm", (
        *map(_as_well, _LP), *map(_as_smooth, _LP),
        Part("last training loss, l1 / batch", lambda of: of.ratio("final_loss", "l1", "batch"), ("l1", "batch"),
             rule=("<", 1.0), problem="dln"),
    )),
    Claim(9, "l_p inputs move more",
          "l_p norms leave non-Gaussian layer inputs, which move more than the plain network's", (
        *map(_heavy, _LP), *map(_moves, _LP),
    )),
    _statement(10, "4.1", "BatchNorm's gradient is the plain one, rescaled and reduced",
        Part("reduction of the squared gradient, median over units", lambda of: of.everywhere("reduction"), (),
             "theory")),
    _statement(11, "4.2", "The gradient's own quadratic form is reduced: more predictive gradients",
        Part("share of units where 4.2's conditions hold", lambda of: of.everywhere("condition"), (), "theory")),
    _statement(12, "4.3", "Minima are preserved: a gamma and beta give identical activations"),
    _statement(13, "4.4", "The worst-case gradient of the weights is reduced"),
    _statement(14, "4.5", "The nearest optimum is closer to the initial weights"),
)  # fmt: skip


def claims(comparison: pd.DataFrame, runs: Sequence[Run], remedy: Callable[..., str]) -> pd.DataFrame:
    """The columns of a compare-claims table: a row a part of a claim and learning rate; runs of one problem.

    `remedy(norms=..., measure=..., lrs=...)` is the command that would measure what a part lacks. A part is reproduced
    where the whole interval of its median over at least SEEDS seeds obeys its rule, not reproduced where none of it
    does. A claim is as good as its parts: not reproduced if one is not, else not measured, inconclusive, reproduced.
    """
    rows = []
    figures = worst_where_diverged(comparison).merge(
        pd.DataFrame([{"run": run.name, **_line_figures(run), **_theory_figures(run)} for run in runs]), on="run"
    )
    of = Figures(figures)
    for claim in CLAIMS:
        parts = [row for part in claim.parts if part.problem in (None, of.problem) for row in _judge(part, of, remedy)]
        judged = [row["part_verdict"] for row in parts]
        order = (NOT_REPRODUCED, NOT_MEASURED, INCONCLUSIVE, REPRODUCED)
        verdict = next((one for one in order if one in judged), INCONCLUSIVE)
        named = {"problem": of.problem, "claim": claim.number, "title": claim.title, "verdict": verdict}
        rows += [{**named, **row} for row in parts]
    return pd.DataFrame(rows, columns=list(kinds.get("compare-claims").columns))


def deciding(parts: pd.DataFrame) -> pd.Series[Any]:
    """Of the rows of one claim the one that its verdict rests on: the first part that has that verdict."""
    found = parts[parts["part_verdict"] == parts["verdict"]]
    return (found if len(found) else parts).iloc[0]


def _judge(part: Part, of: Figures, remedy: Callable[..., str]) -> list[dict[str, object]]:
    row: dict[str, object] = {"part": part.text, "rule": part.wanted, "lr": np.nan, "seeds": 0, "command": ""}
    kinds = [part.table] if part.table else []

    def lacking(lr: float | None = None) -> bool:
        return not all(of.has(norm, part.sign, lr) for norm in part.needs or ("",))

    if lacking():
        wanted = remedy(norms=[norm for norm in part.needs if norm], measure=kinds)
        return [{**row, "part_verdict": NOT_MEASURED, "command": wanted}]
    values = part.value(of)
    if values.empty:  # of claim 2 alone: none trains at every learning rate
        further = float(f"{max(of.lrs) * (10 if of.problem == 'dln' else 5):.6g}")
        wanted = remedy(norms=list(part.needs), lrs=[further])
        return [{**row, "part_verdict": NOT_MEASURED, "command": wanted}]
    rows = []
    for lr, here in values.groupby("lr"):
        known = here.dropna().to_numpy(np.float64)
        low, high = interval(known)
        found = {"lr": lr, "seeds": len(known), "median": median(known), "low": low, "high": high}
        verdict, wanted = _verdict(part, known, (low, high)), ""
        if not len(known) and lacking(float(str(lr))):
            verdict = NOT_MEASURED
            wanted = remedy(norms=[norm for norm in part.needs if norm], measure=kinds, lrs=[lr])
        rows.append({**row, **found, "part_verdict": verdict, "command": wanted})
    if part.lrs == "some" and any(one["part_verdict"] == REPRODUCED for one in rows):
        rows = [{**one, "part_verdict": UNDEFINED} if one["part_verdict"] != REPRODUCED else one for one in rows]
    return rows


def _verdict(part: Part, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], ends: tuple[float, float]) -> str:
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


def _line_figures(run: Run) -> dict[str, float]:
    rows = smoothness_rows(run)
    early = rows["step"] <= EARLY * run.config.steps
    return {
        f"{when} {figure}": over_steps(rows["step"][chosen], rows[figure][chosen])
        for figure in ("loss_range", "predictiveness")
        for when, chosen in (("early", early), ("late", ~early))
    }


def _theory_figures(run: Run) -> dict[str, float]:
    rows = measured_rows(run, "theory", ["statement", "holds", "condition", "mean_fraction", "output_fraction"])
    at = {name: rows[rows["statement"] == name] for name in ("4.1", "4.2", "4.3", "4.4", "4.5")}
    figures = {f"holds {name}": float(found["holds"].astype("float64").mean()) for name, found in at.items()}
    figures["condition"] = float(at["4.2"]["condition"].astype("float64").mean())
    figures["reduction"] = float((at["4.1"]["mean_fraction"] + at["4.1"]["output_fraction"]).median())
    return figures


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
            needs = ", ".join([*part.needs, *([f"`{part.table}`"] if part.table else [])])
            lines.append(f"| {title} | {part.text}{only} | {part.wanted} | {needs} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
