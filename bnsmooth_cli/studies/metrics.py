"""The metrics of one run, computed from the rows of its tables, or of the paper's figures. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import DamagedError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.statistics import mean_over_steps, over_steps

#: Reads the rows of a run of one kind of table, of all columns or those that are named; no rows without a table.
Rows = Callable[..., pd.DataFrame]

#: Minibatch losses are compared as means over this many steps; the loss of a full batch as it is.
SMOOTHING: Final = 50
#: The last test accuracy is the mean of this many evaluations, of those in the last third of the run.
EVALUATIONS: Final = 5
#: A unit is not Gaussian if its excess kurtosis is larger in size than this ...
HEAVY: Final = 0.5
#: ... and lies further than this many standard deviations from that of a Gaussian sample: of large ones, 1 in 1,000.
DEVIATIONS: Final = 3.29


def _of_line(rows: pd.DataFrame) -> pd.DataFrame:
    free = rows["saturated"].eq(False) | np.isinf(rows["beta"].astype("float64"))
    return rows.assign(
        loss_range=rows["loss_max"] - rows["loss_min"],
        predictiveness=rows["predictiveness_max"],
        beta_unsaturated=rows["beta"].where(free),
        relative_predictiveness=rows["predictiveness_max"] / rows["grad_norm"],
        scaled_beta=rows["beta"] * rows["weight_norm"] ** 2,
    )


def _of_random_line(rows: pd.DataFrame) -> pd.DataFrame:
    line = rows[rows["alpha"] > 0].fillna({"loss": np.inf, "grad_distance": np.inf})  # NaN is an overflow
    by_step = line.groupby("step", as_index=False)
    extremes = by_step.agg(
        least=("loss", "min"), largest=("loss", "max"), random_predictiveness=("grad_distance", "max")
    )
    return extremes.assign(random_loss_range=extremes["largest"] - extremes["least"])


def _of_spectrum(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"largest": "largest_eigenvalue", "smallest": "smallest_eigenvalue"})


def _of_shift(rows: pd.DataFrame) -> pd.DataFrame:
    rows = tables.after_the_first(rows)
    return rows.assign(relative_ics=rows["ics"] / rows["grad_norm"], cosine_size=rows["cosine"].abs())


def _of_inputs(rows: pd.DataFrame) -> pd.DataFrame:
    movement = (rows["wasserstein"] / rows["std"]).replace(np.inf, np.nan)
    heavy = non_gaussian(rows["kurtosis"].to_numpy(np.float64), rows["values"].to_numpy(np.float64))
    return rows.assign(movement=movement, non_gaussian=heavy, kurtosis=rows["kurtosis"].abs())


def non_gaussian(kurtosis: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Whether an excess kurtosis is too large for m values of a Gaussian, and large in itself.

    Of m independent Gaussian values, the excess kurtosis has mean $-6 / (m + 1)$ and variance
    $24 m (m - 2) (m - 3) / ((m + 1)^2 (m + 3) (m + 5))$ (Fisher 1930; Cramer 1946, section 29.3). The values of a
    convolution's unit at neighbouring positions are correlated, so that a Gaussian unit may lie further from the mean;
    therefore its size must exceed HEAVY too.

    Args:
        kurtosis: Excess kurtoses of units.
        m: The numbers of values that they are of.

    Returns:
        1 where it is, 0 where it is not, and NaN where either is unknown.

    >>> non_gaussian(np.array([0.6, 0.6, 0.4]), np.array([128.0, 131072.0, 131072.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    mean = -6 / (m + 1)
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(24 * m * (m - 2) * (m - 3) / ((m + 1) ** 2 * (m + 3) * (m + 5)))
        heavy = (np.abs(kurtosis) > HEAVY) & (np.abs(kurtosis - mean) > DEVIATIONS * deviation)
    return np.where(np.isnan(kurtosis) | np.isnan(m), np.nan, heavy)


_MOMENTS: Final = tuple(f"{which}{name}_change" for which in ("", "probe_", "floor_") for name in ("mean", "var"))
#: The columns of a table that metrics are computed from, and how its rows get a column for each metric.
_COLUMNS: Final[dict[str, tuple[Sequence[str] | None, Callable[[pd.DataFrame], pd.DataFrame]]]] = {
    "smoothness": (None, _of_line),
    "landscape-random": (("step", "alpha", "loss", "grad_distance"), _of_random_line),
    "spectrum": (("step", "largest", "smallest", "trace", "top_share", "effective_rank"), _of_spectrum),
    "ics": (("step", "layer", "grad_norm", "ics", "cosine"), _of_shift),
    "activations": (("step", "layer", "unit", "std", "wasserstein", *_MOMENTS, "kurtosis", "values"), _of_inputs),
    "theory": (
        (
            "step",
            "layer",
            "unit",
            "statement",
            "affine",
            "lhs",
            "holds",
            "condition",
            "grad_norm",
            "curvature",
            "mean_fraction",
            "output_fraction",
            "reduction",
        ),
        lambda rows: rows,
    ),
}
#: The metrics that are a share of the run, not a median over it.
_SHARES: Final = ("saturated", "non_gaussian")


def prepared(rows_of: Rows, kind: str) -> pd.DataFrame:
    """The rows of a kind of table with a column for each metric that is computed from it; no rows without a table."""
    columns, prepare = _COLUMNS[kind]
    return prepare(bare(rows_of(kind, columns)))


def bare(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without their attributes, which pandas copies deeply in every operation: half of a comparison's time."""
    rows.attrs = {}
    return rows


def train_rows(run: Run) -> pd.DataFrame:
    """The rows of a run's train table, with the loss and its penalty smoothed for comparison."""
    rows = _read(run, run.train_path, "train")
    if rows.empty:
        raise DamagedError(f"{run.train_path}: a finished run without rows")
    if run.config.batch_size != run.config.settings.full_batch:
        losses = ["loss", "penalty"]
        overflow = ~np.isfinite(rows["loss"].astype("float64"))
        rows[losses] = rows[losses].astype("float64").rolling(SMOOTHING, min_periods=1).mean()
        rows.loc[overflow, "loss"] = np.inf  # which the rolling mean leaves out
    return rows


def measured_rows(run: Run, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a run's table of a kind; no rows if it has not been measured."""
    path = run.source().table_path(kind)
    if not path.is_file():
        return pd.DataFrame(columns=list(columns or kinds.get(kind).columns), dtype="float64")
    return _read(run, path, kind, columns)


def measured_options(run: Run) -> dict[str, dict[str, Any]]:
    """The options that the numbers in a run's tables depend on, by the kinds of tables that metrics come from.

    Raises:
        DamagedError: If a table cannot be read, or is of another run.
    """
    options = {}
    for kind in dict.fromkeys(metric.kind for metric in kinds.METRICS if metric.kind != "train"):
        path = run.source().table_path(kind)
        if not path.is_file():
            continue
        provenance = tables.read_provenance(path, kind)
        run.check_provenance(path, provenance)
        left_out = {*kinds.SELECTING, *kinds.get(kind).additions}
        (by_run,) = (provenance.get("options") or {"": {}}).values()
        options[kind] = {name: value for name, value in by_run.items() if name not in left_out}
    return options


def _read(run: Run, path: Path, kind: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    rows = tables.read_table(path, kind, columns)
    run.check_provenance(path, rows.attrs["bnsmooth"])
    return rows


def of_training(rows: pd.DataFrame) -> dict[str, float]:
    """The metrics of a train table: `train_rows`."""
    tested = rows[rows["test_accuracy"].notna()]
    last = tested["test_accuracy"][tested["step"] >= 2 / 3 * rows["step"].iloc[-1]].tail(EVALUATIONS)
    return {
        "initial_loss": rows["loss"].iloc[0],
        "final_loss": rows["loss"].iloc[-1],
        "best_loss": rows["loss"].min(),
        "mean_log_loss": mean_over_steps(rows["step"], logarithm(rows["loss"])),
        "mean_accuracy": mean_over_steps(rows["step"], rows["accuracy"]),
        "final_test_accuracy": (last if len(last) else tested["test_accuracy"].tail(1)).mean(),
        "best_test_accuracy": tested["test_accuracy"].max(),
    }


def logarithm(losses: pd.Series[float]) -> pd.Series[float]:
    """The natural logarithm of losses; NaN for all of them if one is negative, as the others would misrepresent them.

    >>> bool(logarithm(pd.Series([1.0, -1.0])).isna().all())
    True
    """
    with np.errstate(divide="ignore"):
        return pd.Series(np.log(losses * np.nan if (losses < 0).any() else losses), index=losses.index)


def of_measurements(rows_of: Callable[[str], pd.DataFrame]) -> dict[str, float]:
    """Every metric of `kinds.METRICS` that comes from a measurement: the median over training, NaN if not measured.

    Args:
        rows_of: Gives the `prepared` rows of a kind of table.
    """
    metrics = {}
    for kind in dict.fromkeys(metric.kind for metric in kinds.METRICS if metric.kind != "train"):
        rows = rows_of(kind)
        for name in (metric.name for metric in kinds.METRICS if metric.kind == kind):
            metrics[name] = (mean_over_steps if name in _SHARES else over_steps)(rows["step"], rows[name])
    return metrics


def by_layer(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The metrics of a kind of table by step, and by layer if the rows have one.

    Units are not the same ones in two runs, so that the median over a layer's units stands for them.

    Args:
        rows: The prepared rows of a run.
        kind: The kind of table.
    """
    keys = [key for key in ("step", "layer") if key in rows]
    metrics = [metric.name for metric in kinds.METRICS if metric.kind == kind]
    indexed = rows.set_index(keys)[metrics].astype("float64")
    return indexed.groupby(level=keys).median() if "unit" in rows else indexed


def paired(layers: pd.DataFrame, others: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric of two runs at the steps, and in the layers, that both have measured.

    Comparing the same step and layer first, and steps and layers afterwards, keeps apart what differs between layers
    and what differs between runs.

    Args:
        layers: The metrics of one run (`by_layer`).
        others: Those of the other run.
        metric: The column.

    Returns:
        The columns `step`, `a` (of one run) and `b` (of the other), with NaN where a value is unknown: the step was
        measured, and counts as such in the weights of `statistics.over_steps`.

    >>> rows = [pd.DataFrame({"step": steps, "beta": 1.0}).set_index(["step"]) for steps in ([0, 5, 10], [0, 10, 20])]
    >>> paired(*rows, "beta")["step"].tolist()
    [0, 10]
    """
    return pd.concat({"a": layers[metric], "b": others[metric]}, axis=1, join="inner").reset_index()
