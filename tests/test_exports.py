"""`show`, CSV and TensorBoard scalars give what the table has, and hostile tables do no harm."""

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

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import exports, tables

RUNS = {f"vgg-{norm}-lr0.1-seed0": resolve("vgg", norm=norm, data_digest=None).as_dict() for norm in ("none", "batch")}
SAID = {"version": "7.8.9", "runs": RUNS}


def surface(rough, noise):
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3)))
    frame = pd.DataFrame({"step": 20, "x": x, "y": y, "loss": 2 + rough * (x**2 + y**2)})
    frame.loc[4, "loss"] = np.nan
    return frame.assign(path_step=np.nan, x_share=0.6, y_share=0.2)


def by_layer(rough, noise):
    step, layer = (grid.ravel() for grid in np.meshgrid([0, 10], [1, 2], indexing="ij"))
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"conv{i}" for i in layer]})
    return frame.assign(grad_norm=1.5, beta=rough * noise.random(4), curvature=-1.0, sharpness=np.nan)


def summary(rough, noise):
    return pd.DataFrame({"figure": ["beta", "final_loss"], "seeds": 5, "diverged": 0, "median": rough, "low": np.nan})


def claims(rough, noise):
    said = {
        "title": "BatchNorm makes the loss smoother along the gradient, and much more besides",
        "verdict": "reproduced",
    }
    said |= {"part": "beta, batch / none", "rule": "< 1", "part_verdict": "inconclusive", "command": ""}
    return pd.DataFrame([{"claim": number, "seeds": 5, "median": 0.1, **said} for number in range(1, 12)])


ROWS = {
    **fake_tables.ROWS, "surface": surface, "smoothness-by-layer": by_layer, "compare-summary": summary,
    "compare-claims": claims,
}  # fmt: skip


def write(path, kind, rows=None, norms=("none", "batch"), **said):
    """Write a table as the command of its kind does; return its rows as they are read."""
    frame = fake_tables.make(ROWS[kind], norms=norms) if rows is None else rows
    columns = {name: frame.get(name, np.nan) for name in SCHEMAS[kind]}
    runs = {name: config for name, config in RUNS.items() if config["norm"] in norms}
    tables.write_table(path, kind, [pd.DataFrame(columns, frame.index)], {**SAID, "runs": runs, **said})
    return tables.read_table(path, kind)


def widest(out):
    return max(cell_len(line) for line in out.splitlines())


def words(out, line):
    """The words of the first line that begins with `line`."""
    return next(found for text in out.splitlines() if (found := text.split())[:1] == [line])


def test_rows_of_every_kind_are_made_here():
    assert set(ROWS) == set(SCHEMAS)


@pytest.mark.parametrize("norms", [("none",), ("none", "batch")], ids=["a run", "runs"])
@pytest.mark.parametrize("kind", SCHEMAS)
def test_show_says_what_a_table_is_and_fits_a_terminal(cli, kind, norms):
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
    run = set() if kind.startswith("compare-") else {"run", "problem", "norm", "lr", "seed"}
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
    assert "reached   2 of 3 at their checkpoints; trained forward: 3 from 2\n" in out
    differ = out.split("settings that differ between the runs\n")[1].split("\n\n")[0].split()
    assert differ == ["run", "norm", runs[1].name, "batch", runs[0].name, "none"]


def test_show_tells_options_and_what_is_new(cli):
    runs = {name: {"alphas": [0.5, 1.0, 4.29428571]} for name in RUNS}
    write(Path("t.parquet"), "smoothness", options=runs, code={"digest": "abc"}, next=["bnsmooth compare " + "x" * 90])
    _, out, _ = cli("show t.parquet")
    assert "options   alphas 0.5, 1, 4.294\n" in out
    assert '{"digest": "abc"}' in out
    assert "bnsmooth compare" not in out  # a stranger's file must not suggest commands


def test_runs_without_provenance_are_shown_from_the_rows(cli):
    tables.save_table(tables.read_table(saved()), "t.parquet")
    _, out, _ = cli("show t.parquet")
    assert "run vgg-none-lr0.1-seed0, problem vgg, norm none, lr 0.1, seed 0" in " ".join(out.split())
    assert "outcome" not in out


def saved():
    write(Path("s.parquet"), "train", norms=("none",))
    return Path("s.parquet")


HOSTILE = ["\x1b[31mred", "[bold]x[/]", "a\r\nb", "\u202e", "日本" * 30, "x" * 500, "", " ", "../x", '"', "a,b", "\x07"]


def test_hostile_texts_are_printed_as_escapes(cli):
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
        write(Path("t.parquet"), "theory", rows, **{**account, "runs": runs, "version": runs, "torch": None})
        code, out, err = cli("show t.parquet")
        assert (code, err) == (0, "")
        assert not set("\x1b\r\x07\u202e") & set(out)
        assert widest(out) <= 80
    train = {"x" * 500: 1, "last_step": ["\x1b"], "diverged_at": {}, "runs": {"a": {"steps": [{}]}}}
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


def scalars(folder):
    """tag -> [(step, value)] of a folder, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(table, columns, prefix, tag=lambda row: "", measured=()):
    """The same computed row by row; in the columns `measured`, NaN is not null."""
    found: dict[str, list[tuple[int, float]]] = {}
    for _, row in table.iterrows():
        for name in columns:
            if name in measured or not pd.isna(row[name]):
                found.setdefault(f"{prefix}{tag(row)}/{name}", []).append((row["step"], float(np.float32(row[name]))))
    return found


def test_tensorboard_reads_the_table(tmp_path):
    table = write(tmp_path / "train.parquet", "train", norms=("none",))
    assert exports.tensorboard(tmp_path / "train.parquet") == tmp_path / "train.tfevents"
    columns = ["loss", "accuracy", "grad_norm", "test_loss", "test_accuracy"]
    assert scalars(tmp_path) == expected(table, columns, "train")
    assert len(scalars(tmp_path)["train/test_loss"]) == 10


def test_tensorboard_reads_all_tables_of_a_folder(tmp_path):
    every = {}
    for kind in ("train", "smoothness", "smoothness-by-layer", "ics"):
        table = write(tmp_path / f"{kind}.parquet", kind, norms=("none",))
        exports.tensorboard(tmp_path / f"{kind}.parquet")
        figures = [name for name, type_ in SCHEMAS[kind].items() if type_ == "double" and name != "lr"]
        layered = "layer_name" in table
        every |= expected(table, figures, kind, lambda row, layered=layered: f"/{row['layer_name']}" if layered else "")
    assert "ics/linear3/cosine" in every
    assert "smoothness-by-layer/conv2/beta" in every
    assert scalars(tmp_path) == every


def test_tensorboard_takes_medians_over_units_and_extremes_of_the_line(tmp_path):
    table = write(tmp_path / "activations.parquet", "activations", norms=("none",))
    exports.tensorboard(tmp_path / "activations.parquet")
    found = scalars(tmp_path)
    middle = table.query("layer_name == 'conv2' and step == 20")["wasserstein"].median()
    assert dict(found["activations/conv2/wasserstein"])[20] == np.float32(middle)
    assert 0 not in dict(found["activations/conv2/wasserstein"])  # the first step has no step before it
    (tmp_path / "activations.tfevents").unlink()

    table = write(tmp_path / "theory.parquet", "theory", norms=("none",))
    exports.tensorboard(tmp_path / "theory.parquet")
    found = scalars(tmp_path)
    rows = table.query("layer_name == 'conv1' and statement == '4.1 at y' and step == 50")
    assert dict(found["theory/conv1/4.1-at-y/identity/lhs"])[50] == np.float32(rows["lhs"].median())
    assert dict(found["theory/conv1/4.1-at-y/identity/holds"])[50] == np.float32(rows["holds"].mean())
    (tmp_path / "theory.tfevents").unlink()

    rows = fake_tables.make(fake_tables.landscape, norms=("none",))
    rows.loc[(rows["step"] == 10) & (rows["alpha"] == 4), ["loss", "grad_distance"]] = np.nan
    rows.loc[rows["alpha"] == 0, "loss"] = 99.0  # alpha = 0 is not on the line
    table = write(tmp_path / "landscape.parquet", "landscape", rows, norms=("none",))
    exports.tensorboard(tmp_path / "landscape.parquet")
    found = scalars(tmp_path)
    assert set(found) == {"landscape/loss_min", "landscape/loss_max", "landscape/grad_distance_max"}
    line = table[(table["step"] == 20) & (table["alpha"] > 0)]
    assert dict(found["landscape/loss_min"])[20] == np.float32(line["loss"].min())
    assert dict(found["landscape/loss_max"])[20] == np.float32(line["loss"].max())
    assert dict(found["landscape/grad_distance_max"])[10] == math.inf


def test_tensorboard_has_what_diverged(tmp_path):
    rows = fake_tables.make(fake_tables.vgg_training, norms=("none",)).head(3)
    write(tmp_path / "train.parquet", "train", rows.assign(loss=[1.0, 1e300, math.nan]), norms=("none",))
    exports.tensorboard(tmp_path / "train.parquet")
    (_, first), (_, second), (_, third) = scalars(tmp_path)["train/loss"]
    assert (first, second, math.isnan(third)) == (1.0, math.inf, True)
    write(tmp_path / "train.parquet", "train", rows.head(0), norms=("none",))
    assert scalars(exports.tensorboard(tmp_path / "train.parquet").parent) == {}


def test_runs_of_one_table_are_folders(tmp_path):
    table = write(tmp_path / "both.parquet", "smoothness")
    made = exports.tensorboard(str(tmp_path / "both.parquet"))
    assert made == tmp_path / "both.tensorboard"
    assert sorted(path.name for path in made.iterdir()) == sorted(RUNS)
    for run in RUNS:
        assert (made / run / "smoothness.tfevents").is_file()
        rows = table[table["run"] == run]
        assert scalars(made / run)["smoothness/beta"] == expected(rows, ["beta"], "smoothness")["smoothness/beta"]


def test_scalars_of_runs_that_a_table_no_longer_has_are_removed_and_nothing_else(tmp_path):
    table, made = tmp_path / "t.parquet", tmp_path / "t.tensorboard"
    write(table, "smoothness")
    exports.tensorboard(table)
    first, second = (made / run / "smoothness.tfevents" for run in RUNS)
    for name in ("mine.tfevents", "notes", "smoothness.tfevents.bak"):
        (second.parent / name).write_text("mine")
    another = made / "another"  # the scalars of another table, and a link to them
    another.mkdir()
    write(another / "train.parquet", "train", norms=("none",))
    exports.tensorboard(another / "train.parquet")
    (made / "link").symlink_to("another")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    rows = fake_tables.make(fake_tables.smoothness, norms=("none", "batch"))
    write(table, "smoothness", rows.assign(run=rows["run"].where(rows["norm"] == "none", "new")))
    exports.tensorboard(table)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before - {second} | {
        made / "new/smoothness.tfevents"
    }
    write(table, "smoothness", norms=("none",))  # the scalars of a single run are next to the table
    assert exports.tensorboard(table) == tmp_path / "t.tfevents"
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == before - {first, second} | {tmp_path / "t.tfevents"}
    write(table, "ics")
    exports.tensorboard(table)
    assert not (tmp_path / "t.tfevents").exists()


@pytest.mark.parametrize("run", ["../../x", "/x", "..", ".", "", "a\\b", "a\0b"])
def test_a_run_name_that_leaves_the_folder_is_refused(tmp_path, run):
    rows = fake_tables.make(fake_tables.smoothness, norms=("none", "batch"))
    rows["run"] = rows["run"].where(rows["norm"] == "none", run)
    (tmp_path / "here").mkdir()
    write(tmp_path / "here/t.parquet", "smoothness", rows)
    with pytest.raises(InputError, match="name that no folder can have"):
        exports.tensorboard(tmp_path / "here/t.parquet")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "t.parquet"]


def test_equal_tables_make_equal_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "theory.parquet", "theory", norms=("none",))
        exports.tensorboard(tmp_path / name / "theory.parquet")
    first = (tmp_path / "a/theory.tfevents").read_bytes()
    assert first == (tmp_path / "b/theory.tfevents").read_bytes()
    exports.tensorboard(tmp_path / "a/theory.parquet")
    assert first == (tmp_path / "a/theory.tfevents").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["theory.parquet", "theory.tfevents"]


@pytest.mark.parametrize("kind", [kind.name for kind in kinds.KINDS if not kind.tensorboard])
def test_a_kind_that_is_not_measured_over_steps_is_refused(tmp_path, kind):
    write(tmp_path / "t.parquet", kind)
    with pytest.raises(InputError, match=rf"t\.parquet: TensorBoard .* a table of kind {kind} has none"):
        exports.tensorboard(tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_every_kind_measured_over_steps_has_scalars(tmp_path):
    over_steps = {kind.name for kind in kinds.KINDS if kind.tensorboard}
    for kind in over_steps:
        write(tmp_path / f"{kind}.parquet", kind, norms=("none",))
        exports.tensorboard(tmp_path / f"{kind}.parquet")
    assert {tag.split("/")[0] for tag in scalars(tmp_path)} == over_steps


def test_a_table_is_not_replaced_by_its_own_scalars(tmp_path):
    write(tmp_path / "t.tfevents", "train", norms=("none",))
    with pytest.raises(InputError, match=r"name it \.parquet"):
        exports.tensorboard(tmp_path / "t.tfevents")
    bns.read_table(tmp_path / "t.tfevents")


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", "train", norms=("none",))
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for call in (exports.check_tensorboard, lambda: exports.tensorboard(tmp_path / "train.parquet")):
        with pytest.raises(
            InputError, match=r"^--tensorboard: needs the extra: pip install 'bnsmooth\[tensorboard\]'$"
        ):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
