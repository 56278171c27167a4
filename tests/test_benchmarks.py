"""The suite of benchmarks runs, and the page of its results is what it has written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import ROWS, agree, medians, page

ROOT = Path(__file__).parents[1]


def suite(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_row_runs_alone_by_its_name_and_leaves_its_results(tmp_path):
    done = suite("dln-step", "-o", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "found.json").read_text())
    assert [result["case"] for result in content["results"]] == ["none", "batch", "l1", "linf"]
    for result in content["results"]:
        assert result["ratio"] == pytest.approx(result["reference_s"] / result["ours_s"])
        assert f"{result['ratio']:.2f}" in done.stdout
    assert (tmp_path / "found.md").read_text() == page(content)


def test_a_row_that_there_is_not_is_one_line_and_no_run(tmp_path):
    done = suite("dln-steps", "-o", str(tmp_path / "found.json"))
    assert done.returncode == 2
    assert "no such row: dln-steps (there are " in done.stderr
    assert not any(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    done = suite("dln-step", "-o", str(tmp_path / "file/found.json"))
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr.splitlines()[-1]


def test_nothing_is_timed_that_disagrees():
    agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001]), 1e-3)
    for wrong in (torch.tensor([1.0, 2.1]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(AssertionError, match="nothing to time"):
            agree(wrong, torch.tensor([1.0, 2.0]), 1e-3)


def test_works_are_timed_in_turns_and_the_first_round_does_not_count(monkeypatch):
    clock = iter([0, 0, 0, 1, 0, 2, 0, 5, 0, 4, 0, 3, 0, 9])  # the first round has no ends
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    order = []
    assert medians(lambda: order.append("a"), lambda: order.append("b"), repeats=3) == [3, 4]
    assert order == ["a", "b"] * 4


def test_the_speed_page_is_the_committed_results_of_every_row():
    import benchmarks.__main__  # noqa: F401  registers the rows

    content = json.loads((ROOT / "docs/speed.json").read_text())
    assert (ROOT / "docs/speed.md").read_text() == page(content)
    assert {result["row"] for result in content["results"]} == set(ROWS)
