"""What claims are judged by: the metrics and the measured rows of the runs of one seed, ours or the paper's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds, paper
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import NEAR
from bnsmooth_cli.presets import find_problem
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.metrics import (
    bare,
    by_layer,
    logarithm,
    measured_options,
    measured_rows,
    of_training,
    paired,
    prepared,
    train_rows,
)
from bnsmooth_cli.studies.statistics import mean_over_steps, over_steps

#: The first steps that the paper calls early: a tenth of its runs.
EARLY: Final = {"vgg": 1500, "dln": 1000}
#: The share of a window that two runs must both have measured to be compared over it.
COVERED: Final = 0.5
#: The accuracy of the best constant answer on CIFAR-10, which the paper's networks are trained on.
PAPER_CHANCE: Final = 0.1


@dataclass
class Record:
    """A run as the claims see it.

    Attributes:
        name: The run's name.
        problem: The problem.
        norm: The norm.
        lr: The learning rate.
        seed: The seed.
        steps: The steps that it was to make.
        diverged_at: The step at which its loss became infinite or NaN; None if it stayed finite.
        baseline: The scores of the best constant answer, as the train table records them: `accuracy` and `loss`.
        read: Reads the rows of a kind of table, of all columns or those named; no rows without a table.
        kinds: The kinds of tables that it has.
        settings: The column `settings` of its rows.
        options: The options of its measurements that their numbers depend on, by kind of table.
    """

    name: str
    problem: str
    norm: str
    lr: float
    seed: int
    steps: int
    diverged_at: int | None
    baseline: dict[str, float]
    read: Callable[..., pd.DataFrame]
    kinds: frozenset[str]
    settings: str = ""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    _rows: dict[str, pd.DataFrame] = field(default_factory=dict)
    _layers: dict[str, pd.DataFrame] = field(default_factory=dict)

    @staticmethod
    def of_run(run: Run, name: str | None = None) -> Record:
        """The record of a run, under its own name or another one."""
        config, rows = run.config, train_rows(run)
        provenance = rows.attrs["bnsmooth"]
        measured = {kind for kind in kinds.measured() if run.source().table_path(kind).is_file()}
        record = Record(name or run.name, config.problem, config.norm, config.lr, config.seed, config.steps,
                        provenance.get("diverged_at"), provenance.get("baseline", {}),
                        functools.partial(measured_rows, run), frozenset(measured | {"train"}),
                        config.settings_text, measured_options(run))  # fmt: skip
        record._rows["train"] = bare(rows)
        return record

    @staticmethod
    def of_paper(problem: str, norm: str, lr: float) -> Record:
        """The record of the run that the paper's figures show."""
        read = functools.partial(_published_rows, problem, norm, lr)
        measured = frozenset(kind for kind in {figure.kind for figure in paper.FIGURES} if len(read(kind)))
        baseline, steps = {"accuracy": PAPER_CHANCE} if problem == "vgg" else {}, resolve(problem, "paper").steps
        return Record(f"{norm}, {lr:g}", problem, norm, lr, 0, steps, None, baseline, read, measured)

    def rows(self, kind: str) -> pd.DataFrame:
        """The prepared rows of a kind of table: with a column for each metric."""
        if kind not in self._rows:
            self._rows[kind] = bare(self.read(kind)) if kind == "train" else prepared(self.read, kind)
        return self._rows[kind]

    def layers(self, kind: str) -> pd.DataFrame:
        """The metrics of a kind of table by step and layer (`metrics.by_layer`)."""
        if kind not in self._layers:
            self._layers[kind] = by_layer(self.rows(kind), kind)
        return self._layers[kind]

    @functools.cached_property
    def training(self) -> dict[str, float]:
        """The metrics of its train table. After a divergence, the means are of the best constant answer."""
        rows = self.rows("train")
        metrics = of_training(rows)
        if self.diverged_at is not None:
            share, loss = self.diverged_at / self.steps, self.baseline.get("loss", math.inf)
            means = of_training(rows[rows["step"] < self.diverged_at]) if share else {}
            constants = {
                "mean_accuracy": self.baseline.get("accuracy", math.nan),
                "mean_log_loss": math.log(loss) if loss > 0 else math.nan,
            }
            for name, constant in constants.items():
                metrics[name] = share * means[name] + (1 - share) * constant if share else constant
            metrics["final_test_accuracy"] = math.nan
        return metrics

    @functools.cached_property
    def statements(self) -> dict[str, pd.DataFrame]:
        """The rows of its theory table by statement."""
        return {str(name): rows for name, rows in self.rows("theory").groupby("statement")}

    @functools.cached_property
    def classifies(self) -> bool:
        """Whether it has accuracies."""
        return bool(self.rows("train")["accuracy"].notna().any()) or not math.isnan(self.training["best_test_accuracy"])

    @property
    def early(self) -> int:
        """The last early step."""
        return EARLY.get(self.problem, EARLY["vgg"])


def _published_rows(
    problem: str, norm: str, lr: float, kind: str, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    rows = paper.rows(kind, problem, norm, lr)
    if kind == "smoothness":
        # As `measures.smoothness` does. The figures do not show what is left of the gradient, so that the value of beta
        # alone tells.
        shortest = min(find_problem(problem).alphas) * lr
        at_limit = (rows["beta"].astype("float64") * shortest - 1).abs() <= NEAR
        rows["saturated"] = at_limit.astype("boolean").where(rows["beta"].notna())
    return rows if columns is None else rows[list(columns)]


@functools.cache
def published(problem: str) -> tuple[Record, ...]:
    """The runs that the paper's figures show of a problem.

    >>> [record.norm for record in published("dln") if record.lr == 1e-7]
    ['none', 'batch']
    """
    shown = [paper.read(figure.name)[["norm", "lr"]] for figure in paper.FIGURES if figure.problem == problem]
    pairs = pd.concat(shown).drop_duplicates().itertuples(index=False) if shown else ()
    return tuple(Record.of_paper(problem, str(norm), float(lr)) for norm, lr in pairs)


@dataclass(frozen=True)
class Case:
    """The runs of one seed at one learning rate, by norm. The methods compute the statistics of the claims.

    A statistic is NaN where it is undefined: where a value that it needs was not computed, or where two runs have too
    few common steps.
    """

    records: dict[str, Record]

    def __getitem__(self, norm: str) -> Record:
        return self.records[norm]

    def has(self, norms: Iterable[str], tables: Iterable[str]) -> bool:
        """Whether all of these norms have run and have these kinds of tables; for no norms, whether any run has."""
        wanted = [self.records.get(norm) for norm in norms] or [*self.records.values()]
        found = [record is not None and record.kinds.issuperset(tables) for record in wanted]
        return all(found) if list(norms) else any(found)

    def joined(self, kind: str, metric: str, norm: str, to: str, window: str = "") -> pd.DataFrame:
        """A metric of two norms at their common steps and layers (`metrics.paired`): columns `step`, `a` and `b`.

        Args:
            kind: The kind of table.
            metric: The metric.
            norm: The norm in column `a`.
            to: The norm in column `b`.
            window: "early", "late", or the whole run.

        Returns:
            The rows that both have, NaN where a run lacks the metric; none if the steps that both have measured end
            before COVERED of the window.
        """
        one, other = self[norm], self[to]
        end = min(one.steps, other.steps)
        first, last = {"early": (0, min(one.early, end)), "late": (one.early + 1, end)}.get(window, (0, end))
        steps = np.intersect1d(one.rows(kind)["step"], other.rows(kind)["step"])
        steps = steps[(steps >= first) & (steps <= last)]
        rows = paired(one.layers(kind), other.layers(kind), metric)
        covered = len(steps) and steps[-1] >= first + COVERED * (last - first)
        return rows[rows["step"].between(first, last)] if covered else rows.iloc[:0]

    def ratio(self, kind: str, metric: str, norm: str, to: str, window: str = "") -> float:
        """The median over common steps and layers of the ratio of a metric between two norms."""
        rows = self.joined(kind, metric, norm, to, window)
        with np.errstate(divide="ignore", invalid="ignore"):
            return over_steps(rows["step"], rows["a"] / rows["b"])

    def difference(self, kind: str, metric: str, norm: str, to: str) -> float:
        """The median over common steps and layers of the difference of a metric between two norms."""
        rows = self.joined(kind, metric, norm, to)
        return over_steps(rows["step"], rows["a"] - rows["b"])

    def median(self, kind: str, metric: str, norm: str) -> float:
        """The median of a metric of one norm over its steps and layers."""
        rows = self[norm].rows(kind)
        return over_steps(rows["step"], rows[metric])

    def mean(self, kind: str, metric: str, norm: str) -> float:
        """The mean of a metric of one norm over its run."""
        rows = self[norm].rows(kind)
        return mean_over_steps(rows["step"], rows[metric])

    def accuracy_gain(self, norm: str, to: str) -> float:
        """The difference of two norms' training accuracies, averaged over their common steps.

        From its divergence on, a run has the accuracy of the best constant answer.
        """
        a, b = self._curves("accuracy", norm, to)
        return mean_over_steps(a.index.to_series(), a - b)

    def loss_ratio(self, norm: str, to: str) -> float:
        """The geometric mean over common steps of the ratio of two norms' training losses.

        From its divergence on, a run has the loss of the best constant answer, or an infinite one if that is unknown.
        """
        a, b = self._curves("loss", norm, to)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = mean_over_steps(a.index.to_series(), logarithm(a) - logarithm(b))
            return float(np.exp(ratio))

    def _curves(self, column: str, norm: str, to: str) -> tuple[pd.Series[float], pd.Series[float]]:
        records = [self[norm], self[to]]
        curves = [record.rows("train").set_index("step")[column].astype("float64") for record in records]
        end = min(record.steps for record in records)
        steps = curves[0].index.union(curves[1].index)
        steps = steps[steps <= end]
        for i, (record, curve) in enumerate(zip(records, curves, strict=True)):
            if record.diverged_at is not None:
                chance = record.baseline.get(column, math.inf if column == "loss" else math.nan)
                before = steps < curve.index.max()
                curves[i] = curve.reindex(steps).where(before & (not math.isnan(chance)), chance)
        known = curves[0].reindex(steps).notna() & curves[1].reindex(steps).notna()
        a, b = (curve.reindex(steps)[known] for curve in curves)
        covered = len(a) and a.index.max() >= COVERED * end
        return (a, b) if covered else (a.iloc[:0], b.iloc[:0])

    def above_chance(self, norm: str) -> float:
        """The last test accuracy of a norm less that of the best constant answer; 0 for a run that diverged."""
        record = self[norm]
        if record.diverged_at is not None:
            return 0.0
        return record.training["final_test_accuracy"] - record.baseline.get("accuracy", math.nan)

    def of_constant(self, norm: str) -> float:
        """The last training loss of a norm as a share of the best constant answer's; 1 for a run that diverged."""
        record = self[norm]
        if record.diverged_at is not None:
            return 1.0
        return record.training["final_loss"] / record.baseline.get("loss", math.nan)

    def as_long(self, norm: str, to: str) -> bool:
        """Whether the runs of two norms were to make the same number of steps, so that their ends can be compared."""
        return self[norm].steps == self[to].steps

    def theory(self, statement: str, affine: str | None = None) -> Iterator[pd.DataFrame]:
        """The rows of a statement, one frame for each norm that has any.

        Args:
            statement: The statement.
            affine: The choice of gamma and beta; None for all of them.
        """
        for record in self.records.values():
            rows = record.statements.get(statement)
            if rows is not None:
                yield rows if affine is None else rows[rows["affine"] == affine]


def check_options(records: Iterable[Record]) -> None:
    """Raise InputError if measurements of runs that are compared with each other have different options."""
    first: dict[tuple[str, float], Record] = {}
    for record in records:
        for kind, options in record.options.items():
            other = first.setdefault((kind, record.lr), record)
            if options != (others := other.options[kind]):
                differ = [name for name in {**others, **options} if others.get(name) != options.get(name)]
                said = ", ".join(f"{name} {others.get(name)} and {options.get(name)}" for name in differ)
                raise InputError(
                    f"{other.name} and {record.name}: their tables of kind {kind} are of different options ({said}), "
                    "so their numbers do not compare; measure one run again with the other's options and --force"
                )


def cases(records: Iterable[Record]) -> dict[float, list[Case]]:
    """The cases of some runs of a problem: by learning rate, in the order of the seeds.

    Raises:
        InputError: If two runs share norm, learning rate and seed, because no seed may count twice, or their
            measurements have different options.
    """
    records = list(records)
    check_options(records)
    grouped: dict[tuple[float, int], dict[str, Record]] = {}
    for record in records:
        of_seed = grouped.setdefault((record.lr, record.seed), {})
        if (other := of_seed.setdefault(record.norm, record)) is not record:
            raise InputError(f"{other.name} and {record.name}: share norm, learning rate and seed; give one of them")
    by_lr: dict[float, list[Case]] = {}
    for lr, seed in sorted(grouped):
        by_lr.setdefault(lr, []).append(Case(grouped[lr, seed]))
    return by_lr
