"""Internal covariate shift. Definition 2.1 of Santurkar et al. (2018)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.selection import plan_layers
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.parameters import flatten, restored, unflatten
from bnsmooth_cli.networks.structure import Names, chosen_layers, layer_numbers
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product
from bnsmooth_cli.norms.state import prepared
from bnsmooth_cli.points.point import Point

Theta = Float[Tensor, " n"]


@measured
def ics(point: Point, layers: Sequence[str] | None = None) -> pd.DataFrame:
    r"""Measure how much each layer's gradient changes when the layers before it step (definition 2.1, figure 3).

    With $W_i$ the parameters of layer i, those of its norm included,
    $$G_i = \nabla_{W_i} L(W_1^t, \dots, W_k^t), \qquad
    G'_i = \nabla_{W_i} L(W_1^{t+1}, \dots, W_{i-1}^{t+1}, W_i^t, \dots, W_k^t),$$
    where $W^{t+1}$ is the result of the run's own optimiser step on the batch of step t. The internal covariate shift
    of the layer is $\|G_i - G'_i\|$.

    Args:
        point: Where to measure.
        layers: The layers $W_1, \dots, W_k$ in order, by name or number, or other modules of the network; all layers by
            default. Parameters outside these layers do not step.

    Returns:
        One row per layer. Columns: `layer`, `layer_name`, `grad_norm` $\|G_i\|$, `grad_norm_updated` $\|G'_i\|$, `ics`
        and `cosine` (of $G_i$ and $G'_i$). For layer 1, which has no layer before it, these are exactly 0 and 1.

    Raises:
        InputError: If the network does not have a layer.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "none", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.ics(bns.load_point(run))[["layer", "ics", "cosine"]].values[0].tolist()
    [1.0, 0.0, 1.0]
    """
    point = point.at("batch")
    chosen = chosen_layers(point.structure, layers)
    theta = point.theta
    (gradient,) = point.gradients_at(theta[None])[1]
    updated = point.optimiser.moved(gradient, point.step)

    parameters = point.parameters
    slopes = dict(zip(parameters, unflatten(gradient, parameters.values()), strict=True))
    before = [flatten(slopes[name] for name in names) for _, names in chosen]
    shifted: Iterable[Tensor]  # G' of every layer from the second on
    if layers is None and point.fast_path is not None:
        shifted = _at_once(point, before, theta, updated)
    else:
        values = dict(zip(parameters, unflatten(updated, parameters.values()), strict=True))
        shift = _of_chain if point.chain is not None and chosen == point.layers else _of_any
        with restored(parameters.values()):
            shifted = list(shift(point, chosen, values))
    # No layer precedes layer 1, so its G' equals its G.
    records = [_compare(g, after) for g, after in zip(before, itertools.chain(before[:1], shifted), strict=True)]
    sizes, sizes_updated, distances, products = torch.stack(records).cpu().double().numpy().T
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / (sizes * sizes_updated)
    cosines[0] = 1.0 if sizes[0] > 0 else np.nan  # exact, whereas the division would round
    frame = pd.DataFrame(
        {
            "layer": layer_numbers(point.structure, chosen),
            "layer_name": [name for name, _ in chosen],
            "grad_norm": sizes,
            "grad_norm_updated": sizes_updated,
            "ics": distances,
            "cosine": cosines,
        }
    )
    return frame


def _at_once(point: Point, before: list[Tensor], theta: Theta, updated: Theta) -> Iterable[Tensor]:
    """G' by a fast path, from one parameter vector per layer in which all earlier layers are updated."""
    sizes = [len(gradient) for gradient in before]
    starts = np.cumsum(sizes)[:-1].tolist()
    if not starts:  # a single layer
        return []
    thetas = theta.repeat(len(starts), 1)
    for mixed, start in zip(thetas, starts, strict=True):
        mixed[:start] = updated[:start]
    gradients = point.gradients_at(thetas)[1]
    return [g[start : start + size] for g, start, size in zip(gradients, starts, sizes[1:], strict=True)]


def _of_any(point: Point, layers: Names, updated: dict[str, Tensor]) -> Iterator[Tensor]:
    """G' in any network: one pass per layer, differentiated only down to that layer. Updates the layers in place."""
    parameters = point.parameters
    for (_, moved), (_, names) in itertools.pairwise(layers):
        for name in moved:
            parameters[name].data.copy_(updated[name])
        yield point.gradient_in(names)


def _of_chain(point: Point, layers: Names, updated: dict[str, Tensor]) -> Iterator[Tensor]:
    """G' in a chain: each updated layer runs once, and only the layers after it are differentiated. Updates the layers
    in place."""
    modules = list(cast(Chain, point.model).layers.values())
    parameters, activations = point.parameters, cast(Tensor, point.inputs)
    with prepared(point.norms, point.config.seed, point.step):
        for place, ((_, names), module) in enumerate(zip(layers[:-1], modules, strict=False)):
            for name in names:
                parameters[name].data.copy_(updated[name])
            with point.problem.forward_only():
                activations = module(activations).detach()
            outputs = activations
            for following in modules[place + 1 :]:
                outputs = following(outputs)
            loss = point.problem.objective(outputs, point.targets) + point.penalty()
            trained = [parameters[name] for name in layers[place + 1][1]]
            yield flatten(torch.autograd.grad(loss, trained, materialize_grads=True))


def _compare(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Float[Tensor, " 4"]:
    """Both norms, the distance and the inner product."""
    norm = euclidean_norm
    return torch.stack((norm(before), norm(after), norm(before - after), inner_product(before, after)))


MEASUREMENT: Final = Measurement(ics, plan_layers, chosen_layers)
