"""One point of a trajectory: the state at a step and the batch that training used there; how points are reached."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnsmooth_cli import norms, problems, runs
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.hessian import Hessian
from bnsmooth_cli.problems import Chain, Problem, Program
from bnsmooth_cli.runs import Source
from bnsmooth_cli.training import Trajectory, choose_device


@dataclass(frozen=True)
class Point:
    """The network at theta_t with the batch (x_t, y_t), batch statistics in use and running ones left alone.

    A measurement reads a point and leaves it bit-identical. `theta` is the network's parameters as one flat vector
    of n numbers, in the order of `model.parameters()`; the loss is a function of it (`gradients_at`).
    """

    problem: Problem
    model: Chain
    velocity: list[Tensor]
    step: int
    inputs: Tensor
    targets: Tensor
    run: str

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.problem.config

    @property
    def layers(self) -> list[tuple[str, list[str]]]:
        """Ordered (layer name, its parameters' names): what ICS calls layers."""
        return [
            (name, [f"layers.{name}.{parameter}" for parameter, _ in layer.named_parameters()])
            for name, layer in self.model.layers.items()
        ]

    def to(self, dtype: torch.dtype) -> Point:
        """The point in another precision: itself where it has it already, else a copy of the network and its batch.

        What has no float64 (MPS) hands such a point to the CPU.
        """
        if next(self.model.parameters()).dtype == dtype:
            return self
        device = self.inputs.device
        if dtype == torch.float64 and device.type == "mps":
            device = torch.device("cpu")
        return dataclasses.replace(
            self,
            model=copy.deepcopy(self.model).to(device, dtype),
            velocity=[v.to(device, dtype) for v in self.velocity],
            inputs=self.inputs.to(device, dtype),
            targets=_as(self.targets, dtype).to(device),
        )

    @property
    def theta(self) -> Tensor:
        """A copy of the parameters, shape (n,)."""
        return flatten(p.detach() for p in self.model.parameters())

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """The loss of this point's batch, with this step's noise, as a scalar with its graph.

        `model` is any module of the same architecture (a copy with other parameters, say); None is the point's own.
        """
        model = self.model if model is None else model
        norms.prepare(model.modules(), self.config.seed, self.step)
        dtype = next(model.parameters()).dtype
        return self.problem.objective(model(self.inputs.to(dtype)), _as(self.targets, dtype))

    @property
    def program(self) -> Program | None:
        """A faster way to losses and gradients at many parameter vectors, where the problem has one."""
        return self.problem.program(self.inputs.dtype, self.inputs.device)

    def gradients_at(self, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (P,) at parameter vectors (P, n) and their gradients (P, n), without a graph."""
        if self.program is not None:
            found = self.program(thetas)
            return found.loss, found.gradient
        norms.prepare(self.model.norms, self.config.seed, self.step)
        gradients = torch.empty_like(thetas)
        losses = [self._gradient_at(theta, gradient) for theta, gradient in zip(thetas, gradients, strict=True)]
        return torch.stack(losses), gradients

    def _gradient_at(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The loss; the gradient is written to `gradient`."""
        named = dict(self.model.named_parameters())
        pieces = theta.split([p.numel() for p in named.values()])
        # In the parameters' own layouts: a convolution would convert its weights, and their gradient, at every use.
        values = {
            name: torch.empty_like(p).copy_(piece.view(p.shape)).requires_grad_()
            for (name, p), piece in zip(named.items(), pieces, strict=True)
        }
        loss = self.problem.objective(functional_call(self.model, values, (self.inputs,)), self.targets)
        torch.cat([found.reshape(-1) for found in torch.autograd.grad(loss, list(values.values()))], out=gradient)
        return loss.detach()

    def hessian(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        r"""The gradient (n,), and the Hessian as the function that multiplies a vector with it.

        By the network's own derivatives (`Hessian`), or by the complex step
        $H v = \operatorname{Im} \nabla L(\theta + i h v) / h$ where the point has a program, which is holomorphic.
        """
        program = self.program
        if program is None or self.inputs.device.type == "mps":  # that has few complex operations
            norms.prepare(self.model.norms, self.config.seed, self.step)
            hessian = Hessian(self.model, self.inputs, lambda outputs: self.problem.objective(outputs, self.targets))
            return hessian.gradient, hessian
        theta = self.theta

        def product(v: Tensor) -> Tensor:
            size = torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
            return program(torch.complex(theta, v * (_STEP / size))[None]).gradient[0].imag * (size / _STEP)

        return program(theta[None]).gradient[0], product


_STEP: Final = 1e-12  # of the complex step: its error is the square of this


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of the tensors in one vector.

    >>> flatten([torch.ones(2, 2), torch.zeros(1)])
    tensor([1., 1., 1., 1., 0.])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def visit(source: Source, steps: Iterable[int], device: str = "auto") -> Iterator[Point]:
    """The points at the given steps in rising order, each trained forward from the nearest checkpoint before it.

    A point is valid until the next one is asked for: the trajectory walks on with the same tensors.
    """
    trajectory: Trajectory | None = None
    reached = -1
    for step, nearest in nearest_checkpoints(source, steps).items():
        if trajectory is None:
            trajectory = _trajectory(source, device)
        if reached < nearest:  # otherwise the walk is past that checkpoint already
            reached = nearest
            trajectory.load(source.checkpoints[reached], reached)
        while trajectory.step < step:
            trajectory.advance()
        yield _point(trajectory, source.name)


def _trajectory(source: Source, device: str) -> Trajectory:
    chosen = choose_device(device)
    try:
        return Trajectory(problems.build(source.config, chosen))
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def nearest_checkpoints(source: Source, steps: Iterable[int]) -> dict[int, int]:
    """The steps in rising order, each with the checkpoint that its point is trained forward from."""
    return {step: max(s for s in source.checkpoints if s <= step) for step in reachable(source, steps)}


def reachable(source: Source, steps: Iterable[int]) -> list[int]:
    """The steps in rising order; InputError where one is before the first checkpoint or after the training's end."""
    if not source.checkpoints:
        raise InputError(f"{source.path}: has no checkpoints yet; train it first")
    first, last = min(source.checkpoints), max(source.config.steps, *source.checkpoints)
    wanted = sorted(set(steps))
    for step in wanted:
        if not first <= step <= last:
            raise InputError(f"{source.path}: step {step} is out of reach, its points are steps {first} to {last}")
    return wanted


def _point(trajectory: Trajectory, run: str) -> Point:
    problem, model = trajectory.problem, trajectory.model
    inputs, targets = problem.batch(trajectory.step)
    norms.prepare(model.norms, problem.config.seed, trajectory.step)
    return Point(problem, model, trajectory.velocity, trajectory.step, inputs, targets, run)


def _as(targets: Tensor, dtype: torch.dtype) -> Tensor:
    return targets.to(dtype) if targets.is_floating_point() else targets


def load_point(
    path: Path | str | runs.Run,
    step: int | None = None,
    *,
    device: str = "auto",
    data: str | None = None,
    dtype: torch.dtype | None = None,
) -> Point:
    """The point of a checkpoint, or of a run at a step (by default its last checkpoint's).

    `data` is where the images are now, should they have moved. `dtype` converts the point once it is reached: the way
    there is the run's own.
    Raises InputError for a path that is neither, or a step before the first checkpoint or after the training's end.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.load_point(run, step=3).loss().shape
    torch.Size([])
    """
    source = path.source() if isinstance(path, runs.Run) else runs.open_source(path)
    wanted = max(source.checkpoints, default=0) if step is None else step
    (point,) = visit(source.with_data(data), [wanted], device)
    return point if dtype is None else point.to(dtype)
