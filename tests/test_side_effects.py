"""What measuring and training must not do to a user's objects: move them, count them, train them or mistake them."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.errors import Remark
from bnsmooth_cli.measures.surface import random_directions
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.norms.noise import Noise

SHORT = {"norm": "none", "batch_size": 8, "steps": 20, "save_every": 10, "progress": False}


def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(32, 4), torch.randint(3, (32,))


class LowRank(nn.Module):
    """A frozen weight with a trained one of low rank, which eval mode merges into it, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(3, 1))
        self.merged = False

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + self.b @ self.a)


def low_rank(norm):
    x, y = samples()
    return bns.Workload(LowRank(), F.cross_entropy, (x, y), (x, y))


def test_weights_that_eval_mode_merges_are_apart_again_in_train_mode_and_are_trained(tmp_path):
    model = LowRank()
    before = model.weight.clone()
    with evaluating(model):
        assert model.merged
    assert (model.merged, model.training, torch.equal(model.weight, before)) == (False, True, True)
    run = bns.train(low_rank, **SHORT, eval_every=5, output=tmp_path / "run")
    first, last = (bns.load_point(run, step, code=[low_rank]).model for step in (0, 20))
    assert not torch.equal(first.a, last.a)
    assert torch.equal(first.weight, last.weight)


def test_a_moving_average_inside_forward_is_refused():
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.data = mine.data * 0.9999 + theirs.data * 0.0001  # which changes no version
            return self.student(x) - self.teacher(x)

    model, (x, _) = Teacher(), samples()
    before = model.teacher.weight.clone()
    with pytest.raises(InputError, match=r"changes the parameter 'teacher\.weight'"):
        bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1)
    assert torch.equal(model.teacher.weight, before)


def test_the_noise_of_a_users_own_loop_is_the_loops():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)), samples()
    bns.replace_norms(model, "noisy-batch")
    noises = [module for module in model.modules() if isinstance(module, Noise)]
    assert [noise.key for noise in noises] == [(0, 0, 0), (0, 0, 1)]
    for step in (0, 7):
        for place, noise in enumerate(noises):
            noise.key = (0, step, place)
        loss = F.cross_entropy(model(x), y).item()
        point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1, step=3)
        assert bns.landscape(point)["loss"][0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda n: bns.norms.build("l1", n)])
def test_running_statistics_of_another_network_in_the_loss_stay(norm):
    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), norm(6), nn.Linear(6, 1))
    x, _ = samples()
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    point = bns.Point.of(generator, lambda: F.softplus(-critic(generator(x))).mean(), lr=0.1)
    for measure in (bns.landscape, bns.smoothness, bns.ics, bns.surface):
        measure(point)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    critic(generator(x))  # and they move again in the loop
    assert not all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())


@pytest.mark.parametrize(("passes", "critic"), [
    (12, lambda: nn.utils.spectral_norm(nn.Linear(5, 4))),
    (1, lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten())),
])  # fmt: skip
def test_buffers_of_another_network_in_the_loss_stay(passes, critic):
    torch.manual_seed(0)
    generator, other = nn.Linear(4, 5), critic()
    x, _ = samples()
    for _ in range(passes):  # a power iteration has nearly converged, as it has while a critic trains
        other(generator(x))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    point = bns.Point.of(generator, lambda: F.softplus(-other(generator(x))).mean(), lr=0.1)
    for measure in (bns.landscape, bns.smoothness, bns.surface):
        measure(point)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_eval_mode_that_merges_weights_has_losses_and_no_gradients():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(LowRank(), nn.Linear(3, 3)), samples()
    point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1, objective="eval")
    for measure in (bns.landscape, bns.smoothness, bns.spectrum):
        with pytest.raises(InputError, match="eval mode merges weights into others"):
            measure(point)
    batch = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)
    pd.testing.assert_series_equal(
        bns.surface(point, points=3)["loss"], bns.surface(batch, points=3)["loss"], rtol=1e-5
    )


def test_the_loss_of_a_loop_is_that_of_its_own_model():
    model, (x, y) = nn.Linear(4, 3), samples()
    point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)
    assert point.loss(model).item() == point.loss().item()
    with pytest.raises(InputError, match="the loss of your own loop is that of its own model"):
        point.loss(nn.Linear(4, 3))


class Counts(nn.Module):
    """A network that depends on a buffer that its state dict leaves out, as an annealed temperature does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.update_statistics = nn.Linear(4, 3), True
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x) * (1 + self.calls / 20)
        if self.training and self.update_statistics:
            self.calls = self.calls + 1
        return out


def counting(norm):
    return bns.Workload(Counts(), F.cross_entropy, samples())


def test_a_buffer_that_state_dicts_leave_out_is_resumed_too(tmp_path):
    whole = bns.train(counting, **SHORT, output=tmp_path / "whole")
    bns.train(counting, **{**SHORT, "steps": 10}, output=tmp_path / "parts")
    parts = bns.train(counting, **SHORT, output=tmp_path / "parts")
    tables = [bns.read_table(run.path / "train.parquet").drop(columns="run") for run in (whole, parts)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert bns.load_point(parts, 15, code=[counting]).loss().item() == pytest.approx(tables[0]["loss"][15], rel=1e-6)


def with_extra_state(norm):
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    return bns.Workload(Extra(4, 3), F.cross_entropy, samples())


def test_state_that_no_checkpoint_holds_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match=r"do not hold its state '_extra_state' \(get_extra_state\)"):
        bns.train(with_extra_state, **SHORT, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_trained_loss(norm):
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.scale * F.cross_entropy(outputs, targets)

    return bns.Workload(nn.Linear(4, 3), Weighted(), samples())


def test_a_loss_with_parameters_is_said_not_to_be_trained(tmp_path):
    with pytest.warns(Remark, match="its loss has parameters, which are not trained"):
        bns.train(with_trained_loss, **SHORT, output=tmp_path / "run")


def without_statistics(norm):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].track_running_stats = False
    return bns.Workload(model, F.cross_entropy, samples())


def test_running_statistics_that_the_user_has_switched_off_stay_off(tmp_path):
    run = bns.train(without_statistics, **SHORT, output=tmp_path / "run")
    model = bns.load_point(run, code=[without_statistics]).model
    assert not model[1].track_running_stats
    assert not model[1].running_mean.any()


SCALE = 1e-5


def tiny(norm):
    x, y = samples()
    return bns.Workload(nn.Linear(4, 1), lambda o, t: SCALE * F.mse_loss(o, t), (x, y[:, None].float()))


def test_changed_code_is_noticed_where_losses_are_small(tmp_path, monkeypatch):
    run = bns.train(tiny, **SHORT, output=tmp_path / "run")
    bns.load_point(run, 10, code=[tiny])
    monkeypatch.setattr(f"{__name__}.SCALE", 1.1e-5)
    with pytest.raises(InputError, match="at step 10 the loss is"):
        bns.load_point(run, 10, code=[tiny])


def numbered() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Tanh(), nn.Tanh(),
                         nn.Linear(5, 3))  # fmt: skip


def test_a_layers_name_comes_before_a_number_and_its_number_is_that_of_the_network():
    model, (x, y) = numbered(), samples()
    point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)
    found = bns.ics(point)
    assert found[["layer", "layer_name"]].values.tolist() == [[1, "0"], [2, "2"], [3, "3"], [4, "6"]]
    assert bns.ics(point, layers=["0", "3"])[["layer", "layer_name"]].values.tolist() == [[1, "0"], [3, "3"]]
    one = bns.smoothness_by_layer(point, layers=["3"])
    assert one[["layer", "layer_name"]].values.tolist() == [[3, "3"]]
    same = bns.smoothness_by_layer(point).query("layer_name == '3'").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, same)
    eigenvalues = bns.spectrum_by_layer(point, layers=["3"], top=1)
    assert eigenvalues[["layer", "layer_name"]].values.tolist() == [[3, "3"]]
    same = bns.spectrum_by_layer(point, top=1).query("layer_name == '3'").reset_index(drop=True)
    pd.testing.assert_frame_equal(eigenvalues, same)
    assert set(bns.activations(point, layers=["3"])["layer_name"]) == {"3"}
    assert set(bns.activations(point, layers=["4"])["layer_name"]) == {"6"}  # no layer has this name
    drawn = bns.plot(bns.ics(point), layers=["3"])
    assert [axes.get_title() for axes in drawn.axes if axes.get_title()] == ["layer 3 (3)"]


def test_a_loss_of_several_batches_has_the_layers_of_one():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), samples()
    one = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)
    three = bns.Point.of(
        model,
        lambda: sum(F.cross_entropy(model(a), b) for a, b in zip(x.chunk(3), y.chunk(3), strict=True)) / 3,
        lr=0.1,
    )
    assert (
        three.layers
        == one.layers
        == [("0", ["0.weight", "0.bias", "1.weight", "1.bias"]), ("3", ["3.weight", "3.bias"])]
    )
    assert len(bns.ics(three)) == 2
    with pytest.raises(InputError, match="none runs once on a batch"):
        bns.activations(three)


def test_a_single_image_has_no_units_to_measure():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(16, 2)), torch.randn(3, 4, 4)
    point = bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1)
    with pytest.raises(InputError, match="none runs once on a batch"):
        bns.activations(point)


def test_the_lengths_of_weight_normalisation_do_not_move_in_a_random_direction():
    model, (x, y) = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)), samples()
    (axis,) = random_directions(bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1), 1)
    pieces = axis.split([p.numel() for p in model.parameters()])
    moves = dict(zip(dict(model.named_parameters()), (bool(piece.any()) for piece in pieces), strict=True))
    assert [name for name, moved in moves.items() if moved] == ["0.parametrizations.weight.original1", "1.weight"]
    biases = nn.Linear(4, 3)
    biases.weight.requires_grad_(False)
    with pytest.raises(InputError, match="none of them is trained and not 0"):
        bns.surface(bns.Point.of(biases, lambda: F.cross_entropy(biases(x), y), lr=0.1))


@pytest.mark.parametrize("settings", [
    {"problem": "dln", "norm": "noisy-batch", "depth": 3, "samples": 20},
    {"problem": "vgg", "norm": "l1", "width": 0.02, "batch_size": 4},
])  # fmt: skip
@pytest.mark.fast(1)
def test_a_run_is_the_same_in_a_session_of_double_precision(tmp_path, settings):
    usual = bns.train(**settings, steps=3, output=tmp_path / "usual")
    torch.set_default_dtype(torch.float64)
    try:
        other = bns.train(**settings, steps=3, output=tmp_path / "other")
        point = bns.load_point(usual, 2)
        measured = [bns.landscape(point), bns.landscape(point, direction="random"), bns.surface(point, 3)]
    finally:
        torch.set_default_dtype(torch.float32)
    tables = [bns.read_table(run.path / "train.parquet").drop(columns="run") for run in (usual, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    point = bns.load_point(usual, 2)
    again = [bns.landscape(point), bns.landscape(point, direction="random"), bns.surface(point, 3)]
    for one, two in zip(measured, again, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("later", [
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.3),
    lambda groups: torch.optim.RMSprop(groups, lr=0.1, weight_decay=0.3),
])  # fmt: skip
def test_options_that_another_optimiser_left_in_the_groups_are_not_this_ones(later):
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, 3), samples()
    groups = [{"params": list(model.parameters())}]
    torch.optim.AdamW(groups)
    optimizer = later(groups)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), optimizer=optimizer)
    found = bns.landscape(point, alphas=[1.0], direction="update").iloc[1]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    moved = math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(model.parameters(), before, strict=True)))
    assert (found["loss"], found["distance"]) == (
        pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5), pytest.approx(moved, rel=1e-5)
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["l1", "linf", "scale"])
def test_norms_with_statistics_of_their_own_run_under_autocast(norm):
    module, x = bns.norms.build(norm, 5), torch.randn(16, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(nn.functional.linear(x, torch.randn(5, 4)))
    assert out.isfinite().all()
    assert all(buffer.dtype == torch.float32 for buffer in module.buffers())


def test_instance_norm_takes_its_statistics_over_the_positions_of_sequences_too():
    x = torch.randn(3, 3, 8)  # as many samples as units
    out = bns.norms.build("instance", 3)(x)
    assert out.mean(2).abs().max() < 1e-6
    assert out.var(2, unbiased=False).sub(1).abs().max() < 1e-3


def test_what_is_no_point_no_list_and_no_step_is_said(tmp_path):
    run = bns.train("dln", "none", depth=3, samples=20, steps=3, output=tmp_path / "run")
    point = bns.load_point(run)
    for call, said in (
        (lambda: bns.ics(point, layers=[]), r"layers: \[\] is no list of layers"),
        (lambda: bns.activations(point, layers="fc3"), "layers: 'fc3' is no list of layers"),
        (lambda: bns.smoothness(point, alphas=[-1.0]), r"--alphas \[-1.0\]: give step lengths above 0"),
        (lambda: bns.landscape(point, alphas=[math.nan]), "give step lengths"),
        (lambda: bns.load_point(run, step=True), "step True: give a whole number"),
        (lambda: bns.compare([]), "nothing to compare"),
        (lambda: bns.compare(run, target_accuracy=5), "--target-accuracy 5: give a share"),
        (lambda: bns.save_table(bns.ics(point), tmp_path / "ics.csv"), "a table is a Parquet file, not .csv"),
        (lambda: bns.save_table(bns.ics(point).assign(ics="a"), tmp_path / "a.parquet"), "values of another type"),
    ):
        with pytest.raises(InputError, match=said):
            call()


@pytest.mark.slow
def test_values_of_another_type_are_said_in_one_line(tmp_path):
    """In a process of its own: the tests check all types."""
    script = """
        import bnsmooth_cli as bns
        run = bns.train("dln", "none", depth=3, samples=20, steps=3, output="run")
        for call in (
            lambda: bns.landscape(run), lambda: bns.landscape(bns.load_point(run), alphas="0.5,1"),
            lambda: bns.load_point(run, step=2.5), lambda: bns.load_point(run, step="3"), lambda: bns.plot("x.parquet"),
        ):
            try:
                call()
            except bns.InputError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "landscape: takes a point, as bns.load_point gives it, and this is a Run",
        "--alphas 0.5,1: give step lengths above 0, as in [0.5, 1, 2, 4]",
        "step 2.5: give a whole number",
        "step 3: give a whole number",
        "rows: are a str; give a DataFrame of a measurement (bns.read_table reads one)",
    ]
