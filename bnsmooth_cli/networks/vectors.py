"""Norms and inner products of long vectors, accurate in float32.

On a CPU, PyTorch adds the numbers of such sums one after another (its issue 169237). In float32, its norm of 11 million
numbers is too small by 0.04%, and that of 100 million by 1%. Products of rows and a vector are as inaccurate.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK: Final = 2**12  # numbers whose squares are added one after another
_PART: Final = 2**14  # the same for products
_LONG: Final = 2**20  # PyTorch's norm of as many numbers has an error of 1e-5


def euclidean_norm(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """The Euclidean norms of vectors, as norms of the norms of blocks.

    Args:
        x: One vector, or one in each row.

    >>> euclidean_norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]])).tolist()
    [5.0, 10.0]
    """
    whole = x.shape[-1] // _BLOCK * _BLOCK
    if not whole:
        return torch.linalg.vector_norm(x, dim=-1)
    blocks = torch.linalg.vector_norm(x[..., :whole].unflatten(-1, (-1, _BLOCK)), dim=-1)
    rest = torch.linalg.vector_norm(x[..., whole:], dim=-1, keepdim=True)
    return torch.linalg.vector_norm(torch.cat([blocks, rest], -1), dim=-1)


def tensor_norms(tensors: list[Tensor] | tuple[Tensor, ...], dtype: torch.dtype) -> Float[Tensor, " tensors"]:
    """The Euclidean norms of tensors of any shapes.

    Args:
        tensors: The tensors, on one device.
        dtype: The precision of the sums.

    >>> tensor_norms([torch.tensor([[3.0, 4.0]]), torch.tensor(2.0)], torch.float32).tolist()
    [5.0, 2.0]
    """
    if any(tensor.numel() > _LONG and tensor.device.type == "cpu" for tensor in tensors):
        return torch.stack([_norm(tensor, dtype) for tensor in tensors])
    return torch.stack(torch._foreach_norm(tensors, dtype=dtype))


def _norm(x: Tensor, dtype: torch.dtype) -> Float[Tensor, ""]:
    if x.numel() <= _LONG:
        return torch.linalg.vector_norm(x, dtype=dtype)
    in_memory = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).flatten()  # no copy of channels_last
    return euclidean_norm(in_memory.to(dtype))


def inner_product(x: Float[Tensor, "*rows n"], y: Float[Tensor, " n"]) -> Float[Tensor, "*rows"]:
    """The inner products of vectors with another one, as sums over parts.

    Args:
        x: One vector, or one in each row.
        y: The other one.

    >>> inner_product(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([1.0, 1.0])).tolist()
    [7.0, 14.0]
    """
    if y.device.type != "cpu":  # GPUs add in many threads, and each part would be a kernel
        return x @ y
    parts = zip(x.split(_PART, dim=-1), y.split(_PART), strict=True)
    return torch.stack([part @ other for part, other in parts]).sum(0)
