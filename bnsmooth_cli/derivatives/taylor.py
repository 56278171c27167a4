r"""Second derivatives of a network along many directions at once, by propagating Taylor polynomials forward.

Along the curve $x(t) = x_0 + t x_1 + \frac{t^2}{2} x_2 + \dots$ every module maps the value and its first two
derivatives at t = 0, the jet $(x_0, x_1, x_2)$, to that of its output (Griewank & Walther 2008, "Evaluating
Derivatives", chapter 13). $x_0$ is computed once for all directions, and no graph is recorded. A direction costs two
forward passes, or one as long as the modules are piecewise linear: several times less than a Hessian product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnsmooth_cli.networks.chain import Layer
from bnsmooth_cli.norms.batch import EPSILON, BatchNorm
from bnsmooth_cli.norms.derivatives import as_matrix, lp_scale, scale_derivatives
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.norms.noise import Noise

#: The largest number of elements of x1, which limits how many directions are propagated together.
CHUNK: Final = 2**22

#: The value x0 (batch, ...) and its derivatives x1 and x2 (K, batch, ...) along K directions; an x2 of None is zero.
Jet = tuple[Tensor, Tensor, Tensor | None]


def directional_derivatives(
    modules: Iterable[nn.Module],
    objective: Callable[[Tensor], Tensor],
    z: Float[Tensor, "batch units *positions"],
    direction: Float[Tensor, "batch units *positions"],
    units: Int[Tensor, " chosen"],
) -> tuple[Float[Tensor, " chosen"], Float[Tensor, " chosen"]]:
    r"""The first and second derivatives of $f(z + t v_j)$ at t = 0 for each unit j.

    They are $\langle g_j, v_j \rangle$ and $v_j^T H_{jj} v_j$, with g the gradient and H the Hessian of f at z.

    The polynomials are propagated as far as the modules have rules (`has_rule`). The rest goes through PyTorch's double
    backward, one direction after the other.

    Args:
        modules: The modules that f applies in turn.
        objective: Maps their output to the scalar f.
        z: The activations at which f is differentiated.
        direction: The values of each $v_j$ in unit j. Its other units are 0.
        units: The units j.

    >>> z, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    >>> directional_derivatives([], lambda x: (x**3).sum(), z, v, torch.tensor([0, 1]))
    (tensor([ 3., 12.]), tensor([ 6., 12.]))
    """
    modules = list(modules)
    ruled = list(itertools.takewhile(has_rule, modules))
    results = [(z.new_zeros(0), z.new_zeros(0))]
    with torch.no_grad():
        for chosen in units.split(max(1, CHUNK // z.numel())):
            x1 = z.new_zeros(len(chosen), *z.shape)
            for k, unit in enumerate(chosen.tolist()):
                x1[k, :, unit] = direction[:, unit]
            jet: Jet = (z, x1, None)
            for module in ruled:
                jet = propagate(module, jet)
            results.append(_end(lambda x: objective(nn.Sequential(*modules[len(ruled) :])(x)), jet))
    first, second = zip(*results, strict=True)
    return torch.cat(first), torch.cat(second)


def _end(objective: Callable[[Tensor], Tensor], jet: Jet) -> tuple[Tensor, Tensor]:
    r"""The derivatives of a scalar, $\langle g, x_1 \rangle$ and $x_1^T H x_1 + \langle g, x_2 \rangle$, (K,) each."""
    x0, x1, x2 = jet
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(x0), x0, create_graph=True, materialize_grads=True)
        if g.grad_fn is None:  # the objective is linear in x0, or does not use it
            products = [torch.zeros_like(v) for v in x1]
        else:
            products = [torch.autograd.grad(g, x0, v, retain_graph=True, materialize_grads=True)[0] for v in x1]
    g, bent = g.detach(), torch.stack([torch.sum(product * v) for product, v in zip(products, x1, strict=True)])
    return (g * x1).flatten(1).sum(1), bent if x2 is None else bent + (g * x2).flatten(1).sum(1)


def has_rule(module: nn.Module) -> bool:
    """Whether a module and all modules inside it have rules below. A subclass with a forward pass of its own has none.

    >>> has_rule(nn.Sequential(nn.ReLU(), BatchNorm(3))), has_rule(nn.Sequential(nn.ReLU(), nn.GroupNorm(1, 3)))
    (True, False)
    """
    forwards = {kind.forward for kind in propagate.registry if kind is not object}
    return all(getattr(each.forward, "__func__", None) in forwards for each in module.modules())


@functools.singledispatch
def propagate(module: nn.Module, jet: Jet) -> Jet:
    """The jet of a module's output, by the module's own rule below.

    Raises:
        TypeError: For a module without a rule.
    """
    raise TypeError(f"{type(module).__name__} has no rule for Taylor polynomials")


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


def _linear(jet: Jet, x0: Tensor, f: Callable[[Tensor], Tensor]) -> Jet:
    """The jet whose derivatives (K, batch, ...) go through a linear function."""
    _, x1, x2 = jet
    return x0, f(x1), None if x2 is None else f(x2)


@propagate.register(nn.Linear)
@propagate.register(nn.Conv2d)
@propagate.register(nn.Flatten)
def _(module: nn.Module, jet: Jet) -> Jet:
    without_bias = {name: torch.zeros_like(bias) for name, bias in module.named_parameters() if name == "bias"}

    def as_one_batch(x: Tensor) -> Tensor:
        out: Tensor = functional_call(module, without_bias, (x.flatten(0, 1),))
        return out.unflatten(0, x.shape[:2])

    return _linear(jet, module(jet[0]), as_one_batch)


@propagate.register
def _(module: nn.ReLU, jet: Jet) -> Jet:
    on = jet[0] > 0
    return _linear(jet, jet[0].clamp_min(0), lambda x: x * on)


@propagate.register
def _(module: nn.MaxPool2d, jet: Jet) -> Jet:
    arguments = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    x0, places = F.max_pool2d(jet[0], *arguments, return_indices=True)
    flat, shape = places.flatten(2), places.shape[2:]
    return _linear(jet, x0, lambda x: x.flatten(3).gather(3, flat.expand(len(x), *flat.shape)).unflatten(3, shape))


@propagate.register
def _(module: Noise, jet: Jet) -> Jet:
    # a -> s a + m with one draw for every direction: s is what the noise adds to m for a = 1.
    shift = module(torch.zeros_like(jet[0]))
    scale = module(torch.ones_like(jet[0])) - shift
    return _linear(jet, shift + scale * jet[0], lambda x: scale * x)


@propagate.register(BatchNorm)
@propagate.register(LpNorm)
def _(module: BatchNorm | LpNorm, jet: Jet) -> Jet:
    r"""$\gamma c / s + \beta$ by the quotient rule, where $\dot s = \overline{q \dot u}$ and
    $\ddot s = \overline{q \ddot u} + \overline{b \dot u^2} + (1 - p) \dot s^2 / s$ (`norms.derivatives`)."""
    x0, x1, x2 = jet
    dims = (0, *range(2, x0.dim()))  # the statistics run over these; a jet has its directions before them
    unit = (-1,) + (1,) * (x0.dim() - 2)

    def mean(x: Tensor) -> Tensor:
        return x.mean(tuple(dim + 1 for dim in dims), keepdim=True)

    z, centred = as_matrix(x0), isinstance(module, BatchNorm)
    p = module.p if isinstance(module, LpNorm) else 2.0
    mu = z.mean(0)
    s0 = (z.var(0, correction=0) + EPSILON).sqrt() if centred else lp_scale(z, p)
    c, direction, factor, curved = scale_derivatives(z, mu, s0, p, centred)
    c0, q = (matrix.view(x0.movedim(1, -1).shape).movedim(-1, 1) for matrix in (c, direction * factor))
    c1, c2 = x1 - mean(x1), None if x2 is None else x2 - mean(x2)
    u1, u2 = (c1, c2) if centred else (x1, x2)
    s0 = s0.view(unit)
    s1 = mean(q * u1)
    s2 = torch.zeros_like(s1) if u2 is None else mean(q * u2)
    if curved is not None:
        b = curved.view(unit) if curved.dim() == 1 else curved.view(x0.movedim(1, -1).shape).movedim(-1, 1)
        s2 = s2 + mean(b * u1.square()) + (1 - p) * s1.square() / s0
    r0 = module.gamma.view(unit) / s0
    r1, r2 = -s1 / s0 * r0, (2 * (s1 / s0).square() - s2 / s0) * r0
    y2 = c0 * r2 + (2 * r1) * c1
    return c0 * r0 + module.beta.view(unit), c1 * r0 + c0 * r1, y2 if c2 is None else y2.addcmul_(c2, r0)
