"""The problems, built from configurations. A new problem is a module here and an entry in `config.PROBLEMS`."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import torch

from bnsmooth_cli.config import Config, find_problem
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.parameters import penalised
from bnsmooth_cli.problems import checks
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage.weights import read_weights
from bnsmooth_cli.user_code import is_code


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
    if config.weight_decay and not penalised(problem.initial):
        raise InputError(f"--weight-decay {config.weight_decay:g}: the network has no weights, only biases and norms")
    if weights is not None:
        problem.start_from(read_weights(weights, problem.initial.state_dict()))
    if is_code(config.problem) or is_code(config.norm):
        checks.check(problem)
    return problem
