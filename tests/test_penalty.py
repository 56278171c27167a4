"""The L2 penalty of the weights: training, every measurement and the tables have it; test losses do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from brute_force import ALPHAS
from helpers import SMALL
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.networks.parameters import penalised
from bnsmooth_cli.norms.state import prepare
from bnsmooth_cli.training.trajectory import Trajectory

C = 0.3


def scales(norm):
    """A problem whose only layer is a norm."""
    return norm(3), nn.functional.mse_loss, (torch.randn(8, 3), torch.randn(8, 3))


#: The small problems with a penalty that matters. Everything of the linear network is large but its weights.
SETTINGS = {"vgg": {"weight_decay": C, "width": 0.01, "batch_size": 8}, "dln": {"weight_decay": 100 * C}}


def weights(model):
    """Weights by the name that both problems give to linear maps."""
    return [p for name, p in model.named_parameters() if name.endswith("linear.weight")]


def by_hand(point):
    """A stand-in for the point whose loss is the data's plus the penalty, by the formula."""

    def loss(model=None):
        model = point.model if model is None else model
        prepare(model.modules(), point.config.seed, point.step)
        data = point.problem.objective(model(point.inputs), point.targets)
        return data + point.config.weight_decay / 2 * sum((w**2).sum() for w in weights(model))

    names = ("model", "config", "step", "velocity", "layers")
    return SimpleNamespace(**{name: getattr(point, name) for name in names}, loss=loss)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("problem", "norm"), [("vgg", "batch"), ("dln", "none"), ("dln", "batch"), ("dln", "l1")])
def test_a_step_is_torchs_sgd_with_weight_decay(problem, norm, momentum):
    config = resolve(problem, norm=norm, momentum=momentum, **{**SMALL[problem], **SETTINGS[problem]})
    built = problems.build(config)
    trajectory, model = Trajectory(built), built.build()
    decayed = weights(model)
    others = [p for p in model.parameters() if all(p is not w for w in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others}]
    optimiser = torch.optim.SGD([group for group in groups if group["params"]], lr=config.lr, momentum=momentum)
    for step in range(3):
        inputs, targets = built.batch(step)
        prepare(model.modules(), config.seed, step, update_statistics=True)
        optimiser.zero_grad()
        data = built.objective(model(inputs), targets)
        data.backward()
        penalty = config.weight_decay / 2 * sum(float((w.detach() ** 2).sum()) for w in decayed)
        loss, recorded, _, norm_ = trajectory.advance().tolist()
        assert recorded == pytest.approx(penalty, rel=1e-5)
        assert loss == pytest.approx(data.item() + penalty, rel=1e-5)
        slopes = [p.grad + config.weight_decay * p.detach() for p in decayed] + [p.grad for p in others]
        assert norm_ == pytest.approx(reference.norm(slopes), rel=1e-4)
        optimiser.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trajectory.model.state_dict()[name], value, rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize(("problem", "norm"), [("vgg", "batch"), ("dln", "none"), ("dln", "batch"), ("dln", "l1")])
@pytest.mark.slow
def test_every_probe_sees_the_penalty(small_run, problem, norm):
    point = bns.load_point(small_run(problem, norm, **SETTINGS[problem]), step=3, dtype=torch.float64)
    plain = by_hand(point)
    line = reference.line(plain, ALPHAS)
    for row, expected in zip(bns.landscape(point, ALPHAS).to_dict("records"), line, strict=True):
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    g, h = reference.hessian(plain)
    values = torch.linalg.eigvalsh(h)
    (row,) = bns.smoothness(point, ALPHAS).to_dict("records")
    assert row["penalty"] == pytest.approx(
        point.config.weight_decay / 2 * sum(float((w.detach() ** 2).sum()) for w in weights(point.model))
    )
    assert row["curvature"] == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-8)
    assert row["sharpness"] == pytest.approx(float(values[values.abs().argmax()]), rel=SHARPNESS_TOLERANCE)
    for found, expected in zip(bns.ics(point).to_dict("records"), reference.ics(plain), strict=True):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9 * expected["grad_norm"]), name
    losses = point.losses_at([point.theta])
    assert losses[0].item() == pytest.approx(plain.loss().item())


@pytest.mark.slow
def test_the_test_objective_and_the_test_loss_are_the_datas_alone(small_run):
    run = small_run("vgg", "batch", **SETTINGS["vgg"])
    point = bns.load_point(run, step=run.config.steps).at("test")
    rows = bns.read_table(run.train_path)
    assert bns.landscape(point, [1.0]).loss[0] == pytest.approx(rows["test_loss"].iloc[-1], rel=1e-5)
    assert bns.smoothness(point).penalty[0] == 0.0
    assert bns.smoothness(point.at("train:2")).penalty[0] == pytest.approx(rows["penalty"].iloc[-1], rel=1e-5)


def test_a_run_without_a_penalty_has_a_penalty_of_zero(small_run):
    run = small_run("dln", "batch")
    assert (bns.read_table(run.train_path)["penalty"] == 0).all()
    assert bns.smoothness(bns.load_point(run)).penalty[0] == 0


def test_weights_are_neither_biases_nor_parameters_of_norms():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm([2, 4, 4]), nn.Linear(4, 4))
    assert penalised(model) == ["0.weight", "3.weight"]


@pytest.mark.parametrize("dim", [0, 1, None])  # None: one length for the whole matrix
def test_the_weights_of_a_weight_normalised_layer_are_its_lengths(dim):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4), dim=dim)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    (name,) = penalised(layer)
    assert layer.get_parameter(name).square().sum().item() == pytest.approx(layer.weight.square().sum().item())
    hooked = nn.utils.weight_norm(nn.Linear(5, 4), dim=dim)
    assert penalised(hooked) == ["weight_g"]
    assert hooked.weight_g.square().sum().item() == pytest.approx(hooked.weight.square().sum().item())


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf", "1e4"])
def test_an_impossible_penalty_is_refused(cli, value):
    status, _, err = cli(f"train --problem dln --weight-decay {value}")
    assert status == 2
    assert err.count("\n") == 1
    assert "--weight-decay" in err
    assert "give a number from 0 to 1000" in err


def test_a_penalty_of_a_network_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--weight-decay 0.1: the network has no weights"):
        bns.train(scales, "batch", weight_decay=0.1, batch_size=4, output=tmp_path / "run")


def test_an_older_table_reads_with_a_null_penalty_and_resumes(small_run, tmp_path):
    import pyarrow.parquet as pq

    run = small_run("dln", "batch")
    table = pq.read_table(run.train_path)
    pq.write_table(table.drop_columns(["penalty"]), tmp_path / "train.parquet")
    rows = bns.read_table(tmp_path / "train.parquet")
    assert list(rows.columns) == table.column_names
    assert rows["penalty"].isna().all()
    bns.save_table(rows.drop(columns="penalty"), tmp_path / "again.parquet")
    assert np.isnan(bns.read_table(tmp_path / "again.parquet", "train")["penalty"]).all()
