"""A point of a trajectory: the network's state at a training step, with the batch that training uses there."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.derivatives.gauss_newton import Pass, gauss_newton
from bnsmooth_cli.derivatives.products import Curvature, Product, complex_step, double_backward, restricted
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.graphs import own_functions
from bnsmooth_cli.networks.hooks import evaluating
from bnsmooth_cli.networks.parameters import (
    converted,
    copied,
    fill,
    flatten,
    penalised,
    positions,
    precision,
    restored,
    squares,
    trainable,
    unflatten,
)
from bnsmooth_cli.networks.structure import Names, Structure, structure
from bnsmooth_cli.networks.undisturbed import recording, undisturbed
from bnsmooth_cli.networks.wrappers import unwrapped
from bnsmooth_cli.norms.noise import Noise
from bnsmooth_cli.norms.state import others_still, prepared, stateful
from bnsmooth_cli.optimisers import check_users, unscheduled
from bnsmooth_cli.points.objective import Batch, Objective
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import Values, mapped, size
from bnsmooth_cli.problems.checks import check_loss, check_parameters
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.storage.cards import Card, Shown, guarded, settings_in_words
from bnsmooth_cli.training.optimisers import External, Optimiser, optimiser_of
from bnsmooth_cli.user_code import explaining


@dataclass(frozen=True, repr=False)
class Point(Shown):
    r"""The network at $\theta_t$ with the batch $(x_t, y_t)$ that training uses at step t.

    The loss is a function of the flat vector `theta`, and includes the L2 penalty of the weights if training does. The
    network runs with batch statistics and the noise of the step, and its running statistics do not change. A
    measurement reads a point and leaves it bit-identical.

    Attributes:
        problem: The run's problem.
        model: The network.
        optimiser: The optimiser with its state before the step.
        step: The training step t.
        inputs: The inputs $x_t$.
        targets: The targets $y_t$.
        run: The name of the run, which labels the rows of a measurement.
        objective: The loss to measure: "batch", "train:K", "eval" or "test" (`bnsmooth_cli.points.objective`).
    """

    problem: Problem
    model: nn.Module
    optimiser: Optimiser
    step: int
    inputs: Values
    targets: Values
    run: str
    objective: Objective = Objective("batch")  # noqa: RUF009  immutable

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Callable[[], Tensor],
        *,
        lr: float | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        step: int = 0,
        run: str = "loop",
        norm: str = "own",
        seed: int = 0,
        objective: str = "batch",
    ) -> Point:
        """The current point of your own training loop.

        The model, its mode, its gradients and the random generators are left as they are.

        Args:
            model: The network that is being trained. What `torch.compile`, DataParallel or DistributedDataParallel
                made of it is unwrapped: it is measured on one device.
            loss: A function that computes the scalar loss of the model's current state. It may differentiate, but must
                call neither `backward` nor an optimiser.
            lr: The learning rate: the unit of step length of the line probes, and the length of ICS's SGD step. It may
                be left out if there is an optimizer.
            optimizer: The optimiser of the loop, if ICS and probes are to take its step instead of SGD's. Its learning
                rate and state are read, and left as they are. What the loop does to gradients before the optimiser's
                step, such as clipping, is not seen.
            step: The training step.
            run: The name of the run in the rows of a measurement.
            norm: The name of the norm in those rows.
            seed: The seed in those rows, which also seeds the random directions of measurements.
            objective: "batch" for the loss in the mode that the model is in, or "eval" for that in eval mode, without
                dropout.

        Raises:
            InputError: If there is neither lr nor optimizer, the optimizer does not update the model's parameters or
                has the learning rate 0 at this step, the parameters are distributed over processes (FSDP), or the loss
                cannot be measured: it is not a scalar with a graph, it differs between two calls (the message names the
                module), it calls `backward`, or it depends on a tensor that was computed from the parameters before.

        >>> import bnsmooth_cli as bns
        >>> model, x, y = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
        >>> point = bns.Point.of(model, lambda: (model(x) - y).square().mean(), lr=0.1)
        >>> len(bns.landscape(point, alphas=[0.5, 1.0]))
        3
        """
        loop = external_loop(model, loss, lr=lr, optimizer=optimizer, norm=norm, seed=seed)
        return cls.of_loop(loop, optimizer, int(step), run, Objective(objective).check_loop())

    @classmethod
    def of_loop(
        cls, problem: ExternalLoop, optimizer: torch.optim.Optimizer | None, step: int, run: str, objective: Objective
    ) -> Point:
        """The current point of a training loop (`external_loop`). The arguments are those of `of`."""
        model = problem.network()
        optimiser = optimiser_of(problem.config, model)
        first = next(iter(trainable(model).values()))
        problem.device = first.device  # the model may have been moved
        no_data = torch.empty(0, dtype=first.dtype, device=first.device)
        point = cls(problem, model, optimiser, step, no_data, no_data, run, objective)
        if optimizer is not None:
            external = External(optimiser.parameters, problem.config, optimizer, point._reached)
            point = dataclasses.replace(point, optimiser=external)
        if not point.lr:
            raise InputError("lr: is 0 at this step, and step lengths are its multiples; measure another step")
        with (
            point.undisturbed(),
            point._mode(model, differentiated=False),
            prepared(point.norms, problem.config.seed, step),
        ):
            check_loss(model, problem.loss, "loss")
        return point

    def _card(self) -> Card:
        def lines() -> Card:
            config, parameters = self.config, self.parameters.values()
            loop = isinstance(self.problem, ExternalLoop)
            number, first = sum(p.numel() for p in parameters), next(iter(parameters))
            scheduled = "" if self.lr == config.lr else f" ({self.lr:.3g} at this step)"
            return Card("Point", name, {
                "of": f"your own training loop, lr {config.lr:g}" if loop else
                      f"{config.problem}, norm {config.norm}, lr {config.lr:g}{scheduled}, seed {config.seed}",
                "settings": "" if loop else settings_in_words(config),
                "network": f"{number:,} parameters, {str(first.dtype).removeprefix('torch.')} on {first.device}",
                "batch": "" if loop else f"{size(self.inputs):,} samples",
                "objective": str(self.objective),
            })  # fmt: skip

        name = f"{self.run}, step {self.step}"
        return guarded("Point", name, lines)

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.problem.config

    @property
    def lr(self) -> float:
        """The learning rate of the step."""
        return self.optimiser.lr(self.step)

    @property
    def velocity(self) -> list[Tensor]:
        """The momentum buffers of SGD, one per trained parameter; empty without momentum."""
        return self.optimiser.velocity

    @property
    def settings(self) -> str:
        """The column `settings` of its rows; "" in a user's loop, whose settings are unknown."""
        return "" if isinstance(self.problem, ExternalLoop) else self.config.settings_text

    @functools.cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in their order in theta."""
        return trainable(self.model)

    @functools.cached_property
    def norms(self) -> tuple[nn.Module, ...]:
        """The modules that `prepared` sets to a step; cached because each pass needs them."""
        return self._stateful(self.model)

    def _stateful(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The modules of a network that are set to a step. The noise in a user's own loop is the loop's."""
        modules = stateful(model)
        if isinstance(self.problem, ExternalLoop):
            return tuple(module for module in modules if not isinstance(module, Noise))
        return modules

    @functools.cached_property
    def structure(self) -> Structure:
        """The layers of the network and the sites where norms act."""
        own = self if isinstance(self.problem, ExternalLoop) else self.at("batch")
        with self.undisturbed():
            return structure(self.model, own.loss)

    @property
    def chain(self) -> Chain | None:
        """The network if it is a chain; None in a user's loop, whose loss may use its outputs in any way."""
        return self.model if isinstance(self.model, Chain) and not isinstance(self.problem, ExternalLoop) else None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The context of a measurement (`networks.undisturbed`). Built-in networks need no more than gradients."""
        if not self.problem.has_users_code:
            with recording():
                yield
            return
        with undisturbed(self.model), others_still(self.model):
            yield

    @functools.cached_property
    def own_functions(self) -> list[str]:
        """The names of the user's subclasses of torch.autograd.Function that compute the objective."""
        return own_functions([self.loss()]) if self.problem.has_users_code else []

    @functools.cached_property
    def _penalised(self) -> list[str]:
        return penalised(self.model)

    @property
    def _weight_decay(self) -> float:
        """The c of the penalty in this point's objective."""
        return self.config.penalty if self.objective.penalised else 0.0

    def penalty(self, model: nn.Module | None = None) -> Float[Tensor, ""]:
        r"""The L2 penalty $c \|W\|^2 / 2$ of the weights that the objective includes, with its graph.

        Args:
            model: A module of the same architecture instead of the point's own.
        """
        parameters = self.parameters if model is None else trainable(model)
        if not self._weight_decay:
            return next(iter(parameters.values())).new_zeros(())
        return self._weight_decay / 2 * squares(parameters[name] for name in self._penalised)

    @property
    def weight_norm(self) -> float:
        r"""The norm $\|W\|$ of the weights in `penalty`, whatever c is, in float64; NaN if there are no weights."""
        weights = [self.parameters[name].detach().cpu() for name in self._penalised]  # not every device has float64
        norms = [torch.linalg.vector_norm(weight, dtype=torch.float64).item() for weight in weights]
        return math.hypot(*norms) if norms else math.nan

    @property
    def layers(self) -> Names:
        """The layers in order: each layer's name and the names of its parameters."""
        return self.structure.layers

    def to(self, dtype: torch.dtype) -> Point:
        """The point in another precision: a copy of the network and its batch, or the point itself if nothing changes.

        On a device without float64 (MPS), a float64 point moves to the CPU.

        Raises:
            InputError: If the point belongs to your own training loop, or your code does not take this precision.
        """
        if all(p.dtype == dtype for p in self.parameters.values()):
            return self
        if isinstance(self.problem, ExternalLoop):
            raise InputError(
                f"a point of your own loop has the precision of its model; for {dtype} convert your model and data"
            )
        device = next(self.model.parameters()).device
        if dtype == torch.float64 and device.type == "mps":
            device = torch.device("cpu")
        model = copied(self.model)._apply(lambda tensor: converted(tensor, device, dtype))
        point = dataclasses.replace(
            self,
            model=model,
            optimiser=self.optimiser.on([*trainable(model).values()]),
            inputs=_cast(self.inputs, device, dtype),
            targets=_cast(self.targets, device, dtype),
        )
        if self.problem.has_users_code:
            hint = f"computed in {str(dtype).removeprefix('torch.')}; make its constants in the type of its inputs"
            explained = explaining(f"{self.problem.option}: cannot be {hint}, as x.new_zeros(3) does")
            with explained, point.undisturbed():
                point.at("batch").loss()
        return point

    def at(self, objective: str | None) -> Point:
        """The point with another objective.

        Args:
            objective: "batch", "train:K", "eval" or "test"; None keeps the point's own.

        Raises:
            InputError: If the problem does not have the objective.
        """
        chosen = self.objective if objective is None else Objective(objective)
        if chosen != self.objective and isinstance(self.problem, ExternalLoop):
            raise InputError(f"--objective {chosen}: this point of your own loop has one objective, {self.objective}")
        if chosen == "test" and not self.problem.test_size:
            raise InputError(f"--objective test: the problem {self.config.problem} has no test set")
        return self if chosen == self.objective else dataclasses.replace(self, objective=chosen)

    @property
    def theta(self) -> Float[Tensor, " n"]:
        """A copy of the trained parameters, in the order of `model.parameters()` and in their `precision`."""
        parameters = self.parameters.values()
        return flatten(p.detach() for p in parameters).to(precision(parameters))

    def loss(self, model: nn.Module | None = None) -> Float[Tensor, ""]:
        """The objective, with its graph.

        Args:
            model: A module of the same architecture to evaluate instead of the point's own, such as a copy with other
                parameters.
        """
        if model not in (None, self.model) and isinstance(self.problem, ExternalLoop):
            raise InputError("model: the loss of your own loop is that of its own model; change that one's parameters")
        return _sum(self._terms(self.model if model is None else model))

    def _terms(self, model: nn.Module, differentiated: bool = True) -> Iterator[tuple[float, Tensor]]:
        """The shares and losses that add up to the objective, which may be `differentiated`."""
        for share, outputs, loss in self._passes(model, differentiated):
            yield share, loss(outputs)
        if self._weight_decay:
            yield 1.0, self.penalty(None if model is self.model else model)

    def _passes(
        self, model: nn.Module, differentiated: bool = True
    ) -> Iterator[tuple[float, Any, Callable[[Any], Tensor]]]:
        """The share, the outputs and the loss as a function of outputs of each batch of the objective."""
        modules, parameters = self.norms, self.parameters
        if model is not self.model:
            modules, parameters = self._stateful(model), trainable(model)
        device, types = next(iter(parameters.values())).device, {p.dtype for p in parameters.values()}
        dtype = types.pop() if len(types) == 1 else None
        with self._mode(model, differentiated):
            own = Batch(self.inputs, self.targets, self.step)
            for inputs, targets, step, share in self.objective.batches(self.problem, own):
                x, y = (_cast(values, device, dtype) for values in (inputs, targets))
                with prepared(modules, self.config.seed, step):
                    yield share, self.problem.call(model, x), functools.partial(self.problem.objective, targets=y)

    def _mode(self, model: nn.Module, differentiated: bool = True) -> AbstractContextManager[None]:
        """The context in which the network computes the objective."""
        return evaluating(model, differentiated) if self.objective.evaluated else nullcontext()

    @property
    def fast_path(self) -> FastPath | None:
        """The problem's fast path to losses and gradients at many parameter vectors; None if it has none."""
        unlike = self.norms if self.objective == "eval" else self.objective != "batch"
        if unlike:  # it computes the loss of the step in train mode
            return None
        parameter = next(iter(self.parameters.values()))
        return self.problem.fast_path(parameter.dtype, parameter.device)

    def gradients_at(
        self, thetas: Float[Tensor, "points n"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, "points n"]]:
        """The losses and the gradients at parameter vectors, without a graph."""
        if self.fast_path is not None:
            passes = self.fast_path(thetas)
            return passes.loss, passes.gradient
        gradients, losses = torch.zeros_like(thetas), []
        parameters = list(self.parameters.values())
        with restored(parameters):
            for theta, gradient in zip(thetas, gradients, strict=True):
                fill(parameters, theta)
                losses.append(self._gradient(parameters, gradient))
        return torch.stack(losses), gradients

    def along(
        self, direction: Float[Tensor, " m"], etas: Sequence[float], names: Sequence[str] | None = None
    ) -> Iterator[tuple[Float[Tensor, " points"], Float[Tensor, "points m"]]]:
        """The losses and the gradients at w - eta d, in parts that hold one step length or several.

        The next part may use the memory of the gradients again.

        Args:
            direction: The vector d.
            etas: The step lengths.
            names: The parameters w, all others held fixed; all parameters by default.
        """
        if not etas:
            return
        if self.fast_path is not None:  # takes all step lengths at once
            where = slice(None) if names is None else positions(self.parameters, names)
            thetas = self.theta.repeat(len(etas), 1)
            thetas[:, where] -= thetas.new_tensor(etas)[:, None] * direction
            losses, gradients = self.gradients_at(thetas)
            yield losses, gradients[:, where]
            return
        leaves = [self.parameters[name] for name in (self.parameters if names is None else names)]
        start = flatten(p.detach() for p in leaves).to(direction)
        moved, gradient = torch.empty_like(start), torch.empty_like(start)
        with restored(leaves):
            for eta in etas:
                fill(leaves, torch.add(start, direction, alpha=-eta, out=moved))
                yield self._gradient(leaves, gradient.zero_())[None], gradient[None]

    def gradient_in(self, names: Sequence[str]) -> Float[Tensor, " m"]:
        """The gradient in some parameters alone, in the order of the names."""
        leaves = [self.parameters[name] for name in names]
        gradient = torch.zeros(
            sum(p.numel() for p in leaves), dtype=precision(self.parameters.values()), device=leaves[0].device
        )
        self._gradient(leaves, gradient)
        return gradient

    def _gradient(self, leaves: Sequence[Tensor], gradient: Tensor) -> Tensor:
        """Return the loss, and add the gradient in the leaves to `gradient`."""
        pieces, total = unflatten(gradient, leaves), gradient.new_zeros(())
        for share, loss in self._terms(self.model):
            slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
            for piece, slope in zip(pieces, slopes, strict=True):
                piece.add_(slope.detach(), alpha=share)
            total += share * loss.detach()
        return total

    def _reached(self) -> list[bool]:
        """Whether the objective depends on each of the trained parameters."""
        leaves = [*self.parameters.values()]
        with torch.enable_grad():
            slopes = [torch.autograd.grad(loss, leaves, allow_unused=True) for _, loss in self._terms(self.model)]
        return [any(slope is not None for slope in of_parameter) for of_parameter in zip(*slopes, strict=True)]

    def losses_at(self, thetas: Iterable[Float[Tensor, " n"]]) -> Float[Tensor, " points"]:
        """The losses at parameter vectors, by forward passes alone.

        Each vector is read before the next one is requested, so the iterable may reuse the same tensor.
        """
        if (fast_path := self.fast_path) is not None:
            return torch.cat([fast_path.losses(theta[None]) for theta in thetas])
        parameters, losses = list(self.parameters.values()), []
        with restored(parameters), self.problem.forward_only():
            for theta in thetas:
                fill(parameters, theta)
                losses.append(_sum(self._terms(self.model, differentiated=False)).detach())
        return torch.stack(losses)

    def hessian(self, names: Sequence[str] | None = None) -> Curvature:
        """The gradient (n,) and the function that multiplies a vector (n,) by the Hessian.

        Computed by a complex step if the point has a fast path, and by PyTorch's double backward otherwise.

        Args:
            names: The parameters of which the loss is a function, all others held fixed; all parameters by default.
        """
        fast_path = self.fast_path
        if fast_path is not None and self.theta.device.type != "mps":  # MPS lacks complex operations
            curvature = complex_step(fast_path, self.theta)
            return curvature if names is None else restricted(curvature, positions(self.parameters, names))
        leaves = [self.parameters[name] for name in (self.parameters if names is None else names)]
        # The graph of one batch serves all products. The graphs of many batches would not fit into memory.
        keep_graph = self.objective.single
        gradient, product = double_backward(functools.partial(self._terms, self.model), leaves, keep_graph=keep_graph)

        def prepared_product(v: Tensor) -> Tensor:
            # The pass back may run parts of the network again.
            with self._mode(self.model), prepared(self.norms, self.config.seed, self.step):
                return product(v)

        return gradient, prepared_product if keep_graph else product

    def gauss_newton(self) -> Product:
        """The function that multiplies a vector (n,) by the Gauss-Newton matrix, that of the penalty included.

        Raises:
            InputError: If the outputs of the network are not known apart from the loss, or are not one tensor.
        """
        if isinstance(self.problem, ExternalLoop):
            raise InputError(
                "curvature ggn: needs a network's outputs, and a point of your own loop has its loss alone"
            )
        leaves = [*self.parameters.values()]

        def passes() -> Iterator[Pass]:
            for share, outputs, loss in self._passes(self.model):
                if not isinstance(outputs, Tensor):
                    raise InputError(
                        f"--curvature ggn: needs outputs that are one tensor, and those of {self.problem.option} are a "
                        f"{type(outputs).__name__}; measure the Hessian"
                    )
                yield share, outputs, loss

        product = gauss_newton(passes, leaves, keep_graph=self.objective.single)
        decayed = positions(self.parameters, self._penalised) if self._weight_decay else None

        def whole(v: Tensor) -> Tensor:
            with self._mode(self.model), prepared(self.norms, self.config.seed, self.step):
                total = product(v)
            if decayed is not None:
                total[decayed] += self._weight_decay * v[decayed]
            return total

        return whole


def external_loop(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    lr: float | None,
    optimizer: torch.optim.Optimizer | None,
    norm: str,
    seed: int,
) -> ExternalLoop:
    """A user's training loop. The arguments are those of `Point.of`, and it raises InputError where that does."""
    model = unwrapped(model, "model")
    check_parameters(model, "loss")
    return ExternalLoop(model, loss, lr=_lr_of(model, lr, optimizer), norm=norm, seed=seed)


def _lr_of(model: nn.Module, lr: float | None, optimizer: torch.optim.Optimizer | None) -> float:
    """The learning rate of a user's loop: that of its optimiser, if it is given; the one before any schedule."""
    if optimizer is None:
        if lr is None:
            raise InputError("lr: give the learning rate of your loop, or its optimizer")
        return lr
    check_users(optimizer, trainable(model).values(), "optimizer")
    own = float(optimizer.param_groups[0]["lr"])
    if lr not in (None, own):
        raise InputError(f"lr {lr}: the optimizer has the learning rate {own:g}; leave lr out")
    return unscheduled(optimizer)


def _sum(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    return functools.reduce(torch.add, (share * loss for share, loss in terms))


def _cast(values: Values, device: torch.device, dtype: torch.dtype | None) -> Values:
    """Move values to a device, and convert floating-point values to a precision; None leaves their type."""
    return mapped(lambda tensor: converted(tensor, device, dtype), values)
