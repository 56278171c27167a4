"""Custom problems with unusual models: lazy modules, first passes that draw, odd parameters, several precisions."""

from __future__ import annotations

import itertools
import random
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.problems.checks import check_parameters

SETTINGS = {"steps": 4, "save_every": 2, "eval_every": 2, "batch_size": 8, "lr": 0.1}
_names = itertools.count()


def problem(model, loss=F.cross_entropy, data=None):
    """The function of a problem, under a name by which it can be imported. `model` is called for the model."""

    def build(norm):
        x = torch.randn(24, 5)
        return model(), loss, data() if data else (x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long())

    build.__module__, build.__qualname__ = __name__, f"_problem_{next(_names)}"
    setattr(sys.modules[__name__], build.__qualname__, build)
    return build


def disturb():
    random.random()
    np.random.rand()
    torch.rand(1)


def losses(folder):
    return bns.read_table(folder / "train.parquet")["loss"].tolist()


class Late(nn.Module):
    """Makes a layer in its first forward pass."""

    def __init__(self):
        super().__init__()
        self.head = None

    def forward(self, x):
        if self.head is None:
            self.head = nn.Linear(x.shape[1], 2)
        return self.head(x)


class DataDependent(nn.Module):
    """Sets its parameters by its first batch, as ActNorm (Kingma & Dhariwal 2018, section 3.1)."""

    def __init__(self):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        if not self.initialized:
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
                self.log_scale.copy_(-x.std(0).log())
                self.initialized.fill_(1)
        return self.head((x + self.shift) * self.log_scale.exp())


class Draws(nn.Module):
    """Draws its weights in its first forward pass, from each of the three generators."""

    def __init__(self):
        super().__init__()
        self.weight, self.ready = nn.Parameter(torch.zeros(3, 2, 5)), False

    def forward(self, x):
        if not self.ready:
            rows = torch.randn(2, 5), np.random.randn(2, 5), [[random.gauss(0, 1) for _ in range(5)] for _ in "ab"]
            self.weight.data = torch.stack([torch.as_tensor(values).float() for values in rows])
            self.ready = True
        return F.linear(x, self.weight.sum(0))


FIRST = {
    "lazy layers": lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2)),
    "a layer made at the first pass": Late,
    "data-dependent initialisation": DataDependent,
    "weights drawn at the first pass": Draws,
}


@pytest.mark.parametrize("kind", FIRST)
def test_what_the_first_pass_makes_depends_on_the_seed_alone(tmp_path, kind):
    build, starts = problem(FIRST[kind]), []
    for part in "ab":
        disturb()
        run = bns.train(build, "none", output=tmp_path / part, **SETTINGS)
        starts.append(torch.load(run.checkpoint_path(0), weights_only=True)["model"])
    assert starts[0].keys() == starts[1].keys()
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    disturb()
    resumed = bns.train(build, "none", output=tmp_path / "b", **{**SETTINGS, "steps": 6})
    assert len(bns.read_table(resumed.train_path)) == 7
    recorded = bns.read_table(run.train_path).set_index("step")
    disturb()
    for step in (0, 3):
        found = bns.landscape(bns.load_point(run, step), [1.0])
        assert found["loss"][0] == pytest.approx(recorded["loss"][step], rel=1e-6)
    other = bns.train(build, "none", output=tmp_path / "c", seed=1, **SETTINGS)
    start = torch.load(other.checkpoint_path(0), weights_only=True)["model"]
    assert not all(torch.equal(starts[0][name], start[name]) for name in start)


def test_the_statistics_of_a_lazy_norm_start_at_their_initial_values(tmp_path):
    run = bns.train(problem(FIRST["lazy layers"]), "none", output=tmp_path / "run", **SETTINGS)
    start, later = (torch.load(run.checkpoint_path(step), weights_only=True)["model"] for step in (0, 4))
    assert (start["1.running_mean"] == 0).all()
    assert (start["1.num_batches_tracked"], later["1.num_batches_tracked"]) == (0, 4)


class Second(nn.Module):
    """Makes a parameter in the pass of this number, or replaces one in every pass."""

    def __init__(self, count):
        super().__init__()
        self.head, self.count, self.calls = nn.Linear(5, 2), count, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.count:
            self.late = nn.Parameter(torch.zeros(2))
        if not self.count:
            self.head.bias = nn.Parameter(self.head.bias.detach().clone())
        return self.head(x)


@pytest.mark.parametrize(("count", "why"), [(3, "changes .* 'late'"), (0, "'head.bias'"), (30, "later forward")])
def test_parameters_that_are_made_later_are_refused_by_name(tmp_path, count, why):
    settings = {**SETTINGS, "steps": 30, "save_every": 10}
    with pytest.raises(InputError, match=rf"--problem test_unusual_models:_problem_\d+: .*{why}"):
        bns.train(problem(lambda: Second(count)), "none", output=tmp_path / "run", **settings)


class Parametrised(nn.Module):
    """A recurrent module with a parametrisation, whose list of weights holds a tensor with a graph."""

    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(5, 2)
        nn.utils.parametrize.register_parametrization(self.cells, "weight_hh_l0", nn.Tanh())

    def forward(self, x):
        return self.cells(x[:, None])[0][:, 0]


def test_a_parametrised_recurrent_network_is_copied(tmp_path):
    def build():
        model = Parametrised()
        model(torch.zeros(3, 5)).sum().backward()
        return model

    run = bns.train(problem(build), "none", output=tmp_path / "run", **SETTINGS)
    point = bns.load_point(run, 2, dtype=torch.float64)
    row = bns.landscape(point, [1.0]).iloc[0]
    own = point.model.cells.parametrizations.weight_hh_l0.original
    assert float(torch.autograd.grad(point.loss(), own)[0].norm()) > 0
    assert row["loss"] == pytest.approx(bns.read_table(run.train_path)["loss"][2], rel=1e-5)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.lock = nn.Linear(5, 2), threading.Lock()

    def forward(self, x):
        return self.layer(x)


def test_a_model_that_cannot_be_copied_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"its model cannot be copied .*lock"):
        bns.train(problem(Locked), "none", output=tmp_path / "run", **SETTINGS)


def test_another_network_than_that_of_the_checkpoint_is_not_called_damaged(tmp_path):
    widths = iter([4, 6])
    build = problem(lambda: nn.Sequential(nn.Linear(5, width := next(widths)), nn.Linear(width, 2)))
    run = bns.train(build, "none", output=tmp_path / "run", **SETTINGS)
    with pytest.raises(InputError, match=r"builds another network: 0.weight was float32 \(4, 5\) and is .*\(6, 5\)"):
        bns.load_point(run)


def with_parameter(value, **attributes):
    model = nn.Linear(5, 2)
    model.extra = nn.Parameter(value, **attributes)
    return model


ODD = {
    "complex": (lambda: with_parameter(torch.zeros(2, dtype=torch.complex64)), "is complex"),
    "frozen complex": (lambda: with_parameter(torch.zeros(2, dtype=torch.cfloat), requires_grad=False), "is complex"),
    "meta": (lambda: with_parameter(torch.zeros(2, device="meta")), "has no values"),
    "sparse": (lambda: with_parameter(torch.zeros(2, 2).to_sparse()), "sparse"),
    "float8": (lambda: with_parameter(torch.zeros(2).to(torch.float8_e4m3fn)), "is of float8_e4m3fn"),
    "expanded": (lambda: with_parameter(torch.zeros(1).expand(3)), "is expanded"),
    "never reached": (lambda: nn.ModuleList([nn.Linear(5, 2), nn.LazyLinear(2)]), "has no shape yet"),
}


@pytest.mark.parametrize("kind", ODD)
def test_parameters_that_are_not_plain_real_numbers_are_refused_by_name(tmp_path, kind):
    model, why = ODD[kind]
    with pytest.raises(InputError, match=rf"own: its parameter '(extra|1.weight)' .*{why}"):
        check_parameters(model(), "own")
    if kind != "never reached":
        with pytest.raises(InputError, match=rf"_problem_\d+: its parameter 'extra' .*{why}"):
            bns.train(problem(model), "none", output=tmp_path / "run", **SETTINGS)
        assert not (tmp_path / "run").exists()


class ComplexNorm(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(units, dtype=torch.complex64))

    def forward(self, y):
        return y * self.gain.real.view(-1, *[1] * (y.dim() - 2))


class LazyNorm(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.scale = nn.LazyLinear(1)

    def forward(self, y):
        return y * torch.sigmoid(self.scale(y.detach().mean(0).flatten()))


@pytest.mark.parametrize("name", ["dln", "vgg"])
def test_a_users_norm_in_a_builtin_problem_is_held_to_the_same_rules(tmp_path, name):
    settings = {"steps": 2, "save_every": 2, **({"samples": 20} if name == "dln" else {"width": 0.05, "batch_size": 4})}
    with pytest.raises(InputError, match=r"--norm test_unusual_models:ComplexNorm: its parameter '.*gain' is complex"):
        bns.train(name, ComplexNorm, output=tmp_path / "run", **settings)
    for part in "ab":
        disturb()
        bns.train(name, LazyNorm, output=tmp_path / part, **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


class Types(nn.Module):
    """A network of several floating-point types, as with a norm in float32 between layers of lower precision."""

    def __init__(self, narrow=torch.bfloat16):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 6, dtype=narrow), nn.LayerNorm(6)
        self.head, self.narrow = nn.Linear(6, 2, dtype=narrow), narrow

    def forward(self, x):
        x = self.norm(self.first(x.to(self.narrow)).float())
        return self.head(torch.tanh(x).to(self.narrow)).float()


class Words(nn.Module):
    """Embeddings with sparse gradients, one of them as a bag."""

    def __init__(self):
        super().__init__()
        self.embed, self.bag = nn.Embedding(7, 4, sparse=True), nn.EmbeddingBag(7, 4, mode="sum", sparse=True)
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids).mean(1) + self.bag(ids)))


def half(dtype):
    return lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def ids():
    return torch.randint(7, (24, 3)), torch.randint(2, (24,))


def words(norm):
    data = ids()
    return Words(), F.cross_entropy, data, data


PRECISIONS = {
    "bfloat16": (problem(half(torch.bfloat16)), torch.bfloat16),
    "float16": (problem(half(torch.float16)), torch.float16),
    "float64": (problem(half(torch.float64)), torch.float64),
    "bfloat16 and float32": (problem(Types), None),
    "float32 and float64": (problem(lambda: Types(torch.float64)), None),
    "sparse gradients": (words, torch.float32),
}


@pytest.mark.parametrize("extra", [{}, {"momentum": 0.9, "weight_decay": 0.01}])
@pytest.mark.parametrize("kind", PRECISIONS)
def test_training_takes_the_steps_of_torch_in_the_models_own_types(tmp_path, kind, extra):
    build, dtype = PRECISIONS[kind]
    run = bns.train(build, "none", output=tmp_path / "run", **SETTINGS, **extra)
    start = bns.load_point(run, 0)
    model, given = start.problem.build(), start.problem
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    decay = extra.get("weight_decay", 0.0)
    groups = [{"params": weights, "weight_decay": decay}, {"params": others}]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=extra.get("momentum", 0.0))
    table, exact = bns.read_table(run.train_path), all(p.element_size() > 2 for p in model.parameters())
    for step in range(4):
        inputs, targets = given.batch(step)
        assert dtype is None or not inputs.is_floating_point() or inputs.dtype == dtype
        value = F.cross_entropy(model(inputs), targets)
        penalty = decay / 2 * sum(p.double().square().sum().item() for p in weights)
        assert table["loss"][step] == pytest.approx(value.item() + penalty, rel=1e-5 if exact else 1e-2)
        optimiser.zero_grad()
        value.backward()
        slopes = []
        for p in model.parameters():
            p.grad = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad
            slopes.append((p.grad + (decay if p.dim() > 1 else 0) * p.detach()).double().flatten())
        norm = torch.cat(slopes).norm().item()
        assert table["grad_norm"][step] == pytest.approx(norm, rel=1e-5 if exact else 1e-2)
        optimiser.step()
    end = torch.load(run.checkpoint_path(4), weights_only=True)["model"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(end[name], p.detach(), **{} if exact else {"rtol": 0.02, "atol": 1e-3})
    measured = bns.load_point(run, 2)
    assert bns.landscape(measured, [1.0])["loss"][0] == pytest.approx(table["loss"][2], rel=2e-2)


def test_training_works_where_the_caller_has_switched_gradients_off(tmp_path):
    bns.train(words, "none", output=tmp_path / "usual", **SETTINGS)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            bns.train(words, "none", output=tmp_path / context.__name__, **SETTINGS)
            point = bns.load_point(tmp_path / context.__name__, 3, dtype=torch.float64, code=[words])
            assert bns.landscape(point, [1.0])["loss"][0] == pytest.approx(losses(tmp_path / "usual")[3], rel=1e-5)
        assert losses(tmp_path / context.__name__) == losses(tmp_path / "usual")


class Potential(nn.Module):
    """The force of an energy, differentiated inside the forward pass (Behler & Parrinello 2007)."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def forces(norm):
    x = torch.randn(24, 5)
    return Potential(), F.mse_loss, (x, -2 * x), (x[:9], -2 * x[:9])


def test_a_network_that_differentiates_is_trained_and_evaluated(tmp_path):
    run = bns.train(forces, "none", output=tmp_path / "run", **SETTINGS)
    point = bns.load_point(run, 4)
    x, y = (torch.cat(parts) for parts in zip(*point.problem.test_batches(), strict=True))
    expected = F.mse_loss(point.model(x), y).item()
    assert bns.read_table(run.train_path)["test_loss"][4] == pytest.approx(expected, rel=1e-5)
    assert bns.landscape(point, [1.0], objective="test")["loss"][0] == pytest.approx(expected, rel=1e-5)


def _penalised(norm):
    model, x = nn.Linear(5, 2), torch.randn(24, 5)
    penalty = lambda: sum(p.square().sum() for p in model.parameters())  # noqa: E731
    return model, lambda o, t: F.cross_entropy(o, t) + penalty(), (x, (x[:, 0] > 0).long())


def _detached(norm):
    model, x = nn.Linear(5, 2), torch.randn(24, 5)
    return model, lambda o, t: F.cross_entropy(o / model.weight.detach().norm(), t), (x, (x[:, 0] > 0).long())


def _hooked(norm):
    model, x = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2)), torch.randn(24, 5)
    model[1].register_forward_hook(lambda module, inputs, output: output + model[0].bias)
    return model, F.cross_entropy, (x, (x[:, 0] > 0).long())


def _patched(norm):
    model, x = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5)), torch.randn(24, 5)
    model[1].forward = lambda h: F.linear(h, model[0].weight.T)  # tied by hand
    return model, F.mse_loss, (x, x)


@pytest.mark.parametrize("build", [_penalised, _detached, _hooked, _patched])
def test_code_that_uses_the_functions_own_model_is_refused(tmp_path, build):
    """A copy of the model is trained, so that the loss would be of parameters that never change."""
    with pytest.raises(InputError, match="uses the model that the function made, but a copy of it is trained"):
        bns.train(build, "none", output=tmp_path / "run", **SETTINGS)


class Rotary(nn.Module):
    """Rotates pairs of features by the complex numbers of a buffer (Su et al. 2021, section 3.4.2)."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.register_buffer("turns", torch.polar(torch.ones(3), torch.tensor([0.1, 0.5, 1.0])))

    def forward(self, x):
        turned = torch.view_as_complex(self.first(x).view(-1, 3, 2)) * self.turns
        return self.head(torch.tanh(torch.view_as_real(turned).flatten(1)))


class Recurrent(nn.Module):
    """Starts from a state in PyTorch's default type, whatever the type of the inputs."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cell(x[:, None], torch.zeros(1, len(x), 4))[0][:, -1])


DOUBLE = {
    "a complex buffer": problem(Rotary),
    "complex data": problem(
        lambda: nn.Sequential(Unfolded(), nn.Linear(6, 2)), data=lambda: (_complex(), torch.arange(24) % 2)
    ),
    "a loss with class weights": problem(lambda: nn.Linear(5, 2), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))),
}


class Unfolded(nn.Module):
    def forward(self, z):
        return torch.view_as_real(z).flatten(1) if z.is_complex() else torch.cat([z, z[:, :1]], 1)


def _complex():
    return torch.complex(torch.randn(24, 3, dtype=torch.float64), torch.randn(24, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", DOUBLE)
def test_float64_is_the_same_network_with_more_digits(tmp_path, kind):
    run = bns.train(DOUBLE[kind], "none", output=tmp_path / "run", **SETTINGS)
    for step in (1, 4):
        double = bns.landscape(bns.load_point(run, step, dtype=torch.float64), [1.0])
        single = bns.landscape(bns.load_point(run, step), [1.0])
        for column in ("loss", "grad_norm"):
            assert double[column].tolist() == pytest.approx(single[column].tolist(), rel=1e-5)


def test_code_that_does_not_take_float64_is_named(tmp_path):
    run = bns.train(problem(Recurrent), "none", output=tmp_path / "run", **SETTINGS)
    assert np.isfinite(bns.smoothness(bns.load_point(run))["sharpness"][0])
    with pytest.raises(InputError, match=r"_problem_\d+: cannot be computed in float64; make its constants"):
        bns.load_point(run, dtype=torch.float64)


def tied(make):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    make(model)
    return model


SHARING = {
    "transposed": lambda m: setattr(m[2].weight, "data", m[0].weight.data.T),
    "the same": lambda m: setattr(m[2].weight, "data", m[0].weight.data),
    "a row": lambda m: setattr(m[2].bias, "data", m[0].weight.data[1]),
    "a buffer": lambda m: m.register_buffer("kept", m[0].weight.data[1:]),
}


@pytest.mark.parametrize("kind", SHARING)
def test_parameters_that_share_memory_are_refused(kind):
    """A copy of the model would part them."""
    with pytest.raises(InputError, match=r"its '0.weight' and '(2.weight|2.bias|kept)' share memory"):
        check_parameters(tied(SHARING[kind]), "own")


def test_parameters_of_one_memory_that_do_not_overlap_are_taken():
    def columns(model):
        both = torch.randn(4, 8)
        model[0].weight.data, model[2].weight.data = both[:, :4], both[:, 4:]

    check_parameters(tied(columns), "own")
    check_parameters(tied(lambda m: setattr(m[2], "weight", m[0].weight)), "own")


class Gated(nn.Module):
    """A block with a hard sigmoid, as MobileNetV3 has, which may be computed again in the backward pass."""

    def __init__(self, again, discarded=False):
        super().__init__()
        self.first, self.last, self.again, self.discarded = nn.Linear(4, 8), nn.Linear(8, 2), again, discarded

    def block(self, x):
        h = self.first(x) * 2
        gate = F.hardsigmoid(h, inplace=self.discarded)
        return h if self.discarded else gate

    def forward(self, x):
        return self.last(checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x))


@pytest.mark.parametrize("more", [{"again": True}, {"again": False, "discarded": True}])
def test_a_hard_sigmoid_has_its_derivatives_where_it_is_computed_again_and_in_place(more):
    torch.manual_seed(0)
    plain, other = Gated(False), Gated(**more)
    other.load_state_dict(plain.state_dict())
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    plain, other = (bns.Point.of(m, lambda m=m: (m(x) - y).square().mean(), lr=0.1) for m in (plain, other))
    vector = torch.randn(len(plain.theta))
    (expected, product), (found, other_product) = plain.hessian(), other.hessian()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other_product(vector), product(vector))
    assert bns.spectrum(other, top=1)["products"].tolist() == ["double backward"]


def test_weight_norm_counts_negative_dimensions_from_the_end():
    torch.manual_seed(0)
    models = [nn.Linear(3, 4), nn.Linear(3, 4)]
    models[1].load_state_dict(models[0].state_dict())
    models = [nn.utils.parametrizations.weight_norm(m, dim=dim) for m, dim in zip(models, (0, -2), strict=True)]
    x = torch.randn(8, 3)
    points = [bns.Point.of(m, lambda m=m: m(x).pow(4).mean(), lr=0.1) for m in models]
    vector = torch.randn(len(points[0].theta))
    for one, other in zip(*((p.hessian()[0], p.hessian()[1](vector)) for p in points), strict=True):
        torch.testing.assert_close(one, other)


class Frozen(nn.Module):
    """A norm with a parameter that is not trained."""

    def __init__(self, units):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(units), requires_grad=False)
        self.beta = nn.Parameter(torch.zeros(units))

    def forward(self, y):
        return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt() * self.gamma + self.beta


class Unused(Frozen):
    """A norm with a parameter that no output depends on."""

    def __init__(self, units):
        super().__init__(units)
        self.gamma.requires_grad_()
        self.extra = nn.Parameter(torch.zeros(units))


@pytest.mark.parametrize("norm", [Frozen, Unused])
def test_norms_with_parameters_that_do_not_count_have_their_shift(tmp_path, norm):
    usual = bns.train("dln", "batch", steps=3, samples=20, depth=4, output=tmp_path / "batch")
    own = bns.train("dln", norm, steps=3, samples=20, depth=4, output=tmp_path / "own")
    found = bns.ics(bns.load_point(own, step=0, code=[norm]))
    expected = bns.ics(bns.load_point(usual, step=0))
    assert found["layer_name"].tolist() == expected["layer_name"].tolist()
    assert np.isfinite(found["ics"]).all()
    if norm is Unused:
        np.testing.assert_allclose(found["ics"], expected["ics"], rtol=2e-3)


@pytest.mark.parametrize("p", [1.2, 1.5, 1.9])
def test_a_dead_unit_has_finite_second_derivatives_with_any_power(p):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), LpNorm(5, p), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(16, 4).double()
    with torch.no_grad():
        model[0].weight[2] = 0
    point = bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1)
    gradient, product = point.hessian()
    direction, step = gradient / gradient.norm(), 1e-5
    before, after = point.gradients_at(torch.stack([point.theta - step * direction, point.theta + step * direction]))[1]
    torch.testing.assert_close(product(direction), (after - before) / (2 * step), rtol=1e-4, atol=1e-6)
    assert np.isfinite(bns.smoothness(point).iloc[0][["curvature", "sharpness"]].astype(float)).all()


def test_losses_of_double_precision_are_recorded_in_it(tmp_path):
    def build(norm):
        model, (x, y) = nn.Linear(5, 1).double(), (torch.randn(24, 5).double(), torch.randn(24, 1).double())
        return model, lambda o, t: 1e60 * F.mse_loss(o, t), (x, y), (x, y)

    build.__module__, build.__qualname__ = __name__, f"_problem_{next(_names)}"
    setattr(sys.modules[__name__], build.__qualname__, build)
    run = bns.train(build, "none", steps=4, lr=1e-62, batch_size=8, eval_every=2, output=tmp_path / "run")
    rows = bns.read_table(run.train_path)
    assert len(rows) == 5  # and no step has diverged
    for step in (0, 3):
        point = bns.load_point(run, step=step, code=[build])
        assert rows["loss"][step] == pytest.approx(point.loss().item(), rel=1e-14)
    assert rows["test_loss"].dropna().between(1e58, 1e62).all()
