"""The comparison of runs: one row per run, with its metrics, the steps to a target, and the ratios to the plain run."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds, paper
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies.metrics import measured_rows, of_claims, of_measurements, of_training, train_rows

#: A run is compared with the run without a norm that shares these columns.
_GROUP: Final = ["problem", "lr", "seed"]
#: The metrics whose ratios to the `none` run are recorded.
_RATIOS: Final = [metric.name for metric in kinds.METRICS if metric.has_ratio]


def compare(
    sources: Sequence[Path | str], *, target_loss: float | None = None, target_accuracy: float | None = None
) -> pd.DataFrame:
    """Compare runs: one row per run, best first.

    Metrics of measurements are medians over training (`statistics.over_steps`), and over layers or units where there
    are several; `ratio_...` is a metric divided by that of the `none` run of the same problem, learning rate and seed.

    Args:
        sources: The folders of the runs.
        target_loss: Count the steps to this training loss; by default the last loss of the `none` run.
        target_accuracy: Count the steps to this test accuracy; by default the last one of the `none` run.

    Returns:
        The columns of a table of kind `compare`.

    Raises:
        InputError: If a folder is not a run, has no train table, or is given twice.

    >>> import tempfile
    >>> from bnsmooth_cli.training.run import train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = [train("dln", norm, steps=5, samples=20, output=f"{folder}/{norm}") for norm in ("none", "batch")]
    ...     bool(compare([run.path for run in runs])["ratio_final_loss"].notna().all())
    True
    """
    runs = [open_run(path) for path in sources]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(
            f"{max(names, key=names.count)}: given twice, or two runs with the same name; give each run once"
        )
    curves = {run.name: train_rows(run) for run in runs}
    frame = pd.DataFrame([_row(run, curves[run.name]) for run in runs])
    frame = with_ratios(_add_targets(frame, curves, target_loss, target_accuracy))
    order = ["problem", "final_test_accuracy", "final_loss", "run"]
    return frame.sort_values(order, ascending=[True, False, True, True], ignore_index=True)[
        list(kinds.get("compare").columns)
    ]


def _row(run: Run, rows: pd.DataFrame) -> dict[str, Any]:
    config = run.config
    return {
        "run": run.name,
        "problem": config.problem,
        "norm": config.norm,
        "lr": config.lr,
        "seed": config.seed,
        "steps": int(rows["step"].iloc[-1]),
        "diverged_at": rows.attrs["bnsmooth"].get("diverged_at"),
        **of_training(rows),
        **of_measurements(functools.partial(measured_rows, run)),
    }


@functools.cache
def published(problem: str, lrs: tuple[float, ...]) -> pd.DataFrame:
    """The runs that the paper's figures show, compared by the code that compares our runs.

    Args:
        problem: The problem.
        lrs: The learning rates.

    Returns:
        One row per norm and learning rate: the columns of `compare`, and the metrics that only the claims use; NaN
        where no figure shows what a metric needs. No rows if the paper shows no run of these.

    >>> rows = published("dln", (1e-6,)).set_index("norm")
    >>> rows.loc["none", "final_loss"].item(), bool(np.isnan(rows.loc["none", "sharpness"]))
    (1661.1, True)
    """
    shown = [paper.read(figure.name)[["norm", "lr"]] for figure in paper.FIGURES if figure.problem == problem]
    rows: list[dict[str, Any]] = []
    curves: dict[str, pd.DataFrame] = {}
    for norm, lr in pd.concat(shown).drop_duplicates().itertuples(index=False) if shown else ():
        if not np.isclose(lr, lrs, rtol=1e-6, atol=0).any():
            continue
        rows_of = functools.partial(_published_rows, problem, norm, lr)
        name, steps = f"{norm}, {lr:g}", resolve(problem, "paper").steps
        curves[name] = rows_of("train")
        about = {"run": name, "problem": problem, "norm": norm, "lr": lr, "seed": 0, "steps": steps}
        metrics = {**of_training(curves[name]), **of_measurements(rows_of), **of_claims(rows_of, steps)}
        rows.append({**about, "diverged_at": np.nan, **metrics})
    return with_ratios(_add_targets(pd.DataFrame(rows), curves, None, None)) if rows else pd.DataFrame()


def _published_rows(
    problem: str, norm: str, lr: float, kind: str, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    rows = paper.rows(kind, problem, norm, lr)
    return rows if columns is None else rows[list(columns)]


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
    """The runs without a norm, by problem, learning rate and seed."""
    return frame[frame["norm"] == "none"].drop_duplicates(_GROUP).set_index(_GROUP)


def with_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Add a column `ratio_...` for each metric: the ratio to the `none` run of the same group."""
    baseline = _plain_runs(frame)[_RATIOS].reindex(pd.MultiIndex.from_frame(frame[_GROUP]))
    metrics = frame[_RATIOS].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = pd.DataFrame(metrics.to_numpy() / baseline.to_numpy(np.float64), index=frame.index)
    ratios.columns = pd.Index([f"ratio_{name}" for name in _RATIOS])
    return pd.concat([frame.drop(columns=ratios.columns, errors="ignore"), ratios], axis=1)


def worst_where_diverged(comparison: pd.DataFrame) -> pd.DataFrame:
    """Replace missing results by the worst value, so that medians do not cover only the successful runs.

    A diverged run has an infinite last loss and an accuracy of 0. A target that is never reached takes infinitely many
    steps.
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
