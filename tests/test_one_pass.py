"""One pass: a run is measured while it trains, and every file is what measuring it afterwards writes."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnsmooth_cli as bns
from bnsmooth_cli import kinds, norms
from bnsmooth_cli.measures.measuring import measure

STUDIED = kinds.measured(studied=True)
QUICK = ["landscape", "smoothness", "ics", "activations"]
SETTINGS = {
    "dln": {"depth": 4, "dimension": 4, "samples": 20, "lr": 1e-4, "steps": 9, "save_every": 4},
    "vgg": {"width": 0.0625, "batch_size": 8, "steps": 4, "save_every": 2, "eval_every": 4, "momentum": 0.9},
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock")
    }


def afterwards(path: Path, problem: str, norm: str, kinds_: list[str] = STUDIED, **settings: object) -> None:
    """Train a run, and measure it every third step by one command after another."""
    run = bns.train(problem, norm, output=path, **{**SETTINGS[problem], **settings})
    for kind in kinds_:
        options = {"probe": True} if kind == "activations" else {}
        measure(kind, [run.source()], every=3, options=options)


def both(folder: Path, problem: str, norm: str, kinds_: list[str], **settings: object) -> None:
    """Measure a run in one pass, and another one afterwards; compare all files."""
    afterwards(folder / "afterwards/run", problem, norm, kinds_, **settings)
    bns.train(problem, norm, measure=kinds_, every=3, probe=True, output=folder / "pass/run", **SETTINGS[problem])
    assert files(folder / "pass") == files(folder / "afterwards")


@pytest.mark.parametrize(("problem", "norm"), [("dln", "l1"), ("vgg", "noisy-batch")])
def test_one_pass_writes_what_measuring_afterwards_writes(tmp_path, problem, norm):
    both(tmp_path, problem, norm, QUICK if problem == "vgg" else STUDIED)


@pytest.mark.slow
@pytest.mark.parametrize("norm", norms.examples())
@pytest.mark.parametrize("problem", ["dln", "vgg"])
def test_one_pass_of_every_norm(tmp_path, problem, norm):
    both(tmp_path, problem, norm, STUDIED)
