"""Weight normalisation (Salimans & Kingma 2016)."""

from __future__ import annotations

from torch import nn


class WeightNorm(nn.Identity):
    r"""Weight normalisation (Salimans & Kingma 2016): $w = g \, v / \|v\|$ for each unit's weights, g and v learned.

    It acts on the weights of the layer that it follows and lets activations through: `attach` is called with the layer,
    once its weights are initialised, and keeps their values.

    >>> linear = nn.Linear(3, 2)
    >>> WeightNorm.attach(linear)
    >>> sorted(name for name, _ in linear.named_parameters())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """

    @staticmethod
    def attach(linear: nn.Module) -> None:
        """Let the layer's weight be computed of g and v from here on."""
        nn.utils.parametrizations.weight_norm(linear)


def weight_norm(num_features: int) -> nn.Module:
    """The placeholder that `WeightNorm.attach` turns into weight normalisation of the layer before it."""
    return WeightNorm()
