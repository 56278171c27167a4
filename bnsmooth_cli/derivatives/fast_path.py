r"""The deep linear network's loss and gradient at many parameter vectors at once, without its samples.

In a linear network, every activation is an affine function of the input, even with norms, which shift and scale each
unit. All activations therefore lie in the span of the constant and the d coordinates of the input. Let Q (N, r) be an
orthonormal basis of this span, with r = min(N, d + 1) and the first column $1 / \sqrt N$. Then $Q^T y / \sqrt N$ (r, d)
represents an activation y (N, d). Its first row is the mean over the samples, the squares of the other rows sum to the
variance, and squared errors are preserved. A step on 1,000 samples becomes a step on 11 rows. Only the scales of l_p
norms other than l_2 need the samples, by one matrix product per layer. Several parameter vectors are evaluated
together, as a batch of matrix products.
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
    """At P parameter vectors: losses and penalties (P,), gradients (P, n), and the norms' means and scales.

    The losses include the penalties. Means and scales have shape (layers, P, d).
    """

    loss: Tensor
    penalty: Tensor
    gradient: Tensor
    mean: Tensor
    scale: Tensor


class FastPath:
    r"""The loss and gradient of the full batch as functions of parameter vectors.

    The network has `depth` layers of equal width without biases. The norm follows all of them, all but the last, or
    none. The loss is the summed squared error and $c \|W\|^2 / 2$, with c the `weight_decay`. Both functions are
    holomorphic, so complex vectors give derivatives of the gradient.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, norm: str, depth: int, dtype: torch.dtype, *, last_norm: bool = True,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        x, t = inputs.cpu().double(), targets.cpu().double()
        self.samples, self.depth, self.norm, self.weight_decay = len(x), depth, norm, weight_decay
        self.normalised = 0 if norm == "none" else depth if last_norm else depth - 1  # so many layers
        entry = norms.find(norm)
        assert entry is not None
        self.p = next(iter(norms.parameter(entry, norm)), None)
        basis = torch.linalg.qr(torch.cat((torch.ones(self.samples, 1, dtype=torch.float64), x), 1)).Q
        basis = basis * basis[0, 0].sign()
        #: The part of the loss that no linear network can reduce; only rounding errors if the targets are linear.
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
        space, error = self._forwards(theta)
        return self._loss(error) + self._penalty(space)

    def _forwards(self, theta: Tensor) -> tuple[_Space, Tensor]:
        """Run the forward pass at theta. Returns the memory of the pass and the errors of the outputs."""
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

    def _penalty(self, space: _Space) -> Tensor:
        if not self.weight_decay:
            return space.theta.new_zeros(len(space.theta))
        return self.weight_decay / 2 * space.weight.square().sum((0, 2, 3))

    @torch.no_grad()
    def __call__(self, theta: Tensor) -> Pass:
        """The pass at theta (P, n), real or complex, in the order of the network's parameters."""
        space, error = self._forwards(theta)
        torch.mul(error, 2 * self.samples, out=space.grad_out[-1])
        if self.norm == "none":
            for layer, before in space.backwards[:-1]:
                torch.bmm(layer.grad_out, layer.weight, out=before.grad_out)
        else:
            self._differentiate(space)
        space.weights_slope.copy_((space.grad_y.mT @ space.x).flatten(-2))
        if self.weight_decay:
            space.weights_slope.add_(space.weight.flatten(-2), alpha=self.weight_decay)
        loss, penalty, statistics = self._loss(error), self._penalty(space), (space.y[:, :, 0], space.scale[:, :, 0])
        return Pass(loss + penalty, penalty, space.gradient.clone(), *(values.clone() for values in statistics))

    def _normalise(self, space: _Space) -> None:
        """The forward pass with norms: each layer's y, the scales s, ds/dy, and the layer's output."""
        samples = None if self.p in (None, 2.0) else self.basis.to(space.y.dtype)
        space.out_mean.copy_(space.beta)
        for layer in space.layers[: self.normalised]:
            torch.bmm(layer.x, layer.weight_t, out=layer.y)
            if samples is not None:
                self._scale_from_samples(layer.y, samples, layer.scale, layer.ds_dy)
            else:
                torch.sum(layer.scaled * layer.scaled, -2, keepdim=True, out=layer.scale)
                layer.scale.add_(EPSILON if self.p is None else 0).sqrt_()
            if self.p is not None:
                layer.scale.copy_(layer.scale.where(layer.scale.real > EPSILON, EPSILON))
            torch.mul(layer.y_varying, layer.gamma / layer.scale, out=layer.out_varying)
        for layer in space.layers[self.normalised :]:
            torch.bmm(layer.x, layer.weight_t, out=layer.y)
            layer.out.copy_(layer.y)
        if samples is None:
            torch.div(space.scaled, space.scale, out=space.ds_dscaled)
        if self.p is not None:
            space.ds_dy.masked_fill_(space.scale.real <= EPSILON, 0)

    def _differentiate(self, space: _Space) -> None:
        """The backward pass with norms: the gradients at each layer's output, y, gamma and beta."""
        torch.div(space.gamma, space.scale, out=space.ratio)
        torch.div(space.ratio, -space.scale, out=space.pull)
        for layer, before in space.backwards[: self.depth - self.normalised]:
            layer.grad_y.copy_(layer.grad_out)
            if before is not None:
                torch.bmm(layer.grad_y, layer.weight, out=before.grad_out)
        for layer, before in space.backwards[self.depth - self.normalised :]:
            torch.sum(layer.grad_out_varying * layer.y_varying, -2, keepdim=True, out=layer.along)
            torch.mul(layer.ds_dy, layer.along * layer.pull, out=layer.grad_y)
            layer.grad_y_varying.addcmul_(layer.grad_out_varying, layer.ratio)
            if before is not None:
                torch.bmm(layer.grad_y, layer.weight, out=before.grad_out)
        torch.div(space.along, space.scale, out=space.gamma_slope)
        space.beta_slope.copy_(space.grad_out[:, :, :1])

    def follow(self, running: Tensor, passes: Pass) -> None:
        """Update the running statistics, one vector of all buffers, with the statistics of a training step."""
        if not self.normalised:
            return
        mean, other = running.view(self.normalised, 2, -1).unbind(1)
        mean.lerp_(passes.mean[: self.normalised, 0], MOMENTUM)
        scale = passes.scale[: self.normalised, 0]
        if self.p is None:  # BatchNorm tracks the unbiased variance
            scale = (scale.square() - EPSILON) * (self.samples / (self.samples - 1))
        other.lerp_(scale, MOMENTUM)

    def _scale_from_samples(self, y: Tensor, basis: Tensor, scale: Tensor, ds_dy: Tensor) -> None:
        """Compute s and ds/dy of one layer's l_p norm from all samples, as `norms.LpNorm` does."""
        assert self.p is not None
        activations = y.mT @ basis  # (P, d, N)
        if self.p == math.inf:
            top = activations.real.abs().argmax(-1, keepdim=True)
            largest = activations.gather(-1, top)
            sign = largest.real.sign()
            ds_dy.copy_((basis[:, top.squeeze(-1)] * sign.squeeze(-1)).movedim(0, 1))
            torch.mul(largest, sign, out=scale.mT)
            return
        slope = sign = activations.real.sign()
        if self.p != 1:
            size = activations * sign  # |y|, continued holomorphically from the real line
            peak = size.real.amax(-1, keepdim=True).clamp_min(EPSILON)  # |y|^p of a large p would overflow
            s = (size / peak).pow(self.p).mean(-1, keepdim=True).pow(1 / self.p) * peak
            slope = sign * (size / s.where(s.real > EPSILON, EPSILON)).pow(self.p - 1)
        # One product of two matrices that are both read along their rows: several times faster than P products.
        product = basis @ slope.to(y.dtype).flatten(0, 1).mT
        torch.div(product.unflatten(1, activations.shape[:2]).movedim(0, 1), self.samples, out=ds_dy)
        # s is homogeneous, so that s = <ds/dy, y> (Euler).
        torch.sum(ds_dy * y, -2, keepdim=True, out=scale)


class _Space:
    """The memory of passes at P parameter vectors. It and its views are made once: they cost as much as the arithmetic.

    Activations and their gradients have shape (depth, P, r, d); names in `_varying` leave out the first row, the mean.
    Values per unit have shape (depth, P, 1, d). `layers` holds each layer's slices under the same names.
    """

    def __init__(self, fast_path: FastPath, theta: Tensor) -> None:
        depth, count, (rows, size) = fast_path.depth, len(theta), fast_path.inputs.shape
        per_layer = size * size + (0 if fast_path.norm == "none" else 2 * size)
        # Without a norm after the last layer, the vectors of all layers end in places for its gamma and beta.
        whole, gradient = (theta.new_zeros(count, depth * per_layer) for _ in range(2))
        parameters, slopes = (v.view(count, depth, -1).transpose(0, 1) for v in (whole, gradient))
        weights, self.weights_slope = parameters[..., : size * size], slopes[..., : size * size]
        activations = theta.new_empty(depth + 1, count, rows, size)
        activations[0] = fast_path.inputs
        #: The inputs and outputs of the layers, and the gradients at the outputs.
        self.x, self.out, self.grad_out = activations[:-1], activations[1:], theta.new_empty(depth, count, rows, size)
        self.weight = weights.unflatten(-1, (size, size))
        self.weight_t = self.weight.mT
        if fast_path.norm == "none":
            self.y, self.grad_y, self.scale = self.out, self.grad_out, theta.new_ones(depth, count, 1, size)
        else:
            #: The outputs y of the linear maps, the gradients at y, and ds/dy.
            self.y, self.grad_y, self.ds_dy = (torch.zeros_like(self.grad_out) for _ in range(3))
            self.scale, self.along, self.ratio, self.pull = (theta.new_ones(depth, count, 1, size) for _ in range(4))
            self.gamma, self.beta = parameters[..., size * size :].unflatten(-1, (2, 1, size)).unbind(2)
            self.gamma_slope, self.beta_slope = slopes[..., size * size :].unflatten(-1, (2, 1, size)).unbind(2)
            self.y_varying, self.out_mean, self.out_varying = self.y[:, :, 1:], self.out[:, :, :1], self.out[:, :, 1:]
            self.grad_out_varying, self.grad_y_varying = self.grad_out[:, :, 1:], self.grad_y[:, :, 1:]
            # BatchNorm's scale is that of the centred activations; an l_p norm's includes the mean.
            start = 1 if fast_path.p is None else 0
            self.scaled, self.ds_dscaled = self.y[:, :, start:], self.ds_dy[:, :, start:]
        self.layers = [SimpleNamespace(**{name: v[i] for name, v in vars(self).items()}) for i in range(depth)]
        #: The layers from last to first, each with the layer before it (None for the first).
        self.backwards: list[tuple[Any, Any]] = [*zip(self.layers, [None, *self.layers], strict=False)][::-1]
        self.theta, self.gradient = (v[:, : theta.shape[1]] for v in (whole, gradient))
