"""Brute force: every measurement by its formula, in plain autograd and float64, sharing no code with the package."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bnsmooth_cli import Point
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.norms.state import prepare
from bnsmooth_cli.randomness import generator

#: The input and output of each linear map.
Maps = dict[str, tuple[Tensor, Tensor]]


def double_copy(point: Point) -> nn.Module:
    return copy.deepcopy(point.model).double()


def gradient(point: Point, model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    point.loss(model).backward()
    return [p.grad.clone() for p in model.parameters()]


def norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.sqrt(sum((t**2).sum() for t in tensors)))


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def random_direction(point: Point, g: Sequence[Tensor]) -> list[Tensor]:
    """A Gaussian vector of the gradient's length; the one that the point's seed and step stand for."""
    random = generator(point.config.seed, "direction", point.step)
    flat = torch.randn(sum(t.numel() for t in g), generator=random).double()
    pieces = [piece.view_as(t) for piece, t in zip(flat.split([t.numel() for t in g]), g, strict=True)]
    return [piece * norm(g) / norm(pieces) for piece in pieces]


def line(point: Point, alphas: Sequence[float], direction: str = "gradient") -> list[dict[str, float]]:
    g = gradient(point, double_copy(point))
    d = g if direction == "gradient" else random_direction(point, g)
    rows = []
    for alpha in [0.0, *alphas]:
        eta = alpha * point.config.lr_at(point.step)
        model = double_copy(point)
        with torch.no_grad():
            for p, part in zip(model.parameters(), d, strict=True):
                p -= eta * part
        there = gradient(point, model)
        rows.append(
            {
                "alpha": alpha,
                "step_size": eta,
                "distance": eta * norm(d),
                "loss": point.loss(model).item(),
                "grad_norm": norm(there),
                "grad_distance": norm(difference(g, there)),
                "grad_cosine": dot(g, there) / norm(g) / norm(there),
                "grad_distance_summed": sum(norm([d]) for d in difference(g, there)),
            }
        )
    return rows


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


class ElementaryLpNorm(LpNorm):
    """The l_p norm by its formula. Autograd derives its backward pass, which can take many gradients at once."""

    def forward(self, y: Tensor) -> Tensor:
        dims = [d for d in range(y.dim()) if d != 1]
        size = y.abs()
        if self.p == math.inf:
            scale = size.amax(dims, keepdim=True)
        else:
            scale = size.pow(self.p).mean(dims, keepdim=True).pow(1 / self.p)
        unit = [1, -1] + [1] * (y.dim() - 2)
        return self.gamma.view(unit) * (y - y.mean(dims, keepdim=True)) / scale + self.beta.view(unit)


def hessian(point: Point) -> tuple[Tensor, Tensor]:
    """The gradient (n,) and the Hessian (n, n), every second derivative."""
    model = double_copy(point)
    for module in model.modules():
        if isinstance(module, LpNorm):
            module.__class__ = ElementaryLpNorm
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        flat = flatten(torch.autograd.grad(point.loss(model), parameters, create_graph=True))
    try:  # many rows at once, but where a backward pass of ours has no batched form
        rows = [
            torch.cat([r.reshape(len(part), -1) for r in _grads(flat, parameters, part, is_grads_batched=True)], 1)
            for part in torch.eye(len(flat), dtype=flat.dtype).split(64)
        ]
    except RuntimeError:
        rows = [flatten(_grads(entry, parameters))[None] for entry in flat]
    return flat.detach(), torch.cat(rows)


def gauss_newton(point: Point) -> Tensor:
    """J' (Hessian of the loss in the outputs) J (n, n), each output differentiated by itself, with the penalty's c."""
    model = double_copy(point)
    parameters = list(model.parameters())
    total = 0
    for share, outputs, loss in point._passes(model):
        jacobian = torch.stack([
            flatten(torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True))
            for entry in outputs.flatten()
        ])  # fmt: skip
        fixed = outputs.detach()
        curved = torch.autograd.functional.hessian(
            lambda z, loss=loss, like=fixed: loss(z.view_as(like)), fixed.flatten()
        )
        total = total + share * jacobian.T @ curved @ jacobian
    decayed = torch.cat([torch.full((p.numel(),), float(n in point._penalised)) for n, p in model.named_parameters()])
    return total + torch.diag(point._weight_decay * decayed.double())


_grads = functools.partial(torch.autograd.grad, retain_graph=True)


def adam_divisor(gradients: Sequence[Tensor], beta1: float, beta2: float, eps: float) -> Tensor:
    """P of Cohen et al. (2022), eq. 2, after Adam's steps along these gradients (n,), by its recursion."""
    t, average = len(gradients), torch.zeros_like(gradients[0])
    for g in gradients:
        average = beta2 * average + (1 - beta2) * g**2
    return (1 - beta1**t) * ((average / (1 - beta2**t)) ** 0.5 + eps)


def rmsprop_divisor(gradients: Sequence[Tensor], alpha: float, eps: float) -> Tensor:
    average = torch.zeros_like(gradients[0])
    for g in gradients:
        average = alpha * average + (1 - alpha) * g**2
    return average**0.5 + eps


def preconditioned(point: Point, divisor: Tensor) -> float:
    """The largest eigenvalue of P^-1/2 H P^-1/2, with every second derivative."""
    _, h = hessian(point)
    return float(torch.linalg.eigvalsh(h / (divisor[:, None] * divisor).sqrt())[-1])


def loss_on_line(point: Point, d: Sequence[Tensor], eta: float) -> float:
    model = double_copy(point)
    with torch.no_grad():
        for p, part in zip(model.parameters(), d, strict=True):
            p -= eta * part
    return point.loss(model).item()


def rising_on_line(point: Point, direction: str = "gradient") -> Callable[[float], bool]:
    g = gradient(point, double_copy(point))
    d = g if direction == "gradient" else random_direction(point, g)
    start = loss_on_line(point, d, 0.0)
    return lambda eta: not loss_on_line(point, d, eta) <= start


def critical_lr(point: Point, direction: str = "gradient", shortest: float = 1e-9, longest: float = 1e4) -> float:
    """The first rise of the loss on the line, by a walk along it and a dense search where the walk meets the rise."""
    g = gradient(point, double_copy(point))
    d = g if direction == "gradient" else random_direction(point, g)
    if dot(g, d) <= 0:
        return 0.0 if dot(g, d) < 0 else math.nan
    rises = rising_on_line(point, direction)
    etas = list(point.config.lr * np.geomspace(shortest, longest, 200))
    place = next((i for i, eta in enumerate(etas) if rises(eta)), None)
    if place is None:
        return math.nan
    return next(eta for eta in np.linspace(etas[place - 1], etas[place], 100) if rises(eta))


def batch_sharpness(point: Point, batches: int) -> tuple[float, float]:
    """The mean of g'Hg / g'g of each batch, with every second derivative, and its standard error.

    The batches are those of the training steps that the point's seed and step stand for.
    """
    ratios = []
    for place in range(batches):
        random = generator(point.config.seed, "batches", point.step, place)
        step = int(torch.randint(2**31, (), generator=random))
        inputs, targets = (v.double() if v.is_floating_point() else v for v in point.problem.batch(step))
        g, h = hessian(dataclasses.replace(point, inputs=inputs, targets=targets, step=step))
        ratios.append(float(g @ h @ g / (g @ g)))
    mean = sum(ratios) / batches
    variance = sum((ratio - mean) ** 2 for ratio in ratios) / (batches - 1) if batches > 1 else math.nan
    return mean, math.sqrt(variance / batches)


def ics(point: Point, after: dict[str, Tensor] | None = None) -> list[dict[str, float]]:
    """Definition 2.1, with one pass of the whole network per layer and a step of torch.optim.SGD.

    Args:
        point: The point.
        after: The parameters after the step of another optimiser.
    """
    model = double_copy(point)
    g = dict(zip(dict(model.named_parameters()), gradient(point, model), strict=True))
    optimiser = torch.optim.SGD(model.parameters(), lr=point.config.lr, momentum=point.config.momentum)
    for p, velocity in zip(model.parameters(), point.velocity, strict=False):
        optimiser.state[p]["momentum_buffer"] = velocity.double().clone()
    optimiser.step()
    after = after or {name: p.detach().clone() for name, p in model.named_parameters()}
    rows, moved = [], []
    for _, names in point.layers:
        mixed = double_copy(point)
        with torch.no_grad():
            for name, p in mixed.named_parameters():
                if name in moved:
                    p.copy_(after[name])
        updated = dict(zip(dict(mixed.named_parameters()), gradient(point, mixed), strict=True))
        before, then = [g[name] for name in names], [updated[name] for name in names]
        rows.append(
            {
                "grad_norm": norm(before),
                "grad_norm_updated": norm(then),
                "ics": norm(difference(before, then)),
                "cosine": dot(before, then) / norm(before) / norm(then),
            }
        )
        moved += names
    return rows


def transformer(model: nn.Module, windows: Tensor, name: str = "", output: Tensor | None = None) -> tuple[Tensor, Maps]:
    """The logits of a transformer in elementary operations, and the input and output of each of its linear maps.

    Args:
        model: The network, for its norms and parameters.
        windows: The characters (B, T).
        name: A layer whose output is replaced.
        output: What replaces it, (B T, units).
    """
    maps: Maps = {}

    def linear(layer: str, x: Tensor, at: nn.Linear) -> Tensor:
        y = torch.einsum("ni,oi->no", x, at.weight)
        y = y if at.bias is None else y + at.bias
        maps[layer] = x, y
        return output if layer == name else y

    def attention(qkv: Tensor, heads: int) -> Tensor:
        queries, keys, values = qkv.chunk(3, 1)
        size, length = queries.shape[1] // heads, windows.shape[1]
        columns = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            rows = []
            for place in range(len(qkv)):
                first = place - place % length  # of the window
                seen = slice(first, place + 1)
                weights = torch.softmax(keys[seen, part] @ queries[place, part] / math.sqrt(size), 0)
                rows.append(weights @ values[seen, part])
            columns.append(torch.stack(rows))
        return torch.cat(columns, 1)

    places = torch.arange(windows.numel()) % windows.shape[1]
    x = model.tokens.weight[windows.flatten()] + model.positions.weight[places]
    for block_name, block in model.named_children():
        if not block_name.startswith("block"):
            continue
        qkv = linear(f"{block_name}.qkv", block.qkv.norm(x), block.qkv.linear)
        x = x + linear(f"{block_name}.attn_out", attention(qkv, block.heads), block.attn_out)
        hidden = linear(f"{block_name}.fc", block.fc.norm(x), block.fc.linear)
        active = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(f"{block_name}.mlp_out", active, block.mlp_out)
    logits = linear("head", model.head.norm(x), model.head.linear)
    return logits.view(*windows.shape, -1), maps


def feeding(point: Point, name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A float64 network at the point's step, and the layer's inputs, linear outputs and norm outputs."""
    model = double_copy(point)
    prepare(model.modules(), point.config.seed, point.step)
    if point.config.problem == "gpt":
        x, y = transformer(model, point.inputs)[1][name]
        return model, x.detach(), y.detach(), y.detach()  # no norm takes the output
    x = point.inputs.double()
    for layer_name, layer in model.layers.items():
        if layer_name == name:
            y = layer.linear(x)
            return model, x.detach(), y.detach(), layer.norm(y).detach()
        x = layer(x)
    raise KeyError(name)


def moments(values: Tensor) -> dict[str, float]:
    """The definitions, sums over every value."""
    m, mean = len(values), sum(values.tolist()) / len(values)
    second, third, fourth = (sum((v - mean) ** k for v in values.tolist()) / m for k in (2, 3, 4))
    return {"mean": mean, "std": second**0.5, "skewness": third / second**1.5, "kurtosis": fourth / second**2 - 3}


class TwoNetworks:
    """Figure 5 for one unit: L (the plain network) of what feeds the rest, and L with BatchNorm of y."""

    def __init__(self, point: Point, name: str, unit: int, affine: str) -> None:
        self.model, self.x, self.y, _ = feeding(point, name)
        self.point, self.name, self.unit = point, name, unit
        self.dims = [d for d in range(self.y.dim()) if d != 1]
        shape = [1, -1] + [1] * (self.y.dim() - 2)
        self.sigmas, self.mus = self.y.std(self.dims, unbiased=False), self.y.mean(self.dims)
        identity = affine == "identity"
        self.gammas = (self.sigmas if identity else torch.ones_like(self.sigmas)).view(shape)
        self.betas = (self.mus if identity else torch.zeros_like(self.mus)).view(shape)
        self.gamma, self.sigma = float(self.gammas.flatten()[unit]), float(self.sigmas[unit])
        self.m = self.y[:, unit].numel()
        self.z = self.norm(self.y)
        self.yhat = (self.column(self.y) - self.mus[unit]) / self.sigma

    def norm(self, y: Tensor) -> Tensor:
        centred = y - y.mean(self.dims, keepdim=True)
        return self.gammas * centred / centred.square().mean(self.dims, keepdim=True).sqrt() + self.betas

    def column(self, tensor: Tensor) -> Tensor:
        return tensor[:, self.unit].flatten()

    def rest(self, z: Tensor) -> Tensor:
        if self.point.config.problem == "gpt":
            logits, _ = transformer(self.model, self.point.inputs, self.name, z)
            return nn.functional.nll_loss(logits.log_softmax(-1).flatten(0, 1), self.point.targets.flatten())
        layers = dict(self.model.layers)
        place = list(layers).index(self.name)
        z = layers[self.name].rest(z)
        for layer in list(layers.values())[place + 1 :]:
            z = layer(z)
        targets = self.point.targets
        return self.point.problem.objective(z, targets.double() if targets.is_floating_point() else targets)

    def replaced(self, tensor: Tensor, values: Tensor) -> Tensor:
        others = torch.arange(tensor.shape[1]) == self.unit
        mask = others.view([1, -1] + [1] * (tensor.dim() - 2))
        return torch.where(mask, values.view(tensor[:, self.unit].shape).unsqueeze(1), tensor)

    def plain(self, values: Tensor) -> Tensor:
        """L of what the unit feeds to the rest, all other units as BatchNorm has them."""
        return self.rest(self.replaced(self.z, values))

    def plain_at_y(self, values: Tensor) -> Tensor:
        return self.rest(self.replaced(self.y, values))

    def normalised(self, values: Tensor) -> Tensor:
        """L of the unit's y, with BatchNorm after it."""
        return self.rest(self.norm(self.replaced(self.y, values)))

    def inputs(self) -> Tensor:
        """The layer's inputs as a matrix (m, d), a convolution's patches cut out one by one."""
        linear = None if self.point.config.problem == "gpt" else self.model.layers[self.name].linear
        if not isinstance(linear, nn.Conv2d):
            return self.x
        padded = nn.functional.pad(self.x, (1, 1, 1, 1))
        rows, columns = self.y.shape[2:]
        patches = [padded[:, :, i : i + 3, j : j + 3].flatten(1) for i in range(rows) for j in range(columns)]
        return torch.cat(patches)


def slope(f, values: Tensor) -> Tensor:
    values = values.clone().requires_grad_()
    return torch.autograd.grad(f(values), values)[0]


def bend(f, values: Tensor, v: Tensor) -> float:
    """v'Hv: by every entry of the Hessian where it is small, else by one product with it."""
    if len(values) <= 40:
        return float(v @ torch.autograd.functional.hessian(f, values) @ v)
    return float(torch.autograd.functional.vhp(f, values, v)[1] @ v)


def statements(point: Point, name: str, unit: int, affine: str) -> dict[str, tuple[float, float]]:
    """(left, right) of the statements, as PAPER.md and the module's derivation have them."""
    net = TwoNetworks(point, name, unit, affine)
    y, z, m, yhat = net.column(net.y), net.column(net.z), net.m, net.yhat
    g, v = slope(net.plain, z), slope(net.normalised, y)
    ratio = net.gamma**2 / net.sigma**2

    def reduced(g: Tensor) -> float:
        return float(ratio * (g @ g - g.sum() ** 2 / m - (g @ yhat) ** 2 / m))

    largest = float(torch.linalg.matrix_norm(net.inputs(), 2)) ** 2
    reduction = net.gamma / (m * net.sigma**2) * float(g @ yhat) * float(v @ v)
    second, bound = (ratio * bend(net.plain, z, along) - reduction for along in (v, g))
    form = bend(net.normalised, y, v)
    backward = [net.gamma / (m * net.sigma) * (m * g[b] - g.sum() - yhat[b] * (g * yhat).sum()) for b in range(m)]
    mean = float(g.mean())
    worst = ratio * (largest * float(g @ g) - m * mean**2 * largest - largest / m * float(g @ yhat) ** 2)
    return {
        "fact C.1": (float(v.norm()), float(torch.stack(backward).norm())),
        "4.1": (float(v @ v), reduced(g)),
        "4.2": (form, second),
        "4.2b": (form, bound),
        "C.1": (largest**2 * form, largest**2 * bound),
        "4.4": (largest * float(v @ v), worst),
        "4.3": (float(z.norm()), float(y.norm())),
        "4.1 at y": (float(v @ v), reduced(slope(net.plain_at_y, y))),
    }


def largest_form(g: Tensor, hessian: Tensor, limit: float) -> float:
    """The largest w'Hw, w = XX'g, over all X of spectral norm at most `limit`, by minimising the dual in nu.

    nu is above every eigenvalue and 0, and searched as its distance from there on a log scale.
    """
    values, vectors = torch.linalg.eigh(hessian)
    along, floor = (vectors.T @ g).square(), max(0.0, float(values[-1]))

    def dual(log: float) -> float:
        nu = floor + float(np.exp(log))
        return float(limit**4 * nu**2 / 4 * (along / (nu - values)).sum())

    return float(optimize.minimize_scalar(dual, bounds=(-20, 10), options={"xatol": 1e-10}).fun)


def nearest_on_ray(begun: Tensor, optimum: Tensor) -> float:
    """The squared distance from W_0 to the ray a W*, a >= 0, by a search along it."""
    found = optimize.minimize_scalar(
        lambda a: float((begun - a * optimum).square().sum()), bounds=(0, 10), options={"xatol": 1e-12}
    )
    return float(found.fun)
