"""A norm in the place of a model's own, whose activations have another shape."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class OverUnits(nn.Module):
    """A norm of this package, which takes (N, C) or (N, C, H, W), over activations with any number of dimensions.

    Units in the last dimension, as of tokens (N, T, C), are those of N T samples without positions: `layer` acts on
    each token, and `batch` takes its statistics over all tokens, as in `networks.transformer`. Units in dimension 1
    keep their positions, of which the norm sees two dimensions.

    Args:
        norm: The norm.
        last: Whether the last dimension holds the units; otherwise dimension 1 does.

    >>> import torch
    >>> x = torch.randn(4, 5, 3)
    >>> bool(OverUnits(nn.BatchNorm1d(3), last=True)(x).mean((0, 1)).abs().max() < 1e-6)
    True
    """

    def __init__(self, norm: nn.Module, last: bool) -> None:
        super().__init__()
        self.norm, self.last = norm, last

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        shaped = x
        if self.last:
            shaped = x.reshape(-1, x.shape[-1])
        elif x.dim() not in (2, 4):
            shaped = x.flatten(2).unsqueeze(-1)
        out: Tensor = self.norm(shaped)
        return out.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"units in the {'last dimension' if self.last else 'dimension 1'}"
