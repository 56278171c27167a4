"""Texts: the built-in one, a user's file, and what is refused."""

from __future__ import annotations

import hashlib
import lzma
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, data
from bnsmooth_cli.config import resolve
from bnsmooth_cli.data import texts
from bnsmooth_cli.problems import build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "depth": 1,
    "embedding": 4,
    "heads": 1,
    "context": 4,
    "batch_size": 2,
    "steps": 2,
    "warmup": 1,
    "save_every": 1,
}


@pytest.mark.slow
def test_the_built_in_text_is_what_its_digest_says_and_is_split_without_a_loss():
    text = texts.load("shakespeare")
    whole = "".join(text.characters[number] for number in [*text.train, *text.test]).encode()
    assert len(whole) == 1_115_394
    assert hashlib.sha256(whole).hexdigest() == data.SHIPPED_TEXTS["shakespeare"][1]
    assert text.digest == hashlib.sha256(whole).hexdigest()[:16]
    assert len(text.test) == -(-len(whole) // 10)  # the last tenth
    assert "".join(sorted(set(whole.decode()))) == text.characters


def test_the_package_contains_every_file_that_is_no_module():
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["bnsmooth_cli"]
    package = ROOT / "bnsmooth_cli"
    others = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = [path.relative_to(package).as_posix() for path in others if path.suffix != ".py"]
    assert any(name.endswith(".txt.xz") for name in names)
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("damage", ["changed", "cut", "absent"])
def test_a_damaged_installation_is_reported(tmp_path, monkeypatch, damage):
    whole = (ROOT / "bnsmooth_cli/data/shakespeare.txt.xz").read_bytes()
    broken = {"changed": lzma.compress(b"To be, or not to be"), "cut": whole[:1000]}
    if damage in broken:
        (tmp_path / "shakespeare.txt.xz").write_bytes(broken[damage])
    monkeypatch.setattr(texts.resources, "files", lambda _: tmp_path)
    texts._shipped.cache_clear()
    with pytest.raises(InputError, match=r"--data shakespeare: the installed shakespeare\.txt\.xz.*install again"):
        texts.load("shakespeare")


def test_a_users_text_defines_the_run_by_its_characters(tmp_path):
    path = tmp_path / "my.txt"
    path.write_bytes(("\ufeff" + "naïve café ☕\r\n" * 40).encode())
    run = bns.train("gpt", output=tmp_path / "run", data=str(path), **SETTINGS)
    text = texts.load(str(path))
    assert text.characters == "".join(sorted(set("naïve café ☕\r\n")))  # the byte order mark is none of them
    assert build(run.config).initial.tokens.num_embeddings == len(text.characters)
    assert run.config.settings.data_digest == text.digest
    moved = tmp_path / "elsewhere.txt"
    path.rename(moved)
    with pytest.raises(InputError, match="no such file"):
        bns.load_point(run)
    assert bns.load_point(run, data=str(moved)).step == 2
    moved.write_bytes(("naïve cafe\r\n" * 40).encode())
    with pytest.raises(InputError, match="not the text that the run was trained on"):
        bns.load_point(run, data=str(moved))


REFUSED = {
    "nothing": (b"", "is empty"),
    "a mark only": (b"\xef\xbb\xbf", "is empty"),
    "binary": (b"PK\x03\x04\0\0", "is a binary file; give a text in UTF-8"),
    "latin": ("déjà vu ".encode("latin-1") * 90, r"is no text in UTF-8 \(byte 1\)"),
    "one character": (b"a" * 900, "has one character only, 'a'"),
    "short": (b"ab" * 20, r"too short for --context 4: its last tenth.*has 4 characters; give at least 41 characters"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_text_to_train_on_is_refused_in_one_line(cli, tmp_path, kind):
    content, message = REFUSED[kind]
    (tmp_path / "t.txt").write_bytes(content)
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SETTINGS.items())
    status, out, err = cli(f"train --problem gpt --data t.txt {options} -o run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    with pytest.raises(InputError, match=message):
        build(resolve("gpt", data=str(tmp_path / "t.txt"), **SETTINGS))


def test_the_shortest_text_has_one_window_to_predict(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"ab" * 20 + b"a")
    problem = build(resolve("gpt", data=str(tmp_path / "t.txt"), **SETTINGS))
    assert problem.test_size == 1
    assert [[*map(len, part)] for part in problem.test_batches()] == [[1, 1]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shakespear", "unknown text 'shakespear': did you mean 'shakespeare'"),
        ("shapes", "is a set of images; give shakespeare, or a text file"),
        ("absent.txt", "no such file"),
        ("a/b", "no such file"),
        (".", "is a folder; give a text file"),
        ("/dev/null", "is not a file"),
        ("x" * 5000, "cannot be read|unknown text"),
    ],
)
def test_data_that_are_no_text_are_refused(name, message):
    with pytest.raises(InputError, match=message) as error:
        texts.load(name)
    assert str(error.value).count("\n") == 0


def test_a_text_that_would_take_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_BYTES", 100)
    (tmp_path / "t.txt").write_bytes(b"ab" * 51)
    with pytest.raises(InputError, match="has 102 bytes, at most 100; give a part of it"):
        texts.load(str(tmp_path / "t.txt"))


def test_images_are_not_read_from_a_text():
    with pytest.raises(InputError, match="--data shakespeare: is a text; give one of shapes, "):
        build(resolve("vgg", data="shakespeare"))
