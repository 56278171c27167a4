"""The line probe: loss and gradient along theta - eta g (Santurkar et al. 2018, section 3.1, figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli.config import Config, find_problem
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.points.objective import Objective
from bnsmooth_cli.points.point import Point

POINTS = 8  # probed step lengths; with VGG's range they are 0.5, 1, ..., 4


def line_alphas(
    problem: str, min_alpha: float | None = None, max_alpha: float | None = None, points: int | None = None
) -> list[float]:
    """Evenly spaced step lengths in multiples of the learning rate; the paper's range of the problem by default.

    Raises InputError for a range that is empty or not positive.

    >>> line_alphas("vgg")
    [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    """
    low, high = find_problem(problem).line_range
    low, high = (low if min_alpha is None else min_alpha), (high if max_alpha is None else max_alpha)
    count = POINTS if points is None else points
    if not 0 < low < math.inf:
        raise InputError(f"--min-alpha {low:g}: give a step length above 0")
    if not low <= high < math.inf:
        raise InputError(f"--max-alpha {high:g}: give a step length of at least --min-alpha ({low:g})")
    if count < 1:
        raise InputError(f"--points {count}: give a whole number of at least 1")
    return [float(alpha) for alpha in np.linspace(low, high, count)]


def plan(config: Config, objective: str = "batch", **line: Any) -> dict[str, Any]:
    """The keyword arguments of a measurement on the line, of those of `line_alphas`."""
    return {"alphas": line_alphas(config.problem, **line), **plan_objective(config, objective)}


def plan_objective(config: Config, objective: str) -> dict[str, str]:
    """The keyword argument of a measurement whose objective can be chosen; none for the step's own batch."""
    objective = Objective(objective)
    if objective == "test" and config.eval_every is None:
        raise InputError(f"--objective test: the problem {config.problem} has no test set")
    return {} if objective == "batch" else {"objective": objective}


def landscape(point: Point, alphas: Sequence[float] | None = None, objective: str | None = None) -> pd.DataFrame:
    r"""Loss and gradient at $\theta - \eta g$, $\eta = \alpha \cdot$ lr, $g = \nabla L(\theta)$: one row a step length.

    Columns: `alpha`, `step_size` $\eta$, `distance` $\|\eta g\|$, `loss`, `grad_norm` $\|g(\theta - \eta g)\|$,
    `grad_distance` $\|g(\theta) - g(\theta - \eta g)\|_2$ (the paper's gradient predictiveness) and `grad_cosine`, the
    cosine of the two gradients. The row alpha = 0 is the point itself. What overflows is recorded as inf or NaN.

    L is the mean loss over what `objective` says: "batch", "train:K" or "test" (`Point`); None is the point's own.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     list(bns.landscape(bns.load_point(run), alphas=[0.5, 1.0]).alpha)
    [0.0, 0.5, 1.0]
    """
    chosen = line_alphas(point.config.problem) if alphas is None else [float(alpha) for alpha in alphas]
    return label(point, probe(point if objective is None else point.at(objective), chosen))


def probe(point: Point, alphas: Sequence[float]) -> pd.DataFrame:
    """The line's rows without the run's columns."""
    lr = point.config.lr
    theta = point.theta[None]
    loss, gradient = point.gradients_at(theta)
    norm = torch.linalg.vector_norm(gradient, dim=1)
    records = [torch.stack((loss, norm, torch.zeros_like(norm), norm * norm))]
    # A fast path takes the whole line at once; a network takes one step length after the other, in the same memory.
    at_once = len(alphas) if point.fast_path is not None else 1
    moved = theta.new_empty(at_once, theta.shape[1])
    for etas in theta.new_tensor([[-alpha * lr] for alpha in alphas]).split(at_once) if alphas else ():
        torch.addcmul(theta, etas, gradient, out=moved)
        records.append(_compare(*point.gradients_at(moved), gradient))
    # One transfer for the whole line: nothing waits for the device before this.
    losses, norms, distances, products = torch.cat(records, 1).cpu().double().numpy()
    step_sizes = lr * np.array([0.0, *alphas])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / (norms * norms[0])
    return pd.DataFrame(
        {
            "alpha": [0.0, *alphas],
            "step_size": step_sizes,
            "distance": step_sizes * norms[0],
            "loss": losses,
            "grad_norm": norms,
            "grad_distance": distances,
            "grad_cosine": cosines,
        }
    )


def _compare(losses: Tensor, there: Tensor, gradient: Tensor) -> Tensor:
    """(loss, norm, distance, inner product) of the gradients elsewhere, (4, P); `there` is overwritten."""
    norm, product = torch.linalg.vector_norm(there, dim=1), there @ gradient[0]
    return torch.stack((losses, norm, torch.linalg.vector_norm(there.sub_(gradient), dim=1), product))


MEASUREMENT: Final = Measurement(landscape, plan)
