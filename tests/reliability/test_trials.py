"""A few tries of each trial of `make torture`; and that no file is ever executed."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import pickletools
import random
import zipfile
from collections import Counter
from pathlib import Path

import mutations
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import SCHEMAS
from trials import TRIALS

import bnsmooth_cli as bns
from bnsmooth_cli.data import images
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run, read_checkpoint
from bnsmooth_cli.storage.weights import read_weights

TRIES = {"kill": 2, "told": 2, "study": 1, "broken": 6, "options": 4, "networks": 15, "long": 1}
#: Trials that take minutes; `make torture` runs them.
MINUTES = [
    name
    for name in TRIALS
    if name.startswith("study: ") or (name.startswith("long: ") and name.endswith(", vgg") and "train" not in name)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRIALS if name not in MINUTES])
def test_no_attempt_breaks_a_command(name, tmp_path):
    attempt = TRIALS[name](tmp_path / "trial")
    tries = [attempt(number) for number in range(TRIES[name.split(":")[0]])]
    assert [one for one in tries if one.fault] == []


def in_checkpoint(payload: bytes, legacy: int | None) -> bytes:
    """A file with the payload in place of a pickle: the archive's, or one of the five of torch's legacy format."""
    valid, stream = io.BytesIO(), io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, valid, _use_new_zipfile_serialization=legacy is None)
    if legacy is not None:
        parts = []
        valid.seek(0)
        for _ in range(5):  # magic number, version, system, dict, names of storages
            start = valid.tell()
            list(pickletools.genops(valid))
            parts.append(valid.getvalue()[start : valid.tell()])
        parts[legacy] = payload
        return b"".join(parts) + valid.read()
    with zipfile.ZipFile(valid) as source, zipfile.ZipFile(stream, "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, payload if item.filename.endswith("data.pkl") else source.read(item))
    return stream.getvalue()


@pytest.mark.parametrize("legacy", [None, *range(5)])
def test_no_pickle_in_a_checkpoint_is_executed(tmp_path, legacy):
    proof = tmp_path / "proof"
    for payload in mutations.payloads(proof):
        (tmp_path / "000001.pt").write_bytes(in_checkpoint(payload, legacy))
        for read in (read_checkpoint, lambda path: read_weights(path, {"weights": torch.zeros(3)})):
            with pytest.raises(InputError, match=r"000001\.pt"):
                read(tmp_path / "000001.pt")
            assert not proof.exists(), payload


def test_no_pickle_in_cifars_files_is_executed(tmp_path):
    proof = tmp_path / "proof"
    for payload in mutations.payloads(proof):
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (tmp_path / name).write_bytes(payload)
        images._of_folder.cache_clear()
        with pytest.raises(InputError, match="data_batch_1"):
            images.load(str(tmp_path))
        assert not proof.exists(), payload


def test_the_payloads_execute_code_when_they_are_unpickled(tmp_path):
    proof, executed = tmp_path / "proof", 0
    for payload in mutations.payloads(proof):
        with contextlib.suppress(Exception):  # some need modules that are not installed
            pickle.loads(payload)
        if proof.exists():
            executed += 1
            proof.rmdir() if proof.is_dir() else proof.unlink()
    assert executed >= 10


def test_no_pickle_in_a_table_is_executed(tmp_path):
    """Arrow once unpickled a type that a file's schema named."""
    proof = tmp_path / "proof"
    fields = [
        pa.field(name, pa.float64(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type",
                                               b"ARROW:extension:metadata": payload})
        for name, payload in zip(SCHEMAS["train"], mutations.payloads(proof), strict=False)
    ]  # fmt: skip
    schema = pa.schema(fields, metadata={tables.METADATA_KEY: b'{"kind": "train", "format": 1}'})
    pq.write_table(pa.Table.from_arrays([pa.array([1.0])] * len(fields), schema=schema), tmp_path / "t.parquet")
    tables.read_provenance(tmp_path / "t.parquet", "train")
    tables.read_table(tmp_path / "t.parquet", "train")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["config.json", "study.json"])
@pytest.mark.slow
def test_no_flipped_bit_of_a_json_file_changes_what_it_says(tmp_path, name):
    study = bns.study(
        "none", problem="dln", depth=2, dimension=3, samples=9, lrs=[1e-4], steps=2, output=tmp_path / "s"
    )
    (run,) = study.runs()
    read = {"config.json": lambda: open_run(run.path), "study.json": study.read}[name]
    path, usual, came_to = (run.path if name == "config.json" else study.path) / name, read(), Counter()
    data = path.read_bytes()
    for at in range(8 * len(data)):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        path.write_bytes(broken)
        try:
            assert read() == usual, bytes(broken[max(0, at // 8 - 20) : at // 8 + 20])
            came_to["the same"] += 1
        except InputError as error:
            came_to["refused" if str(path) in str(error) else f"no name in {error}"] += 1
    assert came_to.keys() <= {"the same", "refused"}
    assert came_to["the same"] < 20 < came_to["refused"]  # the same: E for e in a number


@pytest.mark.parametrize("name", ["config.json", "study.json"])
def test_an_edited_json_file_is_refused_and_accepted_without_its_checksum(tmp_path, name):
    folder = tmp_path / "s"
    run = bns.study("none", problem="dln", depth=2, dimension=3, samples=9, lrs=[1e-4], steps=2, output=folder).runs()[
        0
    ]
    path = (run.path if name == "config.json" else folder) / name
    read = (lambda: open_run(run.path).config) if name == "config.json" else (lambda: bns.Study(folder).read())
    content, before = json.loads(path.read_text()), read()
    path.write_text(json.dumps(content))  # the same in another layout
    assert read() == before
    content["config" if name == "config.json" else "settings"]["depth"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=rf'{name}: damaged or edited by hand, .* take the entry "crc" out'):
        read()
    del content["crc"]
    path.write_text(json.dumps(content))
    assert read() != before
    for crc in (0, -1, "x", [], 1.5, True, 10**400):
        path.write_text(json.dumps({**content, "crc": crc}))
        with pytest.raises(DamagedError, match="edited by hand"):
            read()


@pytest.mark.slow
def test_no_bit_of_a_tables_footer_ends_the_process(tmp_path):
    """`RowGroupMetaData.column` of pyarrow 26 aborts it for some of them."""
    (sample,) = (Path(__file__).parent / "samples/format-1/vgg").glob("train.parquet")
    data, table = sample.read_bytes(), tmp_path / "t.parquet"
    footer, chance = len(data) - 8 - int.from_bytes(data[-8:-4], "little"), random.Random(0)
    came_to: Counter[str] = Counter()
    for at in range(footer, len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << chance.randrange(8)
        table.write_bytes(broken)
        try:
            tables.read_table(table, "train")
            came_to["read"] += 1
        except InputError as error:
            came_to["refused" if str(table) in str(error) else f"no name in {error}"] += 1
    assert came_to.keys() == {"read", "refused"}
