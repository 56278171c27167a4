r"""The derivatives of BatchNorm and of the l_p norms, which training, Hessian products and Taylor polynomials share.

For one unit with m activations z, both norms compute $y = \gamma c / s + \beta$ with $c = z - \mu$ and a scale s of u:
u = c for BatchNorm, which is `centred` and has p = 2, and u = z for an l_p norm. Two functions describe the scale:
$$q = m \frac{\partial s}{\partial z} = s^{1-p} |u|^{p-1} \operatorname{sign} u, \qquad
\mathrm{d} q = b \, \mathrm{d} u + (1 - p) \frac{q}{s} \mathrm{d} s, \quad b = (p - 1) s^{1-p} |u|^{p-2}.$$
For p = 1 and p = inf, q is piecewise constant along the ray of u, and $\mathrm{d} q = 0$.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.norms.batch import EPSILON


def scale(u: Float[Tensor, "m units"], p: float) -> Float[Tensor, " units"]:
    r"""The scale $s_p = (\frac1m \sum |u|^p)^{1/p}$ of every unit, at least EPSILON, in operations that autograd
    differentiates to any order."""
    if p == 1:
        s = u.abs().mean(0)
    elif p == 2:
        s = u.square().mean(0).clamp_min(EPSILON**2).sqrt()
    elif p == math.inf:
        s = u.abs().amax(0)
    else:
        peak = u.detach().abs().amax(0).clamp_min(EPSILON)  # |u|^p of a large p would overflow
        powers = (u.abs() / peak).pow(p).mean(0)
        s = powers.clamp_min(torch.finfo(u.dtype).tiny).pow(1 / p) * peak
    return s.clamp_min(EPSILON)


def slope(
    u: Float[Tensor, "rows columns"], s: Float[Tensor, " units"], p: float, repeat: int = 1, out: Tensor | None = None
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " units"]]:
    """q as a matrix and a factor of each unit, whose product it is.

    Args:
        u: The activations; each unit has `repeat` adjacent columns.
        s: The scale of each unit.
        p: The norm's exponent.
        repeat: The number of columns of a unit.
        out: Memory for the matrix, which may otherwise be u itself.
    """
    if p == 1:
        return torch.sign(u, out=out), torch.ones_like(s)
    if p == 2:
        return u, 1 / s
    size = torch.abs(u, out=out)
    if p == math.inf:  # several largest activations share the derivative, as in autograd
        share = size.eq_(spread(s, repeat)).mean(0).view(-1, repeat).mean(1).clamp_min_(1 / u.numel())
        return size.mul_(u), 1 / (s * share)
    return size.div_(spread(s, repeat)).pow_(p - 1).copysign_(u), torch.ones_like(s)


def bend(u: Float[Tensor, "m units"], s: Float[Tensor, " units"], p: float) -> Float[Tensor, ...] | None:
    """b as a matrix (m, units) or, for p = 2, a value of each unit (units,); None where it is zero."""
    if p in (1, math.inf):
        return None
    if p == 2:
        return 1 / s
    return (u.abs() / s).pow_(p - 2).mul_((p - 1) / s)


def spread(values: Float[Tensor, " units"], repeat: int) -> Float[Tensor, " columns"]:
    """A value of each unit, for all of the unit's columns."""
    return values if repeat == 1 else values.repeat_interleave(repeat)


class ScaleDerivatives(NamedTuple):
    """What the second derivatives of a norm need: c and the matrix and factor of q, and b (None where it is zero)."""

    c: Tensor
    direction: Tensor
    factor: Tensor
    bend: Tensor | None


def scale_derivatives(
    z: Float[Tensor, "m units"], mean: Float[Tensor, " units"], s: Float[Tensor, " units"], p: float, centred: bool
) -> ScaleDerivatives:
    """The derivatives of a norm's scale at its activations z with mean `mean` and scale s."""
    c = z - mean
    u = c if centred else z
    direction, factor = slope(u, s, p)
    b = bend(u, s, p)
    if not centred:  # a scale that is held at EPSILON does not move
        alive = (s > EPSILON).to(s.dtype)
        factor, b = factor * alive, None if b is None else b * alive
    return ScaleDerivatives(c, direction, factor, b)


def as_matrix(y: Float[Tensor, "batch units *positions"]) -> Float[Tensor, "m units"]:
    """Activations with one column per unit: a view if the channels come last in memory."""
    return y.movedim(1, -1).reshape(-1, y.shape[1])


class NormGradient(torch.autograd.Function):
    r"""The gradients of a norm in z, gamma and beta as a function that is differentiated itself.

    With $r = \gamma / s$, $T_g = \sum g$, $A = \sum g c$ and $k = r A / s$ they are
    $$g_z = r g - \frac{r}{m} T_g - \frac{k}{m} q, \qquad g_\gamma = A / s, \qquad g_\beta = T_g.$$
    `backward` differentiates $\langle a, g_z \rangle + b \, g_\gamma + t \, g_\beta$ in g, z and gamma. PyTorch's own
    formula for BatchNorm is a long chain of elementary operations; this one passes over the activations a few times.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, y: Tensor, gamma: Tensor, mean: Tensor, s: Tensor, p: float, centred: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, direction, factor, _ = scale_derivatives(as_matrix(y), mean, s, p, centred)
        ctx.save_for_backward(g, y, gamma, mean, s)
        ctx.p, ctx.centred = p, centred
        g, r, m = as_matrix(g), gamma / s, len(c)
        total, along = g.sum(0), (g * c).sum(0)
        k = r * along / s
        gradient = torch.addcmul(-r * total / m, g, r).addcmul_(direction, -k * factor / m)
        return _like(gradient, y), along / s, total

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor | None, ...]:
        g, y, gamma, mean, s = ctx.saved_tensors
        if torch.is_grad_enabled():  # a third derivative is to follow
            gradients = _elementary_gradients(g, y, gamma, s, None if ctx.centred else ctx.p)
            inputs = [tensor for tensor in (g, y, gamma) if tensor.requires_grad]
            products = iter(torch.autograd.grad(gradients, inputs, (a, b, t), create_graph=True, allow_unused=True))
            return *(next(products) if v.requires_grad else None for v in (g, y, gamma)), None, None, None, None
        c, direction, factor, curved = scale_derivatives(as_matrix(y), mean, s, ctx.p, ctx.centred)
        g, a, r, m = as_matrix(g), as_matrix(a), gamma / s, len(c)
        total, along = g.sum(0), (g * c).sum(0)
        k, mean_a = r * along / s, a.mean(0)
        work = a * g
        t_ag = work.sum(0) - mean_a * total
        q_a = factor * torch.mul(a, direction, out=work).mean(0)
        kappa = (b - r * q_a) / s
        in_g = torch.addcmul(t - r * mean_a, a, r).addcmul_(c, kappa)
        in_s = (2 * k * q_a - r * t_ag - b * along / s) / s
        constant = -kappa * total / m
        if curved is not None:
            in_s = in_s + (ctx.p - 1) * k * q_a / s
            if ctx.centred:  # then p = 2, and `curved` has a value of each unit
                constant = constant + k * curved * mean_a / m
        in_z = torch.addcmul(constant, g, kappa, out=work).addcmul_(direction, in_s * factor / m)
        if curved is not None:
            in_z.addcmul_(a, curved * (-k / m))
        in_gamma = (t_ag - along * q_a / s) / s
        return _like(in_g, y), _like(in_z, y), in_gamma, None, None, None, None


def _elementary_gradients(g: Tensor, y: Tensor, gamma: Tensor, s: Tensor, p: float | None) -> tuple[Tensor, ...]:
    """`NormGradient` in operations that autograd differentiates to any order; p is None for BatchNorm."""
    beta = torch.zeros_like(gamma, requires_grad=True)
    z = as_matrix(y)
    c = z - z.mean(0)
    if p is None:
        variance = c.square().mean(0)
        scales = (variance + (s.square() - variance).detach()).sqrt()  # the difference is epsilon
    else:
        scales = scale(z, p)
    out = c * (gamma / scales) + beta
    return torch.autograd.grad(out, (y, gamma, beta), as_matrix(g), create_graph=True)


def _like(matrix: Float[Tensor, "m units"], y: Tensor) -> Tensor:
    """A matrix as activations in the shape of y."""
    return matrix.view(y.movedim(1, -1).shape).movedim(-1, 1)


class TwiceDifferentiableBatchNorm(torch.autograd.Function):
    """BatchNorm over the batch's statistics, whose second derivative is `NormGradient`'s."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
        out, mean, inverse = torch.ops.aten.native_batch_norm(y, gamma, beta, None, None, True, 0.0, epsilon)
        ctx.save_for_backward(y, gamma, mean, 1 / inverse)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, mean, s = ctx.saved_tensors
        return *NormGradient.apply(g, y, gamma, mean, s, 2.0, True), None
