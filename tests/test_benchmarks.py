"""The suite of benchmarks runs, and docs/speed.md is the page of its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness import ROWS, agree, medians, page

ROOT = Path(__file__).parents[1]


@pytest.fixture
def suite(monkeypatch, capsys):
    """suite("ROW", ...) runs `python -m benchmarks ROW ...` in this process and returns stdout."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_one_row_can_be_run_and_its_results_are_saved(suite, tmp_path):
    printed = suite("dln-step", "-o", tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert [result["case"] for result in content["results"]] == ["none", "batch", "l1", "linf"]
    for result in content["results"]:
        assert result["ratio"] == pytest.approx(result["reference_s"] / result["ours_s"])
        assert f"{result['ratio']:.2f}" in printed
    assert (tmp_path / "results.md").read_text() == page(content)


def test_an_unknown_row_is_refused_and_nothing_runs(suite, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        suite("dln-steps", "-o", tmp_path / "results.json")
    assert stop.value.code == 2
    assert "no such row: dln-steps (there are " in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(suite, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        suite("dln-step", "-o", tmp_path / "file/results.json")
    assert stop.value.code == 2
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


def test_results_that_disagree_are_not_timed():
    agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001]), 1e-3)
    for wrong in (torch.tensor([1.0, 2.1]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(AssertionError, match="nothing to time"):
            agree(wrong, torch.tensor([1.0, 2.0]), 1e-3)


def test_the_works_are_timed_in_turns_after_a_warm_up(monkeypatch):
    clock = iter([0, 0, 0, 1, 0, 2, 0, 5, 0, 4, 0, 3, 0, 9])  # the first round is not timed to its end
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    order = []
    assert medians(lambda: order.append("a"), lambda: order.append("b"), repeats=3) == [3, 4]
    assert order == ["a", "b"] * 4


def test_the_speed_page_is_the_committed_results_of_every_row():
    content = json.loads((ROOT / "docs/speed.json").read_text())
    assert (ROOT / "docs/speed.md").read_text() == page(content)
    assert {result["row"] for result in content["results"]} == set(ROWS)
