"""The deep linear network of Santurkar et al. (2018), which learns a random matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnsmooth_cli import norms
from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.presets import LinearSettings
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import squared_deviations
from bnsmooth_cli.randomness import generator


class DeepLinear(Problem):
    r"""The deep linear network (Santurkar et al. 2018, appendix A): minimise $\sum_x \|W_k \cdots W_1 x - A x\|^2$.

    The sum is over `samples` draws x ~ N(0, I); A has i.i.d. entries from N(0, 1), or from U(0, 1) if `matrix` is
    "uniform". The paper does not state the scale of the loss; its figures fit the sum over samples and units
    (docs/paper.md). The norm follows every layer, the last one only if `last_norm` is set.
    """

    settings: LinearSettings

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        dimension, self.num_samples = self.settings.dimension, self.settings.samples
        entry = norms.find(config.norm)
        if entry is not None and entry.needs_positions:
            raise InputError(f"--norm {config.norm}: takes statistics over the positions of images, and dln has none")
        self._fast = entry is not None and entry.fast_path
        random = generator(config.seed, "data")
        inputs = torch.randn(self.num_samples, dimension, generator=random, dtype=torch.float32)
        draw = torch.randn if self.settings.matrix == "normal" else torch.rand
        matrix = draw(dimension, dimension, generator=random, dtype=torch.float32)
        self._inputs = inputs.to(device)
        self._targets = (inputs @ matrix.T).to(device)
        self._fast_paths: dict[tuple[torch.dtype, torch.device], FastPath] = {}

    def network(self) -> Chain:
        """Linear layers without biases, named fc1, fc2, ..., each followed by the norm; the last one if it has one."""
        size, depth = self.settings.dimension, self.settings.depth
        layers = {}
        for i in range(1, depth + 1):
            norm = norms.build(self.config.norm, size) if i < depth or self.settings.last_norm else None
            layers[f"fc{i}"] = Layer(nn.Linear(size, size, bias=False), norm)
        chain = Chain(layers)
        chain.initialise(self.config.seed)
        return chain

    def data(self) -> list[Tensor]:
        """The samples x, and A x."""
        return [self._inputs, self._targets]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """All samples in order if the batch holds them all, as in the paper; otherwise the next ones of the epoch."""
        if self.config.batch_size == self.num_samples:
            return self._inputs, self._targets
        chosen = self.indices(step)
        return self._inputs[chosen], self._targets[chosen]

    def fast_path(self, dtype: torch.dtype, device: torch.device) -> FastPath | None:
        """The fast path of the full batch, for norms that map every sample of a unit alike."""
        if self.config.batch_size < self.num_samples or not self._fast:
            return None
        key = (dtype, device)
        if key not in self._fast_paths:
            data = self._inputs.to(device), self._targets.to(device)
            self._fast_paths[key] = FastPath(
                *data, self.config.norm, self.settings.depth, dtype, last_norm=self.settings.last_norm,
                weight_decay=self.config.penalty,
            )  # fmt: skip
        return self._fast_paths[key]

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error, summed over samples and units."""
        return (outputs - targets).square().sum()

    def baseline(self) -> dict[str, float]:
        """The loss of the best constant map. A minibatch has its share of the sum over all samples, on average."""
        return {"loss": squared_deviations(self._targets) * self.config.batch_size / self.num_samples}

    def answers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """NaN, as there are no classes."""
        return outputs.new_full((2,), torch.nan)
