"""The interface of a problem: a network, the loss that training minimises, and the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.user_code import is_code

State = dict[str, Tensor]
#: The inputs or the targets of a batch: one tensor, or several in a tuple or a dict.
Values = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def samples(values: Values) -> int:
    """The number of samples: the length of the first dimension of all tensors.

    >>> samples({"inputs": torch.zeros(3, 2)})
    3
    """
    parts = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else [values]
    return len(next(iter(parts)))


class Problem(ABC):
    """A network, an objective, and the batch of every step, all of them functions of the configuration.

    Attributes:
        num_samples: The number of training samples.
        test_size: The number of test samples, 0 without a test set.
    """

    num_samples: int
    test_size: int = 0

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.settings = config, config.settings
        self.device = device
        self._epoch: tuple[int, Tensor] | None = None
        self._initial: nn.Module | None = None
        self._start: State | None = None

    @abstractmethod
    def network(self) -> nn.Module:
        """A network in its initial state and in train mode. The caller seeds PyTorch's default generator."""

    @property
    def initial(self) -> nn.Module:
        """The network at step 0 on the problem's device. Do not change it: the next `build` returns it."""
        if self._initial is None:
            with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the user's generator
                torch.default_generator.manual_seed(self.config.seed)
                model = self.network()
            self._initial = model.to(self.device)
            if self._start is not None:
                self._initial.load_state_dict(self._start)
        return self._initial

    def build(self) -> nn.Module:
        """A network at step 0 that the caller may train."""
        model, self._initial = self.initial, None
        return model

    def start_from(self, state: State) -> None:
        """Start training from these parameters and buffers of already-trained weights."""
        self.initial.load_state_dict(state)
        self._start = state

    def call(self, model: nn.Module, inputs: Values) -> Any:
        """The network's outputs."""
        return model(inputs)

    @abstractmethod
    def batch(self, step: int) -> tuple[Values, Values]:
        """The inputs and targets of the training step from theta_step to theta_{step+1}."""

    @abstractmethod
    def objective(self, outputs: Any, targets: Any) -> Tensor:
        """The loss that training minimises, a scalar with a graph."""

    def fast_path(self, dtype: torch.dtype, device: torch.device) -> FastPath | None:
        """A faster way to compute the loss and its gradient than the network, if the problem has one."""
        return None

    def accuracy(self, outputs: Any, targets: Any) -> Tensor:
        """The share of correct answers, a scalar on the device; NaN for a problem without classes."""
        return (outputs.argmax(1) == targets).float().mean()

    def test_batches(self) -> Iterator[tuple[Values, Values]]:
        """The batches of the test set, in order."""
        return iter(())

    @property
    def has_users_code(self) -> bool:
        """Whether the network, its norm or the loss is the user's."""
        return is_code(self.config.problem) or is_code(self.config.norm)

    @contextmanager
    def forward_only(self) -> Iterator[None]:
        """A context for forward passes whose gradients are not needed.

        Nothing is recorded, unless the user's code runs: a network may compute forces as the derivative of an energy,
        and a loss may penalise a gradient. Detach what is kept.
        """
        with torch.inference_mode(False), torch.set_grad_enabled(self.has_users_code):
            yield

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and accuracy over the test set in eval mode; NaN without a test set."""
        if not self.test_size:
            return torch.nan, torch.nan
        sums = torch.zeros(2, device=self.device)
        with evaluating(model), self.forward_only():
            for inputs, targets in self.test_batches():
                outputs = model(inputs)
                means = torch.stack((self.objective(outputs, targets), self.accuracy(outputs, targets)))
                sums.add_(means.detach(), alpha=len(targets))
        loss, accuracy = (sums / self.test_size).tolist()
        return loss, accuracy

    def indices(self, step: int) -> Tensor:
        """The samples of a step's batch, without replacement in an epoch. An incomplete last batch is left out."""
        size = self.config.batch_size
        per_epoch = self.num_samples // size
        epoch, position = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.num_samples, generator=generator(self.config.seed, "order", epoch))
            self._epoch = (epoch, order.to(self.device))
        return self._epoch[1][position * size : (position + 1) * size]
