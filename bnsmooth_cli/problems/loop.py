"""A training loop of the user's own, at the step where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnsmooth_cli.config import Config, CustomSettings
from bnsmooth_cli.problems.base import Problem


class ExternalLoop(Problem):
    """A training loop of the user's own, where it stands: a model, and a function that is its loss there."""

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
        """There is but the one that the loop has."""
        return self._closure.model

    def call(self, model: nn.Module, values: Mapping[str, Tensor] | None, inputs: Tensor) -> Tensor:
        """The loss itself: its function calls the model, whose parameters are exchanged for the moment."""
        if values is None:
            return self._loss()
        found: Tensor = functional_call(self._closure, {f"model.{name}": value for name, value in values.items()}, ())
        return found

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Nothing: the loss has its own."""
        return torch.empty(0), torch.empty(0)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What `call` gave."""
        return outputs


class _Closure(nn.Module):
    """A loss as a module that holds the model: so its parameters can be exchanged while the loss is evaluated."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self) -> Tensor:
        return self._loss()
