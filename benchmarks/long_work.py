"""Long work: a run that is measured in one pass, and what a checkpoint costs it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import bnsmooth_cli as bns
from benchmarks.harness import CHOICES, Result, faster, row, within
from bnsmooth_cli import kinds, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.request import measurement
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.storage.runs import Run, write_config
from bnsmooth_cli.training.saving import Saver
from bnsmooth_cli.training.trajectory import Trajectory

MEASURED = ("landscape", "smoothness", "ics", "activations")
#: Ten measured steps to a checkpoint, as in `--every 100 --save-every 1000`.
PER_CHECKPOINT = 10
SAVE_EVERY = 500


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@row("one-pass", threads=1)
def one_pass() -> Iterator[Result]:
    """The quarter-width VGG of the paper, measured while it trains, against its parts and against visiting, one thread.

    On a GPU 15,000 steps are measured every 100. CPUs take the same number of points to a checkpoint, but fewer steps
    to a point and smaller batches. `--steps` gives another number of steps.
    """
    gpu = torch.cuda.is_available()
    every, batch = (100, 128) if gpu else (40, 16)
    steps, device = CHOICES.steps or (15_000 if gpu else 400), "cuda" if gpu else "cpu"
    settings: dict[str, Any] = {
        "preset": "paper", "width": 0.25, "data": CHOICES.data, "batch_size": batch, "steps": steps,
        "save_every": PER_CHECKPOINT * every, "device": device,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bns.train("vgg", output=f"{folder}/warm", **{**settings, "steps": 2}, measure=MEASURED, at=[1])
        begun = _now()
        measured = bns.train("vgg", output=f"{folder}/pass/run", measure=MEASURED, every=every, **settings)
        passed = _now() - begun
        begun = _now()
        run = bns.train("vgg", output=f"{folder}/alone/run", **settings)
        alone = _now() - begun
        visiting, points = alone, 0.0
        for kind in MEASURED:
            begun, definition = _now(), measurement(kind)
            arguments, rows = definition.plan(run.config), list[pd.DataFrame]()
            for point in visit(run.source(), range(0, steps + 1, every), device):
                before = _now()
                current = definition.rows(point, **arguments)
                points += _now() - before
                rows.append(definition.since(rows[-1], current) if rows and definition.since else current)
            visiting += _now() - begun
            written = bns.read_table(measured.path / f"{kind}.parquet")
            expected = pd.concat(rows, ignore_index=True)[[*written]]
            pd.testing.assert_frame_equal(written, expected, check_exact=True, check_dtype=False)
    case = f"{steps:,} steps of {batch}, measured every {every}, saved every {PER_CHECKPOINT * every}"
    yield within("one-pass", case, "training alone, and the time in measurements", passed, alone + points, 1.05)
    yield faster("one-pass", case, "training, then a walk to the points for each table", passed, visiting, 1.5)


@row("checkpoints", threads=1)
def checkpoints() -> Iterator[Result]:
    """The paper's VGG at full width, with a checkpoint every 500 steps and without any, one thread.

    On a CPU the delay by a checkpoint is timed over two steps, in which it is written, and counted once in 500. Times
    are the shortest of five: other load delays steps by more than a checkpoint does.
    """
    gpu = torch.cuda.is_available()
    device, count = ("cuda", SAVE_EVERY) if gpu else ("cpu", 2)
    config = resolve("vgg", "paper", data=CHOICES.data, save_every=SAVE_EVERY)
    trajectory = Trajectory(problems.build(config, device))
    rows = pd.DataFrame({name: np.zeros(config.steps) for name in kinds.get("train").columns})
    rows = rows.assign(run="run", problem="vgg", norm="batch", seed=0, step=np.arange(config.steps))

    def steps() -> None:
        for _ in range(count):
            trajectory.advance()

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", trajectory.problem.config)
        run.checkpoint_path(0).parent.mkdir(parents=True)
        write_config(run)
        times: tuple[list[float], list[float]] = [], []
        steps()
        with Saver(run) as saver:
            saver.checkpoint(rows, {}, 0, trajectory.state())
            for _ in range(5):
                begun = _now()
                steps()
                between = _now()
                saver.checkpoint(rows, {}, trajectory.step, trajectory.state())
                steps()
                saver.wait()
                for spent, seconds in zip(times, (between - begun, _now() - between), strict=True):
                    spent.append(seconds)
    plain, saving = map(min, times)
    delay, reference = max(0.0, saving - plain), plain * SAVE_EVERY / count
    case = f"width 1, a delay of {1000 * delay:.0f} ms every {SAVE_EVERY} steps"
    yield within("checkpoints", case, "no checkpoints", reference + delay, reference, 1.03)
