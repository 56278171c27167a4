"""Dynamic Tanh, which takes the place of a norm and has no statistics."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli.norms.batch import per_unit

ALPHA: Final = 0.5  # the initial alpha of Zhu et al. 2025, section 4


class DynamicTanh(nn.Module):
    r"""Dynamic Tanh (Zhu et al. 2025, arXiv 2503.10622, section 4): $\gamma \tanh(\alpha y) + \beta$.

    $\alpha$ is one learned number for all units.

    >>> y = torch.randn(2, 3, 8, 8)
    >>> torch.equal(DynamicTanh(3)(y), torch.tanh(0.5 * y))
    True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(ALPHA))
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        return per_unit(self.gamma, y) * torch.tanh(self.alpha * y) + per_unit(self.beta, y)
