"""A user's own training loop at its current step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnsmooth_cli.config import Config, CustomSettings
from bnsmooth_cli.problems.base import Problem


class ExternalLoop(Problem):
    """The model of a user's training loop, and the function that computes its loss.

    Args:
        model: The user's model, which is not copied.
        loss: Computes the loss, a scalar; it calls the model.
        device: The model's device.
        lr: The learning rate.
        step: The step that the loop has reached.
        norm: The name of the norm in tables.
        seed: The seed of the measurements' own randomness.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], device: torch.device, *, lr: float, step: int, norm: str,
        seed: int,
    ) -> None:  # fmt: skip
        config = Config(
            problem=f"loop:{re.sub('[^0-9A-Za-z_]', '_', type(model).__name__)}", norm=norm, lr=lr,
            steps=max(1, step), batch_size=2, seed=seed, momentum=0.0, save_every=1,
            settings=CustomSettings(eval_every=1),
        )  # fmt: skip
        super().__init__(config, device)
        self._loss, self._closure = loss, _Closure(model, loss)

    def network(self) -> nn.Module:
        """The loop's model itself."""
        return self._closure.model

    def call(self, model: nn.Module, values: Mapping[str, Tensor] | None, inputs: Tensor) -> Tensor:
        """The loss, with these values in place of the model's parameters."""
        if values is None:
            return self._loss()
        loss: Tensor = functional_call(self._closure, {f"model.{name}": value for name, value in values.items()}, ())
        return loss

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Two empty tensors: the loss function has its own data."""
        return torch.empty(0), torch.empty(0)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, which `call` has computed."""
        return outputs


class _Closure(nn.Module):
    """The loss function as a module that holds the model, so that `functional_call` can replace its parameters."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self) -> Tensor:
        return self._loss()
