"""Malicious or mismatched files from strangers, and places that accept no output."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from attempts import DEFAULT_DLN as DLN
from attempts import KINDS as MEASURED
from attempts import MEASURE, contents, done, run
from broken import image_parquet
from complaints import complaints

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.tensors import load_tensors

pytestmark = pytest.mark.slow

TRAIN = f"train {DLN} --lr 1e-4 --steps 20 --save-every 4"
VGG = "train --problem vgg --width 0.05 --batch-size 8 --steps 1"
KINDS = ("train", *MEASURED)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with two runs, one of them measured."""
    folder = tmp_path_factory.mktemp("measured")
    done(f"{TRAIN} --norm batch -o run", folder)
    done(f"{TRAIN} --norm none -o other", folder)
    for kind in MEASURED:
        done(f"{MEASURE[kind]} run", folder)
    done("smoothness other", folder)
    return folder


@pytest.fixture
def copied(measured, tmp_path):
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(line: str, folder: Path, *said: str) -> None:
    ended = run(line, folder)
    assert (ended.code, ended.err.count("\n"), "--debug" in ended.err) == (2, 1, False), ended.err
    assert all(words in ended.err for words in said), ended.err


def test_an_image_starts_no_program(tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {proof}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for split in ("train", "test"):
        (tmp_path / f"data/{split}/a").mkdir(parents=True)
        (tmp_path / f"data/{split}/a/0.png").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
        )
    refused(f"{VGG} --data data", tmp_path, "0.png")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("put", "line"), [("000008", "smoothness run --force"), ("000020", f"{TRAIN} --norm batch -o run")]
)
def test_a_checkpoint_of_another_step(copied, put, line):
    file = copied / f"run/checkpoints/{put}.pt"
    shutil.copy(copied / "run/checkpoints/000012.pt", file)
    refused(line.replace("20", "30"), copied, f"{put}.pt: is of step 12")


#: Of a dict whose key is a tuple of tuples of tuples ...: 2^40 of them to hash, in a few bytes.
_PAIRS = b"q\x00" + b"h\x00h\x00\x86q\x00" * 40
ENDLESS = {
    "key": b"\x80\x02})" + _PAIRS + b"K\x01s.",
    "keys": b"\x80\x02}(" + b")" + _PAIRS + b"K\x01u.",
    "set": b"\x80\x04\x8f()" + _PAIRS + b"\x90.",
    "ordered": b"\x80\x02ccollections\nOrderedDict\n](" + b")" + _PAIRS + b"K\x01\x86e\x85R.",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_pickles_that_would_take_for_ever_are_refused(tmp_path, name):
    stream = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(tmp_path / "000001.pt", "w") as target:
        for item in source.infolist():
            target.writestr(item, ENDLESS[name] if item.filename.endswith("data.pkl") else source.read(item))
    with pytest.raises(InputError, match=r"000001\.pt"):
        load_tensors(tmp_path / "000001.pt")


def test_a_link_in_the_place_of_a_lock_is_not_written_through(copied):
    (copied / "precious").write_text("mine")
    (copied / "run/.smoothness.lock").unlink(missing_ok=True)
    (copied / "run/.smoothness.lock").symlink_to("../precious")
    run("smoothness run --force", copied)
    assert (copied / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("run/config.json", "ics run"),
        ("run/checkpoints/000020.pt", "ics run --force"),
        ("run/train.parquet", "plot run/train.parquet -o f.png"),
        ("study.toml", "compare --study study.toml --dry-run"),
        ("data/train/a/0.png", f"{VGG} --data data"),
    ],
)
def test_a_pipe_is_not_waited_for(copied, path, line):
    if "data" in path:
        (copied / "data/test/a").mkdir(parents=True)
        (copied / "data/test/a/0.png").touch()
    (copied / path).unlink(missing_ok=True)
    (copied / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(copied / path)
    refused(line, copied, path, "is not a file")


@pytest.mark.parametrize("kind", ["train", "smoothness"])
def test_another_runs_table(copied, kind):
    shutil.copy(copied / f"other/{kind}.parquet", copied / f"run/{kind}.parquet")
    refused("compare run other", copied, f"run/{kind}.parquet: is of another run (norm none, now batch)")


def test_a_configuration_that_contradicts_itself(copied):
    config = copied / "run/config.json"
    config.write_text(config.read_text().replace('"norm": "batch"', '"norm": "batch", "norm": "l1"'))
    refused("compare run other", copied, "run/config.json: damaged or edited by hand")
    config.write_text(re.sub(r',\s*"crc": \d+', "", config.read_text()))
    refused("compare run other", copied, "run/train.parquet: is of another run")


def test_names_are_printed_without_markup_or_control_characters(copied):
    for folder in ("a[/b]", "[red]x:smile:", "n\x1b[31mewline\n"):
        said = done(f"plot run/train.parquet -o '{folder}/c.png'", copied).out
        assert (copied / folder / "c.png").is_file()
        assert said == folder.replace("\x1b", "\\x1b").replace("\n", "\\n") + "/c.png\n"
    done(f"compare --norms none {DLN} --steps 4 -o 'moved [/x]'", copied)


@pytest.mark.parametrize(
    ("redirected", "code"), [(">&-", 0), ("2>&-", 0), ("<&-", 0), (">/dev/full", 2), ("| true", 0)]
)
def test_output_streams_that_are_closed_or_full(copied, redirected, code):
    line = f"{sys.executable} -m bnsmooth_cli plot run/train.parquet -o f.png {redirected}"
    ended = subprocess.run(["sh", "-c", line], cwd=copied, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert complaints(ended.stderr).count("\n") == (1 if code else 0), ended.stderr
    assert "--debug" not in ended.stderr
    assert (copied / "f.png").is_file()


def without_privileges(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that file permissions apply to, even if root runs the tests."""
    words = [sys.executable, "-m", "bnsmooth_cli", *line.split()]
    if os.geteuid() == 0:
        words = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search", *words]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may do everything")
@pytest.mark.parametrize(
    "line",
    [
        "theory locked/run", "plot locked/run/train.parquet -o a.png", "compare locked/run", f"{TRAIN} -o locked/new",
        f"compare --norms none {DLN} -o locked/study --dry-run", "report locked/study",
        "theory run -o locked/t.parquet", f"{VGG} --data ./locked/data", "smoothness open",
    ],
)  # fmt: skip
def test_folders_that_may_not_be_entered(copied, line):
    for path in ("locked", "open/checkpoints"):
        shutil.copytree(
            copied / "run", copied / path.split("/")[0] / ("run" if path == "locked" else ""), dirs_exist_ok=True
        )
        (copied / path).chmod(0)
    ended = without_privileges(line, copied)
    for path in ("locked", "open/checkpoints"):
        (copied / path).chmod(0o755)
    assert (ended.returncode, complaints(ended.stderr).count("\n")) == (2, 1), ended.stderr
    assert "--debug" not in ended.stderr
    assert "locked" in ended.stderr or "open/checkpoints" in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may do everything")
@pytest.mark.parametrize("mode", [0o555, 0])
def test_a_cache_that_cannot_be_used_costs_time_alone(tmp_path, monkeypatch, mode):
    image_parquet(tmp_path)
    cache = tmp_path / "cache/bnsmooth/images"
    cache.mkdir(parents=True)
    cache.chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = without_privileges(f"{VGG} --data data -o run", tmp_path)
    cache.chmod(0o755)
    assert (ended.returncode, complaints(ended.stderr)) == (0, "")


def test_names_that_are_too_long(copied):
    name = "n" * 300
    for line in (
        f"{TRAIN} -o {name}",
        f"plot {name} -o a.png",
        f"plot run/train.parquet -o {name}.png",
        f"report {name}",
    ):
        refused(line, copied, name)
    done(f"smoothness run --at 4 -o {'m' * 240}.parquet", copied)  # fits, though its temporary file's name is longer
    (copied / "loop").symlink_to("loop")
    refused(f"compare --norms none {DLN} -o loop", copied, "loop")


def test_a_temporary_file_of_somebody_elses_stays(copied):
    (copied / ".plot.backup.tmp.png").touch()
    done("plot run/train.parquet -o plot.png", copied)
    assert (copied / ".plot.backup.tmp.png").exists()


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_values_beyond_any_axis(copied, kind, value):
    table = tables.read_table(copied / f"run/{kind}.parquet")
    provenance = {key: said for key, said in table.attrs["bnsmooth"].items() if key not in ("kind", "format")}
    signs = np.where(np.arange(len(table)) % 2, 1.0, -1.0)
    for alternating in (1.0, signs):
        numbers = {name: value * alternating for name in table.select_dtypes("float") if name != "lr"}
        tables.write_table(copied / "t.parquet", kind, [table.assign(**numbers)], provenance)
        ended = run("plot t.parquet -o f.png --force", copied)
        assert (ended.code, ended.err) == (0, "")
    many = table.assign(problem=[f"p{i}" for i in range(len(table))])
    tables.write_table(copied / "t.parquet", kind, [many], provenance)
    if len(table) > 12:
        refused("plot t.parquet -o f.png", copied, "t.parquet: a figure shows at most 12")


def test_one_run_of_a_newer_version_stops_no_study(tmp_path):
    study = f"compare --norms none,batch {DLN} --steps 4 -o study"
    done(study, tmp_path)
    (config,) = tmp_path.glob("study/runs/dln-batch-*/config.json")
    config.write_text(config.read_text().replace('"format": 1', '"format": 2'))
    ended = run(study, tmp_path)
    assert (ended.code, "upgrade it" in ended.err, "the other runs continue" in ended.err) == (1, True, True), ended.err


def test_a_table_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "study/compare.parquet").mkdir(parents=True)
    refused(f"compare --norms none {DLN} --steps 4 -o study", tmp_path, "compare.parquet: is a folder")
    assert [*contents(tmp_path)] == []


def test_tables_of_other_kinds_beside_those_of_ics(copied):
    refused("plot run/ics.parquet run/smoothness.parquet -o f.png", copied, "smoothness.parquet: of kind smoothness")
