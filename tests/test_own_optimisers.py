"""Optimisers of the user's own, in runs and in their loops; and torch's steps to the last bit."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys

import own_optimisers
import pytest
import torch
from helpers import ENVIRONMENT
from test_optimisers import SETTINGS, Loop, config
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, user_code
from bnsmooth_cli.config import resolve
from bnsmooth_cli.networks.parameters import penalised, trainable
from bnsmooth_cli.problems import build
from bnsmooth_cli.storage.runs import read_checkpoint
from bnsmooth_cli.training.optimiser_copies import copied
from bnsmooth_cli.training.optimisers import optimiser_of
from bnsmooth_cli.training.trajectory import Trajectory, _join

SMALL = {"depth": 3, "dimension": 4, "samples": 20, "steps": 8, "save_every": 3}


def torchs(config, named, decayed):
    """torch's optimiser with the settings of a configuration."""
    chosen = {"lr": config.lr}
    if config.optimizer not in ("sgd", "rmsprop"):
        chosen |= {"betas": tuple(map(float, config.betas.split(","))), "eps": config.eps}
    if config.optimizer == "rmsprop":
        chosen |= {"alpha": config.square_decay, "eps": config.eps}
    if config.optimizer in ("sgd", "rmsprop"):
        chosen["momentum"] = config.momentum
    if config.optimizer == "sgd":
        chosen["nesterov"] = config.nesterov
    decay = config.weight_decay if config.optimizer == "adamw" else 0.0
    groups = [{"params": [p], "weight_decay": decay * (name in decayed)} for name, p in named.items()]
    classes = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop"}
    return getattr(torch.optim, classes[config.optimizer])(groups, **chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_torchs_to_the_last_bit(name, clip, joined, dtype):
    chosen = config("vgg", name, clip=clip)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    other = copy.deepcopy(model)
    vector = _join([*trainable(model).values()]) if joined else None
    optimiser = optimiser_of(chosen, model, vector)
    optimizer = torchs(chosen, trainable(other), {*penalised(other)})
    for step in range(chosen.steps):
        gradients = [torch.randn_like(p, requires_grad=False) for p in other.parameters()]
        for p, gradient in zip(other.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = chosen.lr_at(step)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        moved = optimiser.moved(flat, step)
        optimizer.step()
        optimiser.step([flat] if joined else gradients, step)
        after = torch.cat([p.detach().flatten() for p in other.parameters()])
        assert torch.equal(after, torch.cat([p.detach().flatten() for p in model.parameters()])), step
        assert torch.equal(after, moved), step


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_on_the_fast_path_are_torchs_on_its_gradients(name):
    chosen = config("dln", name)
    trajectory = Trajectory(build(chosen))
    other = {name: p.detach().clone() for name, p in trainable(trajectory.model).items()}
    optimizer = torchs(chosen, other, {*penalised(trajectory.model)})
    for step in range(chosen.steps):
        (gradient,) = trajectory.gradients(update_statistics=False)[1]
        for p, piece in zip(other.values(), gradient.split([p.numel() for p in other.values()]), strict=True):
            p.grad = piece.view_as(p).clone()
        if chosen.clip:
            torch.nn.utils.clip_grad_norm_(other.values(), chosen.clip)
        for group in optimizer.param_groups:
            group["lr"] = chosen.lr_at(step)
        optimizer.step()
        trajectory.advance()
        assert all(map(torch.equal, trajectory.parameters, other.values())), step


def tensors(value):
    """The tensors and plain values of a state, in order."""
    if isinstance(value, dict):
        return [part for key in value for part in tensors(value[key])]
    if isinstance(value, list | tuple):
        return [part for each in value for part in tensors(each)]
    return [value]


def same_states(one, other):
    for mine, theirs in zip(*(tensors({k: v for k, v in state.items() if k != "run"}) for state in (one, other)),
                            strict=True):  # fmt: skip
        assert type(mine) is type(theirs)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


@pytest.mark.parametrize("schedule", [{}, {"schedule": "cosine", "warmup": 2, "clip": 0.5}])
@pytest.mark.parametrize("function", [own_optimisers.noisy, own_optimisers.grouped])
@pytest.mark.parametrize("problem", ["dln", "own_code:residual"])
@pytest.mark.fast(2)
def test_a_users_optimiser_resumes_and_is_visited_with_its_bits(tmp_path, problem, function, schedule):
    small = SMALL if problem == "dln" else {"steps": 5, "save_every": 2, "batch_size": 8}
    settings = {**small, **schedule, "optimizer": function, "device": "cpu"}
    whole = bns.train(problem, "batch", output=tmp_path / "whole", measure=["ics"], at=[1, 4], **settings)
    late = 2 * settings["save_every"]
    with pytest.raises(ZeroDivisionError):  # what is after the checkpoint before is lost
        bns.train(problem, "batch", output=tmp_path / "cut", **settings, progress=lambda step, loss: 1 // (late - step))
    cut = bns.train(problem, "batch", output=tmp_path / "cut", **settings)
    assert whole.config == cut.config
    assert whole.config.lr == (0.01 if function is own_optimisers.noisy else 0.002)
    for step, path in whole.checkpoints().items():
        same_states(read_checkpoint(path)[1], read_checkpoint(cut.checkpoint_path(step))[1])
    seen = bns.read_table(whole.path / "ics.parquet")
    for step in (1, 4):
        visited = bns.ics(bns.load_point(whole, step=step))
        assert seen.loc[seen["step"] == step, "ics"].tolist() == visited["ics"].tolist()


def test_tables_have_the_learning_rates_that_a_users_optimiser_sets_itself(tmp_path):
    settings = {**SMALL, "optimizer": own_optimisers.halving, "device": "cpu"}
    with pytest.raises(ZeroDivisionError):
        bns.train("dln", output=tmp_path / "run", **settings, progress=lambda step, loss: 1 // (6 - step))
    run = bns.train("dln", output=tmp_path / "run", measure=["smoothness"], at=[4, 8], **settings)
    expected = [1e-4 / 2**step for step in range(9)]
    assert bns.read_table(run.train_path)["step_lr"].tolist() == expected
    measured = bns.read_table(run.path / "smoothness.parquet")
    assert measured["step_lr"].tolist() == [expected[4], expected[8]]
    assert bns.list_runs(tmp_path)["step_lr"].isna().all()


def test_the_update_of_a_users_optimiser_draws_the_noise_of_the_step():
    chosen = resolve("dln", optimizer=user_code.name_of(own_optimisers.noisy, "optimizer"), **SMALL)
    trajectory = Trajectory(build(chosen))
    for step in range(3):
        flat = trajectory.gradients(update_statistics=False)[1][0]
        state, random = copy.deepcopy(trajectory.optimiser.state()), torch.get_rng_state()
        moved = trajectory.optimiser.moved(flat, step)
        same_states(state, trajectory.optimiser.state())
        trajectory.advance()
        assert torch.equal(random, torch.get_rng_state())
        assert torch.equal(moved, torch.cat([p.detach().flatten() for p in trajectory.parameters]))


def test_a_run_is_not_resumed_by_an_optimiser_of_other_settings(tmp_path):
    def train(lr, steps):
        make = functools.partial(torch.optim.AdamW, lr=lr)
        return bns.train("dln", optimizer=make, output=tmp_path / "run", **{**SMALL, "steps": steps})

    run = train(1e-3, 4)
    assert train(1e-3, 6).config.steps == 6
    with pytest.raises(InputError, match=r"lr 0.001, now 0.002; optimizer_digest|optimizer_digest .* lr 0.001"):
        train(2e-3, 6)
    with pytest.raises(InputError, match=r"AdamW.session: its settings are not those that the run was trained with"):
        bns.load_point(run, step=3)
    code = [functools.partial(torch.optim.AdamW, lr=1e-3)]
    assert bns.load_point(run, step=3, code=code).lr == 1e-3


@pytest.mark.slow
def test_a_function_of_a_session_is_asked_for_by_another_process(tmp_path):
    run = bns.train("dln", optimizer=lambda p: torch.optim.SGD(p, lr=0.1), output=tmp_path / "run", **SMALL)
    line = [sys.executable, "-m", "bnsmooth_cli", "landscape", str(run.path)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert "was a function of the Python session that trained the run" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_line_runs_a_users_optimiser_if_it_is_named(tmp_path):
    folder = "\n".join(map(str, sys.path))

    def line(*words):
        environment = {**ENVIRONMENT, "PYTHONPATH": folder.replace("\n", ":")}
        command = [sys.executable, "-m", "bnsmooth_cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)

    named = ("--optimizer", "own_optimisers:noisy")
    small = ["--problem", "dln", "--depth", "3", "--dimension", "4", "--samples", "20", "--steps", "4"]
    assert line("train", *small, *named).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "dln-batch-depth3-dim4-samples20-steps4-own_optimisers_noisy-seed0"
    refused = line("ics", str(run))
    assert refused.returncode == 2
    assert "if you trust it, give --optimizer own_optimisers:noisy" in refused.stderr
    assert line("ics", str(run), *named).returncode == 0
    other = line("ics", str(run), "--optimizer", "own_optimisers:grouped")
    assert "has the optimizer own_optimisers:noisy; leave the option out" in other.stderr
    fixed = line("train", *small, *named, "--lr", "0.1")
    assert fixed.returncode == 2
    assert "--lr 0.1: the optimizer own_optimisers:noisy has its own; set it in your function" in fixed.stderr


def test_an_optimiser_whose_code_has_changed_gives_no_points(tmp_path, monkeypatch):
    run = bns.train("dln", "none", optimizer=own_optimisers.noisy, output=tmp_path / "run", **SMALL)
    step = own_optimisers.Noisy.step

    def other(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(100).add_(1)
        step(self)

    monkeypatch.setattr(own_optimisers.Noisy, "step", other)
    assert bns.load_point(run, step=3).step == 3
    with pytest.raises(InputError, match=r"at step 5 the loss is .* but training recorded"):
        bns.load_point(run, step=5)


def test_a_study_compares_norms_under_a_users_optimiser(tmp_path):
    arguments = {"norms": ["none", "batch"], "problem": "dln", "optimizer": own_optimisers.noisy, "schedule": "linear",
                 "output": tmp_path / "study", "measure": ["ics"], "device": "cpu", **SMALL}  # fmt: skip
    study = bns.study(**arguments)
    assert not study.failed
    assert {*study.comparison["lr"]} == {0.01}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    assert len(bns.study(**arguments).comparison) == 2
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}


@pytest.mark.parametrize(
    ("kind", "decay"),  # elsewhere, the decay is a part of the gradient and depends on theta
    [("Adam", 0.0), ("AdamW", 0.0), ("AdamW", 0.1), ("RMSprop", 0.0), ("SGD", 0.0)],
)
def test_a_tiny_update_of_a_loop_is_not_rounded_away(kind, decay):
    """At a learning rate of 1e-9, theta - (theta - update) in float32 is 0 for nearly all weights."""
    loop = Loop(kind, lr=1e-9, weight_decay=decay)
    double = copy.deepcopy(loop.model).double()
    optimizer = getattr(torch.optim, kind)(double.parameters(), lr=1e-9, weight_decay=decay)
    before = torch.cat([p.detach().flatten() for p in double.parameters()]).clone()
    point = bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer)
    gradient = point.gradients_at(point.theta[None])[1][0]
    for p, piece in zip(double.parameters(), gradient.split([p.numel() for p in double.parameters()]), strict=True):
        p.grad = piece.view_as(p).double()
    optimizer.step()
    taken = before - torch.cat([p.detach().flatten() for p in double.parameters()])
    torch.testing.assert_close(point.optimiser.update(gradient, 0).double(), taken, rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (own_optimisers.closing, "LBFGS evaluates the loss several times in a step"),
        (own_optimisers.unkept, "its state holds a builtin_function_or_method; checkpoints hold tensors and plain"),
    ],
)
def test_optimisers_that_cannot_be_kept_are_refused(tmp_path, function, said):
    with pytest.raises(InputError) as error:
        bns.train("dln", optimizer=function, output=tmp_path / "run", **SMALL)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (own_optimisers.forgetful, "own_optimisers:forgetful: does not take back its state"),
        (own_optimisers.scheduled, "own_optimisers:scheduled: its steps depend on more than its state, so a run that"),
        (own_optimisers.looking_ahead, "own_optimisers:looking_ahead: its steps depend on more than its state"),
    ],
)
def test_an_optimiser_that_another_one_cannot_continue_is_refused_before_training(tmp_path, function, said):
    with pytest.raises(InputError, match=said):
        bns.train("dln", optimizer=function, output=tmp_path / "run", **SMALL)
    assert not [*(tmp_path / "run").rglob("*.pt")]


@pytest.mark.parametrize("content", [None, 3, [], {}, {"state": 3}, {"state": {}, "param_groups": []},
                                     {"state": {9: {}}, "param_groups": [{"params": [0]}] * 3}])  # fmt: skip
def test_a_strange_state_of_a_users_optimiser_is_refused_in_a_line(tmp_path, content):
    run = bns.train("dln", optimizer=own_optimisers.noisy, output=tmp_path / "run", **SMALL)
    path = run.checkpoint_path(3)
    torch.save({**torch.load(path, weights_only=True), "optimizer": content}, path)
    with pytest.raises(InputError) as error:
        bns.load_point(run, step=3)
    assert "000003.pt" in str(error.value)
    assert "\n" not in str(error.value)


class Closed(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


def test_optimisers_of_a_loop_that_cannot_be_used_are_refused():
    loop = Loop()
    others = {
        "evaluates the loss several times": Closed(loop.model.parameters(), lr=0.1),
        "updates 1 parameters, 0 of them among the 6": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
        "updates 5 parameters, 5 of them among the 6": torch.optim.SGD([*loop.model.parameters()][1:], lr=0.1),
        "has the learning rate 0; give one above 0": torch.optim.SGD(loop.model.parameters(), lr=0.0),
    }
    for said, optimizer in others.items():
        with pytest.raises(InputError, match=said):
            bns.Point.of(loop.model, loop.loss, optimizer=optimizer)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_a_loop_in_reduced_precision_is_measured_with_its_optimiser(kind):
    loop = Loop(kind, **({"momentum": 0.9} if kind == "SGD" else {}))
    loop.model.bfloat16()
    loop.x = loop.x.bfloat16()
    for _ in range(3):
        loop.step()
    before = copy.deepcopy(loop.optimizer.state_dict())
    with pytest.warns(bns.Remark, match="bfloat16 are measured in float32"):
        rows = bns.ics(bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer))
    assert rows["ics"].notna().all()
    same_states(before, loop.optimizer.state_dict())
    assert all(p.dtype == torch.bfloat16 for p in loop.model.parameters())


def test_hooks_of_all_optimisers_are_not_called_by_an_update():
    loop = Loop()
    loop.step()
    called = []
    handle = register_optimizer_step_post_hook(lambda *_: called.append(1))
    try:
        bns.ics(bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer))
        assert not called
        loop.optimizer.step()
        assert called == [1]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        ({"dampening": 0.5}, 20.0),
        ({"momentum": 0.5, "dampening": 0.5}, 60.0),
        ({"momentum": 0.9, "dampening": 1.0}, float("inf")),
    ],
)
def test_dampening_counts_as_torch_lets_it(options, threshold):
    loop = Loop()
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1, **options)
    row = bns.smoothness(bns.Point.of(loop.model, loop.loss, optimizer=optimizer)).iloc[0]
    assert row["threshold"] == pytest.approx(threshold)


def test_a_parameter_that_the_loss_never_reaches_leaves_the_preconditioner_known():
    found = []
    for unused in (False, True):
        loop = Loop()
        more = [nn.Parameter(torch.ones(3))] if unused else []
        if unused:
            loop.model.register_parameter("unused", more[0])
        optimizer = torch.optim.Adam(loop.model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loop.loss().backward()
            optimizer.step()
        found.append(bns.smoothness(bns.Point.of(loop.model, loop.loss, optimizer=optimizer)).iloc[0])
    assert found[1]["threshold"] == found[0]["threshold"]
    assert found[1]["preconditioned"] == pytest.approx(found[0]["preconditioned"], rel=1e-3)


def test_groups_of_other_learning_rates_have_no_common_threshold():
    loop = Loop()
    parameters = [*loop.model.parameters()]
    groups = [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:]}]
    point = bns.Point.of(loop.model, loop.loss, optimizer=torch.optim.Adam(groups, lr=0.2))
    assert point.lr == 0.1
    assert point.optimiser.threshold(0) != point.optimiser.threshold(0)
    amsgrad = bns.Point.of(loop.model, loop.loss, optimizer=torch.optim.Adam(parameters, lr=0.2, amsgrad=True))
    assert amsgrad.optimiser.preconditioner(0) is None


@pytest.mark.parametrize("settings", [{"optimizer": own_optimisers.noisy},
                                      {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.01}])  # fmt: skip
def test_a_network_of_one_matrix_is_trained(tmp_path, settings):
    """Its gradient arrives as a vector, and an optimiser of single parameters updates the matrix."""
    run = bns.train("dln", "none", output=tmp_path / "run", **{**SMALL, "depth": 1}, **settings)
    point = bns.load_point(run, step=3)
    assert bns.landscape(point, alphas=[1.0], direction="update")["loss"].iloc[1] == pytest.approx(
        bns.read_table(run.train_path)["loss"][4], rel=1e-5
    )


def test_a_thing_that_is_no_code_is_refused_in_a_line(tmp_path):
    made, output = torch.optim.Adam([nn.Parameter(torch.ones(1))]), tmp_path / "out"
    refused = {
        "optimizer: is of the type Adam; give a name": lambda: bns.study("none", optimizer=made, output=output),
        "optimizer: is of the type int": lambda: bns.load_weights(output, "dln", optimizer=3),
        "problem: is of the type int": lambda: bns.load_weights(output, 3),
        "norm: is of the type int": lambda: bns.load_weights(output, "dln", 3),
    }
    for said, call in refused.items():
        with pytest.raises(InputError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    assert not output.exists()


def test_an_optimiser_may_have_frozen_parameters_too():
    loop = Loop(lr=0.01)
    loop.model[0].requires_grad_(False)
    loop.step()
    point = bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer)
    line = bns.landscape(point, alphas=[1.0], direction="update")
    loop.step()
    assert line["loss"].iloc[1] == pytest.approx(loop.loss().item(), rel=1e-5)


@pytest.mark.parametrize("lr", [None, "a"])
def test_a_learning_rate_that_is_no_number_is_refused(lr):
    loop = Loop()
    loop.optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(InputError, match=r"optimizer: AdamW has the learning rate '(None|a)'; give a number"):
        bns.Point.of(loop.model, loop.loss, optimizer=loop.optimizer)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.NAdam])
def test_the_state_of_a_parameter_of_one_number_is_converted(kind):
    """Only its count of steps stays as it is."""
    parameter = nn.Parameter(torch.tensor(0.5))
    optimizer = kind([parameter], lr=0.1)
    parameter.grad = torch.tensor(1.0)
    optimizer.step()
    place = parameter.detach().double()
    twin = copied(optimizer, [parameter], [place])
    place.grad = torch.tensor(2.0, dtype=torch.float64)
    parameter.grad = torch.tensor(2.0)
    twin.step()
    optimizer.step()
    assert place.item() == pytest.approx(parameter.item(), rel=1e-5)
    assert twin.state[place]["step"].dtype == torch.float32
