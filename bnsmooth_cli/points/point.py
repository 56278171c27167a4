"""One point of a trajectory: the state at a step and the batch that training used there; how points are reached."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnsmooth_cli.config import Config, check_objective
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.derivatives.hessian import Hessian, twice_differentiable
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.networks.parameters import flatten, positions, trainable
from bnsmooth_cli.networks.structure import Names, Site, structure
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.points.curvature import Curvature, complex_step, double_backward, restricted
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.checks import check_loss
from bnsmooth_cli.problems.loop import ExternalLoop

Values = Mapping[str, Tensor]


class _Term(NamedTuple):
    """A part of the objective: a batch, the step whose noise it has, and its weight in the mean."""

    inputs: Tensor
    targets: Tensor
    step: int
    share: float


@dataclass(frozen=True)
class Point:
    """The network at theta_t with the batch (x_t, y_t), batch statistics in use and running ones left alone.

    A measurement reads a point and leaves it bit-identical. `theta` is the network's trained parameters as one flat
    vector of n numbers, in the order of `model.parameters()`; the loss is a function of it (`gradients_at`): by default
    that of the batch, with `objective` "train:K" the mean over the batches of steps 0 to K - 1, each with its own
    step's noise, with "test" the mean over the test set, in eval mode.
    """

    problem: Problem
    model: nn.Module
    velocity: list[Tensor]
    step: int
    inputs: Tensor
    targets: Tensor
    run: str
    objective: str = "batch"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        lr: float,
        step: int = 0,
        run: str = "loop",
        norm: str = "own",
        seed: int = 0,
    ) -> Point:
        """The point at which a training loop of your own stands: `loss()` is the scalar loss of `model` as it is now.

        lr is the step length that probes are multiples of, and that of ICS's plain SGD step; `run`, `norm` and `seed`
        label the rows. The model, its mode and torch's generators are left as they are; `loss` calls the model, and
        neither `backward` nor an optimiser. Raises InputError for a loss that cannot be measured: no scalar with a
        graph, another one each time (the module is named), or of parameters that it does not take from the model as it
        is.

        >>> import bnsmooth_cli as bns
        >>> model, x, y = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
        >>> point = bns.Point.of(model, lambda: (model(x) - y).square().mean(), lr=0.1)
        >>> len(bns.landscape(point, alphas=[0.5, 1.0]))
        3
        """
        theirs = list(trainable(model).values())
        if not theirs:
            raise InputError("loss: the model has no parameters that are trained")
        problem = ExternalLoop(model, loss, theirs[0].device, lr=lr, step=int(step), norm=norm, seed=seed)
        nothing = torch.empty(0, device=theirs[0].device, dtype=theirs[0].dtype)
        point = cls(problem, model, [], int(step), nothing, nothing, run)
        with prepared(point.norms, seed, step):
            gradients = check_loss(model, loss, "loss")
        by_values = point.gradients_at(point.theta[None])[1][0]
        if not torch.allclose(by_values, flatten(gradients), rtol=1e-3, atol=1e-5 * float(by_values.abs().max())):
            raise InputError(
                "loss: depends on parameters that it does not take from the model while it is called; take them, as by "
                "model.parameters(), inside of it"
            )
        return point

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.problem.config

    @functools.cached_property
    def norms(self) -> tuple[nn.Module, ...]:
        """The modules that are set to a step: walking the module tree at every pass would cost too much."""
        return stateful(self.model)

    @property
    def layers(self) -> Names:
        """Ordered (layer name, its parameters' names): what ICS calls layers."""
        return self._structure[0]

    @property
    def sites(self) -> list[Site]:
        """Where norms act in the network, or could."""
        return self._structure[1]

    @functools.cached_property
    def _structure(self) -> tuple[Names, list[Site]]:
        with torch.no_grad():
            return structure(self.model, self.at("batch").loss)

    def to(self, dtype: torch.dtype) -> Point:
        """The point in another precision: itself where it has it already, else a copy of the network and its batch.

        What has no float64 (MPS) hands such a point to the CPU. Raises InputError for a loop of the user's own.
        """
        if next(self.model.parameters()).dtype == dtype:
            return self
        if isinstance(self.problem, ExternalLoop):
            raise InputError(f"a point of your own loop is measured as it is; for {dtype} convert your model and data")
        device = self.inputs.device
        if dtype == torch.float64 and device.type == "mps":
            device = torch.device("cpu")
        return dataclasses.replace(
            self,
            model=copy.deepcopy(self.model).to(device, dtype),
            velocity=[v.to(device, dtype) for v in self.velocity],
            inputs=_as(self.inputs, dtype).to(device),
            targets=_as(self.targets, dtype).to(device),
        )

    def at(self, objective: str) -> Point:
        """The point with another objective; InputError for one that the problem does not have."""
        check_objective(objective)
        if objective == "test" and not self.problem.test_size:
            raise InputError(f"--objective test: the problem {self.config.problem} has no test set")
        if objective != "batch" and isinstance(self.problem, ExternalLoop):
            raise InputError(f"--objective {objective}: a point of your own loop has the loss that it was made with")
        return self if objective == self.objective else dataclasses.replace(self, objective=objective)

    @property
    def theta(self) -> Tensor:
        """A copy of the trained parameters, shape (n,)."""
        return flatten(p.detach() for p in trainable(self.model).values())

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """The objective with this step's noise, as a scalar with its graph.

        `model` is any module of the same architecture (a copy with other parameters, say); None is the point's own.
        """
        return self._mean(self._losses(self.model if model is None else model))

    def loss_at(self, values: Values) -> Tensor:
        """The same at other values of the parameters, by name, with its graph."""
        return self._mean(self._losses(self.model, values))

    def _mean(self, losses: Iterable[tuple[float, Tensor]]) -> Tensor:
        terms = [loss if share == 1 else share * loss for share, loss in losses]
        return functools.reduce(torch.add, terms)

    def _terms(self, dtype: torch.dtype) -> Iterator[_Term]:
        kind, _, count = self.objective.partition(":")
        found: Iterable[_Term]
        if kind == "batch":
            found = [_Term(self.inputs, self.targets, self.step, 1.0)]
        elif kind == "train":
            found = (_Term(*self.problem.batch(step), step, 1 / int(count)) for step in range(int(count)))
        else:
            sizes = self.problem.test_size
            found = (_Term(x, y, self.step, len(y) / sizes) for x, y in self.problem.test_batches())
        for inputs, targets, step, share in found:
            device = next(self.model.parameters()).device
            yield _Term(_as(inputs, dtype).to(device), _as(targets, dtype).to(device), step, share)

    def _losses(self, model: nn.Module, values: Values | None = None) -> Iterator[tuple[float, Tensor]]:
        """The objective's terms, at parameter values in place of the network's own: shares and losses."""
        modules = self.norms if model is self.model else stateful(model)
        dtype = next(model.parameters()).dtype
        with evaluating(model) if self.objective == "test" else nullcontext():
            for inputs, targets, step, share in self._terms(dtype):
                with prepared(modules, self.config.seed, step):
                    yield share, self.problem.objective(self.problem.call(model, values, inputs), targets)

    @property
    def fast_path(self) -> FastPath | None:
        """A faster way to losses and gradients at many parameter vectors, where the problem has one."""
        return self.problem.fast_path(self.inputs.dtype, self.inputs.device) if self.objective == "batch" else None

    def gradients_at(self, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (P,) at parameter vectors (P, n) and their gradients (P, n), without a graph."""
        if self.fast_path is not None:
            found = self.fast_path(thetas)
            return found.loss, found.gradient
        gradients = torch.zeros_like(thetas)
        losses = [self._gradient_at(theta, gradient) for theta, gradient in zip(thetas, gradients, strict=True)]
        return torch.stack(losses), gradients

    def _gradient_at(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The loss; the gradient is added to `gradient`."""
        values = {name: value.requires_grad_() for name, value in self.values(theta).items()}
        total = theta.new_zeros(())
        for share, loss in self._losses(self.model, values):
            found = torch.autograd.grad(loss, list(values.values()), materialize_grads=True)
            for piece, one in zip(gradient.split([v.numel() for v in found]), found, strict=True):
                piece.view(one.shape).add_(one, alpha=share)
            total += share * loss.detach()
        return total

    def values(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters' values in a vector, copies in the layouts that the parameters have: a convolution would
        convert its weights, and their gradient, at every use."""
        named = trainable(self.model)
        pieces = theta.split([p.numel() for p in named.values()])
        return {
            name: torch.empty_like(p, requires_grad=False).copy_(piece.view(p.shape))
            for (name, p), piece in zip(named.items(), pieces, strict=True)
        }

    @torch.no_grad()
    def losses_at(self, thetas: Iterable[Tensor]) -> Tensor:
        """The losses (P,) at parameter vectors (n,), by forward passes alone; a vector may be changed afterwards."""
        fast_path, values = self.fast_path, self.values(self.theta)
        found = []
        for theta in thetas:
            if fast_path is not None:
                found.append(fast_path.losses(theta[None])[0])
                continue
            for value, piece in zip(values.values(), theta.split([v.numel() for v in values.values()]), strict=True):
                value.copy_(piece.view(value.shape))
            found.append(self.loss_at(values))
        return torch.stack(found)

    def hessian(self) -> Curvature:
        """The gradient (n,) and the function that multiplies a vector (n,) by the Hessian.

        Computed by the network's own derivatives (`Hessian`) if it is a chain, by a complex step if the point has a
        fast path, and by PyTorch's double backward otherwise.
        """
        fast_path = self.fast_path
        if fast_path is not None and self.inputs.device.type != "mps":  # which lacks complex operations
            return complex_step(fast_path, self.theta)
        if self._is_chain:
            with prepared(self.norms, self.config.seed, self.step), twice_differentiable():
                hessian = Hessian(
                    self.model, self.inputs, lambda outputs: self.problem.objective(outputs, self.targets)
                )
            return hessian.gradient, hessian
        return self._double_backward(list(trainable(self.model)))

    def hessian_blocks(self, blocks: Iterable[Sequence[str]]) -> Iterator[Curvature]:
        """`hessian` of the loss as a function of some parameters alone, for each block of parameter names."""
        if self.fast_path is None and not self._is_chain:  # a block's graph reaches no further down than the block
            yield from (self._double_backward(names) for names in blocks)
            return
        curvature = self.hessian()
        for names in blocks:
            yield restricted(curvature, self.places(names))

    @property
    def _is_chain(self) -> bool:
        """Whether the network's own derivatives are known, module by module."""
        return isinstance(self.model, Chain) and self.objective == "batch"

    def _double_backward(self, names: Sequence[str]) -> Curvature:
        values = self.values(self.theta)
        leaves = [values[name].requires_grad_() for name in names]
        terms = functools.partial(self._losses, self.model, values)
        return double_backward(terms, leaves, keep_graph=self.objective == "batch")

    def places(self, names: Sequence[str]) -> Tensor:
        """The indices in theta of the elements of the named parameters."""
        return positions(self.model, names)


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values
