"""What is optimised: the interface of a problem, and of a faster way than its network's to its loss and gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.randomness import generator

State = dict[str, Tensor]


class Problem(ABC):
    """A network, an objective, and the batch of every step, all functions of the configuration."""

    num_samples: int
    #: Samples of the test set; 0 where there is none.
    test_size: int = 0

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.settings = config, config.settings
        self.device = device
        self._epoch: tuple[int, Tensor] | None = None
        self._initial: nn.Module | None = None
        self._start: State | None = None

    @abstractmethod
    def network(self) -> nn.Module:
        """The network at its initial state, a function of the seed, in train mode. torch's default generator is seeded
        with it."""

    @property
    def initial(self) -> nn.Module:
        """The network at step 0, on the problem's device, for reading only: the next `build` hands it out."""
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
        """Let training start from these parameters and buffers: those of already-trained weights."""
        self.initial.load_state_dict(state)
        self._start = state

    def call(self, model: nn.Module, values: Mapping[str, Tensor] | None, inputs: Tensor) -> Tensor:
        """The network's outputs, with parameter values in place of its own."""
        outputs: Tensor = model(inputs) if values is None else functional_call(model, dict(values), (inputs,))
        return outputs

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets that take theta_step to theta_{step+1}."""

    @abstractmethod
    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss that training minimises, a scalar with its graph."""

    def fast_path(self, dtype: torch.dtype, device: torch.device) -> FastPath | None:
        """A faster way than the network's to the loss and its gradient, where the problem has one."""
        return None

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of correct answers, a scalar on the device; NaN for a problem that classifies nothing."""
        return (outputs.argmax(1) == targets).float().mean()

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order, where there is one."""
        return iter(())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and accuracy over the test set, with running statistics; NaN where the problem has none."""
        if not self.test_size:
            return torch.nan, torch.nan
        sums = torch.zeros(2, device=self.device)
        with evaluating(model):
            for inputs, targets in self.test_batches():
                outputs = model(inputs)
                found = torch.stack((self.objective(outputs, targets), self.accuracy(outputs, targets)))
                sums.add_(found, alpha=len(targets))
        loss, accuracy = (sums / self.test_size).tolist()
        return loss, accuracy

    def indices(self, step: int) -> Tensor:
        """The samples of a step's batch: without replacement within an epoch, the last incomplete batch left out."""
        size = self.config.batch_size
        per_epoch = self.num_samples // size
        epoch, position = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.num_samples, generator=generator(self.config.seed, "order", epoch))
            self._epoch = (epoch, order.to(self.device))
        return self._epoch[1][position * size : (position + 1) * size]
