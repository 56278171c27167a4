"""What tells runs apart: the column `settings`, and what differs in words."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import SMALL

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.identity import alike, differing, read_settings
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage import tables

SAMPLES = Path(__file__).parent / "reliability/samples/format-1"


def settings(problem, **values):
    return resolve(problem, **values).settings_text


@pytest.mark.parametrize("kind", kinds.measured())
def test_rows_have_the_settings_of_their_run_in_memory_and_in_files(small_run, tmp_path, kind):
    run = small_run("dln", "batch")
    (path,) = measure(kind, [run.source()], tmp_path / "t.parquet", at=[0], device="cpu")
    rows = bns.read_table(path)
    assert {*rows["settings"]} == {run.config.settings_text}
    assert list(rows).index("settings") == list(rows).index("seed") + 1


def test_rows_in_memory_have_the_settings_of_their_run(small_run):
    run = small_run("vgg", "none")
    assert {*bns.landscape(bns.load_point(run), alphas=[1.0])["settings"]} == {run.config.settings_text}
    assert {*bns.read_table(run.train_path)["settings"]} == {run.config.settings_text}


def test_the_settings_of_a_users_own_loop_are_unknown():
    model, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    rows = bns.landscape(bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1))
    assert {*rows["settings"]} == {""}


def test_settings_leave_out_what_has_a_column_what_is_incidental_and_what_is_at_its_default():
    text = settings("vgg", norm="l1", lr=0.5, seed=3, save_every=7, eval_every=9, keep=2, data="/some/where/images/")
    assert text == settings("vgg", data="images")
    assert json.loads(text) == {
        "augment": False, "batch_size": 128, "data": "images", "depth": 11, "momentum": 0.0, "steps": 300, "width": 0.25
    }  # fmt: skip
    assert settings("vgg", width=1) == settings("vgg", width=1.0)


def test_settings_are_read_with_the_defaults():
    values = read_settings("vgg", settings("vgg"))
    assert (values["classifier"], values["last_norm"], values["weight_decay"]) == ("512,512", False, 0.0)
    assert read_settings("dln", settings("dln"))["last_norm"] is True
    assert not {"problem", "norm", "lr", "seed", "save_every", "eval_every", "keep"} & set(values)
    assert read_settings("vgg", "") == {}
    for text in ("{", "[]", "1"):
        with pytest.raises(InputError, match="no JSON object"):
            read_settings("vgg", text)


def test_what_differs_is_said_in_words():
    texts = [settings("vgg"), settings("vgg", data="a/cifar10", width=1.0, steps=3000), ""]
    assert differing("vgg", texts) == {
        texts[0]: "shapes, width 0.25, 300 steps", texts[1]: "cifar10, width 1, 3,000 steps", "": "unknown settings"
    }  # fmt: skip
    assert differing("vgg", texts[:1] * 2) == {texts[0]: ""}
    texts = [settings("dln"), settings("dln", samples=50), settings("dln", batch_size=10, last_norm=False)]
    assert [*differing("dln", texts).values()] == [
        "1,000 samples, last norm, full batch",
        "50 samples, last norm, full batch",
        "1,000 samples, no last norm, batches of 10",
    ]


def test_two_folders_of_the_same_images_are_alike_and_two_sets_of_one_name_are_not():
    def of(data, digest):
        return json.dumps(json.loads(settings("vgg", data=data)) | ({"data_digest": digest} if digest else {}))

    moved = [of("here", "abcdefghi"), of("there", "abcdefghi")]
    assert [*alike("vgg", moved).values()] == moved[:1] * 2
    assert [*differing("vgg", moved).values()] == ["", ""]
    others = [of("here", "abcdefghi"), of("here", "xyzxyzxyz")]
    assert [*differing("vgg", others).values()] == ["here (abcdef)", "here (xyzxyz)"]
    unknown = [of("here", None), of("here", "abcdefghi")]  # recorded before images had a digest
    assert [*alike("vgg", unknown).values()] == unknown[1:] * 2
    assert [*differing("vgg", [*others, unknown[0]]).values()][2] == "here (unknown images)"


def test_settings_of_a_newer_version_are_told_apart():
    texts = [settings("vgg"), json.dumps(json.loads(settings("vgg")) | {"optimizer": "adam"})]
    assert [*differing("vgg", texts).values()] == ["", "optimizer adam"]


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.parquet")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_of_earlier_versions_get_their_settings_on_reading(path):
    assert "settings" not in pq.read_schema(path).names
    rows = bns.read_table(path)
    configs = rows.attrs["bnsmooth"]["runs"].values()
    expected = {resolve(**{**config, "preset": "quick"}).settings_text for config in configs}
    assert {*rows["settings"]} == expected
    assert len(expected) == 1
    assert {*bns.read_table(path, columns=["settings"])["settings"]} == expected
    assert "settings" not in tables.lacking(path)  # it is no reason to measure again


def test_a_table_that_is_continued_after_its_run_got_more_steps_has_one_setting(tmp_path):
    for steps in (4, 8):
        run = bns.train("dln", "none", output=tmp_path / "run", device="cpu", **{**SMALL["dln"], "steps": steps})
        (path,) = measure("ics", [run.source()], every=4, device="cpu")
    rows = bns.read_table(path)
    assert sorted({*rows["step"]}) == [0, 4, 8]
    assert {*rows["settings"]} == {run.config.settings_text}


def test_a_table_without_provenance_has_unknown_settings(small_run, tmp_path):
    rows = bns.read_table(small_run("dln", "l1").train_path)
    bns.save_table(rows.drop(columns="settings"), tmp_path / "t.parquet")
    assert {*bns.read_table(tmp_path / "t.parquet")["settings"]} == {""}
    bns.save_table(rows, tmp_path / "t.parquet")
    assert {*bns.read_table(tmp_path / "t.parquet")["settings"]} == {*rows["settings"]}
