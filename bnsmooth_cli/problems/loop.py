"""A user's own training loop at its current step."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnsmooth_cli.config import Config
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.presets import CustomSettings
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import Values


class ExternalLoop(Problem):
    """The model of a user's training loop, and the function that computes its loss.

    Args:
        model: The user's model, which is not copied.
        loss: Computes the loss, a scalar; it calls the model.
        lr: The learning rate.
        norm: The name of the norm in tables.
        seed: The seed of the measurements' own randomness.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], *, lr: float, norm: str, seed: int) -> None:
        config = Config(
            problem=f"loop:{re.sub('[^0-9A-Za-z_]', '_', type(model).__name__)}", norm=norm, lr=lr,
            steps=1, batch_size=2, seed=seed, momentum=0.0, save_every=1,
            settings=CustomSettings(eval_every=1),
        )  # fmt: skip
        super().__init__(config, next(iter(trainable(model).values())).device)
        self._model, self.loss = model, loss

    def network(self) -> nn.Module:
        """The loop's model itself."""
        return self._model

    def call(self, model: nn.Module, inputs: Values) -> Tensor:
        """The loss."""
        return self.loss()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Two empty tensors: the loss function has its own data."""
        return torch.empty(0), torch.empty(0)

    def objective(self, outputs: Tensor, targets: Values) -> Tensor:
        """The loss, which `call` has computed."""
        return outputs
