"""Long work: a run that is measured in one pass, a loop with a monitor, and what a checkpoint costs."""

from __future__ import annotations

import functools
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

import bnsmooth_cli as bns
from benchmarks.harness import CHOICES, Result, agree, faster, row, within
from benchmarks.references import plain_network
from bnsmooth_cli import kinds, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.request import measurement
from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.storage.runs import Run, write_config
from bnsmooth_cli.training.saving import Saver
from bnsmooth_cli.training.trajectory import Trajectory

MEASURED = ("landscape", "smoothness", "ics", "activations")
#: Ten measured steps to a checkpoint, as in `--every 100 --save-every 1000`.
PER_CHECKPOINT = 10
SAVE_EVERY = 500
#: The share of the time that a monitor may take.
BUDGET = 0.05


def _now() -> float:
    """The seconds that pass on a GPU; on a CPU those that all threads of this process compute, whatever else runs."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@row("one-pass", threads=1)
def one_pass() -> Iterator[Result]:
    """The quarter-width VGG of the paper, measured while it trains, against its parts and against visiting, one thread.

    On a GPU 15,000 steps are measured every 100. CPUs take the same number of points to a checkpoint, but fewer steps
    to a point and smaller batches, and count processor time. `--steps` gives another number of steps.
    """
    gpu = torch.cuda.is_available()
    (every, batch, usual), device = ((100, 128, 15_000), "cuda") if gpu else ((40, 16, 400), "cpu")
    steps, saving = CHOICES.steps or usual, PER_CHECKPOINT * every
    settings: dict[str, Any] = {
        "preset": "paper", "width": 0.25, "data": CHOICES.data, "batch_size": batch, "save_every": saving,
        "device": device,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bns.train("vgg", output=f"{folder}/warm", measure=MEASURED, at=[1], steps=2, **settings)
        begun = _now()
        one = bns.train("vgg", output=f"{folder}/one/run", measure=MEASURED, every=every, steps=steps, **settings)
        passed = _now() - begun
        begun = _now()
        run = bns.train("vgg", output=f"{folder}/run", steps=steps, **settings)
        alone = _now() - begun
        visits = [_visited(run, kind, range(0, steps + 1, every), device) for kind in MEASURED]
        for kind, (_, _, rows) in zip(MEASURED, visits, strict=True):
            written = bns.read_table(one.path / f"{kind}.parquet")
            pd.testing.assert_frame_equal(written, rows[[*written]], check_exact=True, check_dtype=False)
    parts = alone + sum(points for _, points, _ in visits)
    visiting = alone + sum(spent for spent, _, _ in visits)
    case = f"{steps:,} steps of {batch}, measured every {every}, saved every {saving}{'' if gpu else '; CPU time'}"
    yield within("one-pass", case, "training alone, and the time in measurements", passed, parts, 1.05)
    yield faster("one-pass", case, "training, then a walk to the points for each table", passed, visiting, 1.5)


def _visited(run: Run, kind: str, steps: Iterable[int], device: str) -> tuple[float, float, pd.DataFrame]:
    """Measure a run as a command does, without its files: the seconds, those in the measurement, and the rows."""
    begun, inside, definition, rows = _now(), 0.0, measurement(kind), list[pd.DataFrame]()
    arguments = definition.plan(run.config)
    for point in visit(run.source(), steps, device):
        before = _now()
        current = definition.rows(point, **arguments)
        inside += _now() - before
        rows.append(definition.since(rows[-1], current) if rows and definition.since else current)
    return _now() - begun, inside, pd.concat(rows, ignore_index=True)


@row("monitor", threads=1)
def monitor() -> Iterator[Result]:
    """A plain loop that trains a narrow VGG as torch.nn has it, with `bns.Monitor` at its default budget and without.

    Both train alike, to the last bit. The budget is a share of the time that passes; the whole loops are compared as
    `_now` counts, so that other load on the machine makes no difference.
    """
    problem = problems.build(
        resolve("vgg", norm="batch", width=0.0625, batch_size=16), "cuda" if torch.cuda.is_available() else "cpu"
    )
    steps, batches = CHOICES.steps or 4000, [problem.batch(step) for step in range(20)]
    ended, spent = list[torch.Tensor](), list[float]()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", bns.Remark)
        for monitored in (False, True):
            model = plain_network(problem.build()).to(problem.device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            loss = functools.partial(_cross_entropy, model)
            watching = bns.Monitor(
                model, loss, optimizer=optimizer, every=20, budget=BUDGET, folder=f"{folder}/{monitored}"
            )
            begun = _now()
            for step in range(steps):
                x, y = batches[step % len(batches)]
                if monitored:
                    watching.step(x, y)
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()
            spent.append(_now() - begun)
            watching.close()
            ended.append(flatten(model.parameters()).detach())
        points = watching.rows("smoothness")["step"].nunique()
    agree(ended[1], ended[0], 0.0)
    case = f"{steps:,} steps, every 20, {points} points of smoothness"
    allowed = BUDGET * watching.seconds
    yield within("monitor", case, f"its budget, {BUDGET:.0%} of the time", watching.spent, allowed, 1.0)
    yield within("monitor", case, "the loop without it", spent[1], spent[0], 1 / (1 - BUDGET) + 0.02)


def _cross_entropy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(x), y)


@row("checkpoints", threads=1)
def checkpoints() -> Iterator[Result]:
    """The paper's VGG at full width, with a checkpoint every 500 steps and without any, one thread.

    On a CPU the delay by a checkpoint is timed over two steps, in which it is written, and counted once in 500. It is
    processor time, that of the thread which writes the file included.
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
    plain, saving = map(median, times)
    delay, reference = max(0.0, saving - plain), plain * SAVE_EVERY / count
    case = f"width 1, a delay of {1000 * delay:.0f} ms every {SAVE_EVERY} steps{'' if gpu else '; CPU time'}"
    yield within("checkpoints", case, "no checkpoints", reference + delay, reference, 1.03)
