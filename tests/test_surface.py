"""The loss along the path of training on a surface: each step with its own running statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bnsmooth_cli as bns
from bnsmooth_cli import InputError

STEPS = (0, 2, 4, 6)
VGG = {"width": 0.1, "batch_size": 32, "lr": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surface")
    return bns.train("vgg", "batch", output=folder / "run", steps=6, save_every=2, eval_every=2, **VGG)


def on_path(rows):
    return rows[rows["path_step"].notna()].set_index("path_step")["loss"]


def test_the_path_of_a_test_surface_has_the_test_losses_that_training_recorded(run, cli, tmp_path):
    out = tmp_path / "s.parquet"
    assert cli(f"surface {run.path} --directions pca --points 1 --objective test -o {out}")[0] == 0
    found = on_path(bns.read_table(out))
    recorded = bns.read_table(run.train_path).set_index("step")["test_loss"]
    assert found.to_numpy() == pytest.approx(recorded[list(STEPS)].to_numpy(), rel=1e-5)
    for step in (2, 6):
        there = bns.landscape(bns.load_point(run, step), alphas=[1.0], objective="test")["loss"][0]
        assert found[step] == pytest.approx(there, rel=1e-5)


def test_state_dicts_make_a_path_and_the_point_stays_as_it_was(run):
    point = bns.load_point(run)
    path = {step: bns.load_point(run, step).model.state_dict() for step in STEPS}
    before = {name: value.clone() for name, value in point.model.state_dict().items()}
    found = on_path(bns.surface(point, points=1, directions="pca", objective="test", path=path))
    expected = [bns.load_point(run, step, objective="test").loss().item() for step in STEPS]
    assert found.to_numpy() == pytest.approx(expected, rel=1e-5)
    assert len(set(np.round(expected, 3))) == len(STEPS)  # other losses, so that a wrong one shows
    for name, value in point.model.state_dict().items():
        assert torch.equal(value, before[name])
    vectors = {step: bns.load_point(run, step).theta for step in STEPS}
    batch = on_path(bns.surface(point, points=1, directions="pca", path=vectors))  # needs no running statistics
    with_buffers = on_path(bns.surface(point, points=1, directions="pca", path=path))
    assert batch.to_numpy() == pytest.approx(with_buffers.to_numpy(), rel=1e-6)
    with pytest.raises(InputError, match="running statistics; give state dicts"):
        bns.surface(point, points=1, directions="pca", objective="test", path=vectors)
    with pytest.raises(InputError, match=r"path: a state dict lacks layers\.conv1\.linear\.weight"):
        bns.surface(point, points=1, directions="pca", path={step: {} for step in STEPS})
