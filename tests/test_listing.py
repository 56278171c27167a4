"""Lists of runs: what a folder holds, how far each run is, and what is measured of it."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pytest

import bnsmooth_cli as bns
from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.storage.listing import list_runs

SMALL = {"problem": "dln", "depth": 3, "dimension": 3, "samples": 9, "steps": 4, "save_every": 2}


@pytest.fixture
def folder(tmp_path, small_run):
    shutil.copytree(small_run("dln", "batch").path, tmp_path / "runs/one")
    return tmp_path


def states(folder):
    listed = list_runs(folder)
    return dict(zip(listed["run"], listed["state"], strict=True))


def test_each_run_is_a_row_with_its_state_and_the_points_of_its_tables(folder):
    bns.train(norm="l1", output=folder / "runs/two", measure=["ics", "smoothness"], every=1, **SMALL)
    bns.train(norm="none", output=folder / "diverges", **{**SMALL, "lr": 1e10})
    listed = list_runs(folder).set_index("run")
    assert [*listed.index] == ["diverges", "one", "two"]
    assert listed.loc["two", "tables"] == {"ics": 5, "smoothness": 5}
    assert listed.loc["two", ["norm", "seed", "state", "step", "steps"]].tolist() == ["l1", 0, "finished", 4, 4]
    diverged_at = listed.loc["diverges", "diverged_at"]
    assert listed.loc["diverges", "state"] == f"diverged at step {diverged_at}"
    assert pd.isna(listed.loc["two", "diverged_at"])


def test_a_stopped_run_says_what_it_keeps(folder, monkeypatch):
    run = bns.train(norm="l1", output=folder / "runs/two", **SMALL)
    (run.path / "checkpoints/000004.pt").unlink()
    content = json.loads((run.path / "config.json").read_text())
    del content["crc"]
    content["config"]["steps"] = 9  # as if it had been told to train on
    (run.path / "config.json").write_text(json.dumps(content))
    assert states(folder)["two"] == "step 2 of 9"


def test_a_damaged_run_is_listed_with_the_reason_and_hides_no_other(folder):
    shutil.copytree(folder / "runs/one", folder / "runs/two")
    (folder / "runs/one/config.json").write_text("{")
    (folder / "runs/two/train.parquet").write_bytes(b"PAR1")
    listed = states(folder)
    assert listed["one"].startswith("damaged: config.json: not readable as JSON")
    assert listed["two"].startswith("damaged: train.parquet: not a readable Parquet file")


def test_files_of_other_programs_and_hidden_folders_are_no_runs(folder):
    for place in ("model", ".cache/run"):
        (folder / place).mkdir(parents=True)
    (folder / "model/config.json").write_text('{"hidden_size": 768}')
    shutil.copy(folder / "runs/one/config.json", folder / ".cache/run")
    assert [*states(folder)] == ["one"]


def test_a_run_behind_a_link_is_listed_once_and_a_circle_ends(folder):
    links = folder / "links"
    links.mkdir()
    for name, target in (("there", folder / "runs"), ("again", folder / "runs/one"), ("circle", links)):
        (links / name).symlink_to(target)
    assert [*states(links)] == ["one"]
    assert [*states(folder)] == ["one"]


def test_runs_of_a_study_name_it(tmp_path):
    bns.study(["none", "l1"], output=tmp_path / "s", **SMALL)
    assert [*list_runs(tmp_path)["study"]] == [str(tmp_path / "s")] * 2


def test_a_folder_whose_name_is_no_text_is_listed(cli, tmp_path):
    place = tmp_path / os.fsdecode(b"runs\xff")
    bns.train("dln", "none", depth=2, dimension=2, samples=4, steps=1, output=place / "mine")
    code, out, _ = cli(f"list {place}")
    assert (code, "mine" in out) == (0, True)


def test_an_empty_folder_has_no_runs_and_a_missing_one_is_named(tmp_path):
    assert list_runs(tmp_path).empty
    with pytest.raises(bns.InputError, match="absent: no such folder"):
        list_runs(tmp_path / "absent")


def test_a_folder_that_cannot_be_read_is_not_one_without_runs(folder, monkeypatch):
    scan = os.scandir

    def refused(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"locked: cannot be read \(Permission denied\)"):
        list_runs(folder / "locked")
    with pytest.warns(Remark, match="locked: cannot be read .* runs in it are missing"):
        assert len(list_runs(folder)) == 1
