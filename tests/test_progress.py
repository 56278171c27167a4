"""Progress bars of the Python functions: where they are shown, and what they say."""

from __future__ import annotations

import io
import sys

import pytest

import bnsmooth_cli as bns
from bnsmooth_cli.measures.measuring import measure

SMALL = {"depth": 3, "dimension": 4, "samples": 20, "steps": 30, "save_every": 10, "device": "cpu"}


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal

    def lines(self):
        """The last state of each line."""
        return [line.rpartition("\r")[2] for line in self.getvalue().rstrip("\n").split("\n")]


@pytest.fixture
def stderr(monkeypatch):
    """stderr(terminal) -> the stream that takes the place of stderr."""

    def replace(terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


def test_a_terminal_shows_training_and_measuring(stderr, tmp_path):
    stream = stderr(True)
    run = bns.train("dln", "l1", output=tmp_path / "run", **SMALL)
    (line,) = stream.lines()
    assert line.startswith("train dln-l1-lr1e-06-seed0: 100%|")
    assert "30/30" in line
    assert f"loss {bns.read_table(run.train_path)['loss'].iloc[29]:.3g}"[:8] in stream.getvalue()
    stream = stderr(True)
    bns.train("dln", "l1", output=tmp_path / "run", measure="ics", every=5, **SMALL)
    (line,) = stream.lines()
    assert line.startswith("measure dln-l1-lr1e-06-seed0: 100%|")
    assert "7/7" in line
    stream = stderr(True)
    measure("smoothness", [run.source()])
    assert "smoothness: 100%|" in stream.lines()[0]
    stream = stderr(True)
    bns.train("dln", "l1", output=tmp_path / "run", measure="ics", every=5, **SMALL)  # nothing remains to be done
    assert stream.getvalue() == ""


def test_the_bar_of_a_resumed_run_begins_where_it_was(stderr, tmp_path):
    bns.train("dln", "l1", output=tmp_path / "run", **SMALL)
    stream = stderr(True)
    bns.train("dln", "l1", output=tmp_path / "run", **{**SMALL, "steps": 60})
    states = stream.getvalue().split("\r")
    assert " 50%|" in next(state for state in states if state)
    assert "60/60" in states[-1]


def test_a_bar_of_a_run_that_diverges_stays_where_it_was(stderr, tmp_path):
    stream = stderr(True)
    run = bns.train("dln", "none", output=tmp_path / "run", **SMALL, lr=1e10)
    step = run.outcome()["diverged_at"]
    (line,) = stream.lines()
    assert f"diverged at step {step}" in line
    assert "100%" not in line


def test_a_batch_job_shows_nothing_unless_asked(stderr, tmp_path):
    stream = stderr(False)
    bns.train("dln", "l1", output=tmp_path / "a", **SMALL)
    bns.study("none", problem="dln", output=tmp_path / "study", **SMALL)
    assert stream.getvalue() == ""
    bns.train("dln", "l1", output=tmp_path / "b", progress=True, **SMALL)
    assert "100%" in stream.getvalue()


def test_progress_false_shows_nothing(stderr, tmp_path):
    stream = stderr(True)
    run = bns.train("dln", "l1", output=tmp_path / "a", progress=False, **SMALL)
    measure("smoothness", [run.source()], progress=False)
    bns.study("none", problem="dln", output=tmp_path / "study", progress=False, **SMALL)
    assert stream.getvalue() == ""


def test_callbacks_take_the_place_of_bars(stderr, tmp_path):
    stream = stderr(True)
    seen = []
    bns.train("dln", "l1", output=tmp_path / "run", progress=lambda step, loss: seen.append(step), **SMALL)

    class Ended(bns.StudyProgress):
        def finished(self, run, seconds):
            seen.append(run)

    bns.study("none", problem="dln", output=tmp_path / "study", progress=Ended(), **SMALL)
    assert seen == [0, 10, 20, 30, "dln-none-lr1e-06-depth3-dim4-samples20-steps30-seed0"]
    assert stream.getvalue() == ""


@pytest.mark.slow
def test_a_study_has_one_bar(stderr, tmp_path, monkeypatch):
    stream, longer = stderr(True), {**SMALL, "steps": 600}  # long enough to be seen while it trains
    monkeypatch.setattr("bnsmooth_cli.studies.progress.INTERVAL", 0.001)
    bns.study(["none", "l1"], problem="dln", output=tmp_path / "study", measure="ics", **longer)
    (line,) = stream.lines()
    assert line.startswith("study: 2 of 2 runs: 100%|")
    assert ": train " in stream.getvalue()
    stream = stderr(True)
    bns.study(["none", "l1"], problem="dln", output=tmp_path / "study", measure="ics", **longer)
    assert stream.getvalue() == ""


def test_a_failed_run_is_told_beside_the_bar(stderr, tmp_path):
    study = bns.study(["none", "l1"], problem="dln", output=tmp_path / "study", **SMALL)
    (study.runs()[0].path / "train.parquet").write_bytes(b"PAR1")
    stream = stderr(True)
    with pytest.warns(UserWarning, match=r"failed, the other runs continue: .*train\.parquet"):
        bns.study(["none", "l1", "l2"], problem="dln", output=tmp_path / "study", **SMALL)
    assert stream.lines()[-1].startswith("study: 1 of 1 runs: 100%|")


def test_the_command_line_has_its_own_bars_alone(cli, monkeypatch):
    monkeypatch.setattr("bnsmooth_cli.bars.wanted", lambda progress: pytest.fail("a second bar"))
    monkeypatch.setattr("bnsmooth_cli.measures.one_pass.shown", lambda progress: pytest.fail("a second bar"))
    small = "--problem dln --depth 3 --dimension 4 --samples 20 --steps 10"
    assert cli(f"train {small} --measure ics")[0] == 0
    assert cli(f"compare --norms none {small}")[0] == 0
