"""A network that is a sequence of layers, as the paper counts them."""

from __future__ import annotations

from torch import Tensor, nn

from bnsmooth_cli.norms.weight import WeightNorm
from bnsmooth_cli.randomness import generator


class Layer(nn.Module):
    """One layer as the paper counts them: a linear map, the norm that follows it, and modules without parameters.

    Args:
        linear: The linear map.
        norm: The norm; nn.Identity if the layer has none but could, None if it never has one (a classifier's last).
        rest: The modules after the norm, such as the non-linearity.
    """

    def __init__(self, linear: nn.Linear | nn.Conv2d, norm: nn.Module | None, *rest: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.normalisable = norm is not None
        self.norm = nn.Identity() if norm is None else norm
        self.rest = nn.Sequential(*rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rest(self.norm(self.linear(x)))
        return out


class Chain(nn.Module):
    """A network that is a sequence of layers. `layers` maps their names to them, in order."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x

    def named_layers(self) -> list[tuple[str, Layer]]:
        """The names and layers in order."""
        return [(name, layer) for name, layer in self.layers.items() if isinstance(layer, Layer)]

    def initialise(self, seed: int) -> None:
        """Draw Glorot-uniform weights (Glorot & Bengio 2010, equation 16) as a function of the seed; zero biases."""
        random = generator(seed, "init")
        for _, layer in self.named_layers():
            nn.init.xavier_uniform_(layer.linear.weight, generator=random)
            if layer.linear.bias is not None:
                nn.init.zeros_(layer.linear.bias)
            if isinstance(layer.norm, WeightNorm):
                layer.norm.attach(layer.linear)
