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
from bnsmooth_cli.storage.files import load_tensors
from bnsmooth_cli.user_code import is_code


def build(config: Config, device: torch.device | str = "cpu", weights: Path | None = None) -> Problem:
    """The problem of a configuration, with its data on the device.

    Args:
        config: The configuration.
        device: Where the network and the data are.
        weights: A file of a state dict, to start from instead of the initialisation.

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
        problem.start_from(_fitting(problem, weights))
    if is_code(config.problem) or is_code(config.norm):
        checks.check(problem)
    return problem


def _fitting(problem: Problem, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file; InputError unless its names and shapes are those of the network."""
    state, expected = load_tensors(path), problem.initial.state_dict()
    missing = [f"lacks {name}" for name in expected if name not in state]
    extra = [f"has {name}" for name in state if name not in expected]
    differences = [*missing[:2], *extra[:2], *missing[2:], *extra[2:]]
    for name, value in expected.items():
        other = state.get(name, value)
        if not isinstance(other, torch.Tensor):
            differences.append(f"{name} is a {type(other).__name__}, not {tuple(value.shape)}")
        elif other.shape != value.shape:
            differences.append(f"{name} is {tuple(other.shape)}, not {tuple(value.shape)}")
        elif other.is_meta or other.is_complex() or other.is_floating_point() != value.is_floating_point():
            differences.append(f"{name} is no tensor of plain numbers")
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        message = f"no state dict of this network: {'; '.join(differences[:4])}{more}"
        raise InputError(f"{path}: {message[:600]}")
    return state
