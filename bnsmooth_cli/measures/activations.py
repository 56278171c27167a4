"""The distributions of the inputs to the non-linearities. Santurkar et al. (2018), figures 1c, 2, 7, 8 and 14."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.selection import Selected, select
from bnsmooth_cli.measures.selection import plan as plan_units
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.presets import find_problem
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.randomness import generator

LAYERS: Final = 5  # number of layers spread over the depth, where the paper shows none
UNITS: Final = 5  # default number of units per layer
#: The probabilities of the column `quantiles`, whose values represent a distribution with equal weights.
PROBABILITIES: Final = (np.arange(100) + 0.5) / 100
Values = Float64[np.ndarray, "units m"]
PerUnit = Float64[np.ndarray, " units"]
#: The columns that are null without `probe`.
_PROBED: Final = (
    "probe_mean", "probe_std", "probe_mean_change", "probe_var_change", "floor_mean_change", "floor_var_change"
)  # fmt: skip
_NAMED: Final = {f"q{percent:02d}": percent / 100 for percent in (1, 5, 25, 50, 75, 95, 99)}


@measured
def activations(
    point: Point, layers: Sequence[str] | None = None, units: Sequence[int] | None = None, probe: bool = False
) -> pd.DataFrame:
    r"""Measure how the inputs to the non-linearities are distributed: Santurkar et al. (2018), figures 1c, 2, 7, 8.

    A unit's distribution consists of the m outputs z of its norm over the batch (over samples and, in convolutions,
    height and width), with the noise of the step. Its moments are
    $$\mu = E[z], \quad \sigma^2 = E[(z - \mu)^2], \quad
    E[(z - \mu)^3] / \sigma^3, \quad E[(z - \mu)^4] / \sigma^4 - 3,$$
    where E is the mean over the m values. The last one, the excess kurtosis, is 0 for a Gaussian distribution. That of
    m independent Gaussian values is not: its mean is $-6 / (m + 1)$ and its variance
    $24 m (m - 2)(m - 3) / ((m + 1)^2 (m + 3)(m + 5))$ (Fisher 1930; Cramér 1946). Values at neighbouring
    positions of a convolution are correlated, so they count as fewer than m.

    The batches of two steps differ, so the moments differ between them even if the weights do not. With `probe`, two
    more batches separate sampling from training. The probe batch is that of step 0: at every step, its moments come
    from the weights and the noise of that step. The floor is the change of the moments from the batch and the noise of
    step t to those of step t + 1, at the weights of step t. BatchNorm sets both moments, so its floor is rounding.

    Args:
        point: Where to measure.
        layers: Layers by name or number. By default, those that the paper shows (`presets.PROBLEMS` has them), or
            LAYERS layers spread over the depth of a network that lacks some of them.
        units: Units of each layer; by default UNITS units, sampled by the run's seed.
        probe: Whether to measure the probe batch and the floor too. This takes two more forward passes.

    Returns:
        One row per layer and unit. Columns: `layer`, `layer_name`, `unit`, `values` (m), `mean`, `std`, `skewness`,
        `kurtosis`, the quantiles `q01` to `q99`, `sigma` (the standard deviation of the linear map's output, by which
        BatchNorm divides), `probe_mean` and `probe_std`, `floor_mean_change` $|\mu' - \mu|$ and `floor_var_change`
        $|\sigma'^2 - \sigma^2|$, and `quantiles` (at PROBABILITIES). Without `probe`, the columns of the probe and
        the floor are null. `moved` compares steps: until then, `wasserstein` and the changes since another step are
        null, and `mean_drift` and `var_drift` are 0. The skewness and kurtosis of a constant unit are null.

    Raises:
        InputError: If the network does not have a layer or unit, or `probe` is asked of your own training loop, whose
            batches of other steps are unknown.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, output=f"{folder}/run")
    ...     rows = bns.activations(bns.load_point(run), layers=["fc1"], probe=True)
    >>> len(rows), bool((abs(rows["mean"]) < 1e-3).all()), float(rows["floor_mean_change"].max())
    (5, True, 0.0)
    """
    if probe and isinstance(point.problem, ExternalLoop):
        raise InputError("--probe: a point of your own loop has no batches of other steps; leave it out")
    point = point.at("batch")
    selected = select(point.structure, layers, units)
    if layers is None:
        selected = _default_layers(selected, find_problem(point.config.problem).layers)
    if not units:
        selected = [_sample(layer, point.config.seed) for layer in selected]
    for site in (layer.site for layer in selected):
        if site.unfit:
            remark(
                f"layer {site.name}: measured before {site.unfit}, which is no norm: its output is not an affine "
                "function of its normalised input", point.model,
            )  # fmt: skip
    outputs = _outputs([*(layer.site.linear for layer in selected), *map(_last, selected)], point)
    pairs = zip(selected, outputs[: len(selected)], outputs[len(selected) :], strict=True)
    rows = pd.concat([_rows(layer, y, z) for layer, y, z in pairs], ignore_index=True)
    if probe:
        probed = _moments_on(point, selected, batch=0, noise=point.step)
        ahead = _moments_on(point, selected, batch=point.step + 1, noise=point.step + 1)
        floor = {f"floor_{name}_change": _finite(np.abs(change)) for name, change in _changes(rows, ahead).items()}
        rows = rows.assign(probe_mean=probed["mean"], probe_std=probed["std"], **floor)
    return rows


def plan(
    config: Config, layers: Sequence[str] | None = None, units: Sequence[int] | None = None, probe: bool = False
) -> dict[str, Any]:
    """The keyword arguments of `activations`."""
    return {**plan_units(config, layers, units), **({"probe": True} if probe else {})}


def _default_layers(layers: list[Selected], shown: Sequence[int]) -> list[Selected]:
    """The layers that the paper shows, or LAYERS layers spread over the depth of a network that lacks some of them."""
    numbered = {layer.site.number: layer for layer in layers}
    if shown and all(number in numbered for number in shown):
        return [numbered[number] for number in shown]
    return [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, LAYERS)})]


def _sample(selected: Selected, seed: int) -> Selected:
    order = torch.randperm(len(selected.units), generator=generator(seed, "units", place=selected.site.number))
    return selected._replace(units=selected.units[order[:UNITS]].sort().values)


def _last(selected: Selected) -> nn.Module:
    """The module whose output is the input of the non-linearity."""
    return [selected.site.linear, *selected.site.norms][-1]


def _outputs(modules: Sequence[nn.Module], point: Point) -> list[Tensor]:
    with point.problem.forward_only():
        return [output for _, output in captured(modules, point.loss)]


def _rows(selected: Selected, y: Tensor, z: Tensor) -> pd.DataFrame:
    from scipy import stats  # takes half a second to import, which no other command needs

    before, after = _values(selected, y), _values(selected, z)
    with np.errstate(invalid="ignore"):
        named, evenly = np.quantile(after, [*_NAMED.values()], axis=1), np.quantile(after, PROBABILITIES, axis=1)
        shape = {"skewness": stats.skew(after, axis=1), "kurtosis": stats.kurtosis(after, axis=1)}
        moments = _moments(after)
        return pd.DataFrame(
            {
                "layer": selected.site.number,
                "layer_name": selected.site.name,
                "unit": selected.units.numpy(),
                "values": after.shape[1],
                **moments,
                **shape,
                **dict(zip(_NAMED, named, strict=True)),
                "sigma": before.std(1),
                **_unmoved(moments),
                **dict.fromkeys(_PROBED, np.nan),
                "quantiles": list(evenly.T),
            }
        )


def _moments_on(point: Point, selected: Sequence[Selected], batch: int, noise: int) -> pd.DataFrame:
    """The moments of the units at the point's weights, on the batch of one step and with the noise of one step."""
    inputs, targets = point.problem.batch(batch)
    outputs = _outputs([*map(_last, selected)], dataclasses.replace(point, inputs=inputs, targets=targets, step=noise))
    with np.errstate(invalid="ignore"):
        moments = [_moments(_values(layer, z)) for layer, z in zip(selected, outputs, strict=True)]
    return pd.concat(map(pd.DataFrame, moments), ignore_index=True)


def _values(selected: Selected, output: Tensor) -> Values:
    """The values of the selected units, in float64: in float32, a large mean would cost the moments their digits."""
    units = selected.units.to(output.device)
    chosen = selected.site.by_unit(output).index_select(1, units).movedim(1, 0).flatten(1)
    return chosen.cpu().double().numpy()


def _moments(values: Values) -> dict[str, PerUnit]:
    return {"mean": values.mean(1), "std": values.std(1)}


def _unmoved(moments: Mapping[str, Any] | pd.DataFrame) -> dict[str, Any]:
    """The columns that compare a step with the measured steps before it, at the first of them."""
    return {
        **dict.fromkeys(("wasserstein", "mean_change", "var_change"), np.nan),
        "mean_drift": moments["mean"] - moments["mean"],  # 0, or NaN after an overflow
        "var_drift": moments["std"] - moments["std"],
    }


def _changes(before: pd.DataFrame, rows: pd.DataFrame, batch: str = "") -> dict[str, PerUnit]:
    """The changes of the mean and the variance of each unit; `batch` begins the names of the moments' columns."""
    mean, std = f"{batch}mean", f"{batch}std"
    with np.errstate(invalid="ignore", over="ignore"):
        return {
            mean: rows[mean].to_numpy() - before[mean].to_numpy(),
            f"{batch}var": np.square(rows[std].to_numpy()) - np.square(before[std].to_numpy()),
        }


def _finite(values: PerUnit) -> PerUnit:
    return np.where(np.isfinite(values), values, np.nan)


def moved(before: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame:
    r"""Compare each unit's distribution at two steps of a run: Santurkar et al. (2018), figure 7.

    The changes are $|\mu_t - \mu_s|$ and $|\sigma_t^2 - \sigma_s^2|$ from the earlier step s to the later step t, and
    the drifts $\mu_t - \mu_0$ and $\sigma_t^2 - \sigma_0^2$ from the first step. The changes on the probe batch are
    those of its moments. The distance is $W_1(P, Q) = \int_0^1 |F_P^{-1}(u) - F_Q^{-1}(u)| du$, computed from the
    column `quantiles`.

    Args:
        before: The rows of the earlier step, completed by this function; None if the later step is the first.
        rows: The rows of the later step, of the same units.

    Returns:
        The later rows with the columns `wasserstein`, `mean_change`, `var_change`, `mean_drift`, `var_drift`,
        `probe_mean_change` and `probe_var_change`; null where a moment or a quantile is not finite, or not measured. At
        the first step, the changes are null and the drifts are 0.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=4, save_every=2, output=f"{folder}/run")
    ...     steps = [bns.activations(bns.load_point(run, step), layers=["fc1"]) for step in (0, 2, 4)]
    >>> rows = moved(moved(steps[0], steps[1]), steps[2])
    >>> bool(np.allclose(rows["mean_drift"], steps[2]["mean"] - steps[0]["mean"]))
    True
    """
    if before is None:
        return rows.assign(probe_mean_change=np.nan, probe_var_change=np.nan, **_unmoved(rows))
    earlier, later = (np.stack(list(frame["quantiles"])) for frame in (before, rows))
    changes = _changes(before, rows)
    with np.errstate(invalid="ignore"):
        columns = {"wasserstein": np.abs(later - earlier).mean(1)}
        for name, change in (changes | _changes(before, rows, "probe_")).items():
            columns[f"{name}_change"] = np.abs(change)
        for name, change in changes.items():
            columns[f"{name}_drift"] = before[f"{name}_drift"].to_numpy() + change
    return rows.assign(**{name: _finite(values) for name, values in columns.items()})


MEASUREMENT: Final = Measurement(activations, plan, select, since=moved)
