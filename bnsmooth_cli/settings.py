"""What a setting is: its help, the values that it accepts, and how run names and legends show it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import PurePath
from typing import Any, Final

from bnsmooth_cli.errors import InputError

_MAX_WORD: Final = 30  # characters of a text in a legend


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting accepts; `text` describes them and `high` is their upper end."""

    text: str
    high: float
    accepts: Callable[[Any], bool]


def whole(high: int, low: int = 1) -> Bounds:
    """The whole numbers from `low` to `high`.

    >>> whole(10).text, whole(10).accepts(0)
    ('a whole number from 1 to 10', False)
    """
    text = f"a whole number from {low} to {'2^63 - 1' if high == 2**63 - 1 else high}"
    return Bounds(text, high, lambda value: isinstance(value, int) and low <= value <= high)


def positive(high: float) -> Bounds:
    """The numbers above 0 up to `high`."""
    return Bounds(f"a number above 0, at most {high:g}", high, lambda value: 0 < value <= high)


@dataclass(frozen=True)
class Setting:
    """What users see of a setting.

    Attributes:
        help: Its help.
        bounds: The numbers that it accepts.
        short: A short flag.
        choices: Values to complete.
        defines: Whether the numbers of a run depend on it. The others may change when a run is resumed.
        tag: What stands before its value in the name of a run; by default its own name.
        words: How a legend says its value: a format such as "width {}". For a flag, its name, which "no" may precede.
        off: How a legend says its default if that means that there is none of it, as in "no warm-up". Beside other
            settings, it is left out.
    """

    help: str
    bounds: Bounds | None = None
    short: str = ""
    choices: tuple[str, ...] = ()
    defines: bool = True
    tag: str | None = None
    words: str = ""
    off: str = ""


def setting(help: str, bounds: Bounds | None = None, *, default: Any = MISSING, **more: Any) -> Any:
    """A dataclass field that users can set; `more` are the other fields of `Setting`.

    A problem's setting has its help in lower case and without a full stop: the problem's name is put before it. A new
    setting needs a default, which files leave out: they keep their bytes, and older ones stay readable.
    """
    return field(default=default, metadata={"setting": Setting(help, bounds, **more)})


def check_bounds(settings: Any) -> None:
    """Raise InputError for a number that a setting of a dataclass does not accept."""
    for f in dataclasses.fields(settings):
        about, value = f.metadata.get("setting"), getattr(settings, f.name)
        if about is not None and about.bounds is not None and not about.bounds.accepts(value):
            raise InputError(f"{flag(f.name)} {value}: give {about.bounds.text}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError for a value of a setting that is none of its choices."""
    if value not in choices:
        raise InputError(f"{flag(name)} {value[:40]}: give {' or '.join(choices)}")


def flag(name: str) -> str:
    """The option of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def tag(field: dataclasses.Field[Any], value: Any) -> str:
    """A setting and its value as a part of a run's name: letters, digits, dots and underscores, and e-05 in numbers.

    >>> from bnsmooth_cli.config import FIELDS
    >>> [tag(FIELDS[name], value) for name, value in (("width", 0.25), ("augment", False), ("data", "a b/my-set"))]
    ['w0.25', 'noaugment', 'my_set']
    """
    about: Setting = field.metadata["setting"]
    prefix = field.name.replace("_", "") if about.tag is None else about.tag
    if isinstance(value, bool):
        return prefix if value else f"no{prefix}"
    if isinstance(value, str):
        value = re.sub(r"[^0-9A-Za-z.]+", "_", base_name(value).replace(",", "x")).strip("._") or "other"
        value = f"_{value}" if value.startswith("seed") else value  # which only the seed does in a name
    return f"{prefix}{_number(value)}"


def words(field: dataclasses.Field[Any], value: Any) -> str:
    """A setting and its value in words, for legends.

    >>> from bnsmooth_cli.config import FIELDS
    >>> [words(FIELDS[name], value) for name, value in (("width", 0.25), ("augment", False), ("steps", 3000))]
    ['width 0.25', 'no augmentation', '3,000 steps']
    """
    about: Setting = field.metadata["setting"]
    if is_off(field, value):
        return about.off
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{about.words or field.name.replace('_', ' ')}"
    if isinstance(value, str):
        name = base_name(value)
        value = name if len(name) <= _MAX_WORD else f"{name[: _MAX_WORD - 3]}..."
    text = f"{value:,}" if isinstance(value, int) else _number(value)
    return (about.words or f"{field.name.replace('_', ' ')} {{}}").format(text)


def is_off(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a value says that there is none of a setting.

    >>> from bnsmooth_cli.config import FIELDS
    >>> is_off(FIELDS["warmup"], 0), is_off(FIELDS["warmup"], 10), is_off(FIELDS["augment"], False)
    (True, False, False)
    """
    return bool(field.metadata["setting"].off) and bool(value == field.default)


def base_name(text: str) -> str:
    """The last part of a path; a text that is no path is its own.

    >>> base_name("images/cifar10/"), base_name("shapes")
    ('cifar10', 'shapes')
    """
    return PurePath(text).name or text


def same_digest(digest: str | None, other: str | None) -> bool:
    """Whether two digests agree in all that both know.

    An unknown digest is None. A digest may have several parts, `TRAIN.TEST`; those of earlier versions have the first.

    >>> same_digest("1.2", "1"), same_digest("1.2", "1.3"), same_digest("1.2", None)
    (True, False, True)
    """
    if digest is None or other is None:
        return True
    return all(part == its for part, its in zip(digest.split("."), other.split("."), strict=False))


def _number(value: object) -> str:
    """A number in as few digits as give it back."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
