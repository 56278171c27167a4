"""The comparison of runs: one row per run, with its metrics, the steps to a target, and the ratios to the plain run."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.identity import alike, differing
from bnsmooth_cli.studies.evidence import Case, Record, check_options
from bnsmooth_cli.studies.folder import Source, labels, opened
from bnsmooth_cli.studies.metrics import of_measurements

#: A run is compared with the run without a norm that shares these columns.
_GROUP: Final = ["problem", "settings", "lr", "seed"]
#: The metrics of training whose ratios to the `none` run are recorded; those of measurements compare rows.
_RATIOS: Final = [metric.name for metric in kinds.METRICS if metric.has_ratio and metric.kind == "train"]


def compare(
    sources: Source | Iterable[Source], *, target_loss: float | None = None, target_accuracy: float | None = None
) -> pd.DataFrame:
    """Compare runs: one row per run, those of the same settings together and the best first.

    Metrics of measurements are medians over training (`statistics.over_steps`), and over layers or units where there
    are several. `ratio_...` compares a run with the `none` run of the same problem, settings, learning rate and seed:
    of a metric of training, it is the quotient; of a measurement, the median of the quotients at the steps and layers
    that both runs have measured, null if these cover less than half of the run (`evidence.COVERED`).

    Args:
        sources: Runs, studies, and the folders of either, mixed; or one of them. A study stands for its runs that have
            ended.
        target_loss: Count the steps to this training loss; by default the last loss of the `none` run.
        target_accuracy: Count the steps to this test accuracy; by default the last one of the `none` run.

    Returns:
        The columns of a table of kind `compare`.

    Raises:
        InputError: If there is no run, a folder is not a run, has no train table, or is given twice, no run could
            reach a target, or runs that are compared with each other were measured with different options.

    >>> import tempfile
    >>> from bnsmooth_cli.measures.one_pass import train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = [train("dln", norm, steps=5, samples=20, output=f"{folder}/{norm}") for norm in ("none", "batch")]
    ...     bool(compare([runs[0], runs[1].path])["ratio_final_loss"].notna().all())
    True
    """
    check_targets(target_loss, target_accuracy)
    records = [Record.of_run(run, name) for name, run in labels(opened(sources)).items()]
    return compare_records(records, target_loss, target_accuracy)


def check_targets(loss: float | None, accuracy: float | None) -> None:
    """Raise InputError for a target that is no loss or no accuracy."""
    if loss is not None and not math.isfinite(loss):
        raise InputError(f"--target-loss {loss:g}: give a finite number")
    if accuracy is not None and not 0 < accuracy <= 1:
        raise InputError(f"--target-accuracy {accuracy:g}: give a share above 0 and up to 1, as in 0.8")


def compare_records(
    runs: Sequence[Record], target_loss: float | None = None, target_accuracy: float | None = None
) -> pd.DataFrame:
    """`compare` for runs whose tables are read."""
    if not runs:
        raise InputError("nothing to compare: give runs, studies or folders that have ended runs")
    records = {record.name: record for record in runs}
    for _, group in groups(runs):
        check_options(group)
    frame = pd.DataFrame([_row(record) for record in runs])
    for problem, rows in frame.groupby("problem"):
        same = alike(str(problem), rows["settings"])
        frame.loc[rows.index, "settings"] = rows["settings"].map(same)
        if len({*same.values()}) > 1:
            words = "; ".join(dict.fromkeys(differing(str(problem), same).values()))
            remark(f"{problem}: runs of different settings are judged apart: {words}")
    curves = {name: record.rows("train") for name, record in records.items()}
    frame = _add_targets(frame, curves, target_loss, target_accuracy)
    frame = pd.concat([with_ratios(frame), _measured_ratios(frame, records)], axis=1)
    order = ["problem", "settings", "final_test_accuracy", "final_loss", "run"]
    return frame.sort_values(order, ascending=[True, True, False, True, True], ignore_index=True)[
        list(kinds.get("compare").columns)
    ]


def groups(runs: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """The runs that can be compared with each other: of one problem and of the same settings.

    Yields:
        The problem, with the settings that differ between its groups in words; and the runs.
    """
    for problem in dict.fromkeys(record.problem for record in runs):
        of_problem = [record for record in runs if record.problem == problem]
        texts = [record.settings for record in of_problem]
        same, words = alike(problem, texts), differing(problem, texts)
        for text in dict.fromkeys(same.values()):
            title = ": ".join(filter(None, [problem, words[text]]))
            yield title, [record for record in of_problem if same[record.settings] == text]


def _row(record: Record) -> dict[str, Any]:
    rows = record.rows("train")
    return {
        "run": record.name,
        "problem": record.problem,
        "norm": record.norm,
        "lr": record.lr,
        "seed": record.seed,
        "settings": record.settings,
        "steps": int(rows["step"].iloc[-1]),
        "diverged_at": record.diverged_at,
        "baseline_loss": record.baseline.get("loss"),
        "baseline_accuracy": record.baseline.get("accuracy"),
        **record.training,
        **of_measurements(record.rows),
    }


def _measured_ratios(frame: pd.DataFrame, records: Mapping[str, Record]) -> pd.DataFrame:
    """A column `ratio_...` for each metric of a measurement."""
    plain = _plain_runs(frame)["run"].to_dict()
    metrics = [metric for metric in kinds.METRICS if metric.has_ratio and metric.kind != "train"]
    rows: list[dict[str, float]] = []
    for name, *group in frame[["run", *_GROUP]].itertuples(index=False):
        record, other = records[name], plain.get(tuple(group))
        case = Case({"none": records[other], record.norm: record}) if other else None
        rows.append({f"ratio_{metric.name}": case.ratio(metric.kind, metric.name, record.norm, "none")
                     if case and metric.kind in record.kinds else np.nan for metric in metrics})  # fmt: skip
    return pd.DataFrame(rows, index=frame.index)


def _add_targets(
    frame: pd.DataFrame, curves: Mapping[str, pd.DataFrame], target_loss: float | None, target_accuracy: float | None
) -> pd.DataFrame:
    plain = _plain_runs(frame)
    ended = plain[plain["diverged_at"].isna()]  # a run that diverged has no last loss to reach
    usual = ended.reindex(pd.MultiIndex.from_frame(frame[_GROUP]))
    for name, column, reaches, target in (
        ("loss", "loss", operator.le, target_loss),
        ("accuracy", "test_accuracy", operator.ge, target_accuracy),
    ):
        targets = usual[f"final_{column}"].to_numpy(np.float64) if target is None else np.full(len(frame), target)
        frame[f"target_{name}"] = targets
        steps = [
            rows["step"][reaches(rows[column], target)].min()
            for rows, target in zip((curves[run] for run in frame["run"]), targets, strict=True)
        ]
        frame[f"steps_to_{name}"] = np.array(steps, np.float64)
    return frame


def _plain_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs without a norm, by problem, settings, learning rate and seed."""
    return frame[frame["norm"] == "none"].drop_duplicates(_GROUP).set_index(_GROUP)


def with_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a column `ratio_...` for each metric of training: the ratio to the `none` run of the same group."""
    baseline = _plain_runs(frame)[_RATIOS].reindex(pd.MultiIndex.from_frame(frame[_GROUP]))
    metrics = frame[_RATIOS].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = pd.DataFrame(metrics.to_numpy() / baseline.to_numpy(np.float64), index=frame.index)
    ratios.columns = pd.Index([f"ratio_{name}" for name in _RATIOS])
    return pd.concat([frame.drop(columns=ratios.columns, errors="ignore"), ratios], axis=1)


def worst_where_diverged(comparison: pd.DataFrame) -> pd.DataFrame:
    """Replace missing results by the worst value, so that medians do not cover only the successful runs.

    A diverged run has an infinite last loss, and the accuracy of the best constant answer (0 if that is unknown). A
    target that is never reached takes infinitely many steps.
    """
    frame = comparison.copy()
    diverged = frame["diverged_at"].notna()
    frame.loc[diverged, "final_loss"] = np.inf
    tested = frame.groupby(["problem", "settings"])["best_test_accuracy"].transform("count") > 0
    chance = frame["baseline_accuracy"].astype("float64").fillna(0.0)
    frame["final_test_accuracy"] = frame["final_test_accuracy"].mask(diverged & tested, chance)
    for target in ("loss", "accuracy"):
        never = frame[f"target_{target}"].notna() & frame[f"steps_to_{target}"].isna()
        frame.loc[never, f"steps_to_{target}"] = np.inf
    return with_ratios(frame)
