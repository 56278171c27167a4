"""The largest eigenvalue of a symmetric operator, in magnitude or with its sign, from products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product

#: The relative accuracy of the eigenvalue. The iteration ends when the residual ||Hv - lambda v|| / |lambda| is at most
#: RESIDUAL and the eigenvalue has grown by at most RESIDUAL over the last SETTLED products.
SHARPNESS_TOLERANCE: Final = 5e-3
RESIDUAL: Final = 1e-3
SETTLED: Final = 5
SMALL: Final = 0.01
MAX_PRODUCTS: Final = 200
#: The iteration has reached all eigenvectors in the start if the next vector is shorter than this, relative to the
#: eigenvalue.
EXHAUSTED: Final = 1e-5
#: The largest difference between u'Hv and v'Hu of two vectors of the iteration, relative to the largest eigenvalue.
SYMMETRY: Final = 5e-3


class NotSymmetricError(ArithmeticError):
    """The operator is not symmetric, so it is not a Hessian: a second derivative is wrong."""


def steps(product: Callable[[Tensor], Tensor], start: Float[Tensor, " n"]) -> Iterator[tuple[float, float, float]]:
    """The steps of Lanczos' iteration, which keeps three vectors (Golub & Van Loan 2013, algorithm 10.1.1).

    Args:
        product: Multiplies a vector (n,) by the operator.
        start: The first vector.

    Yields:
        The entries of the next row of the tridiagonal matrix, on the diagonal and beside it, and the difference of the
        latter from what the transposed operator would give: only rounding, if the operator is symmetric.
    """
    vector, previous, coupling = start / euclidean_norm(start), torch.zeros_like(start), 0.0
    while True:
        following = product(vector)
        back = inner_product(following, previous)  # the coupling, if the operator is symmetric
        following.sub_(previous, alpha=coupling)
        along = inner_product(following, vector)
        following.sub_(along * vector)
        numbers = torch.stack((along, euclidean_norm(following), back - coupling)).tolist()
        diagonal, coupling, asymmetry = numbers
        yield diagonal, coupling, asymmetry
        vector, previous = following.div_(coupling), vector


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, " n"],
    symmetry: float = SYMMETRY,
    *,
    signed: bool = False,
) -> float:
    """The eigenvalue of largest magnitude of a symmetric operator, by Lanczos' iteration.

    The iteration keeps three vectors (Golub & Van Loan 2013, algorithm 10.1.1). As the vectors lose orthogonality,
    eigenvalues that have converged appear again, but no wrong ones appear. A Ritz value is within its residual norm of
    an eigenvalue (Parlett 1998, theorem 4.5.1), but a larger eigenvalue may be near whose vector has hardly entered the
    iteration. The iteration therefore goes on until the result has not grown for SETTLED products.

    The symmetry that the iteration relies on is checked with the vectors u and v of successive products, at no cost:
    $u^T H v = v^T H u$.

    Args:
        product: Multiplies a vector (n,) by the operator.
        start: The first vector; it must not be orthogonal to the eigenvector.
        symmetry: The largest asymmetry, relative to the eigenvalue. Rounding alone may exceed SYMMETRY where the
            operator is zero but for rounding, so this can be inf for a product that is known to be right.
        signed: Whether the largest eigenvalue is wanted, whatever the magnitude of the smallest. Its accuracy is
            relative to SMALL times the magnitude of the smallest one if it is smaller than that.

    Returns:
        The eigenvalue, signed; NaN if a product is not finite, or if MAX_PRODUCTS products do not suffice.

    Raises:
        NotSymmetricError: If the operator is not symmetric to `symmetry`.

    >>> round(largest_eigenvalue(lambda v: v * torch.arange(-40.0, 1.0), torch.ones(41)), 1)
    -40.0
    >>> abs(largest_eigenvalue(lambda v: v * torch.arange(-40.0, 2.0), torch.ones(42), signed=True) - 1) < 1e-3
    True
    """
    tridiagonal = np.zeros((MAX_PRODUCTS + 1, MAX_PRODUCTS + 1))
    found = [-np.inf if signed else 0.0] * SETTLED
    for k, (diagonal, coupling, asymmetry) in zip(range(MAX_PRODUCTS), steps(product, start), strict=False):
        tridiagonal[k, k] = diagonal
        if not np.isfinite(tridiagonal[k, k]):
            break
        values, vectors = np.linalg.eigh(tridiagonal[: k + 1, : k + 1])
        ends, residuals = np.abs(values[[0, k]]), coupling * np.abs(vectors[-1, [0, k]])
        magnitude = ends.max()
        if abs(asymmetry) > symmetry * magnitude:
            raise NotSymmetricError
        if signed:
            size = max(ends[1], SMALL * magnitude)
            found.append(values[k])
            accurate = residuals[1] <= RESIDUAL * size
        else:
            size = magnitude
            found.append(magnitude)
            accurate = np.all(ends + residuals <= (1 + RESIDUAL) * size)
        settled = found[-1] - found[-1 - SETTLED] <= RESIDUAL * size
        if coupling <= EXHAUSTED * magnitude or (settled and accurate):
            return float(values[k] if signed or ends[0] <= ends[1] else values[0])
        tridiagonal[k + 1, k] = tridiagonal[k, k + 1] = coupling
    return float("nan")
