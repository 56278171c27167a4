"""The same answer from any process and any number of threads, and from files of earlier versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from attempts import DLN, KINDS, MEASURE, VGG, contents, done, run
from helpers import SCHEMAS

from bnsmooth_cli import kinds
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.kinds import METRICS
from bnsmooth_cli.measures.critical_lr import ACCURACY
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import crc

#: Files of every kind in format 1, made by MADE_BY at version 0.1.0. They never change: a new format gets samples of
#: its own.
SAMPLES = Path(__file__).parent / "samples/format-1"
SMALL = "--problem dln --depth 2 --dimension 3 --samples 9 --lr 1e-4 --momentum 0.9 --save-every 2"
_MEASURE = "landscape,smoothness,ics,activations,theory"
_RUNS = "study/runs/dln-none-lr0.0001-seed0 study/runs/dln-noisy-batch-lr0.0001-seed0"
MADE_BY = (
    f"compare --norms none,noisy-batch {SMALL.replace('--lr ', '--lrs ')} --steps 2 --at 0,2"
    f" --measure {_MEASURE} -o study",
    "train --problem vgg --width 0.02 --batch-size 4 --norm l1 --augment --momentum 0.9 --steps 2 --save-every 2"
    " -o vgg",
    "smoothness vgg/checkpoints/000002.pt -o vgg/smoothness.parquet",
    "smoothness vgg/checkpoints/000002.pt --by-layer --points 2 --layers conv1,fc3 -o vgg/smoothness-by-layer.parquet",
    "surface vgg/checkpoints/000002.pt --points 3 -o vgg/surface.parquet",
    *(
        f"{MEASURE[f'{name}-{direction}']} {_RUNS} --at 0,2"
        for direction in kinds.DIRECTIONS
        for name in ("landscape", "smoothness")
    ),
    *(f"{MEASURE[name]} {_RUNS} --at 0,2" for name in KINDS if name.startswith("spectrum")),
    "spectrum vgg/checkpoints/000002.pt --by-layer --top 2 --layers conv1,fc3 -o vgg/spectrum-by-layer.parquet",
)
#: The columns of a comparison that early versions computed in another way.
QUOTIENTS = {f"ratio_{metric.name}" for metric in METRICS if metric.has_ratio and metric.kind != "train"}
#: How much the number of threads changes a measurement at most, relative to the column's largest number (float32).
THREADS = 1e-3
#: The same for another machine, whose processor adds in another order.
MACHINES = 5e-3
#: The relative accuracy to which iterations that end by it compute these columns.
ITERATED = {"critical_lr": ACCURACY, **dict.fromkeys(("sharpness", "preconditioned", "beside"), SHARPNESS_TOLERANCE)}
#: Lists that are not compared: details, and rounding alone.
NOT_COMPARED = ("quantiles", "residuals")


def close(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        if expected[name].dtype.kind == "f":
            # The smallest eigenvalue of a Gauss-Newton matrix is 0 but for the rounding of the largest.
            scale = "largest" if name == "smallest" else name
            largest = np.nan_to_num(np.abs(expected[scale])).max()
            allowed = max(tolerance, ITERATED.get(name, 0.0)) * largest
            np.testing.assert_allclose(found[name], expected[name], atol=allowed, rtol=0, err_msg=name)
        elif name == "eigenvalues":
            lists, others = (np.stack(table[name].tolist()) for table in (found, expected))
            np.testing.assert_allclose(lists, others, atol=tolerance * np.abs(others).max(), rtol=0, err_msg=name)
        elif name not in NOT_COMPARED:
            texts = [table[name].astype("string").fillna("").tolist() for table in (found, expected)]
            assert texts[0] == texts[1], name


def known(path: Path, sample: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table and a sample, without the columns and the theory's statements that were added after the sample.

    The statements come in the same order: of their names, whatever order they are computed in.
    """
    found, expected = (tables.read_table(table)[pq.read_schema(sample).names] for table in (path, sample))
    if "statement" in expected:
        found = found[found["statement"].isin(expected["statement"])]
        # A statement whose sides are all 0 tests nothing. It was taken to hold.
        nothing = (expected["lhs"] == 0) & (expected["rhs"] == 0)
        expected = expected.assign(
            **{name: expected[name].mask(nothing) for name in ("residual", "holds", "condition")}
        )
        order = ["step", "layer", "unit", "affine", "statement"]
        found, expected = found.sort_values(order), expected.sort_values(order)
    return found, expected


IN_ANOTHER = "import attempts, pathlib, sys\nfor line in sys.argv[1:]: attempts.done(line, pathlib.Path())"


#: One run on the linear network's fast path, and one on autograd.
@pytest.mark.slow
@pytest.mark.parametrize("line", [DLN, f"{VGG} --momentum 0.9 --eval-every 2"])
def test_two_processes_write_the_same_bytes(tmp_path, line):
    lines = [
        f"train {line} --norm noisy-batch --steps 2 -o run",
        *(f"{MEASURE[kind]} run {'--units 0' if kind == 'theory' else ''}" for kind in KINDS),
        "surface run --points 3",
        "smoothness run --by-layer --at 2 --layers 1,2",
    ]
    if line == DLN:
        lines += [f"train {line} --norm none --steps 2 -o other", "compare run other"]
        lines += [f"plot run/ics.parquet -o ics.{suffix}" for suffix in ("png", "svg", "pdf")]
    (tmp_path / "first").mkdir()
    for one in lines:
        done(one, tmp_path / "first")
    (tmp_path / "second").mkdir()
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER, *lines],
        cwd=tmp_path / "second",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert len(first) >= 12
    assert [name for name in first | second if first.get(name) != second.get(name)] == []


@pytest.mark.slow
def test_the_number_of_threads_changes_only_the_last_digits(tmp_path):
    done(f"train {VGG.replace('0.05', '0.25')} --norm batch --steps 1 --eval-every 1 -o run", tmp_path)
    for kind in ("landscape", "smoothness", "ics", "activations"):
        for threads in (1, 2):
            done(f"{kind} run --at 1 --threads {threads} -o {kind}{threads}.parquet", tmp_path)
        one, two = (tables.read_table(tmp_path / f"{kind}{threads}.parquet", kind) for threads in (1, 2))
        close(two, one, THREADS)


@pytest.fixture
def samples(tmp_path) -> Path:
    return Path(shutil.copytree(SAMPLES, tmp_path / "samples"))


def test_the_samples_are_of_every_kind():
    assert {tables.read_provenance(path)["kind"] for path in SAMPLES.rglob("*.parquet")} == set(SCHEMAS)
    assert sorted(SAMPLES.rglob("*.pt"))
    assert sorted(path.name for path in SAMPLES.rglob("*.json")) == ["config.json"] * 3 + ["study.json"]


@pytest.mark.slow
def test_samples_are_what_is_written_today(tmp_path):
    for norm, path in zip(("none", "noisy-batch"), _RUNS.split(), strict=True):  # a study keeps the names of its runs
        done(f"train --norm {norm} {SMALL} --steps 2 -o {path}", tmp_path)
    for line in MADE_BY:
        done(line, tmp_path)
    names = [str(path.relative_to(SAMPLES)) for path in sorted(SAMPLES.rglob("*")) if path.is_file()]
    assert [name for name in contents(tmp_path) if ".claims." not in name] == [n for n in names if ".claims." not in n]
    for name in names:
        if name.endswith(".parquet"):
            sample = pq.read_schema(SAMPLES / name)
            assert [field for field in pq.read_schema(tmp_path / name) if field.name in sample.names] == [*sample], name
        elif name.endswith(".json"):
            today, sample = (json.loads((folder / name).read_text()) for folder in (tmp_path, SAMPLES))
            assert today.pop("crc") == crc(today)
            if "data_digest" in (config := today.get("config", {})):  # then, it was of the training images alone
                config["data_digest"] = config["data_digest"].partition(".")[0]
            assert today.keys() == sample.keys()
            assert {**today, "version": ""} == {**sample, "version": ""}, name


@pytest.mark.slow
def test_samples_are_read_plotted_reported_compared_and_resumed(samples):
    newest = {path.name: path for path in samples.rglob("*.parquet")}  # one of each kind
    for path in newest.values():
        done(f"show {path}", samples)
        done(f"plot {path} -o {path.stem}.png", samples) if not path.stem.startswith("compare.") else None
    done("report study -o report.html", samples)
    done("compare study/runs/dln-none-lr0.0001-seed0 study/runs/dln-noisy-batch-lr0.0001-seed0", samples)
    # The ratios of measurements were quotients of medians; now they are medians of quotients at common steps.
    same = [name for name in tables.read_table(samples / "compare.parquet") if name not in QUOTIENTS]
    close(*(table[[name for name in same if name in table]]
            for table in known(samples / "compare.parquet", samples / "study/compare.parquet")), 1e-6)  # fmt: skip
    before = contents(samples)
    compared = {f"study/compare.{name}" for name in ("parquet", "summary.parquet", "claims.parquet")}
    compared |= {"study/study.json"}

    def changed() -> set[str]:
        return {name for name, data in contents(samples).items() if data != before.get(name)} - compared

    done(MADE_BY[0].replace(_MEASURE, "ics"), samples)  # complete: nothing is trained or measured again
    done(MADE_BY[1], samples)
    assert changed() == set()
    ended = run(MADE_BY[0], samples)  # the default step lengths are others now
    assert (ended.code, ended.err.count("\n"), "--force" in ended.err) == (2, 1, True)
    assert changed() == set()
    done(MADE_BY[0].replace(_MEASURE, "activations"), samples)  # which has columns that were added later
    assert changed() == {f"{folder}/activations.parquet" for folder in _RUNS.split()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["none", "noisy-batch"])
@pytest.mark.fast(5)
def test_a_samples_points_measure_as_they_did(samples, norm, kind):
    here = samples / f"study/runs/dln-{norm}-lr0.0001-seed0"
    table = here / f"{kind}.parquet"
    (options,) = tables.read_provenance(table)["options"].values()
    alphas = f"--alphas {','.join(map(str, options['alphas']))}" if "alphas" in options else ""
    done(f"{MEASURE[kind]} {here} --at 0,2 {alphas} -o again.parquet", samples)
    close(*known(samples / "again.parquet", table), MACHINES)


@pytest.mark.slow
def test_a_resumed_sample_ends_like_a_run_without_a_break(samples):
    here = samples / "study/runs/dln-noisy-batch-lr0.0001-seed0"
    done(f"train --norm noisy-batch {SMALL} --steps 4 -o {here}", samples)
    done(MADE_BY[0].replace("--steps 2", "--steps 4").replace("-o study", "-o whole"), samples)
    whole = next((samples / "whole/runs").glob("dln-noisy-batch-*"))  # which has another name
    resumed, unbroken = (tables.read_table(run / "train.parquet").drop(columns="run") for run in (here, whole))
    close(resumed, unbroken, 1e-4)


def test_a_newer_format_is_refused_by_name(samples):
    here = samples / "study/runs/dln-none-lr0.0001-seed0"
    checkpoint, config, table, study = (
        here / "checkpoints/000002.pt", here / "config.json", here / "ics.parquet", samples / "study/study.json"
    )  # fmt: skip
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "format": 2, "new": {"more": 1}}, checkpoint)
    meta = pq.read_table(table)
    said = {**json.loads(meta.schema.metadata[tables.METADATA_KEY]), "format": 2}
    pq.write_table(meta.replace_schema_metadata({tables.METADATA_KEY: json.dumps(said)}), table)

    def refused(line: str, path: Path) -> None:
        ended = run(line, samples)
        assert ended.code == 2
        assert ended.err.count("\n") == 1
        assert f"{path}: " in ended.err
        assert "format 2" in ended.err
        assert "upgrade" in ended.err

    refused(f"smoothness {checkpoint} -o new.parquet", checkpoint)
    refused(f"plot {table} -o new.png", table)
    for path, line in ((study, f"report {study.parent} -o new.html"), (config, f"smoothness {here} -o new.parquet")):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "new": []}))
        refused(line, path)
