"""Dynamic Tanh (Zhu et al. 2025, "Transformers without Normalization", section 4): bnsmooth train --norm dyt:DyT"""

import torch
from torch import Tensor, nn


class DyT(nn.Module):
    """gamma tanh(alpha y) + beta for every unit, with one learned alpha: a norm without statistics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))  # the paper's initial value
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))

    def forward(self, y: Tensor) -> Tensor:
        unit = (-1,) + (1,) * (y.dim() - 2)  # (N, C) or (N, C, H, W): units are dimension 1
        return self.gamma.view(unit) * torch.tanh(self.alpha * y) + self.beta.view(unit)
