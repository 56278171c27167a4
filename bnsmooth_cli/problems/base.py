"""What is optimised: the interface of a problem, and the chain of layers that its network is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bnsmooth_cli.config import Config
from bnsmooth_cli.streams import generator


class Layer(nn.Module):
    """One layer as the paper counts them: a linear map, the norm that follows it, then what has no parameters.

    A norm of None stands for a layer that never takes one (a classifier's last), nn.Identity for a plain one.
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
    """A network that is a sequence of layers; `layers` is ordered and its keys are the layers' names."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        # A plain tuple: walking the module tree at every step would cost as much as a small network's step.
        self.norms = tuple(module for layer in layers.values() for module in layer.norm.modules())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x

    def named_layers(self) -> list[tuple[str, Layer]]:
        """(name, layer) in order."""
        return [(name, layer) for name, layer in self.layers.items() if isinstance(layer, Layer)]

    def initialise(self, seed: int) -> None:
        """Glorot-uniform weights (Glorot & Bengio 2010, equation 16) and zero biases, a function of the seed alone."""
        random = generator(seed, "init")
        for _, layer in self.named_layers():
            nn.init.xavier_uniform_(layer.linear.weight, generator=random)
            if layer.linear.bias is not None:
                nn.init.zeros_(layer.linear.bias)


class Pass(NamedTuple):
    """At P parameter vectors: losses (P,), gradients (P, n), and the norms' means and scales, (layers, P, d) each."""

    loss: Tensor
    gradient: Tensor
    mean: Tensor
    scale: Tensor


class Program(ABC):
    """The whole batch's loss and gradient as a function of parameter vectors, where a problem knows a faster way to it.

    It is holomorphic, so that complex vectors give derivatives of the gradient.
    """

    @abstractmethod
    def __call__(self, theta: Tensor) -> Pass:
        """The pass at theta (P, n), ordered as the network's parameters are, real or complex."""

    @abstractmethod
    def follow(self, running: Tensor, found: Pass) -> None:
        """Update the running statistics, all the network's buffers in one vector, by those of a training step."""


class Problem(ABC):
    """A network, an objective, and the batch of every step, all functions of the configuration."""

    num_samples: int
    #: Whether `accuracy` and `evaluate` mean something.
    classifies: ClassVar[bool]

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._epoch: tuple[int, Tensor] | None = None

    @abstractmethod
    def network(self) -> Chain:
        """The network, its parameters not yet initialised."""

    def build(self) -> Chain:
        """The network at its initial state (step 0), on the problem's device, in train mode."""
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the user's generator
            model = self.network()
        model.initialise(self.config.seed)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets that take theta_step to theta_{step+1}."""

    @abstractmethod
    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss that training minimises, a scalar with its graph."""

    def program(self, dtype: torch.dtype, device: torch.device) -> Program | None:
        """A faster way than the network's to the loss and its gradient, where the problem has one."""
        return None

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of correct answers, a scalar on the device; NaN for a problem that classifies nothing."""
        return (outputs.argmax(1) == targets).float().mean()

    @abstractmethod
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Loss and accuracy on the test set, with running statistics; NaN where the problem has none."""

    def indices(self, step: int) -> Tensor:
        """The samples of a step's batch: without replacement within an epoch, the last incomplete batch left out."""
        size = self.config.batch_size
        per_epoch = self.num_samples // size
        epoch, position = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.num_samples, generator=generator(self.config.seed, "order", epoch))
            self._epoch = (epoch, order.to(self.device))
        return self._epoch[1][position * size : (position + 1) * size]
