"""The loss on a line or a plane around a point. Li et al. (2018), "Visualizing the Loss Landscape of Neural Nets"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.eigenpairs import Eigenpairs, extreme_eigenpairs
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.measures import DIRECTIONS
from bnsmooth_cli.measures.landscape import plan_objective
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.operators import Operator, with_operator
from bnsmooth_cli.networks.parameters import flatten, of_norms, weight_normed
from bnsmooth_cli.networks.structure import is_transposed
from bnsmooth_cli.networks.vectors import euclidean_norm, inner_product
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.runs import CheckpointSource

POINTS: Final = 21  # per axis, by default; an odd number, so that the point itself is on the grid
MAX_POINTS: Final = 1001
PART: Final = 2**20  # parameters whose inner products are computed at once
MARGIN: Final = 1.2  # width of a grid around a path, in widths of the path

#: The network at one step of a path: its state dict, or theta alone.
State = Mapping[str, Tensor] | Tensor
Path = Mapping[int, State]  # by step


@measured
def surface(
    point: Point,
    points: int = POINTS,
    extent: float = 1.0,
    dimensions: int = 2,
    directions: str = "random",
    objective: str | None = None,
    path: Path | None = None,
) -> pd.DataFrame:
    r"""Measure the loss $L(\theta + x d_1 + y d_2)$ on a grid around a point: Li et al. (2018), section 4.

    Random directions are Gaussian, and depend only on the run's seed and the step. They are filter-normalised: each
    filter (all weights of one output) is scaled to the norm of the same filter of the network,
    $d_{ij} \leftarrow \|\theta_{ij}\| \, d_{ij} / \|d_{ij}\|$. Biases and the parameters of norms do not move, as in
    the authors' code. Principal directions (section 7.2) have unit length. They are the principal components of the
    differences $\theta_i - \theta$ between the steps of the training path and the point.

    The top directions are the eigenvectors of the Hessian's two largest eigenvalues (`spectrum`), of unit length. The
    grid reaches as far as a quadratic loss with these eigenvalues rises by the square of `extent`: along the first one,
    from $-\sqrt{2 / \lambda_1}$ to $\sqrt{2 / \lambda_1}$ by default.

    The network's buffers, such as the running statistics that are used in eval mode, are those of the point on the
    whole grid. Each step of the path has its own, so its loss is the one that a measurement at that step finds.

    A loss that overflows is recorded as inf or NaN.

    Args:
        point: The centre.
        points: The number of grid points per axis.
        extent: The reach of the grid. For random directions, it goes from -extent to extent; for principal ones, it
            covers `extent` times MARGIN the width of the path's projection; for top ones, see above.
        dimensions: 1 for a line, which has no y, or 2 for a plane.
        directions: "random", "pca" for the principal directions of the path, or "top".
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        path: The network at several steps of the run, for principal directions: its state dicts by step. The vectors
            theta are enough unless the objective is "eval" or "test" and the network has buffers.

    Returns:
        One row per grid point, then one per step of the path. Columns: the coordinates `x` and `y`, `loss`,
        `path_step` (null on the grid; for a step of the path, x and y are its projection and `loss` is the loss with
        its own parameters and buffers), `x_share` and `y_share`, the share of the path's variance along each
        principal direction, and `x_eigenvalue` and `y_eigenvalue`, the eigenvalue along each top direction.

    Raises:
        InputError: If the grid is impossible, the path has fewer than three steps besides the point's, is straight, is
            not finite or lacks the buffers, the top eigenvalues are not positive, or the problem does not have the
            objective.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     rows = bns.surface(bns.load_point(run), points=3)
    >>> len(rows), rows.loc[4, ["x", "y"]].tolist()
    (9, [0.0, 0.0])
    """
    check(points, extent, dimensions, directions)
    point, path = point.at(objective), path or {}
    theta, shares, eigenvalues = point.theta, (math.nan, math.nan), [math.nan, math.nan]
    if directions == "pca":
        if point.objective.evaluated and _has_buffers(point) and any(isinstance(s, Tensor) for s in path.values()):
            raise InputError(
                "path: a loss in eval mode needs each step's running statistics; give state dicts, not vectors"
            )
        if (others := len(path.keys() - {point.step})) < 3:
            raise InputError(
                f"--directions pca: a plane needs a path of at least 3 steps besides step {point.step}, and there are "
                f"{others}; train with a smaller --save-every, which saves more checkpoints"
            )
        steps = sorted(path)
        apart = torch.stack([_theta(point, path[step]) - theta for step in steps])
        axes, projection, shares = principal(theta, apart, [step != point.step for step in steps])
        ranges = [_range(projection[:, i], extent) for i in range(2)]
    elif directions == "top":
        axes, eigenvalues = top_directions(point, dimensions)
        ranges = [(-extent * math.sqrt(2 / value), extent * math.sqrt(2 / value)) for value in eigenvalues]
    else:
        axes, ranges = random_directions(point, dimensions), [(-extent, extent)] * dimensions
    values = [np.linspace(low, high, points) for low, high in ranges]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*values, indexing="ij")], 1)
    losses = point.losses_at(_walk(theta, axes, grid)).cpu().double().numpy()
    second = grid[:, 1] if len(axes) == 2 else math.nan
    frame = pd.DataFrame({"x": grid[:, 0], "y": second, "loss": losses, "path_step": math.nan})
    if directions == "pca":
        losses = torch.cat([_loss_of(point, path[step]) for step in steps]).cpu().double().numpy()
        columns = {"x": projection[:, 0], "y": projection[:, 1], "loss": losses, "path_step": np.array(steps, float)}
        frame = pd.concat([frame, pd.DataFrame(columns)], ignore_index=True)
    along = {"x_eigenvalue": eigenvalues[0], "y_eigenvalue": eigenvalues[-1] if dimensions == 2 else math.nan}
    return frame.assign(x_share=shares[0], y_share=shares[1], **along)


def check(points: int, extent: float, dimensions: int, directions: str) -> None:
    """Raise InputError, naming the option, if the grid is impossible."""
    if not 1 <= points <= MAX_POINTS:
        raise InputError(f"--points {points}: give a whole number from 1 to {MAX_POINTS}")
    if not 0 < extent < math.inf:
        raise InputError(f"--extent {extent:g}: give a length above 0")
    if dimensions not in (1, 2):
        raise InputError(f"--dimensions {dimensions}: give 1 or 2")
    if directions not in DIRECTIONS:
        raise unknown("directions", directions, DIRECTIONS)
    if directions == "pca" and dimensions == 1:
        raise InputError("--directions pca: spans a plane; leave out --dimensions 1")


def plan(config: Config, objective: str = "batch", **grid: Any) -> dict[str, Any]:
    """The keyword arguments of `surface`, except the path; None stands for a default."""
    options = {"points": POINTS, "extent": 1.0, "dimensions": 2, "directions": "random"}
    options |= {name: value for name, value in grid.items() if value is not None}
    check(**options)  # type: ignore[arg-type]
    return {**options, **plan_objective(config, objective)}


def path_of(source: CheckpointSource, arguments: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The keyword argument `path` of `surface` for principal directions: the network at every checkpoint of the run."""
    if arguments.get("directions") != "pca":
        return {}
    return {"path": {point.step: _state(point) for point in visit(source, source.checkpoints, problem=problem)}}


def _state(point: Point) -> dict[str, Tensor]:
    """A copy of what changes along a path: the trained parameters and the buffers. Frozen parameters stay the same."""
    changing = point.parameters | dict(point.model.named_buffers())
    return {name: value.detach().to("cpu", copy=True) for name, value in changing.items()}


def _has_buffers(point: Point) -> bool:
    return any(buffer.is_floating_point() for buffer in point.model.buffers())


def _theta(point: Point, state: State) -> Tensor:
    """The parameter vector of a state, on the point's device. Raises InputError if the state lacks a parameter."""
    like = next(iter(point.parameters.values()))
    if isinstance(state, Tensor):
        return state.detach().to(like)
    if lacking := [name for name in point.parameters if name not in state]:
        raise InputError(f"path: a state dict lacks {lacking[0]}; give those of this network")
    return flatten(state[name] for name in point.parameters).detach().to(like)


def _loss_of(point: Point, state: State) -> Float[Tensor, " 1"]:
    """The point's objective, on its batch and with its noise, of the network in another state."""
    with _buffers(point, {} if isinstance(state, Tensor) else state):
        return point.losses_at([_theta(point, state)])


@contextmanager
def _buffers(point: Point, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the network the buffers of a state while the block runs."""
    present = {name: buffer for name, buffer in point.model.named_buffers() if name in state}
    kept = {name: buffer.clone() for name, buffer in present.items()}
    try:
        for name, buffer in present.items():
            buffer.copy_(state[name])
        yield
    finally:
        for name, buffer in present.items():
            buffer.copy_(kept[name])


def random_directions(point: Point, count: int) -> list[Float[Tensor, " n"]]:
    """Filter-normalised random directions.

    Raises:
        InputError: If no parameter has filters, or all of them are 0.
    """
    random = generator(point.config.seed, "surface", point.step)
    still = {id(p) for p in (*of_norms(point.model), *(length for length, _ in weight_normed(point.model)))}
    groups = {  # not of a parametrised weight, which is no parameter
        id(module._parameters.get("weight")): getattr(module, "groups", 1)
        for module in point.model.modules()
        if is_transposed(module) or isinstance(module, _ConvTransposeNd)
    }

    def direction(p: Tensor) -> Tensor:
        drawn = torch.randn(p.shape, generator=random, dtype=torch.float32).to(p)
        return torch.zeros_like(drawn) if id(p) in still else _like(p.detach(), drawn, groups.get(id(p)))

    found = [flatten(map(direction, point.parameters.values())) for _ in range(count)]
    if not any(axis.any() for axis in found):
        raise InputError(
            "--directions random: moves the weights of layers, and none of them is trained and not 0; give top"
        )
    return found


def top_directions(point: Point, count: int) -> tuple[list[Float[Tensor, " n"]], list[float]]:
    """The eigenvectors of the largest eigenvalues of the Hessian, and the eigenvalues.

    Raises:
        InputError: If an eigenvalue is not positive, or is not found.
    """

    def find(operator: Operator) -> Eigenpairs:
        random = generator(point.config.seed, "spectrum", point.step)
        return extreme_eigenpairs(operator.product, operator.start, count, random, operator.symmetry)

    if count > len(point.theta):
        raise InputError(f"--directions top: {count} directions of one parameter; give --dimensions 1")
    found = with_operator(point, "hessian", find)
    values, vectors = found.values[:count], found.vectors[:count].to(point.theta)
    if not (found.accurate[:count].all() and (values > 0).all()):
        said = ", ".join(f"{value:.3g}" for value in values)
        raise InputError(
            f"--directions top: needs positive eigenvalues of the Hessian, and they are {said}; take random"
        )
    # The sign of an eigenvector is arbitrary. Here the largest element is positive.
    signs = [torch.sign(vector[vector.abs().argmax()]) for vector in vectors]
    return [vector * sign for vector, sign in zip(vectors, signs, strict=True)], values.tolist()


def _like(
    weight: Float[Tensor, "*shape"], direction: Float[Tensor, "*shape"], groups: int | None
) -> Float[Tensor, "*shape"]:
    """The direction with each filter scaled to the norm of the weight's; zero for parameters without filters.

    Filters are along the first dimension; of a transposed weight, in each of its groups along the second one.
    """
    if weight.dim() < 2:
        return torch.zeros_like(direction)
    split, across = direction, tuple(range(1, weight.dim()))
    if groups is not None:
        weight, split = (tensor.unflatten(0, (groups, -1)) for tensor in (weight, direction))
        across = (1, *range(3, weight.dim()))
    size, length = (torch.linalg.vector_norm(tensor, dim=across, keepdim=True) for tensor in (weight, split))
    return (split * (size / length)).view_as(direction)


def principal(
    theta: Float[Tensor, " n"], apart: Float[Tensor, "steps n"], moved: list[bool]
) -> tuple[list[Float[Tensor, " n"]], Float64[np.ndarray, "steps 2"], tuple[float, float]]:
    """The principal directions of a path.

    Args:
        theta: The parameters at the centre.
        apart: The parameters at each step, less those at the centre.
        moved: Whether each step is another one than the centre's.

    Returns:
        The first two directions, the coordinates of each step, and the two shares of the variance.

    Raises:
        InputError: If the steps other than the centre's lie on a line but for the rounding of their parameters, as two
            steps always do, or are not finite.
    """
    centred = apart[moved]
    centred = centred - centred.mean(0)
    # Parameters are many and steps are few. The matrix of inner products has the same nonzero eigenvalues.
    # In float64, as the second eigenvalue may be many times smaller than the first.
    parts = (part.cpu().double() for part in centred.split(PART, dim=1))
    products = torch.stack([part @ part.T for part in parts]).sum(0)
    if not products.isfinite().all():
        raise InputError("--directions pca: the path has steps that are not finite, or too large")
    values, vectors = torch.linalg.eigh(products)
    longest = (euclidean_norm(theta) + euclidean_norm(apart).max()).item()
    rounding = (torch.finfo(theta.dtype).eps * longest) ** 2 + torch.finfo(torch.float64).eps * values[-1].item()
    if values[-2] <= len(values) * rounding:
        raise InputError(
            "--directions pca: the path lies on a line but for rounding, so there is no plane; give random or top"
        )
    top = values.clamp_min(0).flip(0)[:2]
    axes = [centred.T @ vector.to(apart) for vector in vectors.flip(1).T[:2]]
    axes = [axis / euclidean_norm(axis) for axis in axes]
    # The sign of a principal direction is arbitrary. Here the path begins at the upper right.
    axes = [axis if inner_product(apart[0], axis) >= 0 else -axis for axis in axes]
    shares = (top / values.clamp_min(0).sum()).tolist()
    coordinates = torch.stack([inner_product(apart, axis) for axis in axes], dim=1)
    return axes, coordinates.cpu().double().numpy(), (shares[0], shares[1])


def _range(coordinates: Float64[np.ndarray, " steps"], extent: float) -> tuple[float, float]:
    low, high = min(coordinates.min(), 0.0), max(coordinates.max(), 0.0)
    half = MARGIN * extent * (high - low) / 2
    return float((low + high) / 2 - half), float((low + high) / 2 + half)


def _walk(
    theta: Float[Tensor, " n"], axes: list[Float[Tensor, " n"]], grid: Float64[np.ndarray, "points axes"]
) -> Iterator[Tensor]:
    """Yield theta + x d_1 + y d_2 for each grid point, always in the same memory."""
    moved = torch.empty_like(theta)
    for place in grid.tolist():
        moved.copy_(theta)
        for length, axis in zip(place, axes, strict=True):
            moved.add_(axis, alpha=length)
        yield moved


MEASUREMENT: Final = Measurement(surface, plan, context=path_of, last_only=True)
