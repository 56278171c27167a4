"""TensorBoard scalars give what a table has, and hostile tables do no harm."""

from __future__ import annotations

import math
import sys

import fake_tables
import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMAS
from written_tables import RUNS, write

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.storage import event_files


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
    assert event_files.tensorboard(tmp_path / "train.parquet") == tmp_path / "train.tfevents"
    columns = ["loss", "accuracy", "grad_norm", "test_loss", "test_accuracy"]
    assert scalars(tmp_path) == expected(table, columns, "train")
    assert len(scalars(tmp_path)["train/test_loss"]) == 10


def test_tensorboard_reads_all_tables_of_a_folder(tmp_path):
    every = {}
    for kind in ("train", "smoothness", "smoothness-by-layer", "ics"):
        table = write(tmp_path / f"{kind}.parquet", kind, norms=("none",))
        event_files.tensorboard(tmp_path / f"{kind}.parquet")
        figures = [name for name, type_ in SCHEMAS[kind].items() if type_ == "double" and name != "lr"]
        layered = "layer_name" in table
        every |= expected(table, figures, kind, lambda row, layered=layered: f"/{row['layer_name']}" if layered else "")
    assert "ics/linear3/cosine" in every
    assert "smoothness-by-layer/conv2/beta" in every
    assert scalars(tmp_path) == every


def test_tensorboard_takes_medians_over_units_and_extremes_of_the_line(tmp_path):
    table = write(tmp_path / "activations.parquet", "activations", norms=("none",))
    event_files.tensorboard(tmp_path / "activations.parquet")
    found = scalars(tmp_path)
    middle = table.query("layer_name == 'conv2' and step == 20")["wasserstein"].median()
    assert dict(found["activations/conv2/wasserstein"])[20] == np.float32(middle)
    assert 0 not in dict(found["activations/conv2/wasserstein"])  # the first step has no step before it
    (tmp_path / "activations.tfevents").unlink()

    table = write(tmp_path / "theory.parquet", "theory", norms=("none",))
    event_files.tensorboard(tmp_path / "theory.parquet")
    found = scalars(tmp_path)
    rows = table.query("layer_name == 'conv1' and statement == '4.1 at y' and step == 50")
    assert dict(found["theory/conv1/4.1-at-y/identity/lhs"])[50] == np.float32(rows["lhs"].median())
    assert dict(found["theory/conv1/4.1-at-y/identity/holds"])[50] == np.float32(rows["holds"].mean())
    (tmp_path / "theory.tfevents").unlink()

    rows = fake_tables.make(fake_tables.landscape, norms=("none",))
    rows.loc[(rows["step"] == 10) & (rows["alpha"] == 4), ["loss", "grad_distance"]] = np.nan
    rows.loc[rows["alpha"] == 0, "loss"] = 99.0  # alpha = 0 is not on the line
    table = write(tmp_path / "landscape.parquet", "landscape", rows, norms=("none",))
    event_files.tensorboard(tmp_path / "landscape.parquet")
    found = scalars(tmp_path)
    assert set(found) == {"landscape/loss_min", "landscape/loss_max", "landscape/grad_distance_max"}
    line = table[(table["step"] == 20) & (table["alpha"] > 0)]
    assert dict(found["landscape/loss_min"])[20] == np.float32(line["loss"].min())
    assert dict(found["landscape/loss_max"])[20] == np.float32(line["loss"].max())
    assert dict(found["landscape/grad_distance_max"])[10] == math.inf


def test_tensorboard_has_what_diverged(tmp_path):
    rows = fake_tables.make(fake_tables.vgg_training, norms=("none",)).head(3)
    write(tmp_path / "train.parquet", "train", rows.assign(loss=[1.0, 1e300, math.nan]), norms=("none",))
    event_files.tensorboard(tmp_path / "train.parquet")
    (_, first), (_, second), (_, third) = scalars(tmp_path)["train/loss"]
    assert (first, second, math.isnan(third)) == (1.0, math.inf, True)
    write(tmp_path / "train.parquet", "train", rows.head(0), norms=("none",))
    assert scalars(event_files.tensorboard(tmp_path / "train.parquet").parent) == {}


def test_runs_of_one_table_are_folders(tmp_path):
    table = write(tmp_path / "both.parquet", "smoothness")
    made = event_files.tensorboard(str(tmp_path / "both.parquet"))
    assert made == tmp_path / "both.tensorboard"
    assert sorted(path.name for path in made.iterdir()) == sorted(RUNS)
    for run in RUNS:
        assert (made / run / "smoothness.tfevents").is_file()
        rows = table[table["run"] == run]
        assert scalars(made / run)["smoothness/beta"] == expected(rows, ["beta"], "smoothness")["smoothness/beta"]


def test_scalars_of_runs_that_a_table_no_longer_has_are_removed_and_nothing_else(tmp_path):
    table, made = tmp_path / "t.parquet", tmp_path / "t.tensorboard"
    write(table, "smoothness")
    event_files.tensorboard(table)
    first, second = (made / run / "smoothness.tfevents" for run in RUNS)
    for name in ("mine.tfevents", "notes", "smoothness.tfevents.bak"):
        (second.parent / name).write_text("mine")
    another = made / "another"  # the scalars of another table, and a link to them
    another.mkdir()
    write(another / "train.parquet", "train", norms=("none",))
    event_files.tensorboard(another / "train.parquet")
    (made / "link").symlink_to("another")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    rows = fake_tables.make(fake_tables.smoothness, norms=("none", "batch"))
    write(table, "smoothness", rows.assign(run=rows["run"].where(rows["norm"] == "none", "new")))
    event_files.tensorboard(table)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before - {second} | {
        made / "new/smoothness.tfevents"
    }
    write(table, "smoothness", norms=("none",))  # the scalars of a single run are next to the table
    assert event_files.tensorboard(table) == tmp_path / "t.tfevents"
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == before - {first, second} | {tmp_path / "t.tfevents"}
    write(table, "ics")
    event_files.tensorboard(table)
    assert not (tmp_path / "t.tfevents").exists()


@pytest.mark.parametrize("run", ["../../x", "/x", "..", ".", "", "a\\b", "a\0b"])
def test_a_run_name_that_leaves_the_folder_is_refused(tmp_path, run):
    rows = fake_tables.make(fake_tables.smoothness, norms=("none", "batch"))
    rows["run"] = rows["run"].where(rows["norm"] == "none", run)
    (tmp_path / "here").mkdir()
    write(tmp_path / "here/t.parquet", "smoothness", rows)
    with pytest.raises(InputError, match="name that no folder can have"):
        event_files.tensorboard(tmp_path / "here/t.parquet")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "t.parquet"]


def test_equal_tables_make_equal_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "theory.parquet", "theory", norms=("none",))
        event_files.tensorboard(tmp_path / name / "theory.parquet")
    first = (tmp_path / "a/theory.tfevents").read_bytes()
    assert first == (tmp_path / "b/theory.tfevents").read_bytes()
    event_files.tensorboard(tmp_path / "a/theory.parquet")
    assert first == (tmp_path / "a/theory.tfevents").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["theory.parquet", "theory.tfevents"]


@pytest.mark.parametrize("kind", [kind.name for kind in kinds.KINDS if not kind.tensorboard])
def test_a_kind_that_is_not_measured_over_steps_is_refused(tmp_path, kind):
    write(tmp_path / "t.parquet", kind)
    with pytest.raises(InputError, match=rf"t\.parquet: TensorBoard .* a table of kind {kind} has none"):
        event_files.tensorboard(tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_every_kind_measured_over_steps_has_scalars(tmp_path):
    over_steps = {kind.name for kind in kinds.KINDS if kind.tensorboard}
    for kind in over_steps:
        write(tmp_path / f"{kind}.parquet", kind, norms=("none",))
        event_files.tensorboard(tmp_path / f"{kind}.parquet")
    assert {tag.split("/")[0] for tag in scalars(tmp_path)} == over_steps


def test_a_table_is_not_replaced_by_its_own_scalars(tmp_path):
    write(tmp_path / "t.tfevents", "train", norms=("none",))
    with pytest.raises(InputError, match=r"name it \.parquet"):
        event_files.tensorboard(tmp_path / "t.tfevents")
    bns.read_table(tmp_path / "t.tfevents")


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", "train", norms=("none",))
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for call in (event_files.check_tensorboard, lambda: event_files.tensorboard(tmp_path / "train.parquet")):
        with pytest.raises(
            InputError, match=r"^--tensorboard: needs the extra: pip install 'bnsmooth\[tensorboard\]'$"
        ):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
