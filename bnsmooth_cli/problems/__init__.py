"""The problems, built from configurations. A new problem is a module here and an entry in `presets.PROBLEMS`."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import torch

from bnsmooth_cli import optimisers
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.parameters import penalised, trainable
from bnsmooth_cli.presets import find_problem
from bnsmooth_cli.problems import checks
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import seeded
from bnsmooth_cli.storage.weights import read_weights


@torch.inference_mode(False)
@torch.enable_grad()
def build(config: Config, device: torch.device | str = "cpu", weights: Path | None = None) -> Problem:
    """The problem of a configuration, with its data on the device.

    Args:
        config: The configuration.
        device: Where the network and the data are.
        weights: A file of weights (`storage.weights`), to start from instead of the initialisation.

    Raises:
        InputError: If a setting, the data, the weights, or the user's own code does not fit.

    >>> from bnsmooth_cli.config import resolve
    >>> problem = build(resolve("dln", norm="batch"))
    >>> len(problem.build().layers)
    25
    """
    implementation = pkgutil.resolve_name(f"{__name__}.{find_problem(config.problem).implementation}")
    problem: Problem = implementation(config, torch.device(device))
    if problem.has_users_code:
        checks.check_parameters(problem.initial, problem.option)
        if config.weight_decay and not penalised(problem.initial):
            raise InputError(
                f"--weight-decay {config.weight_decay:g}: the network has no weights, only biases and norms"
            )
    if optimisers.find(config.optimizer) is None:
        _know_optimizer(problem)
    if weights is not None:
        problem.start_from(read_weights(weights, problem.initial.state_dict()))
    if problem.has_users_code:
        before = _identities(problem)
        checks.check(problem)
        problem.check_code()
        if changed := {name for name, _ in before ^ _identities(problem)}:
            raise InputError(
                f"{problem.option}: its parameter or buffer '{min(changed)}' is made anew after the first forward "
                "pass; make it in the constructor, and set its values in place"
            )
    return problem


def _know_optimizer(problem: Problem) -> None:
    """Complete the configuration by the learning rate and the settings of the user's own optimiser.

    Raises:
        InputError: If it cannot be made, or its settings are not those of the configuration.
    """
    config, option = problem.config, f"--optimizer {problem.config.optimizer}"
    with seeded(config.seed):
        optimizer = optimisers.build(config.optimizer, trainable(problem.initial).values())
    state, lr = optimisers.digest(optimizer), float(optimizer.param_groups[0]["lr"])
    if config.optimizer_digest not in (None, state):
        raise InputError(
            f"{option}: its settings are not those that the run was trained with (learning rate {config.lr:g}, now "
            f"{lr:g}; their digest differs); restore them, or train it again (bnsmooth train ... --force)"
        )
    problem.config = config.changed(lr=lr, optimizer_digest=state)


def _identities(problem: Problem) -> set[tuple[str, int]]:
    """The names of parameters and buffers, with what tells whether a parameter is still the same object."""
    model = problem.initial
    return {(name, id(value)) for name, value in model.named_parameters()} | {(n, 0) for n, _ in model.named_buffers()}
