r"""Products with the Hessian of a network's loss, by differentiating the gradient's computation along a direction.

Pearlmutter (1994), "Fast exact multiplication by the Hessian": with $\partial$ the derivative along
$\theta + t v$, every module turns its input's $\partial x$ into $\partial y$ on the way forward, and its output's
$\partial (\nabla_y L)$ into $\partial (\nabla_x L)$ and its part of $H v = \partial (\nabla_\theta L)$ on the way back.
What does not depend on v is computed once for all products. A product costs six convolutions a layer where a gradient
costs three; PyTorch's double backward turns two of the six into convolutions with kernels as large as the images, and
each norm's second derivative into a long chain of elementary operations.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.norms.batch import EPSILON, BatchNorm
from bnsmooth_cli.norms.lp import LpNorm, slope
from bnsmooth_cli.norms.noise import Noise

Tensors = Sequence[Tensor]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Where attention and weight normalisation are computed in operations that have a second derivative.

    Fused attention has none; that of the fused weight normalisation takes the norms for constants, and is wrong.
    """
    fused = _WeightNorm.forward
    _WeightNorm.forward = _normalised  # type: ignore[method-assign]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _WeightNorm.forward = fused  # type: ignore[method-assign]


def _normalised(self: _WeightNorm, length: Tensor, direction: Tensor) -> Tensor:
    """g v / ||v||, the norm over all dimensions but one."""
    own = None if self.dim in (None, -1) else self.dim
    others = [d for d in range(direction.dim()) if d != own]
    return length * direction / torch.linalg.vector_norm(direction, dim=others, keepdim=True)


class Hessian:
    """The Hessian H of an objective of a network's outputs at its parameters (n,), as a function: v (n,) to H v (n,).

    `gradient` is the gradient (n,) there. The network and its parameters stay as they are.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> hessian = Hessian(model, torch.tensor([[3.0, 4.0]]), lambda outputs: outputs.square().sum() / 2)
    >>> hessian(torch.tensor([1.0, 0.0]))
    tensor([ 9., 12.])
    """

    def __init__(self, model: nn.Module, inputs: Tensor, objective: Callable[[Tensor], Tensor]) -> None:
        self._sizes = [p.numel() for p in model.parameters()]
        self._shapes = [p.shape for p in model.parameters()]
        self._parts: list[_Part] = []
        x = inputs
        for module in _parts_of(model):
            self._parts.append(_part(module, x))
            x = self._parts[-1].output
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(x), x, create_graph=True)
        self._outputs, self._slope, g = x, g, g.detach()
        found: list[Tensor] = []
        for each in reversed(self._parts):
            g, gradients = each.back(g)
            found[:0] = gradients
        self.gradient = torch.cat([gradient.reshape(-1) for gradient in found])

    @torch.no_grad()
    def __call__(self, v: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(v.split(self._sizes), self._shapes, strict=True)]
        x: Tensor | None = None
        for each in self._parts:
            x = each.push(x, [pieces.pop(0) for _ in range(each.count)])
        assert x is not None
        (g,) = torch.autograd.grad(self._slope, self._outputs, x, retain_graph=True)
        found: list[Tensor] = []
        for each in reversed(self._parts):
            g, products = each.turn(g)
            found[:0] = products
        return torch.cat([product.reshape(-1) for product in found])


def _parts_of(module: nn.Module) -> Iterable[nn.Module]:
    """The modules that a sequence is made of, in order, containers opened."""
    if isinstance(module, Chain):
        children: Iterable[nn.Module] = module.layers.values()
    elif isinstance(module, Layer):
        children = (module.linear, module.norm, module.rest)
    elif isinstance(module, nn.Sequential):
        children = module
    else:
        return [] if isinstance(module, nn.Identity) else [module]
    return [leaf for child in children for leaf in _parts_of(child)]


class _Part(ABC):
    """A module at its input x: its output, and the derivatives there. d is short for the derivative along v."""

    output: Tensor
    count: int  # parameters

    @abstractmethod
    def back(self, g: Tensor) -> tuple[Tensor, Tensors]:
        """The gradients at the input and the parameters from the one at the output; called once."""

    @abstractmethod
    def push(self, dx: Tensor | None, dp: Tensors) -> Tensor:
        """dy from dx (None: zero) and the parameters' dp."""

    @abstractmethod
    def turn(self, dg: Tensor) -> tuple[Tensor, Tensors]:
        """d of what `back` returned, after `push`."""


class _Any(_Part):
    """Any module, by PyTorch's double backward."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        with torch.enable_grad():
            self.inputs = [x.detach().requires_grad_(), *module.parameters()]
            self.y = module(self.inputs[0])
        self.output, self.count = self.y.detach(), len(self.inputs) - 1

    def back(self, g: Tensor) -> tuple[Tensor, Tensors]:
        self.g = g.requires_grad_()
        self.gradients = torch.autograd.grad(self.y, self.inputs, self.g, create_graph=True, materialize_grads=True)
        return self.gradients[0].detach(), [gradient.detach() for gradient in self.gradients[1:]]

    def push(self, dx: Tensor | None, dp: Tensors) -> Tensor:
        given = [torch.zeros_like(self.inputs[0]) if dx is None else dx, *dp]
        # The gradients are linear in g: what multiplies g is the Jacobian.
        dy, *self.bent = self._second([self.g, *self.inputs], given)
        return dy

    def _second(self, wanted: Tensors, given: Tensors) -> Tensors:
        return torch.autograd.grad(self.gradients, wanted, given, retain_graph=True, materialize_grads=True)

    def turn(self, dg: Tensor) -> tuple[Tensor, Tensors]:
        found = torch.autograd.grad(self.y, self.inputs, dg, retain_graph=True, materialize_grads=True)
        dx, *products = (a + b for a, b in zip(found, self.bent, strict=True))
        return dx, products


class _PiecewiseLinear(_Any):
    """A module without parameters whose second derivatives are zero wherever they exist."""

    def push(self, dx: Tensor | None, dp: Tensors) -> Tensor:
        return torch.zeros_like(self.y) if dx is None else self._second([self.g], [dx])[0]

    def turn(self, dg: Tensor) -> tuple[Tensor, Tensors]:
        return torch.autograd.grad(self.y, self.inputs, dg, retain_graph=True)[0], ()


class _Bilinear(_Part):
    r"""$y = W x + b$, linear or a convolution: $\partial y = W \partial x + V x + \partial b$, and so backwards."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.names = module, [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self.x, self.count = x.detach().requires_grad_(), len(self.parameters)
        self.unbiased = {name: torch.zeros_like(p) for name, p in module.named_parameters() if name == "bias"}
        with torch.enable_grad():
            self.y = module(self.x)
        self.output = self.y.detach()

    def back(self, g: Tensor) -> tuple[Tensor, Tensors]:
        self.g = g
        dx, *gradients = torch.autograd.grad(self.y, [self.x, *self.parameters], g, retain_graph=True)
        return dx, gradients

    def push(self, dx: Tensor | None, dp: Tensors) -> Tensor:
        self.through = None
        with torch.enable_grad():
            self.moved = functional_call(self.module, dict(zip(self.names, dp, strict=True)), (self.x,))
            if dx is not None:
                self.through = functional_call(self.module, self.unbiased, (dx,))
        return self.moved.detach() if self.through is None else self.through.detach().add_(self.moved.detach())

    def turn(self, dg: Tensor) -> tuple[Tensor, Tensors]:
        dx, *products = torch.autograd.grad(self.y, [self.x, *self.parameters], dg, retain_graph=True)
        dx += torch.autograd.grad(self.moved, self.x, self.g)[0]
        if self.through is not None:
            products[0] += torch.autograd.grad(self.through, self.parameters[0], self.g)[0]
        return dx, products


class _Normalisation(_Part):
    r"""$y = \gamma c / s + \beta$ with $c = z - \mu$, for a scale s of either norm, as matrices (m, C).

    $m \, \partial s / \partial z = q = s^{1-p} |u|^{p-1} \operatorname{sign} u$, u = c and p = 2 for BatchNorm, u = z
    for an l_p norm; so $\partial s = \frac1m \sum q \, \partial z$ and, along v,
    $\partial q = (1 - p) \frac{\partial s}{s} q + (p - 1) s^{1-p} |u|^{p-2} \partial u$, which is 0 for p = 1 and inf.
    """

    def __init__(self, norm: BatchNorm | LpNorm, x: Tensor) -> None:
        self.count, self.shape = 2, x.movedim(1, -1).shape
        z = self._rows(x.detach())
        self.c, gamma, self.m = z - z.mean(0), norm.gamma.detach(), len(z)
        self.centred = isinstance(norm, BatchNorm)
        self.p = norm.p if isinstance(norm, LpNorm) else 2.0
        if isinstance(norm, LpNorm):
            u, self.s = z, norm.scale(z)
            alive = (self.s > EPSILON).to(z.dtype)
        else:
            u, self.s = self.c, (self.c.square().mean(0) + EPSILON).sqrt()
            alive = torch.ones_like(self.s)
        # q is factor (C,) times direction (m, C), and bend, times du, its own change.
        self.direction, factor = slope(u, self.s, self.p)
        self.factor, self.bend = alive * factor, None
        if self.p == 2:
            self.bend = self.factor
        elif 1 < self.p < math.inf:
            self.bend = alive * (self.p - 1) * (u.abs() / self.s).pow(self.p - 2) / self.s
        self.r = gamma / self.s
        self.output = self._image(torch.addcmul(norm.beta.detach(), self.c, self.r))

    def _rows(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).reshape(-1, x.shape[1])

    def _image(self, rows: Tensor) -> Tensor:
        return rows.view(self.shape).movedim(-1, 1)

    def back(self, g: Tensor) -> tuple[Tensor, Tensors]:
        self.g = self._rows(g)
        out = torch.mul(self.g, self.c)
        self.total, self.along = self.g.sum(0), out.sum(0)
        self.k = self.r * self.along / self.s
        torch.addcmul(-self.r * self.total / self.m, self.g, self.r, out=out)
        out.addcmul_(self.direction, -self.k * self.factor / self.m)
        return self._image(out), [self.along / self.s, self.total]

    def push(self, dx: Tensor | None, dp: Tensors) -> Tensor:
        dgamma, dbeta = dp
        self.dz = torch.zeros_like(self.c) if dx is None else self._rows(dx)
        out = torch.mul(self.direction, self.dz)
        self.dmean, self.ds = self.dz.mean(0), self.factor * out.mean(0)
        self.dr = (dgamma - self.r * self.ds) / self.s
        torch.addcmul(dbeta - self.r * self.dmean, self.dz, self.r, out=out)
        return self._image(out.addcmul_(self.c, self.dr))

    def turn(self, dg: Tensor) -> tuple[Tensor, Tensors]:
        h = self._rows(dg)
        out = torch.mul(h, self.c)
        dtotal, dalong = h.sum(0), out.sum(0) - self.dmean * self.total
        dalong += torch.mul(self.g, self.dz, out=out).sum(0)
        dk = (self.dr * self.along + self.r * dalong - self.k * self.ds) / self.s
        constant = -(self.r * dtotal + self.dr * self.total)
        turned = dk
        if self.bend is not None:
            turned = dk + (1 - self.p) * self.k * self.ds / self.s
            if self.centred:
                constant += self.k * self.bend * self.dmean
        torch.addcmul(constant / self.m, h, self.r, out=out).addcmul_(self.g, self.dr)
        out.addcmul_(self.direction, -turned * self.factor / self.m)
        if self.bend is not None:
            out.addcmul_(self.dz, self.bend * (-self.k / self.m))
        return self._image(out), [dalong / self.s - self.along * self.ds / self.s**2, dtotal]


@functools.singledispatch
def _part(module: nn.Module, x: Tensor) -> _Part:
    """The part that a module is at its input."""
    return _Any(module, x)


@_part.register(nn.Linear)
@_part.register(nn.Conv2d)
def _(module: nn.Linear | nn.Conv2d, x: Tensor) -> _Part:
    if is_parametrized(module):  # its weight is no parameter, but computed
        return _Any(module, x)
    return _Bilinear(module, x)


@_part.register(nn.ReLU)
@_part.register(nn.MaxPool2d)
@_part.register(nn.Flatten)
@_part.register(Noise)
def _(module: nn.Module, x: Tensor) -> _Part:
    return _PiecewiseLinear(module, x)


@_part.register(BatchNorm)
@_part.register(LpNorm)
def _(module: BatchNorm | LpNorm, x: Tensor) -> _Part:
    return _Normalisation(module, x)
