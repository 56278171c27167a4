"""One row of smoothness figures a point: the line probe's extremes, curvature and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import largest_eigenvalue
from bnsmooth_cli.measures.landscape import line_alphas, plan, probe
from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator


def smoothness(point: Point, alphas: Sequence[float] | None = None, objective: str | None = None) -> pd.DataFrame:
    r"""How smooth the loss is at a point, one row (Santurkar et al. 2018, section 3.1 and figure 4c).

    Over the step lengths of the line probe, alpha > 0: `loss_min`, `loss_max`; `predictiveness_min`, `_max` of
    $\|g(\theta) - g(\theta - \eta g)\|$; `beta` $= \max \|g(\theta) - g(\theta - \eta g)\| / \|\eta g\|$, the effective
    beta-smoothness; `lipschitz`, the largest gradient norm, alpha = 0 included; `critical_alpha`, the smallest step
    length with a loss above the start's (null if none). Of the Hessian H at theta: `curvature` $= g^T H g / g^T g$ and
    `sharpness`, its eigenvalue of largest magnitude, signed, to SHARPNESS_TOLERANCE. A maximum over a line that
    overflows is inf; the Hessian of a point whose gradient is not finite is null. `objective` as `landscape` has it.
    """
    point = point if objective is None else point.at(objective)
    chosen = line_alphas(point.config.problem) if alphas is None else list(alphas)
    line = probe(point, chosen)
    start, moved = line.iloc[0], line.iloc[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        beta = (moved["grad_distance"] / moved["distance"]).to_numpy()
    losses = moved["loss"].fillna(np.inf)
    rising = moved["alpha"][losses > start["loss"]]
    curvature, sharpness = hessian_figures(point)
    row = {
        "loss": start["loss"],
        "grad_norm": start["grad_norm"],
        "loss_min": losses.min(),
        "loss_max": losses.max(),
        "predictiveness_min": moved["grad_distance"].fillna(np.inf).min(),
        "predictiveness_max": moved["grad_distance"].fillna(np.inf).max(),
        "lipschitz": line["grad_norm"].fillna(np.inf).max(),
        "beta": np.max(np.nan_to_num(beta, nan=np.inf, posinf=np.inf)) if start["grad_norm"] > 0 else np.nan,
        "curvature": curvature,
        "sharpness": sharpness,
        "critical_alpha": rising.min() if len(rising) else np.nan,
    }
    return label(point, pd.DataFrame([row]))


def hessian_figures(point: Point) -> tuple[float, float]:
    """(curvature along the gradient, eigenvalue of largest magnitude); NaN where the gradient is not finite."""
    direction, product = point.hessian()
    return along_and_largest(point, direction, product)


def along_and_largest(
    point: Point, direction: Tensor, product: Callable[[Tensor], Tensor], place: int = 0
) -> tuple[float, float]:
    """`hessian_figures` of a gradient and products with a Hessian; `place` tells apart several of one point."""
    squared = torch.dot(direction, direction)
    if not (torch.isfinite(squared) and squared > 0):
        return float("nan"), float("nan")
    curvature = torch.dot(direction, product(direction)) / squared
    random = generator(point.config.seed, "lanczos", point.step, place)
    start = torch.randn(len(direction), generator=random).to(direction)
    # The gradient leans towards the sharp directions, which saves products; what it lacks the random part has.
    start.div_(torch.copysign(torch.linalg.vector_norm(start), torch.dot(start, direction)))
    start.add_(direction / squared.sqrt())
    return curvature.item(), largest_eigenvalue(product, start)


MEASUREMENT: Final = Measurement(smoothness, plan)
