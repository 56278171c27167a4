"""The smoothness of the loss at a point: the extremes of the line probe, the curvature and the sharpness."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.lanczos import MAX_PRODUCTS, largest_eigenvalue
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures import NEAR, check_batches, check_direction
from bnsmooth_cli.measures.batch_sharpness import batch_sharpness
from bnsmooth_cli.measures.critical_lr import critical_lr
from bnsmooth_cli.measures.landscape import direction_vector, probe, with_direction
from bnsmooth_cli.measures.landscape import plan as plan_line
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.operators import NoHessianError, Operator, by_differences, exact, with_operator
from bnsmooth_cli.networks.vectors import inner_product
from bnsmooth_cli.points.objective import Objective
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.loop import ExternalLoop

#: A beta at its limit (NEAR) is saturated at a step that leaves at most this share of the gradient.
LEFT: Final = 0.1


@measured
def smoothness(
    point: Point,
    alphas: Sequence[float] | None = None,
    objective: str | None = None,
    direction: str = "gradient",
    batches: int = 0,
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

    Other numbers say whether the step of training is stable here. An optimiser that divides its step by a diagonal P,
    as Adam and RMSProp do, responds to the preconditioned sharpness: the largest eigenvalue of $P^{-1/2} H P^{-1/2}$
    (Cohen et al. 2022, arXiv 2207.14484). The threshold is the value beyond which the optimiser's step diverges on a
    quadratic loss, 2 / lr for gradient descent: that of the preconditioned sharpness if there is one, otherwise of the
    sharpness. The critical learning rate is the smallest step length along the line after which the loss is higher
    (`critical_lr`). Batch sharpness is the mean curvature of minibatch losses along their own gradients
    (`batch_sharpness`), over `batches` random batches of the training set.

    Along another direction d (`landscape`), $\theta - \eta d$ replaces $\theta - \eta g$, and the curvature is
    $d^T H d / d^T d$. Beta at a saturated point is then $\|g\| / (\|d\| \alpha_{\min} \mathrm{lr})$. The sharpness
    does not depend on the direction.

    Args:
        point: Where to measure.
        alphas: The step lengths in learning rates; those of `line_alphas` by default.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        direction: "gradient", "update" or "random".
        batches: The number of batches of batch sharpness; 0 leaves it out. Each takes a gradient and a product with
            the Hessian.

    Returns:
        One row. Columns: `step_lr`, the learning rate of the step; `loss`, `penalty`, `weight_norm` (the norm of the
        weights that `weight_decay` penalises) and `grad_norm` at the point; `loss_min` and `loss_max` over the step
        lengths; `predictiveness_min` and `predictiveness_max`, the extremes of $\|g - g_\eta\|$; `beta`,
        `beta_alpha`, the step length at which beta is attained, and `saturated`; `lipschitz`, the largest
        $\|g_\eta\|$ (alpha = 0 included); `curvature` and `sharpness`; `preconditioned` (null without P, which Adam
        does not have before its first step); `threshold` (null where it is unknown); `critical_alpha`, the smallest
        step length with a loss above that of the point (null if there is none); `critical_lr`; `batch_sharpness` and
        its standard error `batch_sharpness_error` (null without `batches`).
        If rounding swallows its steps (`landscape`), what comes from its gradients is null. So are the curvature and
        the critical learning rate along the update of an optimiser that is not one of torch's known ones.
        If the line overflows, its maxima are inf, and `beta_alpha` and `saturated` are null. If the gradient is 0 or
        not finite, all that comes from second derivatives is null. Without weights, `weight_norm` is null. For another
        direction than the gradient, there is also the column `direction`.

    Raises:
        InputError: If the problem does not have the objective, the direction is unknown, or `batches` is given for a
            loss without random batches: that of the test set, or of your own training loop.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     row = bns.smoothness(bns.load_point(run)).iloc[0]
    >>> bool(row.beta > 0 and row.predictiveness_min <= row.predictiveness_max)
    True
    """
    check_direction(direction)
    point = point.at(objective)
    _check_batches(batches, point.objective)
    if batches and isinstance(point.problem, ExternalLoop):
        raise InputError("--batches: a point of your own loop has no batches of other steps; leave it out")
    probed = probe(point, alphas, direction)
    line, critical, resolved = probed.rows, critical_lr(probed), probed.resolved
    own = probed.point if direction == "update" else point  # in the precision that its direction needs
    del probed  # and with it the memory of the direction
    start, moved = line.iloc[0], line.iloc[1:]
    losses, distances = moved["loss"].fillna(np.inf), moved["grad_distance"].fillna(np.inf)
    rising = moved["alpha"][losses > start["loss"]]
    second = second_order(own, direction=direction, batches=batches)
    if direction == "update" and not resolved and not own.optimiser.exact:  # the direction itself is mostly rounding
        second, critical = second._replace(curvature=math.nan), math.nan
    row = {
        "step_lr": point.lr,
        "loss": start["loss"],
        "penalty": point.penalty().item(),
        "weight_norm": point.weight_norm,
        "grad_norm": start["grad_norm"],
        "loss_min": losses.min(),
        "loss_max": losses.max(),
        "predictiveness_min": distances.min() if resolved else np.nan,
        "predictiveness_max": distances.max() if resolved else np.nan,
        "lipschitz": line["grad_norm"].fillna(np.inf).max(),
        **_effective_beta(start["grad_norm"], moved if resolved else moved.iloc[:0]),
        "curvature": second.curvature,
        "sharpness": second.sharpness,
        "preconditioned": second.preconditioned,
        "threshold": threshold(point),
        "critical_alpha": rising.min() if len(rising) else np.nan,
        "critical_lr": critical,
        "batch_sharpness": second.batch_sharpness,
        "batch_sharpness_error": second.batch_sharpness_error,
    }
    return with_direction(pd.DataFrame([row]), direction)


def threshold(point: Point) -> float:
    """The threshold of the column `preconditioned`, or of `sharpness`; NaN if it is unknown, or there is no P yet."""
    optimiser = point.optimiser
    if optimiser.preconditions and optimiser.preconditioner(point.step) is None:
        return math.nan
    return optimiser.threshold(point.step)


def plan(config: Config, objective: str = "batch", batches: int = 0, **line: Any) -> dict[str, Any]:
    """The keyword arguments of `smoothness`; `line` goes to the plan of `landscape`."""
    _check_batches(batches, Objective(objective))
    return {**plan_line(config, objective, **line), **({"batches": batches} if batches else {})}


def _check_batches(batches: int, objective: Objective) -> None:
    """Raise InputError if batch sharpness does not have this number of batches, or does not belong to the objective."""
    check_batches(batches)
    if batches and objective == "test":
        raise InputError("--batches: are batches of the training set; leave it out, or --objective test")


def _effective_beta(grad_norm: float, moved: pd.DataFrame) -> dict[str, object]:
    """The columns `beta`, `beta_alpha` and `saturated`, from the line probe and the gradient at its start."""
    if not grad_norm > 0 or moved.empty:
        return {"beta": np.nan, "beta_alpha": np.nan, "saturated": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num((moved["grad_distance"] / moved["distance"]).to_numpy(), nan=np.inf, posinf=np.inf)
    beta, shortest = ratios.max(), moved.iloc[moved["alpha"].to_numpy().argmin()]
    if np.isinf(beta):
        return {"beta": beta, "beta_alpha": np.nan, "saturated": None}
    lost = shortest["grad_norm"] <= LEFT * grad_norm
    near = abs(beta * shortest["distance"] / grad_norm - 1) <= NEAR
    return {"beta": beta, "beta_alpha": moved["alpha"].iloc[ratios.argmax()], "saturated": bool(lost and near)}


class SecondOrder(NamedTuple):
    """What second derivatives tell of a point; NaN where they do not."""

    curvature: float = math.nan
    sharpness: float = math.nan
    preconditioned: float = math.nan
    batch_sharpness: float = math.nan
    batch_sharpness_error: float = math.nan


def second_order(
    point: Point,
    names: Sequence[str] | None = None,
    place: int = 0,
    direction: str = "gradient",
    batches: int = 0,
) -> SecondOrder:
    """The curvature along the line, sharpness and preconditioned sharpness, and batch sharpness.

    Args:
        point: The point.
        names: The parameters of which the loss is a function; all of them by default. Only then, the optimiser's
            preconditioner counts.
        place: A number that distinguishes several Hessians at one point, such as those of its layers.
        direction: "gradient", "update" or "random".
        batches: The number of batches of batch sharpness; 0 leaves it out.

    Returns:
        The numbers; NaN if the gradient is not finite, or 0. NaN with a `Remark` if PyTorch has no second derivative
        and differences of gradients are inaccurate or not symmetric (`with_operator`).
    """
    find = functools.partial(_of_hessian, point, names is None, direction)
    try:
        found, make = with_operator(point, "hessian", find, names, place)
    except NoHessianError as reason:
        remark(f"no curvature and no sharpness: {reason}")
        return SecondOrder()
    # The graph of the point's Hessian is freed by now, and those of the batches need the memory.
    if batches and not math.isnan(found.curvature):
        mean, error = batch_sharpness(point, batches, make)
        return found._replace(batch_sharpness=mean, batch_sharpness_error=error)
    return found


def _of_hessian(
    point: Point, whole: bool, direction: str, hessian: Operator
) -> tuple[SecondOrder, Callable[[Point], Operator]]:
    """The numbers of the Hessian of all parameters (`whole`) or of some, and what makes such a Hessian elsewhere."""
    make = by_differences if hessian.products == "difference" else exact
    gradient, product = hessian.gradient, hessian.product
    squared = inner_product(gradient, gradient)
    if not (torch.isfinite(squared) and squared > 0):
        return SecondOrder(), make
    along = direction_vector(point, gradient, direction).to(gradient)
    curvature = (inner_product(along, product(along)) / inner_product(along, along)).item()
    sharpness = largest_eigenvalue(product, hessian.start, hessian.symmetry)
    if math.isnan(sharpness) and math.isfinite(curvature):
        remark(f"no sharpness: {MAX_PRODUCTS} products with the Hessian do not suffice")
    preconditioned, divisor = math.nan, point.optimiser.preconditioner(point.step) if whole else None
    if divisor is not None:
        scale = divisor.to(gradient).rsqrt()
        preconditioned = largest_eigenvalue(
            lambda v: product(scale * v).mul_(scale), hessian.start.mul_(scale), math.inf, signed=True
        )
        if math.isnan(preconditioned) and math.isfinite(sharpness) and torch.isfinite(scale).all():
            said = f"no preconditioned sharpness: {MAX_PRODUCTS} products with the Hessian do not suffice"
            remark(said)
    return SecondOrder(curvature, sharpness, preconditioned), make


MEASUREMENT: Final = Measurement(smoothness, plan)
UPDATE: Final = Measurement(functools.partial(smoothness, direction="update"), plan)
RANDOM: Final = Measurement(functools.partial(smoothness, direction="random"), plan)
