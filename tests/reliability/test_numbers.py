"""Extreme numbers: a run records what it meets, and every later command and figure accepts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from attempts import KINDS, MEASURE, run
from PIL import Image

from bnsmooth_cli.storage import tables

DLN = "--problem dln --depth 4 --dimension 4 --samples 30 --lr 1e-4 --steps 6 --save-every 2"
VGG = "--problem vgg --width 0.05 --batch-size 8 --steps 2 --save-every 1 --eval-every 2"


def everything(folder: Path, line: str) -> dict[str, pd.DataFrame]:
    """Train, measure, compare and plot; return the run's tables by kind."""
    lines = [f"train {line} -o run"]
    lines += [f"{MEASURE[kind]} run" for kind in KINDS]
    lines += [f"plot run/{kind}.parquet -o {kind}.png" for kind in ("train", *KINDS)]
    lines += ["compare run", "plot compare.parquet -o compare.png"]
    for words in lines:
        ended = run(words, folder)
        assert (ended.code, ended.err) == (0, ""), words
    return {kind: tables.read_table(folder / f"run/{kind}.parquet", kind) for kind in ("train", *KINDS)}


def with_images(folder: Path, pixels: np.ndarray, labels: list[int], line: str = VGG) -> str:
    for split in ("train", "test"):
        for i, label in enumerate(labels):
            path = folder / f"data/{split}/{label}/{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i % len(pixels)]).save(path)
    return f"{line} --data data"


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "value"),
    [
        ("none", np.nan),
        ("batch", np.inf),
        ("linf", np.nan),
        ("batch", 1e30),
        ("linf", 1e30),
        ("l1", -np.inf),
        ("noisy-batch", np.nan),
    ],
)
def test_weights_that_are_not_finite(tmp_path, norm, value):
    assert run(f"train {DLN} --norm {norm} -o run", tmp_path).code == 0
    path = tmp_path / "run/checkpoints/000004.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["layers.fc2.linear.weight"][0, 0] = value
    torch.save(content, path)
    for kind in KINDS:
        ended = run(f"{MEASURE[kind]} {path} -o {kind}.parquet", tmp_path)
        # Along a random direction, the huge weight swallows its part of the step.
        swallows = value == 1e30 and kind in ("landscape-random", "smoothness-random")
        note = "bnsmooth: note: no beta: the rounding of float64 swallows the steps of the line\n" if swallows else ""
        assert (ended.code, ended.err) == (0, note), kind
        rows = tables.read_table(tmp_path / f"{kind}.parquet", kind)
        if kind == "landscape" and np.isnan(value):
            assert not np.isfinite(rows["loss"]).any()
        ended = run(f"plot {kind}.parquet -o {kind}.png", tmp_path)
        assert (ended.code, ended.err) == (0, ""), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "norm"),
    [
        *((DLN.replace("1e-4", "1e30"), norm) for norm in ("none", "batch", "l1")),
        *((f"{VGG} --lr 1e30", norm) for norm in ("none", "batch")),
    ],
)
def test_an_lr_that_overflows_at_once(tmp_path, norm, line):
    line = with_images(tmp_path, noise(20), [0, 1] * 10, line) if "vgg" in line else line
    rows = everything(tmp_path, f"{line} --norm {norm}")["train"]
    diverged = rows.attrs["bnsmooth"]["diverged_at"]
    assert diverged is None or rows["step"].iloc[-1] == diverged
    assert np.isfinite(rows["loss"].iloc[0])
    if norm == "none":
        assert diverged in (1, 2)


def test_an_lr_above_the_limit_is_refused(tmp_path):
    ended = run(f"train {DLN.replace('1e-4', '1e308')} --norm none", tmp_path)
    assert (ended.code, ended.err) == (2, "bnsmooth: --lr 1e+308: give a number above 0, at most 1e+30\n")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch", "linf", "lp:3", "noisy-batch"])
def test_a_linear_network_of_dimension_one(tmp_path, norm):
    found = everything(tmp_path, f"{DLN.replace('dimension 4', 'dimension 1')} --norm {norm}")
    assert np.isfinite(found["train"]["loss"]).all()
    assert np.isfinite(found["smoothness"]["beta"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("line", "norm"), [(DLN, "none"), (DLN, "noisy-none"), (VGG, "noisy-none")])
def test_batches_of_one_sample(tmp_path, norm, line):
    line = with_images(tmp_path, noise(20), [0, 1] * 10) if line == VGG else line
    line = f"{line.replace('--batch-size 8', '')} --norm {norm} --batch-size 1"
    found = everything(tmp_path, line)
    assert np.isfinite(found["train"]["loss"]).all()
    if "dln" in line:  # one value has no variance, and theorems that divide by it are undefined
        divided = found["theory"][found["theory"]["statement"] != "4.5"]
        assert divided["holds"].isna().all()
        assert divided["lhs"].isna().all()


def test_a_norm_takes_no_batch_of_one_sample(tmp_path):
    ended = run(f"train {DLN} --norm batch --batch-size 1", tmp_path)
    assert (ended.code, "statistics over a batch of at least 2" in ended.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "norm"),
    [("constant", "batch"), ("constant", "linf"), ("black", "none"), ("one class", "batch")],
)
def test_images_without_variance_and_of_one_class(tmp_path, norm, images):
    pixels = {"constant": np.full((1, 32, 32, 3), 77, np.uint8), "black": np.zeros((1, 32, 32, 3), np.uint8)}
    line = with_images(tmp_path, pixels.get(images, noise(20)), [0] * 20 if images == "one class" else [0, 1] * 10)
    found = everything(tmp_path, f"{line} --norm {norm}")
    assert np.isfinite(found["train"]["loss"]).all()
    if images == "one class":
        assert (found["train"]["loss"] == 0).all()
