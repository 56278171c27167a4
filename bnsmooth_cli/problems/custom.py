"""Custom problems: a user's function that returns a model, a loss and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from bnsmooth_cli import norms, user_code
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import generator


class Pairs(Protocol):
    """A map-style data set: `data[i]` is (input, target), both tensors or numbers (torch.utils.data.Dataset)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = tuple[Tensor, Tensor] | Pairs


class Workload(NamedTuple):
    """What the function of a custom problem returns. A plain tuple of the same values will do.

    Attributes:
        model: The network, in the mode in which it is trained. Its outputs must depend only on its parameters and
            inputs, so it must not use dropout.
        loss: Maps outputs and targets to a scalar tensor, as torch.nn.functional.cross_entropy does.
        train: The training data: a pair (inputs, targets) of tensors whose first dimension runs over samples, or a
            map-style data set. If targets are integers, they are classes, and the accuracy is reported.
        test: The test data in the same form, if there are any.

    >>> from torch.nn import functional as F
    >>> def build(norm):
    ...     model = nn.Sequential(nn.Linear(2, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))
    ...     inputs = torch.randn(100, 2)
    ...     return Workload(model, F.cross_entropy, (inputs, (inputs[:, 0] > 0).long()))
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Data
    test: Data | None = None


Builder = Callable[[Callable[[int], nn.Module]], Workload]


class CustomProblem(Problem):
    """The problem `module:function`, where function(norm) returns a `Workload`.

    `norm` makes the run's norm for a number of units. The function is called once, with PyTorch's default generator
    seeded by the run's seed, so the initialisation depends on the seed alone.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self._option = f"--problem {config.problem}"
        if (entry := norms.find(config.norm)) is not None and entry.over == "weights":
            raise InputError(
                f"{self._option}: --norm {config.norm} acts on layers, which are yours: apply "
                "torch.nn.utils.parametrizations.weight_norm to them, with --norm none"
            )
        self.workload = self._call_function()
        self.num_samples = self._length(self.workload.train, "train")
        if self.workload.test is not None:
            self.test_size = self._length(self.workload.test, "test")
        if config.batch_size > self.num_samples:
            raise InputError(
                f"--batch-size {config.batch_size}: larger than the {self.num_samples} training samples of "
                f"{config.problem}"
            )

    def _call_function(self) -> Workload:
        function, name, requested = user_code.load(self.config.problem, "problem"), self.config.norm, []

        def norm(num_features: int) -> nn.Module:
            requested.append(num_features)
            return norms.build(name, num_features)

        with torch.random.fork_rng(devices=[]), user_code.explaining(f"{self._option}: called with a norm, it fails"):
            torch.default_generator.manual_seed(self.config.seed)
            result = function(norm)
        parts = tuple(result) if isinstance(result, tuple) else ()
        if len(parts) not in (3, 4) or not isinstance(parts[0], nn.Module) or not callable(parts[1]):
            raise InputError(
                f"{self._option}: returns a {type(result).__name__}; it has to return "
                "bnsmooth_cli.Workload(model, loss, train, test)"
            )
        dtypes = {p.dtype for p in trainable(parts[0]).values()}
        if not dtypes:
            raise InputError(f"{self._option}: its model has no parameters that are trained")
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            types = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise InputError(
                f"{self._option}: its model's parameters are of {types}; one floating-point type is needed"
            )
        if name != "none" and not requested:
            raise InputError(f"{self._option}: makes no use of the norm that it is called with; give --norm none")
        return Workload(*parts)

    def _length(self, data: Any, split: str) -> int:
        if _are_tensors(data):
            inputs, targets = data
            if not len(inputs) or len(inputs) != len(targets):
                raise InputError(
                    f"{self._option}: its {split} data has {len(inputs)} inputs and {len(targets)} targets"
                )
            return len(inputs)
        if isinstance(data, list | tuple) and len(data) == 2 and all(hasattr(values, "shape") for values in data):
            raise InputError(f"{self._option}: its {split} data are no tensors; convert them (torch.from_numpy)")
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
            raise InputError(
                f"{self._option}: its {split} data is a {type(data).__name__}; give (inputs, targets) as tensors, or a "
                "map-style data set that is not empty"
            )
        return len(data)

    def network(self) -> nn.Module:
        """A copy of the function's model."""
        return copy.deepcopy(self.workload.model)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The next samples of the epoch. Random draws of a data set depend only on the seed and the step."""
        return self._samples(self.workload.train, self.indices(step), "train", step)

    def _samples(self, data: Any, indices: Tensor, split: str, step: int = 0) -> tuple[Tensor, Tensor]:
        if _are_tensors(data):
            inputs, targets = (values[indices.to(values.device)] for values in data)
        else:
            message = f"{self._option}: its {split} data does not give pairs (input, target) that make a batch"
            with torch.random.fork_rng(devices=[]), user_code.explaining(message):
                torch.default_generator.set_state(generator(self.config.seed, "augment", step).get_state())
                inputs, targets = default_collate([_pair(data[i]) for i in indices.tolist()])
        dtype = next(iter(trainable(self.workload.model).values())).dtype
        inputs, targets = (v.to(dtype) if v.is_floating_point() else v for v in (inputs, targets))
        return inputs.to(self.device), targets.to(self.device)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test samples in order, in batches of the run's size."""
        if self.workload.test is not None:
            for indices in torch.arange(self.test_size).split(self.config.batch_size):
                yield self._samples(self.workload.test, indices, "test")

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The user's loss."""
        return self.workload.loss(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of samples whose largest output is that of the target class; NaN if the targets are not classes."""
        if targets.is_floating_point() or outputs.dim() != targets.dim() + 1:
            return torch.full((), torch.nan, device=outputs.device)
        return super().accuracy(outputs, targets)


def _are_tensors(data: Any) -> bool:
    return isinstance(data, list | tuple) and len(data) == 2 and all(isinstance(values, Tensor) for values in data)


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise TypeError(f"an item is a {type(item).__name__}")
    for value in item:
        if not isinstance(value, Tensor | int | float) and not hasattr(value, "__array__"):
            raise TypeError(f"an item holds a {type(value).__name__}")
    return item[0], item[1]
