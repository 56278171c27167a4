"""The theory against brute force: both networks of figure 5 built plainly, every derivative by autograd in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import torch
from helpers import NORMS
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.cli.theory import verdict
from bnsmooth_cli.derivatives.taylor import directional_derivatives, has_rule
from bnsmooth_cli.measures import theory
from bnsmooth_cli.measures.selection import select
from bnsmooth_cli.measures.theory import TOLERANCE
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.networks.structure import structure
from bnsmooth_cli.norms import build
from bnsmooth_cli.norms.batch import BatchNorm
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.randomness import generator

PLACES = {"vgg": ("conv1", "conv8", "fc1"), "dln": ("fc1", "fc3", "fc5")}
CASES = [(problem, norm, name) for problem, names in PLACES.items() for norm in NORMS for name in names]


@pytest.mark.parametrize(("problem", "norm", "name"), CASES)
@pytest.mark.fast(3)
def test_both_sides_agree_with_brute_force(small_run, problem, norm, name):
    point = bns.load_point(small_run(problem, norm), step=3)
    found = bns.theory(point, [name], [1]).set_index(["affine", "statement"])
    for affine in ("identity", "standard"):
        for statement, (left, right) in reference.statements(point, name, 1, affine).items():
            if (affine, statement) in found.index:
                row = found.loc[(affine, statement)]
                scale = max(abs(left), abs(right))
                assert row["lhs"] == pytest.approx(left, rel=1e-7, abs=1e-10 * scale), statement
                assert row["rhs"] == pytest.approx(right, rel=1e-7, abs=1e-10 * scale), statement
                if statement in kinds.PROVED:  # and brute force says the same of the statement
                    assert left == pytest.approx(right, rel=1e-9, abs=1e-9 * scale), statement


#: VGG with every norm takes half a minute; the linear network has every norm too.
EVERYWHERE = [
    pytest.param(problem, norm, marks=[pytest.mark.slow] * (problem == "vgg" and norm not in ("none", "batch")))
    for problem in ("vgg", "dln")
    for norm in NORMS
]


@pytest.mark.parametrize(("problem", "norm"), EVERYWHERE)
@pytest.mark.fast(1)
def test_every_statement_holds_for_every_layer_and_unit(small_run, problem, norm):
    point = bns.load_point(small_run(problem, norm), step=6)
    rows = bns.theory(point)
    layers = [name for name, layer in point.model.named_layers() if name != "fc3" or problem == "dln"]
    assert list(rows["layer_name"].unique()) == layers
    units = sum(point.model.layers[name].linear.weight.shape[0] for name in layers)
    counts = {"fact C.1": 2, "fact C.2": 1, "4.1": 2, "4.2": 2, "4.3": 1, "4.4": 2, "4.5": 1}
    assert tuple(counts) == kinds.PROVED
    counts |= {"4.1 at y": 1, "4.2b": 2, "C.1": 2}
    assert tuple(counts) == kinds.PROVED + kinds.UNPROVED
    assert rows.groupby("statement").size().to_dict() == {name: n * units for name, n in counts.items()}
    proved = rows[rows["statement"].isin(kinds.PROVED)]
    assert proved["holds"].all()
    assert proved["residual"].abs().max() < TOLERANCE
    at_y = rows[rows["statement"] == "4.1 at y"]
    assert (at_y["holds"] == (at_y["lhs"] <= at_y["rhs"] * (1 + 1e-12))).all()


@pytest.mark.parametrize(("problem", "norm", "name"), [("vgg", "none", "fc1"), ("dln", "batch", "fc3")])
def test_fact_c2_is_the_jacobian_of_the_normalised_activations(small_run, problem, norm, name):
    point = bns.load_point(small_run(problem, norm), step=3)
    row = bns.theory(point, [name], [1]).set_index("statement").loc["fact C.2"]
    net = reference.TwoNetworks(point, name, 1, "standard")  # z is y_hat
    jacobian = torch.autograd.functional.jacobian(lambda y: net.column(net.norm(net.replaced(net.y, y))),
                                                  net.column(net.y))  # fmt: skip
    formula = (torch.eye(net.m, dtype=torch.float64) - 1 / net.m - torch.outer(net.yhat, net.yhat) / net.m) / net.sigma
    torch.testing.assert_close(jacobian, formula, rtol=1e-9, atol=1e-9)
    u = torch.randn(net.y.shape, generator=generator(point.config.seed, "jacobian"), dtype=torch.float64)
    assert row["lhs"] == pytest.approx(float((jacobian @ net.column(u)).norm()), rel=1e-9)
    assert row["holds"]


CASES_4_2B = [("vgg", "none", "conv8"), ("vgg", "batch", "conv8"), ("dln", "batch", "fc2"), ("dln", "l1", "fc1")]


@pytest.mark.parametrize(("problem", "norm", "name"), CASES_4_2B)
@pytest.mark.parametrize("affine", ["identity", "standard"])
@pytest.mark.fast(2)
def test_4_2b_holds_exactly_where_the_form_along_g_is_the_larger_one(small_run, problem, norm, name, affine):
    point = bns.load_point(small_run(problem, norm), step=3)
    found = bns.theory(point, [name])
    for unit in found["unit"].unique():
        rows = found[(found["unit"] == unit) & (found["affine"] == affine)].set_index("statement")
        net = reference.TwoNetworks(point, name, unit, affine)
        y, z = net.column(net.y), net.column(net.z)
        g, v = reference.slope(net.plain, z), reference.slope(net.normalised, y)
        forms = [reference.bend(net.plain, z, along) for along in (v, g)]
        assert rows.loc["4.2b", "holds"] == (forms[0] <= forms[1])
        assert rows.loc["4.2b", "condition"] == ((forms[0] <= forms[1]) == bool(v.norm() <= g.norm()))
        assert rows.loc["4.2b", "curvature"] == pytest.approx(forms[1] / float(g @ g), rel=1e-7)
        assert rows.loc["4.2", "curvature"] == pytest.approx(forms[0] / float(v @ v), rel=1e-7)
        assert rows.loc["C.1", ["holds", "condition"]].equals(rows.loc["4.2b", ["holds", "condition"]])


def test_4_2b_needs_gamma_at_most_sigma_even_where_the_hessian_preserves_the_norms(small_run):
    """A plain linear network's H is a multiple of I, so the condition is met. sigma is made small by the weights."""
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc2"].linear.weight *= 0.1
    rows = bns.theory(point, ["fc2"]).set_index(["statement", "affine", "unit"]).sort_index()
    lengths, bounds = rows.loc["fact C.1", "lhs"], rows.loc["4.2b", "grad_norm"]
    assert rows.loc["4.2b", "condition"].all()
    assert (rows.loc["4.2b", "holds"] == (lengths <= bounds)).all()
    assert rows.loc[("4.2b", "identity"), "holds"].all()
    assert not rows.loc[("4.2b", "standard"), "holds"].any()


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_the_weights_nearest_optimum_is_that_of_a_search_along_the_ray(small_run, problem):
    run = small_run(problem, "batch", lr=0.5 if problem == "vgg" else 1e-2)
    point = bns.load_point(run, step=6)
    rows = bns.theory(point, ["fc2"]).set_index("statement").loc["4.5"]
    first = bns.load_point(run, step=0).model.layers["fc2"].linear.weight.detach().double()
    weights = bns.load_point(run, step=6).model.layers["fc2"].linear.weight.detach().double()
    for row, begun, optimum in zip(rows.to_dict("records"), first, weights, strict=True):
        assert row["condition"]
        assert row["lhs"] == pytest.approx(reference.nearest_on_ray(begun, optimum), rel=1e-6)
        plain, along = (begun - optimum).square().sum(), (optimum @ optimum - optimum @ begun) ** 2
        assert row["rhs"] == pytest.approx(float(plain - along / (optimum @ optimum)), rel=1e-6)
        assert row["lhs"] <= float(plain)
        assert row["reduction"] == pytest.approx(float(along / (optimum @ optimum) / plain), rel=1e-6, abs=1e-12)


def test_lemma_4_5_does_not_apply_to_an_optimum_on_the_other_side(small_run):
    """Turned around, the weights' ray leads away from W_0: the lemma's condition is not met, and it states nothing."""
    point = bns.load_point(small_run("dln", "none"), step=6)
    with torch.no_grad():
        point.model.layers["fc2"].linear.weight.neg_()
    rows = bns.theory(point, ["fc2"]).set_index("statement").loc["4.5"]
    assert rows["condition"].eq(False).all()
    assert rows["holds"].isna().all()
    assert rows["lhs"].notna().all()
    begun = bns.load_point(small_run("dln", "none"), step=0).model.layers["fc2"].linear.weight.detach().double()
    assert rows["lhs"].to_numpy() == pytest.approx(begun.square().sum(1).detach().numpy())  # a = 0 is the nearest


def test_batchnorms_output_does_not_depend_on_the_scale_of_the_weights():
    """What 4.5 rests on: a W gives the same output for every a > 0."""
    x, linear, norm = torch.randn(50, 4).double(), nn.Linear(4, 3, bias=False).double(), BatchNorm(3).double()
    before = norm(1e6 * linear(x))  # far above eps
    with torch.no_grad():
        linear.weight *= 0.3
    torch.testing.assert_close(norm(1e6 * linear(x)), before, rtol=1e-9, atol=1e-9)


def test_the_worst_case_of_4_4_is_what_a_direct_maximisation_finds():
    """max ||X'g||^2 over ||X||_2 <= lambda, by gradient ascent on X projected back through its singular values."""
    torch.manual_seed(0)
    m, d, largest = 12, 5, 1.7
    g = torch.randn(m, dtype=torch.float64)
    x = torch.randn(m, d, dtype=torch.float64)
    for _ in range(300):
        x = x + 0.1 * torch.outer(g, x.T @ g)
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        x = u @ torch.diag(s.clamp_max(largest)) @ v
    assert float((x.T @ g).square().sum()) == pytest.approx(largest**2 * float(g @ g), rel=1e-9)


def ascent(g, hessian, x, limit, steps=3000):
    """The w'Hw, w = XX'g, that gradient ascent on X reaches, with X projected back through its singular values."""
    for step in range(steps):
        bent = hessian @ (x @ (x.T @ g))
        slope = torch.outer(bent, x.T @ g) + torch.outer(g, x.T @ bent)
        x = x + (0.5 if step < steps // 2 else 0.02) * slope / slope.norm()
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        x = u @ torch.diag(s.clamp_max(limit)) @ v
    w = x @ (x.T @ g)
    return float(w @ hessian @ w)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("shift", [-1.5, 0.0, 3.0])  # of the eigenvalues: from mostly negative to all positive
@pytest.mark.fast(2)
def test_the_maximum_of_c1_is_what_a_direct_maximisation_finds(d, shift):
    torch.manual_seed(1)
    m, limit = 7, 1.3
    square, g = torch.randn(m, m, dtype=torch.float64), torch.randn(m, dtype=torch.float64)
    hessian = (square + square.T) / 2 + shift * torch.eye(m, dtype=torch.float64)
    stated = reference.largest_form(g, hessian, limit)
    found = [ascent(g, hessian, torch.randn(m, d, dtype=torch.float64), limit) for _ in range(3)]
    assert max(found) == pytest.approx(stated, rel=1e-3)
    assert max(found) <= stated * (1 + 1e-9)
    assert stated > limit**4 * float(g @ hessian @ g)  # the value at the X of 4.4


class Quadratic:
    """BatchNorm before a loss with a given gradient g and Hessian at z."""

    def __init__(self, y, gamma, g, hessian):
        self.y, self.gamma, self.g, self.hessian = y, gamma, g, hessian
        self.yhat, self.sigma = (y - y.mean()) / y.std(correction=0), float(y.std(correction=0))

    def normalised(self, y):
        step = self.gamma * ((y - y.mean()) / y.std(correction=0) - self.yhat)
        return self.g @ step + step @ self.hessian @ step / 2

    def maxima(self, limit):
        """Both networks' largest values of C.1, and the length of BatchNorm's gradient."""
        v = reference.slope(self.normalised, self.y)
        bent = torch.autograd.functional.hessian(self.normalised, self.y)
        largest = reference.largest_form(v, bent, limit), reference.largest_form(self.g, self.hessian, limit)
        assert largest[0] > limit**4 * float(v @ bent @ v)  # v is never an eigenvector
        return *largest, float(v.norm())


def test_theorem_c1_is_not_true_of_the_maxima_themselves():
    torch.manual_seed(0)
    m, limit = 8, 1.3
    y, g = torch.randn(2, m, dtype=torch.float64)
    net = Quadratic(y, float(y.std(correction=0)), g, 0.5 * torch.eye(m, dtype=torch.float64))
    net.g = g - g.mean() - net.yhat * (net.yhat @ g) / m  # orthogonal to 1 and y_hat
    for along in (0.0, 1e-3):  # <g, y_hat>, which is kappa but for its scale
        net.g = net.g + along / m * net.yhat
        with_norm, plain, length = net.maxima(limit)
        kappa = float(net.g @ net.yhat) * length**2 / (m * net.gamma)
        assert plain == pytest.approx(limit**4 * 0.5 * float(net.g @ net.g), rel=1e-9)  # at the X of 4.4
        assert with_norm > 1.05 * (plain - limit**4 * kappa)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_that_replaces_c1_holds_of_the_maxima(seed):
    torch.manual_seed(seed)
    m, limit = 8, 0.7
    y, g = torch.randn(2, m, dtype=torch.float64)
    square = torch.randn(m, m, dtype=torch.float64)
    net = Quadratic(y, 1.0, g, (square + square.T) / 2 + seed % 4 * torch.eye(m, dtype=torch.float64))
    net.g = g * torch.sign(net.yhat @ g)
    net.gamma = net.sigma * (1.0 if seed % 2 else 0.6)
    with_norm, plain, length = net.maxima(limit)
    more = 3 * 3**0.5 / 8 * limit**4 * length**3 / (m**0.5 * net.sigma)
    assert with_norm <= (net.gamma / net.sigma) ** 2 * plain + more


@pytest.mark.parametrize("norm", ["none", "batch", "l1", "l2", "linf", "lp:3", "lp:7.5", "noisy-batch", "noisy-none"])
@pytest.mark.parametrize("image", [False, True])
def test_directional_derivatives_are_those_of_autograd(norm, image):
    torch.manual_seed(1)
    shape = (3, 2, 4, 4) if image else (5, 2)
    linear = nn.Conv2d(2, 3, 3, padding=1) if image else nn.Linear(2, 3)
    end = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)] if image else [nn.Tanh(), nn.Linear(3, 3)]
    layers = [Layer(linear, build(norm, 3), *end), Layer(nn.Linear(3, 2), build(norm, 2), nn.Sigmoid())]
    modules = [nn.Sequential(nn.Identity(), module.double()) for module in layers]
    z, direction = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    found = directional_derivatives(modules, lambda out: (out**3).sum(), z, direction, torch.tensor([1, 0]))

    def loss(z):
        return (nn.Sequential(*modules)(z.view(shape)) ** 3).sum()

    gradient, hessian = reference.slope(loss, z.flatten()), torch.autograd.functional.hessian(loss, z.flatten())
    for unit, first, second in zip((1, 0), *(values.tolist() for values in found), strict=True):
        only = torch.zeros_like(direction)
        only[:, unit] = direction[:, unit]
        assert first == pytest.approx(float(only.flatten() @ gradient), rel=1e-9)
        assert second == pytest.approx(float(only.flatten() @ hessian @ only.flatten()), rel=1e-9)


class Doubled(nn.ReLU):
    def forward(self, a):
        return 2 * super().forward(a) ** 2


class Renamed(nn.ReLU):
    """Keeps the forward pass of its parent."""


def test_a_subclass_with_a_forward_pass_of_its_own_has_not_its_parents_derivatives():
    assert [has_rule(module) for module in (nn.ReLU(), Renamed(), Doubled(), nn.Sequential(Doubled()))] == [
        True, True, False, False,
    ]  # fmt: skip
    z = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    first, second = directional_derivatives([Doubled()], torch.sum, z, torch.ones_like(z), torch.tensor([0, 1]))
    assert (first.tolist(), second.tolist()) == ([16.0, 8.0], [8.0, 4.0])  # of 2 z^2 where z > 0


def test_directions_are_taken_in_portions_of_bounded_memory(monkeypatch):
    z, direction = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    arguments = ([nn.Linear(5, 5).double(), LpNorm(5, 3).double()], lambda out: (out**3).sum(), z, direction)
    at_once = directional_derivatives(*arguments, torch.arange(5))
    monkeypatch.setattr("bnsmooth_cli.derivatives.taylor.CHUNK", 2 * z.numel())
    torch.testing.assert_close(directional_derivatives(*arguments, torch.arange(5)), at_once)


def test_a_dead_unit_of_an_lp_norm_has_no_curvature():
    norm = LpNorm(2, 2).double()
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    found = directional_derivatives([norm], lambda out: (out**2).sum(), z, torch.ones_like(z), torch.tensor([0, 1]))
    assert torch.isfinite(torch.stack(found)).all()


def test_a_constant_unit_is_null_and_leaves_the_others_alone(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc2"].linear.weight[1] = 0
    rows = bns.theory(point, ["fc2"])
    dead = (rows["unit"] == 1) & (rows["statement"] != "4.5")
    assert rows.loc[dead, ["lhs", "rhs", "residual", "holds", "sigma"]].isna().all(axis=None)
    proved = rows[~dead & rows["statement"].isin(kinds.PROVED)]
    assert proved["holds"].all()
    assert f"{2 + 1 + 2 + 2 + 1 + 2 + 1} not tested" in verdict(rows)


def test_a_unit_whose_gradient_is_zero_tests_nothing(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc3"].linear.weight[:, 1] = 0
    rows = bns.theory(point, ["fc2"])
    of_gradient = ~rows["statement"].isin(["fact C.2", "4.3", "4.5"])
    zero = rows[(rows["unit"] == 1) & of_gradient]
    assert (zero[["lhs", "rhs"]] == 0).all(axis=None)
    assert zero[["residual", "holds", "condition"]].isna().all(axis=None)
    others = rows[(rows["unit"] != 1) | ~of_gradient]
    assert others["holds"].notna().all()


def test_before_the_first_step_the_optimum_is_the_start_and_4_5_tests_nothing(small_run):
    rows = bns.theory(bns.load_point(small_run("dln", "batch"), step=0)).set_index("statement").loc["4.5"]
    assert (rows[["lhs", "rhs"]] == 0).all(axis=None)
    assert rows[["residual", "holds", "reduction"]].isna().all(axis=None)


@pytest.mark.parametrize("exponent", range(-38, -19, 2))
def test_a_gradient_too_small_to_be_squared_tests_nothing(small_run, exponent):
    """The derivatives of the squared error contain all later weights, twice."""
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        for name in ("fc3", "fc4", "fc5"):
            point.model.layers[name].linear.weight *= 10.0**exponent
    assert not bns.theory(point, ["fc2"])["holds"].eq(False).any()


#: The units below, and the statements that must notice a wrong gradient or Hessian.
UNITS, GRADIENT, HESSIAN = [0, 1, 3], {"fact C.1", "4.1", "4.2", "4.4"}, {"4.2"}


def failing(point, layer="fc2"):
    """For each statement that fails, the number of units for which it does."""
    rows = bns.theory(point, [layer], UNITS)
    proved = rows[rows["statement"].isin(kinds.PROVED)]
    return proved.loc[proved["holds"].eq(False), "statement"].value_counts().to_dict()


def spoiled(values, how):
    """Values that are scaled, drawn anew, or off by a millionth."""
    drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=values.dtype)
    return {"scaled": 1.5 * values, "random": drawn * values.abs().amax(), "off": values + 1e-6 * drawn * values}[how]


@pytest.fixture(params=[("dln", "batch"), ("vgg", "l1")], ids=lambda pair: "-".join(pair))
def honest(request, small_run):
    """A point and a layer at which every statement holds for every unit."""
    point = bns.load_point(small_run(*request.param), step=3)
    layer = "fc2" if request.param[0] == "dln" else "conv3"
    rows = bns.theory(point, [layer], UNITS)
    assert rows.loc[rows["statement"].isin(kinds.PROVED), "holds"].fillna(False).all()
    return point, layer


@pytest.mark.parametrize("how", ["scaled", "random", "off"])
@pytest.mark.parametrize("part", ["g", "v", "H by double backward", "H by Taylor", "slope by Taylor"])
@pytest.mark.fast(2)
def test_a_wrong_derivative_makes_statements_fail(honest, monkeypatch, part, how):
    point, layer = honest
    backpropagated, directional = theory._backpropagated, theory.directional_derivatives
    calls = iter(range(100))

    def backward(f, x, choose):  # the plain network's is first, the composite's second
        with_norm = next(calls) % 2 == 1
        gradient, forms = backpropagated(f, x, choose)
        if part == ("v" if with_norm else "g"):
            gradient = spoiled(gradient, how)
        return gradient, spoiled(forms, how) if part == "H by double backward" and with_norm else forms

    def forward(*args):
        first, second = directional(*args)
        if part == "slope by Taylor":
            return spoiled(first, how), second
        return first, spoiled(second, how) if part == "H by Taylor" else second

    monkeypatch.setattr(theory, "_backpropagated", backward)
    monkeypatch.setattr(theory, "directional_derivatives", forward)
    failed = failing(point, layer)
    expected = {"g": GRADIENT, "v": GRADIENT, "slope by Taylor": {"4.1", "4.4"}}.get(part, HESSIAN)
    assert expected <= set(failed)
    assert all(failed[name] == 2 * len(UNITS) for name in expected)  # of two choices of gamma and beta


@pytest.mark.parametrize("engine", ["Taylor", "double backward"])
@pytest.mark.fast(2)
def test_a_hessian_that_is_wrong_along_g_alone_is_noticed(honest, monkeypatch, engine):
    point, layer = honest
    backpropagated, directional = theory._backpropagated, theory.directional_derivatives
    calls = iter(range(100))

    def backward(f, x, choose):
        gradient, forms = backpropagated(f, x, choose)
        return gradient, forms * (1 + 1e-6 * (next(calls) % 2 == 0))

    def forward(*args):
        first, second = directional(*args)
        return first, second * (1 + 1e-6 * (next(calls) % 2 == 0))

    if engine == "Taylor":
        monkeypatch.setattr(theory, "directional_derivatives", forward)
    else:
        monkeypatch.setattr(theory, "_backpropagated", backward)
    assert failing(point, layer) == {"4.2": 2}  # of the unit with the longest g, for both choices of gamma and beta


def test_a_wrong_backward_pass_of_a_norm_is_noticed(small_run, monkeypatch):
    """g and v both go through it, and the derivative along g does not."""
    from bnsmooth_cli.norms.lp import _FusedLpNorm

    right = _FusedLpNorm.backward

    def wrong(*args):
        first, *others = right(*args)
        return 1.01 * first, *others

    monkeypatch.setattr(_FusedLpNorm, "backward", staticmethod(wrong))
    assert {"4.1", "4.2", "4.4"} <= set(failing(bns.load_point(small_run("dln", "l1"), step=3)))


@pytest.mark.parametrize("how", ["scaled", "random", "off"])
@pytest.mark.fast(2)
def test_wrong_normalised_activations_make_statements_fail(honest, monkeypatch, how):
    point, layer = honest
    begin = theory._Networks.__init__

    def begun(self, *args):
        begin(self, *args)
        self.yhat = spoiled(self.yhat, how)

    monkeypatch.setattr(theory._Networks, "__init__", begun)
    assert {"fact C.1", "fact C.2", "4.1", "4.2", "4.4"} <= set(failing(point, layer))


@pytest.mark.parametrize("how", ["scaled", "random", "off"])
@pytest.mark.fast(1)
def test_a_wrong_deviation_or_batch_norm_makes_statements_fail(honest, monkeypatch, how):
    point, layer = honest
    norm, var = theory._batch_norm, torch.Tensor.var
    with monkeypatch.context() as patch:
        patch.setattr(theory, "_batch_norm", lambda y, gamma, beta: spoiled(norm(y, gamma, beta), how))
        assert {"fact C.2", "4.3"} <= set(failing(point, layer))
    monkeypatch.setattr(torch.Tensor, "var", lambda *args, **more: spoiled(var(*args, **more), how).abs())
    assert {"fact C.1", "fact C.2", "4.1", "4.2", "4.3", "4.4"} <= set(failing(point, layer))


@pytest.mark.parametrize("how", ["scaled", "random", "off"])
@pytest.mark.parametrize("part", ["eigenvalues", "eigenvectors"])
@pytest.mark.fast(2)
def test_a_wrong_lambda_makes_4_4_fail(honest, monkeypatch, part, how):
    point, layer = honest
    eigh = torch.linalg.eigh

    def wrong(matrix):
        values, vectors = eigh(matrix)
        if part == "eigenvalues":
            return spoiled(values, how), vectors
        return values, vectors if how == "off" else spoiled(vectors, how)

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    if (part, how) == ("eigenvectors", "off"):  # ||X u|| is stationary at u: an error of 1e-6 in u is one of 1e-12
        assert failing(point, layer) == {}
    else:
        assert set(failing(point, layer)) == {"4.4"}


def test_a_wrong_projection_on_the_ray_makes_4_5_fail(honest, monkeypatch):
    point, layer = honest
    normalize = theory.F.normalize
    monkeypatch.setattr(theory.F, "normalize", lambda x, **more: spoiled(normalize(x, **more), "off"))
    assert set(failing(point, layer)) == {"4.5"}


def test_a_point_that_overflows_is_null_throughout(small_run):
    point = bns.load_point(small_run("dln", "none"), step=3)
    with torch.no_grad():
        point.model.layers["fc1"].linear.weight.fill_(torch.inf)
    rows = bns.theory(point)
    assert rows.loc[rows["statement"] == "4.1", "lhs"].isna().all()


def test_the_verdict_tells_of_a_statement_that_fails(small_run):
    rows = bns.theory(bns.load_point(small_run("dln", "batch"), step=3), ["fc1"])
    assert "equal to 1e-09" in verdict(rows)
    rows.loc[rows.index[0], "holds"] = False
    assert "NOT equal in 1 cases" in verdict(rows)


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_theory_is_computed_in_float64_whatever_the_points_precision(small_run, problem):
    run = small_run(problem, "l1")
    single = bns.theory(bns.load_point(run, step=3), ["fc1"])
    double = bns.theory(bns.load_point(run, step=3, dtype=torch.float64), ["fc1"])
    assert single.equals(double)


def test_an_unknown_layer_or_unit_is_refused_with_the_known_ones(small_run):
    point = bns.load_point(small_run("vgg", "none"), step=0)
    with pytest.raises(InputError, match="unknown layer 'conv9': did you mean 'conv8'"):
        bns.theory(point, ["conv9"])
    with pytest.raises(InputError, match=r"unknown layer 'fc3'.*known: conv1, .*, fc2\)"):
        bns.theory(point, ["fc3"])  # never normalised
    with pytest.raises(InputError, match="the layer conv1 has the units 0 to 3"):
        bns.theory(point, ["conv1"], [4])
    with pytest.raises(InputError, match="no layer of this network takes a norm"):
        select(structure(Chain({"only": Layer(nn.Linear(2, 2), None)}), lambda: None))
    by_number, by_name = bns.activations(point, ["2", "fc1"]), bns.activations(point, ["conv2", "fc1"])
    assert by_number.drop(columns="quantiles").equals(by_name.drop(columns="quantiles"))


def test_the_noise_of_the_step_is_in_the_second_derivatives(small_run):
    point = bns.load_point(small_run("dln", "noisy-batch"), step=3)
    rows, elsewhere = bns.theory(point, ["fc1"]), bns.theory(dataclasses.replace(point, step=4), ["fc1"])
    assert not np.allclose(rows["lhs"], elsewhere["lhs"])


def test_what_two_samples_leave_of_a_gradient_is_rounding_and_tests_nothing():
    torch.manual_seed(0)
    x = torch.randn(2, 5).double()
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    point = bns.Point.of(model, lambda: nn.functional.cross_entropy(model(x), torch.tensor([0, 1])), lr=0.1)
    rows = bns.theory(point)
    proved = rows[rows["statement"].isin(kinds.PROVED)]
    assert not proved["holds"].eq(False).any()
    second = rows[rows["statement"].isin(("4.2", "4.2b", "C.1"))]
    assert second["holds"].isna().all()
    assert proved.loc[proved["statement"] == "4.1", "holds"].eq(True).any()
