r"""Second derivatives of a network along many directions at once, by propagating Taylor polynomials forward.

Along the curve $x(t) = x_0 + t x_1 + \frac{t^2}{2} x_2 + \dots$ every module maps $(x_0, x_1, x_2)$, the value and its
first two derivatives at t = 0, to those of its output (Griewank & Walther 2008, "Evaluating Derivatives", chapter 13).
$x_0$ is computed once for all directions, nothing is recorded, and a direction costs two forward passes, or one as long
as the network is piecewise linear: several times less than a Hessian-vector product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp
from torch.func import functional_call
from torch.nn import functional as F

from bnsmooth_cli.networks.chain import Layer
from bnsmooth_cli.norms.batch import EPSILON, BatchNorm
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.norms.noise import Noise

#: Numbers in x1 of the directions that are taken together.
CHUNK: Final = 2**22

#: x0 (N, ...); x1 and x2 (K, N, ...) for K directions. An x2 of None is zero.
Jet = tuple[Tensor, Tensor, Tensor | None]


def second_derivatives(
    modules: Iterable[nn.Module], objective: Callable[[Tensor], Tensor], z: Tensor, direction: Tensor, units: Tensor
) -> Tensor:
    r"""$\frac{d^2}{dt^2} f(z + t v_j)$ at t = 0 for each j in `units`: $v_j^T H_{jj} v_j$, H the Hessian of f at z.

    f is the objective of the modules applied in turn, $v_j$ is `direction` in unit j and 0 elsewhere; z and the
    direction have shape (N, C) or (N, C, H, W), the result the units' order.

    >>> z, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    >>> second_derivatives([], lambda x: (x**3).sum(), z, v, torch.tensor([0, 1]))
    tensor([ 6., 12.])
    """
    modules = list(modules)
    results = [z.new_zeros(0)]
    with torch.no_grad():
        for chosen in units.split(max(1, CHUNK // z.numel())):
            x1 = z.new_zeros(len(chosen), *z.shape)
            for k, unit in enumerate(chosen.tolist()):
                x1[k, :, unit] = direction[:, unit]
            jet: Jet = (z, x1, None)
            for module in modules:
                jet = propagate(module, jet)
            results.append(_end(objective, jet))
    return torch.cat(results)


def _end(objective: Callable[[Tensor], Tensor], jet: Jet) -> Tensor:
    r"""The second derivatives of a scalar, $x_1^T H x_1 + \langle g, x_2 \rangle$, (K,)."""
    x0, x1, x2 = jet
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(x0), x0, create_graph=True)
        products = [torch.autograd.grad(g, x0, v, retain_graph=True)[0] for v in x1]
    bent = torch.stack([torch.sum(product * v) for product, v in zip(products, x1, strict=True)])
    return bent if x2 is None else bent + (g.detach() * x2).flatten(1).sum(1)


def has_rule(module: nn.Module) -> bool:
    """Whether a module, and all that it consists of, has a rule below.

    >>> has_rule(nn.Sequential(nn.ReLU(), BatchNorm(3))), has_rule(nn.Sequential(nn.ReLU(), nn.GroupNorm(1, 3)))
    (True, False)
    """
    others = propagate.dispatch(object)
    return all(propagate.dispatch(type(each)) is not others for each in module.modules())


@functools.singledispatch
def propagate(module: nn.Module, jet: Jet) -> Jet:
    """The jet of a module's output: by the module's own rule below, else by differentiating it twice."""
    x0, x1, x2 = jet
    pairs = [curve(module, x0, first) for first in x1]
    velocities, accelerations = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    if x2 is not None:
        accelerations += torch.stack([curve(module, x0, second)[0] for second in x2])
    return module(x0), velocities, accelerations


def curve(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second derivative of f(x + t v) at t = 0, of any f that is differentiable backwards.

    >>> curve(lambda x: x**3, torch.ones(1), torch.ones(1))
    (tensor([3.]), tensor([6.]))
    """

    def velocity(x: Tensor) -> Tensor:
        return jvp(f, x, v, create_graph=True)[1]

    with torch.enable_grad():
        return jvp(velocity, x, v)


@propagate.register
def _(module: Layer, jet: Jet) -> Jet:
    for part in (module.linear, module.norm, module.rest):
        jet = propagate(part, jet)
    return jet


@propagate.register
def _(module: nn.Sequential, jet: Jet) -> Jet:
    return functools.reduce(lambda reached, part: propagate(part, reached), module, jet)


@propagate.register
def _(module: nn.Identity, jet: Jet) -> Jet:
    return jet


@propagate.register(nn.Linear)
@propagate.register(nn.Conv2d)
@propagate.register(nn.Flatten)
def _(module: nn.Module, jet: Jet) -> Jet:
    without_bias = {name: torch.zeros_like(bias) for name, bias in module.named_parameters() if name == "bias"}
    return _linear(jet, module(jet[0]), lambda x: functional_call(module, without_bias, (x,)))


def _linear(jet: Jet, x0: Tensor, f: Callable[[Tensor], Tensor]) -> Jet:
    """The jet whose derivatives go through a linear function of a batch, all directions as one batch."""
    x1, x2 = (None if x is None else f(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in jet[1:])
    assert x1 is not None
    return x0, x1, x2


@propagate.register
def _(module: nn.ReLU, jet: Jet) -> Jet:
    x0, x1, x2 = jet
    on = x0 > 0
    return x0.clamp_min(0), x1 * on, None if x2 is None else x2 * on


@propagate.register
def _(module: nn.MaxPool2d, jet: Jet) -> Jet:
    arguments = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    x0, places = F.max_pool2d(jet[0], *arguments, return_indices=True)
    flat = places.flatten(2)

    def pick(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x.flatten(3).gather(3, flat.expand(len(x), *flat.shape)).unflatten(3, places.shape[2:])

    x1 = pick(jet[1])
    assert x1 is not None
    return x0, x1, pick(jet[2])


@propagate.register
def _(module: Noise, jet: Jet) -> Jet:
    # a -> s a + m with one draw for every direction: s is what the noise adds to m for a = 1.
    x0, x1, x2 = jet
    shift = module(torch.zeros_like(x0))
    scale = module(torch.ones_like(x0)) - shift
    return shift + scale * x0, scale * x1, None if x2 is None else scale * x2


@propagate.register(BatchNorm)
@propagate.register(LpNorm)
def _(module: BatchNorm | LpNorm, jet: Jet) -> Jet:
    r"""$\gamma c / s + \beta$, with centred activations c and the scale s of either norm, by the quotient's rule."""
    x0, x1, x2 = jet
    dims = (0, *range(2, x0.dim()))  # what a unit's statistics are over; a jet's directions come before them
    later = tuple(dim + 1 for dim in dims)

    def mean(x: Tensor) -> Tensor:
        return x.mean(later, keepdim=True)

    c0, c1 = x0 - x0.mean(dims, keepdim=True), x1 - mean(x1)
    c2 = None if x2 is None else x2 - mean(x2)
    s0, s1, s2 = _scale(module, (c0, c1, c2) if isinstance(module, BatchNorm) else jet, dims)
    unit = (-1,) + (1,) * (x0.dim() - 2)
    r0 = module.gamma.view(unit) / s0
    r1, r2 = -s1 / s0 * r0, (2 * (s1 / s0).square() - s2 / s0) * r0
    y2 = c0 * r2 + (2 * r1) * c1
    return c0 * r0 + module.beta.view(unit), c1 * r0 + c0 * r1, y2 if c2 is None else y2.addcmul_(c2, r0)


def _scale(module: BatchNorm | LpNorm, jet: Jet, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    r"""The jet of a norm's scale: $(\frac1m \sum |x|^p)^{1/p}$, p = 2 of the centred activations for BatchNorm."""
    x0, x1, x2 = jet
    later = tuple(dim + 1 for dim in dims)
    p = module.p if isinstance(module, LpNorm) else 2.0

    def mean(weight: Tensor, x: Tensor | None) -> Tensor:
        return x0.new_zeros(()) if x is None else (weight * x).mean(later, keepdim=True)

    if p == math.inf:
        top = x0.abs() == x0.abs().amax(dims, keepdim=True)
        # As autograd has it: several largest values share the derivative.
        weight = x0.sign() * top / top.sum(dims, keepdim=True)
        s0, count = x0.abs().amax(dims, keepdim=True), x0.numel() // x0.shape[1]
        s1, s2 = count * mean(weight, x1), count * mean(weight, x2)
    else:
        peak = x0.abs().amax(dims, keepdim=True).clamp_min(EPSILON)  # |x|^p of a large p would overflow
        size = (x0 / peak).abs()
        powers = size.pow(p)
        q0 = powers.mean(dims, keepdim=True) + (EPSILON / peak**2 if isinstance(module, BatchNorm) else 0)
        slope = p * size.pow(p - 1) * x0.sign() / peak
        q1, q2 = mean(slope, x1), mean(slope, x2)
        if p > 1:
            q2 = q2 + mean(p * (p - 1) * size.pow(p - 2) / peak**2, x1.square())
        s0 = q0.pow(1 / p)
        s1 = s0 / q0 * q1 / p
        s2 = s0 / q0 * q2 / p + (1 / p) * (1 / p - 1) * s0 / q0**2 * q1.square()
        s0, s1, s2 = s0 * peak, s1 * peak, s2 * peak
    if isinstance(module, LpNorm):
        dead = s0 <= EPSILON
        s0, s1, s2 = s0.clamp_min(EPSILON), s1.masked_fill(dead, 0), s2.masked_fill(dead, 0)
    return s0, s1, s2
