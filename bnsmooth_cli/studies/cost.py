"""Estimate what runs and their measurements take: time, memory and disk, from a few timed steps and points."""

from __future__ import annotations

import copy
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch

from bnsmooth_cli import problems
from bnsmooth_cli.measures.one_pass import lacking
from bnsmooth_cli.measures.request import measurement
from bnsmooth_cli.memory import resident_memory
from bnsmooth_cli.points.reaching import point_of
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage.runs import CheckpointSource, Run
from bnsmooth_cli.studies.work import Task
from bnsmooth_cli.training import needs
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.needs import Needs
from bnsmooth_cli.training.trajectory import RECORD, Trajectory

_STEPS: Final = 5  # untimed steps, which allocate memory, and then as many timed ones, or more if they are quick
_ENOUGH, _QUICK = 0.2, 2.0  # seconds of timed steps; of a point that is measured twice, because the first one is slower
_DISK: Final = 0.01  # seconds in which a disk of moderate speed makes the two files of a save durable
#: Bytes in Parquet tables, measured: of a table, of a number in a column or in a list, and of a row of train.parquet.
_TABLE, _NUMBER, _LISTED, _ROW = 7000, 3, 8, 12


class _Point(NamedTuple):
    """What a point of a table takes: seconds of the first point and of another one, and bytes in the table."""

    first: float
    other: float
    size: float


class _Price(NamedTuple):
    """What the pieces of one norm's work take.

    Attributes:
        opening: Seconds until the first step, once the data is loaded.
        step, evaluation: Seconds of a training step, and of an evaluation of the test set.
        save: Seconds in which a checkpoint and the table before it are written. A thread does this beside training,
            but takes a core's time, and no save begins before the last one has ended.
        points: What points take, by kind of table.
        memory: Bytes beyond those of a process with the data.
        checkpoint, first: Bytes of a checkpoint, and of that of step 0.
    """

    opening: float
    step: float
    evaluation: float
    save: float
    points: dict[str, _Point]
    memory: float
    checkpoint: int
    first: int


@dataclass(frozen=True)
class Cost:
    """What the remaining work of runs takes on this machine.

    Attributes:
        runs: One row per run. The columns are `run`, the step that its training has `reached`, the `steps` to train,
            the `tables` and `points` to measure, and the `seconds`, the `memory` in bytes (of the GPU, if there is
            one) and the bytes on the `disk` that its work still takes.
        start: Seconds until a process begins to work: it starts, imports and loads the data.
        idle: Bytes of memory of a process that waits for its workers.
    """

    runs: pd.DataFrame
    start: float
    idle: float

    def seconds(self, jobs: int, threads: int) -> float:
        """The seconds of all runs in so many processes, as far as this machine has cores for their threads."""
        spent, cores = self.runs["seconds"], _cores()
        at_once = min(jobs, max(1, cores // threads))
        # Workers start after the process that starts them, and it compares the runs after them.
        return self.start * (1 if jobs == 1 else 3) + max(spent.sum() / at_once, spent.max())

    def memory(self, jobs: int) -> float:
        """The bytes of memory of so many processes."""
        return float(self.runs["memory"].nlargest(jobs).sum()) + self.idle * (jobs > 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate(tasks: Sequence[Task], start: float = 0.0) -> Cost:
    """What tasks take on this machine: runs a few steps, and a point or two of each table. Writes nothing.

    Args:
        tasks: The remaining work of each run, on one device; at least one run.
        start: Seconds until a process begins to work.

    Raises:
        InputError: If a run cannot fit into the memory or on the disk.
    """
    device, held, rows = choose_device(tasks[0].device), 0.0, []
    idle = 0.0 if device.type == "cuda" else float(resident_memory() or 0)
    prices: dict[str, _Price] = {}  # by norm
    for task in tasks:
        config, wanted = task.config, task.wanted.kinds
        steps = config.steps - task.reached
        row = {"run": task.name, "reached": task.reached, "steps": steps, "tables": len(wanted)}
        if not task:
            rows.append({**row, "points": 0, "seconds": 0.0, "memory": 0.0, "disk": 0.0})
            continue
        if config.norm not in prices or {*wanted} - {*prices[config.norm].points}:
            begun = time.perf_counter()
            problem = problems.build(config, device)
            if not prices:  # the data is loaded once in a process
                start += time.perf_counter() - begun
            needs.check(problem, task.path, force=not task.reached)
            held = held or _held(problem)
            prices[config.norm] = _priced(task, problem)
        price, run = prices[config.norm], Run(task.path, config)
        points = {kind: _lacking(task, run, kind) for kind in wanted}
        # Points before the step that training has reached are measured by training forward to them again.
        again = {step for left in points.values() for step in left if step < task.reached or not steps}
        seconds, disk = price.opening + (steps + _walked(run, sorted(again))) * price.step, 0.0
        for kind, left in points.items():
            point, count = price.points[kind], len(left)
            seconds += point.first + (count - 1) * point.other if count else 0.0
            disk += _TABLE + count * point.size
        if steps:
            seconds += (steps // (config.eval_every or config.steps) + 1) * price.evaluation
            saves = needs.saves(run, force=not task.reached)
            seconds += (saves.count + 1) * price.save
            disk += saves.size(price.checkpoint, price.first) - saves.freed + _TABLE + _ROW * steps
        figures = {"points": sum(map(len, points.values())), "seconds": seconds, "memory": held + price.memory}
        rows.append({**row, **figures, "disk": max(disk, 0.0)})
    return Cost(pd.DataFrame(rows), start, idle)


def _lacking(task: Task, run: Run, kind: str) -> list[int]:
    """The steps that remain to be measured for a table."""
    steps = task.wanted.steps(task.config)
    return steps if task.force else lacking(kind, run.source(), task.wanted, steps)


def _held(problem: Problem) -> float:
    """The bytes that a process has before it makes a network: main memory, or the data on a GPU."""
    if problem.device.type == "cuda":
        return float(torch.cuda.memory_allocated(problem.device))
    return float(resident_memory() or 0)


def _walked(run: Run, points: Sequence[int]) -> int:
    """The steps that are trained again to measure points of a finished run."""
    there, at, steps = [*run.checkpoints()], -1, 0
    for point in points:
        nearest = max((step for step in there if step <= point), default=0)
        at, begin = point, max(at, nearest)
        steps += point - begin
    return steps


def _priced(task: Task, problem: Problem) -> _Price:
    """Time steps, an evaluation and points of each table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        begun = time.perf_counter()
        problems.build(task.config, problem.device).baseline()
        opening = time.perf_counter() - begun
        about = Needs(problem)
        memory = about.memory(task.wanted.kinds)  # before the trajectory takes the problem's network
        trajectory = Trajectory(problem)
        _walk(trajectory, _STEPS)
        count, spent = _STEPS, _seconds(lambda: _walk(trajectory, _STEPS))
        if spent < _ENOUGH:
            count = int(_STEPS * min(_ENOUGH / spent, 100))
            spent = _seconds(lambda: _walk(trajectory, count))
        evaluation = _seconds(lambda: problem.evaluate(trajectory.model)) if problem.test_size else 0.0
        points = {kind: _point(task, trajectory, kind) for kind in task.wanted.kinds}
        return _Price(
            opening, spent / count, evaluation, _save(trajectory), points, memory, about.checkpoint, about.first
        )
    finally:
        torch.set_num_threads(threads)


def _save(trajectory: Trajectory) -> float:
    """Write a checkpoint and a table to memory, and allow for the disk."""
    rows = pd.DataFrame({name: [0.0] * 100 for name in RECORD})

    def write() -> None:
        torch.save(copy.deepcopy(trajectory.state()), io.BytesIO())
        rows.to_parquet(io.BytesIO())

    write()  # the first time imports and allocates
    return _DISK + _seconds(write)


def _walk(trajectory: Trajectory, steps: int) -> None:
    """Take steps, and wait for the device."""
    for _ in range(steps):
        record = trajectory.advance()
    record.sum().item()


def _point(task: Task, trajectory: Trajectory, kind: str) -> _Point:
    """Measure the present point, and once more if that is quick."""
    definition, config, problem = measurement(kind), task.config, trajectory.problem
    arguments = definition.plan(config, **task.wanted.options(kind))
    if definition.context is not None:
        arguments |= definition.context(CheckpointSource(task.path, task.name, config, {}), arguments, problem)
    begun = time.perf_counter()
    rows = definition.rows(point_of(trajectory, task.name), **arguments)
    first = other = time.perf_counter() - begun
    if first < _QUICK:
        other = min(first, _seconds(lambda: definition.rows(point_of(trajectory, task.name), **arguments)))
    listed = sum(len(value) for column in rows for value in rows[column] if isinstance(value, list | np.ndarray))
    return _Point(first, other, _NUMBER * rows.select_dtypes("number").size + _LISTED * listed)


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
