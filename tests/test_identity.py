"""What tells runs apart: the column `settings`, and what differs in words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import SMALL
from PIL import Image

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.config import MAX_NAME, defining, resolve
from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.identity import alike, differing, read_settings
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run
from bnsmooth_cli.studies.outcome import conclude

SAMPLES = Path(__file__).parent / "reliability/samples/format-1"


def settings(problem, **values):
    return resolve(problem, **values).settings_text


@pytest.mark.parametrize("kind", kinds.measured())
@pytest.mark.fast(8)
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


def test_other_test_images_make_other_data_unless_an_earlier_version_kept_no_digest_of_them():
    def of(digest, data="here"):
        return json.dumps(json.loads(settings("vgg", data=data)) | {"data_digest": digest})

    whole, other, early = of("trained01.1tested"), of("trained01.2tested"), of("trained01", data="there")
    assert [*differing("vgg", [whole, other]).values()] == ["here (traine.1teste)", "here (traine.2teste)"]
    assert [*alike("vgg", [whole, other]).values()] == [whole, other]
    assert [*alike("vgg", [early, whole]).values()] == [whole, whole]
    assert [*alike("vgg", [early, whole, other]).values()] == [early, whole, other]
    assert [*alike("vgg", [of("trained02"), whole]).values()] == [of("trained02"), whole]


def test_settings_of_a_newer_version_are_told_apart():
    texts = [settings("vgg"), json.dumps(json.loads(settings("vgg")) | {"unheard_of": "adam"})]
    assert [*differing("vgg", texts).values()] == ["", "unheard_of adam"]


#: The samples from before the column `settings`. Tables along an update and those of a spectrum are newer.
WITHOUT_SETTINGS = [
    path for path in sorted(SAMPLES.rglob("*.parquet"))
    if not (path.stem.endswith("-update") or path.stem.startswith("spectrum"))
]  # fmt: skip


@pytest.mark.parametrize("path", WITHOUT_SETTINGS, ids=lambda path: f"{path.parent.name}/{path.name}")
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


# Names


def test_a_runs_name_has_what_is_not_its_presets():
    def name(problem="vgg", preset="quick", **values):
        return resolve(problem, preset, **values).name

    assert name() == "vgg-batch-lr0.1-seed0"
    assert name(data="a/cifar10", width=0.5, steps=3000, seed=3) == "vgg-batch-lr0.1-cifar10-w0.5-steps3000-seed3"
    assert name(weight_decay=5e-4, augment=True, depth=16) == "vgg-batch-lr0.1-depth16-augment-wd0.0005-seed0"
    assert name(preset="paper", norm="none", width=0.25) == "vgg-none-lr0.1-paper-w0.25-seed0"
    assert name(preset="paper", data="elsewhere/cifar10") == name(preset="paper") == "vgg-batch-lr0.1-paper-seed0"
    assert name("dln", samples=50) == "dln-batch-lr1e-06-samples50-seed0"
    assert name("dln", batch_size=50) == "dln-batch-lr1e-06-bs50-seed0"
    assert name("dln", "paper", last_norm=True) == "dln-batch-lr1e-06-paper-lastnorm-seed0"
    assert name(save_every=3, eval_every=4, keep=5) == name()  # settings that do not define a run


OTHERS = {
    "depth": 13, "data": "cifar10", "width": 0.3, "augment": True, "classifier": "none", "inputs": "centred",
    "last_norm": True, "steps": 301, "batch_size": 20, "momentum": 0.9, "weight_decay": 0.1, "dimension": 3,
    "samples": 99, "matrix": "uniform", "optimizer": "adamw", "nesterov": True, "betas": "0.8,0.9", "eps": 1e-6,
    "square_decay": 0.9, "schedule": "cosine", "warmup": 3, "clip": 1.0,
}  # fmt: skip


#: What has to be given for a setting to be one of the run.
NEEDS = {
    "nesterov": {"momentum": 0.9}, "betas": {"optimizer": "adam"}, "eps": {"optimizer": "adam"},
    "square_decay": {"optimizer": "rmsprop"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "preset"), [("vgg", "quick"), ("vgg", "paper"), ("dln", "quick"), ("dln", "paper")]
)
def test_every_setting_is_in_the_name_and_in_the_words(problem, preset):
    """A new setting needs a value in OTHERS."""
    usual = resolve(problem, preset)
    names, told = {usual.name}, set()
    for setting in defining(problem):
        value, needs = OTHERS[setting], NEEDS.get(setting, {})
        usual = resolve(problem, preset, **needs)
        if setting == "last_norm":
            value = not usual.settings.last_norm
        elif usual.as_dict().get(setting) == value:
            value = {"cifar10": "shapes", "centred": "standard", "uniform": "normal"}[value]
        other = resolve(problem, preset, **{**needs, setting: value})
        names.add(other.name)
        assert re.fullmatch(r"[0-9a-z.-]+-seed0", other.name), other.name
        said = differing(problem, [usual.settings_text, other.settings_text])
        assert all(said.values()), setting
        told.add(said[other.settings_text])
    assert len(names) == len(told) + 1 == len(defining(problem)) + 1


@pytest.mark.parametrize("data", ["x" * 300, 'a b/Ümläut & *?"<>|:', "-seed1", "..."])
def test_a_name_is_short_and_safe_whatever_the_folder_is_called(data):
    name = resolve("vgg", data=data).name
    assert len(name) <= MAX_NAME + len("-seed0")
    assert re.fullmatch(r"vgg-batch-lr0\.1-[0-9A-Za-z._-]+-seed0", name)
    assert "-seed" not in name.removesuffix("-seed0")
    assert len({resolve("vgg", data=f"{data}{end}", seed=seed).name for end in "ab" for seed in (0, 1)}) == 4


SMALL_DLN = "--problem dln --depth 3 --dimension 4 --samples 20 --lr 1e-4"
TAGS = "depth3-dim4-samples20"


def test_a_longer_run_is_a_run_of_its_own_and_the_output_option_extends_one(cli, tmp_path):
    assert cli(f"train {SMALL_DLN} --norm none --steps 4")[0] == 0
    short, long = (tmp_path / f"runs/dln-none-lr0.0001-{TAGS}-steps{steps}-seed0" for steps in (4, 8))
    code, _, err = cli(f"train {SMALL_DLN} --norm none --steps 8")
    assert (code, err.count("\n")) == (0, 1)
    assert f"{short.relative_to(tmp_path)}: has the first 4 steps of this run; -o" in err
    assert [len(bns.read_table(run / "train.parquet")) for run in (short, long)] == [5, 9]
    assert cli(f"train {SMALL_DLN} --norm none --steps 8 -o {short}")[::2] == (0, "")
    pd.testing.assert_frame_equal(
        bns.read_table(short / "train.parquet").drop(columns="run"),
        bns.read_table(long / "train.parquet").drop(columns="run"),
    )


def test_an_extended_run_and_one_of_an_earlier_version_are_found_by_their_settings(cli, tmp_path):
    for steps in (4, 8):
        assert cli(f"train {SMALL_DLN} --norm l1 --steps {steps} -o runs/dln-l1-lr0.0001-seed0")[0] == 0
    stamp = (tmp_path / "runs/dln-l1-lr0.0001-seed0/train.parquet").stat().st_mtime_ns
    code, out, _ = cli(f"ics {SMALL_DLN} --norm l1 --steps 8 --at 0")
    assert (code, out.splitlines()[0]) == (0, "runs/dln-l1-lr0.0001-seed0/ics.parquet")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dln-l1-lr0.0001-seed0"]
    assert (tmp_path / "runs/dln-l1-lr0.0001-seed0/train.parquet").stat().st_mtime_ns == stamp
    assert cli(f"train {SMALL_DLN} --norm l1 --steps 8 --seed 1")[0] == 0
    assert len([*(tmp_path / "runs").iterdir()]) == 2


def test_a_run_that_was_named_is_not_taken_for_the_one_without_a_name(cli, tmp_path):
    for options in ("--tag again", ""):
        assert cli(f"train {SMALL_DLN} --norm l1 --steps 4 {options}")[::2] == (0, "")
    assert len([*(tmp_path / "runs").iterdir()]) == 2


@pytest.mark.slow
def test_a_study_of_an_earlier_version_goes_on_under_its_names(cli, tmp_path):
    line = f"compare {SMALL_DLN.replace('--lr ', '--lrs ')} --steps 8 --save-every 4 --norms none,batch -o study"
    assert cli(f"{line} --seeds 0")[0] == 0
    runs = tmp_path / "study/runs"
    for folder in [*runs.iterdir()]:  # as an earlier version would have named them
        run = open_run(folder)
        name = run.config.former_name
        for table in folder.glob("*.parquet"):
            rows = bns.read_table(table)
            provenance = {**rows.attrs["bnsmooth"], "runs": {name: run.config.as_dict()}}
            tables.write_table(table, provenance["kind"], [rows.assign(run=name)], provenance)
        folder.rename(runs / name)
    stamps = {file: file.stat().st_mtime_ns for file in runs.rglob("train.parquet")}
    assert cli(f"{line} --seeds 0")[::2] == (0, "")
    assert cli(f"{line} --seeds 0-1 --measure ics")[::2] == (0, "")
    names = [f"dln-{norm}-lr0.0001-seed{seed}" for norm in ("batch", "none") for seed in (0, 1)]
    assert sorted(path.name for path in runs.iterdir() if not path.name.startswith(".")) == names
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert {*bns.read_table(tmp_path / "study/compare.parquet")["run"]} == {*names}
    assert cli("report study -o r.html")[0] == 0


def test_two_runs_of_one_configuration_in_a_study_count_once(cli, tmp_path):
    line = f"compare {SMALL_DLN.replace('--lr ', '--lrs ')} --steps 4 --norms none --seeds 0 -o study"
    assert cli(line)[0] == 0
    (run,) = (tmp_path / "study/runs").iterdir()
    shutil.copytree(run, run.with_name("dln-none-lr0.0001-seed0"))
    code, _, err = cli(line)
    assert (code, f"no run of this study (it is {run.name})" in err) == (1, True)
    assert [*bns.read_table(tmp_path / "study/compare.parquet")["run"]] == [run.name]


# Comparisons


def class_folders(folder, size):
    """A folder of two classes, of `size` images each in the train and in the test split."""
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(size):
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def test_runs_on_other_images_give_no_ratio_and_no_target(cli, tmp_path):
    images = class_folders(tmp_path / "pets", 8)
    small = "--width 0.02 --batch-size 4 --steps 2 --eval-every 1"
    assert cli(f"train --norm none {small} --data {images} -o none")[0] == 0
    assert cli(f"train --norm batch {small} -o batch")[0] == 0
    code, _, err = cli("compare none batch")
    assert (code, err.count("\n")) == (0, 1)
    assert "vgg: runs of different settings are judged apart: pets; shapes" in err
    rows = bns.read_table("compare.parquet").set_index("run")
    assert np.isnan(rows.loc["batch", ["ratio_final_loss", "target_loss", "target_accuracy"]].astype(float)).all()
    assert rows.loc["none", "ratio_final_loss"] == 1
    summary, claims = (bns.read_table(f"compare.{name}.parquet") for name in ("summary", "claims"))
    assert summary.loc[summary["norm"] == "batch", "ratio"].isna().all()
    assert {*summary["settings"]} == {*claims["settings"]} == {*rows["settings"]}
    assert rows["settings"].nunique() == 2


def test_no_claim_is_made_across_settings(tmp_path, recwarn):
    runs = [
        bns.train("dln", norm, steps=6, samples=samples, seed=seed, output=tmp_path / f"{norm}{seed}", device="cpu")
        for norm, samples in (("none", 200), ("batch", 50)) for seed in range(5)
    ]  # fmt: skip
    outcome = conclude(runs)
    assert [str(warning.message) for warning in recwarn] == [
        "dln: runs of different settings are judged apart: 200 samples; 50 samples"
    ]
    assert outcome.comparison["ratio_final_loss"].notna().sum() == 5
    assert not {"reproduced", "not reproduced", "inconclusive"} & {*outcome.claims["part_verdict"]}
    assert {*outcome.claims["seeds"]} == {0}
    assert len({*outcome.summary.groupby("norm")["settings"].first()}) == 2


def test_groups_of_settings_are_judged_each_by_itself(tmp_path):
    runs = [
        bns.train("dln", norm, steps=6, samples=samples, seed=seed, output=tmp_path / f"{norm}{seed}-{samples}")
        for norm in ("none", "batch") for samples in (20, 30) for seed in range(2)
    ]  # fmt: skip
    with pytest.warns(Remark):
        together = conclude(runs)
    for samples in (20, 30):
        alone = conclude([run for run in runs if run.config.settings.samples == samples])
        for name in ("comparison", "summary", "claims"):
            rows = getattr(together, name)
            rows = rows[[read_settings("dln", text)["samples"] == samples for text in rows["settings"]]]
            pd.testing.assert_frame_equal(
                rows.drop(columns="command", errors="ignore").reset_index(drop=True),
                getattr(alone, name).drop(columns="command", errors="ignore"),
            )


def test_images_that_have_moved_are_compared_as_the_same(tmp_path):
    small = {"width": 0.02, "batch_size": 4, "steps": 2, "eval_every": 1, "device": "cpu"}
    images = class_folders(tmp_path / "pets", 8)
    none = bns.train("vgg", "none", data=str(images), output=tmp_path / "none", **small)
    batch = bns.train("vgg", "batch", data=str(images.rename(tmp_path / "moved")), output=tmp_path / "batch", **small)
    rows = bns.compare([none, batch])
    assert rows["ratio_final_loss"].notna().all()
    assert rows["settings"].nunique() == 1


def test_runs_of_one_name_in_two_folders_are_told_apart_by_their_paths(cli, tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        assert cli(f"train {SMALL_DLN} --norm none --steps 4 --seed {seed} -o {folder}/runs/none")[0] == 0
    assert cli(f"train {SMALL_DLN} --norm batch --steps 4 -o a/runs/batch")[0] == 0
    assert cli("compare a/runs/none b/runs/none a/runs/batch")[::2] == (0, "")
    rows = bns.read_table("compare.parquet").set_index("run")
    assert {*rows.index} == {"a/runs/none", "b/runs/none", "batch"}
    assert {*rows.attrs["bnsmooth"]["runs"]} == {*rows.index}
    assert rows.loc["batch", "ratio_final_loss"] == pytest.approx(
        rows.loc["batch", "final_loss"] / rows.loc["a/runs/none", "final_loss"]
    )
    assert cli("compare a/runs/none b/runs/none a/runs/batch")[0] == 0  # the same comparison again
    code, _, err = cli("compare a/runs/none a/../a/runs/none -o t.parquet")
    assert (code, err) == (2, "bnsmooth: a/runs/none: given twice; give each run once\n")


def test_a_shorter_run_and_a_longer_one_of_one_trajectory_are_not_compared(cli, tmp_path):
    assert cli(f"train {SMALL_DLN} --norm none --steps 4 -o none")[0] == 0
    assert cli(f"train {SMALL_DLN} --norm batch --steps 8 -o batch")[0] == 0
    _, _, err = cli("compare none batch")
    assert "judged apart: 4 steps; 8 steps" in err or "judged apart: 8 steps; 4 steps" in err
    rows = bns.read_table("compare.parquet").set_index("norm")
    assert rows.loc["batch"].filter(like="ratio").isna().all()
    assert cli(f"train {SMALL_DLN} --norm none --steps 8 -o none")[0] == 0
    assert cli("compare none batch --force")[::2] == (0, "")


def test_two_runs_of_one_name_are_not_measured_into_one_table(cli):
    for folder, seed in (("a", 0), ("b", 1)):
        assert cli(f"train {SMALL_DLN} --norm none --steps 4 --seed {seed} -o {folder}/none")[0] == 0
    code, _, err = cli("ics a/none b/none --at 0 -o t.parquet")
    assert (code, err.count("\n")) == (2, 1)
    assert "b/none: has the name of a/none, and one table cannot tell them apart; leave out -o" in err
    assert cli("ics a/none b/none --at 0")[0] == 0
    assert "a/none: given twice" in cli("ics a/none a/none --at 0")[2]


def test_a_table_from_before_a_run_got_more_steps_is_written_anew_and_not_measured_again(cli, monkeypatch):
    run = "train --problem dln --norm none --samples 20 -o run"
    for words in ("--steps 4 --measure ics --at 0,2", "--steps 6"):
        assert cli(f"{run} {words}")[0] == 0
    code, _, err = cli("plot run/ics.parquet run/train.parquet -o both.png")
    assert code == 2
    assert "none of the runs of the ics tables (dln, 20 samples, 4 steps, lr 1e-6)" in err
    points = bns.read_table("run/ics.parquet").drop(columns="settings")
    monkeypatch.setattr("bnsmooth_cli.measures.recording.Recording.take", lambda *_: pytest.fail("a point is measured"))
    assert cli("ics run --at 0,2")[0] == 0
    rows = bns.read_table("run/ics.parquet")
    assert {*rows["settings"]} == {open_run("run").config.settings_text}
    pd.testing.assert_frame_equal(rows.drop(columns="settings"), points)
    assert cli("plot run/ics.parquet run/train.parquet -o both.png")[0] == 0
