"""The spectral density and the trace of a symmetric operator, from products with random vectors."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import EXHAUSTED, SYMMETRY, NotSymmetricError, steps
from bnsmooth_cli.derivatives.products import Product
from bnsmooth_cli.networks.vectors import inner_product

#: The vectors that estimate a trace: the fewest, and the most.
FEWEST: Final = 8
MOST: Final = 60
#: The standard error, relative to the trace, at which no more vectors are drawn.
TRACE_ACCURACY: Final = 0.05


def quadrature(
    product: Product, start: Float[Tensor, " n"], nodes: int, symmetry: float = SYMMETRY
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    r"""Nodes and weights with $v^T f(A) v / v^T v \approx \sum_i w_i f(x_i)$, by Lanczos' iteration.

    Golub & Welsch 1969, "Calculation of Gauss quadrature rules": exact for polynomials f of degree up to 2 m - 1. The
    mean over random vectors v is the spectral density (stochastic Lanczos quadrature: Lin, Saad & Yang 2016,
    "Approximating spectral densities of large matrices"). The iteration keeps three vectors. As they lose
    orthogonality, some nodes appear several times and share the weight, and the quadrature stays right (Knizhnerman
    1996, "The simple Lanczos procedure: estimates of the error of the Gauss quadrature formula").

    Args:
        product: Multiplies a vector (n,) by the operator A.
        start: The vector v.
        nodes: The number m of nodes; fewer are returned if products with v span a smaller space.
        symmetry: The largest asymmetry, relative to the largest node; inf for a product that is known to be right.

    Returns:
        The nodes x in ascending order, and their weights w, which add up to 1. NaN if a product is not finite.

    Raises:
        NotSymmetricError: If the operator is not symmetric to `symmetry`.

    >>> nodes, weights = quadrature(lambda v: v * torch.tensor([1.0, 2.0, 3.0]), torch.ones(3), 3)
    >>> nodes.round(3).tolist(), weights.round(3).tolist()
    ([1.0, 2.0, 3.0], [0.333, 0.333, 0.333])
    """
    diagonal, beside = np.zeros(nodes), np.zeros(nodes)
    for k, (entry, coupling, asymmetry) in zip(range(nodes), steps(product, start), strict=False):
        diagonal[k] = entry
        if not math.isfinite(entry):
            return np.full(nodes, np.nan), np.full(nodes, np.nan)
        largest = np.abs(diagonal[: k + 1]).max() + beside[:k].max(initial=0.0)
        if abs(asymmetry) > symmetry * largest:
            raise NotSymmetricError
        if coupling <= EXHAUSTED * largest:
            diagonal = diagonal[: k + 1]
            break
        beside[k] = coupling
    sides = beside[: len(diagonal) - 1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(sides, 1) + np.diag(sides, -1))
    return values, vectors[0] ** 2


def trace(
    product: Product, values: Float64[np.ndarray, " k"], vectors: Float[Tensor, "k n"], random: torch.Generator
) -> tuple[float, float, int]:
    r"""The trace of an operator, and its standard error: Hutch++ (Meyer et al. 2021, algorithm 1).

    Approximate eigenvectors take the place of the algorithm's sketch. With $\lambda_i = u_i^T A u_i$ for these vectors,
    and P the projection on the other directions,
    $$\operatorname{tr} A = \sum_i \lambda_i + E[(Pv)^T A (Pv)]$$
    over vectors v of random signs. Most of the variance of Hutchinson's estimator comes from the largest eigenvalues.
    Vectors are drawn until the standard error is at most TRACE_ACCURACY of the trace, FEWEST at least and MOST at most.
    Where few other directions are left, the whole trace is computed exactly.

    Args:
        product: Multiplies a vector (n,) by the operator A.
        values: The numbers u'Au of the vectors u.
        vectors: The vectors u, orthonormal.
        random: Draws the vectors v.

    Returns:
        The trace, its standard error, which is 0 for an exact trace, and the number of products. The first two are NaN
        if a product is not finite.

    >>> base = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    >>> unknown = np.zeros(0), torch.zeros(0, 100)
    >>> estimate, error, _ = trace(lambda v: base @ (base.T @ v), *unknown, torch.Generator())
    >>> abs(estimate - float(base.square().sum())) < 4 * error < 0.2 * estimate
    True
    """
    count, n = vectors.shape
    if n - count <= FEWEST:
        unit = torch.eye(n, dtype=vectors.dtype, device=vectors.device)
        return sum(product(row)[i].item() for i, row in enumerate(unit)), 0.0, n
    exact, parts = float(values.sum()), list[float]()
    while True:
        signs = torch.randint(2, (n,), generator=random).to(vectors).mul_(2).sub_(1)
        signs.sub_(inner_product(vectors, signs) @ vectors)
        parts.append(inner_product(signs, product(signs)).item())
        if len(parts) < FEWEST:
            continue
        mean, error = exact + float(np.mean(parts)), float(np.std(parts, ddof=1)) / math.sqrt(len(parts))
        if not math.isfinite(error):
            return math.nan, math.nan, len(parts)
        if error <= TRACE_ACCURACY * abs(mean) or len(parts) == MOST:
            return mean, error, len(parts)
