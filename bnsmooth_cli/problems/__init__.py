"""The problems by name; a new one is a module here and an entry in `config.PROBLEMS`."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from bnsmooth_cli import user_code as code
from bnsmooth_cli.config import Config, find_problem
from bnsmooth_cli.derivatives.fast_path import FastPath
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.problems import checks
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.custom import Workload
from bnsmooth_cli.storage.files import load_tensors

__all__ = ["Chain", "FastPath", "Layer", "Problem", "Workload", "build"]


def build(config: Config, device: torch.device | str = "cpu", weights: Path | None = None) -> Problem:
    """The problem of a configuration, its data on the device; with `weights`, a file of a state dict, beginning there.

    Raises InputError where a setting, the data or the weights do not fit, and for code of the user's that does not.

    >>> from bnsmooth_cli.config import resolve
    >>> problem = build(resolve("dln", norm="batch"))
    >>> len(problem.build().layers)
    25
    """
    module, _, name = find_problem(config.problem).implementation.partition(":")
    problem: Problem = getattr(importlib.import_module(f"{__name__}.{module}"), name)(config, torch.device(device))
    if weights is not None:
        problem.start_from(_fitting(problem, weights))
    if code.is_code(config.problem) or code.is_code(config.norm):
        checks.check(problem)
    return problem


def _fitting(problem: Problem, path: Path) -> dict[str, torch.Tensor]:
    """A state dict that has the network's names and shapes; InputError says where it differs."""
    given, mine = load_tensors(path), problem.initial.state_dict()
    lacking = [f"lacks {name}" for name in mine if name not in given]
    having = [f"has {name}" for name in given if name not in mine]
    differences = [*lacking[:2], *having[:2], *lacking[2:], *having[2:]]
    for name, value in mine.items():
        found = given.get(name, value)
        if not isinstance(found, torch.Tensor):
            differences.append(f"{name} is a {type(found).__name__}, not {tuple(value.shape)}")
        elif found.shape != value.shape:
            differences.append(f"{name} is {tuple(found.shape)}, not {tuple(value.shape)}")
        elif found.is_meta or found.is_complex() or found.is_floating_point() != value.is_floating_point():
            differences.append(f"{name} is no tensor of plain numbers")
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        what = f"no state dict of this network: {'; '.join(differences[:4])}{more}"
        raise InputError(f"{path}: {what[:600]}")
    return given
