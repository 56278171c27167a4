"""The precision of products and convolutions: float32 is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import torch

#: What has a precision of its own, from PyTorch 2.9 on.
_OPERATIONS: Final[list[Any]] = [
    operation
    for library, name in (
        ("cudnn", "conv"), ("cudnn", "rnn"), ("cuda", "matmul"),
        ("mkldnn", "conv"), ("mkldnn", "rnn"), ("mkldnn", "matmul"),
    )
    if hasattr(operation := getattr(getattr(torch.backends, library), name, None), "fp32_precision")
]  # fmt: skip


@contextmanager
def single_precision() -> Iterator[None]:
    """A context in which new tensors are of float32, whatever the default type of the user's session.

    >>> torch.set_default_dtype(torch.float64)
    >>> with single_precision():
    ...     print(torch.ones(1).dtype, torch.nn.Linear(1, 1).weight.dtype)
    torch.float32 torch.float32
    >>> torch.ones(1).dtype
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widest(device: torch.device) -> torch.dtype:
    """The floating-point type of the most digits on a device: MPS does not have float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which float32 is not rounded to TF32 or bfloat16.

    On GPUs from Ampere on, PyTorch rounds the inputs of convolutions to TF32, which has the 10 bits of a half-precision
    number. Differences of losses and gradients along a short line are then rounding error.

    >>> torch.set_float32_matmul_precision("high")
    >>> with full_precision():
    ...     print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    highest False
    >>> torch.get_float32_matmul_precision()
    'high'
    >>> torch.set_float32_matmul_precision("highest")
    """
    convolutions = products = None
    with suppress(RuntimeError):  # PyTorch reads neither if the newer settings below say something else
        convolutions = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    newer = [operation.fp32_precision for operation in _OPERATIONS]
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for operation in _OPERATIONS:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for operation, precision in zip(_OPERATIONS, newer, strict=True):
            operation.fp32_precision = precision
