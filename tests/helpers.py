"""Constants and functions that several test modules use."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from bnsmooth_cli import kinds, norms
from bnsmooth_cli.cli.commands import app
from bnsmooth_cli.networks.rescaling import is_known

#: Kind -> column -> type.
SCHEMAS = {kind.name: {name: column.type for name, column in kind.columns.items()} for kind in kinds.KINDS}
#: The kinds that have a figure.
DRAWN = [kind.name for kind in kinds.KINDS if kind.figures]

#: The paper's norms and lp:3: those whose statistics are taken over the batch, and those without statistics. What only
#: takes the place of a norm, as Dynamic Tanh does, is none.
NORMS = [
    name
    for name, over in ((norm.example or norm.name, norm.over) for norm in norms.NORMS)
    if over in ("batch", "nothing") and is_known(norms.build(name, 4))
]
#: The norms that the linear network's fast path computes, with a power that is not a whole number.
FAST_NORMS = [*(norm.example or norm.name for norm in norms.NORMS if norm.fast_path), "lp:1.5"]
#: Settings of the small runs: a few steps of a narrow VGG, or of a shallow linear network with a high learning rate.
SMALL: dict[str, dict[str, Any]] = {
    "vgg": {"width": 0.07, "batch_size": 16, "lr": 0.05, "steps": 6, "save_every": 2, "eval_every": 6},
    "dln": {"depth": 5, "dimension": 4, "samples": 30, "lr": 1e-4, "steps": 6, "save_every": 2},
    "gpt": {
        "depth": 2,
        "embedding": 8,
        "heads": 2,
        "context": 8,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup": 2,
        "steps": 6,
        "save_every": 2,
        "eval_every": 3,
    },
}

#: The options of a small linear network.
DLN = "--problem dln --depth 5 --dimension 4 --samples 30"
#: The environment of a command's process.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def classifier(*parts: Callable[[], nn.Module]) -> nn.Module:
    """A network in float64 of the modules that these functions make, always with the same weights."""
    torch.manual_seed(1)
    return nn.Sequential(*[part() for part in parts]).double()


def commands() -> list[str]:
    """Every command of the command line."""
    return [str(command.name) for command in app.registered_commands]


def holder(lock: Path) -> int | None:
    """The process that holds a lock file open, on Linux."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it ended in the meantime
            if any(os.readlink(link) == str(lock) for link in os.scandir(f"/proc/{process}/fd")):
                return int(process)
    return None


def legend(figure: Figure) -> list[str]:
    """The labels of a figure's legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def assert_finite(figure: Figure) -> None:
    """Check that every axis has finite limits, and every line a finite value."""
    for axes in figure.axes:
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
        for line in axes.lines:
            assert np.isfinite(np.asarray(line.get_ydata(), float)).any() or not len(line.get_ydata())


def files(study: Path) -> dict[str, bytes]:
    """The files of a study: every table and checkpoint, except the claims, whose commands name the folder."""
    return {
        str(path.relative_to(study)): path.read_bytes()
        for path in study.rglob("*")
        if path.suffix in (".parquet", ".pt") and "claims" not in path.name
    }
