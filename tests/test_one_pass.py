"""One pass: a run is measured while it trains, and every file is what measuring it afterwards writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interrupted import QUICK, SETTINGS, STUDIED, Stop, contents, steps_of, stopping_at, trained
from own_code import Scaled, residual, transformer

import bnsmooth_cli as bns
from bnsmooth_cli import norms
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measuring import measure


def afterwards(path: Path, problem: str, norm: str, kinds_: list[str] = STUDIED, **settings: object) -> None:
    """Train a run, and measure it every third step by one command after another."""
    run = bns.train(problem, norm, output=path, **{**SETTINGS[problem], **settings})
    for kind in kinds_:
        options = {"probe": True} if kind == "activations" else {}
        measure(kind, [run.source()], every=3, options=options)


def both(folder: Path, problem: str, norm: str, kinds_: list[str], **settings: object) -> None:
    """Measure a run in one pass, and another one afterwards; compare all files."""
    afterwards(folder / "afterwards/run", problem, norm, kinds_, **settings)
    bns.train(problem, norm, measure=kinds_, every=3, probe="activations" in kinds_, output=folder / "pass/run",
              **SETTINGS[problem])  # fmt: skip
    assert contents(folder / "pass") == contents(folder / "afterwards")


@pytest.mark.parametrize(("problem", "norm"), [("dln", "l1"), ("vgg", "noisy-batch")])
@pytest.mark.slow
def test_one_pass_writes_what_measuring_afterwards_writes(tmp_path, problem, norm):
    both(tmp_path, problem, norm, QUICK if problem == "vgg" else STUDIED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "norm"),
    [(problem, norm) for problem in SETTINGS for norm in norms.examples() if (problem, norm) != ("dln", "instance")],
)
def test_one_pass_of_every_norm(tmp_path, problem, norm):
    chosen = QUICK if problem == "vgg" and norm != "l1" else STUDIED
    # Dynamic Tanh has no normalised input whose distribution could be measured.
    both(tmp_path, problem, norm, [kind for kind in chosen if norm != "dyt" or kind not in ("activations", "theory")])


@pytest.mark.parametrize("problem", ["dln", "vgg"])
@pytest.mark.fast(1)
def test_a_pass_that_is_interrupted_anywhere_ends_in_the_same_bytes(tmp_path, problem):
    chosen = {"measure": QUICK[:3], "every": 2, **SETTINGS[problem]}
    bns.train(problem, "batch", output=tmp_path / "whole/run", **chosen)
    for number in (1, 2):
        folder = tmp_path / str(number)
        with pytest.raises(Stop):
            bns.train(problem, "batch", output=folder / "run", progress=stopping_at(number), **chosen)
        bns.train(problem, "batch", output=folder / "run", **chosen)
        assert contents(folder) == contents(tmp_path / "whole"), number


@pytest.mark.parametrize("save_every", [4, 20])
def test_a_run_that_diverges_is_measured_up_to_there(tmp_path, save_every):
    settings = {**SETTINGS["dln"], "lr": 10.0, "steps": 60, "save_every": save_every}
    for name in ("pass", "afterwards"):
        measured = {"measure": ["landscape", "ics"], "every": 1} if name == "pass" else {}
        run = bns.train("dln", "none", output=tmp_path / name / "run", **measured, **settings)
        for kind in ("landscape", "ics") if name == "afterwards" else ():
            measure(kind, [run.source()], every=1)
    assert contents(tmp_path / "pass") == contents(tmp_path / "afterwards")
    end = run.outcome()["diverged_at"]
    assert end - 1 <= bns.read_table(run.path / "ics.parquet")["step"].max() < 60


def test_a_pass_needs_no_checkpoint_between(tmp_path):
    settings = SETTINGS["dln"]
    run = bns.train("dln", "batch", measure=["ics"], every=3, keep=1, output=tmp_path / "run", **settings)
    assert [*run.checkpoints()] == [9]
    assert bns.read_table(run.path / "ics.parquet")["step"].unique().tolist() == [0, 3, 6, 9]
    bns.train("dln", "batch", measure=["ics"], every=3, keep=1, output=tmp_path / "run", **settings)
    with pytest.raises(InputError, match="out of reach"):
        bns.train("dln", "batch", measure=["landscape"], every=3, keep=1, output=tmp_path / "run", **settings)


def test_a_finished_run_is_measured_for_what_it_lacks(tmp_path):
    settings = {**SETTINGS["dln"], "every": 3, "output": tmp_path / "run"}
    bns.train("dln", "batch", measure=["ics"], **settings)
    stamp = (tmp_path / "run/ics.parquet").stat().st_mtime_ns
    bns.train("dln", "batch", measure=["ics", "landscape"], **settings)
    assert (tmp_path / "run/ics.parquet").stat().st_mtime_ns == stamp
    assert bns.read_table(tmp_path / "run/landscape.parquet")["step"].unique().tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"measure": ["ics"], "every": 0}, "--every 0: give a whole number of at least 1"),
        ({"measure": ["ics"], "every": 2, "at": [3]}, "--every and --at: give only one"),
        ({"measure": ["ics"], "at": []}, "--at: name at least one step"),
        ({"measure": ["ics"], "at": [0, 10]}, "--at 10: beyond the 9 steps"),
        ({"measure": ["ics"], "at": [0, -3]}, "--at -3: give steps from 0 to 9"),
        ({"measure": ["ics", "landscape", "ics"]}, "--measure ics: given twice"),
        ({"measure": ["smoothnes"]}, "did you mean 'smoothness'"),
        ({"measure": ["surface"]}, "unknown measurement 'surface'"),
        ({"measure": ["ics"], "probe": True}, "--probe: an option of activations"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(tmp_path, wanted, said):
    with pytest.raises(InputError, match=said):
        bns.train("dln", "batch", output=tmp_path / "run", **wanted, **SETTINGS["dln"])
    assert not (tmp_path / "run").exists()


def test_steps_without_a_measurement_are_refused(cli):
    for line, said in (
        ("--every 3", "--every: an option of --measure; add --measure"),
        ("--probe", "--probe: an option of --measure"),
    ):
        code, _, err = cli(f"train -p dln {line}")
        assert (code, said in err) == (2, True), err


@pytest.mark.parametrize(("problem", "norm"), [(residual, Scaled), (transformer, "none")])
@pytest.mark.fast(1)
def test_one_pass_of_the_users_own_code(tmp_path, problem, norm):
    settings = {"steps": 3, "save_every": 3, "eval_every": 3, "batch_size": 6, "lr": 0.05}
    bns.train(problem, norm, measure=QUICK, every=1, output=tmp_path / "pass/run", **settings)
    run = bns.train(problem, norm, output=tmp_path / "afterwards/run", **settings)
    for kind in QUICK:
        measure(kind, [run.source()], every=1)
    assert contents(tmp_path / "pass") == contents(tmp_path / "afterwards")


def test_numpys_steps_and_a_single_kind_are_taken(tmp_path):
    run = trained(tmp_path / "run", measure="ics", at=np.array([0, 3]))
    assert steps_of(run.path / "ics.parquet") == [0, 3]
