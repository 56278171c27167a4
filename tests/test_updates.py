"""Probes along the optimiser's update, and the sharpness that belongs to it: against the next point of training, and
against dense matrices."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.measures.landscape import probe
from bnsmooth_cli.storage import tables

TINY = {"width": 0.01, "batch_size": 8}
#: Settings by name. Steps are so long that the rounding of theta hides none of them.
OPTIMISERS = {
    "sgd": {"lr": 0.1},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "betas": "0.8,0.99", "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "schedule": "cosine", "warmup": 3, "clip": 0.5},
    "rmsprop": {"optimizer": "rmsprop", "lr": 0.01, "momentum": 0.5, "schedule": "linear"},
    "nadam": {"optimizer": "nadam", "lr": 0.01},
}
optimisers = pytest.mark.parametrize("name", OPTIMISERS)


@pytest.fixture
def run_of(small_run):
    return lambda name, problem="vgg", norm="batch", **more: small_run(
        problem, norm, **{**(TINY if problem == "vgg" else {}), **OPTIMISERS[name], **more}
    )


@optimisers
@pytest.mark.fast(3)
def test_the_line_leads_to_the_next_point_of_training(run_of, name):
    run = run_of(name)
    for step in (0, 4):
        point, after = bns.load_point(run, step), bns.load_point(run, step + 1).model
        rows = bns.landscape(point, [0.5, 1.0, 2.0], direction="update")
        moved = math.sqrt(sum(float((p - q).double().square().sum()) for p, q in zip(
            point.model.parameters(), after.parameters(), strict=True)))  # fmt: skip
        reached = dataclasses.replace(point, model=after)
        assert rows["distance"][2] == pytest.approx(moved, rel=1e-4)
        assert rows["step_size"][2] == point.lr
        assert rows["loss"][2] == pytest.approx(reached.loss().item(), rel=1e-4)
        (there,) = reached.gradients_at(reached.theta[None])[1]
        assert rows["grad_norm"][2] == pytest.approx(float(there.norm()), rel=1e-2)
        assert set(rows["direction"]) == {"update"}
        plain = bns.landscape(point, [0.5, 1.0, 2.0])
        assert rows.iloc[0, :-1].equals(plain.iloc[0])
        assert rows.drop(columns="direction").equals(plain) == (name == "sgd" or (name == "momentum" and step == 0))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize(("problem", "norm"), [("vgg", "batch"), ("dln", "batch"), ("dln", "none")])
@pytest.mark.fast(1)
def test_smoothness_along_the_update_is_the_brute_force_line(run_of, name, problem, norm):
    run = run_of(name, problem, norm, **({"lr": 1e-4} if problem == "dln" else {}))
    point, after = bns.load_point(run, 3, dtype=torch.float64), bns.load_point(run, 4, dtype=torch.float64).theta
    d = (point.theta - after) / point.lr
    pieces = [piece.view_as(p) for piece, p in zip(
        d.split([p.numel() for p in point.model.parameters()]), point.model.parameters(), strict=True)]  # fmt: skip
    (row,) = bns.smoothness(point, [0.5, 1.0, 4.0], direction="update").to_dict("records")
    g, h = reference.hessian(point)
    model, losses, changes = reference.double_copy(point), [], []
    for alpha in (0.0, 0.5, 1.0, 4.0):
        with torch.no_grad():
            for p, start, piece in zip(model.parameters(), point.model.parameters(), pieces, strict=True):
                p.copy_(start - alpha * point.lr * piece)
        losses.append(point.loss(model).item())
        changes.append(float((g - reference.flatten(reference.gradient(point, model))).norm()))
    expected = {
        "step_lr": point.lr,
        "loss": losses[0],
        "loss_max": max(losses[1:]),
        "loss_min": min(losses[1:]),
        "predictiveness_max": max(changes[1:]),
        "beta": max(c / (a * point.lr * float(d.norm())) for c, a in zip(changes[1:], (0.5, 1.0, 4.0), strict=True)),
        "curvature": float(d @ h @ d / (d @ d)),
    }
    for column, value in expected.items():  # d is of float32, the precision of training
        assert row[column] == pytest.approx(value, rel=2e-3), column
    along_gradient = bns.smoothness(point, [0.5, 1.0, 4.0]).iloc[0]
    same = ["sharpness", "preconditioned", "threshold", "grad_norm", "step_lr"]
    assert pd.Series(row)[same].astype(float).equals(along_gradient[same].astype(float))


def test_the_update_is_that_of_the_steps_batch_whatever_the_objective(run_of):
    point = bns.load_point(run_of("adamw"), 4)
    vectors = [probe(point.at(objective), [1.0], "update") for objective in ("batch", "train:2", "eval", "test")]
    assert all(torch.equal(line.vector, vectors[0].vector) for line in vectors)
    assert len({line.rows["loss"][0] for line in vectors}) == 4


@optimisers
@pytest.mark.fast(2)
def test_probing_the_update_changes_nothing(run_of, name):
    point = bns.load_point(run_of(name), 4)
    before = {key: value.clone() for key, value in point.model.state_dict().items()}
    state, random = repr(point.optimiser.state()), torch.get_rng_state()
    first, second = (bns.smoothness(point, [1.0], direction="update", batches=1) for _ in range(2))
    assert first.equals(second)
    assert all(torch.equal(before[key], value) for key, value in point.model.state_dict().items())
    assert repr(point.optimiser.state()) == state
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in point.model.parameters())


def test_an_update_that_is_no_descent_has_a_critical_learning_rate_of_zero():
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for sign in (-1.0, 1.0):
        optimizer.state[model.weight]["momentum_buffer"] = torch.full_like(model.weight, sign * 100)
        with torch.no_grad():
            model.weight.fill_(1.0)
        point = bns.Point.of(model, lambda: model.weight.square().sum(), optimizer=optimizer)
        found = bns.smoothness(point, [0.001, 1.0], direction="update")["critical_lr"][0]
        # d = 0.9 * 100 + 2, so that the loss is as high at eta d = 2 w
        assert found == (0 if sign < 0 else pytest.approx(2 / 92, rel=0.011))
        assert optimizer.state[model.weight]["momentum_buffer"].item() == sign * 100


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
@pytest.mark.slow
def test_preconditioned_sharpness_is_that_of_the_dense_matrices(run_of, name, norm):
    run, settings = run_of(name, norm=norm), OPTIMISERS[name]
    gradients = []
    for step in range(6):
        point = bns.load_point(run, step, dtype=torch.float64)
        row = bns.smoothness(point, [1.0]).iloc[0]
        assert row["step_lr"] == point.lr
        if step == 0:  # there is no P yet, and the threshold belongs to nothing
            assert math.isnan(row["preconditioned"])
            assert math.isnan(row["threshold"])
        if step in (1, 5):
            if name == "rmsprop":
                divisor = reference.rmsprop_divisor(gradients, 0.99, 1e-8)
                threshold = (2 + 2 * 0.5) / point.lr
            else:
                beta1, beta2 = (float(beta) for beta in settings.get("betas", "0.9,0.999").split(","))
                divisor = reference.adam_divisor(gradients, beta1, beta2, 1e-8)
                threshold = (2 + 2 * beta1) / ((1 - beta1) * point.lr)
            if norm == "batch":  # before BatchNorm some gradients are 0, and training's P is of their rounding errors
                held = point.optimiser.state()["optimizer"]
                averages = held["square_avg" if name == "rmsprop" else "exp_avg_sq"]
                averages = reference.flatten(averages)
                replayed, divisor = divisor, averages.sqrt() + 1e-8
                if name != "rmsprop":
                    divisor = (1 - beta1**step) * ((averages / (1 - beta2**step)).sqrt() + 1e-8)
                assert divisor.tolist() == pytest.approx(replayed.tolist(), rel=1e-3, abs=1e-4)
            expected = reference.preconditioned(point, divisor)
            assert row["preconditioned"] == pytest.approx(expected, rel=SHARPNESS_TOLERANCE)
            assert row["threshold"] == pytest.approx(threshold)
            single = bns.smoothness(bns.load_point(run, step), [1.0]).iloc[0]
            assert single["preconditioned"] == pytest.approx(expected, rel=3 * SHARPNESS_TOLERANCE)
        g = reference.flatten(reference.gradient(point, reference.double_copy(point)))
        longest = settings.get("clip", math.inf)
        gradients.append(g * min(1.0, longest / float(g.norm())))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", lambda lr: 2 / lr),
        ("momentum", lambda lr: (2 + 2 * 0.9) / lr),
        ("nesterov", lambda lr: (2 + 2 * 0.9) / ((1 + 2 * 0.9) * lr)),
        ("nadam", lambda lr: math.nan),
    ],
)
def test_without_a_known_preconditioner_the_threshold_is_that_of_the_sharpness(run_of, name, expected):
    row = bns.smoothness(bns.load_point(run_of(name), 3), [1.0]).iloc[0]
    assert math.isnan(row["preconditioned"])
    assert row["threshold"] == pytest.approx(expected(row["step_lr"]), nan_ok=True)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_on_a_quadratic_loss_steps_grow_from_the_threshold_on(sign):
    """Of SGD with momentum, and of RMSProp with the P of its state held fixed; a few per cent on either side."""
    curvatures = torch.tensor([1.0, 20.0], dtype=torch.float64)
    for make in (
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
        lambda p, lr: torch.optim.RMSprop(p, lr=lr, alpha=1 - 1e-12, momentum=0.5),
    ):
        model = nn.Linear(2, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 1.0]]))

        def loss(model=model):
            return (curvatures * model.weight[0].square()).sum() / 2

        optimizer = make(model.parameters(), 1.0)
        if isinstance(optimizer, torch.optim.RMSprop):
            optimizer.state[model.weight] = {
                "step": torch.tensor(1.0),
                "square_avg": torch.tensor([[4.0, 9.0]], dtype=torch.float64),
                "momentum_buffer": torch.zeros_like(model.weight),
            }
        row = bns.smoothness(bns.Point.of(model, loss, optimizer=optimizer), [1.0]).iloc[0]
        sharpness = row["sharpness"] if math.isnan(row["preconditioned"]) else row["preconditioned"]
        optimizer.param_groups[0]["lr"] = row["threshold"] / sharpness * (1 + 0.03 * sign)
        largest = 0.0
        for _ in range(2000):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            largest = max(largest, float(model.weight.detach().abs().max()))
        assert (largest > 1e3) == (sign > 0), optimizer


def test_the_largest_eigenvalue_is_found_beside_a_far_more_negative_one():
    from bnsmooth_cli.derivatives.lanczos import largest_eigenvalue

    random = torch.Generator().manual_seed(0)
    for top in (30.0, 3.0, 0.3, 0.0, -2.0):
        values = torch.cat((torch.linspace(-100.0, top - 0.3, 300, dtype=torch.float64), torch.tensor([top]).double()))
        start = torch.randn(301, dtype=torch.float64, generator=random)
        found = largest_eigenvalue(lambda v, values=values: values * v, start, signed=True)
        assert found == pytest.approx(top, abs=1e-3 * max(abs(top), 1.0) * 5)
        assert abs(largest_eigenvalue(lambda v, values=values: values * v, start)) == pytest.approx(100.0, rel=5e-3)
    assert math.isnan(largest_eigenvalue(lambda v: v * math.nan, torch.ones(4), signed=True))
    assert largest_eigenvalue(torch.zeros_like, torch.ones(4), signed=True) == 0


def test_updates_have_tables_of_their_own(cli, tmp_path):
    settings = "--problem dln --depth 3 --dimension 4 --samples 20 --steps 4 --save-every 2 --lr 1e-3 --optimizer adam"
    measured = "landscape-update,smoothness-update"
    assert cli(f"train --norm batch {settings} -o one --measure {measured}")[0] == 0
    bytes_of = {kind: (tmp_path / f"one/{kind}.parquet").read_bytes() for kind in measured.split(",")}
    for kind in ("landscape", "smoothness"):
        path = tmp_path / f"one/{kind}-update.parquet"
        path.unlink()
        status, out, _ = cli(f"{kind} one --direction update")
        assert (status, "along the update" in out) == (0, True)
        assert path.read_bytes() == bytes_of[f"{kind}-update"]
        rows = bns.read_table(path)
        assert tables.kind_of(rows) == f"{kind}-update"
        bns.save_table(rows, tmp_path / "again.parquet")
        assert tables.read_provenance(tmp_path / "again.parquet", f"{kind}-update")
        with pytest.raises(InputError, match="no kind of table"):
            tables.kind_of(pd.concat([rows, rows.assign(direction="random")]))
        assert cli(f"plot {path} -o {kind}.png")[0] == 0
    assert "preconditioned" in cli("smoothness one --direction update")[1]
    assert {kind.direction for kind in kinds.KINDS} == {"", *kinds.DIRECTIONS}


def test_a_loop_of_ones_own_is_probed_along_its_optimisers_update():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double(), torch.randn(16, 4), None
    x, y = x.double(), torch.randn(16, 1).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)

    def loss():
        return (model(x) - y).square().mean()

    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    point = bns.Point.of(model, loss, optimizer=optimizer)
    rows = bns.landscape(point, [1.0], direction="update")
    row = bns.smoothness(point, [1.0], direction="update").iloc[0]
    states = [optimizer.state[p] for p in model.parameters()]
    averages = torch.cat([state["exp_avg_sq"].reshape(-1) for state in states])
    divisor = (1 - 0.9**3) * ((averages / (1 - 0.999**3)).sqrt() + 1e-8)
    assert row["preconditioned"] == pytest.approx(reference_of(model, loss, divisor), rel=SHARPNESS_TOLERANCE)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    assert rows["loss"][1] == pytest.approx(loss().item(), rel=1e-9)


class Plain(torch.optim.Optimizer):
    """Gradient descent in the user's own code."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])


def trained_loop(make, dtype=torch.float32, steps=4):
    """A small network after some steps of an optimiser, and its loss, with one batch in turn for each of two heads."""
    torch.manual_seed(0)
    body, heads = nn.Linear(4, 8).double(), [nn.Linear(8, 1).double(), nn.Linear(8, 1).double()]
    model = nn.ModuleList([body, *heads]).to(dtype)
    x, y = torch.randn(16, 4).to(dtype), torch.randn(16, 1).to(dtype)
    optimizer = make(model.parameters())

    def loss(head=0):
        return (heads[head](torch.tanh(body(x))) - y).square().mean()

    for step in range(steps):
        optimizer.zero_grad()
        loss(step % 2).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, loss


RULES_WITH_A_PENALTY = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, maximize=True),
}


@pytest.mark.parametrize("name", RULES_WITH_A_PENALTY)
def test_the_update_with_a_penalty_is_not_rounded_however_small(name):
    found = []
    for dtype in (torch.float32, torch.float64):
        model, optimizer, loss = trained_loop(RULES_WITH_A_PENALTY[name], dtype)
        for group in optimizer.param_groups:
            group["lr"] = 1e-9 if dtype == torch.float32 else 1e-3
        point = bns.Point.of(model, loss, optimizer=optimizer)
        (gradient,) = point.gradients_at(point.theta[None])[1]
        found.append(point.optimiser.direction(gradient, point.step).double())
    one, other = found  # the direction does not depend on the learning rate, except through rounding
    assert (one - other).norm() < 1e-4 * other.norm()


def test_the_update_of_unknown_code_has_no_curvature_where_it_is_mostly_rounding():
    model, _, loss = trained_loop(lambda p: Plain(p, 0.1), steps=0)
    near, far = (bns.Point.of(model, loss, optimizer=Plain(model.parameters(), lr)) for lr in (1e-9, 0.1))
    with pytest.warns(bns.Remark, match="no beta"):
        row = bns.smoothness(near, [1, 2, 4], direction="update").iloc[0]
    assert row[["beta", "curvature", "critical_lr"]].isna().all()
    assert row["sharpness"] > 0
    known = bns.smoothness(bns.Point.of(model, loss, lr=0.1), [1, 2, 4]).iloc[0]
    row = bns.smoothness(far, [1, 2, 4], direction="update").iloc[0]
    for column in ("beta", "curvature", "critical_lr"):
        assert row[column] == pytest.approx(known[column], rel=1e-3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_the_loss_does_not_reach_does_not_move(name):
    make = {**RULES_WITH_A_PENALTY, "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5)}[name]
    model, optimizer, loss = trained_loop(make, torch.float64)
    point = bns.Point.of(model, loss, optimizer=optimizer)
    distance = bns.landscape(point, [1.0], direction="update")["distance"][1]
    before = point.theta
    loss().backward()
    optimizer.step()
    assert distance == pytest.approx(float((point.theta - before).norm()), rel=1e-9)


def reference_of(model, loss, divisor):
    parameters = [*model.parameters()]
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), parameters, create_graph=True)])
    h = torch.stack([torch.cat([r.reshape(-1) for r in torch.autograd.grad(e, parameters, retain_graph=True)])
                     for e in flat])  # fmt: skip
    return np.linalg.eigvalsh((h / (divisor[:, None] * divisor).sqrt()).numpy())[-1]
