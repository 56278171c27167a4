"""Seeded ways to break a file: its bytes, whatever they are, and its content, for each kind of file."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

#: The bytes of a valid file and a random generator to the bytes of a broken file.
Mutation = Callable[[bytes, random.Random], bytes]


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice((0, 1, chance.randrange(len(data)), len(data) - 1))]


def swap_pieces(data: bytes, chance: random.Random) -> bytes:
    a, b, c, d = sorted(chance.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def overwrite(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    length = min(chance.choice((1, 4, 8, 64, 4096)), len(data) - at)
    piece = chance.choice((b"\0" * length, b"\xff" * length, chance.randbytes(length)))
    return data[:at] + piece + data[at + length :]


def insert(data: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(data)), chance.choice((1, 7, 1000))
    piece = chance.choice((chance.randbytes(length), data[at : at + length], b"\0" * length))
    return data[:at] + piece + data[at:]


def _other(data: bytes, chance: random.Random) -> bytes:
    """Another kind of file."""
    tensors, table = io.BytesIO(), io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, tensors)
    pq.write_table(pa.table({"a": [1, 2]}), table)
    return chance.choice(
        (
            b"", b"\n", b"null", b"{}", b"[]", b'{"format": 1}', b"PK\x03\x04", b"PAR1", b"hello\n" * 100, b"\0" * 1000,
            b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", pickle.dumps({"a": 1}), pickle.dumps([1] * 100),
            tensors.getvalue(), table.getvalue(), b"[" * 100_000, b'{"a":' * 100_000, "\ud800".encode("utf-16-le",
            "surrogatepass"),
        )
    )  # fmt: skip


BYTES: tuple[Mutation, ...] = (flip_bits, truncate, swap_pieces, overwrite, insert, _other)

#: Values that do not belong in a file, or not in that place.
STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3.5, 2**31, 2**63, 2**70, 10**18, 10**400, 1e-300, 1e308, float("nan"), float("inf"),
    -float("inf"), "",
    "x", "none", "batch", "lp:3", "lp:1e9", "l" * 100_000, "../../escape", "/etc/passwd", "a\0b", "\ud800", "[bold]",
    "$\\frac{1}{$",
    [], [1], [[]], {}, {"a": 1}, [1] * 1000, "cifar10x", "shapes",
)  # fmt: skip


def _twist(content: Any, chance: random.Random, strange: tuple[Any, ...] = STRANGE) -> Any:
    """A copy of nested dicts and lists with one value changed, removed, added or multiplied."""
    content = copy.deepcopy(content)
    place, key = content, None
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = chance.choice(keys)
        if not (isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.85):
            break
        place = place[key]
    way = chance.random()
    if key is None or (way < 0.1 and isinstance(place, dict)):
        if isinstance(place, dict):
            place[chance.choice(("more", "steps", "", "__class__"))] = chance.choice(strange)
        else:
            place.append(chance.choice(strange))
    elif way < 0.2:
        del place[key]
    elif way < 0.5 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
        place[key] = place[key] * chance.choice((-1, 0, 2, 10, 1000, 10**6, 10**9, 10**15))
    else:
        place[key] = chance.choice(strange)
    return content


def twist_json(data: bytes, chance: random.Random) -> bytes:
    """JSON with another value. A checksum mostly fits the new content: a stranger can make it so."""
    content = _twist(json.loads(data), chance)
    if "crc" in content and chance.random() < 0.8:
        del content["crc"]
        content["crc"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    return json.dumps(content).encode()


def _strange_tensors() -> tuple[Any, ...]:
    huge = torch.zeros(1).expand(2**40)
    return (
        huge, huge.view(2**20, 2**20), torch.zeros(0), torch.zeros(()), torch.full((4, 4), torch.nan), torch.zeros(4,
        4).to_sparse(),
        torch.zeros(4, 4, dtype=torch.complex64), torch.zeros(4, 4, dtype=torch.int8), torch.full((4, 4), torch.inf),
        torch.empty(4, 4, device="meta"),
        torch.nn.Parameter(torch.zeros(4, 4)), torch.zeros(4, 4).bool(), torch.zeros(8, 8)[::2, ::2], torch.ones(4),
        torch.ones(4, 5),
    )  # fmt: skip


def twist_checkpoint(data: bytes, chance: random.Random) -> bytes:
    content = torch.load(io.BytesIO(data), weights_only=True)
    stream = io.BytesIO()
    torch.save(_twist(content, chance, (*STRANGE, *_strange_tensors())), stream)
    return stream.getvalue()


def bomb_checkpoint(data: bytes, chance: random.Random) -> bytes:
    """A checkpoint whose archive is compressed and unpacks to far more than its size."""
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            content = source.read(item)
            if "/data/" in item.filename and chance.random() < 0.3:
                content = bytes(chance.choice((2**20, 2**26)))
            target.writestr(item.filename, content)
    return stream.getvalue()


def twist_table(data: bytes, chance: random.Random) -> bytes:
    """A Parquet table with other metadata, columns, types, values or rows."""
    table = pq.read_table(io.BytesIO(data))
    way = chance.randrange(8)
    metadata = dict(table.schema.metadata or {})
    at = chance.randrange(table.num_columns)
    field, column = table.schema.field(at), table.column(at)
    if way == 0 and metadata:
        key = chance.choice(list(metadata))
        metadata[key] = chance.choice((twist_json, flip_bits, lambda *_: b"\xff\xfe", lambda *_: b"[" * 9999))(
            metadata[key], chance
        )
        table = table.replace_schema_metadata(metadata)
    elif way == 1:
        table = table.drop_columns([field.name])
    elif way == 2:
        strange = chance.choice(
            (pa.nulls(len(table)), pa.array(["x"] * len(table)), pa.array([b"\xff"] * len(table)),
            pa.array([1] * len(table)),
             pa.array([[1.0, None]] * len(table)), pa.array([{"a": 1}] * len(table)), pa.array([True] * len(table)),
             pa.array([np.nan] * len(table)), pa.array([np.inf] * len(table)), pa.array([-(2**63)] * len(table)),
             pa.array([1e308] * len(table)), pa.array([0] * len(table), pa.timestamp("ns")),
             pa.array([""] * len(table)).dictionary_encode())
        )  # fmt: skip
        table = table.set_column(at, field.name, strange)
    elif way == 3:
        table = table.slice(0, chance.choice((0, 1)))
    elif way == 4 and len(table):
        table = table.take(pa.array(chance.choices(range(len(table)), k=2 * len(table))))
    elif way == 5:
        table = table.rename_columns(
            [chance.choice((name, "other", table.column_names[0])) for name in table.column_names]
        )
    elif way == 6 and len(table):  # repeated values take no space in the file
        table = table.take(pa.array([0] * 64))
        table = pa.concat_tables([table] * 2**15)
    else:
        values = column.to_pylist()
        for _ in range(1 + len(values) // 4):
            if values:
                values[chance.randrange(len(values))] = chance.choice(
                    (None, 0, -1, 10**15, 1e300, np.nan, np.inf, "none", "x" * 5000)
                )
        try:
            table = table.set_column(at, field, pa.array(values, field.type))
        except (pa.ArrowException, TypeError, OverflowError):
            table = table.slice(0, 2)
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def twist_png(data: bytes, chance: random.Random) -> bytes:
    """A PNG with one chunk changed and right checksums."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    kind, content = chunks[0]
    header = list(struct.unpack(">IIBBBBB", content))
    place = chance.randrange(len(header))
    header[place] = (
        chance.choice((0, 1, 3, 16, 255))
        if place > 1
        else chance.choice((0, 1, 33, 5000, 60_000, 2**31 - 1, 2**32 - 1))
    )
    if chance.random() < 0.7:
        chunks[0] = kind, struct.pack(">IIBBBBB", *header)
    else:
        chunks.insert(1, (chance.choice((b"zTXt", b"iTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"gAMA", b"eXIf")),
        chance.choice(
            (b"", b"a\0\0" + zlib.compress(bytes(2**26)), chance.randbytes(50)))))  # fmt: skip
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + body


def twist_jpeg(data: bytes, chance: random.Random) -> bytes:
    """A JPEG that declares another size or number of components."""
    at = next(i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    size = struct.pack(">HH", *(chance.choice((0, 1, 32, 7000, 65_535)) for _ in range(2)))
    found = bytearray(data)
    found[at + 5 : at + 9] = size
    if chance.random() < 0.3:
        found[at + 9] = chance.randrange(256)
    return bytes(found)


def twist_toml(data: bytes, chance: random.Random) -> bytes:
    lines = data.decode().splitlines()
    at = chance.randrange(len(lines))
    key = lines[at].split(" =")[0]
    value = chance.choice(
        (
            "-1",
            "0",
            "1e400",
            "nan",
            '""',
            '"x"',
            "[]",
            "[[]]",
            "{}",
            "true",
            "9" * 400,
            "1979-05-27",
            '["none"]',
            '"0-99999999"',
            "'''",
        )
    )
    lines[at] = f"{key} = {value}"
    return "\n".join(lines).encode()


def payloads(proof: Path) -> list[bytes]:
    """Pickles that would create the file `proof` if they were executed: by globals, by reductions, by state."""

    def calling(function: str, argument: str, protocol: bytes = b"\x80\x02") -> bytes:
        module, name = function.rsplit(".", 1)
        return (
            protocol
            + f"c{module}\n{name}\n".encode()
            + b"X"
            + struct.pack("<I", len(argument))
            + argument.encode()
            + b"\x85R."
        )

    touch = f"touch {proof}"
    code = f"open({str(proof)!r}, 'w').close()"
    word = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    return [
        calling("os.system", touch),
        calling("posix.system", touch),
        calling("subprocess.getoutput", touch),
        calling("builtins.eval", code),
        calling("builtins.exec", code),
        calling("__builtin__.eval", code),
        calling("os.mkdir", str(proof)),
        calling("torch.hub._get_torch_home", ""),
        calling("numpy.core.multiarray._reconstruct.__globals__", code),
        calling("numpy.load", str(proof)),
        calling("pathlib.Path.touch", str(proof)),
        b"\x80\x02c__builtin__\ngetattr\ncos\nX\x06\0\0\0system\x86R" + word + b"\x85R.",
        b"(S'" + touch.encode() + b"'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\n" + b"S'" + touch.encode() + b"'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + word + b"\x85R.",  # STACK_GLOBAL
        b"\x80\x04cos\nsystem\n" + word + b"\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x02cnumpy\ndtype\n)\x81}X\x0c\0\0\0__setstate__cos\nsystem\nsb.",  # BUILD
        b"\x80\x02cnumpy\ndtype\n)\x81N}X\x09\0\0\0__class__cos\nsystem\ns\x86b.",  # BUILD of slots
        b"\x82\x01.",  # EXT1
        b"P" + touch.encode() + b"\n.",  # PERSID
        b"\x80\x02c_codecs\nencode\n" + word + b"X\x03\0\0\0zip\x86R.",
    ]
