"""What tells runs apart: the settings in the rows of tables, and what differs between them in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from typing import Any, Final

from bnsmooth_cli import optimisers
from bnsmooth_cli.config import KNOWN_LATER, defining, from_dict
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.settings import is_off, same_digest, words

UNKNOWN: Final = "unknown settings"
#: Setting -> the digest of what it names, and the words for an unknown one.
_NAMING: Final = {
    "data": ("data_digest", "unknown images"),
    "optimizer": ("optimizer_digest", "unknown settings"),
}
_DIGITS: Final = 6  # of a part of a digest, in words


def settings_of_runs(runs: object) -> dict[str, str]:
    """The column `settings` by run, from the entry `runs` of a table's provenance.

    Args:
        runs: The configurations by the names of the runs. What is no configuration gives no settings.

    >>> settings_of_runs({"loop": 1})
    {'loop': ''}
    """
    return {name: _text(config) for name, config in runs.items()} if isinstance(runs, dict) else {}


def settings_of_problems(runs: object) -> dict[str, str]:
    """The settings that all runs of a problem share, by problem; those of runs that differ are unknown.

    >>> from bnsmooth_cli.config import resolve
    >>> runs = [resolve("vgg").as_dict(), resolve("vgg", width=1.0).as_dict()]
    >>> settings_of_problems(dict(enumerate(runs)))
    {'vgg': ''}
    """
    texts: dict[str, set[str]] = {}
    for config in runs.values() if isinstance(runs, dict) else ():
        if isinstance(config, dict):
            texts.setdefault(str(config.get("problem")), set()).add(_text(config))
    return {problem: next(iter(found)) if len(found) == 1 else "" for problem, found in texts.items()}


def _text(config: object) -> str:
    try:
        return from_dict(config, "").settings_text
    except InputError:  # of another version
        return ""


def read_settings(problem: str, text: str) -> dict[str, Any]:
    """The values of a column `settings`, with the defaults of those that it leaves out.

    Args:
        problem: The problem of the row.
        text: The text in the column.

    Returns:
        The values by name; none for "", which stands for unknown settings.

    Raises:
        InputError: If the text is no JSON object.

    >>> from bnsmooth_cli.config import resolve
    >>> values = read_settings("vgg", resolve("vgg", width=0.5).settings_text)
    >>> values["width"], values["weight_decay"], read_settings("vgg", "")
    (0.5, 0.0, {})
    """
    if not text:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"the settings {text[:40]!r} of a row are no JSON object; make its table again")
    return {name: f.default for name, f in defining(problem).items() if f.default is not MISSING} | values


def alike(problem: str, texts: Iterable[str]) -> dict[str, str]:
    """For each text, the first of those texts that say the same and know the most.

    Two texts say the same if they differ only in the name of the folder of one set of images, which `data_digest`
    identifies. A text without this digest says the same as the one that has it, if there is no other of this name. A
    digest of the training images alone, as in earlier versions, says the same as the whole one, if there is no other.

    Args:
        problem: The problem of the rows.
        texts: Values of the column `settings`.

    >>> texts = ['{"data": "a", "data_digest": "1"}', '{"data": "b", "data_digest": "1"}', '{"data": "a"}']
    >>> [texts.index(same) for same in alike("vgg", texts).values()]
    [0, 0, 0]
    """
    read = {text: read_settings(problem, text) for text in texts}
    digests = {text: _digest(values, "data_digest") for text, values in read.items()}
    named = {text: _key(values, "data_digest") for text, values in read.items()}
    unnamed = {text: _key(values, "data", "data_digest") for text, values in read.items()}
    same: dict[str, str] = {}
    for text in sorted(read, key=lambda text: _parts(digests[text]), reverse=True):  # those that know most come first
        keys = named if digests[text] is None else unnamed
        fitting = {same[other] for other in same
                   if keys[other] == keys[text] and same_digest(digests[other], digests[text])}  # fmt: skip
        same[text] = fitting.pop() if len(fitting) == 1 else text
    return {text: same[text] for text in read}


def _digest(values: Mapping[str, Any], name: str) -> str | None:
    return None if values.get(name) is None else str(values[name])


def _parts(digest: str | None) -> int:
    return 0 if digest is None else 1 + digest.count(".")


def _key(values: Mapping[str, Any], *left_out: str) -> str:
    return json.dumps({name: value for name, value in values.items() if name not in left_out}, sort_keys=True)


def differing(problem: str, texts: Iterable[str]) -> dict[str, str]:
    """What differs between settings, in words for legends and titles.

    Args:
        problem: The problem of the rows.
        texts: Values of the column `settings`.

    Returns:
        For each text, its values of the settings that differ; "" if all texts say the same. What an optimiser does not
        have is left out, and so is what a run has none of, such as a warm-up, unless nothing else is said of it.

    Raises:
        InputError: If a text is no JSON object.

    >>> from bnsmooth_cli.config import resolve
    >>> texts = [resolve("vgg", width=width, steps=steps).settings_text for width, steps in ((0.25, 3000), (1.0, 300))]
    >>> list(differing("vgg", texts).values())
    ['width 0.25, 3,000 steps', 'width 1, 300 steps']
    >>> texts = [resolve("vgg", **values).settings_text for values in ({}, {"optimizer": "adamw", "warmup": 9})]
    >>> list(differing("vgg", texts).values())
    ['sgd', 'adamw, warm-up of 9 steps']
    """
    same = alike(problem, texts)
    said = {text: _said(problem, text) for text in dict.fromkeys(same.values())}
    for name, (digest, unknown) in _NAMING.items():
        _tell_apart(problem, said, name, digest, unknown)
    names = dict.fromkeys(name for values in said.values() for name in values)
    different = [name for name in names if len({values.get(name) for values in said.values() if values}) > 1]
    described = {}
    for text, values in said.items():
        there, off = _there(problem, text)
        listed = [name for name in different if name in values and name in there]
        described[text] = ", ".join(values[name] for name in [name for name in listed if name not in off] or listed)
    if "" in said and len(said) > 1:
        described[""] = UNKNOWN
    return {text: described[first] for text, first in same.items()}


def _there(problem: str, text: str) -> tuple[set[str], set[str]]:
    """The settings that apply to a run's optimiser, and the settings that are off."""
    values, known = read_settings(problem, text), defining(problem)
    lacked = set(optimisers.lacked(str(values.get("optimizer", ""))))
    return {*values} - lacked, {name for name, f in known.items() if name in values and is_off(f, values[name])}


def _said(problem: str, text: str) -> dict[str, str]:
    """The settings in words, by name."""
    values = read_settings(problem, text)
    known = defining(problem)
    said = {name: words(f, values[name]) for name, f in known.items() if name in values}
    if "batch_size" in values and values["batch_size"] == values.get("samples"):
        said["batch_size"] = "full batch"
    others = (name for name in values if name not in (*known, *KNOWN_LATER))  # of a newer version
    return said | {name: f"{name} {values[name]}" for name in others}


def _tell_apart(problem: str, said: dict[str, dict[str, str]], name: str, digest: str, unknown: str) -> None:
    """Add the digest to a name that other images, or another optimiser of the user's, have too."""
    digests = {text: _digest(read_settings(problem, text), digest) for text in said}
    for values in said.values():
        texts = [text for text in said if said[text].get(name) == values.get(name)]
        if name in values and len({digests[text] for text in texts}) > 1:
            for text in texts:
                said[text][name] += f" ({_short(digests[text]) or unknown})"


def _short(digest: str | None) -> str:
    """The first digits of each part of a digest."""
    return ".".join(part[:_DIGITS] for part in (digest or "").split("."))
