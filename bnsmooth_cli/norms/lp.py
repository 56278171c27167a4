"""The l_p norms (Santurkar et al. 2018, section 3.3), with a backward pass of their own."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from bnsmooth_cli.norms.batch import EPSILON, MOMENTUM, UnitNorm
from bnsmooth_cli.norms.derivatives import as_matrix, lp_scale, slope, spread


class LpNorm(UnitNorm):
    r"""The l_p normalisation (Santurkar et al. 2018, section 3.3): $\gamma (y - \mu) / s_p + \beta$.

    The scale $s_p = (\frac1m \sum |y|^p)^{1/p}$ includes the mean of the activations ($s_\infty = \max |y|$). A unit
    whose activations are all below EPSILON is divided by EPSILON, so that a dead unit stays finite.

    >>> y = torch.randn(64, 3)
    >>> torch.allclose(LpNorm(3, math.inf)(y), (y - y.mean(0)) / y.abs().amax(0))
    True
    """

    running_mean: Tensor
    running_scale: Tensor

    def __init__(self, num_features: int, p: float) -> None:
        super().__init__(num_features)
        self.p = p
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_scale", torch.ones(num_features))

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.normalise(y, self.running_mean, self.running_scale)
        out, mean, scale = _FusedLpNorm.apply(y, self.gamma, self.beta, self)
        if self.update_statistics:
            self.running_mean.lerp_(mean.to(self.running_mean), MOMENTUM)  # under autocast they have fewer bits
            self.running_scale.lerp_(scale.to(self.running_scale), MOMENTUM)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_features}, p={self.p:g}"


class _FusedLpNorm(torch.autograd.Function):
    r"""LpNorm's forward and backward with few passes over memory, which cost more than the arithmetic.

    With $r = \gamma / s$ and $g$ the gradient at the output, $\dot s = -\frac{r}{s} \sum g (y - \mu)$ and the gradient
    at y is $r g - \frac{r}{m} \sum g + \dot s \, \partial s / \partial y$, where `slope` computes
    $m \, \partial s / \partial y$.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, norm: LpNorm) -> tuple[Tensor, Tensor, Tensor]:
        ctx.norm = norm
        dense = _dense(y)
        out = torch.empty_like(dense)
        (rows, repeat), (result, _) = _rows(dense), _rows(out)
        mean, scale = _statistics(rows, repeat, norm.p, result)
        # The scale is at least |mean|, so no digits are lost between the two products.
        ratio = gamma / scale
        constant = torch.addcmul(beta, ratio, mean, value=-1)
        torch.addcmul(spread(constant, repeat), rows, spread(ratio, repeat), out=result)
        ctx.save_for_backward(y, gamma, mean, scale)
        ctx.mark_non_differentiable(mean, scale)
        return out, mean, scale

    @staticmethod
    def backward(ctx: Any, g: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, mean, scale = ctx.saved_tensors
        norm: LpNorm = ctx.norm
        if torch.is_grad_enabled():  # the gradient will be differentiated, so use elementary operations
            # Views, because y may depend on gamma: in a norm that acts twice.
            y, gamma, beta = y.view_as(y), gamma.view_as(gamma), torch.zeros_like(gamma, requires_grad=True)
            z = as_matrix(y)
            out = (z - z.mean(0)) * (gamma / lp_scale(z, norm.p)) + beta
            needed = [x for x, needs in zip((y, gamma, beta), ctx.needs_input_grad, strict=False) if needs]
            slopes = iter(torch.autograd.grad(out, needed, as_matrix(g), create_graph=True, materialize_grads=True))
            return *(next(slopes) if needs else None for needs in ctx.needs_input_grad[:3]), None
        y = _dense(y)
        g = _dense(g, like=y)
        count = y.numel() // y.shape[1]
        # BatchNorm's backward with fixed statistics computes the sums of g (y - mean) and of g. It adds numbers
        # one by one, so that sums over blocks are more accurate than one sum over all rows.
        options = None, mean, torch.ones_like(mean), None, None, False, 0.0, [False, True, True]
        pairs = zip(_blocks(g), _blocks(y), strict=True)
        sums = [torch.ops.aten.native_batch_norm_backward(*pair, *options) for pair in pairs]
        grad_gamma, grad_beta = (torch.stack(parts).sum(0) for parts in list(zip(*sums, strict=True))[1:])
        ratio = gamma / scale
        grad_gamma /= scale
        mean_factor = ratio / -count
        # A scale clamped at EPSILON is constant.
        scale_factor = (mean_factor * grad_gamma).masked_fill_(scale <= EPSILON, 0)
        out = torch.empty_like(y)
        (rows, repeat), (grad_rows, _), (result, _) = _rows(y), _rows(g), _rows(out)
        direction, factor = slope(rows, scale, norm.p, repeat, out=result)
        constant = spread(mean_factor * grad_beta, repeat)
        torch.addcmul(constant, direction, spread(scale_factor * factor, repeat), out=result)
        result.addcmul_(grad_rows, spread(ratio, repeat))
        return out, grad_gamma, grad_beta, None


#: The number of elements that stay in a CPU's cache between two operations.
_BLOCK: Final = 2**20


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    """Split along the first dimension into blocks that fit a CPU's cache. Other devices get a single block."""
    return values.split(max(1, _BLOCK // values[0].numel()) if values.device.type == "cpu" else len(values))


def _statistics(rows: Tensor, repeat: int, p: float, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """The means and scales s_p of the units, (C,) each, computed block by block. Overwrites `scratch`."""
    blocks = _blocks(rows)
    sums = rows.new_empty(3, len(blocks), rows.shape[1])
    for block, total, power, peak in zip(blocks, *sums, strict=True):
        work = scratch[: len(block)]
        torch.sum(block, 0, out=total)
        if p == 2:
            torch.mul(block, block, out=work)
        else:
            torch.abs(block, out=work)
        if p not in (1, 2):
            torch.amax(work, 0, out=peak)
            if p == math.inf:
                continue
            work.div_(peak.clamp_min_(EPSILON)).pow_(p)  # divided by the largest: |y|^p of a large p would overflow
        torch.sum(work, 0, out=power)

    totals, powers, peaks = sums.view(3, len(blocks), -1, repeat)
    count = rows.numel() // totals.shape[1]
    mean = totals.sum((0, 2)) / count
    if p == 1:
        scale = powers.sum((0, 2)) / count
    elif p == 2:
        scale = (powers.sum((0, 2)) / count).sqrt_()
    else:
        scale = peaks.amax((0, 2))
        if p != math.inf:
            share = peaks.div_(scale[:, None]).pow_(p).mul_(powers).sum((0, 2)) / count
            scale *= share.clamp_min_(torch.finfo(rows.dtype).tiny).pow_(1 / p)
    return mean, scale.clamp_min_(EPSILON)


def _dense(y: Tensor, like: Tensor | None = None) -> Tensor:
    """y as a dense tensor, in the layout of `like` or, by default, in its own: channels last or contiguous."""
    layout = torch.contiguous_format
    if y.dim() == 4 and (y if like is None else like).is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    return y.contiguous(memory_format=layout)


def _rows(y: Tensor) -> tuple[Tensor, int]:
    """View dense activations as a matrix with each column in a single unit.

    Returns:
        The matrix and the number of adjacent columns of a unit: (N H W, C) and 1 if the channels come last in memory,
        otherwise (N, C H W) and H W.
    """
    if y.dim() == 2 or y.is_contiguous():
        return y.flatten(1), y[0, 0].numel()
    return y.movedim(1, -1).flatten(0, -2), 1
