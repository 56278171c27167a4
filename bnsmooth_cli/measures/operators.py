"""The Hessian and the Gauss-Newton matrix of a point as symmetric operators, by the first products that are right."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.derivatives.lanczos import SYMMETRY, NotSymmetricError
from bnsmooth_cli.derivatives.products import Product, difference
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures import check_curvature
from bnsmooth_cli.networks.parameters import positions
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.files import first_line

Found = TypeVar("Found")
#: The largest relative error of a product by differences that is accepted.
MAX_ERROR: Final = 0.01
#: The largest asymmetry of differences of gradients, relative to their error on one vector.
_UNEVEN: Final = 3
#: The steps of `_is_confirmed`, relative to the length of theta, and the largest relative difference.
_STEPS: Final = (1e-5, 1e-4, 1e-3, 1e-2)
_CONFIRMED: Final = {torch.float32: 0.01, torch.float64: 0.001}


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix, known by its products with vectors.

    Attributes:
        gradient: The gradient of the loss.
        product: Multiplies a vector (n,) by the matrix.
        start: A vector to start iterations with: the gradient, mostly in the sharp directions, and a random one.
        products: How products are computed: "complex step", "double backward" or "difference".
        error: The relative error of a product, measured on `start`; NaN if there is rounding alone.
        symmetry: The largest asymmetry that an iteration accepts, relative to the largest eigenvalue.
    """

    gradient: Float[Tensor, " n"]
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
        NoHessianError: If differences of gradients are less accurate than MAX_ERROR, or not symmetric either.
        InputError: If the outputs of the network are unknown, or products with the Gauss-Newton matrix fail.
    """
    check_curvature(curvature)
    try:
        operator = exact(point, curvature, names, place)
        if curvature == "hessian" and point.own_functions and not _is_confirmed(point, names, operator):
            raise _HiddenError
        return find(operator)
    except NotSymmetricError:
        reason = "the matrix is not symmetric, because a second derivative is wrong or lost to rounding"
    except _HiddenError:
        reason = f"the backward pass of {', '.join(point.own_functions)} has another derivative than autograd says"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # PyTorch's error for operations that it differentiates once
        own = f"; see the backward pass of {', '.join(point.own_functions)}" if point.own_functions else ""
        reason = f"an operation has no second derivative: {first_line(error)}{own}"
    if curvature != "hessian":
        raise InputError(f"--curvature {curvature}: {reason}; measure the Hessian, whose products can be differences")
    operator = by_differences(point, names, place)
    if operator.error > MAX_ERROR:
        raise NoHessianError(
            f"{reason}; differences of gradients are inaccurate here, to {operator.error:.1g}, as where a kink is near"
        )
    try:
        found = find(operator)
    except NotSymmetricError:
        raise NoHessianError(
            f"{reason}; differences of gradients are not symmetric either, so these are not the gradients of a "
            "function: is there a detach() or no_grad() in the forward pass or the loss?"
        ) from None
    said = f"products with the Hessian are differences of gradients, to {operator.error:.1g}: {reason}"
    remark(said)
    return found


class NoHessianError(InputError):
    """Differences of gradients do not take the place of second derivatives: they are inaccurate or not symmetric."""


class _HiddenError(ArithmeticError):
    """A product with the Hessian is not the difference of two gradients."""


def exact(point: Point, curvature: str = "hessian", names: Sequence[str] | None = None, place: int = 0) -> Operator:
    """The matrix by PyTorch's derivatives, or those of a fast path. Takes the arguments of `with_operator`."""
    symmetry = SYMMETRY if point.problem.has_users_code else math.inf
    if curvature == "ggn":
        gradient, product, by = point.gradient_in([*point.parameters]), point.gauss_newton(), "double backward"
    else:
        gradient, product = point.hessian(names)
        by = "double backward" if point.fast_path is None or point.theta.device.type == "mps" else "complex step"
    return Operator(gradient, product, start_vector(point, gradient, place), by, symmetry=symmetry)


def by_differences(point: Point, names: Sequence[str] | None = None, place: int = 0) -> Operator:
    """The Hessian by differences of gradients, in float64 if possible. Takes the arguments of `with_operator`."""
    if not isinstance(point.problem, ExternalLoop):
        with contextlib.suppress(InputError):  # the user's code does not take float64
            point = point.to(torch.float64)
    whole = point.theta
    where = slice(None) if names is None else positions(point.parameters, names)

    def gradient_at(part: Tensor) -> Tensor:
        theta = whole.clone()
        theta[where] = part
        return point.gradients_at(theta[None])[1][0][where]

    gradient = gradient_at(whole[where])
    start = start_vector(point, gradient, place)
    product, wider = (difference(gradient_at, whole[where], scale) for scale in (1.0, 2.0))
    once, twice = product(start), wider(start)
    error = float(euclidean_norm(once - twice) / euclidean_norm(once))
    return Operator(gradient, product, start, "difference", error, max(SYMMETRY, _UNEVEN * error))


def start_vector(point: Point, gradient: Float[Tensor, " n"], place: int) -> Float[Tensor, " n"]:
    """The gradient and a random vector, of equal length. The gradient lies mostly in the sharp directions, which saves
    products. The random part covers the others."""
    random = generator(point.config.seed, "lanczos", point.step, place)
    start = torch.randn(len(gradient), generator=random, dtype=torch.float32).to(gradient)
    length = euclidean_norm(gradient)
    if not (torch.isfinite(length) and length > 0):
        return start
    start.div_(torch.copysign(euclidean_norm(start), inner_product(start, gradient)))
    return start.add_(gradient / length)


def _is_confirmed(point: Point, names: Sequence[str] | None, operator: Operator) -> bool:
    """Whether a product with the Hessian is the difference of two gradients, for some step length.

    A user's own backward pass may treat as constant what is not. Its Hessian can be symmetric nevertheless.
    """
    length, size = euclidean_norm(operator.start), euclidean_norm(point.theta)
    unit, expected = operator.start / length, operator.product(operator.start) / length
    for step in (float(size) * h for h in _STEPS):
        ahead, behind = torch.cat([gradients.clone() for _, gradients in point.along(unit, [-step, step], names)])
        slope = (ahead - behind) / (2 * step)
        largest = torch.maximum(euclidean_norm(slope), euclidean_norm(expected))
        if euclidean_norm(slope - expected) <= _CONFIRMED[unit.dtype] * largest:
            return True
    return False
