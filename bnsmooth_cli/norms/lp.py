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

    $s_p = (\frac1m \sum |y|^p)^{1/p}$ of the activations before the mean is subtracted ($s_\infty = \max |y|$). A unit
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
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_scale.lerp_(scale, MOMENTUM)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_features}, p={self.p:g}"


class _FusedLpNorm(torch.autograd.Function):
    r"""LpNorm's forward and backward by few passes through memory, which cost more than the arithmetic.

    With $r = \gamma / s$ and $g$ the gradient at the output, $\dot s = -\frac{r}{s} \sum g (y - \mu)$ and the gradient
    at y is $r g - \frac{r}{m} \sum g + \dot s \, \partial s / \partial y$; `slope` has $m \, \partial s / \partial y$.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, norm: LpNorm) -> tuple[Tensor, Tensor, Tensor]:
        ctx.norm = norm
        dense = _dense(y)
        out = torch.empty_like(dense)
        (rows, repeat), (result, _) = _rows(dense), _rows(out)
        mean, scale = _statistics(rows, repeat, norm.p, result)
        # A unit's scale is never below its mean's size, so that no digits are lost between the two products.
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
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself: in elementary operations
            beta = torch.zeros_like(gamma, requires_grad=True)
            z = as_matrix(y)
            out = (z - z.mean(0)) * (gamma / lp_scale(z, norm.p)) + beta
            needed = [x for x, needs in zip((y, gamma, beta), ctx.needs_input_grad, strict=False) if needs]
            slopes = iter(torch.autograd.grad(out, needed, as_matrix(g), create_graph=True, materialize_grads=True))
            return *(next(slopes) if needs else None for needs in ctx.needs_input_grad[:3]), None
        y = _dense(y)
        g = _dense(g, like=y)
        count = y.numel() // y.shape[1]
        # Both sums at once, of g (y - mean) and of g, are BatchNorm's backward with given statistics. It adds up number
        # by number, so that the sums of blocks are more exact than one of all.
        given = None, mean, torch.ones_like(mean), None, None, False, 0.0, [False, True, True]
        pairs = zip(_blocks(g), _blocks(y), strict=True)
        sums = [torch.ops.aten.native_batch_norm_backward(*pair, *given) for pair in pairs]
        along, total = (torch.stack(found).sum(0) for found in list(zip(*sums, strict=True))[1:])
        ratio = gamma / scale
        along /= scale  # gamma's gradient
        even = ratio / -count
        # A scale that is held at EPSILON does not move.
        pull = (even * along).masked_fill_(scale <= EPSILON, 0)
        out = torch.empty_like(y)
        (rows, repeat), (arriving, _), (result, _) = _rows(y), _rows(g), _rows(out)
        turned, factor = slope(rows, scale, norm.p, repeat, out=result)
        torch.addcmul(spread(even * total, repeat), turned, spread(pull * factor, repeat), out=result)
        result.addcmul_(arriving, spread(ratio, repeat))
        return out, along, total, None


#: Numbers that stay in a CPU's cache from one operation on them to the next.
_BLOCK: Final = 2**20


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    """Split along the first dimension so that the cache holds a block; whole where no block would stay there."""
    return values.split(max(1, _BLOCK // values[0].numel()) if values.device.type == "cpu" else len(values))


def _statistics(rows: Tensor, repeat: int, p: float, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """The units' means and their scales s_p, (C,) each, reading a block of rows at a time; `scratch` is overwritten."""
    blocks = _blocks(rows)
    found = rows.new_empty(3, len(blocks), rows.shape[1])
    for block, total, power, peak in zip(blocks, *found, strict=True):
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

    totals, powers, peaks = found.view(3, len(blocks), -1, repeat)
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
    """y in the layout of `like`, or in the one of the two below that it is in already."""
    layout = torch.contiguous_format
    if y.dim() == 4 and (y if like is None else like).is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    return y.contiguous(memory_format=layout)


def _rows(y: Tensor) -> tuple[Tensor, int]:
    """Activations as a matrix whose columns belong to one unit each, and how often a unit comes in a row.

    A view that operations run through as one stretch of memory: (N H W, C) and 1 where the channels come last, else
    (N, C H W) and H W.
    """
    if y.dim() == 2 or y.is_contiguous():
        return y.flatten(1), y[0, 0].numel()
    return y.movedim(1, -1).flatten(0, -2), 1
