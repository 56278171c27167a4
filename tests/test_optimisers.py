"""Optimisers: their steps, schedules and clipping, resumed runs, the update of a step, and the limits of stability."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.parameters import penalised, trainable
from bnsmooth_cli.problems import build
from bnsmooth_cli.storage import tables
from bnsmooth_cli.training.optimisers import clipped, optimiser_of, stable_sharpness
from bnsmooth_cli.training.trajectory import Trajectory

#: Settings of every optimiser, with every schedule and with clipping.
SETTINGS = {
    "sgd": {"schedule": "cosine", "warmup": 3},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "clip": 0.5},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "schedule": "step"},
    "adam": {"weight_decay": 0.01, "schedule": "linear"},
    "adamw": {"weight_decay": 0.1, "betas": "0.9,0.95", "schedule": "cosine", "warmup": 3, "clip": 0.5},
    "nadam": {"warmup": 5},
    "radam": {"schedule": "step"},
    "rmsprop": {"momentum": 0.5, "square_decay": 0.9, "schedule": "cosine"},
}
CASES = [(problem, name) for problem in ("vgg", "dln") for name in SETTINGS]
STEPS = 9


def config(problem: str, name: str, **more: object) -> Config:
    small = {
        "vgg": {"width": 0.03, "batch_size": 8, "eval_every": STEPS, "lr": 0.01},
        "dln": {"depth": 4, "dimension": 4, "samples": 30, "lr": 1e-3},
    }[problem]
    chosen = {"optimizer": name} | SETTINGS[name]
    # Before BatchNorm, the gradients of biases are rounding errors, which Adam would make as large as all others.
    return resolve(problem, norm="none", steps=STEPS, save_every=4, **(small | chosen | more))


def settings_of(config: Config) -> dict[str, object]:
    return {name: value for name, value in config.as_dict().items() if name != "data_digest"}


def plain_loop(config: Config, steps: int) -> list[torch.Tensor]:
    """The parameters after some steps of a loop of torch's own parts: optimiser, clipping, and the rates as stated."""
    problem = build(config)
    model = problem.build()
    named = trainable(model)
    weights = [named[name] for name in penalised(model)]
    others = [p for p in named.values() if all(p is not w for w in weights)]
    chosen = {name: getattr(config, name) for name in ("momentum", "nesterov", "eps") if name != "eps"}
    decay = config.weight_decay if config.optimizer == "adamw" else 0.0
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    betas = tuple(float(beta) for beta in config.betas.split(","))
    made = {
        "sgd": lambda: torch.optim.SGD(groups, lr=1.0, **chosen),
        "adam": lambda: torch.optim.Adam(groups, lr=1.0, betas=betas, eps=config.eps),
        "adamw": lambda: torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=config.eps),
        "nadam": lambda: torch.optim.NAdam(groups, lr=1.0, betas=betas, eps=config.eps),
        "radam": lambda: torch.optim.RAdam(groups, lr=1.0, betas=betas, eps=config.eps),
        "rmsprop": lambda: torch.optim.RMSprop(
            groups, lr=1.0, alpha=config.square_decay, eps=config.eps, momentum=config.momentum
        ),
    }
    optimizer = made[config.optimizer]()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        inputs, targets = problem.batch(step)
        loss = problem.objective(problem.call(model, inputs), targets)
        if config.optimizer != "adamw":
            loss = loss + config.weight_decay / 2 * sum(w.square().sum() for w in weights)
        optimizer.zero_grad()
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(named.values(), config.clip)
        optimizer.step()
    return [p.detach().clone() for p in named.values()]


def parameters_of(point: bns.Point) -> list[torch.Tensor]:
    return [p.detach().clone() for p in point.parameters.values()]


@pytest.mark.parametrize(("problem", "name"), CASES)
def test_training_takes_the_steps_of_torchs_optimiser(problem, name):
    chosen = config(problem, name)
    trajectory = Trajectory(build(chosen))
    while trajectory.step < STEPS:
        trajectory.advance()
    for mine, other in zip(trajectory.parameters, plain_loop(chosen, STEPS), strict=True):
        torch.testing.assert_close(mine.detach(), other, rtol=2e-4, atol=2e-6)


def test_each_setting_changes_the_steps():
    def end(**settings: object) -> torch.Tensor:
        trajectory = Trajectory(build(config("dln", "adamw", **settings)))
        while trajectory.step < STEPS:
            trajectory.advance()
        return torch.cat([p.detach().flatten() for p in trajectory.parameters])

    ends = [end(), end(weight_decay=0.2), end(betas="0.5,0.95"), end(betas="0.9,0.9"), end(eps=0.1), end(warmup=0),
            end(schedule="linear"), end(clip=1e-7), end(optimizer="adam")]  # fmt: skip
    for place, one in enumerate(ends):
        assert not any(torch.equal(one, other) for other in ends[:place]), place


@pytest.mark.parametrize(("problem", "name"), CASES)
@pytest.mark.fast(3)
def test_resumed_runs_and_visited_points_have_the_same_bits(tmp_path, problem, name):
    chosen = settings_of(config(problem, name))
    whole = bns.train(output=tmp_path / "whole", measure=["ics"], at=[5, 7], **copy.copy(chosen))
    shutil.copytree(whole.path, tmp_path / "cut")
    for left in ("checkpoints/000008.pt", "checkpoints/000009.pt", "ics.parquet"):
        (tmp_path / "cut" / left).unlink()
    # What a killed run leaves: the rows and the checkpoints up to step 4.
    rows = bns.read_table(whole.path / "train.parquet")
    assert len(rows) == STEPS + 1
    provenance = {key: value for key, value in rows.attrs["bnsmooth"].items() if key not in ("last_step", "kind")}
    tables.write_table(tmp_path / "cut/train.parquet", "train", [rows[:5]], provenance)
    cut = bns.train(output=tmp_path / "cut", **copy.copy(chosen))
    for path in ("checkpoints/000008.pt", "checkpoints/000009.pt"):
        one, other = (str(torch.load(run.path / path, weights_only=True)) for run in (cut, whole))
        assert one.replace("cut", "whole") == other, path
    again = bns.read_table(cut.path / "train.parquet")
    assert np.array_equal(again["loss"], rows["loss"])
    assert np.array_equal(again["step_lr"], [config(problem, name).lr_at(step) for step in rows["step"]])
    seen = bns.read_table(whole.path / "ics.parquet")
    for step in (5, 7):  # the one pass and a visit from the checkpoint before
        visited = bns.ics(bns.load_point(whole, step=step))
        assert np.array_equal(seen[seen["step"] == step]["ics"], visited["ics"])


@pytest.mark.parametrize(("problem", "name"), CASES)
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.fast(8)
def test_the_update_is_the_step_that_training_takes(problem, name, step):
    trajectory = Trajectory(build(config(problem, name)))
    while trajectory.step < step:
        trajectory.advance()
    before = torch.cat([p.detach().flatten().clone() for p in trajectory.parameters])
    gradients = trajectory.gradients(update_statistics=False)[1]
    gradient = torch.cat([g.flatten() for g in gradients])
    kept = copy.deepcopy(trajectory.optimiser.state())
    moved, update = (f(gradient, step) for f in (trajectory.optimiser.moved, trajectory.optimiser.update))
    direction = trajectory.optimiser.direction(gradient, step)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in trajectory.parameters]))
    assert str(kept) == str(trajectory.optimiser.state())
    trajectory.advance()
    after = torch.cat([p.detach().flatten() for p in trajectory.parameters])
    assert torch.equal(moved, after)
    torch.testing.assert_close(update, before - after, rtol=1e-3, atol=2e-7)
    torch.testing.assert_close(direction * config(problem, name).lr_at(step), update, rtol=1e-5, atol=0)


def test_a_point_in_double_precision_has_the_state_of_its_optimiser(tmp_path):
    run = bns.train(output=tmp_path / "run", **settings_of(config("vgg", "adamw")))
    point = bns.load_point(run, step=6)
    double = point.to(torch.float64)
    gradient = point.gradients_at(point.theta[None])[1][0]
    one, other = point.optimiser.update(gradient, 6), double.optimiser.update(gradient.double(), 6)
    assert other.dtype == torch.float64
    torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(
        point.optimiser.preconditioner(6).double(), double.optimiser.preconditioner(6), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_schedules_are_those_of_torch(schedule, warmup):
    steps = 20
    chosen = resolve("dln", steps=steps, lr=0.3, schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    lrs = torch.optim.lr_scheduler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = {
            "constant": lambda: lrs.ConstantLR(optimizer, 1.0),
            "linear": lambda: lrs.LinearLR(optimizer, 1.0, 0.0, steps - warmup),
            "cosine": lambda: lrs.CosineAnnealingLR(optimizer, steps - warmup),
            "step": lambda: lrs.MultiStepLR(optimizer, [steps // 2 - warmup, 3 * steps // 4 - warmup]),
        }[schedule]
        if warmup:
            rise = lrs.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
            scheduler = lrs.SequentialLR(optimizer, [rise, after()], [warmup])
        else:
            scheduler = after()
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert [chosen.lr_at(step) for step in range(steps)] == pytest.approx(expected, rel=1e-12)
    assert chosen.lr_at(steps) == chosen.lr_at(steps - 1) > 0


@pytest.mark.parametrize("longest", [0.0, 0.1, 1e9])
def test_clipping_is_that_of_torch(longest):
    parameters = [torch.zeros(shape, requires_grad=True) for shape in ((3, 4), (5,))]
    gradients = [torch.randn_like(p, requires_grad=False) for p in parameters]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    if longest:
        torch.nn.utils.clip_grad_norm_(parameters, longest)
    for p, mine in zip(parameters, clipped(gradients, longest), strict=True):
        assert torch.equal(p.grad, mine)


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("lr", [0.1, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.5}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.3, "dampening": 0.3},
     {"momentum": 0.9, "dampening": 0.9}],
)  # fmt: skip
@pytest.mark.fast(7)
def test_a_quadratic_diverges_just_above_the_threshold_and_not_below(settings, lr, factor):
    sharpness = factor * stable_sharpness(lr, **settings)
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=lr, **settings)
    x.grad = torch.zeros_like(x)
    optimizer.step()  # torch's first step has no dampening
    for _ in range(4000):
        optimizer.zero_grad()
        (sharpness / 2 * x.square().sum()).backward()
        optimizer.step()
    assert (x.abs().item() > 1e6) == (factor > 1)
    assert (x.abs().item() < 1e-3) == (factor < 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_the_threshold_of_a_run_is_where_it_diverges_with_its_divisor_held_fixed(name, factor):
    """The optimiser steps on a quadratic whose Hessian is P times the threshold, times a factor.

    Its gradients are so small that they leave P as it is; the average of squares is put back before each step.
    """
    betas = {"betas": "0.9,0.9"} if name == "adam" else {}
    chosen = config("dln", name, schedule="constant", warmup=0, clip=0.0, weight_decay=0.0, **betas)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    optimiser = optimiser_of(chosen, model)
    for step in range(300):  # the corrections for the zeros at the start die out
        optimiser.step([torch.tensor([[3.0, 0.5]], dtype=torch.float64)], step)
    average = {"adam": "exp_avg_sq", "adamw": "exp_avg_sq", "rmsprop": "square_avg"}.get(name)
    divisor = optimiser.preconditioner(300)
    assert (divisor is None) == (average is None)
    state = {} if average is None else optimiser.optimizer.state[model.weight]
    decay = chosen.square_decay if name == "rmsprop" else float(chosen.betas.split(",")[1])
    held = None if average is None else state[average] / decay  # which the step makes P's again
    with torch.no_grad():
        model.weight.fill_(1e-9)
        for buffer in (state.get("exp_avg"), state.get("momentum_buffer"), *optimiser.velocity):
            if buffer is not None:
                buffer.zero_()
    hessian = factor * optimiser.threshold(300) * (1.0 if divisor is None else divisor.view(1, 2))
    for step in range(300, 3000):
        if average is not None:
            state[average].copy_(held)
        optimiser.step([hessian * model.weight.detach()], step)
        if model.weight.abs().max() > 1e-6:
            break
    largest = model.weight.abs().max().item()
    assert (largest > 1e-6) == (factor > 1), largest
    assert (largest < 1e-12) == (factor < 1), largest


def test_adams_threshold_and_divisor_are_those_of_cohen_et_al():
    assert stable_sharpness(1.0, momentum=0.9, dampening=0.9) == pytest.approx(38)  # 38 / eta, arXiv 2207.14484
    chosen = config("vgg", "adam", schedule="constant", weight_decay=0.0)
    trajectory = Trajectory(build(chosen))
    squares, (first, second) = 0.0, (0.9, 0.999)
    assert trajectory.optimiser.preconditioner(0) is None
    for step in range(1, 4):
        gradient = torch.cat([g.flatten() for g in trajectory.gradients(update_statistics=False)[1]]).double()
        squares = second * squares + (1 - second) * gradient.square()
        trajectory.advance()
        expected = (1 - first**step) * ((squares / (1 - second**step)).sqrt() + chosen.eps)
        torch.testing.assert_close(trajectory.optimiser.preconditioner(step).double(), expected, rtol=1e-4, atol=0)


def test_decoupled_decay_shrinks_the_weights_alone():
    chosen = config("vgg", "adamw", clip=0.0)
    model = build(chosen).build()
    optimiser, weights = optimiser_of(chosen, model), {*penalised(model)}
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    optimiser.step([torch.zeros_like(p) for p in trainable(model).values()], 0)
    for name, parameter in trainable(model).items():
        factor = 1 - chosen.lr_at(0) * chosen.weight_decay if name in weights else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)
    assert {*weights} < {*trainable(model)}
    assert optimiser_of(config("vgg", "adam"), model)._config.decay == 0


class Loop:
    """A user's training loop with an optimiser of their own settings, a scheduler and hooks."""

    def __init__(self, kind: str = "AdamW", **settings: object) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.x, self.y = torch.randn(32, 4), torch.randint(3, (32,))
        self.optimizer = getattr(torch.optim, kind)(self.model.parameters(), **({"lr": 0.01} | settings))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.called: list[str] = []

    def loss(self) -> torch.Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.scheduler.step()


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adagrad", "Adadelta", "Adamax"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_loops_optimiser_is_read_and_left_alone(kind, steps):
    loop = Loop(kind, **({"momentum": 0.9} if kind == "SGD" else {}))
    for _ in range(steps):
        loop.step()
    loop.optimizer.register_step_post_hook(lambda *_: loop.called.append("own"))
    state, grads = copy.deepcopy(loop.optimizer.state_dict()), [p.grad for p in loop.model.parameters()]
    weights, random = copy.deepcopy(loop.model.state_dict()), torch.get_rng_state()
    point = bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer, step=steps)
    assert point.lr == loop.optimizer.param_groups[0]["lr"]
    shift = bns.ics(point)
    gradient = point.gradients_at(point.theta[None])[1][0]
    moved = point.optimiser.moved(gradient, steps)
    assert str(state) == str(loop.optimizer.state_dict())
    assert str(weights) == str(loop.model.state_dict())
    assert all(p.grad is g for p, g in zip(loop.model.parameters(), grads, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert loop.called == []
    loop.step()
    assert loop.called == ["own"]
    torch.testing.assert_close(
        moved, torch.cat([p.detach().flatten() for p in loop.model.parameters()]), rtol=0, atol=0
    )
    assert len(shift) == 2


def test_a_function_of_the_parameters_is_an_optimiser(tmp_path):
    settings = {"width": 0.03, "batch_size": 8, "steps": 6, "save_every": 3}
    run = bns.train("vgg", optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.02),
                    output=tmp_path / "run", **settings)  # fmt: skip
    assert run.config.lr == 0.02
    rows = bns.read_table(run.train_path)
    assert set(rows["lr"]) == {0.02}
    point = bns.load_point(run, step=4)
    assert math.isnan(point.optimiser.threshold(4))
    assert point.optimiser.preconditioner(4) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optimizer": "adam", "momentum": 0.9},
            "--momentum 0.9: the optimizer adam has no such setting; it has --betas",
        ),
        ({"betas": "0.9,0.95"}, "--betas 0.9,0.95: the optimizer sgd has no such setting; it has --momentum"),
        ({"optimizer": "adam", "betas": "0.9,1"}, "--betas 0.9,1: give two numbers from 0 up to, not including, 1"),
        ({"optimizer": "adam", "betas": "0.9"}, "--betas 0.9: give two numbers"),
        ({"optimizer": "adam", "betas": "nan,0.9"}, "--betas nan,0.9: give two numbers"),
        ({"optimizer": "adma"}, "unknown optimizer 'adma': did you mean 'adam'"),
        ({"warmup": 301}, "--warmup 301: longer than the run; give at most its 300 steps"),
        ({"schedule": "cosin"}, "--schedule cosin: give constant or cosine or linear or step"),
        ({"nesterov": True}, "--nesterov: needs a momentum"),
        ({"clip": -1.0}, "--clip -1.0: give a number from 0"),
        ({"optimizer": "adam", "eps": 0.0}, "--eps 0.0: give a number above 0"),
        ({"optimizer": "rmsprop", "square_decay": 1.0}, "--square-decay 1.0: give a number from 0"),
    ],
)
def test_impossible_settings_are_refused_in_a_line(settings, said):
    with pytest.raises(InputError) as error:
        resolve("vgg", **settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_another_optimiser_does_not_keep_the_presets_settings():
    assert resolve("vgg", "paper", optimizer="adamw").weight_decay == 0


def test_a_run_with_a_schedule_is_not_extended(tmp_path):
    settings = {"depth": 3, "samples": 20, "steps": 6, "schedule": "cosine", "output": tmp_path / "run"}
    bns.train("dln", **settings)
    with pytest.raises(InputError, match="steps 6, now 8, which the schedule cosine depends on"):
        bns.train("dln", **settings | {"steps": 8})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda parameters: 3, "returns a int; give a function of the parameters"),
        (lambda parameters: torch.optim.LBFGS(parameters), "LBFGS evaluates the loss several times in a step"),
        (lambda parameters: torch.optim.SGD(parameters[1:], lr=0.1), "give it all of these"),
        (lambda parameters: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), "give it all of these"),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.0), "has the learning rate 0; give one above 0"),
        (lambda parameters: 1 / 0, "called with a list of the parameters, it fails (ZeroDivisionError"),
    ],
)
def test_functions_that_make_no_usable_optimiser_are_refused(tmp_path, function, said):
    with pytest.raises(InputError) as error:
        bns.train("dln", depth=3, samples=20, steps=2, optimizer=function, output=tmp_path / "run")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_loop_without_a_learning_rate_is_refused():
    loop = Loop()
    with pytest.raises(InputError, match="lr: give the learning rate of your loop, or its optimizer"):
        bns.Point.of(loop.model, loop.loss)
    with pytest.raises(InputError, match=r"lr 0\.5: the optimizer has the learning rate 0.01; leave lr out"):
        bns.Point.of(loop.model, loop.loss, lr=0.5, optimizer=loop.optimizer)


@pytest.mark.parametrize("damage", ["missing", "shape", "list", "text", "steps", "type"])
@pytest.mark.fast(3)
def test_a_state_that_does_not_fit_is_refused(tmp_path, damage):
    run = bns.train(output=tmp_path / "run", **settings_of(config("vgg", "adamw")))
    path = Path(run.path, "checkpoints/000004.pt")
    content = torch.load(path, weights_only=True)
    held = content["optimizer"]
    match damage:
        case "missing":
            del content["optimizer"]
        case "shape":
            held["exp_avg"][0] = held["exp_avg"][0][:1]
        case "list":
            held["exp_avg"] = held["exp_avg"][1:]
        case "text":
            held["exp_avg_sq"] = "none"
        case "steps":
            held["step"] = [torch.tensor(3.0) for _ in held["step"]]
        case "type":
            held["exp_avg_sq"][0] = held["exp_avg_sq"][0].double()
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        bns.load_point(run, step=5)
    assert "000004.pt" in str(error.value)
    assert "\n" not in str(error.value)
