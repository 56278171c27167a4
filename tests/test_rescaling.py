"""What counts as a norm: a module whose output is, per unit, an affine function of its normalised input."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, norms
from bnsmooth_cli.networks.rescaling import is_known, is_norm

UNITS = 8
#: What statistics are taken over -> the dimensions of activations (N, C, *positions).
GROUPS = {
    "a unit": lambda x: (0, *range(2, x.dim())),
    "a sample": lambda x: tuple(range(1, x.dim())),
    "a unit of a sample": lambda x: tuple(range(2, x.dim())),
    "everything": lambda x: tuple(range(x.dim())),
    "the units at a position": lambda x: (1,),
    "a position of a unit": lambda x: (0,),
}
SCALES = {
    "deviation": lambda x, dims: x.var(dims, keepdim=True, unbiased=False).add(1e-5).sqrt(),
    "l1": lambda x, dims: x.abs().mean(dims, keepdim=True),
    "largest": lambda x, dims: x.abs().amax(dims, keepdim=True),
}
SHAPES = [(5, UNITS), (3, UNITS, 5), (2, UNITS, 16, 16), (3, UNITS, 2, 2, 2), (2, UNITS, 1, 1)]
ACTIVATIONS = {
    "relu": F.relu, "leaky": F.leaky_relu, "gelu": F.gelu, "tanh": torch.tanh, "abs": torch.abs, "relu6": F.relu6,
    "clamp": lambda y: y.clamp(-6, 6), "where": lambda y: torch.where(y > 0, y, 0.0 * y), "square": torch.square,
    "max": lambda y: torch.maximum(y, 0.5 * y), "softplus": F.softplus, "hardswish": F.hardswish, "sin": torch.sin,
}  # fmt: skip


class Made(nn.Module):
    """A norm by its formula; `after` acts on its output, `inside` on what gamma and beta rescale."""

    def __init__(self, group, scale="deviation", centred=True, after=lambda y: y, inside=lambda y: y):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(UNITS) + 0.5), nn.Parameter(torch.randn(UNITS))
        self.group, self.scale, self.centred, self.after, self.inside = group, scale, centred, after, inside

    def forward(self, x):
        dims, unit = GROUPS[self.group](x), (-1,) + (1,) * (x.dim() - 2)
        centre = x.mean(dims, keepdim=True) if self.centred else 0.0
        y = self.inside((x - centre) / SCALES[self.scale](x, dims))
        return self.after(y * self.gamma.view(unit) + self.beta.view(unit))


def has_groups(group, shape):
    """Whether the groups have several activations."""
    return group != "a unit of a sample" or torch.Size(shape[2:]).numel() > 1 < len(shape) - 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("scale", SCALES)
def test_norms_of_every_kind_are_norms(group, scale, shape):
    if has_groups(group, shape):
        assert all(is_norm(Made(group, scale, centred), torch.ones(shape)) for centred in (True, False))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.fast(12)
def test_a_norm_with_an_activation_is_none(group, name):
    for shape in SHAPES:
        if has_groups(group, shape):
            assert not is_norm(Made(group, after=ACTIVATIONS[name]), torch.ones(shape)), shape
            if name not in ("relu6", "clamp"):  # of few values, none is so far from the others
                assert not is_norm(Made(group, inside=ACTIVATIONS[name]), torch.ones(shape)), shape


@pytest.mark.parametrize("name", [name for name in norms.examples() if name != "dyt"])
@pytest.mark.parametrize("training", [True, False])
def test_every_built_in_norm_is_known_and_passes_the_test(name, training):
    module = norms.build(name, UNITS).train(training)
    assert is_known(module)
    if not (training and "noisy" in name):  # noise is known, and passes no test
        assert is_norm(module, torch.ones(4, UNITS, 5, 5))


def test_dynamic_tanh_is_no_norm():
    module = norms.build("dyt", UNITS)
    assert not is_known(module)
    assert not is_norm(module, torch.ones(4, UNITS, 5, 5))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(UNITS), nn.InstanceNorm2d(UNITS, affine=True, track_running_stats=True), nn.GroupNorm(2, UNITS),
        nn.LayerNorm([UNITS, 16, 16]), nn.BatchNorm2d(UNITS).eval(), nn.BatchNorm2d(UNITS).to(torch.bfloat16),
    ],
)  # fmt: skip
def test_norms_of_torch_pass_the_test_in_any_mode_and_type(module):
    assert is_norm(module, torch.ones(2, UNITS, 16, 16, dtype=module.weight.dtype))


def test_a_subclass_is_known_unless_it_replaces_forward():
    class Named(nn.BatchNorm1d):
        pass

    class Rectified(nn.BatchNorm1d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    class Halved(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) / 2

    x = torch.ones(4, 3)
    assert [is_known(kind(3)) for kind in (Named, Rectified, Halved)] == [True, False, False]
    assert [is_norm(kind(3), x) for kind in (Named, Rectified, Halved)] == [True, False, True]


@pytest.mark.parametrize("training", [True, False])
def test_the_test_leaves_the_module_as_it_was(training):
    class Stateful(nn.BatchNorm1d):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            self.extra = 0.9 * self.extra + torch.rand(1)  # another tensor in the buffer's place
            return super().forward(x)

    module = Stateful(3).train(training)
    module.register_buffer("extra", torch.ones(1))
    tensors = {
        name: (value, value.data_ptr(), value.clone()) for name, value in module.state_dict(keep_vars=True).items()
    }
    attributes, random = set(vars(module)), torch.get_rng_state()
    assert is_norm(module, torch.ones(4, 3))
    assert set(vars(module)) == attributes
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in module.state_dict(keep_vars=True).items():
        kept, place, content = tensors[name]
        assert value is kept
        assert value.data_ptr() == place
        assert torch.equal(value, content)


def test_modules_that_take_no_other_batch_or_change_the_shape_or_draw_are_no_norms():
    class Fixed(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) if len(x) == 4 else x.view(4, -1)

    class Wide(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).repeat(1, 2)

    class Random(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) + torch.rand_like(x)

    assert not any(is_norm(kind(3), torch.ones(4, 3)) for kind in (Fixed, Wide, Random))
    assert not is_norm(nn.BatchNorm1d(3), torch.ones(3))


class Net(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, UNITS), second, nn.Linear(UNITS, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.first(x))))


def point_of(second):
    torch.manual_seed(0)
    model, x = Net(second).double(), torch.randn(16, 3).double()
    return model, x, bns.Point.of(model, lambda: model(x).square().sum(), lr=1e-3)


@pytest.mark.parametrize("module", [Made("a unit"), Made("a sample")])
def test_a_norm_of_the_users_belongs_to_the_layer_before_it(module):
    model, x, point = point_of(module)
    assert dict(point.layers) == {
        "first": ["first.weight", "first.bias", "second.gamma", "second.beta"], "head": ["head.weight", "head.bias"]
    }  # fmt: skip
    (row,) = bns.activations(point, ["first"], [2]).to_dict("records")
    assert row["mean"] == pytest.approx(model.second(model.first(x))[:, 2].mean().item())


@pytest.mark.parametrize("after", ["relu", "gelu"])
def test_what_is_no_norm_is_a_layer_of_its_own(after):
    model, x, point = point_of(Made("a unit", after=ACTIVATIONS[after]))
    assert [name for name, _ in point.layers] == ["first", "second", "head"]
    with pytest.warns(bns.Remark, match=r"layer first: measured before second \(Made\), which is no norm"):
        (row,) = bns.activations(point, ["first"], [2]).to_dict("records")
    values = model.first(x)[:, 2]
    assert row["mean"] == pytest.approx(values.mean().item())
    assert row["q01"] == pytest.approx(torch.quantile(values, 0.01).item())


def test_a_norm_within_a_module_that_is_none_is_found():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(UNITS)

        def forward(self, x):
            return torch.relu(self.norm(x))

    model, x, point = point_of(Block())
    assert dict(point.layers)["first"] == ["first.weight", "first.bias", "second.norm.weight", "second.norm.bias"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to remark
        (row,) = bns.activations(point, ["first"], [2]).to_dict("records")
    assert row["q01"] == pytest.approx(torch.quantile(model.second.norm(model.first(x))[:, 2], 0.01).item())
    assert row["q01"] < 0


def test_a_norm_without_parameters_or_with_shaped_ones_is_found():
    class Plain(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)) / x.std(0)

    class Shaped(Plain):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(1, UNITS) + 0.5)

        def forward(self, x):
            return self.gamma * super().forward(x)

    for module in (Plain(), Shaped()):
        model, x, point = point_of(module)
        assert [name for name, _ in point.layers] == ["first", "head"]
        (row,) = bns.activations(point, ["first"], [2]).to_dict("records")
        assert row["std"] == pytest.approx(model.second(model.first(x))[:, 2].std(unbiased=False).item())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("module", [nn.PReLU(), nn.PReLU(UNITS), nn.Linear(UNITS, UNITS), nn.ReLU()])
def test_other_modules_of_torch_are_no_norms(module):
    model, x, point = point_of(module)
    (row,) = bns.activations(point, ["first"], [2]).to_dict("records")
    assert row["mean"] == pytest.approx(model.first(x)[:, 2].mean().item())


def test_a_norm_that_a_hook_turns_into_something_else_is_none():
    module = nn.BatchNorm1d(UNITS)
    module.register_forward_hook(lambda m, inputs, output: torch.relu(output))
    assert [name for name, _ in point_of(module)[2].layers] == ["first", "second", "head"]


@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(1)
def test_a_chain_with_what_is_no_norm_is_measured_but_for_its_norms(small_run, problem):
    point = bns.load_point(small_run(problem, "own_code:Rectified"))
    for measure in (bns.activations, bns.theory):
        with pytest.raises(InputError, match="--norm own_code:Rectified: its output is not an affine function"):
            measure(point)
    assert len(bns.ics(point)) == len(point.layers)
    assert bns.smoothness(point)["beta"][0] > 0
    scaled = bns.load_point(small_run(problem, "own_code:Scaled"))
    assert len(bns.activations(scaled)) > 0
