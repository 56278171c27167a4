"""The trajectory: SGD steps as a pure function of (configuration, step), and the run that records them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bnsmooth_cli import norms, problems, runs, tables
from bnsmooth_cli._version import __version__
from bnsmooth_cli.code import name_of
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.files import check_writable
from bnsmooth_cli.problems import Problem, Program
from bnsmooth_cli.problems.layers import trainable
from bnsmooth_cli.problems.own import Builder
from bnsmooth_cli.runs import Run

#: Steps between two reads of the recorded losses, each of which waits for the device.
READ_EVERY: Final = 25

Tensors = list[Tensor] | tuple[Tensor, ...]
Progress = Callable[[int, float], None]  # (step, loss)


def sgd_step(
    parameters: Tensors,
    gradients: Tensors,
    velocity: Tensors,
    lr: float,
    momentum: float,
) -> None:
    r"""One step of SGD in place: $v \leftarrow \mu v + g$, $\theta \leftarrow \theta - \eta v$ (torch's rule).

    Without momentum `velocity` is empty and v is g.

    >>> theta, v = [torch.ones(2)], [torch.zeros(2)]
    >>> sgd_step(theta, [torch.ones(2)], v, lr=0.1, momentum=0.9)
    >>> theta, v
    ([tensor([0.9000, 0.9000])], [tensor([1., 1.])])
    """
    with torch.no_grad():
        if momentum:
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradients)
            gradients = velocity
        torch._foreach_add_(parameters, gradients, alpha=-lr)


class Trajectory:
    """theta_0, theta_1, ... of a problem: the state at `step`, and the way to the next one."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = problem.build()
        self.norms = norms.stateful(self.model)
        self.parameters: list[Tensor] = list(trainable(self.model).values())
        momentum = problem.config.momentum
        self.velocity = [torch.zeros_like(p) for p in self.parameters] if momentum else []
        self.step = 0
        #: What a step is taken on: the parameters and the velocities, or one vector of each for a program.
        self._moving, self._pushing = self.parameters, self.velocity
        self._program = problem.program(self.parameters[0].dtype, problem.device)
        if self._program is not None:
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
        if self._program is not None:
            return self._run_program(self._program, update_statistics)
        problem = self.problem
        norms.prepare(self.norms, problem.config.seed, self.step, update_statistics=update_statistics)
        inputs, targets = problem.batch(self.step)
        outputs = self.model(inputs)
        loss = problem.objective(outputs, targets)
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return torch.stack((loss.detach(), problem.accuracy(outputs.detach(), targets), norm)), gradients

    def _run_program(self, program: Program, update_statistics: bool) -> tuple[Tensor, Tensors]:
        found = program(self._moving[0][None])
        if update_statistics:
            program.follow(self._running, found)
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


class _Log:
    """The train table while it grows; losses stay on the device between two reads."""

    def __init__(self, rows: pd.DataFrame, device: torch.device) -> None:
        self.records: list[np.ndarray[Any, Any]] = [rows[["loss", "accuracy", "grad_norm"]].to_numpy(np.float64)]
        tested = rows[rows["test_loss"].notna() | rows["test_accuracy"].notna()]
        self.tests = {int(r.step): (r.test_loss, r.test_accuracy) for r in tested.itertuples()}
        self.pending = torch.empty(READ_EVERY, 3, device=device)
        self.count = 0
        self.length = len(rows)

    def add(self, record: Tensor) -> None:
        self.pending[self.count] = record
        self.count += 1

    def read(self) -> int | None:
        """Fetch what is pending; the first step whose loss is not finite, where there is one."""
        new = self.pending[: self.count].cpu().numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(new[:, 0]))
        if len(bad):
            new = new[: bad[0] + 1]
        self.records.append(new)
        self.length += len(new)
        self.count = 0
        return self.length - 1 if len(bad) else None

    @property
    def last_loss(self) -> float:
        return float(self.records[-1][-1, 0]) if len(self.records[-1]) else math.nan

    def table(self, run: Run) -> pd.DataFrame:
        loss, accuracy, grad_norm = np.concatenate(self.records).T
        config = run.config
        frame = pd.DataFrame(
            {"step": np.arange(self.length), "loss": loss, "accuracy": accuracy, "grad_norm": grad_norm}
        )
        tests = pd.DataFrame.from_dict(
            self.tests, orient="index", columns=["test_loss", "test_accuracy"], dtype="float64"
        )
        return frame.join(tests, on="step").assign(
            run=run.name, problem=config.problem, norm=config.norm, lr=config.lr, seed=config.seed
        )


def train_run(run: Run, problem: Problem, progress: Progress | None = None) -> Run:
    """Train a run to its end from its last checkpoint (or the start), writing checkpoints and train.parquet.

    The row of step t holds what training saw at theta_t; the last row, at theta_steps, is not stepped from. A loss
    that is not finite ends the run as diverged: its row is the last, and the table's provenance says so.
    """
    with run.locked():
        if run.outcome() is not None:
            return run
        check_writable(run.train_path)
        # Made once: a run whose folder is moved away meanwhile must not make another.
        run.checkpoint_path(0).parent.mkdir(exist_ok=True)
        trajectory = Trajectory(problem)
        log = _Log(_continue(run, trajectory), problem.device)
        config = run.config
        if runs.read_config(run.path) != config:  # more steps than before
            runs.write_config(run)
        while True:
            step = trajectory.step
            last = step == config.steps
            saving = last or step % config.save_every == 0
            if saving or log.count == READ_EVERY:
                diverged = log.read()
                if diverged is not None:
                    _write(run, log, diverged_at=diverged)
                    return run
                if progress is not None:
                    progress(step, log.last_loss)
            if saving:
                # The table first: whatever checkpoint there is, the rows before it are on disk.
                _write(run, log)
                runs.write_checkpoint(run.checkpoint_path(step), run.name, config, step, trajectory.state())
            if problem.test_size and (last or step % (config.eval_every or config.steps) == 0):
                log.tests[step] = problem.evaluate(trajectory.model)
            if last:
                log.add(trajectory.gradients(update_statistics=False)[0])
                diverged = log.read()
                _write(run, log, diverged_at=diverged, last_step=step)
                return run
            log.add(trajectory.advance())


def _continue(run: Run, trajectory: Trajectory) -> pd.DataFrame:
    """Bring the trajectory to the run's last usable checkpoint; the rows recorded before it."""
    empty = pd.DataFrame(columns=list(tables.SCHEMAS["train"]))
    if not run.train_path.is_file():
        return empty
    rows = tables.read_table(run.train_path, "train")
    for step, path in reversed(run.checkpoints().items()):
        if step <= min(len(rows), run.config.steps):
            trajectory.load(path, step)
            return rows[:step]
    return empty


def _write(run: Run, log: _Log, **outcome: int | None) -> None:
    if not (run.path / "config.json").is_file():
        raise InputError(f"{run.path}: was removed, or moved, while it was trained; train it again")
    provenance = {
        "version": __version__,
        "torch": torch.__version__,
        "runs": {run.name: run.config.as_dict()},
        **outcome,
    }
    tables.write_table(run.train_path, "train", [log.table(run)], provenance, make_folder=False)


def choose_device(name: str = "auto") -> torch.device:
    """`cpu`, `cuda` or `mps`, or with `auto` the best one here; InputError for one that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        there = ", ".join(kind for kind, here in available.items() if here)
        raise InputError(f"--device {name}: not available on this machine (there is: {there})")
    return torch.device(name)


def train(
    problem: str | Builder = "vgg",
    norm: str | Callable[[int], nn.Module] = "batch",
    *,
    preset: str = "quick",
    seed: int = 0,
    output: Path | str | None = None,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train a run, or continue or find it: `settings` are the other fields of Config, in place of the preset's.

    The problem and the norm may be code of one's own: as "module:name", or the function or class itself.
    Returns the run, whose directory is `output` or `runs/<its name>`. Raises InputError for settings that do not fit,
    or a directory that holds another configuration.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train("dln", "l1", steps=10, samples=20, output=f"{folder}/run")
    ...     len(tables.read_table(run.train_path))
    11
    """
    config = resolve(name_of(problem), preset, name_of(norm), seed, **settings)
    return train_config(config, output, device=device, resume=resume, force=force, progress=progress)


def train_config(
    config: Config,
    output: Path | str | None = None,
    *,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Run:
    """`train` for a configuration at hand."""
    path = Path("runs") / config.name if output is None else Path(output)
    problem = problems.build(config, choose_device(device))
    problem.build()  # a norm or a size that does not fit is found before anything is written
    run = runs.prepare(path, problem.config, resume=resume, force=force)
    return train_run(run, problem, progress)
