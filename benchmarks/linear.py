"""The deep linear network: steps, line probe, ICS, and the paper's run measured every 10 steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import bnsmooth_cli as bns
from benchmarks import references
from benchmarks.harness import Result, agree, faster, medians, row
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.landscape import line_alphas
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.training.trajectory import Trajectory

GROUPS = {"none": 1, "batch": 3, "l1": 3, "linf": 3}  # parameters per layer


def _point(norm: str) -> bns.Point:
    with tempfile.TemporaryDirectory() as folder:
        return bns.load_point(bns.train("dln", norm, steps=50, output=f"{folder}/run", device="cpu"), device="cpu")


@row("dln-step", threads=1)
def step() -> Iterator[Result]:
    """A training step against the module chain in a plain loop, one thread."""
    for norm in GROUPS:
        problem = problems.build(resolve("dln", norm=norm))
        trajectory, model = Trajectory(problem), references.plain_network(problem.build())
        inputs, targets = problem.batch(0)
        optimiser = torch.optim.SGD(model.parameters(), lr=problem.config.lr)

        def plain() -> None:
            optimiser.zero_grad()
            problem.objective(model(inputs), targets).backward()
            optimiser.step()

        plain()
        trajectory.advance()
        ours = torch.cat([p.detach().flatten() for p in trajectory.parameters])
        agree(ours, torch.cat([p.detach().flatten() for p in model.parameters()]), 1e-4)
        # From here on, rounding separates the two trajectories; the work stays the same.
        ours_s, reference_s = medians(trajectory.advance, plain, repeats=60)
        yield faster("dln-step", norm, "module chain in a plain loop", ours_s, reference_s, 3)


@row("dln-measure", threads=1)
def measures() -> Iterator[Result]:
    """The line probe with 16 points and ICS over all 25 layers, against plain loops, one thread."""
    for norm, groups in GROUPS.items():
        point = _point(norm)
        model, loss = references.plain_loss(point)
        alphas, lr = line_alphas("dln", points=16), point.config.lr
        table = bns.landscape(point, alphas).iloc[1:]
        expected = torch.stack(references.line(model, loss, alphas, lr))
        agree(torch.tensor(table["loss"].to_numpy()), expected[:, 0], 1e-3)
        ours_s, reference_s = medians(
            lambda: bns.landscape(point, alphas), lambda: references.line(model, loss, alphas, lr), repeats=7
        )
        yield faster("dln-measure", f"{norm}, line of 16", "plain loop", ours_s, reference_s, 10)
        distances = torch.tensor(bns.ics(point)["ics"].to_numpy())
        agree(distances, torch.stack(references.ics(model, loss, [groups] * 25, lr)), 1e-2)
        ours_s, reference_s = medians(
            lambda: bns.ics(point), lambda: references.ics(model, loss, [groups] * 25, lr), repeats=7
        )
        yield faster("dln-measure", f"{norm}, ICS", "plain loop", ours_s, reference_s, 10)


@row("dln-paper", threads=1)
def paper() -> Iterator[Result]:
    """The paper's run, measured every 10 steps: The goal is 120 s; there is no reference to time."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = bns.train("dln", "batch", preset="paper", output=Path(folder) / "run", device="cpu")
        for kind, options in (("landscape", {"points": 16}), ("smoothness", {}), ("ics", {})):
            measure(kind, [run.source()], every=10, options=options, device="cpu")
    spent = time.perf_counter() - start
    yield Result("dln-paper", "10,000 steps, every 10", "120 s", spent, 120, spent / 120, "at most 1x", spent <= 120)
