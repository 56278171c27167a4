"""Configurations: settings of each problem, the flat dictionaries of files, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bnsmooth_cli import InputError
from bnsmooth_cli.config import FIELDS, Config, from_dict, help_of, resolve
from bnsmooth_cli.presets import PROBLEMS
from bnsmooth_cli.studies.grid import read_grid

COMMON = ["problem", "norm", "lr", "steps", "batch_size", "momentum", "seed", "save_every"]
#: The keys of format 1 in their order, which the bytes of checkpoints depend on.
KEYS = {
    "vgg": [*COMMON, "depth", "eval_every", "data", "width", "augment"],
    "dln": [*COMMON, "depth", "dimension", "samples"],
    "gpt": [
        *COMMON[:5],
        "optimizer",
        "momentum",
        "betas",
        "schedule",
        "warmup",
        "clip",
        *COMMON[6:],
        "weight_decay",
        "depth",
        "embedding",
        "heads",
        "context",
        "eval_every",
        "data",
    ],
    "module:function": [*COMMON, "eval_every"],
}
#: The settings that only the linear network has, and only the transformer.
LINEAR, GPT = ["dimension", "samples", "matrix"], ["embedding", "heads", "context"]


@pytest.mark.parametrize("problem", KEYS)
def test_files_hold_the_keys_of_format_1_in_their_order(problem):
    config = resolve(problem)
    assert list(config.as_dict()) == KEYS[problem]
    assert from_dict(config.as_dict(), "config.json") == config


def test_the_fingerprint_of_the_images_follows_their_name_once_it_is_known():
    keys = list(resolve("vgg").changed(data_digest="0" * 16).as_dict())
    assert keys[keys.index("data") + 1] == "data_digest"


@pytest.mark.parametrize(("change", "why"), [
    ({"samples": 3}, "config.json: --samples: the problem vgg has no such setting"),
    ({"width": None}, "config.json: --width: the problem vgg needs this setting"),
    ({"lr": None}, "config.json: --lr: the problem vgg needs this setting"),
    ({"problem": "vvg"}, "config.json: unknown problem 'vvg': did you mean 'vgg'?"),
    ({"colour": 1}, "config.json: unknown setting 'colour'; was it written by a newer bnsmooth?"),
    ({"width": True}, "config.json: the setting 'width' has the wrong type (bool)"),
    ({"width": 5}, "config.json: --width 5: give a number above 0, at most 4"),
    ({"steps": 0}, "config.json: --steps 0: give a whole number from 1 to 1000000000"),
    ({"momentum": 1}, "config.json: --momentum 1: give a number from 0 up to, not including, 1"),
    ({"seed": -1}, "config.json: --seed -1: give a whole number from 0 to "),
])  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_by_file_and_setting(change, why):
    values = {**resolve("vgg").as_dict(), **change}
    with pytest.raises(InputError) as error:
        from_dict({name: value for name, value in values.items() if value is not None}, "config.json")
    assert str(error.value).startswith(why)


@pytest.mark.parametrize("change", [{"steps": True}, {"lr": "x"}, {"depth": 2.0}, {"seed": "1"}])
def test_a_setting_of_the_wrong_type_is_refused_by_name_before_anything_is_written(change):
    (name,) = change
    with pytest.raises(InputError, match=f"^--{name}: the setting '{name}' has the wrong type"):
        resolve("dln", **change)


def test_numbers_may_be_numpys():
    config = resolve("dln", seed=np.int64(3), lr=np.float32(0.25), last_norm=np.bool_(True))
    assert json.loads(config.settings_text)  # which holds no numbers of numpy
    assert (type(config.seed), type(config.lr), config.lr) == (int, float, 0.25)
    grid = read_grid({"norms": "none", "seeds": np.arange(2), "every": np.int64(5), "steps": np.int32(7)})
    assert grid.request() == {"norms": ["none"], "seeds": [0, 1], "steps": 7, "every": 5, "threads": 1}


def test_a_misspelt_setting_is_answered_with_the_nearest_one():
    with pytest.raises(InputError, match="unknown setting 'step': did you mean 'steps'"):
        resolve("dln", step=5)


def test_the_linear_network_trains_on_all_samples_unless_told_otherwise():
    assert resolve("dln", samples=30).batch_size == 30
    assert resolve("dln", samples=30, batch_size=7).batch_size == 7
    with pytest.raises(InputError, match="--batch-size 31: larger than the 30 samples"):
        resolve("dln", samples=30, batch_size=31)


def test_the_same_images_in_another_folder_are_the_same_trajectory():
    here = resolve("vgg", data="/a").changed(data_digest="1")
    assert here.differences(here.changed(data="/b", steps=10**6)) == []
    assert here.differences(here.changed(data="/b", data_digest="2", width=2.0)) == [
        "data /a, now /b", "data_digest 1, now 2", "width 0.25, now 2.0"
    ]  # fmt: skip
    assert here.differences(resolve("dln")) == ["problem vgg, now dln"]


def test_how_often_a_run_is_saved_and_evaluated_does_not_define_it():
    here = resolve("vgg", save_every=50, eval_every=25)
    other = here.changed(save_every=7, eval_every=8)
    assert here.differences(other) == []
    assert here.changes(other) == ["save_every 50, now 7", "eval_every 25, now 8"]
    others = {
        "norm": "l1", "lr": 0.2, "batch_size": 3, "momentum": 0.5, "seed": 1, "weight_decay": 0.1, "depth": 13,
        "width": 0.5, "augment": True, "classifier": "none", "inputs": "centred", "last_norm": True,
        "optimizer": "adam", "schedule": "step", "warmup": 2, "clip": 1.0,
    }  # fmt: skip
    of_optimizers = {"nesterov", "betas", "eps", "square_decay", "optimizer_digest"}
    assert {"problem", "steps", "data", "data_digest", *of_optimizers, *others, *here.incidental()} == {*FIELDS} - {
        *LINEAR,
        *GPT,
        "swap_norm",
    }
    for name, value in others.items():
        assert len(here.differences(here.changed(**{name: value}))) == 1, name


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata])
def test_every_setting_says_in_its_help_which_problems_have_it(name):
    having = [problem for problem, keys in KEYS.items() if name in keys]
    text = help_of(name)
    assert text.endswith(".")
    if name not in {field.name for field in dataclasses.fields(Config)}:
        assert all(problem in text for problem in having if problem in PROBLEMS)
