"""Weight normalisation (Salimans & Kingma 2016)."""

from __future__ import annotations

from torch import nn


class WeightNorm(nn.Identity):
    r"""Weight normalisation (Salimans & Kingma 2016, equation 2): $w = g \, v / \|v\|$, with g and v learned.

    Here w is the weight vector of one unit. The module passes activations through. It marks the layer before it, to
    which `attach` is applied once the layer's weights are initialised.

    >>> linear = nn.Linear(3, 2)
    >>> WeightNorm.attach(linear)
    >>> sorted(name for name, _ in linear.named_parameters())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """

    @staticmethod
    def attach(linear: nn.Module) -> None:
        """Reparametrise the layer's weight by g and v, which keeps its current value."""
        nn.utils.parametrizations.weight_norm(linear)
