"""What is missing for a verdict, and the commands that measure it."""

from __future__ import annotations

import re

import pytest
from helpers import DLN
from judged_runs import (
    RIGHT,
    STEPS,
    verdicts_of,
    world,
    write_run,
)

from bnsmooth_cli.storage.runs import open_run
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import Grid
from bnsmooth_cli.studies.outcome import conclude
from bnsmooth_cli.studies.verdicts import (
    NOT_MEASURED,
    REPRODUCED,
)


def test_what_is_not_measured_names_the_command_that_measures_it(tmp_path):
    outcome = conclude(world(tmp_path, "dln", RIGHT, norms=("none", "batch", "l1"), kinds=("smoothness",)))
    found = verdicts_of(outcome.claims)
    assert found[1] == found[5] == found[6] == found[7] == REPRODUCED
    assert {found[number] for number in (2, 4, 8, *range(10, 16))} == {NOT_MEASURED}
    lines = outcome.claims.set_index("claim")["command"]
    assert "--norms none,batch,l1 " in lines[4].iloc[0]  # all that the study would have
    assert "--measure smoothness,ics " in lines[4].iloc[0]
    assert "--measure smoothness,theory " in lines[12]
    assert "--lrs 1e-05" in lines[2].iloc[-1]
    merged, further = outcome.next
    assert "--norms none,batch,l1,l2,linf " in merged
    assert set(re.search(r"--measure (\S+)", merged)[1].split(",")) == {
        "smoothness", "ics", "theory", "landscape-random"
    }  # fmt: skip
    assert further == lines[2].iloc[-1]


@pytest.mark.parametrize(("seeds", "wanted"), [((0,), "0-4"), ((9,), "0-3,9"), ((0, 1, 7), "0-3,7"), (range(6), "0-5")])
def test_the_commands_have_as_many_seeds_as_a_verdict_takes(tmp_path, seeds, wanted):
    runs = [write_run(tmp_path, "dln", norm, 1e-6, seed, RIGHT, ("smoothness",)) for norm in ("none", "batch")
            for seed in seeds]  # fmt: skip
    lines = conclude(runs).next
    assert lines
    assert all(f"--seeds {wanted} " in line for line in lines)


def test_a_renamed_run_is_measured_at_the_steps_of_its_table(cli, tmp_path):
    assert cli(f"train {DLN} --steps 20 -o before")[0] == 0
    assert cli("smoothness before --every 5")[0] == 0
    (tmp_path / "before").rename(tmp_path / "after")
    lines = conclude([open_run(tmp_path / "after")]).next
    assert lines
    assert all(" --every 5 " in line for line in lines)


@pytest.mark.slow
def test_the_commands_have_every_seed_and_lr_of_the_study_and_the_steps_last_measured(tmp_path):
    study = Study(tmp_path)
    shared = {"norms": ("none",), "settings": {"problem": "dln", "steps": STEPS}}
    study.record(Grid(**shared, seeds=(0, 1), lrs=(1e-6,), measure=("smoothness",), every=5))
    runs = world(tmp_path / "runs", "dln", RIGHT, 5, ("none", "batch"), (1e-6, 2e-6), kinds=("smoothness",))
    study.record(Grid(**shared, seeds=(2, 3, 4), lrs=(2e-6,)))
    merged, _ = conclude(runs, study).next
    for words in ("--lrs 1e-06,2e-06", "--seeds 0-4", "--every 5", f"--steps {STEPS}", f"-o {tmp_path}"):
        assert f"{words} " in f"{merged} "


def test_the_commands_for_runs_of_two_problems_have_the_settings_of_each(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, 2, ("none",), kinds=()) + world(tmp_path, "dln", RIGHT, 2, ("l1",), kinds=())
    lines = sorted(line for line in conclude(runs).next if "--lrs" not in line)
    for problem, line in zip(("dln", "vgg"), lines, strict=True):
        assert f"--problem {problem} --steps {STEPS} " in line
        assert line.endswith(f"-o study-{problem}")  # a study is of one problem
