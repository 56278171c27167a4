"""The claims, judged again from the tables of a study and the paper's figures, for `audit.Page`.

Nothing of the package's own judging is used here. The definitions are those of docs/claims.md, written again in plain
pandas and NumPy.
"""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import bnsmooth_cli as bns
from bnsmooth_cli import paper

NORMS = ("none", "batch", "l1", "l2", "linf", "noisy-batch", "noisy-none")
LEVEL = 0.05


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


def power(seeds: int, tried: int = 1) -> float:
    """Of the sign test, if the median lies one standard deviation of a normal distribution inside the rule.

    The level is divided by the number of learning rates that were tried where one of them suffices.
    """
    inside = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    needed = next((k for k in range(seeds + 1) if tail(seeds, k) <= LEVEL / tried), None)
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
        Part("the smaller of two margins: batch's last test accuracy above the bar, and none's below the bar (which is "
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
        ratio("the distance relative to the gradient", "relative_ics", "batch", "none")]),
    5: ("The loss varies less along the gradient with BatchNorm, most of all early", [
        ratio("range of the loss on the line", "loss_range", "batch", "none", "< 0.95"),
        ratio("range of the loss on the line early", "loss_range", "batch", "none", "< 0.95", "early"),
        Part("ratio of the loss's range, batch / none: early over later", "< 0.95", PLAIN,
             "smoothness",
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
               "output: median over units; of the norms, the largest",
               lambda case: largest(median(rows["lhs"] / rows["grad_norm"] ** 2) for rows in case.theory("4.1 at y")),
               "< 0.95"),
        theory("share of units where 4.1 holds with the plain network's gradient at the same layer output; of the "
               "norms, the smallest", lambda case: least(share(rows["holds"]) for rows in case.theory("4.1 at y"))),
        theory("reduction beside the factor gamma^2 / sigma^2: median over units; of the norms, the smallest",
               lambda case: least(median(rows["mean_fraction"] + rows["output_fraction"])
                                  for rows in case.theory("4.1", "identity")))]),
    11: ("The gradient's own quadratic form is reduced: more predictive gradients (4.2)", [
        identity("4.2"),
        theory("share of cases where the second inequality of 4.2 holds, of those where its condition is met; of "
               "the norms, the smallest", lambda case: least(
                   share(rows["holds"][rows["condition"] == True]) for rows in case.theory("4.2b")),  # noqa: E712
               "every case"),
        theory("quadratic form with BatchNorm over the plain network's, where 4.2's conditions hold: median over "
               "units; of the norms, the largest", lambda case: largest(case.forms()), "< 0.95"),
        theory("share of units where 4.2's conditions hold; of the norms, the smallest",
               lambda case: least(share(rows["condition"]) for rows in case.theory("4.2")))]),
    12: ("Minima are preserved: a gamma and beta give identical activations (4.3)", [identity("4.3")]),
    13: ("The worst-case gradient of the weights is reduced (4.4)", [identity("4.4")]),
    14: ("The nearest optimum is closer to the initial weights (4.5)", [
        identity("4.5"),
        theory("share of units where its condition holds; of the norms, the smallest",
               lambda case: least(share(rows["condition"]) for rows in case.theory("4.5"))),
        theory("reduction of the distance where it does: median over units; of the norms, the smallest",
               lambda case: least(median(rows["reduction"][rows["condition"] == True])  # noqa: E712
                                  for rows in case.theory("4.5")))]),
    15: ("Random directions behave like the gradient's: the loss and its gradient vary less with BatchNorm", [
        ratio("range of the loss along a random direction", "random_loss_range", "batch", "none", "< 0.95"),
        ratio("largest change of the gradient along a random direction", "random_predictiveness", "batch", "none",
              "< 0.95")]),
    16: ("The plain linear network has almost no internal covariate shift at 1e-7", [
        Part("cosine of the layers' gradients, averaged over the run, none", "> 0.99", ("none",), "ics",
             lambda case: mean_over_run((rows := case.runs["none"].metric("cosine"))["step"], rows["value"]),
             lrs=(1e-7,)),
        Part("size of the cosine of the layers' gradients, batch", "< 0.3", ("batch",), "ics",
             lambda case: case.runs["batch"].metrics["cosine_size"], lrs=(1e-7,))]),
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


def of_the_paper(part: Part, problem: str, lr: float) -> float:
    """The statistic of a part in the paper's own figure; NaN if no figure shows it."""
    theirs = Case(papers(problem, lr))
    return float(part.value(theirs)) if part.norms and theirs.has(part.norms, part.table) else math.nan


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
        nowhere = not found and any(at(part, study.problem, lr) for lr in study.cases)
        if nowhere or (part.exists and not any(row["decides"] for row in found)):
            found.append(not_measured(part, study.problem, [*study.cases]))
        rows += found
    rows += _lacking([part for part in parts if part.rule and not part.exists], rows, study)
    counted = [row for row in rows if row["decides"] and not math.isnan(row["against"])]
    for row, p in zip(counted, holm([row["against"] for row in counted]), strict=True):
        row["against"] = p
    for row in rows:  # a part that does not decide is judged alone
        if row["against"] <= LEVEL and row["verdict"] == "inconclusive" and (row["decides"] or not row["part"].exists):
            row["verdict"] = "not reproduced"
    verdicts = {row["verdict"] for row in rows if row["decides"] or row["verdict"] == "not applicable"}
    if not rows:  # a claim about other problems or learning rates
        verdicts.add("not applicable")
    tried = sum(row["part"].exists and not math.isnan(row.get("p", math.nan)) for row in rows)
    shown = [power(len(row["values"]), tried) for row in counted if row["part"].exists]
    others = [power(len(row["values"])) for row in counted if not row["part"].exists]
    strength = math.prod([*others, *([max(shown)] if shown else [])]) if counted else math.nan
    return next((verdict for verdict in ORDER if verdict in verdicts), "inconclusive"), strength, rows


def _lacking(parts: list[Part], rows: list[dict[str, Any]], study: Study) -> list[dict[str, Any]]:
    """A claim is not put together of several learning rates: what the one with the most parts lacks is not measured."""
    there = {(row["part"], row.get("lr")) for row in rows if row["verdict"] != "not applicable"}
    measured = [part for part in parts if any((part, lr) in there for lr in study.cases)]
    lacks = [[not_measured(part, study.problem, [lr]) for part in measured
              if at(part, study.problem, lr) and (part, lr) not in there] for lr in study.cases]  # fmt: skip
    return min(lacks, key=len)


def at(part: Part, problem: str, lr: float) -> bool:
    """Whether a part is about a learning rate."""
    return not part.lrs or (problem == "dln" and bool(np.isclose(part.lrs, lr, rtol=1e-6, atol=0).any()))


def not_measured(part: Part, problem: str, lrs: list[float]) -> dict[str, Any]:
    """The row of a part that is not measured; it is needed where the paper's figure does not break its rule."""
    decides = part.exists or any(obeyed(part, of_the_paper(part, problem, lr)) for lr in lrs if at(part, problem, lr))
    return {"part": part, "verdict": "not measured", "decides": decides, "values": np.array([]), "p": math.nan,
            "against": math.nan}  # fmt: skip


def _row(number: int, part: Part, lr: float, cases: list[Case], needs: set[str]) -> dict[str, Any] | None:
    """The row of a part at a learning rate; none where it does not apply, or its norms have not run."""
    problem = next(iter(cases[0].runs.values())).problem
    if not at(part, problem, lr) or not any(all(norm in case.runs for norm in part.norms) for case in cases):
        return None
    of_paper = of_the_paper(part, problem, lr)
    about = not_measured(part, problem, [lr]) | {"lr": lr, "paper": of_paper}
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
    together = number in (4, 5, 6, 7, 15, 16)
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


# A study's tables


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
        order = {norm: place for place, norm in enumerate(NORMS)}  # the experiments on noise have others
        self.runs.sort(key=lambda run: (run.lr, run.seed, order.get(run.norm, len(order)), run.norm))
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
