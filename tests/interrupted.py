"""Small runs, and work on them that is interrupted: for the tests of measurements that resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage.journal import journal_path

STUDIED = kinds.measured(studied=True)
QUICK = ["landscape", "smoothness", "ics", "activations"]
SETTINGS = {
    "dln": {"depth": 4, "dimension": 4, "samples": 20, "lr": 1e-4, "steps": 9, "save_every": 4},
    "vgg": {"width": 0.0625, "batch_size": 8, "steps": 4, "save_every": 2, "eval_every": 4, "momentum": 0.9},
}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, without locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock")
    }


class Stop(Exception):
    """Ends the work, as an error or a signal does."""


def stopping_at(number: int) -> Callable[..., None]:
    """A callback for progress that ends the work at its call with this number, counted from 0."""
    calls = iter(range(10_000))

    def report(*_: object) -> None:
        if next(calls) == number:
            raise Stop

    return report


def trained(folder: Path, **settings: object) -> bns.Run:
    return bns.train("dln", "batch", output=folder, **{**SETTINGS["dln"], **settings})


def steps_of(table: Path) -> list[int]:
    return bns.read_table(table)["step"].unique().tolist()


def half(number: int, kind: str, run: bns.Run, table: Path | None = None, **asked: object) -> Path:
    """The journal of a measurement that was interrupted after some points."""
    with pytest.raises(Stop):
        measure(kind, [run.source()], table, progress=stopping_at(number), **asked)
    return journal_path(table or run.path / f"{kind}.parquet")
