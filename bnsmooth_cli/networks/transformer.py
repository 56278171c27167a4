"""A decoder-only transformer whose norms act on tokens, before the layers that they feed."""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli import norms
from bnsmooth_cli.randomness import generator

#: The standard deviation of the initial weights (Radford et al. 2018, section 4.1).
DEVIATION: Final = 0.02
#: The hidden units of a block's perceptron, in embeddings (Vaswani et al. 2017, section 3.3).
HIDDEN: Final = 4


class Prenormed(nn.Module):
    """A norm, and the linear map that it feeds.

    Args:
        norm: The norm; nn.Identity if there is none.
        linear: The linear map.
    """

    def __init__(self, norm: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: Float[Tensor, "tokens units"]) -> Float[Tensor, "tokens outputs"]:
        out: Tensor = self.linear(self.norm(x))
        return out


class Block(nn.Module):
    r"""A pre-norm block (Xiong et al. 2020): $x \leftarrow x + A(N_1(x))$, then $x \leftarrow x + M(N_2(x))$.

    A is causal self-attention (Vaswani et al. 2017, section 3.2), and M a perceptron with GELU (Hendrycks & Gimpel
    2016).
    """

    def __init__(self, norm: str, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Prenormed(norms.build(norm, embedding), nn.Linear(embedding, 3 * embedding))
        self.attn_out = nn.Linear(embedding, embedding)
        self.fc = Prenormed(norms.build(norm, embedding), nn.Linear(embedding, HIDDEN * embedding))
        self.mlp_out = nn.Linear(HIDDEN * embedding, embedding)

    def forward(self, x: Float[Tensor, "tokens units"], windows: int) -> Float[Tensor, "tokens units"]:
        qkv = self.qkv(x).view(windows, -1, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (windows, heads, positions, units of a head)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn_out(mixed.transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.mlp_out(F.gelu(self.fc(x)))
        return out


class Transformer(nn.Module):
    """A decoder-only transformer (Radford et al. 2019, section 2.3), with a norm before every layer of a block.

    All activations are (tokens, units), where the tokens are those of all positions of all windows. A norm over samples
    (`layer`, `rms`) therefore acts on each token, and one over the batch takes its statistics over all tokens. The
    embedding and the last linear map are not tied, so that every layer has parameters of its own: internal covariate
    shift moves the layers one after another.

    Args:
        norm: The name of the norm.
        characters: The size V of the vocabulary.
        context: The number of positions.
        depth: The number of blocks.
        embedding: The units of a token.
        heads: The attention heads, which share the units.
    """

    def __init__(self, norm: str, characters: int, context: int, depth: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, embedding)
        self.positions = nn.Embedding(context, embedding)
        for i in range(1, depth + 1):
            self.add_module(f"block{i}", Block(norm, embedding, heads))
        self.head = Prenormed(norms.build(norm, embedding), nn.Linear(embedding, characters, bias=False))

    def forward(self, windows: Int[Tensor, "windows positions"]) -> Float[Tensor, "windows positions characters"]:
        """The logits of the character after each position."""
        places = torch.arange(windows.shape[1], device=windows.device)
        x = (self.tokens(windows) + self.positions(places)).flatten(0, 1)
        for block in self._blocks().values():
            x = block(x, len(windows))
        return self.head(x).unflatten(0, windows.shape)

    def _blocks(self) -> dict[str, Block]:
        return {name: module for name, module in self.named_children() if isinstance(module, Block)}

    def layers(self) -> dict[str, nn.Module]:
        """The layers by name, in order: a norm belongs to the layer that it feeds."""
        blocks = {
            f"{name}.{part}": layer for name, block in self._blocks().items() for part, layer in block.named_children()
        }
        return {"tokens": self.tokens, "positions": self.positions, **blocks, "head": self.head}

    def linear_maps(self) -> dict[str, nn.Linear]:
        """The linear maps by the names of their layers."""
        maps = {name: layer.linear if isinstance(layer, Prenormed) else layer for name, layer in self.layers().items()}
        return {name: linear for name, linear in maps.items() if isinstance(linear, nn.Linear)}

    def initialise(self, seed: int) -> None:
        r"""Draw the weights from $N(0, 0.02^2)$ as a function of the seed, with zero biases.

        The deviation of the two layers of a block that add to the residual stream is divided by $\sqrt{2 L}$, because
        2 L such layers add up in L blocks (Radford et al. 2019, section 2.3).
        """
        random = generator(seed, "init")
        residual = 1 / math.sqrt(2 * len(self._blocks()))
        maps = self.linear_maps()
        weighted: dict[str, nn.Embedding | nn.Linear] = {"tokens": self.tokens, "positions": self.positions, **maps}
        for name, layer in weighted.items():
            scale = residual if name.endswith(("attn_out", "mlp_out")) else 1.0
            nn.init.normal_(layer.weight, 0.0, DEVIATION * scale, generator=random)
        for linear in maps.values():
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
