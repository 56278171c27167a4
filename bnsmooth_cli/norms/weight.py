"""Weight normalisation (Salimans & Kingma 2016)."""

from __future__ import annotations

from torch import nn


class WeightNorm(nn.Identity):
    r"""Weight normalisation (Salimans & Kingma 2016, equation 2): $w = g \, v / \|v\|$, with g and v learned.

    w are the weights of one unit. The module lets activations through: it marks the layer before it, to which `attach`
    is applied once the layer's weights are initialised.

    >>> linear = nn.Linear(3, 2)
    >>> WeightNorm.attach(linear)
    >>> sorted(name for name, _ in linear.named_parameters())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """

    @staticmethod
    def attach(linear: nn.Module) -> None:
        """Compute the layer's weight from g and v from now on, starting from its present value."""
        nn.utils.parametrizations.weight_norm(linear)
