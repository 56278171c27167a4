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


@pytest.mark.slow
def test_the_path_of_a_test_surface_has_the_test_losses_that_training_recorded(run, cli, tmp_path):
    out = tmp_path / "s.parquet"
    assert cli(f"surface {run.path} --directions pca --points 1 --objective test -o {out}")[0] == 0
    found = on_path(bns.read_table(out))
    recorded = bns.read_table(run.train_path).set_index("step")["test_loss"]
    assert found.to_numpy() == pytest.approx(recorded[list(STEPS)].to_numpy(), rel=1e-5)
    for step in (2, 6):
        there = bns.landscape(bns.load_point(run, step), alphas=[1.0], objective="test")["loss"][0]
        assert found[step] == pytest.approx(there, rel=1e-5)


@pytest.mark.slow
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


def test_a_path_of_two_other_steps_is_refused_and_one_of_three_spans_a_plane(cli, tmp_path):
    """Two steps, less their mean, lie on a line: the second axis would be rounding."""
    run = "train --problem dln --depth 3 --dimension 4 --samples 20 --lr 1e-4 --steps 4 --save-every 2 -o run"
    assert cli(run)[0] == 0
    status, out, err = cli("surface run --directions pca --points 3")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "at least 3 steps besides step 4, and there are 2; train with a smaller --save-every" in err
    assert cli("surface run/checkpoints/000002.pt --directions pca --points 3")[0] == 2
    assert not [*tmp_path.rglob("*surface*.parquet")]
    assert cli("surface run --at 3 --directions pca --points 3 -o between.parquet")[0] == 0  # 0, 2 and 4 are others
    rows = bns.read_table("between.parquet")
    assert rows["path_step"].dropna().tolist() == [0, 2, 4]
    assert rows["y_share"][0] > 1e-5
    assert rows["x_share"][0] + rows["y_share"][0] == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_without_a_second_direction_is_refused(small_run, dtype):
    point = bns.load_point(small_run("dln", "none"), dtype=dtype)
    torch.manual_seed(0)
    along, across = 0.1 * torch.randn(2, len(point.theta), dtype=dtype)

    def measure(bend, length=1.0):
        path = {step: point.theta + length * step * along + bend * (step == 2) * across for step in range(5)}
        return bns.surface(point, points=1, directions="pca", path=path)

    assert measure(0.1)["y_share"][0] > 1e-4
    eps = torch.finfo(dtype).eps
    assert 0 < measure(1e-4)["y_share"][0] < 1e-7
    for bend, length in ((0.0, 1.0), (0.0, 0.0), (0.0, eps), (eps, 1.0)):
        with pytest.raises(InputError, match="the path lies on a line but for rounding"):
            measure(bend, length)
    for length in (torch.inf, torch.nan):
        with pytest.raises(InputError, match="the path has steps that are not finite"):
            measure(0.0, length)
