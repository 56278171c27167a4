"""The optimiser and the learning rate of each step, where runs are named, listed, shown, drawn and exported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import legend

import bnsmooth_cli as bns
from bnsmooth_cli.config import resolve
from bnsmooth_cli.identity import differing
from bnsmooth_cli.storage.cards import settings_in_words
from bnsmooth_cli.storage.runs import open_run

RECIPE = {"optimizer": "adamw", "betas": "0.9,0.95", "schedule": "cosine", "warmup": 2, "clip": 1.0, "lr": 1e-3}
SMALL = {"problem": "dln", "depth": 3, "dimension": 4, "samples": 20, "steps": 8, "save_every": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of the recipe, one of the same optimiser at a constant rate, and one of SGD."""
    folder = tmp_path_factory.mktemp("made")
    bns.train(norm="batch", output=folder / "recipe", **RECIPE, **SMALL)
    bns.train(norm="batch", output=folder / "constant", optimizer="adamw", lr=1e-3, **SMALL)
    bns.train(norm="batch", output=folder / "plain", lr=1e-4, **SMALL)
    return folder


def test_the_name_of_a_run_says_its_optimiser_and_schedule_shortly():
    def name(**values):
        return resolve("vgg", **values).name

    assert name(**RECIPE) == "vgg-batch-lr0.001-adamw-betas0.9x0.95-cosine-warmup2-clip1-seed0"
    assert name(optimizer="adamw", lr=1e-3, weight_decay=0.1) == "vgg-batch-lr0.001-adamw-wd0.1-seed0"
    assert name(momentum=0.9, nesterov=True) == "vgg-batch-lr0.1-momentum0.9-nesterov-seed0"
    assert name(optimizer="rmsprop", lr=1e-3, square_decay=0.9) == "vgg-batch-lr0.001-rmsprop-squaredecay0.9-seed0"


def test_runs_of_two_optimisers_are_told_apart_in_words():
    texts = [resolve("vgg", **values).settings_text for values in ({}, RECIPE, {"momentum": 0.9, "nesterov": True})]
    words = [*differing("vgg", texts).values()]
    assert len({*words}) == 3
    for part in ("adamw", "betas 0.9,0.95", "cosine schedule", "warm-up of 2 steps", "clip"):
        assert part in words[1]
        assert part not in words[0]
    assert "Nesterov momentum" in words[2]
    assert "adamw" in settings_in_words(resolve("vgg", **RECIPE))


def test_a_list_has_the_rate_of_the_step_that_a_run_has_reached(made, cli):
    listed = bns.list_runs(made).set_index("run")
    expected = {name: open_run(made / name).config.lr_at(8) for name in listed.index}
    assert listed["step_lr"].to_dict() == expected
    assert expected["recipe"] < listed.loc["recipe", "lr"] == 1e-3
    assert (listed["step_lr"] == listed["lr"]).tolist() == [True, True, False]  # constant, plain, recipe
    code, out, _ = cli(f"list {made}")
    assert code == 0
    assert "step lr" in out
    (row,) = [line for line in out.splitlines() if line.startswith("recipe")]
    assert f"{expected['recipe']:.3g}" in row.split()
    rows = json.loads(cli(f"list {made} --json")[1])["tables"][0]["rows"]
    assert {row["run"]: row["step_lr"] for row in rows} == expected


def test_a_list_of_constant_rates_has_no_column_for_them(made, cli, tmp_path):
    shutil.copytree(made / "plain", tmp_path / "runs/plain")
    shutil.copytree(made / "constant", tmp_path / "runs/constant")
    assert "step lr" not in cli(f"list {tmp_path / 'runs'}")[1]


def test_a_damaged_run_is_listed_without_a_rate(made, tmp_path):
    shutil.copytree(made / "recipe", tmp_path / "runs/recipe")
    (tmp_path / "runs/recipe/config.json").write_text("{")
    assert bns.list_runs(tmp_path)["step_lr"].isna().all()
    assert "damaged" in repr(open_run(made / "recipe").__class__(tmp_path / "runs/recipe", resolve("dln")))


def test_the_card_of_a_run_says_the_rate_where_it_is_another_one(made):
    said = {name: repr(open_run(made / name)) for name in ("recipe", "constant", "plain")}
    config = open_run(made / "recipe").config
    assert f"finished at step 8; lr {config.lr_at(8):.3g} there" in said["recipe"]
    assert "there" not in said["constant"] + said["plain"]
    assert "adamw" in said["recipe"]
    assert f"lr 0.001 ({config.lr_at(5):.3g} at this step)" in repr(bns.load_point(made / "recipe", 5))
    assert "at this step" not in repr(bns.load_point(made / "plain", 5))


def test_train_and_show_have_the_rate_of_each_step_where_it_changes(made, cli):
    line = "train --problem dln --norm batch --depth 3 --dimension 4 --samples 20 --steps 8 --save-every 4"
    options = "--optimizer adamw --lr 1e-3 --schedule linear"
    assert "step lr" in cli(f"{line} {options} -o run")[1]
    assert "step lr" not in cli(f"{line} -o plain")[1]
    shown = cli(f"show {made / 'recipe/train.parquet'}")[1]
    assert "step_lr" in shown
    assert "every row" in (plain := cli(f"show {made / 'plain/train.parquet'}")[1])
    assert "step_lr 0.0001" in plain  # among what every row has


def test_the_training_figure_has_a_panel_of_the_rate_where_it_changes(made):
    tables = {name: bns.read_table(made / name / "train.parquet") for name in ("recipe", "plain")}
    for name, panels in (("recipe", 2), ("plain", 1)):
        figure = bns.plot(tables[name])
        titles = [axes.get_title() for axes in figure.axes]
        assert len(titles) == panels, titles
        assert ("learning rate" in " ".join(titles)) == (name == "recipe")
    (panel,) = [axes for axes in bns.plot(tables["recipe"]).axes if "learning rate" in axes.get_title()]
    drawn = next(np.asarray(line.get_ydata()) for line in panel.lines if len(line.get_ydata()) == 9)
    np.testing.assert_allclose(drawn, tables["recipe"]["step_lr"])
    assert legend(bns.plot(pd.concat(tables.values()))) != []


def test_the_rate_reaches_tensorboard(made, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    from bnsmooth_cli.storage import event_files

    shutil.copy(made / "recipe/train.parquet", tmp_path / "train.parquet")
    event_files.tensorboard(tmp_path / "train.parquet")
    events = EventAccumulator(str(tmp_path), size_guidance={SCALARS: 0}).Reload()
    values = [event.value for event in events.Scalars("train/step_lr")]
    np.testing.assert_allclose(values, bns.read_table(made / "recipe/train.parquet")["step_lr"], rtol=1e-6)


def test_a_report_draws_the_rate_of_its_runs(tmp_path, cli):
    line = "compare --norms none,batch --problem dln --depth 3 --dimension 4 --samples 20 --steps 8 --save-every 4"
    assert cli(f"{line} --optimizer adamw --lrs 1e-3 --schedule cosine -o study")[0] == 0
    assert cli("report study -o report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<dt>schedule</dt><dd>cosine</dd>" in page
    assert "8 steps of adamw" in page


def test_two_optimisers_of_the_users_own_are_told_apart_by_what_they_are():
    own = {"optimizer": "mine:build"}
    texts = [resolve("vgg", **values).settings_text for values in ({}, own, {**own, "optimizer_digest": "a" * 16})]
    assert [*differing("vgg", texts[:2]).values()] == ["sgd", "mine:build"]
    assert [*differing("vgg", [texts[0], texts[2]]).values()] == ["sgd", "mine:build"]
    other = resolve("vgg", **own, optimizer_digest="b" * 16).settings_text
    assert [*differing("vgg", [texts[2], other]).values()] == ["mine:build (aaaaaa)", "mine:build (bbbbbb)"]
