"""Custom problems: a user's function that returns a model, a loss and data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from bnsmooth_cli import norms, user_code
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.networks.parameters import converted, copied, restored
from bnsmooth_cli.networks.replacing import put
from bnsmooth_cli.networks.wrappers import on_one_device, unwrapped
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.presets import CustomSettings
from bnsmooth_cli.problems.answers import Answers
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import Values, mapped, squared_deviations
from bnsmooth_cli.problems.checks import check_parameters
from bnsmooth_cli.problems.samples import Data, Samples, samples
from bnsmooth_cli.randomness import generator, seeded


class Workload(NamedTuple):
    """What the function of a custom problem returns. A plain tuple of the same values will do.

    Attributes:
        model: The network, in the mode in which it is trained. Its outputs must depend only on its parameters and
            inputs, so it must not use dropout. What `torch.compile`, DataParallel or DistributedDataParallel made of it
            is unwrapped.
        loss: Maps outputs and targets to a scalar tensor, as torch.nn.functional.cross_entropy does.
        train: The training data: a pair (inputs, targets) of tensors whose first dimension runs over samples, or a
            data set of pairs. Several inputs are a tuple, with which the model is called as `model(*inputs)`, or a
            dict, for `model(**inputs)`; a model whose forward pass does not take them as arguments gets them as a
            whole. Several targets reach the loss as they are. A dict in place of a pair is the inputs, and its entry
            "labels" the targets as well. Tuples and dicts may hold further ones. Of a DataLoader, the data set and the
            `collate_fn` are used. Of a data set without an index (an IterableDataset, a generator), the samples that
            the run takes are read into memory, and used in their order.
        test: The test data in the same form, if there are any.

    >>> from torch.nn import functional as F
    >>> def build(norm):
    ...     model = nn.Sequential(nn.Linear(2, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))
    ...     inputs = torch.randn(100, 2)
    ...     return Workload(model, F.cross_entropy, (inputs, (inputs[:, 0] > 0).long()))
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    train: Data
    test: Data | None = None


Builder = Callable[[Callable[[int], nn.Module]], Workload]


class CustomProblem(Problem):
    """The problem `module:function`, where function(norm) returns a `Workload`.

    `norm` makes the run's norm for a number of units. The function is called once, with the default generators of
    torch, numpy and `random` seeded by the run's seed, so the initialisation depends on the seed alone.
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
        # Those of all steps, of the last point, and of the step after it, on which `activations` has its floor.
        needed, seed = (config.steps + 2) * config.batch_size, generator(config.seed, "data").initial_seed()
        self._train = samples(self.workload.train, f"{self._option}: its train data", needed, seed)
        self.num_samples = len(self._train)
        self._test: Samples | None = None
        if self.workload.test is not None:
            self._test = samples(self.workload.test, f"{self._option}: its test data", seed=seed)
            self.test_size = len(self._test)
        self._answers = Answers(self.workload.loss)
        if config.batch_size > self.num_samples:
            raise InputError(
                f"--batch-size {config.batch_size}: larger than the {self.num_samples} training samples of "
                f"{config.problem}"
            )

    def _call_function(self) -> Workload:
        function, name, requested = user_code.load(self.config.problem, "problem"), self.config.norm, []

        def norm(num_features: int, *, device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
            requested.append(num_features)
            return norms.build(name, num_features).to(device, dtype)  # timm gives both to its norms

        with seeded(self.config.seed), user_code.explaining(f"{self._option}: called with a norm, it fails"):
            result = function(norm)
        parts = tuple(result) if isinstance(result, tuple) else ()
        if len(parts) not in (3, 4) or not isinstance(parts[0], nn.Module) or not callable(parts[1]):
            raise InputError(
                f"{self._option}: returns a {type(result).__name__}; it has to return "
                "bnsmooth_cli.Workload(model, loss, train, test)"
            )
        model = unwrapped(parts[0], self._option)
        parameters = [*model.parameters()]
        if parameters and not any(map(is_lazy, parameters)):  # others come with the first forward pass
            check_parameters(model, self._option)
        loss = parts[1]
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            said = "its loss has parameters, which are not trained; those of the model are (or set requires_grad=False)"
            remark(f"{self._option}: {said}")
        if isinstance(settings := self.config.settings, CustomSettings) and settings.swap_norm:
            with seeded(self.config.seed), user_code.explaining(f"{self._option}: --swap-norm"):
                replaced = put(model, name)
            remark(f"{self._option}: {replaced}")
        elif name != "none" and not requested:
            raise InputError(
                f"{self._option}: makes no use of the norm that it is called with; give --norm none for the model as "
                "it is, or --swap-norm to replace its norm modules"
            )
        return Workload(model, *parts[1:])

    def call(self, model: nn.Module, inputs: Values) -> Any:
        """The network's outputs, as in `Problem.call`; what is made for several devices runs on one."""
        with on_one_device():
            return super().call(model, inputs)

    def network(self) -> nn.Module:
        """A copy of the function's model."""
        model = self.workload.model
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
            self._run_once(model)  # lazy buffers cannot be copied
        with user_code.explaining(f"{self._option}: its model cannot be copied"):
            return copied(model)

    def batch(self, step: int) -> tuple[Values, Values]:
        """The next samples of the epoch. Random draws of a data set depend only on the seed and the step."""
        return self._samples(self._train, self.indices(step), step)

    def indices(self, step: int) -> Tensor:
        """The samples of a step's batch: of a stream the next ones, of all other data as in `Problem.indices`."""
        if not self._train.ordered:
            return super().indices(step)
        size = self.config.batch_size
        if step > self.config.steps + 1 and self.num_samples == (self.config.steps + 2) * size:
            raise InputError(
                f"{self._option}: its train data are a stream, of which the batches of {self.config.steps + 2} steps "
                "are kept; measure fewer batches (--objective train:K), or give more --steps"
            )
        first = step % (self.num_samples // size) * size
        return torch.arange(first, first + size)

    def _samples(self, data: Samples, indices: Tensor, step: int = 0) -> tuple[Values, Values]:
        inputs, targets = data.batch(indices, generator(self.config.seed, "augment", step).initial_seed())
        return self._converted(inputs), self._converted(targets)

    def _converted(self, values: Values) -> Values:
        """The values on the problem's device, and in the precision of the network if all of it has one."""
        types = {p.dtype for p in self.workload.model.parameters() if p.is_floating_point()}
        # The loss and the layers of a network of several types expect the types that the user gives.
        dtype = types.pop() if len(types) == 1 else None
        return mapped(lambda tensor: converted(tensor, self.device, dtype), values)

    def test_batches(self) -> Iterator[tuple[Values, Values]]:
        """The test samples in order, in batches of the run's size."""
        if self._test is not None:
            for indices in torch.arange(self.test_size).split(self.config.batch_size):
                yield self._samples(self._test, indices)

    def check_data(self) -> None:
        """Read the first samples again. Raises InputError if they are now different."""
        for data in (self._train, self._test):
            if data is not None:
                data.check()

    def check_code(self) -> None:
        """Check that the loss, the hooks and the forward pass do not use the function's model, which is not trained.

        A copy of it is. The function's model is overwritten for a moment, and what is computed from it is not finite.
        """
        inputs, targets = self.batch(0)
        original = [*self.workload.model.parameters(), *self.workload.model.buffers()]
        original = [values for values in original if not is_lazy(values) and values.is_floating_point()]
        with torch.enable_grad(), prepared(stateful(self.initial), self.config.seed, 0), restored(original):
            before = self.objective(self.call(self.initial, inputs), targets)
            for values in original:
                values.data.fill_(torch.nan)
            after = self.objective(self.call(self.initial, inputs), targets)
        if before.isfinite() and not after.isfinite():
            raise InputError(
                f"{self._option}: its loss, a hook or a function in place of forward uses the model that the function "
                "made, but a copy of it is trained; let the forward pass put out what the loss needs, or give "
                "--weight-decay for an L2 penalty"
            )

    def objective(self, outputs: Any, targets: Any) -> Tensor:
        """The user's loss. A module, which may hold the weights of classes, is in float64 where the outputs are."""
        loss = self.workload.loss
        if isinstance(loss, nn.Module) and isinstance(outputs, Tensor) and outputs.dtype == torch.float64:
            loss = self._double_loss
        return loss(outputs, targets)

    @functools.cached_property
    def _double_loss(self) -> Callable[[Any, Any], Tensor]:
        return copied(self.workload.loss)._apply(lambda tensor: converted(tensor, tensor.device, torch.float64))  # type: ignore[arg-type]

    def answers(self, outputs: Any, targets: Any) -> Tensor:
        """The numbers of right answers and of all answers (2,); NaN if the shapes and the loss do not tell them."""
        found = self._answers.count(outputs, targets)
        return torch.full((2,), torch.nan, device=self.device) if found is None else found

    def baseline(self) -> dict[str, float]:
        """The share of the most frequent class; the loss of the best constant map if the loss is torch's `mse_loss`.

        The network runs on one batch, because the shape of its outputs tells which targets are classes. A data set
        whose targets come only with their inputs may be slow to read, so its training split is not read.
        """
        model = self.initial
        inputs, _ = next(self.test_batches(), self.batch(0))
        mode = evaluating(model) if self.test_size else prepared(stateful(model), self.config.seed, 0)
        with mode, self.forward_only(), seeded(self.config.seed):
            outputs = self.call(model, inputs)
        if not isinstance(outputs, Tensor) or not outputs.dim():
            return {}
        found = {"accuracy": self._largest_share(outputs), "loss": self._least_constant_loss(outputs)}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _largest_share(self, outputs: Tensor) -> float:
        """The share of the most frequent class among the targets; NaN if they are not classes, or not read.

        Args:
            outputs: The network's outputs for any samples.
        """
        total = torch.zeros((), dtype=torch.float64)
        for targets in self._targets():
            if not isinstance(targets, Tensor):
                return math.nan
            outputs = outputs[:1].expand(len(targets), *outputs.shape[1:])
            if (counts := self._answers.by_class(outputs, targets)) is None:
                return math.nan
            total = total + counts.cpu().double()
        return (total.max() / total.sum()).item()

    def _targets(self) -> Iterator[Values | None]:
        """The targets of the test set, or of the training set if there is no test set, in batches; None if unread."""
        if self._test is not None:
            yield from (targets for _, targets in self.test_batches())
            return
        for indices in torch.arange(self.num_samples).split(self.config.batch_size):
            targets = self._train.targets(indices)
            yield None if targets is None else self._converted(targets)

    def _least_constant_loss(self, outputs: Tensor) -> float:
        """The training loss of the best constant map; NaN unless it is a plain squared error of targets in memory."""
        loss = self.workload.loss
        reduction = loss.reduction if type(loss) is nn.MSELoss else "mean" if loss is F.mse_loss else None
        targets = self._train.targets(torch.arange(self.num_samples)) if reduction is not None else None
        if not isinstance(targets, Tensor) or targets.shape[1:] != outputs.shape[1:]:
            return math.nan
        share = 1 / targets.numel() if reduction == "mean" else self.config.batch_size / self.num_samples
        return squared_deviations(targets) * share
