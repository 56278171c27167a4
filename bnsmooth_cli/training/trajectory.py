"""The trajectory of a run: its state at a step, and the way to the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.norms.state import prepare, stateful
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import runs
from bnsmooth_cli.training.optimisers import Tensors, sgd_step


class Trajectory:
    """theta_0, theta_1, ... of a problem: the state at `step`, and the way to the next one."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = problem.build()
        self.norms = stateful(self.model)
        self.parameters: list[Tensor] = list(trainable(self.model).values())
        momentum = problem.config.momentum
        self.velocity = [torch.zeros_like(p) for p in self.parameters] if momentum else []
        self.step = 0
        #: What a step is taken on: the parameters and the velocities, or one vector of each for a fast path.
        self._moving, self._pushing = self.parameters, self.velocity
        self._fast_path = problem.fast_path(self.parameters[0].dtype, problem.device)
        if self._fast_path is not None:
            self._moving, self._running = [_joined(self.parameters)], _joined([*self.model.buffers()])
            self._pushing = [_joined(self.velocity)] if momentum else []

    def state(self) -> dict[str, Any]:
        """The tensors that the future depends on."""
        return {"model": self.model.state_dict(), "velocity": self.velocity}

    def load(self, checkpoint: Path, step: int) -> None:
        """Go to a step by its checkpoint, which is of this configuration."""
        source, content = runs.read_checkpoint(checkpoint)
        if step not in source.checkpoints:
            raise DamagedError(f"{checkpoint}: is of step {max(source.checkpoints)}, not of {step}; delete it")
        if differences := source.config.differences(self.problem.config):
            raise InputError(f"{checkpoint}: belongs to another configuration ({'; '.join(differences)})")
        mine = {**self.model.state_dict(), **{f"velocity {i}": v for i, v in enumerate(self.velocity)}}
        model, velocity = content.get("model"), content.get("velocity")
        if not isinstance(model, dict) or not isinstance(velocity, list | tuple):
            raise DamagedError(f"{checkpoint}: holds no tensors of a network")
        saved = {**model, **{f"velocity {i}": v for i, v in enumerate(velocity)}}
        for name in (*mine, *saved):
            if not _alike(mine.get(name), saved.get(name)):
                raise DamagedError(f"{checkpoint}: its tensors do not fit its configuration ({str(name)[:80]})")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
        self.step = step

    def gradients(self, *, update_statistics: bool) -> tuple[Tensor, Tensors]:
        """(loss, accuracy, gradient norm) on this step's batch as one tensor on the device, and the gradients."""
        if self._fast_path is not None:
            return self._run_fast_path(self._fast_path, update_statistics)
        problem = self.problem
        prepare(self.norms, problem.config.seed, self.step, update_statistics=update_statistics)
        inputs, targets = problem.batch(self.step)
        outputs = self.model(inputs)
        loss = problem.objective(outputs, targets)
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return torch.stack((loss.detach(), problem.accuracy(outputs.detach(), targets), norm)), gradients

    def _run_fast_path(self, fast_path: FastPath, update_statistics: bool) -> tuple[Tensor, Tensors]:
        found = fast_path(self._moving[0][None])
        if update_statistics:
            fast_path.follow(self._running, found)
        loss, gradient = found.loss[0], found.gradient[0]
        return torch.stack((loss, torch.full_like(loss, torch.nan), torch.linalg.vector_norm(gradient))), [gradient]

    def advance(self) -> Tensor:
        """Take the step to theta_{t+1}; what `gradients` recorded at theta_t."""
        record, gradients = self.gradients(update_statistics=True)
        config = self.problem.config
        sgd_step(self._moving, gradients, self._pushing, config.lr, config.momentum)
        self.step += 1
        return record


def _alike(mine: Tensor | None, saved: object) -> bool:
    """Whether a tensor of a file can stand in for one of a network."""
    return (
        mine is not None
        and isinstance(saved, Tensor)
        and (saved.shape, saved.dtype, saved.layout) == (mine.shape, mine.dtype, torch.strided)
        and saved.device.type == "cpu"
    )


def _joined(tensors: list[Tensor]) -> Tensor:
    """One vector of all their numbers, which the tensors become views of."""
    if not tensors:
        return torch.empty(0)
    whole = torch.cat([tensor.detach().flatten() for tensor in tensors])
    for tensor, piece in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.data = piece.view(tensor.shape)
    return whole
