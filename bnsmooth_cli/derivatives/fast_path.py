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
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnsmooth_cli import norms
from bnsmooth_cli.norms.batch import EPSILON, MOMENTUM


class Pass(NamedTuple):
    """At P parameter vectors: losses (P,), gradients (P, n), and the norms' means and scales, (layers, P, d) each."""

    loss: Tensor
    gradient: Tensor
    mean: Tensor
    scale: Tensor


class FastPath:
    r"""The whole batch's loss and gradient as a function of parameter vectors, where a faster way to it is known.

    The network has `depth` bias-free layers of one width, with or without a norm after each, and the summed squared
    error. The path is holomorphic in the parameters, so that complex vectors give derivatives of the gradient.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, norm: str, depth: int, dtype: torch.dtype) -> None:
        x, t = inputs.cpu().double(), targets.cpu().double()
        self.samples, self.depth, self.norm = len(x), depth, norm
        entry = norms.find(norm)
        assert entry is not None
        self.p = next(iter(norms.parameter(entry, norm)), None)
        basis = torch.linalg.qr(torch.cat((torch.ones(self.samples, 1, dtype=torch.float64), x), 1)).Q
        basis = basis * basis[0, 0].sign()
        #: The part of the loss that no linear network changes: rounding, where the targets are linear too.
        self.unreached = float((t - basis @ (basis.T @ t)).square().sum())
        root = math.sqrt(self.samples)
        self.inputs, self.targets, self.basis = (
            values.to(inputs.device, dtype)
            for values in (basis.T @ x / root, basis.T @ t / root, (basis.T * root).contiguous())
        )
        self._spaces: dict[tuple[int, torch.dtype], _Space] = {}

    @torch.no_grad()
    def losses(self, theta: Tensor) -> Tensor:
        """The losses (P,) at theta (P, n)."""
        return self._loss(self._forwards(theta)[1])

    def _forwards(self, theta: Tensor) -> tuple[_Space, Tensor]:
        """The memory of a pass at theta, filled up to the outputs, and their errors."""
        key = len(theta), theta.dtype
        if key not in self._spaces:
            self._spaces[key] = _Space(self, theta)
        space = self._spaces[key]
        space.theta.copy_(theta)
        if self.norm == "none":
            for layer in space.layers:
                torch.bmm(layer.x, layer.weight_t, out=layer.y)
        else:
            self._normalise(space)
        return space, space.out[-1] - self.targets

    def _loss(self, error: Tensor) -> Tensor:
        return self.samples * error.square().sum((1, 2)) + self.unreached

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> Pass:
        """The pass at theta (P, n), ordered as the network's parameters are, real or complex."""
        space, error = self._forwards(theta)
        torch.mul(error, 2 * self.samples, out=space.arriving[-1])
        if self.norm == "none":
            for layer, before in space.backwards[:-1]:
                torch.bmm(layer.arriving, layer.weight, out=before.arriving)
        else:
            self._differentiate(space)
        space.weights_slope.copy_((space.leaving.mT @ space.x).flatten(-2))
        return Pass(self._loss(error), space.gradient.clone(), space.y[:, :, 0].clone(), space.scale[:, :, 0].clone())

    def _normalise(self, space: _Space) -> None:
        """Forwards: every layer's y, its scales s with what ds/dy takes, and what enters the next."""
        samples = None if self.p in (None, 2.0) else self.basis.to(space.y.dtype)
        space.out_mean.copy_(space.beta)
        for layer in space.layers:
            torch.bmm(layer.x, layer.weight_t, out=layer.y)
            if samples is not None:
                self._of_samples(layer.y, samples, layer.scale, layer.turn)
            else:
                torch.sum(layer.scaled * layer.scaled, -2, keepdim=True, out=layer.scale)
                layer.scale.add_(EPSILON if self.p is None else 0).sqrt_()
            if self.p is not None:
                layer.scale.copy_(layer.scale.where(layer.scale.real > EPSILON, EPSILON))
            torch.mul(layer.y_varying, layer.gamma / layer.scale, out=layer.out_varying)
        if samples is None:
            torch.div(space.scaled, space.scale, out=space.turned)
        if self.p is not None:
            space.turn.masked_fill_(space.scale.real <= EPSILON, 0)

    def _differentiate(self, space: _Space) -> None:
        """Backwards: the gradients at every layer's output, at its y, and at gamma and beta."""
        torch.div(space.gamma, space.scale, out=space.ratio)
        torch.div(space.ratio, -space.scale, out=space.pull)
        for layer, before in space.backwards:
            torch.sum(layer.arriving_varying * layer.y_varying, -2, keepdim=True, out=layer.along)
            torch.mul(layer.turn, layer.along * layer.pull, out=layer.leaving)
            layer.leaving_varying.addcmul_(layer.arriving_varying, layer.ratio)
            if before is not None:
                torch.bmm(layer.leaving, layer.weight, out=before.arriving)
        torch.div(space.along, space.scale, out=space.gamma_slope)
        space.beta_slope.copy_(space.arriving[:, :, :1])

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


class _Space:
    """The memory of passes at P parameter vectors, made once, as are its views: they cost as much as the arithmetic.

    Coordinates are (depth, P, r, d), `..._varying` those without the first row, the mean; a value a unit is
    (depth, P, 1, d). `layers` are the layers' parts of them, by the same names.
    """

    def __init__(self, fast_path: FastPath, theta: Tensor) -> None:
        depth, count, (rows, size) = fast_path.depth, len(theta), fast_path.inputs.shape
        whole, gradient = torch.empty_like(theta), torch.zeros_like(theta)
        own, slopes = (v.view(count, depth, -1).transpose(0, 1) for v in (whole, gradient))
        weights, self.weights_slope = own[..., : size * size], slopes[..., : size * size]
        walk = theta.new_empty(depth + 1, count, rows, size)
        walk[0] = fast_path.inputs
        #: What enters a layer and what leaves it, and the gradient arriving there.
        self.x, self.out, self.arriving = walk[:-1], walk[1:], theta.new_empty(depth, count, rows, size)
        self.weight = weights.unflatten(-1, (size, size))
        self.weight_t = self.weight.mT
        if fast_path.norm == "none":
            self.y, self.leaving, self.scale = self.out, self.arriving, theta.new_ones(depth, count, 1, size)
        else:
            #: The linear map's output, the gradient leaving there, and ds/dy.
            self.y, self.leaving, self.turn = (torch.zeros_like(self.arriving) for _ in range(3))
            self.scale, self.along, self.ratio, self.pull = (theta.new_empty(depth, count, 1, size) for _ in range(4))
            self.gamma, self.beta = own[..., size * size :].unflatten(-1, (2, 1, size)).unbind(2)
            self.gamma_slope, self.beta_slope = slopes[..., size * size :].unflatten(-1, (2, 1, size)).unbind(2)
            self.y_varying, self.out_mean, self.out_varying = self.y[:, :, 1:], self.out[:, :, :1], self.out[:, :, 1:]
            self.arriving_varying, self.leaving_varying = self.arriving[:, :, 1:], self.leaving[:, :, 1:]
            # BatchNorm's scale is of the centred activations, an l_p norm's of the activations.
            start = 1 if fast_path.p is None else 0
            self.scaled, self.turned = self.y[:, :, start:], self.turn[:, :, start:]
        self.layers = [SimpleNamespace(**{name: v[i] for name, v in vars(self).items()}) for i in range(depth)]
        #: From the last layer on, each with the one before it (None before the first).
        self.backwards: list[tuple[Any, Any]] = [*zip(self.layers, [None, *self.layers], strict=False)][::-1]
        self.theta, self.gradient = whole, gradient
