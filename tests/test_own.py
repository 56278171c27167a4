"""Custom norms, problems, data, weights and loops: every measurement against brute force on networks of any shape."""

from __future__ import annotations

import copy
import dataclasses
import math

import own_code
import pytest
import reference
import torch
from brute_force import ALPHAS, check_ics, check_line, check_smoothness
from helpers import SMALL
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.networks.parameters import flatten

SETTINGS = {"steps": 6, "save_every": 2, "eval_every": 3, "batch_size": 8, "lr": 0.05}
#: Problems and norms: residual networks with built-in and custom norms, a transformer, a data set that draws at random.
CASES = [
    ("residual", "none"), ("residual", "batch"), ("residual", "l1"), ("residual", "noisy-batch"), ("residual", "layer"),
    ("residual", "own_code:Scaled"), ("transformer", "none"), ("regression", "batch"), ("odd", "none"),
]  # fmt: skip
cases = pytest.mark.parametrize(("problem", "norm"), CASES)


@pytest.fixture(scope="session")
def own_run(tmp_path_factory):
    made = {}

    def make(problem, norm, **settings):
        key = (problem, norm, *sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("own") / "run"
            function = getattr(own_code, problem)
            made[key] = bns.train(function, norm, output=folder, device="cpu", **{**SETTINGS, **settings})
        return made[key]

    return make


@pytest.fixture
def point_of(own_run):
    def make(problem, norm, dtype=torch.float64, step=3, objective="batch", **settings):
        return bns.load_point(own_run(problem, norm, **settings), step, dtype=dtype, objective=objective)

    return make


def rows(table):
    return table.to_dict("records")


@cases
@pytest.mark.fast(5)
def test_the_line_probe_agrees_with_brute_force(point_of, problem, norm):
    check_line(point_of(problem, norm), 1e-10)
    check_line(point_of(problem, norm, torch.float32), 1e-3)


@cases
@pytest.mark.fast(2)
def test_smoothness_agrees_with_the_whole_hessian(point_of, problem, norm):
    check_smoothness(point_of(problem, norm))


@pytest.mark.parametrize("objective", ["train:3", "test"])
@cases
@pytest.mark.fast(3)
def test_other_objectives_are_the_mean_over_their_batches(point_of, problem, norm, objective):
    point = point_of(problem, norm, objective=objective)
    own = [point.problem.batch(k) for k in range(3)] if objective != "test" else list(point.problem.test_batches())
    model, total = copy.deepcopy(point.model), 0.0
    model.train(objective != "test")
    for step, (inputs, targets) in enumerate(own):
        alone = dataclasses.replace(
            point.at("batch"), step=step, inputs=_double(inputs), targets=_double(targets), model=model
        )
        total += alone.loss().item() * (1 / 3 if objective != "test" else len(targets) / point.problem.test_size)
    assert point.loss().item() == pytest.approx(total, rel=1e-12)
    check_line(point, 1e-10)
    if (problem, norm) in CASES[1:6:4]:
        check_smoothness(point)
    assert bns.landscape(point.at("batch"), [1.0], objective=objective).equals(bns.landscape(point, [1.0]))


def _double(values):
    return values.double() if values.is_floating_point() else values


@pytest.mark.parametrize("norm", ["batch", pytest.param("noisy-batch", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_test_objective_is_the_loss_that_training_reports(small_run, norm):
    run = small_run("vgg", norm)
    tested = bns.read_table(run.train_path).set_index("step")["test_loss"].dropna()
    point = bns.load_point(run, step=6, objective="test")
    assert point.loss().item() == pytest.approx(tested[6], rel=1e-5)
    assert point.model.training
    assert bns.smoothness(point, [1.0])["loss"][0] == pytest.approx(tested[6], rel=1e-5)


def by_hand_in_eval_mode(point):
    """The loss and every second derivative of a plain copy of the network, in eval mode, on the step's batch."""
    model = copy.deepcopy(point.model).double().eval()
    named = dict(model.named_parameters())

    def loss(theta):
        pieces = theta.split([p.numel() for p in named.values()])
        values = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        outputs = functional_call(model, values, (point.inputs.double(),))
        weights = sum((values[name] ** 2).sum() for name, p in named.items() if p.dim() > 1)
        return point.problem.objective(outputs, _double(point.targets)) + point.config.weight_decay / 2 * weights

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return theta, loss


@pytest.mark.parametrize("norm", ["none", "batch", "noisy-batch", "l1", "layer"])
@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.slow
def test_the_eval_objective_is_the_steps_batch_in_eval_mode(small_run, problem, norm):
    small = {"width": 0.01, "batch_size": 8} if problem == "vgg" else {}
    run = small_run(problem, norm, weight_decay=0.01, **small)
    point = bns.load_point(run, step=3, dtype=torch.float64, objective="eval")
    theta, loss = by_hand_in_eval_mode(point)
    gradient, hessian = torch.func.grad(loss)(theta), torch.autograd.functional.hessian(loss, theta)
    (row,) = bns.smoothness(point, [1.0]).to_dict("records")
    lr = point.config.lr
    there = torch.func.grad(loss)(theta - lr * gradient)
    values = torch.linalg.eigvalsh(hessian)
    expected = {
        "loss": loss(theta),
        "grad_norm": gradient.norm(),
        "loss_min": loss(theta - lr * gradient),
        "predictiveness_max": (gradient - there).norm(),
        "curvature": gradient @ hessian @ gradient / (gradient @ gradient),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-9), name
    assert row["sharpness"] == pytest.approx(float(values[values.abs().argmax()]), rel=SHARPNESS_TOLERANCE)
    batch = bns.smoothness(point.at("batch"), [1.0])
    alike = norm in ("none", "layer")  # nothing that eval mode changes: the same numbers, bit by bit
    assert batch.equals(bns.smoothness(point, [1.0])) == alike
    assert (abs(batch["loss"][0] / row["loss"] - 1) < 1e-12) == alike
    assert point.model.training  # all modules are as they were


def test_a_table_in_eval_mode_has_a_name_of_its_own(cli, small_run):
    run = small_run("vgg", "batch")
    status, _, _ = cli(f"landscape {run.path} --at 3 --points 1 --objective eval")
    assert (status, (run.path / "landscape.eval.parquet").is_file()) == (0, True)
    (run.path / "landscape.eval.parquet").unlink()


def test_a_point_of_ones_own_loop_has_the_objective_that_it_was_made_with(small_run):
    point = bns.load_point(small_run("dln", "batch"), step=3)
    loop = bns.Point.of(point.model, point.loss, lr=0.1)
    with pytest.raises(InputError, match="--objective eval: this point of your own loop has one objective, batch"):
        bns.landscape(loop, objective="eval")
    evaluated = bns.landscape(bns.Point.of(point.model, point.loss, lr=0.1, objective="eval"), alphas=[1.0])
    assert evaluated["loss"][0] == pytest.approx(bns.landscape(point, objective="eval")["loss"][0])
    with pytest.raises(InputError, match="objective test: a training loop of your own has the batch of its step"):
        bns.Point.of(point.model, point.loss, lr=0.1, objective="test")


@pytest.mark.parametrize(
    ("problem", "objective", "why"), [("dln", "test", "no test set"), ("dln", "train:0", "train:8")]
)
def test_an_objective_that_does_not_exist_is_refused(small_run, problem, objective, why):
    with pytest.raises(InputError, match=why):
        bns.load_point(small_run(problem, "none"), objective=objective)


@cases
@pytest.mark.fast(4)
def test_ics_is_definition_2_1_on_any_network(point_of, problem, norm):
    check_ics(point_of(problem, norm, momentum=0.9), 1e-9)


def test_ics_takes_the_layers_that_the_user_names_in_that_order(point_of):
    point = point_of("residual", "batch")
    check_ics(point, 1e-9, ["conv1", "conv2", "head"])
    check_ics(point, 1e-9, ["head", "norm1", "stem"])  # a module that is no layer by itself
    assert list(bns.ics(point, ["2", "head"])["layer_name"]) == ["conv1", "head"]
    for layers, why in (
        (["conv9"], "did you mean 'conv"),
        (["norm1", "2"], "shares parameters"),
        (["act"], "no trained parameters"),
    ):
        with pytest.raises(InputError, match=why):
            bns.ics(point, layers)


@pytest.mark.parametrize("norm", ["none", "batch", "linf", "noisy-batch"])
@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(4)
def test_the_general_ics_agrees_with_the_fast_one_on_a_chain(small_run, problem, norm):
    point = bns.load_point(small_run(problem, norm, momentum=0.9), step=3, dtype=torch.float64)
    fast, general = bns.ics(point), bns.ics(point, [f"layers.{name}" for name, _ in point.layers])
    for column in ("grad_norm", "grad_norm_updated", "ics", "cosine"):
        scale = float(fast["grad_norm"].max())
        assert general[column].to_numpy() == pytest.approx(fast[column].to_numpy(), rel=1e-9, abs=1e-12 * scale)


@pytest.mark.parametrize(("problem", "norm"), [*CASES[1::2], ("vgg", "batch"), ("dln", "l1")])
@pytest.mark.fast(2)
def test_smoothness_by_layer_agrees_with_the_blocks_of_the_hessian(point_of, small_run, problem, norm):
    if problem in SMALL:
        narrow = {"width": 0.01, "batch_size": 8} if problem == "vgg" else {}
        point = bns.load_point(small_run(problem, norm, **narrow), step=3, dtype=torch.float64)
    else:
        point = point_of(problem, norm)
    g, h = reference.hessian(point)
    found = bns.smoothness_by_layer(point, ALPHAS)
    assert list(found["layer_name"]) == [name for name, _ in point.layers]
    sizes = {name: p.numel() for name, p in point.model.named_parameters()}
    starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    for row, (_, names) in zip(rows(found), point.layers, strict=True):
        where = torch.cat([torch.arange(starts[n], starts[n] + sizes[n]) for n in names])
        mine, block = g[where], h[where][:, where]
        assert row["grad_norm"] == pytest.approx(float(mine.norm()), rel=1e-8)
        if row["grad_norm"] < 1e-12:  # a bias before BatchNorm's mean, say: no direction to speak of
            continue
        values = torch.linalg.eigvalsh(block)
        assert row["curvature"] == pytest.approx(float(mine @ block @ mine / (mine @ mine)), rel=1e-7)
        largest = float(values[values.abs().argmax()])
        assert abs(row["sharpness"]) == pytest.approx(abs(largest), rel=SHARPNESS_TOLERANCE)
        assert row["beta"] == pytest.approx(_beta(point, names, mine), rel=1e-7)


def _beta(point, names, mine):
    """The line restricted to the named parameters, with one copy of the network per step length."""
    found = []
    for eta in (alpha * point.config.lr for alpha in ALPHAS):
        model = reference.double_copy(point)
        chosen = dict(model.named_parameters())
        with torch.no_grad():
            for name, piece in zip(names, mine.split([chosen[n].numel() for n in names]), strict=True):
                chosen[name] -= eta * piece.view(chosen[name].shape)
        there = flatten(torch.autograd.grad(point.loss(model), [chosen[n] for n in names]))
        found.append(float((there - mine).norm() / (eta * mine.norm())))
    return max(found)


def test_activations_agree_with_running_the_network_by_hand(point_of):
    point = point_of("residual", "batch")
    model = copy.deepcopy(point.model)
    y = model.stem(point.inputs)
    z = model.norm(y)
    found = bns.activations(point, ["stem"], [0, 3])
    for row, unit in zip(rows(found), (0, 3), strict=True):
        for name, value in reference.moments(z[:, unit].detach().flatten()).items():
            assert row[name] == pytest.approx(value, rel=1e-8, abs=1e-12), name
        assert row["sigma"] == pytest.approx(float(y[:, unit].detach().std(unbiased=False)), rel=1e-10)


def test_the_units_of_a_map_over_positions_are_the_last_dimension(point_of):
    point = point_of("transformer", "none")
    block = point.model.blocks[0]
    x = point.model.embed(point.inputs) + point.model.place
    attended = block.norm1(x)
    x = x + block.attention(attended, attended, attended, need_weights=False)[0]
    values = block.up(block.norm2(x))[..., 5].detach().flatten()
    (row,) = rows(bns.activations(point, ["blocks.0.up"], [5]))
    assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-9)
    assert row["sigma"] == row["std"] == pytest.approx(float(values.std(unbiased=False)), rel=1e-9)


class _AsChain(reference.TwoNetworks):
    """The two networks of figure 5 in any network: a hook replaces the output of the layer's norm."""

    def __init__(self, point, name, unit, affine, norm):
        self.point, self.unit = point, unit
        self.model = copy.deepcopy(point.model)
        self.place, self.after = self.model.get_submodule(name), self.model.get_submodule(norm)
        seen = {}
        with torch.no_grad():
            hook = self.place.register_forward_hook(lambda m, x, y: seen.update(x=x[0], y=y))
            point.loss(self.model)
            hook.remove()
        self.x, self.y = seen["x"], seen["y"].clone()
        self.dims, shape = [0, 2, 3], [1, -1, 1, 1]
        self.sigmas, self.mus = self.y.std(self.dims, unbiased=False), self.y.mean(self.dims)
        self.gammas = (self.sigmas if affine == "identity" else torch.ones_like(self.sigmas)).view(shape)
        self.betas = (self.mus if affine == "identity" else torch.zeros_like(self.mus)).view(shape)
        self.gamma, self.sigma = float(self.gammas.flatten()[unit]), float(self.sigmas[unit])
        self.m, self.z = self.y[:, unit].numel(), self.norm(self.y)
        self.yhat = (self.column(self.y) - self.mus[unit]) / self.sigma

    def rest(self, z):
        hook = self.after.register_forward_hook(lambda *_: z)
        loss = self.point.loss(self.model)
        hook.remove()
        return loss

    def inputs(self):
        """The patches of the unit's own group of channels: conv2 has two groups of two."""
        channels = self.x if self.place.groups == 1 else self.x.chunk(2, 1)[self.unit // 2]
        return F.unfold(channels, 3, padding=1, stride=self.place.stride).movedim(1, -1).flatten(0, 1)


@pytest.mark.parametrize("norm", ["batch", "l1", "own_code:Scaled"])
@pytest.mark.parametrize(("name", "after", "unit"), [("stem", "norm", 1), ("conv1", "norm1", 0), ("conv2", "norm2", 3)])
@pytest.mark.fast(3)
def test_theory_agrees_with_brute_force_in_a_residual_network(point_of, monkeypatch, norm, name, after, unit):
    point = point_of("residual", norm)
    found = bns.theory(point, [name], [unit]).set_index(["affine", "statement"])
    monkeypatch.setattr(reference, "TwoNetworks", lambda *args: _AsChain(*args, after))
    for affine in ("identity", "standard"):
        for statement, (left, right) in reference.statements(point, name, unit, affine).items():
            if (affine, statement) in found.index:
                row, scale = found.loc[(affine, statement)], max(abs(left), abs(right))
                assert row["lhs"] == pytest.approx(left, rel=1e-7, abs=1e-10 * scale), statement
                assert row["rhs"] == pytest.approx(right, rel=1e-7, abs=1e-10 * scale), statement


@cases
@pytest.mark.fast(3)
def test_every_statement_holds_in_every_network(point_of, problem, norm):
    found = bns.theory(point_of(problem, norm))
    assert set(found["statement"]) == {*kinds.PROVED, *kinds.UNPROVED}
    lemma = found["statement"] == "4.5"
    asserted = found["statement"].isin(kinds.PROVED) & ~(lemma & ~found["condition"].fillna(True))
    assert found[asserted]["holds"].dropna().all()


def measured(point):
    yield from (bns.landscape(point, ALPHAS), bns.smoothness(point, ALPHAS), bns.ics(point), bns.surface(point, 3))
    yield from (bns.theory(point, units=[0]), bns.activations(point).explode("quantiles"))
    yield bns.smoothness_by_layer(point, [1.0], layers=[point.layers[-1][0]])
    if point.problem.test_size:
        yield bns.landscape(point, [1.0], objective="test")


@pytest.mark.parametrize(("problem", "norm"), [*CASES, ("resnet", "batch")])
@pytest.mark.fast(1)
def test_measuring_leaves_everything_bit_identical(point_of, problem, norm):
    point = point_of(
        problem, norm, torch.float32, **({"steps": 2, "save_every": 1} if problem == "resnet" else {}), step=1
    )
    flags = [{k: v for k, v in vars(m).items() if isinstance(v, bool)} for m in point.model.modules()]
    before = {name: value.clone() for name, value in point.model.state_dict().items()}
    random = torch.get_rng_state()
    once = (
        measured(point) if problem != "resnet" else iter([bns.landscape(point, [1.0]), bns.ics(point, ["conv1", "fc"])])
    )
    again = (
        measured(point) if problem != "resnet" else iter([bns.landscape(point, [1.0]), bns.ics(point, ["conv1", "fc"])])
    )
    for a, b in zip(once, again, strict=True):
        assert a.equals(b)
    assert all(torch.equal(before[name], value) for name, value in point.model.state_dict().items())
    assert flags == [{k: v for k, v in vars(m).items() if isinstance(v, bool)} for m in point.model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in point.model.parameters())


@cases
@pytest.mark.fast(3)
def test_a_resumed_run_of_a_custom_problem_is_bit_identical(own_run, tmp_path, problem, norm):
    whole, function = own_run(problem, norm), getattr(own_code, problem)
    for steps in (3, 6):
        part = bns.train(function, norm, output=tmp_path / "run", device="cpu", **{**SETTINGS, "steps": steps})
    a, b = (torch.load(run.checkpoint_path(6), weights_only=True)["model"] for run in (whole, part))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert bns.read_table(whole.train_path)["loss"].equals(bns.read_table(part.train_path)["loss"])


def test_theta_leaves_out_frozen_parameters_and_keeps_unused_ones(tmp_path):
    point = bns.load_point(bns.train(_partly_frozen, "none", output=tmp_path / "r", **{**SETTINGS, "batch_size": 4}))
    assert point.layers == [("Sequential", ["spare"]), ("1", ["1.weight", "1.bias"])]
    assert len(point.theta) == sum(p.numel() for n, p in point.model.named_parameters() if not n.startswith("0"))
    assert bns.ics(point)["ics"].tolist() == [0.0, 0.0]
    assert math.isfinite(bns.smoothness(point).sharpness[0])


def _partly_frozen(norm):
    model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 1), nn.Flatten(0))
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return model, F.mse_loss, (torch.randn(8, 3), torch.randn(8))


@pytest.mark.parametrize(("problem", "norm"), [("residual", "batch"), ("vgg", "batch"), ("dln", "none")])
@pytest.mark.fast(1)
def test_measurements_of_the_batch_ignore_the_objective(point_of, small_run, problem, norm):
    run = small_run(problem, norm) if problem in SMALL else None
    point = bns.load_point(run, 3, dtype=torch.float64) if run else point_of(problem, norm)
    other = point.at("train:2")
    assert bns.ics(other).equals(bns.ics(point))
    assert bns.theory(other, units=[0]).equals(bns.theory(point, units=[0]))
    assert bns.activations(other).drop(columns="quantiles").equals(bns.activations(point).drop(columns="quantiles"))


class TestStructure:
    """How the layers of a network are found."""

    def point(self, run=None):
        torch.manual_seed(0)
        model, x = own_code.Odd().double(), torch.randn(16, 3).double()
        weights = torch.randn(16, 4).double()
        return model, x, bns.Point.of(model, lambda: ((run or model)(x) * weights).sum().square(), lr=1e-3)

    def test_a_norm_that_is_called_once_belongs_to_the_layer_whose_output_it_takes(self):
        layers = dict(self.point()[2].layers)
        assert list(layers) == ["Odd", "a", "twice", "b", "c", "d", "late"]
        assert layers["c"] == ["c.weight", "c.bias", "tail.0.weight", "tail.0.bias"]
        assert layers["a"] == ["a.weight", "a.bias"]

    def test_the_input_of_a_non_linearity_is_measured_before_it(self):
        model, x, point = self.point()
        (row,) = rows(bns.activations(point, ["c"], [2]))
        values = model.tail[0](model.c(model.twice(model.b(torch.tanh(model.twice(model.a(x)))))))[:, 2]
        assert row["q01"] == pytest.approx(float(torch.quantile(values.detach(), 0.01)))
        assert row["q01"] < 0

    def test_a_network_whose_forward_is_called_directly_is_a_layer(self):
        model = own_code.Odd().double()
        x = torch.randn(16, 3).double()
        point = bns.Point.of(model, lambda: (model.forward(x) * model.scale).sum().square(), lr=1e-3)
        assert dict(point.layers)["Odd"] == ["scale"]
        assert sum(len(names) for _, names in point.layers) == len(list(model.parameters()))
        assert len(bns.ics(point)) == 7


class Masked(nn.Module):
    """Fills the last unit, and draws the first one if it is told so."""

    def __init__(self, fill):
        super().__init__()
        self.fill, self.draws = fill, False

    def forward(self, x):
        drawn = torch.rand(len(x), 1, dtype=x.dtype) if self.draws else x[:, :1]
        return torch.cat([drawn, x[:, 1:3], torch.full_like(x[:, 3:], self.fill)], 1)


class TestLoop:
    """Measuring in the user's own training loop."""

    def loop(self):
        torch.manual_seed(0)
        model = own_code.Residual(lambda n: nn.BatchNorm2d(n)).double()
        x, y = torch.randn(8, 3, 8, 8).double(), torch.randint(4, (8,))
        return model, x, y

    def test_a_loop_gives_the_numbers_of_the_same_network_as_a_problem(self, tmp_path):
        def build(norm):
            model = own_code.Residual(norm)
            return model, F.cross_entropy, own_code._images(8, 8)

        build.__module__, build.__qualname__ = "own_code", "_loop_problem"
        own_code._loop_problem = build
        there = bns.load_point(bns.train(build, "batch", output=tmp_path / "r", **SETTINGS), step=3)
        model, x, y = there.model, there.inputs, there.targets
        point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.05, step=3, norm="batch")
        for measure in (bns.landscape, bns.smoothness, bns.ics, bns.smoothness_by_layer):
            mine, theirs = (measure(p).select_dtypes("float").to_numpy() for p in (point, there))
            assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True)
        assert bns.surface(point, 3)["loss"].tolist() == pytest.approx(bns.surface(there, 3)["loss"].tolist(), rel=1e-5)

    def test_measuring_does_not_change_the_training(self):
        finals = []
        for measuring in (False, True):
            model, x, y = self.loop()
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for step in range(4):
                loss = F.cross_entropy(model(x), y)
                optimiser.zero_grad()
                loss.backward()
                if measuring:
                    point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1, step=step)  # noqa: B023
                    list(measured(point))
                optimiser.step()
                torch.rand(1)
            finals.append([*model.state_dict().values(), torch.rand(1)])
        assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))

    def test_a_random_loss_is_refused_with_the_name_of_the_module(self):
        model, x, y = self.loop()
        model.act = nn.Dropout(0.5)
        with pytest.raises(InputError, match=r"'act' \(Dropout\) gives another output each time"):
            bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)

    @pytest.mark.parametrize("fill", [math.nan, -math.inf])
    def test_outputs_that_are_masked_are_compared_where_they_are_finite(self, fill):
        model, x, y = self.loop()
        model.register_buffer("last", torch.full((2,), torch.nan))
        masked = nn.Sequential(model, Masked(fill))

        def loss():
            return F.cross_entropy(masked(x)[:, :3], y % 3)

        assert bns.Point.of(masked, loss, lr=0.1).loss().isfinite()
        masked[1].draws = True
        with pytest.raises(InputError, match=r"'1' \(Masked\) gives another output each time"):
            bns.Point.of(masked, loss, lr=0.1)

    @pytest.mark.parametrize(
        ("loss", "why"),
        [
            (lambda m, x, y: F.cross_entropy(m(x), y, reduction="none"), "no scalar"),
            (lambda m, x, y: F.cross_entropy(m(x), y).item(), r"no scalar of floating point \(float\)"),
            (lambda m, x, y: F.cross_entropy(m(x), y).detach(), "does not depend on the model's parameters"),
            (lambda m, x, y: F.cross_entropy(F.dropout(m(x)), y), "the loss gives another output each time"),
            (
                lambda m, x, y: F.cross_entropy(m(x), y) + own_code.HELD.square().sum(),
                "computed from the parameters before",
            ),
            (
                lambda m, x, y: F.cross_entropy(checkpoint(m, x.requires_grad_(), use_reentrant=True), y),
                "use_reentrant=False",
            ),
            (lambda m, x, y: F.cross_entropy(m(x[:, :2]), y), "cannot be computed"),
            (lambda m, x, y: F.cross_entropy(m(x), y), "buffer 'head.parametrizations.weight.0._u' changes"),
        ],
    )
    def test_a_loss_that_cannot_be_measured_is_refused_and_the_model_is_unchanged(self, loss, why):
        model, x, y = self.loop()
        own_code.HELD = 2 * model.stem.weight  # computed before the loss is called: it would not move
        if "buffer" in why:
            model.head = spectral_norm(nn.Linear(4, 4).double())
        before = [value.clone() for value in model.state_dict().values()]
        with pytest.raises(InputError, match=why):
            bns.Point.of(model, lambda: loss(model, x, y), lr=0.1)
        assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))

    def test_a_loop_refuses_another_precision_or_objective(self):
        model, x, y = self.loop()
        point = bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1)
        with pytest.raises(InputError, match="convert your model"):
            point.to(torch.float32)
        with pytest.raises(InputError, match="--objective test"):
            point.at("test")


def surface_by_hand(point, axes, grid):
    found = []
    for place in grid:
        model = reference.double_copy(point)
        with torch.no_grad():
            moved = point.theta.double() + sum(length * axis.double() for length, axis in zip(place, axes, strict=True))
            nn.utils.vector_to_parameters(moved, model.parameters())
        found.append(point.loss(model).item())
    return found


@pytest.mark.parametrize("objective", ["batch", "train:2", "test"])
@pytest.mark.parametrize(("problem", "norm"), [*CASES[1::2], ("vgg", "noisy-batch"), ("dln", "l1"), ("dln", "batch")])
@pytest.mark.fast(6)
def test_a_surface_is_the_loss_at_parameters_set_by_hand(point_of, small_run, problem, norm, objective):
    from bnsmooth_cli.measures.surface import random_directions

    if problem in SMALL and objective == "test":
        pytest.skip("one has no test set, the other one of 2,000 images")
    if problem in SMALL:
        point = bns.load_point(small_run(problem, norm), step=4, dtype=torch.float64, objective=objective)
    else:
        point = point_of(problem, norm, objective=objective)
    axes = random_directions(point, 2)
    found = bns.surface(point, points=3, extent=0.5)
    assert found["loss"].to_numpy() == pytest.approx(
        surface_by_hand(point, axes, found[["x", "y"]].to_numpy()), rel=1e-9
    )
    assert found["loss"][4] == pytest.approx(point.loss().item(), rel=1e-12)
    line = bns.surface(point, points=3, extent=0.5, dimensions=1)
    assert line["y"].isna().all()
    assert line["loss"].to_numpy() == pytest.approx(surface_by_hand(point, axes[:1], line[["x"]].to_numpy()), rel=1e-9)
    for axis in axes:  # every filter of a direction is as long as the network's own, all else stays
        pieces = axis.split([p.numel() for p in point.model.parameters()])
        for piece, p in zip(pieces, point.model.parameters(), strict=True):
            sizes = p.detach().flatten(1).norm(dim=1) if p.dim() > 1 else torch.zeros(len(p))
            assert piece.view(len(p), -1).norm(dim=1).tolist() == pytest.approx(sizes.tolist(), rel=1e-9)


@pytest.mark.parametrize(("problem", "norm"), [("vgg", "batch"), ("dln", "none")])
def test_the_plane_of_the_path_agrees_with_a_singular_value_decomposition(small_run, problem, norm):
    run = small_run(problem, norm)
    path = {step: bns.load_point(run, step, dtype=torch.float64).theta for step in (0, 2, 4, 6)}
    point = bns.load_point(run, 6, dtype=torch.float64)
    found = bns.surface(point, points=3, directions="pca", path=path)
    taken, grid = found[found["path_step"].notna()], found[found["path_step"].isna()]
    apart = torch.stack([path[step] - path[6] for step in (0, 2, 4, 6)])
    others = apart[:3] - apart[:3].mean(0)
    _, sizes, vectors = torch.linalg.svd(others, full_matrices=False)
    shares = sizes**2 / (sizes**2).sum()
    assert found[["x_share", "y_share"]].iloc[0].tolist() == pytest.approx(shares[:2].tolist(), rel=1e-9)
    for column, axis in zip(("x", "y"), vectors, strict=False):
        along = apart @ axis
        along = along if along[0] > 0 else -along
        assert taken[column].to_numpy() == pytest.approx(along.numpy(), rel=1e-6, abs=1e-9 * float(sizes[0]))
        assert grid[column].min() < taken[column].min()
        assert grid[column].max() > taken[column].max()
    assert taken["path_step"].tolist() == [0, 2, 4, 6]
    losses = [reference_loss(point, theta) for theta in path.values()]
    assert taken["loss"].to_numpy() == pytest.approx(losses, rel=1e-9)


def reference_loss(point, theta):
    model = reference.double_copy(point)
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta, model.parameters())
    return point.loss(model).item()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"points": 0}, "--points 0"), ({"extent": 0.0}, "--extent"), ({"extent": math.inf}, "--extent"),
     ({"dimensions": 3}, "--dimensions 3"), ({"directions": "pcs"}, "did you mean 'pca'"),
     ({"directions": "pca", "dimensions": 1}, "--dimensions"), ({"directions": "pca"}, "at least 3 steps")],
)  # fmt: skip
def test_impossible_surface_settings_are_refused(small_run, wrong, why):
    with pytest.raises(InputError, match=why):
        bns.surface(bns.load_point(small_run("dln", "none")), **wrong)
