"""Internal covariate shift as the paper defines it: Santurkar et al. (2018), definition 2.1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call

from bnsmooth_cli.measures.rows import label
from bnsmooth_cli.points import Point, flatten
from bnsmooth_cli.training import sgd_step


def ics(point: Point) -> pd.DataFrame:
    r"""How much each layer's gradient changes when the layers before it take their step: one row a layer.

    `ics` $= \|G_i - G'_i\|_2$ and `cosine` of the two, where $G_i = \nabla_{W_i} L(W_1, \dots, W_k)$ and $G'_i$ is the
    same gradient with $W_1, \dots, W_{i-1}$ already at step t+1, by the run's own optimiser step on the same batch;
    $W_i$ is all of the layer's parameters, its norm's included. `grad_norm` and `grad_norm_updated` are the norms of
    $G_i$ and $G'_i$. Layer 1 has nothing before it: exactly 0 and 1.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "none", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.ics(bns.load_point(run))[["layer", "ics", "cosine"]].values[0].tolist()
    [1.0, 0.0, 1.0]
    """
    theta = point.theta
    (gradient,) = point.gradients_at(theta[None])[1]
    updated, velocity = theta.clone(), [flatten(point.velocity)] if point.velocity else []
    sgd_step([updated], [gradient], velocity, point.config.lr, point.config.momentum)

    sizes = [sum(p.numel() for p in layer.parameters()) for layer in point.model.layers.values()]
    first, *later = gradient.split(sizes)
    shifted = (
        _layer_by_layer(point, updated, sizes) if point.program is None else _at_once(point, theta, updated, sizes)
    )
    # Nothing before layer 1 moves, so its G' is G.
    records = [_compare(first, first), *(_compare(g, there) for g, there in zip(later, shifted, strict=True))]
    norms, norms_updated, distances, products = torch.stack(records).cpu().double().numpy().T
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / (norms * norms_updated)
    cosines[0] = 1.0 if norms[0] > 0 else np.nan  # exactly: the division rounds
    frame = pd.DataFrame(
        {
            "layer": np.arange(1, len(records) + 1),
            "layer_name": list(point.model.layers),
            "grad_norm": norms,
            "grad_norm_updated": norms_updated,
            "ics": distances,
            "cosine": cosines,
        }
    )
    return label(point, frame)


def _at_once(point: Point, theta: Tensor, updated: Tensor, sizes: list[int]) -> list[Tensor]:
    """G' of the layers from the second on: a parameter vector each, the updated one up to the layer."""
    starts = np.cumsum(sizes)[:-1].tolist()
    if not starts:  # one layer: nothing comes after it
        return []
    thetas = theta.repeat(len(starts), 1)
    for mixed, start in zip(thetas, starts, strict=True):
        mixed[:start] = updated[:start]
    gradients = point.gradients_at(thetas)[1]
    return [g[start : start + size] for g, start, size in zip(gradients, starts, sizes[1:], strict=True)]


def _layer_by_layer(point: Point, updated: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """G' of the layers from the second on: the updated prefix runs once, and only what follows it is differentiated."""
    layers = list(point.model.layers.values())
    activations = point.inputs
    for place, (layer, values) in enumerate(zip(layers[:-1], updated.split(sizes), strict=False)):
        named = dict(layer.named_parameters())
        pieces = values.split([p.numel() for p in named.values()])
        moved = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        with torch.no_grad():
            activations = functional_call(layer, moved, (activations,))
        outputs = activations
        for following in layers[place + 1 :]:
            outputs = following(outputs)
        loss = point.problem.objective(outputs, point.targets)
        yield flatten(torch.autograd.grad(loss, list(layers[place + 1].parameters())))


def _compare(before: Tensor, after: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    return torch.stack((norm(before), norm(after), norm(before - after), torch.dot(before, after)))
