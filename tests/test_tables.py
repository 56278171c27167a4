"""Tables and comparisons: a table reads back as written, and other files are refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import SCHEMAS

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.tables import METADATA_KEY, read_table, write_table

DESIGN = {
    "train": "run problem norm lr seed settings step loss penalty accuracy grad_norm step_lr test_loss test_accuracy",
    "landscape": "run problem norm lr seed settings step alpha step_size distance loss grad_norm grad_distance "
    "grad_cosine grad_distance_summed",
    "smoothness": "run problem norm lr seed settings step step_lr loss penalty weight_norm grad_norm loss_min loss_max "
    "predictiveness_min predictiveness_max lipschitz beta beta_alpha saturated curvature sharpness preconditioned "
    "threshold critical_alpha critical_lr batch_sharpness batch_sharpness_error",
    "ics": "run problem norm lr seed settings step layer layer_name grad_norm grad_norm_updated ics cosine",
}


@pytest.mark.parametrize("kind", DESIGN)
def test_columns_are_the_documented_ones_in_order(kind):
    assert list(SCHEMAS[kind]) == DESIGN[kind].split()


def test_what_is_written_is_read_with_its_provenance(small_run):
    run = small_run("dln", "l1")
    table = pq.read_table(run.train_path)
    provenance = json.loads(table.schema.metadata[METADATA_KEY])
    assert (provenance["kind"], provenance["version"]) == ("train", bns.__version__)
    assert provenance["runs"][run.name] == run.config.as_dict()
    assert pq.ParquetFile(run.train_path).metadata.row_group(0).column(0).compression == "ZSTD"
    frame = bns.read_table(run.train_path)
    assert frame["step"].tolist() == list(range(7))
    assert frame["test_loss"].isna().all()
    assert np.isfinite(frame[["loss", "grad_norm"]]).all(axis=None)
    assert frame.attrs["bnsmooth"] | {"crc": provenance["crc"]} == provenance


def rewritten(source, target, **metadata):
    table = pq.read_table(source)
    provenance = json.loads(table.schema.metadata[METADATA_KEY]) | metadata
    if "crc" not in metadata:
        del provenance["crc"]  # as in early tables
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(provenance)}), target)


def test_tables_that_cannot_be_used_say_why(small_run, tmp_path):
    good = small_run("dln", "l1").train_path
    file = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="no such table"):
        read_table(file)
    file.write_bytes(good.read_bytes()[:200])
    with pytest.raises(InputError, match=r"t\.parquet: not a readable Parquet file"):
        read_table(file)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(InputError, match="not a table of bnsmooth"):
        read_table(file)
    rewritten(good, file, format=99)
    with pytest.raises(InputError, match="format 99"):
        read_table(file)
    rewritten(good, file, crc=1)
    with pytest.raises(InputError, match=r"t\.parquet: its metadata is damaged"):
        read_table(file)
    rewritten(good, file, kind="ics")
    with pytest.raises(InputError, match="column 'layer'"):
        read_table(file)
    with pytest.raises(InputError, match="of kind train; one of kind landscape is needed"):
        read_table(good, "landscape")


def test_a_table_of_an_earlier_version_reads_with_nulls_in_the_columns_that_it_lacks(cli, small_run, tmp_path):
    run = small_run("dln", "l1", steps=4)
    (path,) = measure("smoothness", [run.source()], device="cpu")
    today = read_table(path)
    added = {name for name, column in kinds.get("smoothness").columns.items() if column.added}
    lacking = sorted(added - {"settings"})  # which reading fills in
    assert {"beta_alpha", "saturated"} <= set(lacking)
    pq.write_table(pq.read_table(path).drop_columns(lacking), path)
    old = read_table(path, "smoothness")
    assert list(old) == list(today)
    assert old[lacking].isna().all(axis=None)
    pd.testing.assert_frame_equal(old.drop(columns=lacking), today.drop(columns=lacking))
    assert read_table(path, columns=["step", "saturated"])["saturated"].isna().all()
    tables.save_table(old.drop(columns=lacking), tmp_path / "again.parquet")
    for line in (
        f"smoothness {run.path}",
        "show again.parquet --csv -",
        "plot again.parquet -o f.png",
        f"compare {run.path}",
    ):
        code, _, err = cli(line)
        assert (code, err) == (0, ""), line
    assert "saturated" in cli(f"smoothness {run.path}")[1]  # which measured it again
    pd.testing.assert_frame_equal(read_table(path), today)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(small_run, tmp_path):
    frame = read_table(small_run("dln", "l1").train_path)
    target = tmp_path / "t.parquet"
    write_table(target, "train", [frame], {})
    before = target.read_bytes()
    with pytest.raises(KeyError):
        write_table(target, "train", [frame.drop(columns="loss")], {})
    with pytest.raises(TypeError):
        write_table(target, "train", [frame], {"bad": object()})
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_rows_that_come_in_parts_are_one_table(small_run, tmp_path, monkeypatch):
    frame = read_table(small_run("dln", "l1").train_path)
    monkeypatch.setattr(tables, "GROUP", 2)
    write_table(tmp_path / "t.parquet", "train", (frame.iloc[i : i + 1] for i in range(len(frame))), {})
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == -(-len(frame) // 2)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), frame)


@pytest.fixture(scope="module")
def compared(small_run):
    runs = [small_run("dln", norm) for norm in ("none", "batch", "l1")]
    measure("smoothness", [runs[1].source()], device="cpu")
    return runs, bns.compare([run.path for run in runs])


def test_compare_has_a_row_a_run_best_first(compared):
    runs, frame = compared
    assert sorted(frame["run"]) == sorted(run.name for run in runs)
    assert frame["final_loss"].is_monotonic_increasing
    for run in runs:
        loss = bns.read_table(run.train_path)["loss"]
        row = frame.set_index("run").loc[run.name]
        assert row["final_loss"] == loss.iloc[-1]
        assert row["best_loss"] == loss.min()
        target = bns.read_table(runs[0].train_path)["loss"].iloc[-1]
        assert row["target_loss"] == target
        reached = np.flatnonzero(loss <= target)
        assert np.array_equal(row["steps_to_loss"], reached[0] if len(reached) else np.nan, equal_nan=True)


def test_compare_gives_ratios_to_the_plain_run_and_medians_of_smoothness(compared):
    runs, frame = compared
    rows = frame.set_index("run")
    plain, batch = rows.loc[runs[0].name], rows.loc[runs[1].name]
    assert batch["ratio_final_loss"] == batch["final_loss"] / plain["final_loss"]
    measured = bns.read_table(runs[1].path / "smoothness.parquet")
    assert batch["beta"] == measured["beta"].median()
    assert batch["loss_range"] == (measured["loss_max"] - measured["loss_min"]).median()
    assert np.isnan(plain["beta"])


def test_compare_without_a_plain_run_takes_a_target(small_run):
    run = small_run("dln", "batch")
    losses = bns.read_table(run.train_path)["loss"]
    frame = bns.compare([run.path], target_loss=losses[3])
    assert frame["steps_to_loss"][0] <= 3
    assert bns.compare([run.path])["target_loss"].isna().all()


def test_compare_takes_accuracies_of_image_runs(small_run):
    run = small_run("vgg", "none")
    tested = bns.read_table(run.train_path)["test_accuracy"].dropna()
    frame = bns.compare([run.path])
    assert frame["final_test_accuracy"][0] == tested.iloc[-1]
    assert frame["ratio_final_test_accuracy"][0] in (1.0,) or tested.iloc[-1] == 0
    assert frame["steps_to_accuracy"][0] <= 6


def test_compare_refuses_a_run_twice(small_run):
    run = small_run("dln", "batch")
    with pytest.raises(InputError, match="twice"):
        bns.compare([run.path, run.path])


def test_a_text_that_is_no_unicode_is_damage(cli, small_run, tmp_path):
    table = pq.read_table(small_run("dln", "l1").train_path)
    texts = pa.array([b"caf\xe9"] * len(table)).cast(pa.string(), safe=False)
    table = table.set_column(2, table.schema.field("norm"), texts)
    pq.write_table(table, tmp_path / "t.parquet")
    for line in ("show t.parquet", "show t.parquet --csv -", "plot t.parquet -o f.png"):
        code, _, err = cli(line)
        assert (code, err.count("\n")) == (2, 1)
        assert "t.parquet: not a readable Parquet file (" in err
        assert "Invalid UTF8" in err
