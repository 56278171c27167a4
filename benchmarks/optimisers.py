"""Optimisers: a training step of each, the probe along the update, and batch sharpness, against plain torch loops."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor, nn

import bnsmooth_cli as bns
from benchmarks import references
from benchmarks.harness import Result, agree, medians, row, within
from bnsmooth_cli import optimisers, problems
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.measures.batch_sharpness import batch_sharpness, on_batch
from bnsmooth_cli.measures.landscape import line_alphas
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.training.trajectory import Trajectory

_STEPS: Final = 1000  # more than are timed
#: Case -> the settings that make it. Every optimiser, and what recipes add to two of them.
CASES: Final[dict[str, dict[str, Any]]] = {
    **{rule.name: {"optimizer": rule.name} for rule in optimisers.RULES},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9},
    "adamw, cosine, clip": {"optimizer": "adamw", "schedule": "cosine", "clip": 1.0},
}
_BATCHES: Final = 4  # of batch sharpness


def _plain(problem: Problem) -> nn.Module:
    """The network of a problem as torch.nn has it."""
    model = problem.build()
    if isinstance(model, Chain):
        return references.plain_network(model).to(memory_format=torch.channels_last)
    return copy.deepcopy(model)


def _bare(config: Config, problem: Problem) -> Callable[[], Tensor]:
    """A step of the plain loop on the batch of step 0: torch's optimiser, schedule and clip."""
    model, (inputs, targets) = _plain(problem), problem.batch(0)
    momentum = {"momentum": config.momentum} if config.momentum else {}
    optimiser = optimisers.build(config.optimizer, model.parameters(), lr=config.lr, **momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = problem.objective(problem.call(model, inputs), targets)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        if config.schedule != "constant":
            schedule.step()
        return loss.detach()

    return step


@row("optimiser-step", threads=1)
def steps() -> Iterator[Result]:
    """A step of each optimiser, data included, against a bare loop on a fixed batch, one thread."""
    for name, (case, settings) in itertools.product(("vgg", "gpt"), CASES.items()):
        lr = 0.1 if settings["optimizer"] == "sgd" else 1e-3
        config = resolve(name, norm="batch" if name == "vgg" else "layer", lr=lr, steps=_STEPS, **settings)
        problem = problems.build(config)
        trajectory, bare = Trajectory(problem), _bare(config, problem)
        agree(trajectory.advance()[0], bare(), 1e-5)
        ours_s, reference_s = medians(trajectory.advance, bare, repeats=25)
        yield within("optimiser-step", f"{name}, {case}", "bare loop, fixed batch", ours_s, reference_s, 1.05)


def _trained(folder: str) -> bns.Point:
    """A point after some steps of AdamW."""
    settings = {"optimizer": "adamw", "lr": 1e-3, "steps": 20}
    return bns.load_point(bns.train("vgg", "batch", output=f"{folder}/run", device="cpu", **settings), device="cpu")


@row("update-probe", threads=1)
def probe() -> Iterator[Result]:
    """The line along the update of AdamW at width 0.25, against its bare passes, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        point = _trained(folder)
    model, loss = references.plain_loss(point)
    alphas = line_alphas("vgg")

    def ours() -> pd.DataFrame:
        return bns.landscape(point, direction="update")

    direction = point.optimiser.direction(references.gradient(model, loss), point.step)
    expected = torch.stack(references.line(model, loss, alphas, point.lr, direction))
    agree(torch.tensor(ours().iloc[1:]["grad_distance"].to_numpy()), expected[:, 1], 2e-2)
    gradients = len(alphas) + 1
    ours_s, reference_s = medians(
        ours, lambda: [references.gradient(model, loss) for _ in range(gradients)], repeats=15
    )
    yield within(
        "update-probe",
        f"line of {len(alphas)} and its start",
        f"{gradients} bare forward-backwards",
        ours_s,
        reference_s,
        1.05,
    )


@row("batch-sharpness", threads=1)
def sharpness() -> Iterator[Result]:
    """Batch sharpness at width 0.25, against as many gradients and double backwards, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        point = _trained(folder)
    model, loss = references.plain_loss(point)

    def bare(loss: references.Loss) -> Tensor:
        product = references.DoubleBackward(model, loss)
        gradient = flatten(product.slopes).detach()
        return torch.dot(gradient, product(gradient)) / torch.dot(gradient, gradient)

    batches = [on_batch(point, number) for number in range(_BATCHES)]
    values = [bare(lambda one=one: one.problem.objective(model(one.inputs), one.targets)) for one in batches]
    agree(torch.tensor(batch_sharpness(point, _BATCHES)[0]), torch.stack(values).mean(), 1e-2)
    ours_s, reference_s = medians(
        lambda: batch_sharpness(point, _BATCHES), lambda: [bare(loss) for _ in range(_BATCHES)], repeats=7
    )
    case = f"{_BATCHES} batches, sampled"
    yield within("batch-sharpness", case, "bare gradients and Hessian products", ours_s, reference_s, 1.1)
