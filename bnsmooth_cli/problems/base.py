"""The interface of a problem: a network, the loss that training minimises, and the data."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.networks.precision import full_precision, single_precision, widest
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.problems.batches import Values, mapped, size
from bnsmooth_cli.randomness import generator, seeded
from bnsmooth_cli.user_code import explaining, is_code

State = dict[str, Tensor]


def _takes(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> bool:
    """Whether the network's forward pass takes these arguments."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


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

    @property
    def option(self) -> str:
        """How the user named the code that the network consists of, for messages; empty if none of it is theirs."""
        problem, norm = self.config.problem, self.config.norm
        return f"--problem {problem}" if is_code(problem) else f"--norm {norm}" if is_code(norm) else ""

    @abstractmethod
    def network(self) -> nn.Module:
        """A network in its initial state and in train mode. The caller seeds PyTorch's default generator."""

    @property
    def initial(self) -> nn.Module:
        """The network at step 0 on the problem's device. Do not change it: the next `build` returns it."""
        if self._initial is None:
            # Torch's own initialisation draws from the user's generator. A network of the user's is made already.
            with seeded(self.config.seed), nullcontext() if is_code(self.config.problem) else single_precision():
                model = self.network()
            if self.has_users_code:
                self._run_once(model)
            self._initial = model.to(self.device)
            if self._start is not None:
                self._initial.load_state_dict(self._start)
        return self._initial

    def _run_once(self, model: nn.Module) -> None:
        """Run the user's network once, so that what its first pass makes or draws is a function of the seed."""
        tensor = next((t for t in [*model.parameters(), *model.buffers()] if not is_lazy(t)), torch.empty(0))
        inputs = mapped(lambda values: values.to(tensor.device), self.batch(0)[0])
        lazy = [m for m in model.modules() if any(map(is_lazy, [*m.parameters(False), *m.buffers(False)]))]
        modules = tuple(module for module in stateful(model) if module not in lazy)
        draws = seeded(generator(self.config.seed, "init", place=1).initial_seed())
        takes = explaining(f"{self.option}: its model does not take a batch")
        with takes, draws, self.forward_only(), prepared(modules, self.config.seed, 0):
            self.call(model, inputs)
        for module in lazy:
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.reset_running_stats()

    def build(self) -> nn.Module:
        """A network at step 0 that the caller may train."""
        model, self._initial = self.initial, None
        return model

    def start_from(self, state: State) -> None:
        """Start training from these parameters and buffers of already-trained weights."""
        self.initial.load_state_dict(state)
        self._start = state

    def call(self, model: nn.Module, inputs: Values) -> Any:
        """The network's outputs: several inputs are its arguments, by their names if they have names.

        A network whose forward pass does not take them as arguments gets them as a whole.
        """
        if isinstance(inputs, dict) and _takes(model, **inputs):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) and _takes(model, *inputs) else model(inputs)

    def outline(self) -> nn.Module | None:
        """The network at step 0 with the shapes of its tensors but no memory for them; None if it is the user's.

        The user's code may not take tensors without values, or may keep them.
        """
        if self.has_users_code:
            return None
        with seeded(self.config.seed), single_precision(), torch.device("meta"):
            return self.network()

    def data(self) -> list[Tensor]:
        """The samples that the problem holds; none of them if the user's code holds them."""
        return []

    @abstractmethod
    def batch(self, step: int) -> tuple[Values, Values]:
        """The inputs and targets of the training step from theta_step to theta_{step+1}."""

    @abstractmethod
    def objective(self, outputs: Any, targets: Any) -> Tensor:
        """The loss that training minimises, a scalar with a graph."""

    def fast_path(self, dtype: torch.dtype, device: torch.device) -> FastPath | None:
        """A faster way to compute the loss and its gradient than the network, if the problem has one."""
        return None

    def answers(self, outputs: Any, targets: Any) -> Tensor:
        """The numbers of right answers and of all answers (2,), on the device; NaN for a problem without classes."""
        right = outputs.argmax(1) == targets
        return torch.stack((right.sum(), right.new_tensor(right.numel(), dtype=torch.int64))).float()

    def accuracy(self, outputs: Any, targets: Any) -> Tensor:
        """The share of right answers, a scalar on the device; NaN for a problem without classes."""
        right, all_ = self.answers(outputs, targets)
        return right / all_

    def baseline(self) -> dict[str, float]:
        r"""What the best constant answer attains: the level of chance, from the targets alone.

        Returns:
            As far as they are known: `accuracy`, for classes, is $\max_c n_c / \sum_c n_c$, where $n_c$ targets of the
            test set are of class c (of the training set if there is no test set). `loss`, for a squared error, is
            $\min_c$ of the training loss of the map $x \mapsto c$, averaged over the batches and without a penalty. The
            minimum is at the mean of the training targets.
        """
        return {}

    def test_batches(self) -> Iterator[tuple[Values, Values]]:
        """The batches of the test set, in order."""
        return iter(())

    def check_code(self) -> None:  # noqa: B027  what has no users' code needs no check
        """Raise InputError if the user's code cannot be trained as the problem trains it."""

    def check_data(self) -> None:  # noqa: B027  there is nothing to check in built-in data
        """Raise InputError if samples that have been read before are now different."""

    @property
    def has_users_code(self) -> bool:
        """Whether the network, its norm or the loss is the user's."""
        return bool(self.option)

    @contextmanager
    def forward_only(self) -> Iterator[None]:
        """A context for forward passes whose gradients are not needed.

        Nothing is recorded, unless the user's code runs: a network may compute forces as the derivative of an energy,
        and a loss may penalise a gradient. Detach what is kept.
        """
        with torch.inference_mode(False), torch.set_grad_enabled(self.has_users_code), full_precision():
            yield

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and accuracy over the test set in eval mode; NaN without a test set.

        The loss is the mean of those of the batches, weighted by their sizes.
        """
        if not self.test_size:
            return torch.nan, torch.nan
        sums = torch.zeros(3, device=self.device, dtype=widest(self.device))
        with evaluating(model), self.forward_only():
            for inputs, targets in self.test_batches():
                outputs = self.call(model, inputs)
                loss = self.objective(outputs, targets).detach()
                sums += torch.cat((size(inputs) * loss[None], self.answers(outputs, targets)))
        loss, right, all_ = sums.tolist()
        return loss / self.test_size, right / all_ if all_ else torch.nan

    def indices(self, step: int) -> Tensor:
        """The samples of a step's batch, without replacement in an epoch. An incomplete last batch is left out."""
        size = self.config.batch_size
        per_epoch = self.num_samples // size
        epoch, position = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(self.num_samples, generator=generator(self.config.seed, "order", epoch))
            self._epoch = (epoch, order.to(self.device))
        return self._epoch[1][position * size : (position + 1) * size]
