"""The distributions of the inputs to the non-linearities. Santurkar et al. (2018), figures 1c, 2, 7, 8 and 14."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from bnsmooth_cli.config import find_problem
from bnsmooth_cli.errors import Remark
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.selection import Selected, plan, select
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator

LAYERS: Final = 5  # number of layers spread over the depth, where the paper shows none
UNITS: Final = 5  # default number of units per layer
#: The probabilities of the column `quantiles`, whose values represent a distribution with equal weights.
PROBABILITIES: Final = (np.arange(100) + 0.5) / 100
Values = Float64[np.ndarray, "units m"]
_NAMED: Final = {f"q{percent:02d}": percent / 100 for percent in (1, 5, 25, 50, 75, 95, 99)}


@measured
def activations(point: Point, layers: Sequence[str] | None = None, units: Sequence[int] | None = None) -> pd.DataFrame:
    r"""Measure how the inputs to the non-linearities are distributed: Santurkar et al. (2018), figures 1c, 2, 7, 8.

    A unit's distribution consists of the m outputs z of its norm over the batch (over samples and, in convolutions,
    height and width), with the noise of the step. Its moments are
    $$\mu = E[z], \quad \sigma^2 = E[(z - \mu)^2], \quad
    E[(z - \mu)^3] / \sigma^3, \quad E[(z - \mu)^4] / \sigma^4 - 3,$$
    where E is the mean over the m values. The last one, the excess kurtosis, is 0 for a Gaussian.

    Args:
        point: Where to measure.
        layers: Layers by name or number. By default, those that the paper shows (`config.PROBLEMS` has them), or
            LAYERS layers spread over the depth of a network that lacks some of them.
        units: Units of each layer; by default UNITS units, sampled by the run's seed.

    Returns:
        One row per layer and unit. Columns: `layer`, `layer_name`, `unit`, `mean`, `std`, `skewness`, `kurtosis`, the
        quantiles `q01` to `q99`, `sigma` (the standard deviation of the linear map's output, by which BatchNorm
        divides) and `quantiles` (at PROBABILITIES). `moved` compares steps: until then, `wasserstein`, `mean_change`
        and `var_change` are null, and `mean_drift` and `var_drift` are 0. The skewness and kurtosis of a constant unit
        are null.

    Raises:
        InputError: If the network does not have a layer or unit.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, output=f"{folder}/run")
    ...     rows = bns.activations(bns.load_point(run), layers=["fc1"])
    >>> len(rows), bool((abs(rows["mean"]) < 1e-3).all())
    (5, True)
    """
    point = point.at("batch")
    selected = select(point.structure, layers, units)
    if layers is None:
        selected = _default_layers(selected, find_problem(point.config.problem).layers)
    if not units:
        selected = [_sample(layer, point.config.seed) for layer in selected]
    sites = [layer.site for layer in selected]
    for site in sites:
        if site.unfit:
            warnings.warn(
                f"layer {site.name}: measured before {site.unfit}, which is no norm: its output is not an affine "
                "function of its normalised input", Remark, stacklevel=2,
            )  # fmt: skip
    ends = [module for site in sites for module in (site.linear, [site.linear, *site.norms][-1])]
    with point.problem.forward_only():
        outputs = [output for _, output in captured(ends, point.loss)]
    pairs = zip(selected, outputs[::2], outputs[1::2], strict=True)
    return pd.concat([_rows(layer, y, z) for layer, y, z in pairs], ignore_index=True)


def _default_layers(layers: list[Selected], shown: Sequence[int]) -> list[Selected]:
    """The layers that the paper shows, or LAYERS layers spread over the depth of a network that lacks some of them."""
    numbered = {layer.site.number: layer for layer in layers}
    if shown and all(number in numbered for number in shown):
        return [numbered[number] for number in shown]
    return [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, LAYERS)})]


def _sample(selected: Selected, seed: int) -> Selected:
    order = torch.randperm(len(selected.units), generator=generator(seed, "units", place=selected.site.number))
    return selected._replace(units=selected.units[order[:UNITS]].sort().values)


def _rows(selected: Selected, y: Tensor, z: Tensor) -> pd.DataFrame:
    from scipy import stats  # takes half a second to import, which no other command needs

    before, after = (_values(selected.site.by_unit(tensor), selected.units) for tensor in (y, z))
    with np.errstate(invalid="ignore"):
        named, evenly = np.quantile(after, [*_NAMED.values()], axis=1), np.quantile(after, PROBABILITIES, axis=1)
        shape = {"skewness": stats.skew(after, axis=1), "kurtosis": stats.kurtosis(after, axis=1)}
        mean, std = after.mean(1), after.std(1)
        return pd.DataFrame(
            {
                "layer": selected.site.number,
                "layer_name": selected.site.name,
                "unit": selected.units.numpy(),
                "mean": mean,
                "std": std,
                **shape,
                **dict(zip(_NAMED, named, strict=True)),
                "sigma": before.std(1),
                **dict.fromkeys(("wasserstein", "mean_change", "var_change"), np.nan),
                "mean_drift": mean - mean,  # 0, or NaN after an overflow
                "var_drift": std - std,
                "quantiles": list(evenly.T),
            }
        )


def _values(activations: Float[Tensor, "batch all ..."], units: Int[Tensor, " units"]) -> Values:
    """The values of the selected units, in float64: in float32, a large mean would cost the moments their digits."""
    chosen = activations.index_select(1, units.to(activations.device)).movedim(1, 0).flatten(1)
    return chosen.cpu().double().numpy()


def moved(before: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    r"""Compare each unit's distribution at two steps of a run: Santurkar et al. (2018), figure 7.

    The changes are $|\mu_t - \mu_s|$ and $|\sigma_t^2 - \sigma_s^2|$ from the earlier step s to the later step t, and
    the drifts $\mu_t - \mu_0$ and $\sigma_t^2 - \sigma_0^2$ from the first step. The distance is
    $W_1(P, Q) = \int_0^1 |F_P^{-1}(u) - F_Q^{-1}(u)| du$, computed from the column `quantiles`.

    Args:
        before: The rows of the earlier step: as `activations` returns them if it is the first step, and otherwise
            completed by this function.
        rows: The rows of the later step, of the same units.

    Returns:
        The later rows with the columns `wasserstein`, `mean_change`, `var_change`, `mean_drift` and `var_drift`; null
        where a moment or a quantile is not finite.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=4, save_every=2, output=f"{folder}/run")
    ...     steps = [bns.activations(bns.load_point(run, step), layers=["fc1"]) for step in (0, 2, 4)]
    >>> rows = moved(moved(steps[0], steps[1]), steps[2])
    >>> bool(np.allclose(rows["mean_drift"], steps[2]["mean"] - steps[0]["mean"]))
    True
    """
    earlier, later = (np.stack(list(frame["quantiles"])) for frame in (before, rows))
    with np.errstate(invalid="ignore"):
        columns = {"wasserstein": np.abs(later - earlier).mean(1)}
        here, there = (
            {"mean": frame["mean"].to_numpy(), "var": np.square(frame["std"].to_numpy())} for frame in (rows, before)
        )
        for name in here:
            change = here[name] - there[name]
            columns |= {f"{name}_change": np.abs(change), f"{name}_drift": before[f"{name}_drift"].to_numpy() + change}
    return rows.assign(**{name: np.where(np.isfinite(value), value, np.nan) for name, value in columns.items()})


MEASUREMENT: Final = Measurement(activations, plan, select, since=moved)
