"""The distributions of the inputs to the non-linearities: Santurkar et al. (2018), figures 1c, 2, 7, 8 and 14."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.measures.selection import Selected, plan, select
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator

LAYERS: Final = 5  # layers over the depth, unless chosen
UNITS: Final = 5  # units a layer, unless chosen
#: The probabilities of `quantiles`: the distribution as so many points of equal weight.
PROBABILITIES: Final = (np.arange(100) + 0.5) / 100
_NAMED: Final = {f"q{percent:02d}": percent / 100 for percent in (1, 5, 25, 50, 75, 95, 99)}


def activations(point: Point, layers: Sequence[str] | None = None, units: Sequence[int] | None = None) -> pd.DataFrame:
    r"""How a unit's inputs to its non-linearity are distributed over the batch: one row a layer and unit.

    The m values $z_j$ of a unit (over samples, and a convolution's height and width) are those that its norm puts out,
    the step's noise included. Columns: `mean`, `std` (divided by m), `skewness` $E[(z - \mu)^3] / \sigma^3$, `kurtosis`
    $E[(z - \mu)^4] / \sigma^4 - 3$ (0 for a Gaussian), the quantiles `q01` to `q99`, and `quantiles`, those at
    PROBABILITIES. `sigma` is the deviation of the linear map's output before the norm: what BatchNorm divides by.
    `wasserstein` is filled in by `moved`, where several steps are measured.

    By default LAYERS layers spread over the depth and a sample of UNITS units a layer, which is a function of the run's
    seed. Raises InputError for layers and units that are not there.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, output=f"{folder}/run")
    ...     rows = bns.activations(bns.load_point(run), layers=["fc1"])
    >>> len(rows), bool((abs(rows["mean"]) < 1e-3).all())
    (5, True)
    """
    point = point.at("batch")
    selected = select(point.sites, layers, units)
    if layers is None:
        selected = [selected[i] for i in sorted({round(i) for i in np.linspace(0, len(selected) - 1, LAYERS)})]
    if not units:
        selected = [_sample(one, point.config.seed) for one in selected]
    ends = [module for one in selected for module in (one.site.linear, [one.site.linear, *one.site.norms][-1])]
    with torch.no_grad():
        outputs = [output for _, output in captured(ends, point.loss)]
    pairs = zip(selected, outputs[::2], outputs[1::2], strict=True)
    return label(point, pd.concat([_rows(one, y, z) for one, y, z in pairs], ignore_index=True))


def _sample(selected: Selected, seed: int) -> Selected:
    order = torch.randperm(len(selected.units), generator=generator(seed, "units", place=selected.number))
    return selected._replace(units=selected.units[order[:UNITS]].sort().values)


def _rows(selected: Selected, y: Tensor, z: Tensor) -> pd.DataFrame:
    from scipy import stats  # half a second, which no other command should wait for

    before, after = (_values(selected.site.by_unit(tensor), selected.units) for tensor in (y, z))
    with np.errstate(invalid="ignore"):
        named, evenly = np.quantile(after, [*_NAMED.values()], axis=1), np.quantile(after, PROBABILITIES, axis=1)
        # A unit that is constant has no shape: null.
        shape = {"skewness": stats.skew(after, axis=1), "kurtosis": stats.kurtosis(after, axis=1)}
        return pd.DataFrame(
            {
                "layer": selected.number,
                "layer_name": selected.name,
                "unit": selected.units.numpy(),
                "mean": after.mean(1),
                "std": after.std(1),
                **shape,
                **dict(zip(_NAMED, named, strict=True)),
                "sigma": before.std(1),
                "wasserstein": np.nan,
                "quantiles": list(evenly.T),
            }
        )


def _values(activations: Tensor, units: Tensor) -> NDArray[Any]:
    """(C chosen, m) in float64: the moments of float32 values lose what a far mean takes."""
    chosen = activations.index_select(1, units.to(activations.device)).movedim(1, 0).flatten(1)
    values: NDArray[Any] = chosen.cpu().double().numpy()
    return values


def moved(before: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    r"""The rows with `wasserstein`, how far each unit's distribution has moved since the rows `before` of the same run.

    $W_1(P, Q) = \int_0^1 |F_P^{-1}(u) - F_Q^{-1}(u)| du$, P and Q given by their `quantiles`: points of equal weight.
    In the unit of the activations; null where either has an infinity, and at a run's first measured step.
    """
    here, there = (np.stack(list(frame["quantiles"])) for frame in (before, rows))
    with np.errstate(invalid="ignore"):
        distance = np.abs(there - here).mean(1)
    return rows.assign(wasserstein=np.where(np.isfinite(distance), distance, np.nan))


MEASUREMENT: Final = Measurement(activations, plan, moved)
