"""Texts as sequences of characters: the built-in one, and a user's file."""

from __future__ import annotations

import functools
import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from bnsmooth_cli.data import NAMES, SHIPPED_TEXTS, TEXTS
from bnsmooth_cli.errors import DamagedError, InputError, unknown

MAX_BYTES: Final = 2**25  # of a text; its characters then take at most 128 MiB, and reading them about 500 MiB
TEST_SHARE: Final = 10  # the last 1/10 of the text is the test set
_CODE_POINTS: Final = 0x110000  # of Unicode


@dataclass(frozen=True)
class Text:
    """A text as the numbers of its characters.

    Attributes:
        train: The numbers of all characters but those of the last tenth.
        test: The numbers of the last tenth.
        characters: The vocabulary: every character that occurs in the text, in the order of Unicode. The number of a
            character is its place there.
        digest: A fingerprint of the whole text.
    """

    train: Int32[Tensor, " train"]
    test: Int32[Tensor, " test"]
    characters: str
    digest: str


def load(data: str) -> Text:
    """Read a text by its name or from a file.

    Args:
        data: A name of `data.TEXTS`, or a text file in UTF-8.

    Raises:
        InputError: For an unknown name, a file that is no text in UTF-8, and a text that is empty, has one character
            only, or is larger than MAX_BYTES.

    >>> text = load("shakespeare")
    >>> len(text.train), len(text.test), len(text.characters)
    (1003854, 111540, 65)
    >>> "".join(text.characters[number] for number in text.train[:13])
    'First Citizen'
    """
    if data in SHIPPED_TEXTS:
        return _shipped(data)
    if data in NAMES:
        raise InputError(f"--data {data}: is a set of images; give {' or '.join(TEXTS)}, or a text file")
    path = Path(data)
    try:
        if path.is_dir():
            raise InputError(f"--data {data}: is a folder; give a text file")
        if not path.exists():
            if path.is_absolute() or "/" in data or "\\" in data or path.suffix:
                raise InputError(f"--data {data}: no such file")
            raise unknown("text", data, (*TEXTS, "FILE.txt"))
        if not path.is_file():
            raise InputError(f"--data {data}: is not a file; give a text file")
        state = path.stat()
        if state.st_size > MAX_BYTES:
            raise InputError(f"--data {data}: has {state.st_size:,} bytes, at most {MAX_BYTES:,}; give a part of it")
        return _of_file(data, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--data {data}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


@functools.lru_cache(maxsize=1)
def _shipped(name: str) -> Text:
    file, digest = SHIPPED_TEXTS[name]
    try:
        content = lzma.decompress(resources.files("bnsmooth_cli.data").joinpath(file).read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DamagedError(f"--data {name}: the installed {file} cannot be read ({error}); install again") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedError(f"--data {name}: the installed {file} is damaged (its digest differs); install again")
    return _finish(content, name)


@functools.lru_cache(maxsize=1)
def _of_file(data: str, size: int, changed: int) -> Text:
    with Path(data).open("rb") as file:
        content = file.read(MAX_BYTES + 1)  # the file may have grown
    if len(content) > MAX_BYTES:
        raise InputError(f"--data {data}: has more than {MAX_BYTES:,} bytes; give a part of it")
    return _finish(content, data)


def _finish(content: bytes, data: str) -> Text:
    if b"\0" in content:
        raise InputError(f"--data {data}: is a binary file; give a text in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--data {data}: is no text in UTF-8 (byte {error.start:,}); convert it to UTF-8") from error
    if not text:
        raise InputError(f"--data {data}: is empty; give a text")
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    occurring = np.flatnonzero(np.bincount(codes, minlength=_CODE_POINTS))
    if len(occurring) < 2:
        raise InputError(f"--data {data}: has one character only, {text[0]!r}; give a text with at least two")
    numbers = np.zeros(_CODE_POINTS, np.int32)
    numbers[occurring] = np.arange(len(occurring), dtype=np.int32)
    ids = torch.from_numpy(numbers[codes])
    cut = len(ids) * (TEST_SHARE - 1) // TEST_SHARE
    return Text(
        train=ids[:cut],
        test=ids[cut:],
        characters="".join(map(chr, occurring)),
        digest=hashlib.sha256(content).hexdigest()[:16],
    )
