"""Networks and losses as users write them: measured as by plain autograd, or refused by the name of the cause."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from helpers import classifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune, weight_norm
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.errors import Remark
from bnsmooth_cli.measures.surface import random_directions
from bnsmooth_cli.networks.parameters import copied
from bnsmooth_cli.networks.undisturbed import undisturbed

ALPHAS = [0.5, 1.0, 2.0]
LR = 0.1


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


def gradient(loss, parameters):
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return flat(
        torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
        for p, g in zip(parameters, found, strict=True)
    )


def by_hand(model, loss, hessian=None):
    """The line probe, ICS and the Hessian, by moving the parameters by hand.

    The Hessian is that of the loss `hessian`, or the differences of gradients (float64).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]

    def moved(vector):
        with torch.no_grad():
            for p, s, piece in zip(parameters, start, vector.split([p.numel() for p in parameters]), strict=True):
                p.copy_((s.double() + piece.view(s.shape)).to(p))
        found = loss().item(), gradient(loss, parameters)
        with torch.no_grad():
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s)
        return found

    g = gradient(loss, parameters)
    lines = [moved(-alpha * LR * g) for alpha in ALPHAS]
    distances = [(g - there).norm().item() for _, there in lines]
    step = 1e-6
    rows = []
    for i in range(len(g)):
        unit = torch.zeros_like(g)
        unit[i] = step
        rows.append((moved(unit)[1] - moved(-unit)[1]) / (2 * step))
    matrix = torch.stack(rows)
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    reached = torch.cat(
        [torch.full((p.numel(),), float(g is not None)) for p, g in zip(parameters, found, strict=True)]
    )
    matrix = matrix * reached[:, None]  # parameters under no_grad change the loss, but not for autograd
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return {
        "losses": [value for value, _ in lines],
        "distances": distances,
        "beta": max(d / (alpha * LR * g.norm().item()) for d, alpha in zip(distances, ALPHAS, strict=True)),
        "curvature": (g @ matrix @ g / (g @ g)).item(),
        "sharpness": values[values.abs().argmax()].item(),
    }


def agrees(point, expected, rel=1e-6, second=True):
    line, row = bns.landscape(point, ALPHAS).iloc[1:], bns.smoothness(point, ALPHAS).iloc[0]
    assert line["loss"].tolist() == pytest.approx(expected["losses"], rel=rel)
    assert line["grad_distance"].tolist() == pytest.approx(expected["distances"], rel=rel)
    assert row["beta"] == pytest.approx(expected["beta"], rel=rel)
    if second:
        assert row["curvature"] == pytest.approx(expected["curvature"], rel=max(rel, 1e-4))
        assert row["sharpness"] == pytest.approx(expected["sharpness"], rel=0.006)
    assert len(bns.surface(point, 3)) == 9
    assert len(bns.ics(point)) == len(bns.smoothness_by_layer(point, ALPHAS))


def point_of(model, loss, **more):
    return bns.Point.of(model, loss, lr=LR, **more)


def usual():
    return classifier(lambda: nn.Linear(3, 4), lambda: nn.BatchNorm1d(4), nn.Tanh, lambda: nn.Linear(4, 2))


def physics(t):
    """u' = -u with u(0) = 1: a loss that differentiates in the inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss():
        u = net(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (slope + u).square().mean() + (u[0] - 1).square().sum()

    return net, loss


def test_a_loss_may_differentiate_inside():
    net, loss = physics(torch.linspace(0, 2, 10).double()[:, None].requires_grad_())
    point = point_of(net, loss)
    agrees(point, by_hand(net, loss))
    assert not bns.activations(point).empty
    with pytest.raises(InputError, match="layer 0: its output cannot be replaced"):
        bns.theory(point)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_measurements_work_where_gradients_are_off(data, mode):
    x, y = data
    model = usual()
    outside = point_of(model, lambda: F.cross_entropy(model(x), y))
    with mode():
        inside = point_of(model, lambda: F.cross_entropy(model(x), y))
        rows = [[measure(point) for measure in (bns.landscape, bns.smoothness, bns.ics)] for point in (inside, outside)]
        assert not torch.is_grad_enabled()
    for mine, theirs, table in zip(
        *rows, (bns.landscape(outside), bns.smoothness(outside), bns.ics(outside)), strict=True
    ):
        assert mine.equals(table)
        assert theirs.equals(table)


def test_a_model_made_in_inference_mode_is_refused(data):
    x, y = data
    with torch.inference_mode():
        model = usual()
    with pytest.raises(InputError, match="inference"):
        point_of(model, lambda: F.cross_entropy(model(x), y))


@pytest.mark.parametrize("keep", [False, True])
def test_a_loss_that_calls_backward_is_named_and_the_gradients_are_kept(data, keep):
    x, y = data
    model = usual()

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=keep)
        return loss

    gradients = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g
    with pytest.raises(InputError, match=r"calls backward\(\)"):
        point_of(model, closure)
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert p.grad is g
        assert bool((g == 7).all())
    bns.smoothness(point_of(model, lambda: F.cross_entropy(model(x), y)))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


def test_a_loss_that_writes_to_the_parameters_is_named_and_they_are_kept():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Linear(3, 2))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match=r"changes the parameter '0\.weight'"):
        point_of(model, lambda: model(torch.arange(5)).square().mean())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.errors.Remark")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("measure", [bns.landscape, bns.smoothness, bns.smoothness_by_layer, bns.ics, bns.surface])
def test_an_interruption_leaves_the_network_as_it_was(data, measure, dtype):
    x, y = data[0].to(dtype), data[1]
    model = usual().to(dtype)
    calls = [0, math.inf]

    def loss():
        calls[0] += 1
        if calls[0] > calls[1]:
            raise KeyboardInterrupt
        return F.cross_entropy(model(x), y)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [torch.ones_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g
    point = point_of(model, loss)
    calls[1] = calls[0] + 3
    with pytest.raises(KeyboardInterrupt):
        measure(point)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert type(torch.autocast.__enter__).__name__ == "function"
    assert torch.is_autocast_enabled("cpu") is False


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules_are_measured_eagerly(data, backend):
    x, y = data
    model = usual()
    torch._dynamo.reset()
    fast = torch.compile(model, backend=backend)
    fast(x).sum().backward()
    model.zero_grad()
    expected = by_hand(model, lambda: F.cross_entropy(model(x), y))
    agrees(point_of(model, lambda: F.cross_entropy(fast(x), y)), expected)
    with pytest.warns(Remark, match="eager"):
        whole = bns.ics(point_of(fast, lambda: F.cross_entropy(fast(x), y)))
    assert whole["layer_name"].tolist() == ["0", "3"]
    assert whole.equals(bns.ics(point_of(model, lambda: F.cross_entropy(model(x), y))))


def test_scripted_modules_are_measured(data):
    x, y = data
    plain = classifier(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 2))
    expected = by_hand(plain, lambda: F.cross_entropy(plain(x), y))
    scripted = torch.jit.script(plain)
    agrees(point_of(scripted, lambda: F.cross_entropy(scripted(x), y)), expected)
    partly = nn.Sequential(torch.jit.script(plain[:2]), plain[2])
    agrees(point_of(partly, lambda: F.cross_entropy(partly(x), y)), expected)


class Recomputing(nn.Module):
    """Recomputes a module and a function of its parameters in the backward pass."""

    def __init__(self, reentrant, active=True):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.weight = nn.Linear(3, 3), nn.Parameter(torch.randn(3, 3) / 2)
        self.middle = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
        self.run = (lambda f, x: checkpoint(f, x, use_reentrant=reentrant)) if active else (lambda f, x: f(x))

    def forward(self, x):
        x = self.run(lambda x: torch.tanh(x @ self.weight), torch.tanh(self.first(x)))
        return self.run(self.middle, x)


def test_recomputed_modules_and_functions_are_measured_at_the_moved_parameters(data):
    x, y = data
    plain, saving = Recomputing(False, active=False).double(), Recomputing(False).double()
    expected = by_hand(plain, lambda: F.cross_entropy(plain(x), y))
    points = [point_of(model, lambda model=model: F.cross_entropy(model(x), y)) for model in (plain, saving)]
    for point in points:
        agrees(point, expected)
    with pytest.raises(InputError, match=r"layer first: .*runs parts again going back"):
        bns.theory(points[1])
    assert bns.ics(points[0])["ics"].tolist() == pytest.approx(bns.ics(points[1])["ics"].tolist(), rel=1e-9)


@pytest.mark.parametrize("leaf", [False, True])
def test_reentrant_recomputation_is_refused(data, leaf):
    x, y = data
    model = Recomputing(True).double()
    x = x.clone().requires_grad_(leaf)
    with pytest.raises(InputError, match="use_reentrant=False"):
        point_of(model, lambda: F.cross_entropy(model(x), y))


@pytest.mark.parametrize("kind", ["weight_norm", "weight_norm over all", "pruned", "spectral norm"])
def test_hooks_that_compute_weights_are_measured_and_copied(data, kind, tmp_path):
    x, y = data

    def hooked(layer):
        if kind == "pruned":
            return prune.random_unstructured(layer, "weight", 0.3)
        if kind == "spectral norm":
            return nn.utils.spectral_norm(layer).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and used everywhere
            return weight_norm(layer, dim=0 if kind == "weight_norm" else None)

    model = classifier(lambda: hooked(nn.Linear(3, 4)), nn.Tanh, lambda: hooked(nn.Linear(4, 2)))
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    loss().backward()
    model.zero_grad()
    kept = model[0].weight
    point = point_of(model, loss)
    agrees(point, by_hand(model, loss), second=kind != "weight_norm")
    assert torch.equal(model[0].weight, kept)


def test_old_weight_norm_has_the_second_derivative_of_its_formula(data):
    x, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = classifier(lambda: weight_norm(nn.Linear(3, 2)))

    class Formula(nn.Module):
        def __init__(self):
            super().__init__()
            layer = model[0]
            self.bias, self.g, self.v = (
                nn.Parameter(p.detach().clone()) for p in (layer.bias, layer.weight_g, layer.weight_v)
            )

        def forward(self, x):
            return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)

    formula = Formula()
    agrees(
        point_of(model, lambda: F.cross_entropy(model(x), y)), by_hand(formula, lambda: F.cross_entropy(formula(x), y))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lr", [0.1, 1e-4])
def test_reduced_precision_is_measured_in_float32_and_said_so(data, dtype, lr):
    x, y = data
    model = usual().to(dtype)
    inputs = x.to(dtype)
    wide = usual().float()
    wide.load_state_dict(model.state_dict())
    before = [p.detach().clone() for p in model.state_dict().values()]
    with pytest.warns(Remark, match=f"{str(dtype)[6:]} are measured in float32"):
        point = bns.Point.of(model, lambda: F.cross_entropy(model(inputs), y), lr=lr)
    expected = bns.Point.of(wide, lambda: F.cross_entropy(wide(inputs.float()), y), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)
        for measure in (bns.landscape, bns.smoothness, bns.ics, bns.smoothness_by_layer):
            mine, theirs = (measure(p).select_dtypes("float").to_numpy() for p in (point, expected))
            assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("where", ["around", "inside", "forward"])
def test_autocast_is_off_in_measurements_and_on_again_afterwards(data, where):
    x, y = data[0].float(), data[1]
    model, lr = usual().float(), 1e-4
    if where == "forward":
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=where != "forward")

    def loss():
        if where != "inside":
            return F.cross_entropy(model(x), y)
        with cast:
            return F.cross_entropy(model(x), y)

    plain = usual().float()
    expected = bns.smoothness(bns.Point.of(plain, lambda: F.cross_entropy(plain(x), y), lr=lr))
    with cast if where == "around" else nullcontext(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = bns.smoothness(bns.Point.of(model, loss, lr=lr))
        assert torch.is_autocast_enabled("cpu") == (where == "around")
    assert any("autocast is off" in str(each.message) for each in seen) == (where != "around")
    assert found.select_dtypes("float").to_numpy() == pytest.approx(
        expected.select_dtypes("float").to_numpy(), rel=1e-5, nan_ok=True
    )
    with cast if where == "inside" else nullcontext():
        assert (model(x).dtype == torch.bfloat16) == (where != "around")


def test_recomputation_in_reduced_precision_is_refused(data):
    x, y = data
    model = Recomputing(False).bfloat16()
    with pytest.raises(InputError, match="checkpoint cannot be measured in reduced precision"):
        point_of(model, lambda: F.cross_entropy(model(x.bfloat16()), y))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


class Mixed(nn.Module):
    """A network in bfloat16 with a norm and a head in float32, as language models are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.norm, self.head = nn.Linear(3, 4).bfloat16(), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x.to(self.body.weight.dtype)).float())))


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.errors.Remark")
def test_mixed_types_in_one_network_are_measured(data):
    x, y = data[0].float(), data[1]
    model, wide = Mixed(), Mixed().double()
    agrees(
        point_of(model, lambda: F.cross_entropy(model(x), y)),
        by_hand(wide, lambda: F.cross_entropy(wide.head(torch.tanh(wide.norm(wide.body(x.double())))), y)),
        rel=2e-3,
    )
    double = nn.Sequential(nn.Linear(3, 4).double(), nn.Linear(4, 2))
    loss = lambda: F.cross_entropy(double[1](torch.tanh(double[0](x.double())).float()), y)  # noqa: E731
    assert point_of(double, loss).theta.dtype == torch.float64


def embedding(**options):
    return classifier(lambda: nn.Embedding(6, 3, **options), nn.Flatten, lambda: nn.Linear(6, 2))


def test_a_hook_may_watch_sparse_gradients():
    model, ids = embedding(sparse=True), torch.arange(12).view(6, 2) % 6
    model[0].weight.register_hook(lambda g: None)
    assert len(bns.landscape(point_of(model, lambda: model(ids).square().mean()), ALPHAS)) == 4


def test_sparse_gradients_are_those_of_the_dense_embedding():
    ids, y = torch.randint(6, (16, 2), generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    dense, sparse = embedding(), embedding(sparse=True)
    expected = by_hand(dense, lambda: F.cross_entropy(dense(ids), y))
    for model in (dense, sparse):
        agrees(point_of(model, lambda model=model: F.cross_entropy(model(ids), y)), expected)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("form", ["rows", "offsets", "last offset", "padding", "weights"])
@pytest.mark.fast(4)
def test_bags_of_embeddings_have_a_second_derivative(mode, form):
    if form == "weights" and mode != "sum":
        pytest.skip("torch takes weights for sums alone")
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(
        7, 3, mode=mode, padding_idx=2 if form == "padding" else None, include_last_offset=form == "last offset"
    ).double()
    head, y = nn.Linear(3, 2).double(), torch.arange(4) % 2
    model = nn.ModuleList([bag, head])
    ids = torch.randint(7, (4, 3))
    more = {
        "offsets": [torch.tensor([0, 2, 2, 9])], "last offset": [torch.tensor([0, 2, 2, 9, 12])],
        "weights": [None, torch.rand(4, 3).double()],
    }.get(form, [])  # fmt: skip
    if more and more[0] is not None:
        ids = ids.flatten()
    loss = lambda: F.cross_entropy(head(torch.tanh(bag(ids, *more))), y)  # noqa: E731
    agrees(point_of(model, loss), by_hand(model, loss))


class Once(torch.autograd.Function):
    """tanh with a backward pass that hides its own derivative."""

    @staticmethod
    def forward(ctx, x, how):
        ctx.save_for_backward(x)
        ctx.how = how
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if ctx.how == "detached":
            x = x.detach()
        elif ctx.how == "once":
            return OnceMarked.apply(g, x), None
        return g * (1 - torch.tanh(x) ** 2), None


class OnceMarked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, x):
        return g * (1 - torch.tanh(x) ** 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g, None


@pytest.mark.parametrize("how", ["right", "detached", "once"])
def test_a_function_that_hides_its_second_derivative_is_measured_by_differences_with_a_remark(data, how):
    x, y = data
    first, last = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()
    model = nn.ModuleList([first, last])
    point = point_of(model, lambda: F.cross_entropy(last(Once.apply(first(x), how)), y))
    expected = by_hand(model, lambda: F.cross_entropy(last(torch.tanh(first(x))), y))
    if how == "right":
        agrees(point, expected)
        return
    with pytest.warns(Remark, match="differences of gradients.*Once"):
        agrees(point, expected)


def test_differences_across_a_kink_are_refused(data):
    """PyTorch has no second derivative here, and |w| has its kink within the step of the differences."""
    x, y = data
    layer, kink = nn.Linear(3, 2).double(), nn.Linear(1, 1, bias=False).double()
    kink.weight.data.fill_(1e-9)
    model = nn.ModuleList([layer, kink])
    point = point_of(model, lambda: F.cross_entropy(Once.apply(layer(x), "once"), y) + kink.weight.abs().sum())
    with pytest.warns(Remark, match="no curvature and no sharpness: .*inaccurate here, to 0.5"):
        row = bns.smoothness(point, ALPHAS).iloc[0]
    assert row[["curvature", "sharpness"]].isna().all()
    with pytest.raises(InputError, match="inaccurate here"):
        bns.spectrum(point, top=1)


def test_the_gradients_of_other_networks_stay(data):
    x, y = data
    judge, model = nn.Linear(3, 2).double(), nn.Linear(3, 3).double()
    judge.weight.grad = torch.full_like(judge.weight, 7.0)
    point_of(model, lambda: F.cross_entropy(judge(Once.apply(model(x), "right")), y))
    assert bool((judge.weight.grad == 7).all())
    assert judge.bias.grad is None


def test_what_a_network_counts_in_its_forward_pass_stays(data):
    x, y = data

    class Counting(nn.Linear):
        calls, seen = 0, None

        def forward(self, x):
            self.calls += 1
            self.seen.append(float(x.mean()))
            return super().forward(x)

    model = Counting(3, 2).double()
    model.seen = [7.0]
    point = point_of(model, lambda: F.cross_entropy(model(x), y))
    bns.smoothness(point, ALPHAS)
    bns.ics(point)
    assert (model.calls, model.seen) == (0, [7.0])


class Inner(torch.autograd.Function):
    """Calls backward() inside, as some libraries' recomputation does."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(g)
        return x.grad, None


def test_a_function_that_calls_backward_is_refused(data):
    x, y = data
    first, middle = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()
    model = nn.ModuleList([first, middle])
    with pytest.raises(InputError, match=r"not those of backward\(\).*Inner"):
        point_of(model, lambda: F.cross_entropy(Inner.apply(first(x), middle), y))
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_without_a_second_derivative_is_measured_by_differences():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 6).double(), torch.randn(6, 5, 4).double()
    marks, lengths = torch.tensor([[1, 2]] * 6), (torch.full((6,), 5), torch.full((6,), 2))
    loss = lambda: F.ctc_loss(F.log_softmax(net(x), -1).transpose(0, 1), marks, *lengths)  # noqa: E731
    with pytest.warns(Remark, match="differences of gradients.*no second derivative"):
        agrees(point_of(net, loss), by_hand(net, loss))


class Lopsided(torch.autograd.Function):
    """A fused layer x w / |w| whose backward pass treats |w| as a constant."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ (w / w.norm())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        size, unit = w.norm().detach(), (w / w.norm())
        slope = x.T @ g
        return g @ unit.T, (slope - unit * (unit * slope).sum()) / size


def test_a_wrong_second_derivative_is_replaced_by_differences(data):
    x, y = data

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double())

        def forward(self, x):
            return Lopsided.apply(x, self.w)

    model = nn.Sequential(nn.Linear(3, 3).double(), nn.Tanh(), Layer())
    point = point_of(model, lambda: F.cross_entropy(model(x), y))
    with pytest.warns(Remark, match="differences of gradients.*Lopsided"):
        agrees(point, by_hand(model, lambda: F.cross_entropy(model(x), y)))


def test_gradients_of_no_function_give_nulls_and_a_remark(data):
    x, y = data
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()
    model = nn.ModuleList([first, second])

    def loss():
        hidden = Once.apply(first(x), "once")
        return F.cross_entropy(second(hidden) * hidden.detach().square().sum(), y)

    point = point_of(model, loss)
    with pytest.warns(Remark, match="no curvature and no sharpness: .*Once.*detach"):
        row = bns.smoothness(point, ALPHAS).iloc[0]
    assert row[["curvature", "sharpness"]].isna().all()
    assert row["beta"] == pytest.approx(by_hand(model, loss)["beta"], rel=1e-6)
    with pytest.raises(InputError, match="not the gradients of a function"):
        bns.spectrum(point, top=1)


class Frozen(nn.Module):
    """Frozen, unused, called but unused, and detached parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.unused, self.aside, self.fixed = nn.Linear(3, 3), nn.Linear(4, 2), nn.Linear(3, 3)
        self.head = nn.Linear(4, 2)
        self.body[0].weight.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            x = self.fixed(x)
        x = self.body(x)
        self.aside(x)
        return self.head(x)


def test_parameters_that_the_loss_does_not_reach_have_zero_gradients(data):
    x, y = data
    model = Frozen().double()
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    point = point_of(model, loss)
    agrees(point, by_hand(model, loss))
    rows = bns.smoothness_by_layer(point, ALPHAS).set_index("layer_name")
    shifts = bns.ics(point).set_index("layer_name")
    for name in ("Frozen", "fixed", "aside"):
        assert rows.loc[name, "grad_norm"] == 0
        assert rows.loc[name, ["beta", "curvature", "sharpness"]].isna().all()
        assert shifts.loc[name, ["grad_norm", "ics"]].eq(0).all()
        assert math.isnan(shifts.loc[name, "cosine"])
    head = by_hand(model.head, loss)
    assert rows.loc["head", "sharpness"] == pytest.approx(head["sharpness"], rel=0.006)
    assert rows.loc["head", "beta"] == pytest.approx(head["beta"], rel=1e-6)


def test_a_tensor_of_the_parameters_themselves_moves_with_them(data):
    x, y = data
    model = usual()
    weight: Tensor = model[3].weight
    loss = lambda: F.cross_entropy(model(x), y) + weight.square().sum()  # noqa: E731
    agrees(point_of(model, loss), by_hand(model, loss))


def test_a_hook_may_watch_the_gradient_of_a_parameter_but_not_change_it(data):
    x, y = data
    model, seen = usual(), []
    watching = model[3].weight.register_hook(lambda g: seen.append(float(g.norm())))
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    agrees(point_of(model, loss), by_hand(model, loss))
    seen.clear()
    loss().backward()
    assert len(seen) == 1
    watching.remove()
    loss().backward()
    assert len(seen) == 1
    model[3].weight.register_hook(lambda g: g / 2)
    with pytest.raises(InputError, match=r"a hook changes the gradient of '3\.weight'"):
        point_of(model, loss)


def test_losses_of_torch_func_are_measured():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(6, 3).double()
    own = dict(model.named_parameters())

    def steep(z: Tensor) -> Tensor:
        return torch.func.functional_call(model, own, (z,)).sum()

    loss = lambda: torch.func.vmap(lambda z: torch.func.grad(steep)(z).square().sum())(x).mean()  # noqa: E731
    point = point_of(model, loss)
    agrees(point, by_hand(model, loss))
    with pytest.raises(InputError, match=r"runs inside torch\.func"):
        bns.activations(point)


def test_parameters_that_share_memory_are_refused(data):
    x, _ = data
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight.data = model[0].weight.data
    with pytest.raises(InputError, match=r"'0\.weight' and '2\.weight' share memory"):
        point_of(model, lambda: model(x).square().mean())
    model[2].weight = model[0].weight
    loss = lambda: model(x).square().mean()  # noqa: E731
    agrees(point_of(model, loss), by_hand(model, loss))


def test_spectral_norm_in_train_mode_is_refused(data):
    x, y = data
    model = nn.Sequential(spectral_norm(nn.Linear(3, 2))).double()
    with pytest.raises(InputError, match=r"buffer '0\.parametrizations\.weight\.0\._u' changes"):
        point_of(model, lambda: F.cross_entropy(model(x), y))


def test_a_network_in_reduced_precision_is_copied_as_it_is_during_a_measurement():
    measured, other = (nn.Sequential(*(nn.BatchNorm1d(i) for i in range(1, 30))).bfloat16() for _ in range(2))
    with pytest.warns(Remark), undisturbed(measured):
        copies = copied(other)
    for mine, theirs in zip(other.state_dict().values(), copies.state_dict().values(), strict=True):
        assert theirs.dtype == mine.dtype
        assert torch.equal(mine, theirs)


def test_a_random_direction_has_the_lengths_of_the_filters_and_norms_stay():
    """Of a transposed weight, the filter of an output is a column, in its group; the lengths are written out here."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, groups=2), nn.LayerNorm([6, 3, 3]), nn.Flatten(), Conv1D(3, 54), nn.Linear(3, 2)
    ).double()
    x = torch.randn(5, 4, 2, 2).double()
    (axis,) = random_directions(point_of(model, lambda: model(x).square().mean()), 1)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    pieces = axis.split([weight.numel() for weight in weights.values()])
    d = {name: piece.view_as(weights[name]) for name, piece in zip(weights, pieces, strict=True)}
    for name in ("0.bias", "1.weight", "1.bias", "3.bias", "4.bias"):
        assert not d[name].any()
    filters = [("0.weight", (slice(0, 2), j)) for j in range(3)] + [("0.weight", (slice(2, 4), j)) for j in range(3)]
    filters += [("3.weight", (slice(None), j)) for j in range(3)] + [("4.weight", (j,)) for j in range(2)]
    for name, own in filters:
        assert d[name][own].norm().item() == pytest.approx(weights[name][own].norm().item(), rel=1e-12)
        assert not torch.allclose(d[name][own], weights[name][own])
