"""The smoothness of the loss as a function of one layer's parameters, all other parameters held fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from bnsmooth_cli.config import Config
from bnsmooth_cli.measures.landscape import finer, resolves, step_lengths
from bnsmooth_cli.measures.landscape import plan as plan_line
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.selection import plan_layers
from bnsmooth_cli.measures.smoothness import second_order
from bnsmooth_cli.networks.parameters import positions
from bnsmooth_cli.networks.structure import chosen_layers, layer_numbers
from bnsmooth_cli.networks.vectors import euclidean_norm
from bnsmooth_cli.points.point import Point


@measured
def smoothness_by_layer(
    point: Point,
    alphas: Sequence[float] | None = None,
    objective: str | None = None,
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    r"""Measure how smooth the loss is as a function of one layer's parameters $W_i$, all others held fixed.

    This restricts Santurkar et al. (2018), section 3.1, to a layer. With $g_i = \nabla_{W_i} L$ and $H_{ii}$ the
    layer's diagonal block of the Hessian,
    $$\beta_i = \max_\eta \frac{\|g_i(W_i) - g_i(W_i - \eta g_i)\|}{\|\eta g_i\|}$$
    over the step lengths of the line probe (`landscape`), the curvature is $g_i^T H_{ii} g_i / g_i^T g_i$, and the
    sharpness is the eigenvalue of $H_{ii}$ of largest magnitude, with its sign.

    Args:
        point: Where to measure.
        alphas: The step lengths in learning rates; those of `line_alphas` by default.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        layers: Layers by name or number, or other modules of the network; all layers by default.

    Returns:
        One row per layer. Columns: `layer`, `layer_name`, `grad_norm` $\|g_i\|$, `beta`, `curvature` and `sharpness`.
        Overflows are recorded as `smoothness` records them. A layer without a gradient has nulls.

    Raises:
        InputError: If the network does not have a layer, or the problem does not have the objective.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", depth=3, steps=5, samples=20, output=f"{folder}/run")
    ...     list(bns.smoothness_by_layer(bns.load_point(run)).layer_name)
    ['fc1', 'fc2', 'fc3']
    """
    point = point.at(objective)
    chosen = chosen_layers(point.structure, layers)
    lengths = step_lengths(point.config.problem, alphas)
    etas = [alpha * point.lr for alpha in lengths]
    places = [positions(point.parameters, names) for _, names in chosen]
    theta, gradients, rows = point.theta, point.gradients_at(point.theta[None])[1][0], []
    resolved = not etas or all(resolves(point, theta[where], gradients[where], min(etas)) for where in places)
    if not resolved and (double := finer(point)) is not None:
        point, resolved = double, True
        gradients = point.gradients_at(point.theta[None])[1][0]
    for number, where, (name, names) in zip(layer_numbers(point.structure, chosen), places, chosen, strict=True):
        gradient = gradients[where]
        second = second_order(point, names, number)
        norm, beta = euclidean_norm(gradient), math.nan
        if etas and norm > 0 and resolved:
            line = point.along(gradient, etas, names)
            moved = torch.cat([euclidean_norm(gradients - gradient) for _, gradients in line])
            ratios = (moved / (norm * moved.new_tensor(etas))).cpu().double().numpy()
            beta = float(np.max(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf)))
        numbers = {"grad_norm": norm.item(), "beta": beta, "curvature": second.curvature, "sharpness": second.sharpness}
        rows.append({"layer": number, "layer_name": name, **numbers})
    return pd.DataFrame(rows)


def plan(config: Config, layers: Sequence[str] | None = None, **line: Any) -> dict[str, Any]:
    """The keyword arguments of `smoothness_by_layer`; `line` goes to the plan of `landscape`."""
    return {**plan_line(config, **line), **plan_layers(config, layers)}


MEASUREMENT: Final = Measurement(smoothness_by_layer, plan, chosen_layers)
