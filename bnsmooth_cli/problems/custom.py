"""Custom problems: a user's function that returns a model, a loss and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from bnsmooth_cli import norms
from bnsmooth_cli import user_code as code
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
    """What a problem of one's own consists of; a plain tuple of the same is one too.

    `loss(outputs, targets)` is a scalar tensor, as of torch.nn.functional.cross_entropy. `train` and `test` are pairs
    (inputs, targets) of tensors whose first dimension is the samples', or map-style data sets. Integer targets are
    classes, of which accuracy is reported. `model` is in the mode that it is trained in; its forward is a function of
    its parameters and its input alone: no dropout.

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
    """The problem `module:function`: function(norm) -> Workload, `norm` making the run's norm of a number of units.

    The function is called once a process with torch's generator seeded by the run's seed, which makes the
    initialisation a function of it.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self._option = f"--problem {config.problem}"
        if (entry := norms.find(config.norm)) is not None and entry.over == "weights":
            raise InputError(
                f"{self._option}: --norm {config.norm} acts on layers, which are yours: apply "
                "torch.nn.utils.parametrizations.weight_norm to them, with --norm none"
            )
        self.workload = self._made()
        self.num_samples = self._length(self.workload.train, "train")
        if self.workload.test is not None:
            self.test_size = self._length(self.workload.test, "test")
        if config.batch_size > self.num_samples:
            raise InputError(
                f"--batch-size {config.batch_size}: larger than the {self.num_samples} training samples of "
                f"{config.problem}"
            )

    def _made(self) -> Workload:
        function, name, asked = code.load(self.config.problem, "problem"), self.config.norm, []

        def norm(num_features: int) -> nn.Module:
            asked.append(num_features)
            return norms.build(name, num_features)

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            try:
                made = function(norm)
            except InputError:
                raise
            except (Exception, SystemExit) as error:  # it raises whatever its author likes
                raise InputError(f"{self._option}: called with a norm, it fails ({code.explain(error)})") from error
        parts = tuple(made) if isinstance(made, tuple) else ()
        if len(parts) not in (3, 4) or not isinstance(parts[0], nn.Module) or not callable(parts[1]):
            raise InputError(
                f"{self._option}: returns a {type(made).__name__}; it is to return "
                "bnsmooth_cli.Workload(model, loss, train, test)"
            )
        dtypes = {p.dtype for p in trainable(parts[0]).values()}
        if not dtypes:
            raise InputError(f"{self._option}: its model has no parameters that are trained")
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise InputError(
                f"{self._option}: its model's parameters are of {kinds}; one floating-point type is needed"
            )
        if name != "none" and not asked:
            raise InputError(f"{self._option}: makes no use of the norm that it is called with; give --norm none")
        return Workload(*parts)

    def _length(self, data: Any, which: str) -> int:
        if _are_tensors(data):
            inputs, targets = data
            if not len(inputs) or len(inputs) != len(targets):
                raise InputError(
                    f"{self._option}: its {which} data has {len(inputs)} inputs and {len(targets)} targets"
                )
            return len(inputs)
        if isinstance(data, list | tuple) and len(data) == 2 and all(hasattr(values, "shape") for values in data):
            raise InputError(f"{self._option}: its {which} data are no tensors; convert them (torch.from_numpy)")
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
            raise InputError(
                f"{self._option}: its {which} data is a {type(data).__name__}; give (inputs, targets) as tensors, or a "
                "map-style data set that is not empty"
            )
        return len(data)

    def network(self) -> nn.Module:
        """A copy of the function's model."""
        return copy.deepcopy(self.workload.model)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The epoch's next samples; what a data set draws at random is a function of (seed, step)."""
        return self._samples(self.workload.train, self.indices(step), "train", step)

    def _samples(self, data: Any, chosen: Tensor, which: str, step: int = 0) -> tuple[Tensor, Tensor]:
        if _are_tensors(data):
            inputs, targets = (values[chosen.to(values.device)] for values in data)
        else:
            with torch.random.fork_rng(devices=[]):
                state = generator(self.config.seed, "augment", step)
                torch.default_generator.set_state(state.get_state())
                try:
                    inputs, targets = default_collate([_pair(data[i]) for i in chosen.tolist()])
                except (Exception, SystemExit) as error:  # it raises whatever its author likes
                    raise InputError(
                        f"{self._option}: its {which} data does not give pairs (input, target) that make a batch "
                        f"({code.explain(error)})"
                    ) from error
        dtype = next(iter(trainable(self.workload.model).values())).dtype
        inputs, targets = (v.to(dtype) if v.is_floating_point() else v for v in (inputs, targets))
        return inputs.to(self.device), targets.to(self.device)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test samples in order, as many at a time as a training step has."""
        if self.workload.test is not None:
            for chosen in torch.arange(self.test_size).split(self.config.batch_size):
                yield self._samples(self.workload.test, chosen, "test")

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The function's loss."""
        return self.workload.loss(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of largest outputs at the target, where targets are classes; else NaN."""
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
