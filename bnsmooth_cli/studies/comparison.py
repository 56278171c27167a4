"""Runs side by side, a row each: what `compare` says of them. Reads tables only, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies.statistics import over_steps

#: Minibatch losses are compared as means over this many steps; a full batch's loss as it is.
SMOOTHING: Final = 50
_GROUP: Final = ["problem", "lr", "seed"]
#: The metrics whose ratios to the `none` run are recorded.
_RATIOS: Final = [metric.name for metric in kinds.METRICS if metric.has_ratio]


def compare(
    sources: Sequence[Path | str], *, target_loss: float | None = None, target_accuracy: float | None = None
) -> pd.DataFrame:
    """One row a run, best first: the columns of a compare table.

    `final_loss`, `best_loss`: of the training loss, averaged over SMOOTHING steps where batches are small;
    `final_` and `best_test_accuracy`; `steps_to_loss` and `steps_to_accuracy`: the first step at or beyond the target
    (null if never), which is by default what the `none` run of the same problem, lr and seed ends with;
    `loss_range` (loss_max - loss_min), `predictiveness` (its largest on the line) and the other figures of a run's
    smoothness table, where it has one, as medians over training (`statistics.over_steps`); from its tables of ics and
    activations such medians, over layers from the second on and units too, of `ics`, of its `cosine`, of `movement`
    (the Wasserstein distance to the measured step before, in the unit's deviations) and of the excess `kurtosis`'
    size; `ratio_...` of
    each to the `none` run.

    Raises InputError for a folder that is no run, or that has no train table.
    """
    opened = [open_run(path) for path in sources]
    names = [run.name for run in opened]
    if len(set(names)) < len(names):
        raise InputError(
            f"{max(names, key=names.count)}: given twice, or two runs of that name; each row is to be one run"
        )
    curves = {run.name: _curve(run) for run in opened}
    frame = pd.DataFrame(
        [_final_figures(run, curves[run.name]) | _smoothness_figures(run) | _shift_figures(run) for run in opened]
    )
    frame = with_ratios(_add_targets(frame, curves, target_loss, target_accuracy))
    order = ["problem", "final_test_accuracy", "final_loss", "run"]
    return frame.sort_values(order, ascending=[True, False, True, True], ignore_index=True)[
        list(kinds.get("compare").columns)
    ]


def _curve(run: Run) -> pd.DataFrame:
    """The train table with its loss smoothed as compared."""
    rows = _own_rows(run, run.train_path, "train")
    if rows.empty:
        raise DamagedError(f"{run.train_path}: a finished run without rows")
    if run.config.batch_size != run.config.settings.full_batch:
        rows["loss"] = rows["loss"].rolling(SMOOTHING, min_periods=1).mean()
    return rows


def _final_figures(run: Run, rows: pd.DataFrame) -> dict[str, Any]:
    config, provenance = run.config, rows.attrs["bnsmooth"]
    tested = rows["test_accuracy"].dropna()
    return {
        "run": run.name,
        "problem": config.problem,
        "norm": config.norm,
        "lr": config.lr,
        "seed": config.seed,
        "steps": int(rows["step"].iloc[-1]),
        "diverged_at": provenance.get("diverged_at"),
        "initial_loss": rows["loss"].iloc[0],
        "final_loss": rows["loss"].iloc[-1],
        "best_loss": rows["loss"].min(),
        "final_test_accuracy": tested.iloc[-1] if len(tested) else np.nan,
        "best_test_accuracy": tested.max(),
    }


def measured_rows(run: Run, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a run's table of a kind, none where it has not been measured."""
    path = run.source().table_path(kind)
    if not path.is_file():
        return pd.DataFrame(columns=list(columns or kinds.get(kind).columns), dtype="float64")
    return _own_rows(run, path, kind, columns)


def _own_rows(run: Run, path: Path, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    rows = tables.read_table(path, kind, columns)
    run.check_provenance(path, rows.attrs["bnsmooth"])
    return rows


def smoothness_rows(run: Run) -> pd.DataFrame:
    """A run's smoothness table with the two figures of its line that are compared."""
    rows = measured_rows(run, "smoothness")
    return rows.assign(loss_range=rows["loss_max"] - rows["loss_min"], predictiveness=rows["predictiveness_max"])


def _of(kind: str) -> list[str]:
    """The metrics that a kind of table gives."""
    return [metric.name for metric in kinds.METRICS if metric.kind == kind]


def _smoothness_figures(run: Run) -> dict[str, float]:
    rows = smoothness_rows(run)
    return {name: over_steps(rows["step"], rows[name]) for name in _of("smoothness")}


def _shift_figures(run: Run) -> dict[str, float]:
    shift = measured_rows(run, "ics", ["step", "layer", "ics", "cosine"])
    shift = shift[shift["layer"] > 1]  # before the first layer nothing moves
    inputs = measured_rows(run, "activations", ["step", "std", "wasserstein", "kurtosis"])
    moved = (inputs["wasserstein"] / inputs["std"]).replace(np.inf, np.nan)
    return {
        "ics": over_steps(shift["step"], shift["ics"]),
        "cosine": over_steps(shift["step"], shift["cosine"]),
        "movement": over_steps(inputs["step"], moved),
        "kurtosis": over_steps(inputs["step"], inputs["kurtosis"].abs()),
    }


def _add_targets(
    frame: pd.DataFrame,
    curves: dict[str, pd.DataFrame],
    target_loss: float | None,
    target_accuracy: float | None,
) -> pd.DataFrame:
    plain = frame[frame["norm"] == "none"].drop_duplicates(_GROUP).set_index(_GROUP)
    for row in frame.index:
        group = tuple(frame.loc[row, _GROUP])
        baseline = plain.loc[group] if group in plain.index else None
        rows = curves[str(frame.loc[row, "run"])]
        for column, given, default in (
            ("loss", target_loss, "final_loss"),
            ("accuracy", target_accuracy, "final_test_accuracy"),
        ):
            target = given
            if target is None:  # a diverged run ends nowhere
                target = np.nan if baseline is None or pd.notna(baseline["diverged_at"]) else baseline[default]
            reached = rows["loss"] <= target if column == "loss" else rows["test_accuracy"] >= target
            frame.loc[row, f"target_{column}"] = target
            frame.loc[row, f"steps_to_{column}"] = rows["step"][reached].min() if reached.any() else np.nan
    return frame


def with_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `ratio_...` of each compared figure, to that of the `none` run of its group."""
    plain = frame[frame["norm"] == "none"].drop_duplicates(_GROUP).set_index(_GROUP)
    baseline = plain[_RATIOS].reindex(pd.MultiIndex.from_frame(frame[_GROUP]))
    figures = frame[_RATIOS].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = pd.DataFrame(figures.to_numpy() / baseline.to_numpy(np.float64), index=frame.index)
    ratios.columns = pd.Index([f"ratio_{name}" for name in _RATIOS])
    return pd.concat([frame.drop(columns=ratios.columns, errors="ignore"), ratios], axis=1)


def worst_where_diverged(comparison: pd.DataFrame) -> pd.DataFrame:
    """The comparison with the worst in place of nothing, so that a median over runs is never that of the survivors.

    A diverged run's last loss is infinite and its accuracy 0; a target that is never reached takes infinitely long.
    """
    frame = comparison.copy()
    diverged = frame["diverged_at"].notna()
    frame.loc[diverged, "final_loss"] = np.inf
    tested = frame.groupby("problem")["final_test_accuracy"].transform("count") > 0
    frame.loc[diverged & tested, "final_test_accuracy"] = 0.0
    for target in ("loss", "accuracy"):
        never = frame[f"target_{target}"].notna() & frame[f"steps_to_{target}"].isna()
        frame.loc[never, f"steps_to_{target}"] = np.inf
    return with_ratios(frame)
