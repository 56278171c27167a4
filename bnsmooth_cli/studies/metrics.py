"""The metrics of one run, computed from the rows of its tables, or of the paper's figures. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import DamagedError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.statistics import over_steps, share_over_steps

#: Reads the rows of a run of one kind of table, of all columns or those that are named; no rows without a table.
Rows = Callable[..., pd.DataFrame]

#: Minibatch losses are compared as means over this many steps; the loss of a full batch as it is.
SMOOTHING: Final = 50
#: "Early" is this first part of a run's steps.
EARLY: Final = 0.1
_LINE: Final = ("loss_range", "predictiveness")
#: The kind of table that each metric is computed from. The claims use more metrics than `kinds.METRICS` has.
KIND_OF: Final = {
    **{metric.name: metric.kind for metric in kinds.METRICS},
    **{f"{when} {name}": "smoothness" for when in ("early", "late") for name in _LINE},
    **{f"holds {statement}": "theory" for statement in kinds.PROVED},
    "condition": "theory",
    "reduction": "theory",
}


def _of_line(rows: pd.DataFrame) -> pd.DataFrame:
    free = rows["saturated"].eq(False) | np.isinf(rows["beta"].astype("float64"))
    return _of_any_line(rows).assign(beta_unsaturated=rows["beta"].where(free))


def _of_random_line(rows: pd.DataFrame) -> pd.DataFrame:
    return _of_any_line(rows).rename(columns={name: f"random_{name}" for name in _LINE})


def _of_any_line(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(loss_range=rows["loss_max"] - rows["loss_min"], predictiveness=rows["predictiveness_max"])


def _of_shift(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["layer"] > 1]  # nothing moves before the first layer


def _of_inputs(rows: pd.DataFrame) -> pd.DataFrame:
    movement = (rows["wasserstein"] / rows["std"]).replace(np.inf, np.nan)
    return rows.assign(movement=movement, kurtosis=rows["kurtosis"].abs())


#: The columns of a table that metrics are computed from, and how its rows get a column for each metric.
_COLUMNS: Final[dict[str, tuple[Sequence[str] | None, Callable[[pd.DataFrame], pd.DataFrame]]]] = {
    "smoothness": (None, _of_line),
    "smoothness-random": (None, _of_random_line),
    "ics": (("step", "layer", "ics", "cosine"), _of_shift),
    "activations": (("step", "std", "wasserstein", "mean_change", "var_change", "kurtosis"), _of_inputs),
}
#: The metrics that are a share of the run, not a median over it.
_SHARES: Final = ("saturated",)


def train_rows(run: Run) -> pd.DataFrame:
    """The rows of a run's train table, with the loss smoothed for comparison."""
    rows = _read(run, run.train_path, "train")
    if rows.empty:
        raise DamagedError(f"{run.train_path}: a finished run without rows")
    if run.config.batch_size != run.config.settings.full_batch:
        rows["loss"] = rows["loss"].rolling(SMOOTHING, min_periods=1).mean()
    return rows


def measured_rows(run: Run, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a run's table of a kind; no rows if it has not been measured."""
    path = run.source().table_path(kind)
    if not path.is_file():
        return pd.DataFrame(columns=list(columns or kinds.get(kind).columns), dtype="float64")
    return _read(run, path, kind, columns)


def _read(run: Run, path: Path, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    rows = tables.read_table(path, kind, columns)
    run.check_provenance(path, rows.attrs["bnsmooth"])
    return rows


def of_training(rows: pd.DataFrame) -> dict[str, float]:
    """The losses and accuracies that `train_rows` begin and end with, and the best ones."""
    tested = rows["test_accuracy"].dropna()
    return {
        "initial_loss": rows["loss"].iloc[0],
        "final_loss": rows["loss"].iloc[-1],
        "best_loss": rows["loss"].min(),
        "final_test_accuracy": tested.iloc[-1] if len(tested) else np.nan,
        "best_test_accuracy": tested.max(),
    }


def of_measurements(rows_of: Rows) -> dict[str, float]:
    """Every metric of `kinds.METRICS` that comes from a measurement: the median over training, NaN if not measured."""
    metrics = {}
    for kind, (columns, prepare) in _COLUMNS.items():
        rows = prepare(rows_of(kind, columns))
        for name in (metric.name for metric in kinds.METRICS if metric.kind == kind):
            metrics[name] = (share_over_steps if name in _SHARES else over_steps)(rows["step"], rows[name])
    return metrics


def of_claims(rows_of: Rows, steps: int) -> dict[str, float]:
    """The metrics that only the claims use: those of the line early and late in a run, and the shares of the theory."""
    rows = _of_line(rows_of("smoothness"))
    early = rows["step"] <= EARLY * steps
    metrics = {
        f"{when} {name}": over_steps(rows["step"][chosen], rows[name][chosen])
        for name in _LINE
        for when, chosen in (("early", early), ("late", ~early))
    }
    rows = rows_of("theory", ["statement", "holds", "condition", "mean_fraction", "output_fraction"])
    cases = {statement: rows[rows["statement"] == statement] for statement in kinds.PROVED}
    metrics |= {f"holds {name}": float(of_one["holds"].astype("float64").mean()) for name, of_one in cases.items()}
    metrics["condition"] = float(cases["4.2"]["condition"].astype("float64").mean())
    metrics["reduction"] = float((cases["4.1"]["mean_fraction"] + cases["4.1"]["output_fraction"]).median())
    return metrics
