"""Internal covariate shift as the paper defines it: Santurkar et al. (2018), definition 2.1."""

from __future__ import annotations

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
    parameters: list[Tensor] = list(point.model.parameters())
    gradients = torch.autograd.grad(point.loss(), parameters)
    updated = [p.detach().clone() for p in parameters]
    sgd_step(updated, gradients, [v.clone() for v in point.velocity], point.config.lr, point.config.momentum)

    records: list[Tensor] = []
    activations, place = point.inputs, 0
    for layer in point.model.layers.values():
        own: list[Tensor] = list(layer.parameters())
        here = slice(place, place + len(own))
        before = flatten(gradients[here])
        # Nothing before layer 1 moves, so its G' is G; the others' run only the layers from theirs on.
        after = flatten(_suffix_gradient(point, len(records), activations, own)) if records else before
        records.append(_compare(before, after))
        values = dict(zip(dict(layer.named_parameters()), updated[here], strict=True))
        with torch.no_grad():  # the updated prefix is run once, a layer at a time
            activations = functional_call(layer, values, (activations,))
        place = here.stop
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


def _suffix_gradient(point: Point, first: int, activations: Tensor, own: list[Tensor]) -> tuple[Tensor, ...]:
    """G' of the layer at index `first`: forward from its inputs, backward down to its own parameters."""
    for layer in list(point.model.layers.values())[first:]:
        activations = layer(activations)
    return torch.autograd.grad(point.problem.objective(activations, point.targets), own)


def _compare(before: Tensor, after: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    return torch.stack((norm(before), norm(after), norm(before - after), torch.dot(before, after)))
