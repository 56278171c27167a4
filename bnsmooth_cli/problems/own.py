"""Problems of the user's own: a function of theirs makes a model, a loss and data; what can be wrong with them."""

from __future__ import annotations

import copy
import re
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


class Loop(Problem):
    """A training loop of the user's own, where it stands: a model, and a function that is its loss there."""

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], device: torch.device, *, lr: float, step: int, norm: str,
        seed: int,
    ) -> None:  # fmt: skip
        config = Config(
            problem=f"loop:{re.sub('[^0-9A-Za-z_]', '_', type(model).__name__)}", norm=norm, lr=lr,
            steps=max(1, step), batch_size=2, seed=seed, momentum=0.0, save_every=1, eval_every=1,
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
    """Find out on the first batch whether code of the user's fits: `check_loss` of the network and its loss there.

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
        _attempt(option, misfit, lambda: problem.objective(outputs, targets))
        check_loss(model, lambda: problem.objective(model(inputs), targets), option)
    if problem.test_size:
        first = next(problem.test_batches())
        with evaluating(model), torch.no_grad():
            misfit = "its model and loss do not take the test data"
            _attempt(option, misfit, lambda: problem.objective(model(first[0]), first[1]))


def _attempt(option: str, what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # it raises whatever its author likes
        raise InputError(f"{option}: {what} ({code.explain(error)})") from error


def check_loss(model: nn.Module, loss: Callable[[], Any], option: str) -> list[Tensor]:
    """The gradients of a loss in the model's trained parameters, once it is one that can be measured.

    It is a scalar with a graph; no module puts out something else in a second evaluation, nor does the loss; no buffer
    changes; and the backward pass does not run the network again, whose parameters and norms are set to others by then.
    Raises InputError otherwise, and leaves the model as it was.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.enable_grad():
            found = _attempt(option, "its loss cannot be computed", loss)
            if not isinstance(found, Tensor) or found.dim() or not found.is_floating_point():
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(f"{option}: its loss is no scalar of floating point ({shape}); as in reduction='mean'")
            if not found.requires_grad:
                raise InputError(f"{option}: its loss does not depend on the model's parameters")
            _check_buffers(model, buffers, option)
            _check_repeatable(model, loss, option)
            return _gradients(model, loss, option)
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers and not torch.equal(value, buffers[name]):
                    value.copy_(buffers[name])


def _check_buffers(model: nn.Module, before: dict[str, Tensor], option: str) -> None:
    for name, value in model.named_buffers():
        if name not in before or not torch.equal(value, before[name]):
            raise InputError(
                f"{option}: its buffer '{name}' changes while it is measured; let it change only where the module's "
                "attribute update_statistics is true, or put a module of torch's into eval mode"
            )


def _gradients(model: nn.Module, loss: Callable[[], Tensor], option: str) -> list[Tensor]:
    found, again = loss(), []
    with hooked([m.register_forward_pre_hook(lambda m, _: again.append(m)) for m in model.modules()]):
        gradients = _attempt(
            option,
            "its loss cannot be differentiated",
            lambda: torch.autograd.grad(found, list(trainable(model).values()), materialize_grads=True),
        )
    if again:
        raise InputError(
            f"{option}: its backward pass runs the network again (gradient checkpointing); switch that off"
        )
    return list(gradients)


def _check_repeatable(model: nn.Module, loss: Callable[[], Tensor], option: str) -> None:
    device = next(model.parameters()).device
    runs: list[dict[str, Tensor]] = []
    for run in range(2):
        outputs: dict[str, Tensor] = {}

        def record(name: str, output: object, outputs: dict[str, Tensor] = outputs) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(name, output.detach().clone())

        handles = [
            m.register_forward_hook(lambda m, _, output, name=name, record=record: record(name, output))
            for name, m in model.named_modules()
        ]
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), hooked(handles):
            torch.manual_seed(run) if device.type == "cuda" else torch.default_generator.manual_seed(run)
            outputs["loss"] = loss().detach()
        runs.append(outputs)
    modules = dict(model.named_modules())
    # In the order in which modules end: the innermost comes first, the loss (which is no module's) last.
    for name in sorted(runs[0], key=lambda name: name == "loss"):
        first, second = runs[0][name], runs[1][name]
        size = float(first.abs().max()) if first.numel() else 0.0
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-5 * size, equal_nan=True):
            what = f"the module '{name or 'model'}' ({type(modules[name]).__name__})" if name in modules else "the loss"
            raise InputError(
                f"{option}: {what} gives another output each time; the loss has to be a function of the parameters: "
                "leave out what draws (dropout), or set its probability to 0"
            )
