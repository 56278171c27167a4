"""The loss on a line or a plane around a point: Li et al. (2018), "Visualizing the Loss Landscape of Neural Nets"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.measures import DIRECTIONS
from bnsmooth_cli.measures.landscape import plan_objective
from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.networks.parameters import flatten, trainable
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.runs import CheckpointSource

POINTS: Final = 21  # an axis; odd, so that the point itself is one of them
MAX_POINTS: Final = 1001
#: How far beyond the path a plane of its principal directions reaches, by default: a fifth of its half width.
MARGIN: Final = 1.2

Path = Mapping[int, Tensor]  # step -> theta there


def surface(
    point: Point,
    points: int = POINTS,
    extent: float = 1.0,
    dimensions: int = 2,
    directions: str = "random",
    objective: str | None = None,
    path: Path | None = None,
) -> pd.DataFrame:
    r"""The loss $L(\theta + x d_1 + y d_2)$ on a grid around a point, one row a grid point (Li et al. 2018, section 4).

    `directions` "random": Gaussian, a function of the run's seed and the step, each filter scaled to the norm of the
    network's own, $d_{ij} \leftarrow \|\theta_{ij}\| \, d_{ij} / \|d_{ij}\|$, a filter being all weights of one output;
    biases and norms' parameters stay as they are (as in the authors' code). x and y are `points` evenly spaced values
    from -extent to extent; with `dimensions` 1, y is null.

    "pca": the two principal directions of the path that training took (section 7.2), of unit length, by the covariance
    of its steps' distances $\theta_i - \theta$ from the point; `path` is {step: theta_i}. The grid covers the path's
    projection, `extent` times MARGIN wide. Rows with a `path_step` are the path: the projection x, y of the step's
    parameters, and the loss at the parameters themselves. `x_share`, `y_share`: of the variance, what each direction
    explains.

    Batch, noise and `objective` as `landscape` has them. A loss that overflows is recorded as inf or NaN.
    Raises InputError for a grid that cannot be, or a path of fewer than three points.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     rows = bns.surface(bns.load_point(run), points=3)
    >>> len(rows), rows.loc[4, ["x", "y"]].tolist()
    (9, [0.0, 0.0])
    """
    check(points, extent, dimensions, directions)
    point = point if objective is None else point.at(objective)
    theta = point.theta
    if directions == "pca":
        axes, found, shares = principal(theta, path or {}, point.step)
        ranges = [_range(found[:, i], extent) for i in range(2)]
    else:
        axes = random_directions(point, dimensions)
        ranges, shares = [(-extent, extent)] * dimensions, (math.nan, math.nan)
    values = [np.linspace(low, high, points) for low, high in ranges]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*values, indexing="ij")], 1)
    losses = point.losses_at(_walk(theta, axes, grid)).cpu().double().numpy()
    frame = pd.DataFrame({"x": grid[:, 0], "y": grid[:, 1] if len(axes) == 2 else math.nan, "loss": losses})
    if directions == "pca":
        steps = sorted(path or {})
        there = point.losses_at((path or {})[step].to(theta) for step in steps).cpu().double().numpy()
        taken = pd.DataFrame({"x": found[:, 0], "y": found[:, 1], "loss": there, "path_step": np.array(steps, float)})
        frame = pd.concat([frame.assign(path_step=math.nan), taken], ignore_index=True)
    else:
        frame["path_step"] = math.nan
    return label(point, frame.assign(x_share=shares[0], y_share=shares[1]))


def check(points: int, extent: float, dimensions: int, directions: str) -> None:
    """Raise InputError, naming the option, for a grid that cannot be."""
    if not 1 <= points <= MAX_POINTS:
        raise InputError(f"--points {points}: give a whole number from 1 to {MAX_POINTS}")
    if not 0 < extent < math.inf:
        raise InputError(f"--extent {extent:g}: give a length above 0")
    if dimensions not in (1, 2):
        raise InputError(f"--dimensions {dimensions}: give 1 or 2")
    if directions not in DIRECTIONS:
        raise unknown("directions", directions, DIRECTIONS)
    if directions == "pca" and dimensions == 1:
        raise InputError("--directions pca: gives two of them; leave out --dimensions 1")


def plan(config: Config, objective: str = "batch", **grid: Any) -> dict[str, Any]:
    """The keyword arguments of `surface`, but for the path; None stands for the default."""
    options = {"points": POINTS, "extent": 1.0, "dimensions": 2, "directions": "random"}
    options |= {name: value for name, value in grid.items() if value is not None}
    check(**options)  # type: ignore[arg-type]
    return {**options, **plan_objective(config, objective)}


def path_of(source: CheckpointSource, options: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The path that `surface` needs for a source's principal directions: theta at every checkpoint."""
    if options.get("directions") != "pca":
        return {}
    if len(source.checkpoints) < 3:
        raise InputError(f"{source.path}: --directions pca needs a run with at least 3 checkpoints")
    return {"path": {point.step: point.theta.cpu() for point in visit(source, source.checkpoints, problem=problem)}}


def random_directions(point: Point, count: int) -> list[Tensor]:
    """Filter-normalised random directions (n,)."""
    random = generator(point.config.seed, "surface", point.step)
    return [
        flatten(
            _like(p.detach(), torch.randn(p.shape, generator=random).to(p)) for p in trainable(point.model).values()
        )
        for _ in range(count)
    ]


def _like(weight: Tensor, direction: Tensor) -> Tensor:
    """The direction with every filter as long as the weight's; zero for what has no filters."""
    if weight.dim() < 2:
        return torch.zeros_like(direction)
    norm = torch.linalg.vector_norm
    size, length = norm(weight.flatten(1), dim=1), norm(direction.flatten(1), dim=1)
    return direction * (size / length).view(-1, *(1,) * (weight.dim() - 1))


def principal(theta: Tensor, path: Path, center: int) -> tuple[list[Tensor], NDArray[np.float64], tuple[float, float]]:
    """The two principal directions (n,) of a path, every step's coordinates (steps, 2) and the shares of variance."""
    steps = sorted(path)
    if len(path.keys() - {center}) < 2:
        raise InputError("--directions pca: needs a path of at least 3 points")
    apart = torch.stack([path[step].to(theta) - theta for step in steps])
    others = apart[[step != center for step in steps]]
    centred = others - others.mean(0)
    # n is in the millions and the steps are few: the matrix of their products has the same eigenvalues.
    values, vectors = torch.linalg.eigh((centred @ centred.T).cpu().double())
    top = values.clamp_min(0).flip(0)[:2]
    axes = [torch.nn.functional.normalize(centred.T @ vector.to(theta), dim=0) for vector in vectors.flip(1).T[:2]]
    # A direction's sign is nobody's choice: the path begins on the right, and above.
    axes = [axis if torch.dot(apart[0], axis) >= 0 else -axis for axis in axes]
    shares = (top / values.clamp_min(0).sum()).tolist()
    return axes, (apart @ torch.stack(axes).T).cpu().double().numpy(), (shares[0], shares[1])


def _range(coordinates: NDArray[np.float64], extent: float) -> tuple[float, float]:
    low, high = min(coordinates.min(), 0.0), max(coordinates.max(), 0.0)
    half = MARGIN * extent * ((high - low) / 2 or 1.0)
    return float((low + high) / 2 - half), float((low + high) / 2 + half)


def _walk(theta: Tensor, axes: list[Tensor], grid: NDArray[np.float64]) -> Iterator[Tensor]:
    """theta + x d_1 + y d_2 at every grid point, in the same memory."""
    moved = torch.empty_like(theta)
    for place in grid.tolist():
        moved.copy_(theta)
        for length, axis in zip(place, axes, strict=True):
            moved.add_(axis, alpha=length)
        yield moved


MEASUREMENT: Final = Measurement(surface, plan, context=path_of, last_only=True)
