"""The largest eigenvalues of a symmetric operator and the smallest one, from products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import EXHAUSTED, SETTLED, SMALL, SYMMETRY, NotSymmetricError
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product

#: An eigenvalue is accurate if its residual, and its change over the last SETTLED products, are at most this share of
#: it, or of SMALL times the largest magnitude.
ACCURACY: Final = 1e-3
#: The least products from a random vector that must leave all eigenvalues as they are. With 5, one was still missing in
#: 10 of 100 random matrices whose eigenvalues are fivefold; with 10, in none of these and 300 others.
_CONFIRM: Final = 10
#: The vectors of the basis: so many for each wanted eigenvalue, and so many more.
_PER_VALUE: Final = 2
_MORE: Final = 14
#: The products for each wanted eigenvalue after which the iteration gives up, and so many more.
_GIVE_UP: Final = (60, 300)
#: Up to this size, and up to that of the basis, all products with unit vectors are the matrix itself.
_DENSE: Final = 64
#: Elements of the vectors of the basis that are combined at once.
_PART: Final = 2**20


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of a symmetric operator, each with an approximate eigenvector.

    Attributes:
        values: The K largest eigenvalues, in descending order, then the smallest one (K + 1,). Each is u'Hu of its
            vector.
        accurate: Whether each value is accurate to ACCURACY; not where the iteration has given up.
        residuals: The residual norms ||Hu - lambda u||: an eigenvalue is within this distance of each value.
        vectors: The vectors u, of unit length and orthogonal to each other.
        products: The number of products that were computed.
    """

    values: Float64[np.ndarray, " k"]
    accurate: Bool[np.ndarray, " k"]
    residuals: Float64[np.ndarray, " k"]
    vectors: Float[Tensor, "k n"]
    products: int


def extreme_eigenpairs(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, " n"],
    count: int,
    random: torch.Generator,
    symmetry: float = SYMMETRY,
) -> Eigenpairs:
    r"""The `count` largest eigenvalues of a symmetric operator and the smallest one, by Lanczos' iteration.

    All vectors of the basis are kept orthogonal, and when the basis is full, the iteration goes on from the best
    approximations in it: thick restart (Wu & Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue
    problems"). The residual norms are those of the iteration: an eigenvalue is within this distance (Parlett 1998,
    theorem 4.5.1).

    That need not be the eigenvalue of the same rank: one vector leads to one copy of a multiple eigenvalue, and may
    hardly contain some eigenvector. When all values are accurate, the iteration therefore goes on from a random vector,
    until that has changed none of them and the next one is below them. The largest alone needs no such test.

    Operators of up to 64 dimensions, or up to 2 K + 14, are multiplied out and decomposed.

    The memory is that of 3 K + 20 vectors beside that of a product, the allocator's share included.

    Args:
        product: Multiplies a vector (n,) by the operator. The vector may be used again after the call.
        start: The first vector. An eigenvector that is orthogonal to it is found only through rounding.
        count: The number K of the largest eigenvalues, from 1 to n. The smallest one is among them if it is n.
        random: Draws the vectors to go on with when all values are accurate, and where the basis spans an invariant
            subspace, as when the operator has a low rank.
        symmetry: The largest asymmetry, relative to the largest magnitude; inf for a product that is known to be right.

    Raises:
        NotSymmetricError: If the operator is not symmetric to `symmetry`.

    >>> found = extreme_eigenpairs(lambda v: v * torch.arange(-40.0, 100.0), torch.ones(140), 3, torch.Generator())
    >>> found.values.round(1).tolist(), bool((found.residuals < 0.5).all())
    ([99.0, 98.0, 97.0, -40.0], True)
    """
    size = _PER_VALUE * count + _MORE
    if len(start) <= max(_DENSE, size):  # such a basis would span the whole space, and a vector after it only rounding
        return _dense(product, start, count, symmetry)
    limit = count * _GIVE_UP[0] + _GIVE_UP[1]
    basis = start.new_empty((size + 1, len(start)))
    torch.div(start, euclidean_norm(start), out=basis[0])
    projected, kept, products = np.zeros((size, size)), 0, 0
    found = [np.full(count + 1, np.inf)] * SETTLED
    confirmed, due, left_out = np.full(count + 1, np.inf), 0, np.zeros(size)
    while True:
        for i in range(kept, size):
            following, products = product(basis[i]), products + 1
            along = _orthogonalise(following, basis[: i + 1])
            if not np.isfinite(along).all():
                return _given_up(start, count, products)
            asymmetry = np.abs(along[:i] - projected[:i, i]).max(initial=0.0)
            projected[i, i] = along[i]
            values, inner = np.linalg.eigh(projected[: i + 1, : i + 1])
            magnitude, coupling = np.abs(values[[0, -1]]).max(), euclidean_norm(following).item()
            if asymmetry > symmetry * magnitude:
                raise NotSymmetricError
            wanted = [*range(i, i - count, -1), 0] if i >= count else [0] * (count + 1)
            found.append(values[wanted])
            residuals = np.hypot(coupling * inner[-1], left_out[: i + 1] @ inner)
            allowed = ACCURACY * np.maximum(np.abs(values[wanted]), SMALL * magnitude)
            accurate = np.maximum(residuals[wanted], np.abs(found[-1] - found[-1 - SETTLED])) <= allowed
            if i >= count and products >= due and (accurate.all() or products >= limit):
                same = np.all(np.abs(found[-1] - confirmed) <= allowed)
                beyond = values[i - count] + residuals[i - count] - values[i - count + 1]
                if count == 1 or products >= limit or (same and beyond <= allowed[-2]):
                    vectors = _combined(basis[: i + 1], inner[:, wanted], out=basis[: len(wanted)])
                    return Eigenpairs(values[wanted], accurate, residuals[wanted], vectors, products)
                if not same:
                    confirmed, due, chosen, coupling = found[-1], products + _CONFIRM, wanted[::-1], 0.0
                    left_out[: len(chosen)] = residuals[chosen]
                    break
            if coupling <= EXHAUSTED * magnitude:  # nothing more is reached from here
                following, coupling = _drawn(basis[: i + 1], random), 0.0
            torch.div(following, euclidean_norm(following), out=basis[i + 1])
            if i + 1 < size:
                projected[i + 1, i] = projected[i, i + 1] = coupling
        else:
            # The best approximations of the largest eigenvalues, those that are next, and the smallest ones.
            chosen = [*range(_MORE // 4), *range(size - count - _MORE // 4, size)]
            left_out[: len(chosen)] = left_out @ inner[:, chosen]
        kept = len(chosen)
        _combined(basis[: i + 1], inner[:, chosen], out=basis[:kept])
        basis[kept] = basis[size] if coupling else _drawn(basis[:kept], random)
        left_out[kept:], projected[:] = 0.0, 0.0
        projected[np.arange(kept), np.arange(kept)] = values[chosen]
        projected[kept, :kept] = projected[:kept, kept] = coupling * inner[-1, chosen]


def _drawn(basis: Float[Tensor, "m n"], random: torch.Generator) -> Float[Tensor, " n"]:
    """A random vector of unit length that is orthogonal to those of the basis."""
    vector = torch.randn(basis.shape[1], generator=random, dtype=torch.float32).to(basis)
    _orthogonalise(vector, basis)
    return vector.div_(euclidean_norm(vector))


def _dense(product: Callable[[Tensor], Tensor], start: Tensor, count: int, symmetry: float) -> Eigenpairs:
    """The same from the matrix itself."""
    unit = torch.eye(len(start), dtype=start.dtype, device=start.device)
    matrix = torch.stack([product(row).clone() for row in unit]).cpu().double()
    if not matrix.isfinite().all():
        return _given_up(start, count, len(start))
    if (matrix - matrix.T).abs().max() > symmetry * torch.linalg.matrix_norm(matrix, 2):
        raise NotSymmetricError
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    wanted = [*range(len(start) - 1, len(start) - 1 - count, -1), 0]
    residuals = torch.linalg.vector_norm(matrix @ vectors[:, wanted] - values[wanted] * vectors[:, wanted], dim=0)
    found = values[wanted].numpy(), np.full(count + 1, True), residuals.numpy()
    return Eigenpairs(*found, vectors[:, wanted].T.to(start), len(start))


def _given_up(start: Tensor, count: int, products: int) -> Eigenpairs:
    nothing = np.full(count + 1, np.nan)
    return Eigenpairs(
        nothing, np.isfinite(nothing), nothing, start.new_full((count + 1, len(start)), torch.nan), products
    )


def _orthogonalise(vector: Float[Tensor, " n"], basis: Float[Tensor, "m n"]) -> Float64[np.ndarray, " m"]:
    """Subtract the projections on orthonormal vectors, twice, in place. Returns the coordinates."""
    first = inner_product(basis, vector)
    vector.sub_(first @ basis)
    second = inner_product(basis, vector)
    vector.sub_(second @ basis)
    return (first + second).cpu().double().numpy()


def _combined(
    basis: Float[Tensor, "m n"], weights: Float64[np.ndarray, "m k"], out: Tensor | None = None
) -> Float[Tensor, "k n"]:
    """The combinations of vectors with weights, part by part, so that `out` may be rows of the basis."""
    factors = torch.from_numpy(weights.T.copy()).to(basis)
    combined = basis.new_empty((factors.shape[0], basis.shape[1])) if out is None else out
    for whole, part in zip(basis.split(_PART, dim=1), combined.split(_PART, dim=1), strict=True):
        part.copy_(factors @ whole)
    return combined
