"""The smoothness of the loss at a point: the extremes of the line probe, the curvature and the sharpness."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import MAX_PRODUCTS, SYMMETRY, NotSymmetricError, largest_eigenvalue
from bnsmooth_cli.errors import Remark
from bnsmooth_cli.measures import check_direction
from bnsmooth_cli.measures.landscape import direction_vector, plan, probe, with_direction
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.files import first_line

#: A beta within this share of 1 / (alpha_min lr), at a step that leaves at most LEFT of the gradient, is saturated.
NEAR: Final = 0.02
LEFT: Final = 0.1
#: The steps of `_is_confirmed`, relative to the length of theta, and the largest relative difference.
_STEPS: Final = (1e-5, 1e-4, 1e-3, 1e-2)
_CONFIRMED: Final = {torch.float32: 0.01, torch.float64: 0.001}


@measured
def smoothness(
    point: Point, alphas: Sequence[float] | None = None, objective: str | None = None, direction: str = "gradient"
) -> pd.DataFrame:
    r"""Measure how smooth the loss is: Santurkar et al. (2018), section 3.1 and figure 4c.

    With $g = \nabla L(\theta)$ and $g_\eta$ the gradient at $\theta - \eta g$, the effective beta-smoothness is
    $$\beta = \max_\eta \frac{\|g - g_\eta\|}{\|\eta g\|}$$
    over the step lengths of the line probe (`landscape`). With H the Hessian at $\theta$, the curvature is
    $g^T H g / g^T g$, and the sharpness is the eigenvalue of H of largest magnitude, with its sign, by Lanczos'
    iteration to a relative accuracy of 0.005.

    The gradient of a minibatch that is nearly fitted vanishes within the shortest step, of length
    $\eta = \alpha_{\min} \mathrm{lr}$. Then $\|g - g_\eta\| = \|g\|$, and $\beta = 1 / (\alpha_{\min} \mathrm{lr})$
    whatever the network: the probe sets beta. Such a point is *saturated*: beta is within NEAR of this value, and
    $\|g_\eta\| \le$ LEFT $\|g\|$ after the shortest step.

    Beta depends on the scale of the weights W before BatchNorm, although the network does not (Dinh et al. 2017, arXiv
    1703.04933). At cW, all gradients in W are divided by c, so a step of length $c^2 \eta$ leads to $c (W - \eta g)$.
    Over such steps in W alone, beta is divided by $c^2$, and $\beta \|W\|^2$ is the same. Over steps in all parameters,
    whose lengths come from the learning rate, this is an approximation.

    Along a random direction d (`landscape`), $\theta - \eta d$ replaces $\theta - \eta g$, and the curvature is
    $d^T H d / d^T d$. The sharpness is that of the gradient's line.

    Args:
        point: Where to measure.
        alphas: The step lengths in learning rates; those of `line_alphas` by default.
        objective: The loss L: "batch", "train:K" or "test"; the point's own by default.
        direction: "gradient" or "random".

    Returns:
        One row. Columns: `loss`, `penalty`, `weight_norm` (the norm of the weights that `weight_decay` penalises) and
        `grad_norm` at the point; `loss_min` and `loss_max` over the step lengths; `predictiveness_min` and
        `predictiveness_max`, the extremes of $\|g - g_\eta\|$; `beta`, `beta_alpha`, the step length at which beta is
        attained, and `saturated`; `lipschitz`, the largest $\|g_\eta\|$ (alpha = 0 included); `critical_alpha`, the
        smallest step length with a loss above that of the point (null if there is none); `curvature` and `sharpness`.
        If the line overflows, its maxima are inf, and `beta_alpha` and `saturated` are null. If the gradient is 0 or
        not finite, curvature and sharpness are null. Without weights, `weight_norm` is null. For a random direction,
        there is also the column `direction`.

    Raises:
        InputError: If the problem does not have the objective, or the direction is unknown.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     row = bns.smoothness(bns.load_point(run)).iloc[0]
    >>> bool(row.beta > 0 and row.predictiveness_min <= row.predictiveness_max)
    True
    """
    check_direction(direction)
    point = point.at(objective)
    line = probe(point, alphas, direction)
    start, moved = line.iloc[0], line.iloc[1:]
    losses, distances = moved["loss"].fillna(np.inf), moved["grad_distance"].fillna(np.inf)
    rising = moved["alpha"][losses > start["loss"]]
    curvature, sharpness = second_order(point, direction=direction)
    row = {
        "loss": start["loss"],
        "penalty": point.penalty().item(),
        "weight_norm": point.weight_norm,
        "grad_norm": start["grad_norm"],
        "loss_min": losses.min(),
        "loss_max": losses.max(),
        "predictiveness_min": distances.min(),
        "predictiveness_max": distances.max(),
        "lipschitz": line["grad_norm"].fillna(np.inf).max(),
        **_effective_beta(start, moved),
        "curvature": curvature,
        "sharpness": sharpness,
        "critical_alpha": rising.min() if len(rising) else np.nan,
    }
    return with_direction(pd.DataFrame([row]), direction)


def _effective_beta(start: pd.Series[float], moved: pd.DataFrame) -> dict[str, object]:
    """The columns `beta`, `beta_alpha` and `saturated`, from the rows of the line probe."""
    if not start["grad_norm"] > 0 or moved.empty:
        return {"beta": np.nan, "beta_alpha": np.nan, "saturated": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num((moved["grad_distance"] / moved["distance"]).to_numpy(), nan=np.inf, posinf=np.inf)
    beta, shortest = ratios.max(), moved.iloc[moved["alpha"].to_numpy().argmin()]
    if np.isinf(beta):
        return {"beta": beta, "beta_alpha": np.nan, "saturated": None}
    lost = shortest["grad_norm"] <= LEFT * start["grad_norm"]
    near = abs(beta * shortest["step_size"] - 1) <= NEAR
    return {"beta": beta, "beta_alpha": moved["alpha"].iloc[ratios.argmax()], "saturated": bool(lost and near)}


def second_order(
    point: Point, names: Sequence[str] | None = None, place: int = 0, direction: str = "gradient"
) -> tuple[float, float]:
    """The curvature along the gradient or a random direction, and the Hessian's eigenvalue of largest magnitude.

    PyTorch has no second derivative of some operations, and a wrong one of others. The products of such a Hessian fail,
    or are not symmetric.

    Args:
        point: The point.
        names: The parameters of which the loss is a function; all of them by default.
        place: A number that distinguishes several Hessians at one point, such as those of its layers.
        direction: "gradient" or "random".

    Returns:
        Both numbers; NaN if the gradient is not finite, or 0. NaN with a `Remark` if the Hessian is missing or wrong.
    """
    try:
        gradient, product = point.hessian(names)
        squared = torch.dot(gradient, gradient)
        if not (torch.isfinite(squared) and squared > 0):
            return math.nan, math.nan
        along = direction_vector(point, gradient, direction)
        curvature = torch.dot(along, product(along)) / torch.dot(along, along)
        random = generator(point.config.seed, "lanczos", point.step, place)
        start = torch.randn(len(gradient), generator=random).to(gradient)
        # The gradient lies mostly in the sharp directions, which saves products. The random part covers the others.
        start.div_(torch.copysign(torch.linalg.vector_norm(start), torch.dot(start, gradient)))
        start.add_(gradient / squared.sqrt())
        sharpness = largest_eigenvalue(product, start, SYMMETRY if point.problem.has_users_code else math.inf)
        if math.isnan(sharpness) and torch.isfinite(curvature):
            warnings.warn(
                f"no sharpness: {MAX_PRODUCTS} products with the Hessian do not suffice", Remark, stacklevel=2
            )
        if not point.own_functions or _is_confirmed(point, names, start, product(start)):
            return curvature.item(), sharpness
        reason = "a backward pass has another derivative than autograd says"
    except NotSymmetricError:
        layers = ", ".join(_asymmetric_layers(point)) if names is None else ""
        reason = f"the Hessian is not symmetric{layers and f' in {layers}'}: a second derivative is wrong"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # PyTorch's error for operations that it differentiates once
        reason = f"an operation has no second derivative: {first_line(error)}"
    own = f"; see the backward pass of {', '.join(point.own_functions)}" if point.own_functions else ""
    warnings.warn(f"no curvature and no sharpness: {reason}{own}", Remark, stacklevel=2)
    return math.nan, math.nan


def _is_confirmed(
    point: Point, names: Sequence[str] | None, vector: Float[Tensor, " n"], product: Float[Tensor, " n"]
) -> bool:
    """Whether a product with the Hessian is the difference of two gradients, for some step length.

    A user's own backward pass may treat as constant what is not. Its Hessian can be symmetric nevertheless.
    """
    unit, size = vector / torch.linalg.vector_norm(vector), torch.linalg.vector_norm(point.theta)
    expected = product / torch.linalg.vector_norm(vector)
    for step in (float(size) * h for h in _STEPS):
        ahead, behind = torch.cat([gradients.clone() for _, gradients in point.along(unit, [-step, step], names)])
        difference = (ahead - behind) / (2 * step)
        largest = torch.maximum(torch.linalg.vector_norm(difference), torch.linalg.vector_norm(expected))
        if torch.linalg.vector_norm(difference - expected) <= _CONFIRMED[vector.dtype] * largest:
            return True
    return False


def _asymmetric_layers(point: Point) -> Iterator[str]:
    """The names of the layers whose own block of the Hessian is not symmetric."""
    for number, (name, names) in enumerate(point.layers):
        gradient, product = point.hessian(names)
        random = generator(point.config.seed, "lanczos", point.step, number)
        u, v = torch.randn(2, len(gradient), generator=random).to(gradient)
        forth, back = product(v), product(u)
        size = torch.linalg.vector_norm(u) * torch.linalg.vector_norm(forth)
        if (torch.dot(u, forth) - torch.dot(v, back)).abs() > SYMMETRY * size:
            yield name


MEASUREMENT: Final = Measurement(smoothness, plan)
RANDOM: Final = Measurement(functools.partial(smoothness, direction="random"), plan)
