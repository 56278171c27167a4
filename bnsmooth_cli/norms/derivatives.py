r"""The derivatives of the scales of BatchNorm and of the l_p norms, for backward passes and Taylor polynomials.

For one unit with m activations z, both norms compute $y = \gamma c / s + \beta$ with $c = z - \mu$ and a scale s of u:
u = c for BatchNorm, which is `centred` and has p = 2, and u = z for an l_p norm. Two functions describe the scale:
$$q = m \frac{\partial s}{\partial z} = s^{1-p} |u|^{p-1} \operatorname{sign} u, \qquad
\mathrm{d} q = b \, \mathrm{d} u + (1 - p) \frac{q}{s} \mathrm{d} s, \quad b = (p - 1) s^{1-p} |u|^{p-2}.$$
For p = 1 and p = inf, q is piecewise constant along the ray of u, and $\mathrm{d} q = 0$.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.norms.batch import EPSILON


def lp_scale(u: Float[Tensor, "m units"], p: float) -> Float[Tensor, " units"]:
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
        size = u.abs() / peak
        powers = (torch.where(size > 0, size, 1.0).pow(p) * (size > 0)).mean(0)  # at 0, |u|^p may have no second one
        s = powers.clamp_min(torch.finfo(u.dtype).tiny).pow(1 / p) * peak
    return s.clamp_min(EPSILON)


def slope(
    u: Float[Tensor, "rows columns"], s: Float[Tensor, " units"], p: float, repeat: int = 1, out: Tensor | None = None
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, " units"]]:
    """q, as the product of a matrix and one factor per unit.

    Args:
        u: The activations; each unit has `repeat` adjacent columns.
        s: The scale of each unit.
        p: The norm's exponent.
        repeat: The number of columns of a unit.
        out: Memory for the matrix. Without it, the matrix may be u itself.
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


def spread(values: Float[Tensor, " units"], repeat: int) -> Float[Tensor, " columns"]:
    """Repeat the value of each unit for all of the unit's columns."""
    return values if repeat == 1 else values.repeat_interleave(repeat)


def scale_derivatives(
    z: Float[Tensor, "m units"], mean: Float[Tensor, " units"], s: Float[Tensor, " units"], p: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The derivatives of a norm's scale at its activations z with mean `mean` and scale s.

    Returns:
        c; the matrix and the factors of q; and b, as a matrix (m, units), as one value per unit for p = 2, or as None
        if it is zero.
    """
    c = z - mean
    u = c if centred else z
    direction, factor = slope(u, s, p)
    b: Tensor | None = None
    if p not in (1, math.inf):
        b = 1 / s if p == 2 else (u.abs() / s).pow_(p - 2).mul_((p - 1) / s)
    if not centred:  # a scale clamped at EPSILON is constant
        alive = (s > EPSILON).to(s.dtype)
        factor, b = factor * alive, None if b is None else b * alive
    return c, direction, factor, b


def as_matrix(y: Float[Tensor, "batch units *positions"]) -> Float[Tensor, "m units"]:
    """Activations with one column per unit: a view if the channels come last in memory."""
    return y.movedim(1, -1).reshape(-1, y.shape[1])
