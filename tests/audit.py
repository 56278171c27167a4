"""The numbers of a page of the reproduction, computed again from the tables beside it: `Page.audit`.

Nothing of the code that wrote the page is used here. The definitions are those of docs/claims.md, written again in
plain pandas and NumPy. A table or a column that is not known here fails, so that nothing unaudited can be added.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import bnsmooth_cli as bns
from bnsmooth_cli import paper

NORMS = ("none", "batch", "l1", "l2", "linf", "noisy-batch", "noisy-none")
JUDGED = ("dln", "dln-slow", "dln-fresh", "vgg-early", "vgg")
STATED = {"vgg": {"none": 80, "batch": 83}, "vgg-augmented": {"none": 88, "batch": 92}}
LEVEL = 0.05


# Cells are regular expressions: a number is rounded to three digits, and one near a tie may be rounded either way.


def rounded(value: float) -> str:
    """A number to three significant digits, a whole one below a million in full, and a dash for none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def cell(value: float, text: Any = rounded) -> str:
    value = float(value)
    return "(?:" + "|".join({re.escape(text(value * tie)) for tie in (1, 1 - 1e-9, 1 + 1e-9)}) + ")"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def spread(middle: float, low: float, high: float, text: Any = rounded) -> str:
    """A median with its interval, if it has one."""
    if math.isnan(low):
        return cell(middle, text)
    return rf"{cell(middle, text)} \[{cell(low, text)}, {cell(high, text)}\]"


# Statistics


def median(values: Any) -> float:
    known = np.asarray(values, float)
    known = np.sort(known[~np.isnan(known)])
    return float(known[[(len(known) - 1) // 2, len(known) // 2]].mean()) if len(known) else math.nan


def weights(steps: np.ndarray) -> np.ndarray:
    """The number of training steps nearest to each measured one; beside the ends, the gap reaches as far outwards."""
    distinct = np.unique(steps)
    if len(distinct) < 2:
        return np.ones(len(steps))
    outer = np.concatenate([[2 * distinct[0] - distinct[1]], distinct, [2 * distinct[-1] - distinct[-2]]])
    width = dict(zip(distinct, (outer[2:] - outer[:-2]) / 2, strict=True))
    return np.array([width[step] for step in steps])


def over_run(steps: Any, values: Any) -> float:
    """The median over training: half of the weight lies on each side of it."""
    values, weight = np.asarray(values, float), weights(np.asarray(steps, float))
    known = ~np.isnan(values)
    values, weight = values[known], weight[known]
    if not len(values):
        return math.nan
    order = np.argsort(values)
    values, below = values[order], weight[order].cumsum() / weight.sum()
    return float((values[below >= 0.5 - 1e-9][0] + values[below > 0.5 + 1e-9][0]) / 2)


def mean_over_run(steps: Any, values: Any) -> float:
    values, weight = np.asarray(values, float), weights(np.asarray(steps, float))
    known = ~np.isnan(values)
    return float((values * weight)[known].sum() / weight[known].sum()) if known.any() else math.nan


def tail(n: int, k: int, p: float = 0.5) -> float:
    """The probability of k or more successes of n."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def interval(values: Any) -> tuple[float, float]:
    """Between the k-th smallest and the k-th largest value, with the largest k whose coverage is at least 95%."""
    known, n = np.asarray(values, float), len(values)
    if n < 2 or np.isnan(known).all():
        return math.nan, math.nan
    k = max([1, *(k for k in range(1, n // 2 + 1) if 1 - 2 * tail(n, n + 1 - k) >= 0.95)])
    missing = np.isnan(known)
    return np.sort(np.where(missing, -np.inf, known))[k - 1], np.sort(np.where(missing, np.inf, known))[-k]


def holm(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    stepped = np.maximum.accumulate([min(1.0, (len(order) - rank) * p_values[i]) for rank, i in enumerate(order)])
    return [float(stepped[order.index(i)]) for i in range(len(order))]


def power(seeds: int) -> float:
    """Of the sign test, if the median lies one standard deviation of a normal distribution inside the rule."""
    inside = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    needed = next((k for k in range(seeds + 1) if tail(seeds, k) <= LEVEL), None)
    return 0.0 if needed is None else tail(seeds, needed, inside)


# Runs: ours from the tables beside the page, the paper's from its figures


class Run:
    def __init__(self, norm: str, lr: float, seed: int, study: Any, about: dict, tables: dict[str, pd.DataFrame]):
        self.norm, self.lr, self.seed, self.problem, self.steps = norm, lr, seed, study.problem, study.steps
        self.diverged, self.baseline, self.tables = about["diverged_at"] is not None, about["baseline"], tables

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        found = {}
        for name, (kind, _) in METRICS.items():
            if kind in self.tables:
                rows = self.metric(name)
                shared = name in ("non_gaussian",)
                found[name] = (mean_over_run if shared else over_run)(rows["step"], rows["value"])
        return found | self.training

    @functools.cache  # noqa: B019 - a few runs, for one test
    def metric(self, name: str) -> pd.DataFrame:
        """The rows of a metric: step, layer (if any), unit (if any) and value."""
        kind, formula = METRICS[name]
        rows = self.tables[kind]
        if kind == "ics":
            rows = rows[rows["layer"] > 1]
        if kind == "landscape-random":
            rows = extremes(rows)
        keys = [key for key in ("step", "layer", "unit") if key in rows]
        return rows[keys].assign(value=np.asarray(formula(rows), float))

    @functools.cache  # noqa: B019
    def by_layer(self, name: str) -> pd.Series:
        rows = self.metric(name)
        keys = [key for key in ("step", "layer") if key in rows]
        return rows.groupby(keys)["value"].median() if "unit" in rows else rows.set_index(keys)["value"]

    @functools.cached_property
    def training(self) -> dict[str, float]:
        rows = self.tables["train"]
        tested = rows[rows["test_accuracy"].notna()]
        late = tested[tested["step"] >= rows["step"].max() * 2 / 3]["test_accuracy"].to_numpy()[-5:]
        last = late if len(late) else tested["test_accuracy"].to_numpy()[-1:]
        return {
            "final_loss": rows["loss"].to_numpy()[-1],
            "best_loss": rows["loss"].min(),
            "mean_log_loss": mean_over_run(rows["step"], logarithm(rows["loss"])),
            "final_test_accuracy": last.mean() if len(last) else math.nan,
            "best_test_accuracy": tested["test_accuracy"].max(),
        }

    @functools.cached_property
    def classifies(self) -> bool:
        return bool(self.tables["train"][["accuracy", "test_accuracy"]].notna().any(axis=None))


def extremes(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each step, with the range of the loss and the largest change of the gradient on its line."""
    found = []
    for step, line in rows.groupby("step"):
        losses, changes = (
            [math.inf if math.isnan(value) else value for value in line[line["alpha"] > 0][name]]
            for name in ("loss", "grad_distance")
        )
        found.append({"step": step, "loss_range": max(losses) - min(losses), "largest_change": max(changes)})
    return pd.DataFrame(found, columns=["step", "loss_range", "largest_change"])


def logarithm(losses: pd.Series) -> Any:
    """Of losses, if none is negative."""
    with np.errstate(divide="ignore"):
        return losses * np.nan if losses.min() < 0 else np.log(losses)


def column(name: str) -> Any:
    return lambda rows: rows[name]


def free(rows: pd.DataFrame) -> Any:
    """Beta where the network sets it, or where it is infinite."""
    beta = rows["beta"].to_numpy(float)
    saturated = rows["saturated"].astype(object).map({True: 1.0, False: 0.0}).to_numpy(float)
    return np.where((saturated == 0) | np.isinf(beta), beta, np.nan)


def heavy(rows: pd.DataFrame) -> Any:
    """1 for an excess kurtosis above 0.5 in size and more than 3.29 deviations from that of a Gaussian sample."""
    m, kurtosis = rows["values"].to_numpy(float), rows["kurtosis"].to_numpy(float)
    deviation = np.sqrt(24 * m * (m - 2) * (m - 3) / ((m + 1) ** 2 * (m + 3) * (m + 5)))
    far = (abs(kurtosis) > 0.5) & (abs(kurtosis + 6 / (m + 1)) > 3.29 * deviation)
    return np.where(np.isnan(m) | np.isnan(kurtosis), np.nan, far)


#: A metric -> its table, and how it is computed from the rows.
METRICS = {
    "loss_range": ("smoothness", lambda rows: rows["loss_max"] - rows["loss_min"]),
    "predictiveness": ("smoothness", column("predictiveness_max")),
    "relative_predictiveness": ("smoothness", lambda rows: rows["predictiveness_max"] / rows["grad_norm"]),
    "beta": ("smoothness", column("beta")),
    "beta_unsaturated": ("smoothness", free),
    "scaled_beta": ("smoothness", lambda rows: rows["beta"] * rows["weight_norm"] ** 2),
    "random_loss_range": ("landscape-random", column("loss_range")),
    "random_predictiveness": ("landscape-random", column("largest_change")),
    "ics": ("ics", column("ics")),
    "relative_ics": ("ics", lambda rows: rows["ics"] / rows["grad_norm"]),
    "cosine": ("ics", column("cosine")),
    "cosine_size": ("ics", lambda rows: rows["cosine"].abs()),
    "kurtosis": ("activations", lambda rows: rows["kurtosis"].abs()),
    "non_gaussian": ("activations", heavy),
    **{name: ("activations", column(name)) for name in ("mean_change", "var_change", "probe_mean_change",
                                                        "floor_mean_change")},
}  # fmt: skip
#: A heading of a table of medians -> its metric. The section on random directions has random ones in their place.
HEADINGS = {
    "last test accuracy": "final_test_accuracy",
    "best test accuracy": "best_test_accuracy",
    "steps to none's last accuracy": "steps_to_accuracy",
    "last training loss": "final_loss",
    "logarithm of the loss, averaged over the run": "mean_log_loss",
    "range of the loss": "loss_range",
    "change of the gradient": "predictiveness",
    "the change relative to the gradient": "relative_predictiveness",
    "effective beta": "beta",
    "beta times the squared norm of the weights": "scaled_beta",
    "size of excess kurtosis": "kurtosis",
    "share of units that are not Gaussian": "non_gaussian",
    "change of the mean between measured steps": "mean_change",
    "change of the variance": "var_change",
    "change of the mean on the probe batch": "probe_mean_change",
    "change of the mean with frozen weights": "floor_mean_change",
    "distance of the gradients": "ics",
    "the distance relative to the gradient": "relative_ics",
    "their cosine": "cosine",
}


class Curve(NamedTuple):
    """What a figure of the paper draws against an axis: its columns, the table of ours, and the unit of distances."""

    columns: tuple[str, ...]
    table: str
    unit: str


_ACCURACY, _LOSS = (Curve(("accuracy",), "train", "points"),), (Curve(("loss",), "train", "decades"),)
_SHIFT = (Curve(("ics",), "ics", "decades"), Curve(("cosine",), "ics", "units"))


def _lines(*units: str) -> tuple[tuple[Curve, ...], ...]:
    edges = [(f"{name}_min", f"{name}_max") for name in ("loss", "predictiveness")]
    tables = ("landscape", "landscape", "smoothness")
    return tuple((Curve(*each),) for each in zip((*edges, ("beta",)), tables, ("decades", *units), strict=True))


_VGG, _LINEAR = _lines("units", "units"), _lines("decades", "decades")
_STEPS = (Curve(("grad_distance",), "landscape", "decades"),)
PAPER: dict[str, tuple[Curve, ...]] = {
    "1a": _ACCURACY, "1b": (Curve(("test_accuracy",), "train", "points"),), "2": _ACCURACY,
    "3a-accuracy": _ACCURACY, "3a-ics": _SHIFT, "3b-loss": _LOSS, "3b-ics": _SHIFT,
    "4a": _VGG[0], "4b": _VGG[1], "4c": _VGG[2],
    "7a": tuple(Curve((f"{name}_change",), "activations", "units") for name in ("mean", "var")),
    "7b": tuple(Curve((f"{name}_drift",), "activations", "units") for name in ("mean", "var")),
    "9a": _LINEAR[0], "9b": _LINEAR[1], "9c": _LINEAR[2], "10a": _STEPS, "10b": _STEPS,
    "11a": _ACCURACY, "11b": _VGG[0], "11c": _VGG[1], "11d": _VGG[2],
    "12a": _LOSS, "12b": _LINEAR[0], "12c": _LINEAR[1], "12d": _LINEAR[2], "13a": _ACCURACY, "13b": _LOSS,
}  # fmt: skip


@functools.cache
def figure(name: str) -> pd.DataFrame:
    return paper.read(name)


@functools.cache
def papers(problem: str, lr: float) -> dict[str, Run]:
    """The runs that the paper's figures show at a learning rate, by norm. A column is of the first figure with it."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for name, axes in PAPER.items():
        rows = figure(name)
        rows = rows[(rows["problem"] == problem) & np.isclose(rows["lr"], lr, rtol=1e-6, atol=0)]
        table = {"landscape": "smoothness"}.get(axes[0].table, axes[0].table)
        if name.startswith("10"):
            continue  # the change over the step length, which no claim is about
        for norm, of_norm in rows.groupby("norm"):
            tables = found.setdefault(str(norm), {})
            keys = [key for key in ("step", "layer") if key in of_norm]
            new = [name for axis in axes for name in axis.columns if name not in tables.get(table, ())]
            if new:
                more = of_norm[[*keys, *new]]
                tables[table] = tables[table].merge(more, "outer", keys) if table in tables else more
    shortest = {"vgg": 0.5, "dln": 0.01}[problem]
    study = SimpleNamespace(problem=problem, steps={"vgg": 15_000, "dln": 10_000}[problem])
    runs = {}
    for norm, tables in found.items():
        for table, rows in tables.items():
            tables[table] = rows.sort_values([key for key in ("step", "layer") if key in rows], ignore_index=True)
        if "train" in tables:
            tables["train"] = tables["train"].reindex(columns=["step", "loss", "accuracy", "test_accuracy"])
        if "smoothness" in tables:
            at_limit = abs(tables["smoothness"]["beta"] * shortest * lr - 1) <= 0.02
            tables["smoothness"] = tables["smoothness"].assign(saturated=at_limit, grad_norm=np.nan, weight_norm=np.nan)
        if "ics" in tables:
            tables["ics"] = tables["ics"].assign(grad_norm=np.nan)
        if "activations" in tables:
            names = ("probe_mean_change", "floor_mean_change", "kurtosis", "values")
            tables["activations"] = tables["activations"].assign(**dict.fromkeys(names, np.nan))
        about = {"diverged_at": None, "baseline": {"accuracy": 0.1} if problem == "vgg" else {}}
        runs[norm] = Run(norm, lr, 0, study, about, tables)
    return runs


# The claims


class Case:
    """The runs of one seed at one learning rate, by norm."""

    def __init__(self, runs: dict[str, Run]):
        self.runs = runs

    def has(self, norms: tuple[str, ...], table: str) -> bool:
        if not norms:
            return any(table in run.tables for run in self.runs.values())
        return all(norm in self.runs and table in self.runs[norm].tables for norm in norms)

    def pairs(self, name: str, norm: str, to: str, window: str = "") -> pd.DataFrame:
        """A metric of two norms at the common steps and layers; none if the common steps end before half the window."""
        one, other = self.runs[norm], self.runs[to]
        early = min({"vgg": 1500, "dln": 1000}[one.problem], one.steps)
        first, last = {"early": (0, early), "late": (early + 1, one.steps)}.get(window, (0, one.steps))
        if window == "late" and {"vgg": 1500, "dln": 1000}[one.problem] > one.steps:
            first = {"vgg": 1500, "dln": 1000}[one.problem] + 1
        a, b = one.by_layer(name), other.by_layer(name)
        common = set(one.metric(name)["step"]) & set(other.metric(name)["step"])
        common = {step for step in common if first <= step <= last}
        index = a.index.intersection(b.index)
        both = pd.DataFrame({"a": a.reindex(index), "b": b.reindex(index)}).reset_index()
        enough = common and max(common) >= (first + last) / 2
        return both[both["step"].isin(common)] if enough else both.iloc[:0]

    def ratio(self, name: str, norm: str, to: str, window: str = "") -> float:
        both = self.pairs(name, norm, to, window)
        with np.errstate(all="ignore"):
            return over_run(both["step"], both["a"].to_numpy() / both["b"].to_numpy())

    def share_free(self) -> float:
        every, unsaturated = (self.pairs(name, *PLAIN) for name in ("beta", "beta_unsaturated"))
        known, held = (both[["a", "b"]].notna().all(axis=1) for both in (every, unsaturated))
        return mean_over_run(every["step"], held.astype(float).where(known))

    def curves(self, name: str, norm: str, to: str) -> pd.DataFrame:
        """Two training curves at common steps. From its divergence on, a run is the best constant answer."""
        curves, runs = {}, (self.runs[norm], self.runs[to])
        steps = sorted(set(runs[0].tables["train"]["step"]) | set(runs[1].tables["train"]["step"]))
        for key, run in zip("ab", runs, strict=True):
            curve = run.tables["train"].set_index("step")[name]
            if run.diverged:
                worst = math.inf if name == "loss" else math.nan
                constant = run.baseline.get(name, worst)
                curve = curve[:-1].reindex(steps[: steps.index(curve.index[-1])])
                curve = curve.reindex(steps, fill_value=constant) * (constant if math.isnan(constant) else 1)
            curves[key] = curve.reindex(steps)
        both = pd.DataFrame(curves).dropna()
        both = both[both.index <= runs[0].steps]
        return both if len(both) and both.index[-1] >= runs[0].steps / 2 else both.iloc[:0]

    def gain(self, norm: str, to: str) -> float:
        both = self.curves("accuracy", norm, to)
        return mean_over_run(both.index.to_numpy(), both["a"] - both["b"])

    def loss(self, norm: str, to: str) -> float:
        both = self.curves("loss", norm, to)
        with np.errstate(all="ignore"):
            return float(np.exp(mean_over_run(both.index.to_numpy(), logarithm(both["a"]) - logarithm(both["b"]))))

    @functools.cache  # noqa: B019
    def margin(self, norm: str, ever: bool = False) -> float:
        """How far a network is above the bar of training at the end, or `ever`; NaN without a run, or a known bar."""
        if (run := self.runs.get(norm)) is None:
            return math.nan
        if run.classifies:
            best = run.training["best_test_accuracy"] - run.baseline.get("accuracy", math.nan)
            return (best if ever else self.above(norm)) - 0.1
        last = run.baseline.get("loss", math.nan) if run.diverged else run.training["final_loss"]
        share = (run.training["best_loss"] if ever else last) / run.baseline.get("loss", math.nan)
        return math.log(0.9) - math.log(share) if share > 0 else -math.inf if share == 0 else math.nan

    def above(self, norm: str) -> float:
        run = self.runs[norm]
        chance = run.baseline.get("accuracy", math.nan)
        return 0.0 if run.diverged else run.training["final_test_accuracy"] - chance

    def theory(self, statement: str, affine: str | None = None) -> list[pd.DataFrame]:
        found = []
        for run in self.runs.values():
            rows = run.tables.get("theory")
            if rows is not None and len(rows := rows[rows["statement"] == statement]):
                found.append(rows if affine is None else rows[rows["affine"] == affine])
        return found

    def identities(self, *statements: str) -> float:
        """The least share of cases that verify a statement; unknown if one has no cases, and no other is violated."""
        shares = [least(share(rows["holds"]) for rows in self.theory(name)) for name in statements]
        return least(shares) if least(shares) < 1 or not np.isnan(shares).any() else math.nan

    def forms(self) -> list[float]:
        """v' H v with BatchNorm over the plain network's g' H g, where 4.2's conditions hold: medians, norm by norm."""
        found, keys = [], ["step", "layer", "unit"]
        for run in self.runs.values():
            pair = [Case({run.norm: run}).theory(statement, "identity") for statement in ("4.2", "4.2b")]
            if not all(pair):
                continue
            (ours,), (plain,) = pair
            both = ours.set_index(keys)[["lhs", "condition"]].join(plain.set_index(keys)[["curvature", "grad_norm"]])
            form = both["curvature"] * both["grad_norm"] ** 2
            applies = (both["condition"] == True) & (form > 0)  # noqa: E712 - it may be missing
            found.append(median(both["lhs"][applies] / form[applies]))
        return found


def share(flags: pd.Series) -> float:
    known = flags.dropna()
    return float(np.mean([bool(flag) for flag in known])) if len(known) else math.nan


def least(values: Any) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def largest(values: Any) -> float:
    return -least(-value for value in values)


class Part(NamedTuple):
    """A part of a claim: its words, its rule ("" if it is reported), what it needs, and its value for a case."""

    text: str
    rule: str
    norms: tuple[str, ...]
    table: str
    value: Any
    only: str = ""
    lrs: tuple[float, ...] = ()
    exists: bool = False


def ratio(words: str, metric: str, norm: str, to: str, rule: str = "", window: str = "", only: str = "") -> Part:
    return Part(f"{words}, {norm} / {to}", rule, (norm, to), METRICS[metric][0],
                lambda case: case.ratio(metric, norm, to, window), only)  # fmt: skip


def gain(norm: str, to: str, rule: str) -> Part:
    return Part(f"training accuracy averaged over the run, {norm} less {to}", rule, (norm, to), "train",
                lambda case: case.gain(norm, to), "accuracy")  # fmt: skip


def loss(norm: str, to: str, rule: str) -> Part:
    return Part(f"training loss, geometric mean over the run, {norm} / {to}", rule, (norm, to), "train",
                lambda case: case.loss(norm, to), "loss")  # fmt: skip


def moves(norm: str, to: str) -> list[Part]:
    names = (("mean", "mean_change"), ("variance", "var_change"))
    return [ratio(f"change of the layer inputs' {name} between measured steps", metric, norm, to, "> 1.05",
                  only="accuracy") for name, metric in names]  # fmt: skip


def beside(norm: str) -> list[Part]:
    words = "change of the layer inputs' mean between measured steps"

    def frozen(case: Case) -> float:
        run = case.runs[norm]
        remaining = (run.by_layer("floor_mean_change") / run.by_layer("mean_change")).reset_index()
        return over_run(remaining["step"], remaining["value"])

    return [ratio(f"{words}, on the probe batch", "probe_mean_change", norm, "none", only="accuracy"),
            Part(f"{words}: share that remains with frozen weights, {norm}", "", (norm,), "activations", frozen,
                 "accuracy")]  # fmt: skip


def not_gaussian(norm: str, rule: str) -> Part:
    return Part(f"share of units and steps that are not Gaussian, {norm}", rule, (norm,), "activations",
                lambda case: case.runs[norm].metrics["non_gaussian"], "accuracy")  # fmt: skip


def identity(*statements: str) -> Part:
    return Part(f"share of cases where both sides agree: {', '.join(statements)}", "identity", (), "theory",
                lambda case: case.identities(*statements))  # fmt: skip


def theory(text: str, value: Any, rule: str = "") -> Part:
    return Part(text, rule, (), "theory", value)


PLAIN, LP = ("none", "batch"), ("l1", "l2", "linf")
_CHANGE = "largest change of the gradient on the line"
_FREE = "effective beta where neither probe is saturated"
CLAIMS: dict[int, tuple[str, list[Part]]] = {
    1: ("BatchNorm trains faster than none at each learning rate",
        [gain("batch", "none", "> 0.01"), loss("batch", "none", "< 0.95")]),
    2: ("BatchNorm trains at a learning rate where none does not", [
        Part("the smaller of two margins: batch's last test accuracy above the bar, and none's below it (the bar is "
             "0.1 above the best constant answer)", "> 0", PLAIN, "train",
             lambda case: np.minimum(case.margin("batch"), -case.margin("none")), "accuracy", exists=True),
        Part("the smaller of two margins of the logarithm: batch's last loss below the bar, and none's above it (the "
             "bar is 0.9 of the best constant answer's loss)", "> 0", PLAIN, "train",
             lambda case: np.minimum(case.margin("batch"), -case.margin("none")), "loss", exists=True)]),
    3: ("Noisy BatchNorm trains about as well as BatchNorm and much better than none, though its layer inputs are the "
        "least stable; the same noise keeps none from training", [
            gain("noisy-batch", "batch", "> -0.03"), gain("noisy-batch", "none", "> 0.01"),
            gain("batch", "none", "> 0.03"), *moves("noisy-batch", "none"), *moves("noisy-batch", "batch"),
            Part("last test accuracy above the best constant answer's, noisy-none where none trains", "< 0.1",
                 ("none", "noisy-none"), "train",
                 lambda case: case.above("noisy-none") if case.margin("none") > 0 else math.nan, "accuracy"),
            *beside("noisy-batch")]),
    4: ("Internal covariate shift is similar or larger with BatchNorm", [
        ratio("distance of the layers' gradients", "ics", "batch", "none", "> 0.8"),
        Part("cosine of the layers' gradients, batch less none", "< 0.1", PLAIN, "ics",
             lambda case: over_run((both := case.pairs("cosine", "batch", "none"))["step"], both["a"] - both["b"])),
        Part("cosine of the layers' gradients, averaged over the run, none", "> 0.99", ("none",), "ics",
             lambda case: mean_over_run((rows := case.runs["none"].metric("cosine"))["step"], rows["value"]),
             lrs=(1e-7,)),
        Part("size of the cosine of the layers' gradients, batch", "< 0.3", ("batch",), "ics",
             lambda case: case.runs["batch"].metrics["cosine_size"], lrs=(1e-7,)),
        ratio("the distance relative to the gradient", "relative_ics", "batch", "none")]),
    5: ("The loss varies less along the gradient with BatchNorm, most of all early", [
        ratio("range of the loss on the line", "loss_range", "batch", "none", "< 0.95"),
        ratio("range of the loss on the line early", "loss_range", "batch", "none", "< 0.95", "early"),
        Part("that ratio early, over that ratio later", "< 0.95", PLAIN, "smoothness",
             lambda case: case.ratio("loss_range", "batch", "none", "early")
             / case.ratio("loss_range", "batch", "none", "late"))]),
    6: ("Gradients are more predictive with BatchNorm, early by about two orders of magnitude", [
        ratio(_CHANGE, "predictiveness", "batch", "none", "< 0.95"),
        ratio(f"{_CHANGE} early", "predictiveness", "batch", "none", "< 0.95", "early"),
        ratio("largest change early, by two orders of magnitude", "predictiveness", "batch", "none", "< 0.0316",
              "early"),
        ratio("the change relative to the gradient", "relative_predictiveness", "batch", "none")]),
    7: ("Effective beta-smoothness is lower with BatchNorm", [
        ratio(_FREE, "beta_unsaturated", "batch", "none", "< 0.95"),
        Part("share of the common steps where neither probe is saturated", "", PLAIN, "smoothness",
             lambda case: case.share_free()),
        ratio("effective beta at all steps", "beta", "batch", "none"),
        ratio("effective beta times the squared norm of the weights", "scaled_beta", "batch", "none")]),
    8: ("l_p norms train about as well as BatchNorm and smooth as much; on the linear network l1 trains better", [
        gain("batch", "none", "> 0.03"), loss("batch", "none", "< 0.556"),
        *(gain(norm, "batch", "> -0.03") for norm in LP), *(loss(norm, "batch", "< 1.8") for norm in LP),
        loss("l1", "batch", "< 0.95"), ratio(_CHANGE, "predictiveness", "batch", "none", "< 0.95"),
        *(ratio(_CHANGE, "predictiveness", norm, "batch", "< 1.25") for norm in LP),
        *(ratio(_FREE, "beta_unsaturated", norm, "batch") for norm in LP)]),
    9: ("l_p norms leave non-Gaussian layer inputs, which move more than the plain network's", [
        *(not_gaussian(norm, "> 0.5") for norm in LP),
        *itertools.chain.from_iterable(moves(norm, "none") for norm in LP), not_gaussian("batch", ""),
        *itertools.chain.from_iterable(map(beside, LP))]),
    10: ("BatchNorm's gradient is the plain one, rescaled and reduced (4.1)", [
        identity("fact C.1", "fact C.2", "4.1"),
        theory("squared length of BatchNorm's gradient (gamma = 1) over that of the plain network's at the same layer "
               "output: median over units, of the norm with the largest",
               lambda case: largest(median(rows["lhs"] / rows["grad_norm"] ** 2) for rows in case.theory("4.1 at y")),
               "< 0.95"),
        theory("share of units where 4.1 holds with the plain network's gradient at the same layer output, of the norm "
               "with the least", lambda case: least(share(rows["holds"]) for rows in case.theory("4.1 at y"))),
        theory("reduction beside the factor gamma^2 / sigma^2: median over units, of the norm with the least",
               lambda case: least(median(rows["mean_fraction"] + rows["output_fraction"])
                                  for rows in case.theory("4.1", "identity")))]),
    11: ("The gradient's own quadratic form is reduced: more predictive gradients (4.2)", [
        identity("4.2"),
        theory("share of cases where the second inequality of 4.2 holds, of those where its condition is met, of the "
               "norm with the least", lambda case: least(
                   share(rows["holds"][rows["condition"] == True]) for rows in case.theory("4.2b")),  # noqa: E712
               "every case"),
        theory("quadratic form with BatchNorm over the plain network's, where 4.2's conditions hold: median over "
               "units, of the norm with the largest", lambda case: largest(case.forms()), "< 0.95"),
        theory("share of units where 4.2's conditions hold, of the norm with the least",
               lambda case: least(share(rows["condition"]) for rows in case.theory("4.2")))]),
    12: ("Minima are preserved: a gamma and beta give identical activations (4.3)", [identity("4.3")]),
    13: ("The worst-case gradient of the weights is reduced (4.4)", [identity("4.4")]),
    14: ("The nearest optimum is closer to the initial weights (4.5)", [
        identity("4.5"),
        theory("share of units where its condition holds, of the norm with the least",
               lambda case: least(share(rows["condition"]) for rows in case.theory("4.5"))),
        theory("reduction of the distance where it does: median over units, of the norm with the least",
               lambda case: least(median(rows["reduction"][rows["condition"] == True])  # noqa: E712
                                  for rows in case.theory("4.5")))]),
    15: ("Random directions behave like the gradient's: the loss and its gradient vary less with BatchNorm", [
        ratio("range of the loss along a random direction", "random_loss_range", "batch", "none", "< 0.95"),
        ratio("largest change of the gradient along a random direction", "random_predictiveness", "batch", "none",
              "< 0.95")]),
}  # fmt: skip
#: A rule's bound where it is shown rounded.
EXACT = {0.0316: 10**-1.5, 0.556: 1 / 1.8}
ORDER = ("identity violated", "not reproduced", "not measured", "inconclusive", "reproduced", "identity verified",
         "not applicable")  # fmt: skip


def bound(rule: str) -> tuple[str, float]:
    side, value = rule.split()
    return side, EXACT.get(float(value), float(value))


def tested(part: Part, values: np.ndarray, of_paper: float) -> dict[str, Any]:
    """The tests of a part's values. It does not decide where the paper's own figure breaks the rule."""
    row: dict[str, Any] = {"values": values, "p": math.nan, "against": math.nan, "decides": False}
    if not part.rule:
        return row | {"verdict": "reported"}
    if part.rule in ("identity", "every case"):
        known = values[~np.isnan(values)]
        refuted, held = {"identity": ("identity violated", "identity verified"), "every case": (
            "not reproduced", "reproduced" if len(known) >= 5 else "inconclusive")}[part.rule]  # fmt: skip
        verdict = refuted if (known < 1).any() else held if len(known) else "not applicable"
        return row | {"verdict": verdict, "decides": True}
    side, limit = bound(part.rule)
    inside, outside = ((values < limit).sum(), (values > limit).sum())[:: 1 if side == "<" else -1]
    row |= {"p": tail(len(values), int(inside)), "against": tail(len(values), int(outside))}
    verdict = "reproduced" if row["p"] <= LEVEL else "inconclusive"
    return row | {"verdict": verdict, "decides": obeyed(part, of_paper)}


def obeyed(part: Part, of_paper: float) -> bool:
    """Whether the paper's figure obeys a rule, or does not show the statistic: only then a part decides."""
    if not part.rule or part.rule in ("identity", "every case"):
        return bool(part.rule)
    side, limit = bound(part.rule)
    return math.isnan(of_paper) or (of_paper < limit if side == "<" else of_paper > limit)


def judged(number: int, study: Study) -> tuple[str, float, list[dict[str, Any]]]:
    """The verdict of a claim, its power, and its rows: one for each part and learning rate."""
    parts = [part for part in CLAIMS[number][1] if not part.only or (part.only == "accuracy") == study.classifies]
    needs = {norm for part in CLAIMS[number][1] if part.rule for norm in part.norms}
    rows: list[dict[str, Any]] = []
    for part in parts:
        found = [row for lr, cases in study.cases.items() if (row := _row(number, part, lr, cases, needs))]
        if part.exists:
            _exists([row for row in found if len(row["values"])], study.problem)
        nowhere = not found and not part.lrs
        if nowhere or (part.exists and not any(row["decides"] for row in found)):
            found.append(not_measured(part))
        rows += found
    rows += _lacking([part for part in parts if part.rule and not part.exists], rows, study)
    counted = [row for row in rows if row["decides"] and not math.isnan(row["against"])]
    for row, p in zip(counted, holm([row["against"] for row in counted]), strict=True):
        row["against"] = p
    for row in rows:  # a part that does not decide is judged alone
        if row["against"] <= LEVEL and row["verdict"] == "inconclusive" and (row["decides"] or not row["part"].exists):
            row["verdict"] = "not reproduced"
    verdicts = {row["verdict"] for row in rows if row["decides"] or row["verdict"] == "not applicable"}
    if not rows:  # a claim about other problems
        verdicts.add("not applicable")
    strength = math.prod(power(len(row["values"])) for row in counted) if counted else math.nan
    return next((verdict for verdict in ORDER if verdict in verdicts), "inconclusive"), strength, rows


def _lacking(parts: list[Part], rows: list[dict[str, Any]], study: Study) -> list[dict[str, Any]]:
    """A claim is not put together of several learning rates: what the one with the most parts lacks is not measured."""
    there = {(row["part"], row.get("lr")) for row in rows if row["verdict"] != "not applicable"}
    measured = [part for part in parts if any((part, lr) in there for lr in study.cases)]
    lacks = [[part for part in measured if at(part, study.problem, lr) and (part, lr) not in there]
             for lr in study.cases]  # fmt: skip
    return [not_measured(part) for part in min(lacks, key=len)]


def at(part: Part, problem: str, lr: float) -> bool:
    """Whether a part is about a learning rate."""
    return not part.lrs or (problem == "dln" and bool(np.isclose(part.lrs, lr, rtol=1e-6, atol=0).any()))


def not_measured(part: Part) -> dict[str, Any]:
    return {"part": part, "verdict": "not measured", "decides": bool(part.rule), "values": np.array([]), "p": math.nan,
            "against": math.nan}  # fmt: skip


def _row(number: int, part: Part, lr: float, cases: list[Case], needs: set[str]) -> dict[str, Any] | None:
    """The row of a part at a learning rate; none where it does not apply, or its norms have not run."""
    problem = next(iter(cases[0].runs.values())).problem
    if not at(part, problem, lr) or not any(all(norm in case.runs for norm in part.norms) for case in cases):
        return None
    theirs = Case(papers(problem, lr))
    of_paper = float(part.value(theirs)) if part.norms and theirs.has(part.norms, part.table) else math.nan
    about = not_measured(part) | {"lr": lr, "paper": of_paper}
    if not applies(number, cases):
        return about | {"verdict": "not applicable", "decides": False}
    if not (measured := [case for case in cases if case.has(part.norms, part.table)]):
        everything = any(all(norm in case.runs for norm in needs) for case in cases)
        return about | {"decides": obeyed(part, of_paper)} if part.norms and everything else None
    return about | tested(part, np.array([part.value(case) for case in measured], float), of_paper)


def applies(number: int, cases: list[Case]) -> bool:
    """Whether a claim is about a learning rate, as far as we know.

    One of the plain network and BatchNorm must train there, in some seed; where landscapes are compared, both must
    have learnt.
    """
    if number == 2 or 10 <= number <= 14:
        return True
    together = number in (4, 5, 6, 7, 15)
    able = [any(not case.margin(norm, together) <= 0 for case in cases) for norm in PLAIN]
    return all(able) if together else any(able)


def _exists(rows: list[dict[str, Any]], problem: str) -> None:
    """A claim that something holds at some learning rate: p-values are for having tried several.

    Without one where it holds, only the learning rate of the paper's figure decides.
    """
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p": p, "verdict": "reproduced" if p <= LEVEL else "inconclusive"}
    found = any(row["verdict"] == "reproduced" for row in rows)
    for row in rows:
        row["decides"] = row["verdict"] == "reproduced" if found else problem == "vgg" and row["lr"] == 0.5


# The page's folder


class Study:
    def __init__(self, folder: Path, name: str, about: dict[str, Any]):
        self.name, self.about, self.problem = name, about, about["settings"]["problem"]
        self.steps = about["settings"]["steps"]
        tables: dict[str, dict[str, pd.DataFrame]] = {}
        for path in sorted((folder / "tables").glob(f"{name}.*.parquet")):
            kind = path.stem.removeprefix(f"{name}.")
            if kind not in ("summary", "claims"):
                rows = bns.read_table(path)
                rows.attrs = {}
                for run, of_run in rows.groupby("run"):
                    tables.setdefault(str(run), {})[kind] = of_run.reset_index(drop=True)
        assert set(tables) == set(about["runs"]), name
        self.runs = []
        for run, of_run in tables.items():
            said, train = about["runs"][run], of_run["train"]
            keys = train[["norm", "lr", "seed"]].drop_duplicates().to_dict("records")
            assert keys == [{key: said[key] for key in ("norm", "lr", "seed")}], run
            assert said["diverged_at"] is not None or train["step"].max() == self.steps, run
            self.runs.append(Run(said["norm"], said["lr"], said["seed"], self, said, of_run))
        self.runs.sort(key=lambda run: (run.lr, run.seed, NORMS.index(run.norm)))
        self.cases: dict[float, list[Case]] = {}
        for lr, of_lr in itertools.groupby(self.runs, key=lambda run: run.lr):
            self.cases[lr] = [Case({run.norm: run for run in runs})
                              for _, runs in itertools.groupby(of_lr, key=lambda run: run.seed)]  # fmt: skip

    @functools.cached_property
    def classifies(self) -> bool:
        return any(run.classifies for run in self.runs)

    def medians(self, norm: str, lr: float, metric: str) -> np.ndarray:
        """A metric of each seed, as far as they have it. A run that diverged has the worst value."""
        values = []
        for case in self.cases[lr]:
            if norm in case.runs:
                values.append(self._metric(case, norm, metric))
        return np.array([value for value in values if not math.isnan(value)])

    def _metric(self, case: Case, norm: str, metric: str) -> float:
        run, plain = case.runs[norm], case.runs.get("none")
        if metric == "final_loss" and run.diverged:
            return math.inf
        if metric == "final_test_accuracy" and run.diverged and self.classifies:
            return run.baseline.get("accuracy", 0.0)
        if metric == "steps_to_accuracy":
            if plain is None or plain.diverged or math.isnan(target := plain.training["final_test_accuracy"]):
                return math.nan
            rows = run.tables["train"]
            reached = rows["step"][rows["test_accuracy"] >= target]
            return float(reached.iloc[0]) if len(reached) else math.inf
        return float(run.metrics.get(metric, math.nan))


class Page:
    """A page and the tables beside it. `audit` compares every table of the page with what is computed here."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text = (folder / "README.md").read_text(encoding="utf-8")
        self.facts = json.loads((folder / "reproduction.json").read_text())
        self.studies = {name: Study(folder, name, about) for name, about in self.facts["studies"].items()}
        self.verdicts = {name: {number: judged(number, self.studies[name]) for number in CLAIMS}
                         for name in JUDGED if name in self.studies}  # fmt: skip

    @functools.cache  # noqa: B019
    def table(self, name: str) -> pd.DataFrame:
        rows = bns.read_table(self.folder / "tables" / f"{name}.parquet")
        rows.attrs["kind"] = rows.attrs["bnsmooth"]["kind"]
        return rows

    def audit(self, text: str | None = None) -> list[str]:
        """What is wrong with the page, a line each. `text` takes its place."""
        self.wrong: list[str] = []
        self.parts_seen: list[tuple[int, str]] = []
        seen = []
        for section, body in sections(self.text if text is None else text).items():
            self.section, self.body = section, body
            for headings, rows in markdown_tables(body):
                self.where = f"{section}: | {' | '.join(headings)} |"
                kind = next(
                    (name for name, pattern in KNOWN.items() if re.fullmatch(pattern, "|".join(headings))), None
                )
                if kind is None:
                    self.wrong.append(f"{self.where}: a table that no test knows")
                    continue
                seen.append(kind)
                getattr(self, f"_{kind}")(headings, rows)
            self._captions()
            self._prose()
        for kind in ("studies", "claims", "medians", "distances", "parts"):
            if kind not in seen:
                self.wrong.append(f"no table of {kind}")
        expected = {(number, name) for name, claims in self.verdicts.items() for number, (*_, rows) in claims.items()
                    if any(len(row["values"]) for row in rows)}  # fmt: skip
        if sorted(expected) != sorted(self.parts_seen):
            self.wrong.append(f"parts: {sorted(expected ^ set(self.parts_seen))} are missing or there twice")
        return self.wrong

    def _compare(self, rows: list[list[str]], expected: list[list[str]]) -> None:
        if len(rows) != len(expected):
            self.wrong.append(f"{self.where}: {len(rows)} rows, not {len(expected)}")
        for row, wanted in zip(rows, expected, strict=False):
            if len(row) != len(wanted):
                self.wrong.append(f"{self.where}: {row}: {len(row)} cells, not {len(wanted)}")
            for text, pattern in zip(row, wanted, strict=False):
                if not re.fullmatch(pattern, text):
                    self.wrong.append(f"{self.where}: {row[0]}: {text!r} is not {pattern!r}")

    def _studies(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name, study in self.studies.items():
            planned = len(set(itertools.chain.from_iterable(map(planned_runs, study.about["commands"]))))
            runs = f"{len(study.runs)}" + (f" of {planned}" if len(study.runs) < planned else "")
            seconds = study.about["seconds"]
            time = f"{seconds} s" if seconds < 100 else f"{seconds / 60:.0f} min"
            time = f"{seconds / 3600:.1f} h" if seconds >= 6000 else time if seconds else "–"
            expected.append([f"`{name}`", re.escape(study.about["purpose"]), runs, f"{study.steps:,}", time])
        self._compare(rows, expected)

    def _claims(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for number, (title, _) in CLAIMS.items():
            said = re.escape(f"{number}. {title}")
            for name in self.verdicts:
                verdict, strength, parts = self.verdicts[name][number]
                if verdict in ("not measured", "not applicable"):
                    continue
                row = next((row for row in parts if row["verdict"] == verdict and row["decides"]), None) or parts[0]
                part, values = row["part"], row["values"]
                undefined = int(np.isnan(values).sum())
                here = f"{spread(median(values), *interval(values))}, {len(values)} seed{'s' * (len(values) != 1)}"
                likely = "" if math.isnan(strength) else f"; power {cell(strength)}"
                expected.append([said, f"`{name}`", re.escape(part.text), re.escape(part.rule or "reported"),
                                 cell(row["paper"]), here + f", {undefined} undefined" * (undefined > 0),
                                 rf"\*\*{verdict}\*\*{likely}"])  # fmt: skip
                said = ""
            if said:
                expected.append([said, *"–––––", "not measured"])
        self._compare(rows, expected)

    def _parts(self, headings: list[str], rows: list[list[str]]) -> None:
        there = dict.fromkeys(tuple(row[0].split(", ")) for row in rows)
        expected = []
        for number, name in there:
            study = name.strip("`")
            if study not in self.verdicts or int(number) not in CLAIMS:
                self.wrong.append(f"{self.where}: {number}, {name}: an unknown claim or study")
                continue
            self.parts_seen.append((int(number), study))
            for row in self.verdicts[study][int(number)][2]:
                if not len(row["values"]):
                    continue
                part, values = row["part"], row["values"]
                aside = not row["decides"] and row["verdict"] not in ("reported", "not applicable")
                expected.append([f"{number}, {name}", re.escape(part.text), cell(row["lr"]), self._seeds_of(values),
                                 spread(median(values), *interval(values)), re.escape(part.rule or "reported"),
                                 cell(row["p"]), cell(row["against"]),
                                 re.escape(f"({row['verdict']})" if aside else row["verdict"]),
                                 cell(row["paper"])])  # fmt: skip
        self._compare(rows, expected)

    @staticmethod
    def _seeds_of(values: np.ndarray) -> str:
        undefined = int(np.isnan(values).sum())
        return str(len(values)) + (rf", {undefined} undefined" if undefined else "")

    def _accuracies(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name, stated in STATED.items():
            if name not in self.studies:
                continue
            study = self.studies[name]
            for lr, norm in self._groups(study, tuple(stated)):
                values = [study.medians(norm, lr, metric) for metric in ("final_test_accuracy", "best_test_accuracy")]
                cells = [spread(median(of), *interval(of), text=percent) for of in values]
                expected.append([f"`{name}`", cell(lr), self._norm(study, norm, lr), str(max(map(len, values))),
                                 f"{stated[norm]}%" if lr == 0.1 else "–", *cells])  # fmt: skip
        self._compare(rows, expected)

    @staticmethod
    def _groups(study: Study, norms: tuple[str, ...]) -> list[tuple[float, str]]:
        """The learning rates at which all of these norms have run, in ascending order, and the norms."""
        ran = {lr: {norm for case in cases for norm in case.runs if norm in norms} for lr, cases in study.cases.items()}
        every = set().union(*ran.values())
        lrs = sorted(lr for lr, of_lr in ran.items() if of_lr == every)
        return [(lr, norm) for lr in lrs for norm in NORMS if norm in every]

    @staticmethod
    def _norm(study: Study, norm: str, lr: float) -> str:
        diverged = sum(norm in case.runs and case.runs[norm].diverged for case in study.cases[lr])
        return f"`{norm}`" + (rf" \({diverged} diverged\)" if diverged else "")

    def _medians(self, headings: list[str], rows: list[list[str]]) -> None:
        name, metrics = headings[0].strip("`"), [HEADINGS[heading] for heading in headings[3:]]
        if self.section.startswith("Section 3.2"):
            metrics = [f"random_{metric}" for metric in metrics]
        if name not in self.studies:
            self.wrong.append(f"{self.where}: an unknown study")
            return
        study, expected = self.studies[name], []
        shown = tuple(re.findall("`(.+?)`", " ".join(row[0] for row in rows)))
        for lr, norm in self._groups(study, shown):
            values = [study.medians(norm, lr, metric) for metric in metrics]
            texts = [TEXTS.get(metric, rounded) for metric in metrics]
            most = max(map(len, values))
            cells = [spread(median(of), *interval(of), text=text) for of, text in zip(values, texts, strict=True)]
            fewer = ["" if len(of) in (0, most) else rf" \({len(of)} seeds?\)" for of in values]
            cells = [a + b for a, b in zip(cells, fewer, strict=True)]
            expected.append([self._norm(study, norm, lr), cell(lr), str(most), *cells])
        self._compare(rows, expected)

    def _commands(self) -> list[tuple[list[str], dict[str, str]]]:
        """The tables and the options of the pictures of a section."""
        found = []
        for line in re.findall(r"`bnsmooth plot (.+?)`", self.body):
            words = shlex.split(line)
            names = [Path(word).stem for word in words if word.endswith(".parquet")]
            found.append((names, dict(zip(words[len(names) :: 2], words[len(names) + 1 :: 2], strict=True))))
        return found

    def _distances(self, headings: list[str], rows: list[list[str]]) -> None:
        norms = [heading.strip("`") for heading in headings[4:-1]]
        expected: dict[tuple[str, str], dict[str, Any]] = {}
        for names, options in self._commands():
            if "--paper" not in options:
                continue
            wanted = options["--paper"]
            figures = [name for name in PAPER if name == wanted] or [
                name for name in PAPER if re.match(rf"{wanted}(?!\d)", name)]  # fmt: skip
            for table, name in itertools.product(map(self.table, names), figures):
                for axis in PAPER[name]:
                    if axis.table == table.attrs["kind"]:
                        for label, lr, norm, found in apart(name, axis, table):
                            expected.setdefault((label, lr), {"unit": axis.unit})[norm] = found
        if sorted(norms, key=NORMS.index) != norms or set(norms) != {
            norm for row in expected.values() for norm in row if norm != "unit"
        }:
            self.wrong.append(f"{self.where}: other norms")
        if sorted(expected) != sorted((row[0], row[1]) for row in rows):
            self.wrong.append(f"{self.where}: other rows: {set(expected) ^ {(row[0], row[1]) for row in rows}}")
        for row in rows:
            if wanted_row := expected.get((row[0], row[1])):
                found = {norm: wanted_row.get(norm, (math.nan, 0, 0)) for norm in norms}
                counts = [{values[i] for norm, values in found.items() if norm in wanted_row} for i in (1, 2)]
                seeds, steps = (" to ".join(map(str, sorted({min(of), max(of)}))) for of in counts)
                cells = [cell(found[norm][0]) for norm in norms]
                label = [re.escape(row[0]), cell(float(row[1])), seeds, steps]
                self._compare([row], [[*label, *cells, wanted_row["unit"]]])

    def _saturation(self, headings: list[str], rows: list[list[str]]) -> None:
        shortest = [float(heading.rsplit(" ", 1)[1]) for heading in headings if heading.startswith("shortest")]
        expected = []
        for name, beside in (("saturation-vgg", "figure-4c"), ("saturation-dln", "figure-9c")):
            if (self.folder / f"tables/{name}.parquet").is_file():
                expected += saturation(self.table(name), self.table(beside), shortest)
        self._compare(rows, expected)

    def _sigma(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name in ("figure-8", "figure-1c"):
            if not (self.folder / f"tables/{name}.parquet").is_file():
                continue
            table = self.table(name)
            for norm in (norm for norm in NORMS if norm in set(table["norm"])):
                of_norm = table[table["norm"] == norm]
                ends = [int(of_norm["step"].min()), int(of_norm["step"].max())]
                middles = [median(of_norm["sigma"][of_norm["step"] == step] ** 2) for step in ends]
                units = len(set(zip(of_norm["run"], of_norm["layer"], of_norm["unit"], strict=True)))
                expected.append([f"`{norm}`", name.replace("-", " "), str(of_norm["run"].nunique()), str(units),
                                 *(rf"{cell(middle)} \(step {step:,}\)"
                                   for middle, step in zip(middles, ends, strict=True))])  # fmt: skip
        self._compare(rows, expected)

    def _theory(self, headings: list[str], rows: list[list[str]]) -> None:
        table = self.table("dln.theory")
        table = table[table["lhs"].notna()]
        expected = []
        for statement in sorted(table["statement"].unique()):
            cases = table[table["statement"] == statement]
            held = [bool(flag) for flag in cases["holds"].dropna()]
            expected.append([re.escape(statement), str(cases["run"].nunique()), f"{len(held):,}",
                             f"{held.count(False):,}", cell(np.nanmax(abs(cases["residual"]))),
                             cell(share(cases["condition"])),
                             cell(median(cases["mean_fraction"] + cases["output_fraction"]))])  # fmt: skip
        self._compare(rows, expected)

    def _floors(self, headings: list[str], rows: list[list[str]]) -> None:
        study = self.studies["dln"]
        ranks = [int(rank) for rank in re.findall(r"best of rank (\d+)", " ".join(headings))]
        norms = [heading.strip("`") for heading in headings[1 + len(ranks) :]]
        if set(norms) != {run.norm for run in study.runs} or len(study.cases) > 1:
            self.wrong.append(f"{self.where}: other norms or learning rates")
        expected = []
        for seed in sorted({run.seed for run in study.runs}):
            ends = {run.norm: run.training["final_loss"] for run in study.runs if run.seed == seed and not run.diverged}
            found = least_losses(study.about["settings"], seed)
            text = "{:,.0f}".format
            expected.append([str(seed), *(cell(found[rank - 1], text) for rank in ranks),
                             *(cell(ends[norm], text) if norm in ends else "–" for norm in norms)])  # fmt: skip
        self._compare(rows, expected)

    def _captions(self) -> None:
        """The learning rates, seeds, layers and steps in the line under each picture."""
        for caption, line in re.findall(r"^\*(`.+?)\.\* `(bnsmooth plot .+?)`$", self.body, re.MULTILINE):
            name = Path(shlex.split(line)[2]).stem
            table, study = self.table(name), caption.split("`")[1]
            seeds, lrs = sorted(set(table["seed"])), sorted(set(table["lr"]))
            parts = [f"`{study}`", f"lr {', '.join(rounded(lr) for lr in lrs)}",
                     f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"]  # fmt: skip
            kind, steps = table.attrs["kind"], table["step"].nunique()
            if kind == "theory":
                parts.append(f"layers {', '.join(dict.fromkeys(table['layer_name']))}")
            if kind != "train":
                measured = measured_steps(self.studies[study].about["commands"], kind, self.studies[study].steps)
                parts.append(
                    f"{steps} of the {measured} measured steps"
                    if steps < measured
                    else f"{steps} step{'s' * (steps > 1)}"
                )
            if caption != ", ".join(parts):
                self.wrong.append(f"{self.section}: {caption!r} is not {', '.join(parts)!r}")

    def _prose(self) -> None:
        """Every number outside of tables, pictures and code is a reference, or is computed here."""
        lines = [line for line in self.body.split("\n") if not re.match(r"\||!\[|\*`|    ", line)]
        text = " ".join(line for line in lines[self.section != "" :] if not line.startswith("#"))
        phrases = [*STATEMENTS.get(self.section, lambda: [])(), *self._facts()]
        if self.section.startswith("Figure 8"):
            phrases.append(f"an activation in layers {listed(self.table('figure-8')['layer'])} of")
        if self.section.startswith("Figure 14"):
            phrases.append(f"an activation in layer {listed(self.table('figure-14')['layer'])} of")
        if self.section.startswith("Section 4"):
            cases = self.table("dln.theory")
            layers, steps = (cases[key].nunique() for key in ("layer", "step"))
            phrases.append(f"Cases are the units of {layers} layers at {steps} measured steps of the runs")
        for phrase in phrases:
            if phrase not in text:
                self.wrong.append(f"{self.section}: it does not say {phrase!r}")
            text = text.replace(phrase, "")
        for number in re.findall(r"\S*\d\S*", REFERENCES.sub("", re.sub("`.*?`", "", text))):
            self.wrong.append(f"{self.section}: a number that no test knows: {number}")

    def _facts(self) -> list[str]:
        """Sentences about the machine and the studies' settings, from reproduction.json."""
        if self.section == "":
            kept, cover = 1 - 2 * tail(5, 5), 1 - 2 * tail(6, 6)
            assert cover >= 0.95 > kept
            facts = self.facts
            shorter = [f"no run longer than {facts['steps']} steps"] if facts["steps"] else []
            return [*shorter, facts["machine"], facts["data"] or "the built-in images",
                    f"{facts['versions']}; {facts['jobs']} worker processes",
                    f"the median with a probability of {kept:.1%}; from six seeds on it is at least 95%."]  # fmt: skip
        if self.section == "The claims":
            described = []
            for name, claims in self.verdicts.items():
                seeds = max(len(row["values"]) for *_, parts in claims.values() for row in parts)
                described.append(f"`{name}` ({self.studies[name].steps:,} steps, {seeds} seed{'s' * (seeds != 1)})")
            return [f"The studies: {', '.join(described)}."]
        if self.section == "The accuracies":
            return [f"the data are {self.facts['data'] or 'the built-in images'}"] if self.facts["note"] else []
        if self.section != "The studies":
            return []
        lines = [f"    {line}" for study in self.studies.values() for line in study.about["commands"]]
        if re.findall("^    .+", self.body, re.MULTILINE) != lines:
            self.wrong.append("The studies: other commands than in reproduction.json")
        said = []
        for name, study in self.studies.items():
            values = {key: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
                      for key, value in study.about["settings"].items()}  # fmt: skip
            said.append(
                f"**{name}**: {', '.join(f'{key} {value}'.replace('_', ' ') for key, value in values.items())}."
            )
        return said


def listed(numbers: Any) -> str:
    *first, last = map(str, sorted(set(numbers)))
    return f"{', '.join(first)} and {last}" if first else last


# What the page's prose says of the paper's figures


def last_of(name: str, value: str, lr: float) -> pd.Series:
    rows = figure(name)
    rows = rows[rows["lr"] == lr].sort_values("step")
    return rows.groupby("norm")[value].last()


def of_figure_1() -> list[str]:
    usual, high = last_of("1b", "test_accuracy", 0.1), last_of("1b", "test_accuracy", 0.5)
    stuck = figure("1b").query("norm == 'none' and lr == 0.5 and step > 0")["test_accuracy"]
    assert stuck.nunique() == 1
    stated = STATED["vgg"]
    return [f"the test accuracy is {stated['batch']}% with it and {stated['none']}% without",
            f"{percent(usual['batch'])} and {percent(usual['none'])} at learning rate 0.1; at 0.5, "
            f"{percent(high['batch'])} with BatchNorm, and without it {percent(stuck.iloc[0])} at every evaluation "
            "after step 0."]  # fmt: skip


def of_figure_3() -> list[str]:
    cosines = figure("3b-ics").groupby(["lr", "norm", "layer"])["cosine"].agg(["median", "min", "max"])
    slow, usual = cosines.loc[1e-7], cosines.loc[1e-6]
    assert slow.loc["none", "min"].min() > 0.99
    assert slow.loc["batch", "min"].max() < -0.9
    assert slow.loc["batch", "max"].min() > 0.9
    near = usual["median"].groupby("layer").agg(["min", "max"])
    assert abs(near.loc[9] - 0.9).max() < 0.1
    assert abs(near.loc[17] + 0.9).max() < 0.1
    return ["at learning rate 1e-07 the plain network's cosine is 1 for the whole run, and BatchNorm's scatters "
            "between -1 and 1; at 1e-06 both networks' median cosines are near 0.9 in layer 9 and near -0.9 in layer "
            "17.",
            f"It shows VGG's layers {listed(figure('3a-ics')['layer'])}."]  # fmt: skip


def of_figure_3_slow() -> list[str]:
    assert set(figure("3b-ics")["lr"]) == {1e-6, 1e-7}
    assert all(set(figure(name)["lr"]) == {1e-6} for name in ("9a", "9b", "9c", "13b"))
    return ["shows this learning rate beside 1e-06. Figures 9 and 13 are at 1e-06 only"]


def of_figure_4() -> list[str]:
    loss, change = (figure(name).set_index(["step", "norm"]) for name in ("4a", "4b"))
    wide = (loss["loss_max"] - loss["loss_min"]).unstack()
    more = wide["none"] > wide["batch"]
    first = int(more.idxmax())
    assert more.loc[first:].mean() > 0.7
    assert list(more.index[:3]) == [0, 100, first]
    largest = change["predictiveness_max"].unstack()
    times = [part["none"].median() / part["batch"].median()
             for part in (largest.loc[:999], largest.loc[1000:5000], largest.loc[5001:])]  # fmt: skip
    at_step = largest["none"] / largest["batch"]
    assert at_step.idxmax() == at_step.index[-1]
    return [f"at steps 0 and 100 the plain network varies less than BatchNorm, from step {first} on mostly more; the "
            f"gradient's median change is {times[0]:.1f} times BatchNorm's before step 1,000, {times[1]:.1f} times up "
            f"to 5,000 and {times[2]:.1f} times after, and {at_step.max():.0f} times at the last step, the most "
            "extreme",
            *of_figure_4c()]  # fmt: skip


def of_figure_4c() -> list[str]:
    rows = figure("4c")
    near = abs(rows["beta"] / 20 - 1).le(0.02).groupby(rows["norm"]).mean()
    return [f"beta is within 2% of 20 = 1 / (0.5 lr) at {near['none']:.0%} of the plain network's steps and at "
            f"{near['batch']:.0%} of BatchNorm's."]  # fmt: skip


def of_saturation() -> list[str]:
    return [*of_figure_4c(), "at 1 / (shortest step), and the edge of stability at 2 for every step up to 1/2."]


def of_figure_7() -> list[str]:
    rows = figure("7a")
    middles = rows.groupby(["layer", "norm"])["mean_change"].median()
    layers = sorted(set(rows["layer"]))
    assert all(middles[layer].idxmax() == "noisy-batch" for layer in layers)

    def digits(value: float) -> str:
        return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")

    each = ", ".join(
        f"layer {layer} {' / '.join(digits(middles[layer, norm]) for norm in ('none', 'batch', 'noisy-batch'))}"
        for layer in layers
    )
    apart_ = int(rows["step"].sort_values().drop_duplicates().diff().median())
    return [f"move between measured steps, {apart_} apart, and from step 0, in layers {listed(layers)};",
            f"none / batch / noisy-batch: {each}."]  # fmt: skip


def of_figure_13() -> list[str]:
    ends = last_of("13b", "loss", 1e-6)
    return [", ".join(f"{norm} {ends[norm]:,.0f}" for norm in NORMS[:5]) + "."]


STATEMENTS = {
    "": lambda: ["(2018)"],
    "Figure 1: training with and without BatchNorm": of_figure_1,
    "Figure 3: internal covariate shift": of_figure_3,
    "Figure 3 at learning rate 1e-07: the deep linear network": of_figure_3_slow,
    "Figure 4: the landscape along the gradient": of_figure_4,
    "Beside figure 4c: what sets effective beta": of_saturation,
    "Figure 7: how far the moments of layer inputs move": of_figure_7,
    "Figure 13: training with l_p norms": of_figure_13,
}  # fmt: skip
#: Numbers that name something: figures, theorems and norms.
REFERENCES = re.compile(r"\b(([Ff]igure|[Tt]heorem|[Oo]bservation|[Ll]emma)s? \d+(\.\d+)?[a-d]?(, \d+(\.\d+)?)*"
                        r"( and \d+(\.\d+)?)?|l_[12]|(sigma|gamma)\^2|attain 4\.4)")  # fmt: skip

TEXTS = {
    "final_test_accuracy": percent,
    "best_test_accuracy": percent,
    "steps_to_accuracy": lambda value: "never" if value == math.inf else rounded(value),
}
_NORM = "`(?:" + "|".join(NORMS) + ")`"
#: A kind of table -> its headings. Every one has a column with the number of seeds, runs, units, points or cases.
KNOWN = {
    "studies": r"study\|content\|runs\|steps\|time",
    "claims": r"the paper's claim\|study\|statistic\|rule\|the paper's figure\|here\|verdict",
    "accuracies": r"study\|lr\|norm\|seeds\|the paper\|here, last\|here, best",
    "medians": rf"`[\w-]+`\|lr\|seeds(\|({'|'.join(map(re.escape, HEADINGS))}))+",
    "distances": rf"the paper's figure\|lr\|seeds\|steps(\|{_NORM})+\|unit",
    "parts": r"claim, study\|statistic\|lr\|seeds\|median\|rule\|p\|p against\|verdict\|the paper's figure",
    "saturation": r"problem\|norm\|part of the run\|runs\|points(\|shortest step [\d.]+)+\|curvature × lr"
                  r"\|sharpness × lr\|verdict",
    "sigma": r"variance before the norm, median over layers and units\|picture\|runs\|units\|first\|last",
    "theory": r"statement\|runs\|cases\|failures\|largest residual\|share whose conditions hold"
              r"\|reduction of the squared gradient, median",
    "floors": rf"seed(\|best of rank \d+)+(\|{_NORM})+",  # a row is a seed, a cell a run
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    return {"": first} | {part.partition("\n")[0]: part for part in rest}


def markdown_tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", re.sub(r"(^\|[ -|]*--- \|\n)\n", r"\1", text, flags=re.MULTILINE),
                            re.MULTILINE):  # fmt: skip
        lines = [[cell.strip() for cell in line.strip()[1:-1].split(" | ")] for line in block.strip().splitlines()]
        found.append((lines[0], lines[2:]))
    return found


def planned_runs(command: str) -> list[tuple[str, ...]]:
    """The runs of a line of `bnsmooth compare`."""
    options = dict(zip(words := shlex.split(command)[2:], words[1:], strict=False))
    ranges = [part.partition("-")[::2] for part in options["--seeds"].split(",")]
    seeds = [str(seed) for first, last in ranges for seed in range(int(first), int(last or first) + 1)]
    lrs = options.get("--lrs", "").split(",")
    return [*itertools.product(options["--norms"].split(","), lrs, seeds)]


def measured_steps(commands: list[str], kind: str, steps: int) -> int:
    """How many steps of a run the first command measures that has this kind."""
    for command in commands:
        options = dict(zip(words := shlex.split(command)[2:], words[1:], strict=False))
        if kind in options.get("--measure", "").split(","):
            return len(options["--at"].split(",")) if "--at" in options else steps // int(options["--every"]) + 1
    raise AssertionError(f"{kind} is not measured")


def apart(name: str, axis: Curve, table: pd.DataFrame) -> list[tuple[str, str, str, tuple[float, int, int]]]:
    """Distances from a figure of the paper: the row's label and learning rate, the norm, and distance, seeds, steps."""
    theirs, found = figure(name), []
    versions = {"": "grad_distance"}
    if axis.columns[0] in ("predictiveness_min", "grad_distance") and table["grad_distance_summed"].notna().any():
        versions[", summed"] = "grad_distance_summed"
    curve = [key for key in ("norm", "lr", "layer") if key in theirs and key in table]
    for (version, lengths), (key, of_paper) in itertools.product(versions.items(), theirs.groupby(curve, sort=False)):
        norm, lr, *layer = key
        ours = table[(table["norm"] == norm) & np.isclose(table["lr"], lr, rtol=1e-6, atol=0)]
        ours = ours[(ours["layer"] == layer[0]) if layer else slice(None)]
        if ours.empty or ours["problem"].iloc[0] != of_paper["problem"].iloc[0]:
            continue
        columns = list(axis.columns)
        if axis.table == "landscape" and columns != ["grad_distance"]:
            of_line = {"loss": "loss", "predictiveness": lengths}[columns[0].removesuffix("_min")]
            line = ours[ours["alpha"] > 0]
            line = line.assign(value=line[of_line].fillna(np.inf)).groupby(["seed", "step"])["value"]
            ours = pd.DataFrame({columns[0]: line.min(), columns[1]: line.max()}).reset_index()
        elif columns == ["grad_distance"]:
            ours = ours.assign(grad_distance=ours[lengths])
        keys = ["step", *(["alpha"] if "alpha" in of_paper else [])]
        middles = ours.groupby(keys)[columns].median().dropna()
        both = of_paper.merge(middles.reset_index(), on=keys, suffixes=("", "_ours"))
        a, b = both[columns].to_numpy(float), both[[f"{name}_ours" for name in columns]].to_numpy(float)
        with np.errstate(all="ignore"):
            gaps = abs(np.log10(a) - np.log10(b)) if axis.unit == "decades" else abs(a - b)
        gaps = np.where(np.isnan(gaps), np.inf, gaps) * (100 if axis.unit == "points" else 1)
        quantity = columns[0].removesuffix("_min") if len(columns) == 2 else columns[0]
        label = ", ".join([name, quantity + version, *(f"layer {number:.0f}" for number in layer)])
        distance = float(np.median(gaps)) if len(both) else math.nan
        found.append((label, rounded(float(lr)), str(norm), (distance, ours["seed"].nunique(), both["step"].nunique())))
    return found


def saturation(line: pd.DataFrame, curved: pd.DataFrame, shortest: list[float]) -> list[list[str]]:
    """The rows of the experiment on beta: medians over the points of a norm, in the first tenth of a run and later."""
    keys, rows = ["norm", "lr", "seed", "step"], []
    probed = line[line["alpha"] > 0]
    change = probed["grad_distance"].fillna(np.inf) / probed["distance"] * probed["lr"]
    points = pd.DataFrame({alpha: change[probed["alpha"] >= alpha].groupby([probed[key] for key in keys]).max()
                           for alpha in shortest}).reset_index()  # fmt: skip
    points = points.merge(curved[[*keys, "curvature", "sharpness"]], on=keys)
    early = points["step"] <= 0.1 * line["step"].max()
    for norm in sorted(points["norm"].unique()):
        runs = line[line["norm"] == norm]["run"].nunique()
        for when, chosen in (("early", early), ("later", ~early)):
            of = points[(points["norm"] == norm) & chosen]
            if of.empty:
                continue
            betas = {alpha: median(of[alpha]) for alpha in shortest}
            saturated = all(abs(betas[alpha] * alpha - 1) <= 0.1 for alpha in (0.25, 0.5, 1.0))
            edge = all(abs(betas[alpha] / 2 - 1) <= 0.1 for alpha in (0.0625, 0.125, 0.25, 0.5))
            verdict = "saturated" if saturated else "edge of stability" if edge else "not decided"
            shape = [median(of[name] * of["lr"]) for name in ("curvature", "sharpness")]
            rows.append([line["problem"].iloc[0], f"`{norm}`", when, str(runs), str(len(of)),
                         *map(cell, [*betas.values(), *shape]), verdict])  # fmt: skip
    return rows


@functools.cache
def _least_losses(seed: int, settings: tuple[tuple[str, Any], ...]) -> list[float]:
    from bnsmooth_cli.config import resolve
    from bnsmooth_cli.problems import build

    inputs, targets = (part.double().numpy() for part in build(resolve(seed=seed, **dict(settings))).batch(0))
    design = np.column_stack([inputs, np.ones(len(inputs))])
    fitted = design @ np.linalg.pinv(design) @ targets
    rest = ((targets - fitted) ** 2).sum()
    # Of a matrix of rank r, the best approximation leaves the singular values from the (r+1)-th on.
    squares = np.linalg.svd(fitted - fitted.mean(0), compute_uv=False) ** 2
    return [float(rest + squares[rank:].sum()) for rank in range(1, len(squares) + 1)]


def least_losses(settings: dict[str, Any], seed: int) -> list[float]:
    """The least losses of affine maps of rank 1, 2, ... on the data of a seed: the losses of the saddles."""
    data = ("problem", "dimension", "samples", "matrix")
    return _least_losses(seed, tuple((name, settings[name]) for name in data if name in settings))
