"""How points are reached: from a run, a checkpoint or already-trained weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bnsmooth_cli import problems, stopping
from bnsmooth_cli.config import CODE, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.structure import Structure
from bnsmooth_cli.networks.wrappers import uncompiled
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.storage.stretches import described, history, recorded
from bnsmooth_cli.training.devices import choose_device, machine
from bnsmooth_cli.training.optimisers import optimiser_of
from bnsmooth_cli.training.trajectory import Trajectory
from bnsmooth_cli.user_code import digest, is_code, name_of

#: The largest relative difference between recomputed and recorded values on the machine that recorded them, and on
#: others, which round differently.
_TOLERANCE: Final = 1e-3
_TOLERANCE_ELSEWHERE: Final = 0.02
_SLACK: Final = 1e-4  # of the largest number that training recorded, which counts as 1 at most


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
        data = getattr(source.config.settings, "data", None)
        moved = data is not None and Path(data).is_absolute() and not Path(data).exists()
        hint = "; if it has moved, give --data" if moved else ""
        raise InputError(f"{source.path}: {error}{hint}") from error


@torch.inference_mode(False)
@torch.enable_grad()
def structure_of(problem: Problem) -> Structure:
    """The layers and sites of a problem's network, before any training."""
    model = uncompiled(problem.initial)
    optimiser = optimiser_of(problem.config, model)
    return Point(problem, model, optimiser, 0, *problem.batch(0), problem.config.name).structure


@torch.inference_mode(False)
@torch.enable_grad()
def visit(
    source: CheckpointSource, steps: Iterable[int], device: str = "auto", problem: Problem | None = None
) -> Iterator[Point]:
    """Yield the points at the steps in ascending order, each trained forward from the nearest checkpoint before it.

    A point is valid until the next one is requested, because the trajectory updates the same tensors. No further point
    is yielded once the work is told to stop.

    Args:
        source: The run, checkpoint or weights.
        steps: The steps to visit.
        device: "auto", "cpu", "cuda" or "mps".
        problem: The source's problem if it is open already; otherwise it is opened on the device.

    Raises:
        InputError: If a step is out of reach, or the source's problem cannot be opened.
    """
    reached = nearest_checkpoints(source, steps)
    last = max(reached, default=0)
    trajectory = Trajectory(problem or open_problem(source, device))
    for place, (step, nearest) in enumerate(reached.items()):
        if source.weights is None and (place == 0 or trajectory.step < nearest):
            trajectory.load(source.checkpoints[nearest], nearest)
        if place == 0:
            _check_record(source, trajectory)
        while trajectory.step < step and not stopping.told():
            trajectory.advance()
        if stopping.told():
            return
        if step == last or is_code(source.config.optimizer):  # what the first point had may be lost on the way
            _check_record(source, trajectory)
        yield point_of(trajectory, source.name)


def point_of(trajectory: Trajectory, run: str) -> Point:
    """The present point of a trajectory. It is valid until the next step, which updates the same tensors."""
    problem, step = trajectory.problem, trajectory.step
    return Point(problem, uncompiled(trajectory.model), trajectory.optimiser, step, *problem.batch(step), run)


def _check_record(source: CheckpointSource, trajectory: Trajectory) -> None:
    """Raise InputError if the user's code or data no longer gives the loss and the gradient that training recorded."""
    problem, path = trajectory.problem, source.path / "train.parquet"
    if not (problem.has_users_code or is_code(problem.config.optimizer)) or not path.is_file():
        return
    rows = tables.read_table(path, "train", ["step", "loss", "grad_norm"])
    row = rows[rows["step"] == trajectory.step]
    if not len(row):
        return
    exact = _made_here(rows.attrs["bnsmooth"], problem) and all(p.element_size() >= 4 for p in trajectory.parameters)
    loss, norm = _recomputed(trajectory)
    old_loss, old_norm = float(row["loss"].iloc[0]), float(row["grad_norm"].iloc[0])
    tolerance = _TOLERANCE if exact else _TOLERANCE_ELSEWHERE
    loss_size, norm_size = (float(rows.loc[np.isfinite(rows[name]), name].max()) for name in ("loss", "grad_norm"))
    if not _agree(loss, old_loss, tolerance, loss_size) or (exact and not _agree(norm, old_norm, tolerance, norm_size)):
        raise InputError(
            f"{source.path}: at step {trajectory.step} the loss is {loss:.6g} and its gradient's norm {norm:.6g}, but "
            f"training recorded {old_loss:.6g} and {old_norm:.6g}; {_cause(source, rows.attrs['bnsmooth'], problem)} "
            "train the run again (bnsmooth train ... --force)"
        )


def _recomputed(trajectory: Trajectory) -> tuple[float, float]:
    """The loss and the gradient's norm, as training computes them: a norm may use statistics that it has just updated.

    The network is left as it was.
    """
    buffers = [buffer.clone() for buffer in trajectory.model.buffers()]
    ended = trajectory.step >= trajectory.problem.config.steps
    loss, _, _, norm = trajectory.gradients(update_statistics=not ended)[0].tolist()
    with torch.no_grad():
        for buffer, value in zip(trajectory.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return loss, norm


def _made_here(provenance: dict[str, Any], problem: Problem) -> bool:
    """Whether this torch on this kind of device has computed all of a run, as far as its table tells."""
    here = machine(problem.device)
    if "machines" in provenance:  # written by an earlier version
        kind = "cpu" if "threads" in here else here["device"]
        return bool(provenance["machines"] == [f"torch {here['torch']} on {kind}"])
    stretches = recorded(provenance, 0)
    return all(one.get(key) == here[key] for one in stretches for key in ("torch", "device"))


def _cause(source: CheckpointSource, provenance: dict[str, Any], problem: Problem) -> str:
    """Why a run of the user's code cannot be computed again, as far as its table tells, and what to do about it."""
    names = [getattr(source.config, name) for name in CODE]
    now = {name: state for name in names if (state := digest(name)) is not None}
    if "code" not in provenance:  # written by an earlier version
        return "your code or data has changed since, or depends on more than the seed: restore it, or"
    if provenance["code"] != now:
        return "your code has changed since: restore it, or"
    if not _made_here(provenance, problem):
        made_by = (
            _listed(provenance["machines"]) if "machines" in provenance else history(recorded(provenance, 0))[:200]
        )
        return f"this is {described(machine(problem.device))}, and the run was made by {made_by}: measure it there, or"
    return (
        f"{_listed(now)} has not changed since, but what it imports or reads has, or it depends on more than the seed "
        "(numpy.random.default_rng() without a seed, the time, the order of a set): fix that, and"
    )


def _listed(names: Any) -> str:
    return ", ".join(map(str, names if isinstance(names, list | dict) else ["another one"]))[:200]


def _agree(value: float, recorded: float, tolerance: float, size: float) -> bool:
    """Whether two numbers agree, of which the largest is `size`: near 0, they are differences of larger ones."""
    if not math.isfinite(value) or not math.isfinite(recorded):
        return not math.isfinite(value) and not math.isfinite(recorded)
    return abs(value - recorded) <= tolerance * abs(recorded) + _SLACK * min(1.0, abs(size))


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
    steps = list(steps)
    for step in steps:
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise InputError(f"step {str(step)[:40]}: give a whole number")
    wanted = sorted({int(step) for step in steps})
    for step in wanted:
        if not first <= step <= last:
            removed = 0 <= step < first and source.path.is_dir()  # a run begins with a checkpoint of step 0
            why = f", because the checkpoints before {first} were removed (--keep)" if removed else ""
            anew = ", or delete the run and train it again without --keep" if removed else ""
            raise InputError(
                f"{source.path}: step {step} is out of reach{why}; give steps from {first} to {last}{anew}"
            )
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
        data: The folder of the images or the file of the text, if it has moved since training.
        dtype: The precision to convert the point to. Training up to the point uses the run's own precision.
        objective: The loss to measure: "batch", "train:K", "eval" or "test" (see `Point`).
        code: The custom norm, problem and optimiser of the run, as "module:name" or the objects themselves. They must
            be given because code that only a file names is never run.

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
        name_of(thing, "code", session=True)
    source = path.source() if isinstance(path, runs.Run) else runs.open_source(path)
    wanted = max(source.checkpoints, default=0) if step is None else step
    return _single_point(source.with_data(data), wanted, device, dtype, objective)


def load_weights(
    path: Path | str,
    problem: object,
    norm: object = None,
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
        norm: The norm, as `train` takes it; that of the problem's preset by default.
        seed: The seed of the data order and the noise.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: The precision to convert the point to.
        objective: The loss to measure: "batch", "train:K", "eval" or "test" (see `Point`).
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
    if settings.get("optimizer") is not None:
        settings["optimizer"] = name_of(settings["optimizer"], "optimizer", session=True)
    own_norm = None if norm is None else name_of(norm, "norm")
    config = resolve(name_of(problem, "problem"), norm=own_norm, seed=seed, **settings)
    return _single_point(runs.open_weights(Path(path), config), 0, device, dtype, objective)


@torch.inference_mode(False)
@torch.enable_grad()
def _single_point(source: CheckpointSource, step: int, device: str, dtype: torch.dtype | None, objective: str) -> Point:
    (point,) = visit(source, [step], device)
    return (point if dtype is None else point.to(dtype)).at(objective)
