r"""Products with the Hessian of any loss: by a complex step along a fast path, or by PyTorch's double backward.

The gradient $g(\theta)$ is computed with a graph; $H v$ is the gradient of $\langle g, v \rangle$ (Pearlmutter 1994,
"Fast exact multiplication by the Hessian"). All products share the graph. `twice_differentiable` replaces the
operations whose second derivative is missing, wrong or slow in PyTorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.networks.parameters import flatten, unflatten
from bnsmooth_cli.networks.vectors import euclidean_norm

#: Multiplies a vector (n,) by the Hessian.
Product = Callable[[Tensor], Tensor]
#: A gradient (n,) and the product with the Hessian there.
Curvature = tuple[Tensor, Product]

_STEP: Final = 1e-12  # of the complex step, whose error is proportional to its square


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context in which operations whose second derivative is missing, wrong or slow in PyTorch are replaced.

    Fused attention, bags of embeddings, embeddings with sparse gradients, the hard sigmoid and cuDNN's recurrent
    networks have no second derivative. That of fused weight normalisation treats the norms as constants. That of
    BatchNorm over batch statistics is correct but slow. Elementary operations replace them.
    """
    with sdpa_kernel(SDPBackend.MATH), _Replaced():
        yield


class _Replaced(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _REPLACEMENTS.get(function, function)(*args, **(kwargs or {}))


def _batch_norm(
    y: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not training or running_mean is not None or weight is None or bias is None:
        return F.batch_norm(y, running_mean, running_var, weight, bias, training, momentum, eps)
    dims, unit = (0, *range(2, y.dim())), (-1,) + (1,) * (y.dim() - 2)
    # Two passes: where the mean is far larger than the deviations, its rounding would be as large as these.
    c = y - y.detach().mean(dims, keepdim=True)
    c = c - c.mean(dims, keepdim=True)
    inverse = (c.square().mean(dims, keepdim=True) + eps).rsqrt()
    return c * (weight.view(unit) * inverse) + bias.view(unit)


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """g v / ||v||, with the norm over all dimensions except `dim`; over all of them for dim -1."""
    dim = dim + direction.dim() if dim < -1 else dim
    others = [d for d in range(direction.dim()) if d != dim]
    return length * direction / torch.linalg.vector_norm(direction, dim=others, keepdim=True)


def _embedding(
    indices: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    return F.embedding(indices, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse=False)


def _embedding_bag(
    indices: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    if max_norm is not None or scale_grad_by_freq:  # neither is a function of the weights
        return F.embedding_bag(
            indices, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    if indices.dim() == 2:
        sizes = [indices.shape[1]] * len(indices)
    else:
        ends = [*offsets.tolist(), *([] if include_last_offset else [len(indices)])]  # type: ignore[union-attr]
        sizes = [end - start for start, end in itertools.pairwise(ends)]
    places, values = indices.flatten(), weight[indices.flatten()]
    if per_sample_weights is not None:
        values = values * per_sample_weights.flatten()[:, None]
    kept = places != (-1 if padding_idx is None else padding_idx % len(weight))
    reduce: Any = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[mode]
    bags = (bag[here] for bag, here in zip(values.split(sizes), kept.split(sizes), strict=True))
    return torch.stack([reduce(bag, 0) if len(bag) else weight.new_zeros(weight.shape[1]) for bag in bags])


def _without_cudnn(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
            return function(*args, **kwargs)

    return run


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    # Autograd keeps the input, as for PyTorch's own: checkpointing compares what is kept by its shape alone.
    output = ((input.clone() if inplace else input).clamp(-3, 3) + 3) / 6
    return input.copy_(output) if inplace else output


_REPLACEMENTS: Final[dict[Any, Callable[..., Any]]] = {
    F.batch_norm: _batch_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.hardsigmoid: _hardsigmoid,
    torch._weight_norm: _weight_norm,
    **{function: _without_cudnn(function) for function in (torch.gru, torch.lstm, torch.rnn_relu, torch.rnn_tanh)},
}


def complex_step(fast_path: FastPath, theta: Float[Tensor, " n"]) -> Curvature:
    r"""The gradient and the Hessian product of a fast path, by $H v = \operatorname{Im} \nabla L(\theta + i h v) / h$.

    Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions". A fast path is
    holomorphic, so the step can be so short that only rounding errors are left.
    """

    def product(v: Tensor) -> Tensor:
        size = euclidean_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
        return fast_path(torch.complex(theta, v * (_STEP / size))[None]).gradient[0].imag * (size / _STEP)

    return fast_path(theta[None]).gradient[0], product


def double_backward(
    terms: Callable[[], Iterator[tuple[float, Tensor]]], leaves: Sequence[Tensor], *, keep_graph: bool
) -> Curvature:
    """The gradient and the Hessian product of a sum of losses in the leaves, by PyTorch's double backward.

    Args:
        terms: Computes the terms of the sum, each as its weight and its loss with a graph.
        leaves: The tensors to differentiate in; the vectors are their elements, in this order.
        keep_graph: Whether the graphs of the terms are kept for all products. Otherwise they are computed again for
            each product, so that memory holds the graph of a single term.
    """
    try:
        return _double_backward(terms, leaves, keep_graph, twice_differentiable)
    except CheckpointError:
        # The network runs parts again in the backward pass (torch.utils.checkpoint). PyTorch leaves function modes out
        # there, so that the replacements would be missing. The kernel of attention is a setting that it keeps.
        return _double_backward(terms, leaves, keep_graph, lambda: sdpa_kernel(SDPBackend.MATH))


def _double_backward(
    terms: Callable[[], Iterator[tuple[float, Tensor]]],
    leaves: Sequence[Tensor],
    keep_graph: bool,
    operations: Callable[[], AbstractContextManager[None]],
) -> Curvature:
    def slopes() -> Iterator[tuple[float, Sequence[Tensor]]]:
        with operations():
            for share, loss in terms():
                yield share, torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)

    kept = list(slopes()) if keep_graph else None

    def product(v: Tensor) -> Tensor:
        pieces = unflatten(v, leaves)
        total = torch.zeros_like(v)
        with operations():
            for share, slope in kept or slopes():
                curved = [i for i, g in enumerate(slope) if g.requires_grad]
                if curved:  # otherwise the loss is linear
                    outputs, vectors = [slope[i] for i in curved], [pieces[i].to(slope[i]) for i in curved]
                    bent = torch.autograd.grad(
                        outputs, leaves, vectors, retain_graph=keep_graph, materialize_grads=True
                    )
                    total.add_(flatten(g.detach() for g in bent), alpha=share)
        return total

    gradient = sum(share * flatten(g.detach() for g in slope) for share, slope in kept or slopes())
    assert isinstance(gradient, Tensor)
    return gradient, product


def difference(gradient_at: Callable[[Tensor], Tensor], theta: Float[Tensor, " n"], scale: float = 1.0) -> Product:
    r"""The Hessian product as a central difference of gradients, for losses that PyTorch differentiates once.

    With the unit vector u along v,
    $$H v \approx \|v\| \frac{g(\theta + h u) - g(\theta - h u)}{2 h}, \quad
    h = \varepsilon^{1/3} \|\theta\| \cdot \text{scale},$$
    which balances the truncation, of order $h^2$, with the rounding, of order $\varepsilon / h$ (Nocedal & Wright 2006,
    section 8.1).

    Args:
        gradient_at: Computes the gradient at a parameter vector (n,).
        theta: The parameters.
        scale: A factor of the step length; the difference of two products with different ones tells their error.
    """
    step = float(euclidean_norm(theta)) * torch.finfo(theta.dtype).eps ** (1 / 3) * scale

    def product(v: Tensor) -> Tensor:
        size = euclidean_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
        along = v.to(theta) * (step / size.to(theta))
        return (gradient_at(theta + along) - gradient_at(theta - along)).mul_(size.to(theta) / (2 * step)).to(v)

    return product


def restricted(curvature: Curvature, where: Int[Tensor, " m"]) -> Curvature:
    """The gradient and the Hessian product of the loss as a function of some elements of theta alone.

    Args:
        curvature: The gradient (n,) and the Hessian product in all of theta.
        where: The indices of the m elements.
    """
    gradient, product = curvature

    def block(v: Tensor) -> Tensor:
        whole = torch.zeros_like(gradient)
        whole[where] = v
        return product(whole)[where]

    return gradient[where], block
