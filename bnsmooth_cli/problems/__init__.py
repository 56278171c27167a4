"""The problems by name; a new one is a module here, an entry in `_PROBLEMS`, and its presets in config.py."""

from __future__ import annotations

from typing import Final

import torch

from bnsmooth_cli.config import Config
from bnsmooth_cli.problems.base import Chain, Layer, Problem, Program
from bnsmooth_cli.problems.linear import DeepLinear
from bnsmooth_cli.problems.vgg import Vgg

__all__ = ["Chain", "Layer", "Problem", "Program", "build"]

_PROBLEMS: Final[dict[str, type[Problem]]] = {"vgg": Vgg, "dln": DeepLinear}


def build(config: Config, device: torch.device | str = "cpu") -> Problem:
    """The problem of a configuration, its data on the device.

    Raises InputError where a setting or the data does not fit.

    >>> from bnsmooth_cli.config import resolve
    >>> problem = build(resolve("dln", norm="batch"))
    >>> len(problem.build().layers)
    25
    """
    return _PROBLEMS[config.problem](config, torch.device(device))
