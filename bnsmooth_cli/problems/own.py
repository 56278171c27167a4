"""Problems of the user's own: a function of theirs makes a model, a loss and data; what can be wrong with them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import default_collate

from bnsmooth_cli import code, norms
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.problems.base import Problem, evaluating
from bnsmooth_cli.problems.layers import hooked, trainable
from bnsmooth_cli.streams import generator


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


class Own(Problem):
    """The problem `module:function`: function(norm) -> Workload, `norm` making the run's norm of a number of units.

    The function is called once a process with torch's generator seeded by the run's seed, which makes the
    initialisation a function of it.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self._option = f"--problem {config.problem}"
        if config.norm == "weight":
            raise InputError(
                f"{self._option}: --norm weight acts on layers, which are yours: apply "
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
        function = code.load(self.config.problem, "problem")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            try:
                made = function(functools.partial(norms.build, self.config.norm))
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
        if not trainable(parts[0]):
            raise InputError(f"{self._option}: its model has no parameters that are trained")
        return Workload(*parts)

    def _length(self, data: Any, which: str) -> int:
        if _are_tensors(data):
            inputs, targets = data
            if not len(inputs) or len(inputs) != len(targets):
                raise InputError(
                    f"{self._option}: its {which} data has {len(inputs)} inputs and {len(targets)} targets"
                )
            return len(inputs)
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
                    inputs, targets = default_collate([tuple(data[i]) for i in chosen.tolist()])
                except (Exception, SystemExit) as error:  # it raises whatever its author likes
                    raise InputError(
                        f"{self._option}: its {which} data does not give pairs (input, target) that make a batch "
                        f"({code.explain(error)})"
                    ) from error
        return _plain(inputs).to(self.device), _plain(targets).to(self.device)

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


def _plain(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float64 else values  # as numbers of Python are collated


class Loop(Problem):
    """A training loop of the user's own, where it stands: a model, and a function that is its loss there."""

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], device: torch.device, *, lr: float, step: int, norm: str,
        momentum: float, seed: int,
    ) -> None:  # fmt: skip
        config = Config(
            problem=f"loop:{type(model).__name__}", norm=norm, lr=lr, steps=max(1, step), batch_size=2, seed=seed,
            momentum=momentum, save_every=1, eval_every=1,
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


def check(problem: Problem) -> None:
    """Find out on the first batch whether code of the user's fits: a scalar loss, differentiable, and the same in every
    evaluation, which leaves all buffers as they are.

    Raises InputError, naming the module that is at fault.
    """
    config = problem.config
    option = f"--problem {config.problem}" if code.is_code(config.problem) else f"--norm {config.norm}"
    model = problem.build()
    inputs, targets = problem.batch(0)
    with norms.prepared(norms.stateful(model), config.seed, 0):
        outputs = _attempt(option, "its model does not take a batch", lambda: model(inputs))
        if not isinstance(outputs, Tensor):
            raise InputError(f"{option}: its model puts out a {type(outputs).__name__}; a tensor is needed")
        misfit = f"its loss does not take the model's outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        loss = _attempt(option, misfit, lambda: problem.objective(outputs, targets))
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"{option}: its loss is no scalar of floating point ({shape}); as in reduction='mean'")
        if not loss.requires_grad:
            raise InputError(f"{option}: its loss does not depend on the model's parameters")
        check_repeatable(model, lambda: model(inputs), option)
    if problem.test_size:
        first = next(problem.test_batches())
        with evaluating(model), torch.no_grad():
            misfit = "its model and loss do not take the test data"
            _attempt(option, misfit, lambda: problem.objective(model(first[0]), first[1]))


def _attempt(option: str, what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (Exception, SystemExit) as error:  # it raises whatever its author likes
        raise InputError(f"{option}: {what} ({code.explain(error)})") from error


def check_repeatable(model: nn.Module, forward: Callable[[], object], option: str) -> None:
    """Run the network twice: raise InputError, naming the module, where an output differs or a buffer has changed."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    device = next(model.parameters()).device
    runs: list[dict[str, Tensor]] = []
    for _ in range(2):
        outputs: dict[str, Tensor] = {}

        def record(name: str, output: object, outputs: dict[str, Tensor] = outputs) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(name, output.detach().clone())

        handles = [
            m.register_forward_hook(lambda m, _, output, name=name, record=record: record(name, output))
            for name, m in model.named_modules()
        ]
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), hooked(handles):
            torch.manual_seed(len(runs)) if device.type == "cuda" else torch.default_generator.manual_seed(len(runs))
            forward()
        runs.append(outputs)
    modules = dict(model.named_modules())
    for name, output in runs[0].items():  # in the order in which modules end: the innermost comes first
        if not torch.allclose(output, runs[1][name], rtol=1e-3, atol=1e-5, equal_nan=True):
            kind = type(modules[name]).__name__
            raise InputError(
                f"{option}: the module '{name or 'model'}' ({kind}) gives another output each time; the loss has to be "
                "a function of the parameters: leave it out, or set its probability to 0"
            )
    for name, value in model.named_buffers():
        if not torch.equal(value, before[name]):
            raise InputError(
                f"{option}: its buffer '{name}' changes while it is measured; let it change only where the module's "
                "attribute update_statistics is true"
            )
