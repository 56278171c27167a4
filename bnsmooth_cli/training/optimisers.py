"""The optimiser of a run: its step, what that step would change, and the sharpness up to which it is stable."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli import optimisers
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.networks.parameters import flatten, penalised, trainable, unflatten
from bnsmooth_cli.randomness import generator, kept, seeded
from bnsmooth_cli.training.optimiser_copies import copied, equal_states, is_torchs, keep_types, no_hooks, strange_type
from bnsmooth_cli.training.preconditioners import DIVISORS, decoupled, options_of, rule_of, shared_options
from bnsmooth_cli.training.restoring import copy_into, numbered
from bnsmooth_cli.user_code import explaining

Tensors = list[Tensor] | tuple[Tensor, ...]
Theta = Float[Tensor, " n"]
#: What `torch.nn.utils.clip_grad_norm_` adds to the norm of the gradient.
_CLIP_EPSILON: Final = 1e-6


def sgd_step(
    parameters: Tensors, gradients: Tensors, velocity: Tensors, lr: float, momentum: float, nesterov: bool = False
) -> None:
    r"""Take one step of SGD in place: $v \leftarrow \mu v + g$, $\theta \leftarrow \theta - \eta v$, as torch does.

    Args:
        parameters: The tensors of $\theta$, which are updated.
        gradients: The gradients g, one per parameter.
        velocity: The momentum buffers v, one per parameter, which are updated; empty without momentum.
        lr: The learning rate $\eta$.
        momentum: The momentum $\mu$; at 0, v is g.
        nesterov: Whether $\theta$ moves along $g + \mu v$ instead of the new v (Sutskever et al. 2013).

    >>> theta, v = [torch.ones(2)], [torch.zeros(2)]
    >>> sgd_step(theta, [torch.ones(2)], v, lr=0.1, momentum=0.9)
    >>> theta, v
    ([tensor([0.9000, 0.9000])], [tensor([1., 1.])])
    """
    with torch.no_grad():
        torch._foreach_add_(parameters, _pushed(gradients, velocity, momentum, nesterov), alpha=-lr)


def _pushed(gradients: Tensors, velocity: Tensors, momentum: float, nesterov: bool) -> Tensors:
    """Update the momentum buffers, and return the step in learning rates."""
    if not momentum:
        return gradients
    torch._foreach_mul_(velocity, momentum)
    torch._foreach_add_(velocity, gradients)
    return torch._foreach_add(gradients, velocity, alpha=momentum) if nesterov else velocity


@torch.no_grad()
def clipped(gradients: Tensors, longest: float) -> Tensors:
    r"""The gradients times $\min(1, c / (\|g\| + 10^{-6}))$, as `torch.nn.utils.clip_grad_norm_` shortens them.

    Args:
        gradients: The gradients, one per parameter.
        longest: The norm c; 0 leaves them as they are.

    >>> [round(gradient.item(), 3) for gradient in clipped([torch.tensor(6.0), torch.tensor(8.0)], 5.0)]
    [3.0, 4.0]
    """
    if not longest:
        return gradients
    norm = torch.nn.utils.get_total_norm(gradients)
    factor = torch.clamp(longest / (norm + _CLIP_EPSILON), max=1.0)
    # Not in place: autograd may return one tensor as the gradient of two parameters.
    return torch._foreach_mul(gradients, factor)


def stable_sharpness(lr: float, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    r"""The largest eigenvalue of the Hessian of a quadratic loss at which gradient descent does not diverge.

    With the momentum $\mu$, that is $(2 + 2 \mu) / \eta$, and $(2 + 2 \mu) / ((1 + 2 \mu) \eta)$ in Nesterov's form
    (Cohen et al. 2021, arXiv 2103.00065, appendix B). An exponential average of gradients, as Adam has, is momentum
    with the dampening $\mu$: the gradient counts $1 - \mu$ (Cohen et al. 2022, arXiv 2207.14484).

    Args:
        lr: The learning rate $\eta$.
        momentum: The momentum $\mu$.
        dampening: What is subtracted from 1 to give the factor of the gradient.
        nesterov: Whether the momentum has Nesterov's form.

    >>> stable_sharpness(0.5), stable_sharpness(0.5, momentum=0.5), stable_sharpness(0.5, momentum=0.5, dampening=0.5)
    (4.0, 6.0, 12.0)
    """
    reach = 2 + 2 * momentum
    if nesterov:
        return reach / ((1 + 2 * momentum) * lr)
    return reach / ((1 - dampening) * lr) if dampening < 1 else math.inf


class Optimiser(ABC):
    """The optimiser at a step of a run, or of a user's loop.

    Attributes:
        parameters: The trained parameters, in their order in theta.
    """

    def __init__(self, parameters: Sequence[Tensor], config: Config, joined: Tensor | None = None) -> None:
        self.parameters: Tensors = [*parameters]
        self._config, self._joined = config, joined

    @property
    def _moving(self) -> Tensors:
        """The tensors that are updated. One vector of all parameters takes less time than many tensors."""
        return self.parameters if self._joined is None else [self._joined]

    @property
    def velocity(self) -> list[Tensor]:
        """The momentum buffers of SGD, one per trained parameter; empty without momentum."""
        return []

    def lr(self, step: int) -> float:
        """The learning rate of the step."""
        return self._config.lr_at(step)

    def check(self) -> None:  # noqa: B027  torch's own keep what they need in their state
        """Raise InputError if a run that is resumed would take other steps."""

    @abstractmethod
    def step(self, gradients: Tensors, step: int) -> None:
        """Take the step in place.

        Args:
            gradients: The gradients, one per parameter; one vector if one vector holds all parameters.
            step: The step t.
        """

    @abstractmethod
    def moved(self, gradient: Theta, step: int) -> Theta:
        r"""The $\theta_{t+1}$ that `step` would give, to the last bit. Nothing else changes.

        The parameters, the state, `.grad` and the random generators stay as they are, and no hooks are called.

        Args:
            gradient: The gradient, in the order of theta.
            step: The step t.
        """

    def update(self, gradient: Theta, step: int) -> Theta:
        r"""The update $\theta_t - \theta_{t+1}$ of the step. Nothing else changes, as by `moved`.

        Args:
            gradient: The gradient, in the order of theta.
            step: The step t.
        """
        return self._theta(gradient) - self.moved(gradient, step)

    @property
    def exact(self) -> bool:
        """Whether `update` is computed as such, and not as the difference of two thetas, which are rounded."""
        return True

    def direction(self, gradient: Theta, step: int) -> Theta:
        """The update in learning rates: the gradient itself for SGD without momentum."""
        return self.update(gradient, step) / self.lr(step)

    def preconditioner(self, step: int) -> Theta | None:
        r"""The diagonal P by which the optimiser divides the step, at the state of the point.

        For Adam, with $\nu$ its average of squares after t steps, it is
        $(1 - \beta_1^t) (\sqrt{\nu / (1 - \beta_2^t)} + \epsilon)$ (Cohen et al. 2022, arXiv 2207.14484, eq. 2);
        for RMSProp, $\sqrt{\nu} + \epsilon$.

        Returns:
            P (n,); None for SGD, before the first step, and for optimisers whose P is unknown.
        """
        return None

    @property
    def preconditions(self) -> bool:
        """Whether its threshold is that of a preconditioned sharpness: it has a P from the first step on."""
        return False

    @abstractmethod
    def threshold(self, step: int) -> float:
        r"""The largest sharpness at which the step is stable: that of $P^{-1/2} H P^{-1/2}$ if there is a P.

        It is that of a quadratic loss with P held fixed and without weight decay (`stable_sharpness`). NaN if it is
        unknown.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What determines later steps, as checkpoints hold it."""

    @abstractmethod
    def load(self, content: Mapping[str, Any], step: int) -> None:
        """Load the state at a step from a checkpoint, as `state` gave it.

        Raises:
            DamagedError, Misfit: If it is not of this optimiser and these parameters.
            InputError: If the user's optimiser does not take its state back.
        """

    @abstractmethod
    def on(self, parameters: Sequence[Tensor]) -> Optimiser:
        """A copy that updates other parameters, with the state in their precision."""

    def _theta(self, like: Tensor) -> Theta:
        return flatten(p.detach() for p in self.parameters).to(like)

    def _arranged(self, gradients: Tensors) -> Tensors:
        """Clip the gradients of a step, and arrange them as the tensors that it updates."""
        together, pieces = self._joined is not None, self._moving is self.parameters
        if not self._config.clip and not (together and pieces):
            return gradients
        return self._clipped(unflatten(gradients[0], self.parameters) if together else gradients)

    def _clipped(self, pieces: Tensors) -> Tensors:
        """Clip gradients, one per parameter, and arrange them as the tensors that are updated."""
        pieces = clipped(pieces, self._config.clip)
        return pieces if self._moving is self.parameters else [flatten(pieces)]


def optimiser_of(config: Config, model: nn.Module, joined: Tensor | None = None) -> Optimiser:
    """The optimiser of a configuration before its first step.

    Args:
        config: The configuration.
        model: The network, whose parameters it updates.
        joined: The vector that holds all parameters, if there is one.

    >>> from bnsmooth_cli.config import resolve
    >>> optimiser_of(resolve("vgg", optimizer="adam", betas="0.5,0.9", lr=0.5), nn.Linear(2, 2)).threshold(0)
    12.0
    """
    named = trainable(model)
    parameters = [*named.values()]
    if config.optimizer == "sgd":
        return Sgd(parameters, config, joined)
    if optimisers.find(config.optimizer) is None:
        return Users(parameters, config, joined)
    weights = {*penalised(model)} if config.decay else set()
    return BuiltIn(parameters, config, joined, [name in weights for name in named])


class Sgd(Optimiser):
    """Stochastic gradient descent, with or without momentum. Its step is our own, for speed; the others are torch's."""

    def __init__(self, parameters: Sequence[Tensor], config: Config, joined: Tensor | None = None) -> None:
        super().__init__(parameters, config, joined)
        self._pushing = [torch.zeros_like(p, requires_grad=False) for p in self._moving] if config.momentum else []
        self._velocity = self._pushing
        if self._pushing and joined is not None:
            self._velocity = unflatten(self._pushing[0], self.parameters)

    @property
    def velocity(self) -> list[Tensor]:
        """The momentum buffers, one per trained parameter; empty without momentum."""
        return self._velocity

    def step(self, gradients: Tensors, step: int) -> None:
        """Take the step in place, as `Optimiser.step` says."""
        config = self._config
        sgd_step(
            self._moving, self._arranged(gradients), self._pushing, self.lr(step), config.momentum, config.nesterov
        )

    def moved(self, gradient: Theta, step: int) -> Theta:
        return self._theta(gradient).add_(self.direction(gradient, step), alpha=-self.lr(step))

    def update(self, gradient: Theta, step: int) -> Theta:
        return self.direction(gradient, step) * self.lr(step)  # the difference of two thetas would be rounded

    @torch.no_grad()
    def direction(self, gradient: Theta, step: int) -> Theta:
        config = self._config
        if config.clip:
            gradient = flatten(clipped(unflatten(gradient, self.parameters), config.clip))
        velocity = [flatten(self.velocity).to(gradient, copy=True)] if self.velocity else []
        return _pushed([gradient], velocity, config.momentum, config.nesterov)[0]

    def threshold(self, step: int) -> float:
        return stable_sharpness(self.lr(step), momentum=self._config.momentum, nesterov=self._config.nesterov)

    def state(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load(self, content: Mapping[str, Any], step: int) -> None:
        saved = content.get("velocity")
        if not isinstance(saved, list | tuple):
            raise DamagedError("holds no state of its optimizer")
        copy_into(numbered("velocity", self.velocity), numbered("velocity", saved))

    def on(self, parameters: Sequence[Tensor]) -> Sgd:
        other = Sgd(parameters, self._config)
        for target, velocity in zip(other.velocity, self.velocity, strict=True):
            target.copy_(velocity)
        return other


class _Torch(Optimiser):
    """An optimiser of torch.optim, or one of the user's."""

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself. It is made when it is needed: its first use imports for seconds."""
        return self._make()

    @abstractmethod
    def _make(self) -> torch.optim.Optimizer: ...

    def _set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of a step in an optimiser: the own one, or a copy."""

    def _drawing(self, step: int) -> AbstractContextManager[None]:
        """The context in which a step may draw random numbers."""
        return nullcontext()

    def step(self, gradients: Tensors, step: int) -> None:
        self._set_lr(self.optimizer, step)
        for parameter, gradient in zip(self._moving, self._arranged(gradients), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        for parameter in self._moving:
            parameter.grad = None

    @torch.no_grad()
    def moved(self, gradient: Theta, step: int) -> Theta:
        places = [p.detach().clone() for p in self._moving]
        self._let_step(self._copy(places, gradient, step), step)
        return flatten(places).to(gradient)

    @property
    def exact(self) -> bool:
        """Whether the rule is known: where it begins then makes no difference but for weight decay."""
        return rule_of(self.optimizer) is not None

    @torch.no_grad()
    def update(self, gradient: Theta, step: int) -> Theta:
        if not self.exact:
            return super().update(gradient, step)
        # From the origin, where nothing is rounded: a small step is lost in the difference of two large thetas.
        places = [torch.zeros_like(p, requires_grad=False) for p in self._moving]
        twin = self._copy(places, gradient, step)
        shrinking = self._take_decay(twin, places)
        self._let_step(twin, step)
        taken = [place.neg() for place in places]
        for step_taken, parameter, share in zip(taken, self._moving, shrinking, strict=True):
            if share:
                step_taken.add_(parameter.detach(), alpha=share)
        return flatten(taken).to(gradient)

    def _copy(self, places: list[Tensor], gradient: Theta, step: int) -> torch.optim.Optimizer:
        """A copy of the optimiser that is about to take the step from other places."""
        name = f"the optimizer {type(self.optimizer).__name__}"
        with explaining(f"{name} cannot be copied, which its update is measured by"):
            twin = copied(self.optimizer, self._moving, places)
        pieces = self._clipped(unflatten(gradient, self.parameters))
        for place, piece, reached in zip(places, pieces, self._reached(pieces), strict=True):
            place.grad = piece.to(place.dtype, copy=True) if reached else None  # an optimiser may change it
        self._set_lr(twin, step)
        return twin

    def _reached(self, gradients: Tensors) -> Sequence[bool]:
        """Whether each parameter has a gradient. Without one, it does not move, whatever its momentum and its decay."""
        return [True] * len(gradients)

    def _let_step(self, twin: torch.optim.Optimizer, step: int) -> None:
        """Let a copy take the step: not one that a scheduler of learning rates has put into the original."""
        with explaining(f"the optimizer {type(twin).__name__} fails in its step"), self._drawing(step), no_hooks():
            type(twin).step(twin)

    def _take_decay(self, twin: torch.optim.Optimizer, places: list[Tensor]) -> list[float]:
        """Take weight decay out of a copy: a penalty is in its gradients then.

        Returns:
            The share by which decoupled weight decay shrinks each tensor.
        """
        rule, shares = rule_of(twin), dict.fromkeys(map(id, places), 0.0)
        parameters = {id(place): parameter.detach() for place, parameter in zip(places, self._moving, strict=True)}
        assert rule is not None
        for group in twin.param_groups:
            options = options_of(twin, group)
            decay, group["weight_decay"] = float(options.get("weight_decay", 0)), 0.0
            for place in group["params"] if decay else ():
                if place.grad is None:
                    continue
                if decoupled(rule, options):
                    shares[id(place)] = float(group["lr"]) * decay
                else:
                    place.grad.add_(parameters[id(place)], alpha=-decay if options.get("maximize") else decay)
        return [shares[id(place)] for place in places]

    def preconditioner(self, step: int) -> Theta | None:
        rule = rule_of(self.optimizer)
        if rule is None or not rule.preconditioner or shared_options(self.optimizer) is None:
            return None
        options = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        states = [self.optimizer.state.get(p) or {} for p in self._moving]
        if not any(states):  # before the first step
            return None
        divisor = DIVISORS[rule.preconditioner]
        return flatten(  # a parameter without a state has had no gradient, and its part of the Hessian is 0
            divisor(state, options[id(p)]) if state else torch.ones_like(p, requires_grad=False)
            for p, state in zip(self._moving, states, strict=True)
        )

    @property
    def preconditions(self) -> bool:
        rule = rule_of(self.optimizer)
        return rule is not None and bool(rule.preconditioner)

    def threshold(self, step: int) -> float:
        rule, group = rule_of(self.optimizer), shared_options(self.optimizer)
        if rule is None or group is None:
            return math.nan
        if rule.preconditioner == "adam":
            beta = float(group["betas"][0])
            return stable_sharpness(self.lr(step), momentum=beta, dampening=beta)
        if "momentum" in rule.settings:
            options = {name: group[name] for name in ("momentum", "dampening", "nesterov") if name in group}
            if not options["momentum"]:  # without it, torch has no dampening either
                options["dampening"] = 0.0
            return stable_sharpness(self.lr(step), **options)
        return math.nan

    def on(self, parameters: Sequence[Tensor]) -> Optimiser:
        other = copy.copy(self)
        other.parameters, other._joined = [*parameters], None
        with explaining(f"the optimizer {type(self.optimizer).__name__} cannot be copied"):
            other.optimizer = copied(self.optimizer, self.parameters, other.parameters)
        return other


class BuiltIn(_Torch):
    """An optimiser of the registry, which torch.optim computes.

    Args:
        parameters: The trained parameters.
        config: The configuration.
        joined: The vector that holds all parameters, if there is one.
        decayed: Whether each parameter is a weight that decoupled weight decay shrinks.
    """

    def __init__(
        self, parameters: Sequence[Tensor], config: Config, joined: Tensor | None, decayed: Sequence[bool]
    ) -> None:
        super().__init__(parameters, config, joined)
        self._decayed = [*decayed]

    @property
    def _moving(self) -> Tensors:
        return self.parameters if any(self._decayed) else super()._moving

    def _make(self) -> torch.optim.Optimizer:
        if not any(self._decayed):
            return self._built([{"params": [*self._moving]}])
        weights, others = ([p for p, d in zip(self.parameters, self._decayed, strict=True) if d is is_decayed]
                           for is_decayed in (True, False))  # fmt: skip
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": self._config.decay}, {"params": others}]
        return self._built([group for group in groups if group["params"]])

    def _built(self, groups: Any) -> torch.optim.Optimizer:
        config, rule = self._config, optimisers.find(self._config.optimizer)
        assert rule is not None
        values = {argument: getattr(config, name) for name, argument in rule.settings.items()}
        if "betas" in values:
            values["betas"] = optimisers.betas(config.betas)
        if rule.decoupled:
            values["weight_decay"] = 0.0  # of the groups that state none; torch's default is another one
        return optimisers.build(config.optimizer, groups, lr=config.lr, **values)

    def _set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step)

    @functools.cached_property
    def _outline(self) -> dict[str, Tensor]:
        """The state of a parameter of two numbers, after a step: the names in it, and which of them are one number."""
        parameter = torch.zeros(2)
        optimizer: Any = self._built([parameter])
        parameter.grad = torch.zeros(2)
        optimizer.step()
        return dict(optimizer.state[parameter])

    def _held(self) -> dict[str, list[Tensor]]:
        """The state by name, each with a tensor for each parameter; empty before the first step."""
        states: list[dict[str, Tensor]] = [state for p in self._moving if (state := self.optimizer.state.get(p))]
        if not states:
            return {}
        if self._moving is self.parameters:
            return {name: [state[name] for state in states] for name in states[0]}
        return {
            name: unflatten(value, self.parameters) if value.dim() else [value] * len(self.parameters)
            for name, value in states[0].items()
        }

    def state(self) -> dict[str, Any]:
        return {"optimizer": self._held()}

    def _prepare(self, step: int) -> None:
        """Make room for the state at a step."""
        self.optimizer.state.clear()
        for parameter in self._moving if step else ():
            self.optimizer.state[parameter] = {
                name: torch.zeros_like(parameter, requires_grad=False) if value.dim() else value.clone()
                for name, value in self._outline.items()
            }

    def load(self, content: Mapping[str, Any], step: int) -> None:
        saved = content.get("optimizer")
        if not isinstance(saved, dict) or not all(isinstance(part, list | tuple) for part in saved.values()):
            raise DamagedError("holds no state of its optimizer")
        self._prepare(step)
        current = {key: v for name, part in self._held().items() for key, v in numbered(name, part).items()}
        copy_into(current, {key: v for name, part in saved.items() for key, v in numbered(str(name), part).items()})
        if any(count.item() != step for count in self._held().get("step", [])):
            raise DamagedError(f"its optimizer has not taken {step} steps")

    def on(self, parameters: Sequence[Tensor]) -> BuiltIn:
        other = BuiltIn(parameters, self._config, None, self._decayed)
        if held := self._held():
            other._prepare(1)
            for name, targets in other._held().items():
                for target, value in zip(targets, held[name], strict=True):
                    target.copy_(value)
        return other


def _random_gradients(parameters: Tensors, step: int) -> Tensors:
    with seeded(step):
        return [torch.randn_like(parameter, requires_grad=False) for parameter in parameters]


#: The steps after which the state of a user's optimiser is loaded into another one; it takes three times as many then.
_CHECKED: Final = 4


class Users(_Torch):
    """An optimiser that the user's function makes. Its random numbers depend on the run's seed and the step alone."""

    @property
    def _moving(self) -> Tensors:
        return self.parameters

    def _make(self) -> torch.optim.Optimizer:
        with seeded(self._config.seed):
            return optimisers.build(self._config.optimizer, self.parameters)

    @functools.cached_property
    def _full(self) -> list[float]:
        """The largest learning rate of each group of parameters."""
        return [float(group["lr"]) for group in self._make().param_groups]

    def lr(self, step: int) -> float:
        return super().lr(step) if self._config.scheduled else float(self.optimizer.param_groups[0]["lr"])

    def _set_lr(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        if not self._config.scheduled:  # the optimiser may have a schedule of its own
            return
        for group, full in zip(optimizer.param_groups, self._full, strict=True):
            lr = full * self._config.lr_factor(step)
            group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr

    def check(self) -> None:
        own, fresh = (Users([p.detach().clone().requires_grad_() for p in self.parameters], self._config)
                      for _ in range(2))  # fmt: skip
        for step in range(_CHECKED):
            own.step(_random_gradients(own.parameters, step), step)
        with torch.no_grad():
            torch._foreach_copy_(fresh.parameters, own.parameters)
        fresh.load(copy.deepcopy(own.state()), _CHECKED)
        for step in range(_CHECKED, 4 * _CHECKED):
            for optimiser in (own, fresh):
                optimiser.step(_random_gradients(optimiser.parameters, step), step)
        pairs = zip(own.parameters, fresh.parameters, strict=True)
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
            raise InputError(
                f"--optimizer {self._config.optimizer}: its steps depend on more than its state, so a run that is "
                "resumed would be another one; give a schedule as --schedule, and keep counts in its state or groups"
            )

    def _drawing(self, step: int) -> AbstractContextManager[None]:
        return seeded(generator(self._config.seed, "optimiser", step).initial_seed())

    def step(self, gradients: Tensors, step: int) -> None:
        own = [gradient.clone() for gradient in gradients]  # an optimiser may change them, and two may be one tensor
        with explaining(f"--optimizer {self._config.optimizer}: fails in its step"), self._drawing(step):
            super().step(own, step)

    def state(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        if strange := strange_type(state):
            raise InputError(
                f"--optimizer {self._config.optimizer}: its state holds a {strange}; checkpoints hold tensors and "
                "plain values only"
            )
        return {"optimizer": state}

    def load(self, content: Mapping[str, Any], step: int) -> None:
        saved = content.get("optimizer")
        if not isinstance(saved, dict):
            raise DamagedError("holds no state of its optimizer")
        option = f"--optimizer {self._config.optimizer}"
        self.optimizer = self._make()  # without what the last one has kept outside of its state
        with explaining(f"{option}: does not take back its state; restore the code of the run, or train it again"):
            self.optimizer.load_state_dict(saved)
            keep_types(self.optimizer, saved)
            same = equal_states(self.optimizer.state_dict(), saved)
        if not same:
            raise InputError(f"{option}: does not take back its state as it was; restore the code of the run, or "
                             "train it again")  # fmt: skip


class External(_Torch):
    """The optimiser of a user's own training loop, which is read and left alone.

    Args:
        parameters: The trained parameters.
        config: The configuration of the loop.
        optimizer: The optimiser.
        reached: Says of each parameter whether the loss depends on it.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        config: Config,
        optimizer: torch.optim.Optimizer,
        reached: Callable[[], Sequence[bool]],
    ) -> None:
        super().__init__(parameters, config)
        self._given, self._ask = optimizer, reached

    def _make(self) -> torch.optim.Optimizer:
        return self._given

    def _reached(self, gradients: Tensors) -> Sequence[bool]:
        """Zeros stand for no gradient too, and `zero_grad` leaves none to parameters that the loss does not reach.

        Only torch's optimisers are known to pass over these.
        """
        known = not is_torchs(self.optimizer) or all(gradient.any() for gradient in gradients)
        return super()._reached(gradients) if known else self._ask()

    def lr(self, step: int) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _drawing(self, step: int) -> AbstractContextManager[None]:
        return kept()

    def step(self, gradients: Tensors, step: int) -> None:
        """Raises InputError: the loop takes its steps itself."""
        raise InputError("a point of your own loop takes no step; your loop does")

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, content: Mapping[str, Any], step: int) -> None:
        """Raises InputError: the loop keeps its state itself."""
        raise InputError("a point of your own loop is not loaded from a checkpoint")
