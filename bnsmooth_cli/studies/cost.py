"""Estimate the cost of a study by timing a few steps and one point of each measurement on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import pandas as pd
import torch

from bnsmooth_cli import problems
from bnsmooth_cli.measures.request import measurement
from bnsmooth_cli.points.reaching import load_point
from bnsmooth_cli.studies.work import Task
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.run import train_config
from bnsmooth_cli.training.trajectory import Trajectory

_STEPS: Final = 5  # timed steps, after as many untimed ones that allocate memory


def estimate(tasks: Sequence[Task]) -> pd.DataFrame:
    """The remaining work of each run and its cost, one row per run.

    The columns are `run`, the step that its training has `reached`, the `steps` to train, the `tables` and `points` to
    measure, the `seconds` that all of it takes in one process, and the `bytes` of its checkpoints.
    """
    prices: dict[str, dict[str, float]] = {}  # by norm
    rows = []
    for task in tasks:
        config, steps = task.config, task.config.steps - task.reached
        row = {"run": task.name, "reached": task.reached, "steps": steps, "tables": len(task.wanted.kinds)}
        if not task:
            rows.append({**row, "points": 0, "seconds": 0.0, "bytes": 0})
            continue
        price = prices.setdefault(config.norm, {})
        if any(item not in price for item in ("step", *task.wanted.kinds)):
            price |= _timed(task)

        def marks(every: int, begin: int = task.reached, end: int = config.steps) -> int:
            return len({*range(-(-begin // every) * every, end + 1, every), end})

        points = len(task.wanted.steps(config))
        seconds = sum(points * price[kind] for kind in task.wanted.kinds)
        size = 0
        if steps:
            seconds += steps * price["step"] + marks(config.eval_every or config.steps) * price["evaluation"]
            size = marks(config.save_every) * int(price["bytes"])
        rows.append({**row, "points": points * len(task.wanted.kinds), "seconds": seconds, "bytes": size})
    return pd.DataFrame(rows)


def _timed(task: Task) -> dict[str, float]:
    """Seconds of a step, of an evaluation and of a point of each table, and the bytes of a checkpoint."""
    device = choose_device(task.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        trajectory = Trajectory(problems.build(task.config, device))
        steps = [_seconds(lambda: trajectory.advance().sum().item()) for _ in range(2 * _STEPS)]
        problem, model = trajectory.problem, trajectory.model
        state = [*model.state_dict().values(), *trajectory.velocity]
        prices = {
            "step": median(steps[_STEPS:]),
            "evaluation": _seconds(lambda: problem.evaluate(model)) if problem.test_size else 0.0,
            "bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in state)),
        }
        short = task.config.changed(steps=2, save_every=2, eval_every=task.config.eval_every and 2)
        with tempfile.TemporaryDirectory() as folder:
            run = train_config(short, Path(folder) / "run", device=task.device)
            for kind in task.wanted.kinds:
                point, measure = load_point(run, device=task.device), measurement(kind)
                arguments = measure.plan(short, **task.wanted.options(kind))
                prices[kind] = _seconds(lambda: measure.rows(point, **arguments))  # noqa: B023 - called here
        return prices
    finally:
        torch.set_num_threads(threads)


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
