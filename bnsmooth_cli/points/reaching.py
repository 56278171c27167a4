"""How points are reached: from a run, a checkpoint or already-trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from bnsmooth_cli import problems
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.trajectory import Trajectory
from bnsmooth_cli.user_code import is_code, name_of


def visit(source: CheckpointSource, steps: Iterable[int], device: str = "auto") -> Iterator[Point]:
    """The points at the given steps in rising order, each trained forward from the nearest checkpoint before it.

    A point is valid until the next one is asked for: the trajectory walks on with the same tensors.
    """
    trajectory: Trajectory | None = None
    reached = -1
    for step, nearest in nearest_checkpoints(source, steps).items():
        if trajectory is None:
            trajectory = _trajectory(source, device)
        if reached < nearest:  # otherwise the walk is past that checkpoint already
            first, reached = reached < 0, nearest
            if source.weights is None:  # those are where the trajectory begins
                trajectory.load(source.checkpoints[reached], reached)
            if first:
                _check_record(source, _point(trajectory, source.name))
        while trajectory.step < step:
            trajectory.advance()
        yield _point(trajectory, source.name)


def _trajectory(source: CheckpointSource, device: str) -> Trajectory:
    chosen = choose_device(device)
    try:
        return Trajectory(problems.build(source.config, chosen, source.weights))
    except InputError as error:
        if source.weights is not None:  # it names the file already, or an option
            raise
        raise InputError(f"{source.path}: {error}") from error


def first_point(config: Config) -> Point:
    """The point at step 0 of a configuration's run, before any training; on the CPU."""
    return _point(Trajectory(problems.build(config)), config.name)


#: How far a loss of the user's code may be from the one that training recorded: another device, another version.
_SAME: Final = 0.02


def _check_record(source: CheckpointSource, point: Point) -> None:
    """Raise InputError where the user's code or data gives another loss than it did in training: it has changed."""
    table = source.path / "train.parquet"
    if not (is_code(point.config.problem) or is_code(point.config.norm)) or not table.is_file():
        return
    rows = tables.read_table(table, "train", ["step", "loss"])
    recorded = rows["loss"][rows["step"] == point.step]
    with torch.no_grad():
        loss = point.loss().item()
    if len(recorded) and not abs(loss - recorded.iloc[0]) <= _SAME * abs(recorded.iloc[0]) + 1e-4:
        raise InputError(
            f"{source.path}: the loss at step {point.step} is {loss:.4g}, and training recorded "
            f"{recorded.iloc[0]:.4g}: your code or data has changed since; train the run again "
            "(bnsmooth train ... --force)"
        )


def nearest_checkpoints(source: CheckpointSource, steps: Iterable[int]) -> dict[int, int]:
    """The steps in rising order, each with the checkpoint that its point is trained forward from."""
    return {step: max(s for s in source.checkpoints if s <= step) for step in reachable(source, steps)}


def reachable(source: CheckpointSource, steps: Iterable[int]) -> list[int]:
    """The steps in rising order; InputError where one is before the first checkpoint or after the training's end."""
    if not source.checkpoints:
        raise InputError(f"{source.path}: has no checkpoints yet; train it first")
    first, last = min(source.checkpoints), max(source.config.steps, *source.checkpoints)
    wanted = sorted(set(steps))
    for step in wanted:
        if not first <= step <= last:
            raise InputError(f"{source.path}: step {step} is out of reach, its points are steps {first} to {last}")
    return wanted


def _point(trajectory: Trajectory, run: str) -> Point:
    problem, model = trajectory.problem, trajectory.model
    inputs, targets = problem.batch(trajectory.step)
    return Point(problem, model, trajectory.velocity, trajectory.step, inputs, targets, run)


def load_point(
    path: Path | str | runs.Run,
    step: int | None = None,
    *,
    device: str = "auto",
    data: str | None = None,
    dtype: torch.dtype | None = None,
    objective: str = "batch",
    code: Iterable[object] = (),
) -> Point:
    """The point of a checkpoint, or of a run at a step (by default its last checkpoint's).

    `data` is where the images are now, should they have moved. `dtype` converts the point once it is reached: the way
    there is the run's own. `objective` is the loss that is measured there: "batch", "train:K" or "test". `code` names
    the user's own norm and problem, as "module:name" or itself, which a run's file alone does not bring to run.
    Raises InputError for a path that is neither, or a step before the first checkpoint or after the training's end.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.load_point(run, step=3).loss().shape
    torch.Size([])
    """
    for thing in code:
        name_of(thing)
    source = path.source() if isinstance(path, runs.Run) else runs.open_source(path)
    wanted = max(source.checkpoints, default=0) if step is None else step
    (point,) = visit(source.with_data(data), [wanted], device)
    return (point if dtype is None else point.to(dtype)).at(objective)


def load_weights(
    path: Path | str,
    problem: object,
    norm: object = "batch",
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    objective: str = "batch",
    **settings: Any,
) -> Point:
    """The point at which already-trained weights are: a file of a state dict that fits the problem's network.

    The problem, the norm and the settings as `train` takes them; the batch is that of step 0. Raises InputError, with
    the keys that differ, for a state dict that does not fit.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     trained = bns.load_point(run)
    ...     torch.save(trained.model.state_dict(), f"{folder}/model.pt")
    ...     point = bns.load_weights(f"{folder}/model.pt", "dln", "batch", samples=20)
    >>> torch.equal(point.theta, trained.theta)
    True
    """
    config = resolve(name_of(problem), norm=name_of(norm), seed=seed, **settings)
    (point,) = visit(runs.open_weights(Path(path), config), [0], device)
    return (point if dtype is None else point.to(dtype)).at(objective)
