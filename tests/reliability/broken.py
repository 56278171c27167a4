"""Trials of broken files: each kind of file that a command reads, damaged in many ways."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from attempts import DLN, KINDS, MEASURE, OTHER, RECIPE, STUDY, TRAINED, VGG, Attempt, Try, contents, done, judge, run
from PIL import Image

from bnsmooth_cli.data.shapes import shapes


@dataclass(frozen=True)
class Broken:
    """A trial: each try breaks one of the files in one way and runs one of the commands.

    Attributes:
        files: The files that are broken, relative to the folder.
        commands: The commands that read them; FILE stands for the broken file.
        ways: The ways to break them, besides `mutations.BYTES`.
        before: Commands that prepare the folder.
        named: What the message has to name; NAME stands for the broken file's name.
        make: Prepares the folder, before the commands.
        summed: Whether the files have checksums, so that no damage to their bytes may pass.
    """

    files: tuple[str, ...]
    commands: tuple[str, ...]
    ways: tuple[mutations.Mutation, ...]
    before: tuple[str, ...] = ()
    named: str = "NAME"
    make: Callable[[Path], None] = lambda folder: None
    summed: bool = False

    def prepare(self, folder: Path) -> Attempt:
        base = folder / "base"
        base.mkdir(parents=True)
        self.make(base)
        for line in self.before:
            done(line, base)
        usual = functools.cache(lambda file, line: self._usual(folder, base, file, line))
        ways = (*mutations.BYTES, *self.ways * max(1, 4 // max(1, len(self.ways))))

        def attempt(number: int) -> Try:
            chance = random.Random(number)
            file, line, way = chance.choice(self.files), chance.choice(self.commands), chance.choice(ways)
            peak, expected = usual(file, line)
            here = folder / "here"  # the same folder for each try: some files contain its name
            shutil.copytree(base, here)
            data = (here / file).read_bytes()
            broken = way(data, chance)
            (here / file).write_bytes(broken)
            line_here = line.replace("FILE", file)
            ended = run(line_here, here, seconds=10)
            more = ended.peak - peak
            fault = judge(ended, self.named.replace("NAME", Path(file).name), more)
            came_to = "refused"
            if ended.code == 0:
                found = contents(here)
                same = all(found.get(name) == data for name, data in expected.items() if name != file)
                came_to = "same result" if same else "other result"
                if not same and way in mutations.BYTES and self.summed:
                    fault = fault or "damage taken for a result"
            if fault:
                here.rename(folder / f"broken-{number}")
            else:
                shutil.rmtree(here)
            return Try(f"{way.__name__} of {file}; {line_here}", came_to, fault, ended.seconds, more)

        return attempt

    def _usual(self, folder: Path, base: Path, file: str, line: str) -> tuple[int, dict[str, bytes]]:
        """The memory that the command takes with the valid file, and the files that it leaves."""
        shutil.copytree(base, folder / "here")
        peak = done(line.replace("FILE", file), folder / "here").peak
        found = contents(folder / "here")
        shutil.rmtree(folder / "here")
        return peak, found


def _few_images() -> Iterator[tuple[str, int, int, np.ndarray[Any, Any]]]:
    """(split, number, label, pixels) of a small data set."""
    images, _, _, _ = shapes()
    for split, first in (("train", 0), ("test", 20)):
        for i in range(first, first + 20):
            yield split, i, i % 3, images[i].transpose(1, 2, 0)


def class_folders(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for split, i, label, pixels in _few_images():
            path = folder / "data" / split / f"class{label}" / f"{i:02d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

    return make


def sixteen_bits(folder: Path) -> None:
    """Grey pictures of 16 bits with a transparent level."""
    class_folders("png")(folder)
    for path in (folder / "data").rglob("*.png"):
        levels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
        Image.fromarray(levels).save(path, transparency=int(levels[0, 0]))


def mnist(folder: Path) -> None:
    """MNIST's four files, one of them not gzipped."""
    random, raw = np.random.default_rng(0), folder / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (
            ("images-idx3", random.integers(0, 256, (20, 28, 28))),
            ("labels-idx1", np.arange(20) % 3),
        ):
            sizes = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape)
            body = sizes + array.astype(np.uint8).tobytes()
            plain = name.startswith("labels") and part == "train"
            (raw / f"{part}-{name}-ubyte{'' if plain else '.gz'}").write_bytes(body if plain else gzip.compress(body))


def image_parquet(folder: Path) -> None:
    rows: dict[str, list[Any]] = {"train": [], "test": []}
    for split, _, label, pixels in _few_images():
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        rows[split].append({"img": {"bytes": stream.getvalue(), "path": None}, "label": label})
    (folder / "data").mkdir()
    for split, its in rows.items():
        names = ["a", "b", "c"] if split == "train" else ["c", "b", "a"]
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = pa.Table.from_pylist(its).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def state_dict(folder: Path) -> None:
    """A state dict as other programs save it, in three formats."""
    done(TRAINED, folder)
    state = torch.load(folder / "run/checkpoints/000020.pt", weights_only=True)["model"]
    torch.save(state, folder / "model.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "model.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "model.safetensors")


_STUDY_FILE = b"""norms = ["none", "batch"]
seeds = "0-1"
lrs = [1e-4]
steps = 2
save-every = 1
problem = "dln"
depth = 2
dimension = 3
samples = 9
measure = ["ics"]
threads = 1
at = "0,1"
momentum = 0.5
"""
_MEASURED = (TRAINED, *(f"{line} run" for line in MEASURE.values()))
_LEARN = f"train {VGG} --norm batch --steps 1 --eval-every 1 --data data -o new"
BROKEN: dict[str, Broken] = {
    "checkpoint": Broken(
        before=(TRAINED,),
        files=("run/checkpoints/000008.pt",),
        commands=("landscape FILE -o t.parquet", "theory FILE -o t.parquet", "smoothness run --at 9 -o t.parquet"),
        ways=(mutations.twist_checkpoint, mutations.twist_checkpoint, mutations.bomb_checkpoint),
        summed=True,
    ),
    "checkpoint of AdamW": Broken(
        before=(f"train {RECIPE} --steps 20 --save-every 4 -o run",),
        files=("run/checkpoints/000008.pt",),
        commands=("ics FILE -o t.parquet", "smoothness run --at 9 -o t.parquet"),
        ways=(mutations.twist_checkpoint, mutations.twist_checkpoint, mutations.bomb_checkpoint),
        summed=True,
    ),
    "state dict": Broken(  # a table records its checksum, so other bytes make another table
        make=state_dict,
        files=("model.pt",),
        commands=tuple(
            f"{line} --weights FILE {DLN} --norm batch -o t.parquet"
            for line in ("landscape", "ics", "surface --points 3")
        ),
        ways=(mutations.twist_checkpoint, mutations.twist_checkpoint, mutations.bomb_checkpoint),
    ),
    "state dict in another format": Broken(
        make=state_dict,
        files=("model.pth", "model.safetensors"),
        commands=(f"landscape --weights FILE {DLN} --norm batch -o t.parquet",),
        ways=(),
    ),
    "last checkpoint of a run": Broken(
        before=(TRAINED.replace("--steps 20", "--steps 8"),),
        files=("run/checkpoints/000008.pt",),
        commands=(TRAINED,),
        ways=(mutations.twist_checkpoint,),
        summed=True,
    ),
    "config.json": Broken(
        before=(*_MEASURED, OTHER),
        files=("run/config.json",),
        commands=("ics run -o t.parquet", "compare run other -o t.parquet", TRAINED),
        ways=(mutations.twist_json,),
        named="run",  # the message is about the run of another configuration
        summed=True,
    ),
    "table": Broken(
        before=(*_MEASURED, "compare run"),
        files=(*(f"run/{kind}.parquet" for kind in ("train", *MEASURE)), "compare.parquet"),
        commands=("plot FILE -o figure.png", "show FILE"),
        ways=(mutations.twist_table,),
        summed=True,
    ),
    "table as CSV": Broken(
        before=(TRAINED, "ics run"),
        files=("run/train.parquet", "run/ics.parquet"),
        commands=("show FILE --csv t.csv",),
        ways=(),  # twist_table makes millions of rows, which take longer than a try may
        summed=True,
    ),
    "table that is compared": Broken(
        before=(*_MEASURED, OTHER),
        files=tuple(f"run/{kind}.parquet" for kind in ("train", *KINDS)),
        commands=("compare run other -o t.parquet",),
        ways=(mutations.twist_table,),
        summed=True,
    ),
    "table of a report": Broken(
        before=(STUDY,),
        files=(
            *(f"study/compare{part}.parquet" for part in ("", ".summary", ".claims")),
            "study/runs/dln-batch-lr0.0001-depth4-dim4-samples30-steps12-seed0/smoothness.parquet",
        ),
        commands=("report study -o r.md",),
        ways=(mutations.twist_table,),
        summed=True,
    ),
    "study.json": Broken(
        before=(STUDY,),
        files=("study/study.json",),
        commands=("report study -o r.md", STUDY),
        ways=(mutations.twist_json,),
        summed=True,
    ),
    "study file": Broken(
        make=lambda folder: (folder / "study.toml").write_bytes(_STUDY_FILE) and None,
        files=("study.toml",),
        commands=("compare --study study.toml --dry-run",),
        ways=(mutations.twist_toml,),
    ),
    "image parquet": Broken(
        make=image_parquet,
        files=("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        commands=(_LEARN,),
        ways=(mutations.twist_table,),
        named="data",  # labels are checked over the whole set
    ),
    "MNIST": Broken(
        make=mnist,
        files=tuple(
            f"data/MNIST/raw/{name}"
            for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz")
        ),
        commands=(_LEARN,),
        ways=(),
        named="data",  # labels are checked over the whole set
    ),
    "PNG of 16 bits": Broken(
        make=sixteen_bits,
        files=("data/train/class1/01.png", "data/test/class0/21.png"),
        commands=(_LEARN,),
        ways=(mutations.twist_png,),
    ),
    "PNG": Broken(
        make=class_folders("png"),
        files=("data/train/class1/01.png", "data/test/class0/21.png"),
        commands=(_LEARN,),
        ways=(mutations.twist_png,),
    ),
    "JPEG": Broken(
        make=class_folders("jpg"),
        files=("data/train/class1/01.jpg", "data/test/class0/21.jpg"),
        commands=(_LEARN,),
        ways=(mutations.twist_jpeg,),
    ),
}
