"""The Hessian and the Gauss-Newton matrix of a point as symmetric operators, by the first products that are right."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import SYMMETRY, NotSymmetricError
from bnsmooth_cli.derivatives.products import Product, difference
from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.measures import check_curvature
from bnsmooth_cli.networks.parameters import positions
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.files import first_line

Found = TypeVar("Found")
#: The steps of `is_confirmed`, relative to the length of theta, and the largest relative difference.
_STEPS: Final = (1e-5, 1e-4, 1e-3, 1e-2)
_CONFIRMED: Final = {torch.float32: 0.01, torch.float64: 0.001}


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix, known by its products with vectors.

    Attributes:
        product: Multiplies a vector (n,) by it.
        start: A vector to start iterations with: the gradient, mostly in the sharp directions, and a random one.
        products: How products are computed: "complex step", "double backward" or "difference".
        error: The relative error of a product, measured on `start`; NaN if there is rounding alone.
        symmetry: The largest asymmetry that an iteration accepts, relative to the largest eigenvalue.
    """

    product: Product
    start: Float[Tensor, " n"]
    products: str
    error: float = math.nan
    symmetry: float = math.inf


def with_operator(
    point: Point,
    curvature: str,
    find: Callable[[Operator], Found],
    names: Sequence[str] | None = None,
    place: int = 0,
) -> Found:
    """What a function finds of a matrix.

    PyTorch has no second derivative of some operations, and a wrong one of others: such a Hessian fails or is not
    symmetric. The function is then called again with products that are differences of gradients, and a `Remark` says
    so. They are computed in float64 if the point can be.

    Args:
        point: The point.
        curvature: "hessian" or "ggn".
        find: The function.
        names: The parameters of which the loss is a function; all of them by default.
        place: A number that distinguishes several matrices at one point, such as those of its layers.

    Raises:
        InputError: If there is no such matrix, or the products with the Gauss-Newton matrix fail.
    """
    check_curvature(curvature)
    try:
        return find(_exact(point, curvature, names, place))
    except NotSymmetricError:
        reason = "a second derivative is wrong: the matrix is not symmetric"
    except _HiddenError:
        reason = "a backward pass has another derivative than autograd says"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # PyTorch's error for operations that it differentiates once
        reason = f"an operation has no second derivative: {first_line(error)}"
    if curvature != "hessian":
        raise InputError(f"--curvature {curvature}: {reason}; measure the Hessian, whose products can be differences")
    warnings.warn(f"products with the Hessian are differences of gradients: {reason}", Remark, stacklevel=3)
    return find(_by_differences(point, names, place))


class _HiddenError(ArithmeticError):
    """A product with the Hessian is not the difference of two gradients."""


def _exact(point: Point, curvature: str, names: Sequence[str] | None, place: int) -> Operator:
    symmetry = SYMMETRY if point.problem.has_users_code else math.inf
    if curvature == "ggn":
        start = start_vector(point, point.gradient_in([*point.parameters]), place)
        return Operator(point.gauss_newton(), start, "double backward", symmetry=symmetry)
    gradient, product = point.hessian(names)
    start = start_vector(point, gradient, place)
    if point.own_functions and not is_confirmed(point, names, start, product(start)):
        raise _HiddenError
    by = "double backward" if point.fast_path is None or point.theta.device.type == "mps" else "complex step"
    return Operator(product, start, by, symmetry=symmetry)


def _by_differences(point: Point, names: Sequence[str] | None, place: int) -> Operator:
    if not isinstance(point.problem, ExternalLoop):
        with contextlib.suppress(InputError):  # the user's code does not take float64
            point = point.to(torch.float64)
    whole = point.theta
    where = slice(None) if names is None else positions(point.parameters, names)

    def gradient_at(part: Tensor) -> Tensor:
        theta = whole.clone()
        theta[where] = part
        return point.gradients_at(theta[None])[1][0][where]

    start = start_vector(point, gradient_at(whole[where]), place)
    product, wider = (difference(gradient_at, whole[where], scale) for scale in (1.0, 2.0))
    once, twice = product(start), wider(start)
    error = float(torch.linalg.vector_norm(once - twice) / torch.linalg.vector_norm(once))
    return Operator(product, start, "difference", error)


def start_vector(point: Point, gradient: Float[Tensor, " n"], place: int) -> Float[Tensor, " n"]:
    """The gradient and a random vector, of equal length. The gradient lies mostly in the sharp directions, which saves
    products. The random part covers the others."""
    random = generator(point.config.seed, "lanczos", point.step, place)
    start = torch.randn(len(gradient), generator=random).to(gradient)
    length = torch.linalg.vector_norm(gradient)
    if not (torch.isfinite(length) and length > 0):
        return start
    start.div_(torch.copysign(torch.linalg.vector_norm(start), torch.dot(start, gradient)))
    return start.add_(gradient / length)


def is_confirmed(
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
