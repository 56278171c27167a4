"""Measurements that resume, and tables that grow: no point is lost, mixed with others or measured twice."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from interrupted import QUICK, SETTINGS, STUDIED, Stop, half, steps_of, stopping_at, trained

import bnsmooth_cli as bns
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import recording
from bnsmooth_cli.measures.measuring import execute, measure, pending, plan
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import Journal, journal_path
from bnsmooth_cli.storage.runs import open_run, open_source, open_weights
from bnsmooth_cli.storage.tables import schema_of
from bnsmooth_cli.training.trajectory import Trajectory


@pytest.mark.parametrize("kind", STUDIED)
@pytest.mark.fast(1)
def test_a_measurement_goes_on_at_the_next_point(tmp_path, kind):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    options = {"probe": True} if kind == "activations" else {}
    (table,) = measure(kind, [run.source()], every=3, options=options)
    expected = table.read_bytes()
    table.unlink()
    for number in range(3):  # of four points, one is measured by each call
        with pytest.raises(Stop):
            measure(kind, [run.source()], every=3, options=options, progress=stopping_at(1))
        assert not table.exists()
        assert len(Journal(journal_path(table), {}, schema_of(kind))) == number + 1
    points: list[int] = []
    measure(kind, [run.source()], every=3, options=options, progress=lambda _, step, *counts: points.append(step))
    assert (points, table.read_bytes() == expected, journal_path(table).exists()) == ([9], True, False)


def test_one_table_of_several_runs_goes_on_too(tmp_path):
    sources = [bns.train("dln", norm, output=tmp_path / norm, **SETTINGS["dln"]).source() for norm in ("none", "batch")]
    (whole,) = measure("ics", sources, tmp_path / "whole.parquet", every=3)
    with pytest.raises(Stop):
        measure("ics", sources, tmp_path / "new/both.parquet", every=3, progress=stopping_at(5))
    measure("ics", sources, tmp_path / "new/both.parquet", every=3, progress=stopping_at(3))
    assert (tmp_path / "new/both.parquet").read_bytes() == whole.read_bytes()


def test_the_tables_of_a_run_share_one_walk(tmp_path, monkeypatch):
    run = bns.train("dln", "batch", output=tmp_path / "run", **{**SETTINGS["dln"], "save_every": 9})
    steps, advance = [], Trajectory.advance
    monkeypatch.setattr(Trajectory, "advance", lambda self: steps.append(self.step) or advance(self))
    requests = [request for kind in QUICK for request in plan(kind, [run.source()], every=3)]
    execute(pending(requests))
    assert steps == [*range(6)]  # the last point has a checkpoint
    assert all(request.answered() for request in requests)


@pytest.mark.parametrize("kind", ["landscape", "activations"])
def test_a_table_grows_by_the_steps_that_it_lacks(tmp_path, kind):
    run = bns.train("dln", "l1", output=tmp_path / "run", **SETTINGS["dln"])
    (expected,) = measure(kind, [run.source()], tmp_path / "expected.parquet", at=[0, 3, 4, 6, 9])
    points: list[int] = []
    (table,) = measure(kind, [run.source()], at=[4, 9])
    measure(kind, [run.source()], every=3, progress=lambda _, step, *counts: points.append(step))
    assert (points, table.read_bytes() == expected.read_bytes()) == ([0, 3, 6], True)
    stamp = table.stat().st_mtime_ns
    measure(kind, [run.source()], at=[3], progress=stopping_at(0))  # it has this step already
    assert table.stat().st_mtime_ns == stamp
    measure(kind, [run.source()], at=[3], force=True)
    assert bns.read_table(table)["step"].unique().tolist() == [3]


def test_a_longer_run_keeps_what_was_measured(tmp_path):
    settings = SETTINGS["dln"]
    bns.train("dln", "batch", measure=["ics"], every=3, output=tmp_path / "long/run", **{**settings, "steps": 15})
    bns.train("dln", "batch", measure=["ics"], every=3, output=tmp_path / "run", **settings)
    table, points = tmp_path / "run/ics.parquet", []
    run = bns.train("dln", "batch", output=tmp_path / "run", **{**settings, "steps": 15})
    measure("ics", [run.source()], every=3, progress=lambda _, step, *counts: points.append(step))
    assert points == [12, 15]
    assert table.read_bytes() == (tmp_path / "long/run/ics.parquet").read_bytes()


def test_a_run_that_was_renamed_after_its_measurement_is_named(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "former", **SETTINGS["dln"])
    measure("ics", [run.source()])
    run.path.rename(tmp_path / "present")
    with pytest.raises(InputError, match=re.escape("of other runs (former; now present); replace it with --force")):
        measure("ics", [open_run(tmp_path / "present").source()])


def test_points_of_other_options_are_refused_unless_forced(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    with pytest.raises(Stop):
        measure("landscape", [run.source()], options={"alphas": [1.0]}, progress=stopping_at(2))
    with pytest.raises(InputError, match=r"\.landscape\.points: has points of a table of other options; .*--force"):
        measure("landscape", [run.source()])
    measure("landscape", [run.source()], force=True)
    assert set(bns.read_table(run.path / "landscape.parquet")["alpha"]) == {0.0, 0.01, 0.1, 1.0, 10.0, 30.0}


def test_measuring_again_removes_nothing_before_it_can_begin(cli, tmp_path):
    run = bns.train("dln", "batch", measure=["ics"], output=tmp_path / "run", **SETTINGS["dln"])
    before = (run.path / "ics.parquet").read_bytes()
    code, _, err = cli(f"ics {run.path} --force --device mps")
    assert (code, "--device mps" in err) == (2, True), err
    assert (run.path / "ics.parquet").read_bytes() == before


def test_additions_are_kept_and_what_lacks_them_is_measured_again(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    probe, points = {"probe": True}, []
    (expected,) = measure("activations", [run.source()], tmp_path / "expected.parquet", every=3, options=probe)
    (table,) = measure("activations", [run.source()], at=[0, 3], options=probe)
    with pytest.raises(Stop):
        measure("activations", [run.source()], every=3, progress=stopping_at(1))
    measure("activations", [run.source()], every=3, progress=lambda _, step, *counts: points.append(step))
    assert (points, table.read_bytes() == expected.read_bytes()) == ([9], True)
    table.unlink()
    with pytest.raises(Stop):
        measure("activations", [run.source()], every=3, progress=stopping_at(2))
    measure("activations", [run.source()], every=3, options=probe)
    assert table.read_bytes() == expected.read_bytes()


def test_a_larger_request_that_was_interrupted_is_not_lost_to_a_smaller_one(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    measure("ics", [run.source()], at=[0, 4])
    with pytest.raises(Stop):
        measure("ics", [run.source()], every=1, progress=stopping_at(5))
    measure("ics", [run.source()], at=[4])
    points: list[int] = []
    measure("ics", [run.source()], every=1, progress=lambda _, step, *counts: points.append(step))
    assert points == [7, 8, 9]
    assert np.array_equal(bns.read_table(run.path / "ics.parquet")["step"].unique(), range(10))


def test_restarting_a_run_removes_what_was_measured_of_it(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    with pytest.raises(Stop):
        measure("landscape", [run.source()], options={"objective": "train:2"}, progress=stopping_at(1))
    assert [*run.path.glob(".landscape.train2.points")]
    bns.train("dln", "batch", output=tmp_path / "run", force=True, **SETTINGS["dln"])
    assert not [*run.path.glob("*.points")]
    assert open_run(run.path).outcome() is not None


def test_points_of_another_machine_are_kept_and_told(tmp_path, cli, monkeypatch):
    bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    assert cli("ics run --at 0,3")[::2] == (0, "")
    monkeypatch.setattr(recording, "machine", lambda device: {"torch": "99", "device": "cpu abacus", "threads": 1})
    code, _, err = cli("ics run --at 0,3,6")
    assert (code, err.count("\n")) == (0, 1)
    assert "run/ics.parquet: keeps points of another machine or program (torch " in err
    assert "now torch 99" in err
    parts = bns.read_table("run/ics.parquet").attrs["bnsmooth"]["stretches"]["run"]
    assert [(part["first"], part["last"], part["torch"] == "99") for part in parts] == [(0, 3, False), (6, 6, True)]
    _, shown, _ = cli("show run/ics.parquet")
    assert "steps 0-3: " in shown
    assert "step 6: torch 99" in " ".join(shown.split())


def test_changes_since_a_step_that_is_no_longer_in_the_table_are_not_kept(tmp_path):
    run = trained(tmp_path / "run")
    (expected,) = measure("activations", [run.source()], tmp_path / "expected.parquet", at=[9])
    (table,) = measure("activations", [run.source()], at=[4, 9])
    half(1, "activations", run, every=3)
    table.unlink()
    measure("activations", [run.source()], at=[9])
    assert table.read_bytes() == expected.read_bytes()


def test_a_table_that_is_measured_anew_for_additions_keeps_its_steps(tmp_path):
    run, counts = trained(tmp_path / "run"), []
    (table,) = measure("activations", [run.source()], every=3)
    probe = {"options": {"probe": True}}
    measure("activations", [run.source()], at=[3], progress=lambda *report: counts.append(report[2:]), **probe)
    assert steps_of(table) == [0, 3, 6, 9]
    assert bns.read_table(table)["probe_mean"].notna().all()
    assert counts == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_table_of_an_earlier_version_keeps_its_steps(tmp_path, monkeypatch):
    run = trained(tmp_path / "run")
    (table,) = measure("ics", [run.source()], every=3)
    expected = table.read_bytes()
    monkeypatch.setattr(tables, "lacking", lambda path: ["a column"] if path.read_bytes() == expected else [])
    measure("ics", [run.source()], at=[0, 4])
    assert steps_of(table) == [0, 3, 4, 6, 9]


def test_points_with_additions_outlive_a_request_that_the_table_answers(tmp_path):
    run = trained(tmp_path / "run")
    measure("activations", [run.source()], every=3)
    left = half(2, "activations", run, every=3, options={"probe": True})
    measure("activations", [run.source()], every=3)
    assert left.exists()


def test_points_outlive_a_request_of_another_kind_in_their_place(tmp_path):
    run, table = trained(tmp_path / "run"), tmp_path / "table.parquet"
    half(3, "ics", run, table, every=3)
    with pytest.raises(InputError, match=r"\.table\.points: has points of a table of other kind; .*--force"):
        measure("landscape", [run.source()], table)
    points: list[int] = []
    measure("ics", [run.source()], table, every=3, progress=lambda _, step, *counts: points.append(step))
    assert points == [9]


def test_forced_work_that_was_interrupted_continues_without_force(tmp_path):
    run, points = trained(tmp_path / "run"), []
    (table,) = measure("ics", [run.source()], every=3)
    stamp = table.stat().st_mtime_ns
    half(2, "ics", run, every=3, force=True)
    assert table.stat().st_mtime_ns == stamp  # it stays until the new one is whole
    measure("ics", [run.source()], every=3, progress=lambda _, step, *counts: points.append(step))
    assert points == [6, 9]
    assert table.stat().st_mtime_ns > stamp
    assert [path.name for path in run.path.glob(".ics.*")] == [".ics.lock"]


def test_weights_and_a_run_of_one_name_are_not_mixed(tmp_path):
    run, table = trained(tmp_path / "model"), tmp_path / "table.parquet"
    torch.save(bns.load_point(run).model.state_dict(), tmp_path / "model.pt")
    measure("ics", [open_weights(tmp_path / "model.pt", run.config)], table)
    with pytest.raises(InputError, match="of other weights; replace it with --force"):
        measure("ics", [run.source()], table, at=[0, 4])


@pytest.mark.parametrize("source", ["checkpoint", "unfinished run"])
def test_points_beyond_the_last_checkpoint_outlive_a_smaller_request(tmp_path, source):
    if source == "checkpoint":
        found = open_source(trained(tmp_path / "run").path / "checkpoints/000004.pt")
    else:
        with pytest.raises(Stop):
            trained(tmp_path / "run", progress=stopping_at(2))
        found = open_source(tmp_path / "run")
    with pytest.raises(Stop):
        measure("ics", [found], at=[5, 6, 7], progress=stopping_at(2))
    measure("ics", [found])
    assert journal_path(found.table_path("ics")).exists()


def test_steps_before_the_first_checkpoint_are_refused_unless_the_table_has_them(tmp_path):
    kept = {"output": tmp_path / "run", "keep": 1, "every": 1, **SETTINGS["dln"]}
    with pytest.raises(Stop):
        bns.train("dln", "batch", measure=["ics"], progress=stopping_at(7), **kept)
    reported: list[int] = []
    with pytest.raises(InputError, match=r"step 0 is out of reach, because the checkpoints before 4 were removed"):
        bns.train("dln", "batch", measure=["ics", "landscape"], progress=lambda step, _: reported.append(step), **kept)
    assert reported == []  # before training
    run = bns.train("dln", "batch", measure=["ics"], **kept)
    measure("ics", [run.source()], at=[0, 3])
    with pytest.raises(InputError, match="step 0 is out of reach"):
        measure("landscape", [run.source()], at=[0, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"steps": {"run": [0, 4, 7, -5, True, 10**30, "x"]}},
        {"steps": 5},
        {"steps": None},
        {"options": {"run": 5}},
        {"stretches": {"run": [{"first": "x"}]}},
    ],
)
def test_no_strange_provenance_of_a_table_loses_a_point(tmp_path, change):
    run = trained(tmp_path / "run")
    (table,) = measure("ics", [run.source()])
    rows = bns.read_table(table)
    kept = {key: value for key, value in rows.attrs["bnsmooth"].items() if key not in ("kind", "format")}
    tables.write_table(table, "ics", [rows], kept | change)
    if "options" in change:
        with pytest.raises(InputError, match="of other options"):
            measure("ics", [run.source()], at=[3])
    else:
        measure("ics", [run.source()], at=[3])
        assert steps_of(table) == [0, 3, 4, 8, 9]


class Counted:
    """A part of a table's provenance that counts its copies."""

    copies = 0

    def __deepcopy__(self, memo: object) -> Counted:
        Counted.copies += 1
        return self


def test_growing_a_table_copies_its_provenance_a_few_times_however_many_its_points(tmp_path, monkeypatch):
    """pandas copies the attributes of a frame, with the list of all steps, at each access to a column."""
    run, read = trained(tmp_path / "run"), tables.read_table

    def counted(*arguments: object) -> pd.DataFrame:
        frame = read(*arguments)
        frame.attrs["counted"] = Counted()
        return frame

    monkeypatch.setattr(tables, "read_table", counted)
    Counted.copies = 0
    measure("ics", [run.source()], at=[0, 1, 2, 4, 5, 6, 7, 8])
    measure("ics", [run.source()], at=[3])
    assert steps_of(run.path / "ics.parquet") == [*range(9)]
    assert Counted.copies < 8  # the points of the table


def test_a_run_that_is_trained_again_while_it_is_measured_gets_no_table_of_before(tmp_path):
    run = trained(tmp_path / "run")

    def again(_: str, step: int, *counts: int) -> None:
        if step == 9:
            trained(tmp_path / "run", force=True, lr=2e-4)

    with pytest.raises(InputError, match=r"\.ics\.points: was removed while its table was measured, as by `train"):
        measure("ics", [run.source()], progress=again)
    assert not (run.path / "ics.parquet").exists()
