"""VGG: training steps, line probe, ICS, the Hessian, and the theory's second derivatives."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import runpy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import bnsmooth_cli as bns
from benchmarks import references
from benchmarks.harness import Result, agree, faster, medians, row, within
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.derivatives.products import twice_differentiable
from bnsmooth_cli.derivatives.taylor import directional_derivatives
from bnsmooth_cli.measures.landscape import line_alphas
from bnsmooth_cli.measures.smoothness import second_order
from bnsmooth_cli.measures.surface import random_directions
from bnsmooth_cli.networks.parameters import flatten, unflatten
from bnsmooth_cli.norms.state import prepare
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.training.trajectory import Trajectory


def _point(norm: str = "batch", **settings: Any) -> bns.Point:
    with tempfile.TemporaryDirectory() as folder:
        run = bns.train("vgg", norm, steps=20, output=f"{folder}/run", device="cpu", **settings)
        return bns.load_point(run, device="cpu")


def _flops(model: nn.Module, inputs: Tensor) -> float:
    """Operations of the convolutions in a training step: 2 per multiplication, in 3 passes (2 in the first layer)."""
    total, x = 0.0, inputs
    for place, layer in enumerate(model.layers.values()):
        y = layer.linear(x)
        if isinstance(layer.linear, nn.Conv2d):
            total += 2 * y.numel() * layer.linear.weight[0].numel() * (3 if place else 2)
        x = layer(x)
    return total


@row("vgg-step")
def step() -> Iterator[Result]:
    """VGG-A at full width with batch 128, data included, against a bare loop on a fixed batch and against sgemm."""
    problem = problems.build(resolve("vgg", norm="batch", width=1.0))
    trajectory = Trajectory(problem)
    inputs, targets = problem.batch(0)
    model = references.plain_network(problem.build()).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def bare() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimiser.step()
        return loss.detach()

    agree(trajectory.advance()[0], bare(), 1e-5)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    ours_s, reference_s, product = medians(trajectory.advance, bare, lambda: a @ b, repeats=5)
    yield within("vgg-step", "width 1, batch 128", "bare loop, fixed batch", ours_s, reference_s, 1.03)
    rate, peak = _flops(trajectory.model, inputs) / ours_s, 2 * 2048**3 / product
    share = rate / peak
    yield Result(
        "vgg-step", f"{rate / 1e9:.0f} GFLOP/s", "sgemm 2048", ours_s, product, share, "at least 0.85", share >= 0.85
    )


class _Images(Dataset[tuple[Tensor, int]]):
    """A data set that transforms one image at a time, as scripts usually do."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images, self.labels = [v2.functional.to_pil_image(image) for image in images[:2000]], labels
        convert = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())]
        self.transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *convert])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


@row("vgg-loader")
def loader() -> Iterator[Result]:
    """Width 0.25 with augmentation against a DataLoader loop; ten steps each."""
    problem = problems.build(resolve("vgg", norm="batch", augment=True))
    trajectory = Trajectory(problem)
    images = problem.images
    data = DataLoader(
        _Images(images.train.contiguous(), images.train_labels, images.mean, images.std), 128, shuffle=True
    )
    model = references.plain_network(problem.build())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()

    def usual() -> None:
        for _, (batch, labels) in zip(range(10), data, strict=False):
            optimiser.zero_grad()
            loss = criterion(model(batch), labels)
            loss.backward()
            optimiser.step()
            loss.item()

    ours_s, reference_s = medians(lambda: [trajectory.advance() for _ in range(10)], usual, repeats=5)
    yield faster("vgg-loader", "width 0.25, 10 steps", "DataLoader, transforms per sample", ours_s, reference_s, 1.5)


@row("vgg-measure")
def measures() -> Iterator[Result]:
    """Line probe and ICS at width 0.25."""
    point = _point()
    model, loss = references.plain_loss(point)
    alphas = line_alphas("vgg")
    expected = torch.stack(references.line(model, loss, alphas, 0.1))
    agree(torch.tensor(bns.landscape(point).iloc[1:]["grad_distance"].to_numpy()), expected[:, 1], 2e-2)
    gradients = len(alphas) + 1
    ours_s, reference_s = medians(
        lambda: bns.landscape(point), lambda: [references.gradient(model, loss) for _ in range(gradients)], repeats=7
    )
    yield within(
        "vgg-measure",
        f"line of {len(alphas)} and its start",
        f"{gradients} bare forward-backwards",
        ours_s,
        reference_s,
        1.05,
    )
    groups = [len(names) for _, names in point.layers]
    agree(torch.tensor(bns.ics(point)["ics"].to_numpy()), torch.stack(references.ics(model, loss, groups, 0.1)), 2e-2)
    ours_s, reference_s = medians(lambda: bns.ics(point), lambda: references.ics(model, loss, groups, 0.1), repeats=5)
    yield faster("vgg-measure", "ICS, 11 layers", "a full gradient per layer", ours_s, reference_s, 3)


@row("surface")
def surface() -> Iterator[Result]:
    """A surface of 5 x 5 points at width 0.25, against bare forward passes and setting parameters one by one."""
    point = _point()
    axes = random_directions(point, 2)
    model, loss = references.plain_loss(point)
    weights = [p.detach().clone() for p in model.parameters()]
    sizes = [w.numel() for w in weights]
    places = [(x, y) for x in torch.linspace(-1, 1, 5).tolist() for y in torch.linspace(-1, 1, 5).tolist()]

    @torch.no_grad()
    def bare() -> Tensor:
        return torch.stack([loss() for _ in places])

    @torch.no_grad()
    def usual() -> Tensor:
        losses = []
        for x, y in places:
            pieces = [axis.split(sizes) for axis in axes]
            for p, w, *d in zip(model.parameters(), weights, *pieces, strict=True):
                p.copy_(w + x * d[0].view(w.shape) + y * d[1].view(w.shape))
            losses.append(loss())
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
        return torch.stack(losses)

    agree(torch.tensor(bns.surface(point, 5)["loss"].to_numpy()), usual().double(), 1e-4)
    ours_s, reference_s, scripts = medians(lambda: bns.surface(point, 5), bare, usual, repeats=7)
    yield within("surface", "25 points", "bare forward passes", ours_s, reference_s, 1.1)
    yield within("surface", "25 points", "parameters set one by one", ours_s, scripts, 1.05)


@row("hessian")
def hessian() -> Iterator[Result]:
    """Products with the Hessian at width 0.25: the first one at a point, including its preparation, and the next."""
    point = _point()
    model, loss = references.plain_loss(point)
    torch.manual_seed(0)
    vector = torch.randn(len(point.theta))
    (_, ours), plain = point.hessian(), references.DoubleBackward(model, loss)
    agree(ours(vector), plain(vector), 1e-3)
    first, following, plain_first, plain_following, one = medians(
        lambda: point.hessian()[1](vector),
        lambda: ours(vector),
        lambda: references.DoubleBackward(model, loss)(vector),
        lambda: plain(vector),
        lambda: references.gradient(model, loss),
        repeats=7,
    )
    yield faster("hessian", "first product", "double backward, nn.BatchNorm2d", first, plain_first, 1.2)
    yield faster("hessian", "following product", "double backward, nn.BatchNorm2d", following, plain_following, 1.4)
    yield within("hessian", "first product", "gradient", first, one, 5)
    yield within("hessian", "following product", "gradient", following, one, 3.3)


@row("engines")
def engines() -> Iterator[Result]:
    """The same products by PyTorch's forward-over-reverse differentiation, in three kinds of narrow networks.

    `torch.func.linearize` takes seconds to set up, and its following products are as fast as ours. A jvp of a jvp
    through F.batch_norm is silently wrong.
    """
    yield from _engines("VGG, batch", _point())
    examples = runpy.run_path(str(Path(__file__).parents[1] / "docs/examples/digits.py"))
    resnet, transformer = examples["resnet"](nn.BatchNorm2d).model, examples["Patches"]()
    for name, model, size in (("ResNet-18", resnet, 16), ("transformer", transformer, 64)):
        x, y = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))
        loss = functools.partial(_cross_entropy, model, x, y)
        yield from _engines(name, bns.Point.of(model, loss, lr=0.1))


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


class _Loss(nn.Module):
    """The loss of a point as a module that holds the network, so that its parameters can be replaced."""

    def __init__(self, point: bns.Point) -> None:
        super().__init__()
        self.model, self.loss = point.model, point.loss

    def forward(self) -> Tensor:
        return self.loss()


def _engines(case: str, point: bns.Point) -> Iterator[Result]:
    torch.manual_seed(0)
    theta, vector = point.theta, torch.randn(len(point.theta))
    _, ours = point.hessian()

    names, module = list(point.parameters), _Loss(point)

    def loss(values: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(module, values, ())
        return found

    def forward_over_reverse() -> Tensor:
        values, directions = (
            {f"model.{name}": piece for name, piece in zip(names, unflatten(v, point.parameters.values()), strict=True)}
            for v in (theta, vector)
        )
        with twice_differentiable():
            slopes = torch.func.jvp(torch.func.grad(loss), (values,), (directions,))[1]
        return flatten(slopes.values())

    agree(ours(vector), forward_over_reverse(), 1e-3)
    ours_s, reference_s = medians(lambda: ours(vector), forward_over_reverse, repeats=5)
    yield within(
        "engines", f"{case}, a following product", "torch.func jvp of grad, gradient included", ours_s, reference_s, 1.1
    )


@row("sharpness")
def sharpness() -> Iterator[Result]:
    """The Hessian's largest eigenvalue at three points. Only our time includes the curvature along the gradient."""
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        run = bns.train("vgg", "batch", steps=150, output=f"{folder}/run", device="cpu")
        for point in visit(run.source(), [0, 20, 150], "cpu"):
            model, loss = references.plain_loss(point)
            value = second_order(point).sharpness
            works = {
                "ours": lambda: second_order(point),
                "power iteration, told the value, to 1%": lambda: references.power_iteration(model, loss, value, 1e-2),
            }
            if importlib.util.find_spec("pyhessian"):
                works["PyHessian to a change of 0.1%"] = _pyhessian(model, point)
            for work in [*works.values()][1:]:
                agree(torch.tensor(work()), torch.tensor(value), 2e-2)
            spent.append(medians(*works.values(), repeats=1))
    ours_s, *others = (sum(times) for times in zip(*spent, strict=True))
    for name, reference_s in zip([*works][1:], others, strict=True):
        yield faster("sharpness", "three points", name, ours_s, reference_s, 4)


def _pyhessian(model: nn.Module, point: bns.Point) -> Callable[[], float]:
    """The same eigenvalue by PyHessian. It sets eval mode, so BatchNorm is made to use batch statistics there too."""
    hessian = importlib.import_module("pyhessian").hessian
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None

    def largest() -> float:
        torch.manual_seed(0)
        model.zero_grad()
        operator = hessian(model, point.problem.objective, data=(point.inputs, point.targets), cuda=False)
        return float(operator.eigenvalues(tol=1e-3)[0][0])

    return largest


@row("theory")
def theory() -> Iterator[Result]:
    """The second derivatives of conv5's units, float64, against one double backward per unit."""
    point = _point().to(torch.float64)
    prepare(point.norms, point.config.seed, point.step)
    layers = list(point.model.layers.values())
    with torch.no_grad():
        x = point.inputs
        for layer in layers[:4]:
            x = layer(x)
        z = layers[4].linear(x)
    modules, units = [layers[4].rest, *layers[5:]], torch.arange(8)
    direction = torch.randn_like(z)

    def objective(outputs: Tensor) -> Tensor:
        return point.problem.objective(outputs, point.targets)

    def plain() -> Tensor:
        fed = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(objective(nn.Sequential(*modules)(fed)), fed, create_graph=True)
        values = []
        for unit in units:
            v = torch.zeros_like(z)
            v[:, unit] = direction[:, unit]
            values.append((torch.autograd.grad(g, fed, v, retain_graph=True)[0] * v).sum())
        return torch.stack(values)

    def ours() -> Tensor:
        return directional_derivatives(modules, objective, z, direction, units)[1]

    def forward_over_reverse() -> Tensor:
        directions = torch.zeros(len(units), *z.shape, dtype=z.dtype)
        for k, unit in enumerate(units.tolist()):
            directions[k, :, unit] = direction[:, unit]
        slope = torch.func.grad(lambda fed: objective(nn.Sequential(*modules)(fed)))
        with twice_differentiable():
            products = torch.func.vmap(lambda v: torch.func.jvp(slope, (z,), (v,))[1])(directions)
        return (products * directions).flatten(1).sum(1)

    agree(ours(), plain(), 1e-9)
    agree(forward_over_reverse(), plain(), 1e-9)
    ours_s, reference_s, functional = medians(ours, plain, forward_over_reverse, repeats=3)
    yield faster("theory", "8 units of conv5", "double backward per unit", ours_s, reference_s, 1.5)
    yield faster("theory", "8 units of conv5", "torch.func vmap of jvp of grad", ours_s, functional, 1.5)
