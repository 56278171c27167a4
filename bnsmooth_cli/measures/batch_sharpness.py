"""Batch sharpness: the curvature of minibatch losses along their own gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from bnsmooth_cli.measures.operators import Operator, exact
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator

_STEPS: Final = 2**31  # the training steps whose batches are drawn


def batch_sharpness(point: Point, batches: int, hessian: Callable[[Point], Operator] = exact) -> tuple[float, float]:
    r"""Measure batch sharpness: Andreyev & Beneventano (2024, arXiv 2412.20553).

    It is the expected curvature of a minibatch's loss along its own gradient, at fixed parameters:
    $$E_B \left[ \frac{g_B^T H_B g_B}{\|g_B\|^2} \right].$$
    Minibatch SGD without momentum is at its edge of stability where this is 2 / lr. The mean is taken over K batches of
    the training set. They are those of K random training steps, drawn by the run's seed and the point's step alone, so
    they are independent of each other. Each has its own statistics and the noise of its own step.

    One batch's graph is in memory at a time.

    Args:
        point: The point; its objective says whether the network is in eval mode.
        batches: The number K of batches, at least 1.
        hessian: Makes the Hessian of a batch.

    Returns:
        The mean, and its standard error $\sqrt{\sum_k (b_k - \bar b)^2 / (K (K - 1))}$, which is NaN for one batch.
        Both are NaN if the gradient of a batch is 0 or not finite.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     mean, error = batch_sharpness(bns.load_point(run), 2)
    >>> math.isfinite(mean), error  # the batch is the whole training set, and there is no noise
    (True, 0.0)
    """
    values = np.array([_along_gradient(hessian(on_batch(point, k))) for k in range(batches)])
    error = float(values.std(ddof=1)) / math.sqrt(batches) if batches > 1 else math.nan
    return float(values.mean()), error


def on_batch(point: Point, place: int) -> Point:
    """The point with the batch and the noise of a random training step."""
    random = generator(point.config.seed, "batches", point.step, place)
    step = int(torch.randint(_STEPS, (), generator=random))
    inputs, targets = point.problem.batch(step)
    objective = "eval" if point.objective.evaluated else "batch"
    return dataclasses.replace(point, inputs=inputs, targets=targets, step=step).at(objective)


def _along_gradient(hessian: Operator) -> float:
    """The curvature along the gradient; NaN if the gradient is 0 or not finite."""
    norm = euclidean_norm(hessian.gradient)
    if not (torch.isfinite(norm) and norm > 0):
        return math.nan
    unit = hessian.gradient / norm
    return float(inner_product(unit, hessian.product(unit)))
