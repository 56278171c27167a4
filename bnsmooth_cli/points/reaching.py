"""How points are reached: from a run, a checkpoint or already-trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.structure import Structure
from bnsmooth_cli.networks.undisturbed import uncompiled
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.trajectory import Trajectory
from bnsmooth_cli.user_code import is_code, name_of

#: The largest relative difference between a recomputed and a recorded loss. Devices and versions round differently.
_LOSS_TOLERANCE: Final = 0.02


def open_problem(source: CheckpointSource, device: str = "auto") -> Problem:
    """The problem of a source's configuration, with its data on the device.

    Raises:
        InputError: If the device is missing, or the settings, the data, the weights or the user's code do not fit. The
            message names the source's path.
    """
    chosen = choose_device(device)
    try:
        return problems.build(source.config, chosen, source.weights)
    except InputError as error:
        if source.weights is not None:  # the message already names the file, or an option
            raise
        raise InputError(f"{source.path}: {error}") from error


def structure_of(problem: Problem) -> Structure:
    """The layers and sites of a problem's network, before any training."""
    return Point(problem, uncompiled(problem.initial), [], 0, *problem.batch(0), problem.config.name).structure


def visit(
    source: CheckpointSource, steps: Iterable[int], device: str = "auto", problem: Problem | None = None
) -> Iterator[Point]:
    """Yield the points at the steps in ascending order, each trained forward from the nearest checkpoint before it.

    A point is valid until the next one is requested, because the trajectory updates the same tensors.

    Args:
        source: The run, checkpoint or weights.
        steps: The steps to visit.
        device: "auto", "cpu", "cuda" or "mps".
        problem: The source's problem if it is open already; otherwise it is opened on the device.

    Raises:
        InputError: If a step is out of reach, or the source's problem cannot be opened.
    """
    reached = nearest_checkpoints(source, steps)
    trajectory = Trajectory(problem or open_problem(source, device))
    for place, (step, nearest) in enumerate(reached.items()):
        if source.weights is None and (place == 0 or trajectory.step < nearest):
            trajectory.load(source.checkpoints[nearest], nearest)
        if place == 0:
            _check_record(source, _point(trajectory, source.name))
        while trajectory.step < step:
            trajectory.advance()
        yield _point(trajectory, source.name)


def _point(trajectory: Trajectory, run: str) -> Point:
    problem, step = trajectory.problem, trajectory.step
    return Point(problem, uncompiled(trajectory.model), trajectory.velocity, step, *problem.batch(step), run)


def _check_record(source: CheckpointSource, point: Point) -> None:
    """Raise InputError if the user's code or data no longer gives the loss that training recorded."""
    table = source.path / "train.parquet"
    if not (is_code(point.config.problem) or is_code(point.config.norm)) or not table.is_file():
        return
    rows = tables.read_table(table, "train", ["step", "loss"])
    recorded = rows["loss"][rows["step"] == point.step]
    with torch.no_grad():
        loss = point.loss().item()
    if len(recorded) and not abs(loss - recorded.iloc[0]) <= _LOSS_TOLERANCE * abs(recorded.iloc[0]) + 1e-4:
        raise InputError(
            f"{source.path}: the loss at step {point.step} is {loss:.4g}, but training recorded "
            f"{recorded.iloc[0]:.4g}: your code or data has changed since; train the run again "
            "(bnsmooth train ... --force)"
        )


def nearest_checkpoints(source: CheckpointSource, steps: Iterable[int]) -> dict[int, int]:
    """The steps in ascending order, each with the checkpoint from which its point is trained forward."""
    return {step: max(s for s in source.checkpoints if s <= step) for step in reachable(source, steps)}


def reachable(source: CheckpointSource, steps: Iterable[int]) -> list[int]:
    """Sort the steps, and check that each can be reached.

    Raises:
        InputError: If a step is before the first checkpoint or after the end of training, or there is no checkpoint.
    """
    if not source.checkpoints:
        raise InputError(f"{source.path}: has no checkpoints yet; train it first")
    first, last = min(source.checkpoints), max(source.config.steps, *source.checkpoints)
    wanted = sorted(set(steps))
    for step in wanted:
        if not first <= step <= last:
            raise InputError(f"{source.path}: step {step} is out of reach; give steps from {first} to {last}")
    return wanted


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
    """Load the point of a run at a step, or of a checkpoint.

    Args:
        path: A run, its folder, or a checkpoint file.
        step: The training step; the last checkpoint's by default. Between checkpoints, the run is trained forward from
            the checkpoint before the step.
        device: "auto", "cpu", "cuda" or "mps".
        data: The folder of the images, if they have moved since training.
        dtype: The precision to convert the point to. Training up to the point uses the run's own precision.
        objective: The loss to measure: "batch", "train:K" or "test" (see `Point`).
        code: The custom norm and problem of the run, as "module:name" or the objects themselves. They must be given
            because code that only a file names is never run.

    Returns:
        The point, on the device.

    Raises:
        InputError: If the path is neither a run nor a checkpoint, the step is out of reach, or the objective does not
            exist.

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
    return _single_point(source.with_data(data), wanted, device, dtype, objective)


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
    """Load the point of already-trained weights, with the batch of step 0.

    Args:
        path: The file of a state dict that fits the problem's network, written by `torch.save` or safetensors. It may
            be inside other dicts, and have the names that DataParallel, `torch.compile` or Lightning give it.
        problem: The problem, as `train` takes it.
        norm: The norm, as `train` takes it.
        seed: The seed of the data order and the noise.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: The precision to convert the point to.
        objective: The loss to measure: "batch", "train:K" or "test" (see `Point`).
        **settings: Further settings, as `train` takes them.

    Returns:
        The point, on the device.

    Raises:
        InputError: If the file is of another kind, or the state dict does not fit; the message says what it is, or
            lists the keys that differ.

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
    return _single_point(runs.open_weights(Path(path), config), 0, device, dtype, objective)


def _single_point(source: CheckpointSource, step: int, device: str, dtype: torch.dtype | None, objective: str) -> Point:
    (point,) = visit(source, [step], device)
    return (point if dtype is None else point.to(dtype)).at(objective)
