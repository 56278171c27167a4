"""The line probe: loss and gradient along theta - eta d. Santurkar et al. (2018), section 3.1, figure 4."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures import check_direction
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.networks.parameters import coarsest
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product
from bnsmooth_cli.points.objective import Objective
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.presets import find_problem
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.randomness import generator

POINTS: Final = 8  # default number of evenly spaced step lengths
#: The largest share of a step that rounding may change. Where it changed 8% of one, at the end of a cosine schedule,
#: beta was right to 0.02%; at 23%, to 0.04%; at 44%, to 0.3%; and at 87%, it was 50% too large.
ROUNDED: Final = 0.1


def line_alphas(
    problem: str,
    min_alpha: float | None = None,
    max_alpha: float | None = None,
    points: int | None = None,
    alphas: Sequence[float] | None = None,
) -> list[float]:
    """The step lengths of the line probe.

    By default, they are those at which the paper's figures probe; `presets.PROBLEMS` has them.

    Args:
        problem: The problem.
        min_alpha: The shortest of evenly spaced steps, in learning rates.
        max_alpha: The longest of evenly spaced steps.
        points: The number of evenly spaced steps.
        alphas: The steps themselves.

    Raises:
        InputError: If the step lengths are not positive, finite and ascending, or are given in both ways.

    >>> line_alphas("vgg"), line_alphas("vgg", points=3)
    ([0.5, 1.0, 2.0, 4.0], [0.5, 2.25, 4.0])
    """
    evenly = {"--min-alpha": min_alpha, "--max-alpha": max_alpha, "--points": points}
    given = [flag for flag, value in evenly.items() if value is not None]
    usual = find_problem(problem).alphas
    if alphas is not None:
        if given:
            raise InputError(f"--alphas and {given[0]}: give only one of them")
        lengths = step_lengths(problem, alphas)
        if not lengths or not all(low < high for low, high in itertools.pairwise(lengths)):
            text = ",".join(f"{alpha:g}" for alpha in lengths)
            raise InputError(f"--alphas {text[:60]}: give step lengths above 0 in ascending order, as in 0.5,1,2,4")
        return lengths
    if not given:
        return list(usual)
    low, high = (usual[0] if min_alpha is None else min_alpha), (usual[-1] if max_alpha is None else max_alpha)
    count = POINTS if points is None else points
    if not 0 < low < math.inf:
        raise InputError(f"--min-alpha {low:g}: give a step length above 0")
    if not low <= high < math.inf:
        raise InputError(f"--max-alpha {high:g}: give a step length of at least --min-alpha ({low:g})")
    if count < 1:
        raise InputError(f"--points {count}: give a whole number of at least 1")
    return [float(alpha) for alpha in np.linspace(low, high, count)]


def step_lengths(problem: str, alphas: Sequence[float] | None) -> list[float]:
    """The step lengths that a measurement is given, in any order and perhaps none; those of the problem by default.

    Raises:
        InputError: If one is not above 0 and finite.
    """
    if alphas is None:
        return list(find_problem(problem).alphas)
    try:
        lengths = [float(alpha) for alpha in ("" if isinstance(alphas, str) else alphas)]
    except (TypeError, ValueError):
        lengths = [math.nan]
    if isinstance(alphas, str) or not all(0 < alpha < math.inf for alpha in lengths):
        raise InputError(f"--alphas {str(alphas)[:60]}: give step lengths above 0, as in [0.5, 1, 2, 4]")
    return lengths


def plan(config: Config, objective: str = "batch", **line: Any) -> dict[str, Any]:
    """The keyword arguments of a measurement on the line; `line` goes to `line_alphas`."""
    return {"alphas": line_alphas(config.problem, **line), **plan_objective(config, objective)}


def plan_objective(config: Config, objective: str) -> dict[str, str]:
    """The keyword argument `objective` of a measurement; empty for the default, the batch of the step."""
    objective = Objective(objective)
    if objective == "test" and config.eval_every is None:
        raise InputError(f"--objective test: the problem {config.problem} has no test set")
    return {} if objective == "batch" else {"objective": objective}


@measured
def landscape(
    point: Point, alphas: Sequence[float] | None = None, objective: str | None = None, direction: str = "gradient"
) -> pd.DataFrame:
    r"""Measure the loss and its gradient along the gradient: Santurkar et al. (2018), section 3.1, figures 4a and 4b.

    With $g = \nabla L(\theta)$ and $\eta = \alpha \cdot \mathrm{lr}$, the probe evaluates $L$ and its gradient $g_\eta$
    at $\theta - \eta g$. Overflows are recorded as inf or NaN.

    The learning rate is that of the step, as scheduled. The direction `update` replaces g by the optimiser's own step,
    $d = (\theta_t - \theta_{t+1}) / \mathrm{lr}$, with its momentum, preconditioner, clipping and weight decay. The
    step length $\alpha = 1$ leads to $\theta_{t+1}$. For SGD without momentum, d is g. The update is that of the step's
    batch, whatever the objective.

    A random direction (section 3.2) replaces the step by $\theta - \eta d$. Here d is a Gaussian vector that depends
    only on the run's seed and the step, scaled to $\|d\| = \|g\|$. At each step length, both directions then reach
    equally far, so that their losses, gradients and beta compare. A filter-normalised direction (`surface`) is as long
    as the weights instead, and leaves biases and norms in place.

    Rounding swallows very short steps, such as those at the end of a schedule that decays to 0. Where float32 does not
    resolve the shortest step (`resolves`), the line is measured in float64. In a training loop of your own, that is a
    `Remark`, and the gradients on the line mean nothing.

    Args:
        point: Where to measure.
        alphas: The step lengths in learning rates; those of `line_alphas` by default.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        direction: "gradient", "update" or "random".

    Returns:
        One row per step length, after a row with alpha = 0 for the point itself. Columns: `alpha`, `step_size`
        $\eta$, `distance` $\|\eta g\|$, `loss`, `grad_norm` $\|g_\eta\|$, `grad_distance` $\|g - g_\eta\|$ (the paper's
        gradient predictiveness), `grad_cosine` $\langle g, g_\eta \rangle / (\|g\| \|g_\eta\|)$ and
        `grad_distance_summed` $\sum_i \|g_i - g_{\eta, i}\|$ over the parameter tensors i, a length that the paper's
        figures appear to show (docs/paper.md); for another direction than the gradient also `direction`.

    Raises:
        InputError: If the problem does not have the objective, the direction is unknown, or your code does not take
            float64 where it is needed.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     list(bns.landscape(bns.load_point(run), alphas=[0.5, 1.0]).alpha)
    [0.0, 0.5, 1.0]
    """
    check_direction(direction)
    return with_direction(probe(point.at(objective), alphas, direction).rows, direction)


def with_direction(rows: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Rows with the column `direction`, unless it is the gradient's."""
    return rows if direction == "gradient" else rows.assign(direction=direction)


def direction_vector(point: Point, gradient: Float[Tensor, " n"], direction: str) -> Float[Tensor, " n"]:
    """The vector d of the line probe.

    Args:
        point: The point.
        gradient: The gradient of its objective.
        direction: "gradient", "update" or "random".
    """
    if direction == "gradient":
        return gradient
    if direction == "update":
        if point.objective != "batch":
            own = point.at("batch")  # training takes its step
            (gradient,) = own.gradients_at(own.theta[None])[1]
        return point.optimiser.direction(gradient, point.step)
    draws = generator(point.config.seed, "direction", point.step)
    random = torch.randn(len(gradient), generator=draws, dtype=torch.float32).to(gradient)
    return random.mul_(euclidean_norm(gradient) / euclidean_norm(random))


class Line(NamedTuple):
    r"""The line probe at a point.

    Attributes:
        point: The point, in the precision in which it was probed.
        rows: The rows of `landscape`, without the columns that identify the point and the direction.
        vector: The vector d of the line.
        length: Its length.
        slope: $g^T d$, by which the loss falls along the line at first.
        resolved: Whether the precision resolves its shortest step.
    """

    point: Point
    rows: pd.DataFrame
    vector: Float[Tensor, " n"]
    length: float
    slope: float
    resolved: bool


def probe(point: Point, alphas: Sequence[float] | None = None, direction: str = "gradient") -> Line:
    """Probe the line; the arguments are those of `landscape`."""
    alphas = step_lengths(point.config.problem, alphas)
    lr = point.lr
    loss, gradient = point.gradients_at(point.theta[None])
    norm, vector = euclidean_norm(gradient), direction_vector(point, gradient[0], direction)
    resolved = not alphas or resolves(point, point.theta, vector, min(alphas) * lr)
    resolved = resolved and _known(point, vector, direction)
    if not resolved and (double := finer(point)) is not None:
        return probe(double, alphas, direction)
    about = torch.stack((inner_product(gradient[0], vector), euclidean_norm(vector)))
    zero, sizes = torch.zeros_like(norm), [p.numel() for p in point.parameters.values()]
    records = [torch.stack((loss, norm, zero, norm * norm, zero))]
    for losses, gradients in point.along(vector, [alpha * lr for alpha in alphas]):
        records.append(_compare(losses, gradients, gradient, sizes))
    # One transfer for the whole line: nothing before it waits for the device.
    numbers = torch.cat([*(record.T.flatten() for record in records), about]).cpu().double().numpy()
    losses, norms, distances, products, summed = numbers[:-2].reshape(-1, 5).T
    length = float(numbers[-1] if direction == "update" else norms[0])  # other directions are as long as the gradient
    step_sizes = lr * np.array([0.0, *alphas])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines, lengths = products / (norms * norms[0]), step_sizes * length
    rows = pd.DataFrame(
        {
            "alpha": [0.0, *alphas],
            "step_size": step_sizes,
            "distance": lengths,
            "loss": losses,
            "grad_norm": norms,
            "grad_distance": distances,
            "grad_cosine": cosines,
            "grad_distance_summed": summed,
        }
    )
    return Line(point, rows, vector, length, float(numbers[-2]), resolved)


def resolves(point: Point, start: Float[Tensor, " m"], vector: Float[Tensor, " m"], eta: float) -> bool:
    """Whether the precision resolves a step from w to w - eta d: rounding changes it by ROUNDED of its length at most.

    Args:
        point: The point, whose parameters have this precision.
        start: The vector w, some or all of them.
        vector: The vector d.
        eta: The step length.
    """
    dtype = coarsest(point.parameters.values())
    start, step = start.to(dtype), eta * vector.to(dtype)
    lost, length = euclidean_norm(start - (start - step) - step), euclidean_norm(step)  # the difference is exact
    vanished = length == 0 and vector.any()
    return not bool(vanished or lost > ROUNDED * length)


def _known(point: Point, vector: Float[Tensor, " n"], direction: str) -> bool:
    """Whether the direction is known to ROUNDED of its length.

    The update of an unknown optimiser is the difference of two thetas. The second one is rounded, by about a quarter of
    the relative precision (root mean square).
    """
    if direction != "update" or point.optimiser.exact:
        return True
    rounding = torch.finfo(coarsest(point.parameters.values())).eps / 4
    return not bool(rounding * euclidean_norm(point.theta) > ROUNDED * point.lr * euclidean_norm(vector))


def finer(point: Point) -> Point | None:
    """The point in float64, because its own precision does not resolve the steps of a line.

    Returns:
        None, with a `Remark`, if it is in float64 already, or belongs to a training loop, whose model is not converted.
    """
    dtype = coarsest(point.parameters.values())
    if dtype == torch.float64 or isinstance(point.problem, ExternalLoop):
        precision = str(dtype).removeprefix("torch.")
        remark(f"no beta: the rounding of {precision} swallows the steps of the line")
        return None
    return point.to(torch.float64)


def _compare(
    losses: Float[Tensor, " points"],
    gradients: Float[Tensor, "points n"],
    start: Float[Tensor, "1 n"],
    sizes: Sequence[int],
) -> Float[Tensor, "5 points"]:
    """Losses, gradient norms, and distances and inner products with the start's gradient. Overwrites `gradients`.

    The last distance is summed over the parameter tensors, whose sizes add up to n.
    """
    norm, product = euclidean_norm(gradients), inner_product(gradients, start[0])
    tensors = torch.stack([euclidean_norm(piece) for piece in gradients.sub_(start).split(sizes, 1)])
    return torch.stack((losses, norm, euclidean_norm(gradients), product, tensors.sum(0)))


MEASUREMENT: Final = Measurement(landscape, plan)
UPDATE: Final = Measurement(functools.partial(landscape, direction="update"), plan)
RANDOM: Final = Measurement(functools.partial(landscape, direction="random"), plan)
