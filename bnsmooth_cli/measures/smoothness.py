"""One row of smoothness figures a point: the line probe's extremes, curvature and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from bnsmooth_cli.measures.line import line_alphas, probe
from bnsmooth_cli.measures.rows import label
from bnsmooth_cli.points import Point
from bnsmooth_cli.streams import generator

#: ||Hv - lambda v|| / |lambda| at which the Lanczos iteration stops: lambda is then known to this relative accuracy.
SHARPNESS_TOLERANCE: Final = 1e-3
KRYLOV: Final = 10  # Lanczos vectors between two restarts
MAX_RESTARTS: Final = 50
_DENSE: Final = 2 * KRYLOV  # up to this many parameters the Hessian itself is cheaper than iterating


def smoothness(point: Point, alphas: Sequence[float] | None = None) -> pd.DataFrame:
    r"""How smooth the loss is at a point, one row (Santurkar et al. 2018, section 3.1 and figure 4c).

    Over the step lengths of the line probe, alpha > 0: `loss_min`, `loss_max`; `predictiveness_min`, `_max` of
    $\|g(\theta) - g(\theta - \eta g)\|$; `beta` $= \max \|g(\theta) - g(\theta - \eta g)\| / \|\eta g\|$, the effective
    beta-smoothness; `lipschitz`, the largest gradient norm, alpha = 0 included; `critical_alpha`, the smallest step
    length with a loss above the start's (null if none). Of the Hessian H at theta: `curvature` $= g^T H g / g^T g$ and
    `sharpness`, its eigenvalue of largest magnitude, signed, to SHARPNESS_TOLERANCE. A maximum over a line that
    overflows is inf; the Hessian of a point whose gradient is not finite is null.
    """
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
    squared = torch.dot(direction, direction)
    if not (torch.isfinite(squared) and squared > 0):
        return float("nan"), float("nan")
    curvature = torch.dot(direction, product(direction)) / squared
    start = torch.randn(len(direction), generator=generator(point.config.seed, "lanczos", point.step))
    return curvature.item(), largest_eigenvalue(product, start.to(direction))


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The eigenvalue of largest magnitude of a symmetric n x n operator, by ARPACK's Lanczos from `start` (n,).

    NaN where the products are not finite or the iteration does not converge.

    >>> round(largest_eigenvalue(lambda v: v * torch.arange(-40.0, 1.0), torch.ones(41)), 2)
    -40.0
    """
    size = len(start)

    def multiply(vector: NDArray[Any]) -> NDArray[Any]:
        result = product(torch.from_numpy(vector.ravel()).to(start))
        if not torch.isfinite(result).all():
            raise FloatingPointError
        return result.cpu().numpy()

    try:
        if size <= _DENSE:
            columns = [multiply(row) for row in np.eye(size)]
            values = np.linalg.eigvalsh(np.array(columns, dtype=np.float64))
            return float(values[np.abs(values).argmax()])
        operator = LinearOperator(
            (size, size), matvec=multiply, dtype=np.dtype(str(start.dtype).removeprefix("torch."))
        )
        found = eigsh(
            operator, k=1, which="LM", v0=start.cpu().numpy(), ncv=KRYLOV, tol=SHARPNESS_TOLERANCE,
            maxiter=MAX_RESTARTS, return_eigenvectors=False,
        )  # fmt: skip
    except (FloatingPointError, ArpackNoConvergence):
        return float("nan")
    return float(found[0])
