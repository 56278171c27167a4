"""`show` and CSV give what the table has, and hostile tables do no harm."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_tables
import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMAS
from rich.cells import cell_len
from written_tables import ROWS, RUNS, write

from bnsmooth_cli.storage import tables


def widest(out):
    return max(cell_len(line) for line in out.splitlines())


def words(out, line):
    """The words of the first line that begins with `line`."""
    return next(found for text in out.splitlines() if (found := text.split())[:1] == [line])


def test_rows_of_every_kind_are_made_here():
    assert set(ROWS) == set(SCHEMAS)


@pytest.mark.parametrize("norms", [("none",), ("none", "batch")], ids=["a run", "runs"])
@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.fast(15)
def test_show_says_what_a_table_is_and_fits_a_terminal(cli, kind, norms, narrow_terminal):
    table = write(Path("t.parquet"), kind, norms=norms)
    code, out, err = cli("show t.parquet")
    assert (code, err) == (0, "")
    assert out.startswith("t.parquet\n")
    assert widest(out) <= 80
    assert words(out, "kind") == ["kind", kind]
    assert words(out, "rows")[1].rstrip(",") == f"{len(table):,}"
    assert "bnsmooth 7.8.9" in out
    assert "batch_size 128" in " ".join(out.split())
    assert ("settings that differ between the runs" in out) == (len(norms) == 2)
    assert all(f"vgg-{norm}-lr0.1-seed0" in out for norm in norms)
    told = set(out.replace(",", " ").split())
    run = {"settings"} if kind.startswith("compare-") else {"run", "problem", "norm", "lr", "seed", "settings"}
    assert set(SCHEMAS[kind]) - run <= told


@pytest.mark.parametrize("kind", ["train", "smoothness", "ics", "activations", "theory"])
def test_show_sums_each_column_up(cli, kind):
    table = write(Path("t.parquet"), kind)
    _, out, _ = cli("show t.parquet")
    block = out.split("columns of numbers\n")[1].split("\n\n")[0].splitlines()
    shown = {row.split()[0]: row.split()[1:] for row in block[1:]}
    assert shown
    for name, cells in shown.items():
        values = table[name].dropna()
        assert int(cells[0]) == len(values)
        middle = values.quantile(0.5, "lower") if values.dtype == "int64" else values.median()
        for cell, number in zip(cells[1:], (values.min(), middle, values.max()), strict=True):
            assert float(cell) == pytest.approx(number, rel=5e-3)
    if kind == "theory":
        yes = int(table["holds"].sum())
        assert f"no {len(table) - yes:,}" in out
        assert f"yes {yes:,}" in out
    if kind == "activations":
        assert "lists of 100 numbers" in out


def test_show_has_the_first_and_the_last_rows(cli):
    write(Path("t.parquet"), "train", norms=("none",))
    _, out, _ = cli("show t.parquet")
    rows = out.split("the first and the last 4 rows\n")[1].splitlines()
    steps = [row.split()[0] for row in rows if row.split()[0].isdigit()]
    assert steps == ["0", "1", "2", "3", "196", "197", "198", "199"]
    assert "grad_norm 30" in out  # constant over all rows, so stated once
    write(Path("t.parquet"), "train", fake_tables.make(fake_tables.vgg_training, norms=("none",)).head(8))
    assert "all rows\n" in cli("show t.parquet")[1]


def test_show_says_how_a_training_run_ended(cli, small_run):
    run = small_run("dln", "l1")
    _, out, _ = cli(f"show {run.train_path}")
    assert re.search(r"outcome +finished at step 6\n", out)
    assert "torch" in " ".join(words(out, "made"))
    assert "accuracy, test_loss, test_accuracy" in out  # no value
    rows = tables.read_table(run.train_path)
    said = {key: value for key, value in rows.attrs["bnsmooth"].items() if key not in ("kind", "format", "last_step")}
    tables.write_table(Path("half.parquet"), "train", [rows.head(3)], said)
    assert "unfinished: 3 of 6 steps are recorded" in cli("show half.parquet")[1]
    tables.write_table(Path("none.parquet"), "train", [rows.head(0)], said)
    assert "rows      0\n" in cli("show none.parquet")[1]
    tables.write_table(Path("end.parquet"), "train", [rows.assign(loss=np.nan)], {**said, "diverged_at": 6})
    _, out, _ = cli("show end.parquet")
    assert "diverged at step 6" in out
    assert words(out, "loss") == ["loss", "7", "-", "-", "-", "7"]  # NaN in `loss` is an overflow, not null


def test_show_tells_settings_once_and_what_differs_by_run(cli, small_run):
    runs = [small_run("dln", norm) for norm in ("none", "batch")]
    code, *_ = cli(f"ics {runs[0].path} {runs[1].path} --at 0,3,6 -o both.parquet")
    assert code == 0
    _, out, _ = cli("show both.parquet")
    assert out.count("depth 5") == out.count("samples 30") == 1
    assert "measured  3 steps: 0, 3, 6\n" in out
    differ = out.split("settings that differ between the runs\n")[1].split("\n\n")[0].split()
    assert differ == ["run", "norm", runs[1].name, "batch", runs[0].name, "none"]


def test_show_tells_options_and_what_is_new(cli):
    runs = {name: {"alphas": [0.5, 1.0, 4.29428571]} for name in RUNS}
    write(Path("t.parquet"), "smoothness", options=runs, code={"digest": "abc"}, next=["bnsmooth compare " + "x" * 90])
    _, out, _ = cli("show t.parquet")
    assert "options   alphas 0.5, 1, 4.294\n" in out
    assert '{"digest": "abc"}' in out
    assert "bnsmooth compare" not in out  # a stranger's file must not suggest commands


def test_show_tells_who_computed_which_steps(cli):
    one = {"version": "9", "torch": "8", "device": "cpu Abacus", "threads": 1}
    stretches = [{"first": 0, "last": 3, **one}, {"first": 4, "last": 7, **one, "threads": 2}]
    parts = ["bnsmooth 9, torch 8, cpu Abacus, 1 thread", "bnsmooth 9, torch 8, cpu Abacus, 2 threads"]
    runs = {name: {"norm": name} for name in RUNS}
    for several in (
        {"stretches": stretches, "runs": {"a": {}}},
        {"stretches": dict.fromkeys(RUNS, stretches), "runs": runs},
    ):
        write(Path("t.parquet"), "train", **several)
        text = " ".join(cli("show t.parquet")[1].split())
        assert f"made by steps 0-3: {parts[0]}; steps 4-7: {parts[1]}" in text
    by_run = dict(zip(RUNS, ([stretches[0]], [stretches[1]]), strict=False))
    write(Path("t.parquet"), "train", stretches={**dict.fromkeys(RUNS, stretches), **by_run}, runs=runs)
    assert "made by" in cli("show t.parquet")[1].split("settings that differ")[1]


def test_runs_without_provenance_are_shown_from_the_rows(cli):
    tables.save_table(tables.read_table(saved()), "t.parquet")
    _, out, _ = cli("show t.parquet")
    assert "run vgg-none-lr0.1-seed0, problem vgg, norm none, lr 0.1, seed 0" in " ".join(out.split())
    assert "outcome" not in out


def saved():
    write(Path("s.parquet"), "train", norms=("none",))
    return Path("s.parquet")


HOSTILE = ["\x1b[31mred", "[bold]x[/]", "a\r\nb", "\u202e", "日本" * 30, "x" * 500, "", " ", "../x", '"', "a,b", "\x07"]


def test_hostile_texts_are_printed_as_escapes(cli, narrow_terminal):
    rows = fake_tables.make(fake_tables.theory, norms=("none",)).head(12)
    rows = rows.assign(run=HOSTILE, layer_name=HOSTILE, statement=HOSTILE[::-1])
    for runs in (
        {text: {"norm": "\x1b[1m"} for text in HOSTILE},
        {text: dict.fromkeys(HOSTILE[i:], text) for i, text in enumerate(HOSTILE)},
        {"\x1b": 3},
        {"a": {"a_b": 1, "_": []}, "b": {"a b": [[]], "": {}}},
        [HOSTILE],
        "\x1b",
    ):
        account = {"steps": runs, "options": runs, "trained_forward_from": runs, "\x1b]": runs, "next": HOSTILE}
        account["stretches"] = runs
        write(Path("t.parquet"), "theory", rows, **{**account, "runs": runs, "version": runs, "torch": None})
        code, out, err = cli("show t.parquet")
        assert (code, err) == (0, "")
        assert not set("\x1b\r\x07\u202e") & set(out)
        assert widest(out) <= 80
    train = {"x" * 500: 1, "last_step": ["\x1b"], "diverged_at": {}, "runs": {"a": {"steps": [{}]}}}
    train["stretches"] = [{"first": 0, "last": 10**9, "device": text, "\x1b": text} for text in HOSTILE]
    write(Path("t.parquet"), "train", **train)
    _, out, _ = cli("show t.parquet")
    assert ("\x1b" in out, widest(out) <= 80) == (False, True)


def parsed(text, kind):
    """The rows of a CSV; empty cells are None."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    types = SCHEMAS[kind]
    assert header == list(types)
    of = {
        "string": str,
        "int64": int,
        "double": float,
        "bool": {"true": True, "false": False}.get,
        "list": lambda cell: [float(number) for number in cell.split(" ")],
    }
    return [
        [None if cell == "" else of[types[name]](cell) for name, cell in zip(header, row, strict=True)] for row in rows
    ]


def same(a, b):
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.fast(6)
def test_csv_has_every_digit_of_every_row(cli, kind, monkeypatch):
    monkeypatch.setattr(tables, "GROUP", 7)
    write(Path("t.parquet"), kind)
    assert cli("show t.parquet --csv t.csv") == (0, "t.csv\n", "")
    from pyarrow import parquet

    rows = [list(row.values()) for row in parquet.read_table("t.parquet").to_pylist()]
    text = Path("t.csv").read_bytes().decode("utf-8")
    for ours, theirs in itertools.zip_longest(parsed(text, kind), rows):
        assert all(same(a, None if b == "" else b) for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_csv_tells_infinities_and_overflows_from_nulls_and_quotes_texts(cli):
    rows = fake_tables.make(fake_tables.ics, norms=("none",)).head(len(HOSTILE))
    numbers = [
        math.inf,
        -math.inf,
        math.nan,
        0.1,
        5e-324,
        1.7976931348623157e308,
        -0.0,
        1 / 3,
        1e22,
        123456789.123,
        2.0,
        3,
    ]
    written = write(Path("t.parquet"), "ics", rows.assign(ics=numbers, cosine=numbers, layer_name=HOSTILE))
    assert cli("show t.parquet --csv t.csv")[0] == 0
    found = parsed(Path("t.csv").read_bytes().decode(), "ics")
    columns = dict(zip(written, zip(*found, strict=True), strict=True))
    assert all(map(same, columns["ics"], numbers))
    assert math.copysign(1, columns["ics"][6]) == -1
    assert columns["cosine"] == tuple(None if number != number else number for number in numbers)
    assert columns["layer_name"] == tuple(text or None for text in HOSTILE)


def test_csv_goes_to_stdout_alone(cli):
    write(Path("t.parquet"), "activations")
    code, out, err = cli("show t.parquet --csv -")
    assert (code, err) == (0, "")
    assert cli("show t.parquet --csv ./-")[0] == 0
    assert out.encode() == Path("-").read_bytes()
    command = f"{sys.executable} -m bnsmooth_cli show t.parquet --csv - | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (out.splitlines()[0] + "\n", "")


def test_csv_on_a_terminal_escapes_control_characters(cli, monkeypatch):
    rows = fake_tables.make(fake_tables.ics, norms=("none",)).head(1)
    write(Path("t.parquet"), "ics", rows.assign(layer_name="\x1b[31m"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, _ = cli("show t.parquet --csv -")
    assert (code, "\x1b" in out, r"\x1b[31m" in out) == (0, False, True)


def test_csv_replaces_a_file_only_by_force_and_never_the_table(cli):
    write(Path("t.parquet"), "train")
    Path("t.csv").write_text("precious")
    code, out, err = cli("show t.parquet --csv t.csv")
    assert (code, out) == (2, "")
    assert err == "bnsmooth: t.csv: already exists; replace it with --force, or give --csv another name\n"
    assert Path("t.csv").read_text() == "precious"
    assert cli("show t.parquet --csv t.csv --force")[0] == 0
    assert Path("t.csv").read_text().startswith('"run","problem",')
    before = Path("t.parquet").read_bytes()
    code, _, err = cli("show t.parquet --csv ./t.parquet --force")
    assert (code, "is the table itself" in err) == (2, True)
    assert Path("t.parquet").read_bytes() == before


BAD = [
    ("show absent.parquet", "absent.parquet: no such table"),
    ("show folder", "folder: is a folder; name a table in it: a.parquet"),
    ("show text", "text: not a readable Parquet file"),
    ("show foreign.parquet", "foreign.parquet: a Parquet file, but not a table of bnsmooth"),
    ("show cut.parquet", "cut.parquet: not a readable Parquet file"),
    ("show flipped.parquet", "flipped.parquet: not a readable Parquet file"),
    ("show cut.parquet --csv -", "cut.parquet"),
    ("show cut.parquet --csv new/new.csv", "cut.parquet"),
    ("show t.parquet --csv folder", "folder: is a folder"),
    ("show t.parquet --csv text/t.csv", "text"),
    ("show t.parquet --csv /dev/null --force", "/dev/null"),
    ("show", "TABLE"),
    ("show t.parquet t.parquet", "t.parquet"),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=[line for line, _ in BAD])
def test_what_cannot_be_shown_is_one_line_and_exit_2(cli, line, says):
    write(Path("t.parquet"), "train")
    whole = Path("t.parquet").read_bytes()
    Path("folder").mkdir()
    shutil.copy("t.parquet", "folder/a.parquet")
    Path("text").write_text("precious")
    Path("cut.parquet").write_bytes(whole[: len(whole) // 2])
    Path("flipped.parquet").write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    pd.DataFrame({"a": [1]}).to_parquet("foreign.parquet")
    before = sorted(Path().rglob("*"))
    code, out, err = cli(line)
    assert (code, out) == (2, "")
    assert err.startswith("bnsmooth: ")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_help_shows_examples(cli):
    code, out, _ = cli("show --help")
    assert code == 0
    assert "bnsmooth show study/compare.parquet --csv compare.csv" in out


def test_help_needs_no_tensorboard_and_show_no_torch(tmp_path):
    write(tmp_path / "t.parquet", "train")
    for words, unused in (("--help", "tensorboard pandas torch"), ("show t.parquet", "tensorboard torch")):
        code = (
            "import sys\nfrom bnsmooth_cli.cli import main\n"
            f"try: main()\nexcept SystemExit: pass\nassert not {set(unused.split())} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
