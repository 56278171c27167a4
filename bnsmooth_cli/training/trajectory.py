"""The trajectory of a run: its state at a training step, and the step to the next one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.networks.parameters import penalised, trainable, unflatten
from bnsmooth_cli.networks.undisturbed import recording
from bnsmooth_cli.networks.vectors import tensor_norms
from bnsmooth_cli.norms.state import prepare, stateful
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import runs
from bnsmooth_cli.training.optimisers import Tensors, optimiser_of
from bnsmooth_cli.training.restoring import Misfit, copy_into

#: What training records of each step: columns of the train table.
RECORD: Final = ("loss", "penalty", "accuracy", "grad_norm")


class Trajectory:
    r"""The trajectory $\theta_0, \theta_1, \dots$ of training: its current state, and the step to the next one.

    Attributes:
        problem: The problem that is trained.
        model: The network, whose parameters are $\theta_t$.
        norms: The modules of the network that are set to each step (`norms.state`).
        parameters: The trained parameters.
        optimiser: The optimiser and its state.
        step: The current step t.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = problem.build()
        self.norms = stateful(self.model)
        self.parameters: list[Tensor] = list(trainable(self.model).values())
        weights = set(penalised(self.model)) if problem.config.penalty else set()
        #: The places of the penalised weights among the parameters.
        self._weights = [place for place, name in enumerate(trainable(self.model)) if name in weights]
        self.step = 0
        self._names = {*self.model.state_dict()}
        #: The first values of the buffers that a state dict leaves out (persistent=False).
        self._first = {name: b.clone() for name, b in self.model.named_buffers() if name not in self._names}
        self._fast_path = problem.fast_path(self.parameters[0].dtype, problem.device)
        joined = None
        if self._fast_path is not None:  # one vector holds all parameters
            joined, self._running = _join(self.parameters), _join([*self.model.buffers()])
            self._theta = joined
        self.optimiser = optimiser_of(problem.config, self.model, joined)

    def state(self) -> dict[str, Any]:
        """The tensors that determine all later steps, as checkpoints hold them.

        Raises:
            InputError: If a forward pass has made other parameters or buffers than the network had at the start.
        """
        state, parameters = self.model.state_dict(), [*trainable(self.model).values()]
        if {*state} != self._names or [*map(id, parameters)] != [*map(id, self.parameters)]:
            raise InputError(
                f"{self.problem.option}: its model makes or replaces parameters or buffers in later forward passes; "
                "make them in the constructor, and set their values in place"
            )
        others = self._others()
        changed = others.keys() != self._first.keys() or any(
            not torch.equal(others[n], b) for n, b in self._first.items()
        )
        return {"model": state, **({"others": others} if changed else {}), **self.optimiser.state()}

    def _others(self) -> dict[str, Tensor]:
        """The buffers that a state dict leaves out."""
        return {name: buffer for name, buffer in self.model.named_buffers() if name not in self._names}

    def load(self, checkpoint: Path, step: int) -> None:
        """Load the state at a step from its checkpoint.

        Raises:
            DamagedError: If the checkpoint is not of this step, or its tensors do not fit the network.
            InputError: If the checkpoint belongs to another configuration, or the user's code builds another network.
        """
        source, content = runs.read_checkpoint(checkpoint)
        if step not in source.checkpoints:
            raise DamagedError(f"{checkpoint}: is of step {max(source.checkpoints)}, not of {step}; delete it")
        if differences := source.config.differences(self.problem.config):
            raise InputError(f"{checkpoint}: belongs to another configuration ({'; '.join(differences)})")
        model = content.get("model")
        if not isinstance(model, dict):
            raise DamagedError(f"{checkpoint}: holds no tensors of a network")
        try:
            copy_into(self.model.state_dict(), model)
            others = content.get("others", self._first)
            copy_into(self._others(), others if isinstance(others, dict) else {})
            self.optimiser.load(content, step)
        except Misfit as misfit:
            if self.problem.has_users_code:
                raise InputError(
                    f"{checkpoint}: {self.problem.option} now builds another network: {misfit}; restore the code of "
                    "the run, or train it again (bnsmooth train ... --force)"
                ) from misfit
            raise DamagedError(f"{checkpoint}: its tensors do not fit its configuration ({misfit.name})") from misfit
        except InputError as error:
            raise type(error)(f"{checkpoint}: {error}") from error
        self.step = step

    def gradients(self, *, update_statistics: bool) -> tuple[Tensor, Tensors]:
        """Run the network forward and backward on the batch of the current step.

        Args:
            update_statistics: Whether the running statistics of the norms are updated, as a training step does.

        Returns:
            The columns of RECORD as one tensor (4,) on the device, and the gradients of the parameters.
        """
        if self._fast_path is not None:
            return self._fast_gradients(self._fast_path, update_statistics)
        with recording():
            return self._gradients(update_statistics)

    def _gradients(self, update_statistics: bool) -> tuple[Tensor, Tensors]:
        problem = self.problem
        prepare(self.norms, problem.config.seed, self.step, update_statistics=update_statistics)
        inputs, targets = problem.batch(self.step)
        outputs = problem.call(self.model, inputs)
        loss = problem.objective(outputs, targets)
        found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        # Embeddings may give sparse gradients, which neither momentum nor a penalty leaves sparse. PyTorch 2.6
        # materialises gradients that require gradients.
        gradients: Tensors = [(g if g.layout == torch.strided else g.to_dense()).detach() for g in found]
        loss, penalty = loss.detach(), loss.new_zeros(())
        if self._weights:
            gradients, penalty = self._penalise(gradients)
            loss = loss + penalty
        norm = torch.linalg.vector_norm(_lengths(gradients))
        return torch.stack((loss, penalty, problem.accuracy(outputs, targets), norm)), gradients

    @torch.no_grad()
    def _penalise(self, gradients: Tensors) -> tuple[Tensors, Tensor]:
        """Add the gradient cW of the penalty c ||W||^2 / 2. Returns the gradients and the penalty."""
        weights, c = [self.parameters[place] for place in self._weights], self.problem.config.penalty
        # Not in place: autograd may return one tensor as the gradient of two parameters.
        slopes = torch._foreach_add([gradients[place] for place in self._weights], weights, alpha=c)
        lengths = _lengths(weights)
        changed = dict(zip(self._weights, slopes, strict=True))
        return [changed.get(place, slope) for place, slope in enumerate(gradients)], c / 2 * lengths.square().sum()

    def _fast_gradients(self, fast_path: FastPath, update_statistics: bool) -> tuple[Tensor, Tensors]:
        passes = fast_path(self._theta[None])
        if update_statistics:
            fast_path.follow(self._running, passes)
        loss, gradient = passes.loss[0], passes.gradient[0]
        norm = torch.linalg.vector_norm(gradient)
        return torch.stack((loss, passes.penalty[0], torch.full_like(loss, torch.nan), norm)), [gradient]

    def advance(self) -> Tensor:
        r"""Take the step to $\theta_{t+1}$. Returns the columns of RECORD at $\theta_t$ (4,)."""
        record, gradients = self.gradients(update_statistics=True)
        self.optimiser.step(gradients, self.step)
        self.step += 1
        return record


def _lengths(tensors: Tensors) -> Tensor:
    """The norms of the tensors, summed up in float32 at least."""
    exact = functools.reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)
    return tensor_norms(tensors, exact)


def _join(tensors: list[Tensor]) -> Tensor:
    """Concatenate the tensors into one vector, and turn them into views of it."""
    if not tensors:
        return torch.empty(0)
    whole = torch.cat([tensor.detach().flatten() for tensor in tensors])
    for tensor, piece in zip(tensors, unflatten(whole, tensors), strict=True):
        tensor.data = piece
    return whole
