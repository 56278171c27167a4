"""Smoothness restricted to each layer's parameters, all other ones held where they are: one row a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli.config import Config
from bnsmooth_cli.measures.landscape import line_alphas
from bnsmooth_cli.measures.landscape import plan as plan_line
from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.measures.selection import plan_layers
from bnsmooth_cli.measures.smoothness import along_and_largest
from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.networks.structure import chosen_layers
from bnsmooth_cli.points.point import Point


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
    blocks = point.hessian_blocks([names for _, names in chosen])
    rows = []
    for number, ((name, names), (gradient, product)) in enumerate(zip(chosen, blocks, strict=True), 1):
        curvature, sharpness = along_and_largest(point, gradient, product, number)
        norm = torch.linalg.vector_norm(gradient)
        row = {"layer": number, "layer_name": name, "grad_norm": norm.item(), "beta": math.nan}
        if lengths and norm > 0:
            etas = [alpha * point.config.lr for alpha in lengths]
            moved = torch.stack([torch.linalg.vector_norm(g - gradient) for g in _along(point, names, gradient, etas)])
            found = (moved / (norm * moved.new_tensor(etas))).cpu().double().numpy()
            row["beta"] = float(np.max(np.nan_to_num(found, nan=np.inf, posinf=np.inf)))
        rows.append({**row, "curvature": curvature, "sharpness": sharpness})
    return label(point, pd.DataFrame(rows))


def plan(config: Config, layers: Sequence[str] | None = None, **line: Any) -> dict[str, Any]:
    """The keyword arguments of `smoothness_by_layer`."""
    return {**plan_line(config, **line), **plan_layers(config, layers)}


def _along(point: Point, names: Sequence[str], gradient: Tensor, etas: Sequence[float]) -> Iterator[Tensor]:
    """The gradient in the named parameters where they, and no others, have moved along it."""
    theta, where = point.theta, point.places(names)
    if point.fast_path is not None:  # all of them at once
        thetas = theta.repeat(len(etas), 1)
        thetas[:, where] -= theta.new_tensor(etas)[:, None] * gradient
        yield from point.gradients_at(thetas)[1][:, where]
        return
    for eta in etas:
        moved = theta.clone()
        moved[where] -= eta * gradient
        values = point.values(moved)
        leaves = [values[name].requires_grad_() for name in names]
        yield flatten(torch.autograd.grad(point.loss_at(values), leaves, materialize_grads=True))


MEASUREMENT: Final = Measurement(smoothness_by_layer, plan)
