"""Smoothness restricted to each layer's parameters, all other ones held where they are: one row a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli.config import Config
from bnsmooth_cli.measures.line import line_alphas
from bnsmooth_cli.measures.line import plan as plan_line
from bnsmooth_cli.measures.rows import label
from bnsmooth_cli.measures.selection import plan_layers
from bnsmooth_cli.measures.smoothness import along_and_largest
from bnsmooth_cli.points import Point
from bnsmooth_cli.problems.layers import chosen_layers, trainable


def smoothness_by_layer(
    point: Point,
    alphas: Sequence[float] | None = None,
    objective: str | None = None,
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Effective beta, curvature and sharpness of the loss as a function of one layer's parameters $W_i$ alone.

    With $g_i = \nabla_{W_i} L$ and $H_{ii}$ the layer's diagonal block of the Hessian: `grad_norm` $= \|g_i\|$, `beta`
    $= \max_\eta \|g_i(W_i) - g_i(W_i - \eta g_i)\| / \|\eta g_i\|$ over the step lengths of the line probe (Santurkar
    et al. 2018, section 3.1, restricted to the layer), `curvature` $= g_i^T H_{ii} g_i / g_i^T g_i$ and `sharpness`,
    the block's eigenvalue of largest magnitude, signed. Overflows and layers without a gradient as `smoothness` has
    them.

    `layers` as `ics` takes them; by default all of `point.layers`.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", depth=3, steps=5, samples=20, output=f"{folder}/run")
    ...     list(bns.smoothness_by_layer(bns.load_point(run)).layer_name)
    ['fc1', 'fc2', 'fc3']
    """
    point = point if objective is None else point.at(objective)
    chosen = point.layers if layers is None else chosen_layers(point.model, point.layers, layers)
    lengths = line_alphas(point.config.problem) if alphas is None else list(alphas)
    places = _places(point)
    gradient, product = point.hessian()
    rows = []
    for number, (name, parameters) in enumerate(chosen, 1):
        where = torch.cat([places[parameter] for parameter in parameters])
        mine = gradient[where]
        curvature, sharpness = along_and_largest(point, mine, _block(product, where, gradient), number)
        row = {"layer": number, "layer_name": name, "grad_norm": torch.linalg.vector_norm(mine).item()}
        rows.append({**row, "beta": _beta(point, where, mine, lengths), "curvature": curvature, "sharpness": sharpness})
    return label(point, pd.DataFrame(rows))


def plan(config: Config, layers: Sequence[str] | None = None, **line: Any) -> dict[str, Any]:
    """The keyword arguments of `smoothness_by_layer`."""
    return {**plan_line(config, **line), **plan_layers(config, layers)}


def _places(point: Point) -> dict[str, Tensor]:
    """Where each parameter's numbers are in theta."""
    named = trainable(point.model)
    every = torch.arange(sum(p.numel() for p in named.values()), device=point.inputs.device)
    return dict(zip(named, every.split([p.numel() for p in named.values()]), strict=True))


def _block(product: Callable[[Tensor], Tensor], where: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Products with the diagonal block of a Hessian, from those with the whole."""
    whole = torch.zeros_like(like)

    def block(v: Tensor) -> Tensor:
        whole[where] = v
        return product(whole)[where]

    return block


def _beta(point: Point, where: Tensor, gradient: Tensor, alphas: Sequence[float]) -> float:
    norm = torch.linalg.vector_norm(gradient)
    if not alphas or not norm > 0:
        return float("nan")
    found = []
    for alpha in alphas:
        moved = point.theta
        eta = alpha * point.config.lr
        moved[where] -= eta * gradient
        there = point.gradients_at(moved[None])[1][0, where]
        found.append(torch.linalg.vector_norm(there - gradient) / (eta * norm))
    return float(np.max(np.nan_to_num(torch.stack(found).cpu().double().numpy(), nan=np.inf, posinf=np.inf)))
