r"""The deep linear network's loss and gradient at many parameter vectors at once, without its samples.

In a linear network every activation is an affine function of the input, norms included (they shift and scale each
unit), so all lie in the span of the constant and the input's d coordinates. With an orthonormal basis Q (N, r) of it,
r = min(N, d + 1) and first column $1 / \sqrt N$, an activation y (N, d) is known by $Q^T y / \sqrt N$ (r, d). Its
first row is the mean over the samples, the squares of the others sum to the variance, and squared errors are kept. A
step on 1,000 samples becomes one on 11 rows; only the scales of the l_p norms but l_2 look at samples, by one product a
layer. Several parameter vectors are a batch of matrix products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnsmooth_cli.norms import EPSILON, MOMENTUM, exponent
from bnsmooth_cli.problems.base import Pass, Program


class AffineProgram(Program):
    r"""`depth` bias-free layers of one width, with or without a norm after each, and the summed squared error.

    It is holomorphic in the parameters: at $\theta + i h v$ the gradient's imaginary part is h times the Hessian's
    product with v, up to $h^2$ (Squire & Trapp 1998, "Using complex variables to estimate derivatives").
    """

    def __init__(self, inputs: Tensor, targets: Tensor, norm: str, depth: int, dtype: torch.dtype) -> None:
        x, t = inputs.cpu().double(), targets.cpu().double()
        self.samples, self.depth, self.norm = len(x), depth, norm
        self.p = None if norm in ("none", "batch") else exponent(norm)
        basis = torch.linalg.qr(torch.cat((torch.ones(self.samples, 1, dtype=torch.float64), x), 1)).Q
        basis = basis * basis[0, 0].sign()
        #: The part of the loss that no linear network changes: rounding, where the targets are linear too.
        self.unreached = float((t - basis @ (basis.T @ t)).square().sum())
        but_mean = torch.ones(basis.shape[1], 1)
        but_mean[0] = 0
        root = math.sqrt(self.samples)
        self.inputs, self.targets, self.basis, self.but_mean = (
            values.to(inputs.device, dtype)
            for values in (basis.T @ x / root, basis.T @ t / root, (basis.T * root).contiguous(), but_mean)
        )

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> Pass:
        """The pass at theta (P, n), ordered as the network's parameters are, real or complex."""
        count, (rows, size) = len(theta), self.inputs.shape
        layers = theta.view(count, self.depth, -1).transpose(0, 1)
        weights = layers[..., : size * size].unflatten(-1, (size, size))
        gradient = torch.empty_like(theta)
        slopes = gradient.view(count, self.depth, -1).transpose(0, 1)

        # Coordinates (depth, P, r, d): of what enters the layers and the output, and of the linear maps' outputs y.
        entering = theta.new_empty(self.depth + 1, count, rows, size)
        entering[0] = self.inputs
        if self.norm == "none":
            y, scale = entering[1:], theta.new_ones(self.depth, count, 1, size)
            for x, weight, out in zip(entering, weights.mT, y, strict=False):
                torch.bmm(x, weight, out=out)
        else:
            gamma, beta = layers[..., size * size :].unflatten(-1, (2, 1, size)).unbind(2)
            y, centred, scale, turn = self._normalised(entering, weights, gamma, beta)

        error = entering[-1] - self.targets
        arriving = theta.new_empty(self.depth, count, rows, size)  # the gradient at the norms' outputs
        torch.mul(error, 2 * self.samples, out=arriving[-1])
        if self.norm == "none":
            leaving = arriving  # the gradient at y
            for before, after, weight in reversed([*zip(arriving, arriving[1:], weights[1:], strict=False)]):
                torch.bmm(after, weight, out=before)
        else:
            leaving = torch.empty_like(arriving)
            along = torch.empty_like(scale)
            ratio = gamma / scale * self.but_mean
            pull = -gamma / scale.square()
            product = torch.empty_like(error)
            steps = [*zip(arriving, leaving, along, centred, ratio, pull, turn, weights, strict=True)]
            for place, (after, before, sum_, c, r, k, v, weight) in reversed([*enumerate(steps)]):
                torch.mul(after, c, out=product)
                torch.sum(product, -2, keepdim=True, out=sum_)
                torch.mul(after, r, out=before)
                before.addcmul_(v, sum_ * k)
                if place:
                    torch.bmm(before, weight, out=arriving[place - 1])
            slopes[..., size * size : -size] = (along / scale).squeeze(-2)
            slopes[..., -size:] = arriving[:, :, 0]
        slopes[..., : size * size] = (leaving.mT @ entering[:-1]).flatten(-2)
        loss = self.samples * error.square().sum((1, 2)) + self.unreached
        return Pass(loss, gradient, y[:, :, 0], scale.squeeze(-2))

    def follow(self, running: Tensor, found: Pass) -> None:
        """The running statistics, all buffers in one vector, after a training step that found these of the batch."""
        if self.norm == "none":
            return
        mean, other = running.view(self.depth, 2, -1).unbind(1)
        mean.lerp_(found.mean[:, 0], MOMENTUM)
        scale = found.scale[:, 0]
        if self.p is None:  # of BatchNorm the variance, divided by one less than the samples
            scale = (scale.square() - EPSILON) * (self.samples / (self.samples - 1))
        other.lerp_(scale, MOMENTUM)

    def _normalised(
        self, entering: Tensor, weights: Tensor, gamma: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fill in what enters the layers; y, y less its mean, the scales s and their derivatives ds/dy, by layers."""
        y, centred = (torch.empty_like(entering[1:]) for _ in range(2))
        scale = torch.empty_like(gamma)
        of_samples = self.p not in (None, 2.0)
        turn = torch.empty_like(y) if of_samples else y
        samples = self.basis.to(y.dtype)
        for x, weight, out, c, s, g, b, v, following in zip(
            entering, weights.mT, y, centred, scale, gamma, beta, turn, entering[1:], strict=False
        ):
            torch.bmm(x, weight, out=out)
            torch.mul(out, self.but_mean, out=c)
            if of_samples:
                self._of_samples(out, samples, s, v)
            else:
                values = c if self.p is None else out
                torch.sum(values * values, -2, keepdim=True, out=s)
                s.add_(EPSILON if self.p is None else 0).sqrt_()
            if self.p is not None:
                s.copy_(s.where(s.real > EPSILON, EPSILON))
            torch.mul(c, g / s, out=following)
            following[:, :1] = b
        if not of_samples:
            turn = (centred if self.p is None else y) / scale
        return y, centred, scale, turn if self.p is None else turn.masked_fill(scale.real <= EPSILON, 0)

    def _of_samples(self, y: Tensor, basis: Tensor, scale: Tensor, turn: Tensor) -> None:
        """s and ds/dy of one layer's l_p norm, for which every sample counts: norms.LpNorm's scale."""
        assert self.p is not None
        seen = y.mT @ basis  # (P, d, N)
        if self.p == math.inf:
            top = seen.real.abs().argmax(-1, keepdim=True)
            largest = seen.gather(-1, top)
            sign = largest.real.sign()
            turn.copy_((basis[:, top.squeeze(-1)] * sign.squeeze(-1)).movedim(0, 1))
            torch.mul(largest, sign, out=scale.mT)
            return
        slope = sign = seen.real.sign()
        if self.p != 1:
            size = seen * sign  # |y|, continued holomorphically from the real line
            peak = size.real.amax(-1, keepdim=True).clamp_min(EPSILON)  # |y|^p of a large p would overflow
            s = (size / peak).pow(self.p).mean(-1, keepdim=True).pow(1 / self.p) * peak
            slope = sign * (size / s.where(s.real > EPSILON, EPSILON)).pow(self.p - 1)
        # One product of two matrices, both read along their rows: several times faster than one for each of the P.
        product = basis @ slope.to(y.dtype).flatten(0, 1).mT
        torch.div(product.unflatten(1, seen.shape[:2]).movedim(0, 1), self.samples, out=turn)
        # s is homogeneous, so that s = <ds/dy, y> (Euler).
        torch.sum(turn * y, -2, keepdim=True, out=scale)
