"""What a study would cost: a few steps and one point of each measurement, timed on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from bnsmooth_cli import problems
from bnsmooth_cli.config import Config
from bnsmooth_cli.measures.measuring import measurement
from bnsmooth_cli.points.reaching import load_point
from bnsmooth_cli.studies.run import Task
from bnsmooth_cli.training.devices import choose_device
from bnsmooth_cli.training.run import train_config
from bnsmooth_cli.training.trajectory import Trajectory

_STEPS: Final = 5  # timed, after as many that are not: the first ones allocate


@dataclass(frozen=True)
class Cost:
    """Of a run: seconds in one process, bytes of checkpoints, measured points."""

    seconds: float
    bytes: int
    points: int


class Prices:
    """Seconds of a step, an evaluation and a measured point, timed once a norm."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, float]] = {}

    def cost(self, task: Task, kinds: tuple[str, ...]) -> Cost:
        """What is missing of a run: its training from where it stands, and `kinds` of tables."""
        config, begun = task.config, task.trained()
        price = self._known.setdefault(config.norm, {})
        if not price or any(kind not in price for kind in kinds):
            price |= _timed(task, kinds)
        steps = config.steps - begun
        evaluations = len(_marks(begun, config.steps, config.eval_every or config.steps)) if steps else 0
        points = len(task.at) if task.at else len(_marks(0, config.steps, task.every or config.save_every))
        seconds = steps * price["step"] + evaluations * price["evaluation"] + sum(points * price[k] for k in kinds)
        saved = len(_marks(begun, config.steps, config.save_every)) if steps else 0
        return Cost(seconds, saved * int(price["bytes"]), points * len(kinds))


def _marks(first: int, last: int, every: int) -> list[int]:
    return sorted({*range(-(-first // every) * every, last + 1, every), last})


def _timed(task: Task, kinds: tuple[str, ...]) -> dict[str, float]:
    device = choose_device(task.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        trajectory = Trajectory(problems.build(task.config, device))
        steps = [_seconds(lambda: trajectory.advance().sum().item()) for _ in range(2 * _STEPS)]
        model = trajectory.model
        found = {
            "step": median(steps[_STEPS:]),
            "evaluation": _seconds(lambda: trajectory.problem.evaluate(model)) if trajectory.problem.test_size else 0,
            "bytes": float(
                sum(t.numel() * t.element_size() for t in [*model.state_dict().values(), *trajectory.velocity])
            ),
        }
        with tempfile.TemporaryDirectory() as folder:
            short = _shortened(task.config)
            run = train_config(short, Path(folder) / "run", device=task.device)
            for kind in kinds:
                point = load_point(run, device=task.device)
                what = measurement(kind)
                found[kind] = _seconds(lambda: what.rows(point, **what.plan(short)))  # noqa: B023 - called at once
        return found
    finally:
        torch.set_num_threads(threads)


def _shortened(config: Config) -> Config:
    return config.changed(steps=2, save_every=2, eval_every=config.eval_every and 2)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
