"""One pass, and measuring that resumes: every file is what measuring afterwards, without an interruption, writes."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from own_code import Scaled, residual, transformer

import bnsmooth_cli as bns
from bnsmooth_cli import kinds, norms
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import recording
from bnsmooth_cli.measures.measuring import execute, measure, pending, plan
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import Journal, journal_path
from bnsmooth_cli.storage.runs import open_run, open_source, open_weights
from bnsmooth_cli.storage.tables import schema_of, to_arrow
from bnsmooth_cli.training.trajectory import Trajectory

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
@pytest.mark.parametrize(
    ("problem", "norm"),
    [(problem, norm) for problem in SETTINGS for norm in norms.examples() if (problem, norm) != ("dln", "instance")],
)
def test_one_pass_of_every_norm(tmp_path, problem, norm):
    both(tmp_path, problem, norm, QUICK if problem == "vgg" and norm != "l1" else STUDIED)


class Stop(Exception):
    """Ends the work, as an error or a signal does."""


def stopping_at(number: int) -> Callable[..., None]:
    """A callback for progress that ends the work at its call with this number, counted from 0."""
    calls = iter(range(10_000))

    def report(*_: object) -> None:
        if next(calls) == number:
            raise Stop

    return report


@pytest.mark.parametrize("problem", ["dln", "vgg"])
def test_a_pass_that_is_interrupted_anywhere_ends_in_the_same_bytes(tmp_path, problem):
    chosen = {"measure": QUICK[:3], "every": 2, **SETTINGS[problem]}
    bns.train(problem, "batch", output=tmp_path / "whole/run", **chosen)
    for number in (1, 2):
        folder = tmp_path / str(number)
        with pytest.raises(Stop):
            bns.train(problem, "batch", output=folder / "run", progress=stopping_at(number), **chosen)
        bns.train(problem, "batch", output=folder / "run", **chosen)
        assert files(folder) == files(tmp_path / "whole"), number


@pytest.mark.parametrize("kind", STUDIED)
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


@pytest.mark.parametrize("save_every", [4, 20])
def test_a_run_that_diverges_is_measured_up_to_there(tmp_path, save_every):
    settings = {**SETTINGS["dln"], "lr": 10.0, "steps": 60, "save_every": save_every}
    for name in ("pass", "afterwards"):
        measured = {"measure": ["landscape", "ics"], "every": 1} if name == "pass" else {}
        run = bns.train("dln", "none", output=tmp_path / name / "run", **measured, **settings)
        for kind in ("landscape", "ics") if name == "afterwards" else ():
            measure(kind, [run.source()], every=1)
    assert files(tmp_path / "pass") == files(tmp_path / "afterwards")
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


def journal_of(folder: Path) -> tuple[Path, list[bytes]]:
    """A journal of four points, and the rows of each as Arrow writes them."""
    run = bns.train("dln", "none", output=folder / "run", **{**SETTINGS["dln"], "depth": 2})
    path, schema = folder / "journal", schema_of("ics")
    rows = bns.ics(bns.load_point(run))
    journal = Journal(path, {"kind": "ics"}, schema)
    for step in range(4):
        journal.add(("run", step), to_arrow("ics", rows.assign(step=step)), {"torch": "2"})
    journal.close()
    return path, [rows.assign(step=step).to_csv().encode() for step in range(4)]


def points_of(path: Path) -> list[bytes] | str:
    """The points of a journal, or why it cannot be read."""
    try:
        journal = Journal(path, {"kind": "ics"}, schema_of("ics"))
        return [journal.rows(key).to_pandas().to_csv().encode() for key in journal]
    except InputError as error:
        return str(error)


def test_a_journal_that_is_cut_anywhere_has_the_points_before(tmp_path):
    path, rows = journal_of(tmp_path)
    content, counts = path.read_bytes(), []
    assert points_of(path) == rows
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        found = points_of(path)
        if isinstance(found, str):  # the request itself is cut
            assert found.startswith(f"{path}: not readable as a journal; delete it")
        else:
            assert found == rows[: len(found)]
            counts.append(len(found))
    assert (counts, max(counts)) == (sorted(counts), 3)


def test_no_flipped_bit_of_a_journal_changes_a_point(tmp_path):
    path, rows = journal_of(tmp_path)
    content, chance = path.read_bytes(), random.Random(0)
    for _ in range(400):
        broken = bytearray(content)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        found = points_of(path)
        assert f"{path}: " in found if isinstance(found, str) else found == rows[: len(found)] != rows


@pytest.mark.parametrize("content", [b"", b"PAR1", b"bnsmooth journal 1\n", b"bnsmooth journal 2\n" * 9, b"\0" * 100])
def test_a_file_in_the_place_of_a_journal_is_named(cli, tmp_path, content):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    path = journal_path(run.path / "ics.parquet")
    path.write_bytes(content)
    code, _, err = cli("ics run")
    assert (code, err.count("\n"), "run/.ics.points: not readable as a journal; delete it" in err) == (2, 1, True), err
    assert path.read_bytes() == content
    assert cli("ics run --force")[0] == 0
    assert not path.exists()


def test_a_journal_that_a_kill_left_behind_is_removed(tmp_path):
    run = bns.train("dln", "batch", output=tmp_path / "run", **SETTINGS["dln"])
    with pytest.raises(Stop):
        measure("ics", [run.source()], every=3, progress=stopping_at(2))
    left = journal_path(run.path / "ics.parquet")
    content = left.read_bytes()
    measure("ics", [run.source()], every=3)
    left.write_bytes(content)  # as if the process had died before it removed the file
    measure("ics", [run.source()], every=3)
    assert not left.exists()


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


@pytest.mark.parametrize(("problem", "norm"), [(residual, Scaled), (transformer, "none")])
def test_one_pass_of_the_users_own_code(tmp_path, problem, norm):
    settings = {"steps": 3, "save_every": 3, "eval_every": 3, "batch_size": 6, "lr": 0.05}
    bns.train(problem, norm, measure=QUICK, every=1, output=tmp_path / "pass/run", **settings)
    run = bns.train(problem, norm, output=tmp_path / "afterwards/run", **settings)
    for kind in QUICK:
        measure(kind, [run.source()], every=1)
    assert files(tmp_path / "pass") == files(tmp_path / "afterwards")


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


def half(number: int, kind: str, run: bns.Run, table: Path | None = None, **asked: object) -> Path:
    """The journal of a measurement that was interrupted after some points."""
    with pytest.raises(Stop):
        measure(kind, [run.source()], table, progress=stopping_at(number), **asked)
    return journal_path(table or run.path / f"{kind}.parquet")


def trained(folder: Path, **settings: object) -> bns.Run:
    return bns.train("dln", "batch", output=folder, **{**SETTINGS["dln"], **settings})


def steps_of(table: Path) -> list[int]:
    return bns.read_table(table)["step"].unique().tolist()


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


def test_tables_whose_long_names_begin_alike_have_journals_of_their_own(tmp_path):
    run, name = trained(tmp_path / "run"), "long" * 30
    half(2, "ics", run, tmp_path / f"{name}1.parquet")
    measure("landscape", [run.source()], tmp_path / f"{name}2.parquet")


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


def test_numpys_steps_and_a_single_kind_are_taken(tmp_path):
    run = trained(tmp_path / "run", measure="ics", at=np.array([0, 3]))
    assert steps_of(run.path / "ics.parquet") == [0, 3]


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


@pytest.mark.parametrize("by", [5, [1], "cpu", {"first": "x"}, {"torch": {"a": 1}}])
def test_a_point_of_an_impossible_machine_is_named(tmp_path, by):
    path, _ = journal_of(tmp_path)
    journal = Journal(path, {}, schema_of("ics"))
    journal.add(("run", 7), journal.rows(("run", 0)), by)
    journal.close()
    assert str(points_of(path)).endswith("not readable as a journal; delete it, and its points are measured again")


def test_a_folder_in_the_place_of_a_journal_is_named(cli, tmp_path):
    run = trained(tmp_path / "run")
    journal_path(run.path / "ics.parquet").mkdir()
    for force in ("", "--force"):
        code, _, err = cli(f"ics run {force}")
        assert (code, err) == (
            2,
            "bnsmooth: run/.ics.points: is not a file; delete it, or write another table with -o\n",
        )


def test_the_time_to_grow_a_table_is_linear_in_its_points(tmp_path):
    run, steps = trained(tmp_path / "run"), [step for step in range(1500) if step != 3]
    (table,) = measure("ics", [run.source()], at=[0])
    point = bns.read_table(table)
    kept = {key: value for key, value in point.attrs["bnsmooth"].items() if key not in ("kind", "format")}
    point.attrs.clear()
    rows = [tables.to_arrow("ics", point.assign(step=step)) for step in steps]
    tables.write_table(table, "ics", rows, kept | {"steps": {"run": steps}})
    begun = time.process_time()
    measure("ics", [run.source()], at=[3])
    assert time.process_time() - begun < 3  # a quarter of a second; 5 where each point copies the list of all steps
    assert steps_of(table) == [*range(1500)]


def test_a_run_that_is_trained_again_while_it_is_measured_gets_no_table_of_before(tmp_path):
    run = trained(tmp_path / "run")

    def again(_: str, step: int, *counts: int) -> None:
        if step == 9:
            trained(tmp_path / "run", force=True, lr=2e-4)

    with pytest.raises(InputError, match=r"\.ics\.points: was removed while its table was measured, as by `train"):
        measure("ics", [run.source()], progress=again)
    assert not (run.path / "ics.parquet").exists()


def test_a_disk_that_is_found_full_only_when_points_are_made_durable_is_named(tmp_path, monkeypatch):
    path, _ = journal_of(tmp_path)
    journal = Journal(path, {}, schema_of("ics"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="journal: not written"):
        journal.sync()
    journal.close()
