"""Journals: the points of an unfinished table, through cuts, damage and files in their place."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from interrupted import SETTINGS, Stop, half, stopping_at, trained

import bnsmooth_cli as bns
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage import journal as journals
from bnsmooth_cli.storage.journal import Journal, journal_path
from bnsmooth_cli.storage.tables import schema_of, to_arrow


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


@pytest.mark.slow
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


def test_a_kill_while_a_measurement_is_begun_anew_keeps_no_point_that_was_to_go(tmp_path, monkeypatch):
    path, _ = journal_of(tmp_path)
    table = tmp_path / "run/ics.parquet"
    table.touch()
    kept = journal_path(table)
    path.rename(kept)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(journals, "atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        journals.begin_anew(table, "ics")
    assert not kept.exists()


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


def test_tables_whose_long_names_begin_alike_have_journals_of_their_own(tmp_path):
    run, name = trained(tmp_path / "run"), "long" * 30
    half(2, "ics", run, tmp_path / f"{name}1.parquet")
    measure("landscape", [run.source()], tmp_path / f"{name}2.parquet")


def test_a_disk_that_is_found_full_only_when_points_are_made_durable_is_named(tmp_path, monkeypatch):
    path, _ = journal_of(tmp_path)
    journal = Journal(path, {}, schema_of("ics"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="journal: not written"):
        journal.sync()
    journal.close()
