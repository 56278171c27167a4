"""What a prompt and a notebook show of runs, points and studies."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage.runs import open_run

DLN = {"problem": "dln", "depth": 3, "dimension": 4, "samples": 20, "steps": 6, "save_every": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, and with a study of four runs."""
    folder = tmp_path_factory.mktemp("made")
    bns.train(norm="l1", output=folder / "run", measure="ics", **DLN)
    bns.study(["none", "l1"], seeds=range(2), output=folder / "study", measure="ics", **DLN)
    return folder


def lines(thing):
    """The labelled lines of a repr, and its first line."""
    first, *rest = repr(thing).splitlines()
    return first, dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in rest)


def cells(html):
    """The text of the cells of the tables of a card."""
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", html)]


def test_a_run_says_what_it_is_and_how_far(made, tmp_path):
    run = open_run(made / "run")
    title, said = lines(run)
    assert title == f"Run {made / 'run'}"
    assert said["trains"] == "dln, norm l1, lr 1e-06, seed 0"
    assert said["state"] == "finished at step 6"
    assert said["tables"] == "ics (4 points)"
    assert re.search(r"preset quick, but .*depth 3.*", said["settings"])
    assert {*said, *said.values()} == {*cells(run._repr_html_())}
    shutil.copytree(made / "run", tmp_path / "half")
    (tmp_path / "half/train.parquet").unlink()
    assert lines(open_run(tmp_path / "half"))[1]["state"] == "step 0 of 6"
    diverged = bns.train(norm="none", output=tmp_path / "diverged", **{**DLN, "lr": 1e10})
    assert re.fullmatch(r"diverged at step \d", lines(diverged)[1]["state"])


def test_a_run_of_a_preset_has_no_other_settings():
    new = bns.Run("nowhere", resolve("vgg", "paper"))
    assert lines(new)[1] == {
        "trains": "vgg, norm batch, lr 0.1, seed 0", "settings": "preset paper", "state": "not begun"
    }  # fmt: skip


def test_a_damaged_run_can_be_shown(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    for file, content in (("ics.parquet", b"PAR1"), ("train.parquet", b""), ("config.json", b"{")):
        (tmp_path / "run" / file).write_bytes(content)
        assert "damaged: " in lines(run)[1]["state"]
        assert "damaged: " in run._repr_html_()
    shutil.rmtree(tmp_path / "run")
    assert lines(run)[1]["state"] == "not begun"
    assert "cannot be read: " in repr(bns.Run(None, run.config))
    assert "cannot be read: " in bns.Run(None, run.config)._repr_html_()


def test_a_study_lists_its_runs_and_the_verdicts(made, tmp_path):
    study = bns.Study(made / "study")
    title, said = lines(study)
    assert title == f"Study {made / 'study'}"
    assert (said["grid"], said["runs"], said["tables"]) == (
        "norms l1, none; lr 1e-06; seeds 0, 1", "4 finished", "ics"
    )  # fmt: skip
    assert sum(map(int, re.findall(r"\d+", said["claims"]))) == study.claims["claim"].nunique()
    html = cells(study._repr_html_())
    assert html.count("finished") == 4
    assert {run.name for run in study.runs()} <= {*html}
    shutil.copytree(made / "study", tmp_path / "study")
    damaged = bns.Study(tmp_path / "study")
    (tmp_path / "study/compare.claims.parquet").write_bytes(b"PAR1")
    assert "cannot be read" in lines(damaged)[1]["claims"]
    (damaged.runs()[0].path / "config.json").write_text("{")
    assert lines(damaged)[1]["runs"] == "3 finished, 1 damaged"
    (tmp_path / "study/study.json").write_text("{")
    assert "cannot be read" in lines(damaged)[1]["state"]
    assert "cannot be read" in damaged._repr_html_()


def test_a_card_of_a_large_study_stays_small(made, tmp_path):
    shutil.copytree(made / "study", tmp_path / "study")
    first = bns.Study(tmp_path / "study").runs()[0].path
    for number in range(60):
        shutil.copytree(first, first.with_name(f"x{number}"))
    html = cells(bns.Study(tmp_path / "study")._repr_html_())
    assert "and 15 more" in html
    assert "x9" not in html


def test_a_list_of_runs_shows_paths_states_and_tables(made, monkeypatch):
    monkeypatch.chdir(made)
    listed = bns.list_runs(".")
    shown = cells(listed._repr_html_())
    assert shown[:6] == ["path", "state", "tables", "run", "finished", "ics (4 points)"]
    assert len(shown) == 3 * 6
    assert "<table" in listed[listed["norm"] == "l1"]._repr_html_()  # an ordinary table again
    assert bns.list_runs("run")._repr_html_().count("<tr>") == 2


def test_a_point_says_where_it_is(made):
    point = bns.load_point(open_run(made / "run"), 4)
    title, said = lines(point)
    assert title == "Point run, step 4"
    assert said["of"] == "dln, norm l1, lr 1e-06, seed 0"
    assert (said["network"], said["batch"]) == ("72 parameters, float32 on cpu", "20 samples")
    assert lines(point.at("train:3"))[1]["objective"] == "train:3"
    assert {*said, *said.values()} == {*cells(point._repr_html_())}
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    own = bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1, step=7, run="mine")
    assert lines(own) == (
        "Point mine, step 7",
        {"of": "your own training loop, lr 0.1", "network": "4 parameters, float32 on cpu", "objective": "batch"},
    )


def test_hostile_names_are_shown_as_text(made):
    config = open_run(made / "run").config
    run = bns.Run(made / "<script>alert(1)</script>\x1b[31m", config)
    assert "<script>" not in run._repr_html_()
    assert "\x1b" not in repr(run)


def test_runs_and_studies_are_shown_without_torch(made):
    code = (
        "import sys, bnsmooth_cli as bns\nfrom bnsmooth_cli.storage.runs import open_run\n"
        "for thing in (open_run('run'), bns.Study('study')): print(repr(thing), thing._repr_html_())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finished at step 6" in done.stdout


def test_compare_takes_runs_paths_and_studies_mixed(made):
    study, run = bns.Study(made / "study"), open_run(made / "run")
    names = {run.name for run in study.runs()}
    for sources in (study, made / "study", str(made / "study"), study.runs(), [run.path for run in study.runs()]):
        assert {*bns.compare(sources)["run"]} == names
    assert (
        {*bns.compare([study, run])["run"]} == {*bns.compare([made / "study", str(run.path)])["run"]} == names | {"run"}
    )
    assert [*bns.compare(run)["run"]] == ["run"]
    with pytest.raises(bns.InputError, match="given twice"):
        bns.compare([study, study.runs()[0]])
    with pytest.raises(bns.InputError, match="no such run directory"):
        bns.compare([run, made / "nothing"])
