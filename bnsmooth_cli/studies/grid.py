"""The grid of runs that a study asks for: from Python, from options, or from a study file. No torch here."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.config import FIELDS, KNOWN_LATER, Config, check_threads, check_types, plain, resolve
from bnsmooth_cli.data import NAMES, TEXTS, canonical
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.measures.wanted import OPTIONS, Wanted, takes
from bnsmooth_cli.storage.files import read_text, unicode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The settings in which the runs of a study differ.
VARIED: Final = ("norm", "lr", "seed")
_SETTINGS: Final = (
    "preset",
    *(name for name in FIELDS if name not in (*VARIED, *KNOWN_LATER)),
)
_LISTS: Final[dict[str, type]] = {"norms": str, "lrs": float, "seeds": int, "measure": str, "at": int}
_EXAMPLES: Final = {int: "0-4 or 0,1,5", float: "0.1,0.5", str: "none,batch"}
#: Options of the command that a study file must not contain.
_MACHINE: Final = ("jobs", "dask", "dry_run", "device", "force", "output", "target_loss", "target_accuracy",
                   "tensorboard", "wandb")  # fmt: skip
MAX_VALUES: Final = 100_000  # in a list


@dataclass(frozen=True)
class Grid:
    """The runs of a study, which are all combinations of norms, learning rates and seeds, and their measurements.

    Attributes:
        norms: The norms.
        lrs: The learning rates; empty for the preset's.
        seeds: The seeds.
        settings: The other arguments of `config.resolve`, shared by all runs.
        measure: The kinds of tables to measure.
        every: The interval of the measured steps; None measures at the checkpoints.
        at: The steps to measure instead.
        probe: Whether `activations` measures the probe batch and the floor too.
        batches: The number of batches of `smoothness`'s batch sharpness; 0 leaves it out.
        threads: CPU threads of each run. They are part of the study, because the last bits of a result depend on them.
        file: The study file that the grid was read from, which errors then name.

    >>> grid = Grid(("none", "l1"), seeds=(0, 1), settings={"problem": "dln"})
    >>> [config.name for config in grid.configs()][:2]
    ['dln-none-lr1e-06-seed0', 'dln-l1-lr1e-06-seed0']
    """

    norms: tuple[str, ...]
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: tuple[str, ...] = ()
    every: int | None = None
    at: tuple[int, ...] | None = None
    probe: bool = False
    batches: int = 0
    threads: int = 1
    file: Path | None = field(default=None, compare=False)

    def configs(self) -> list[Config]:
        """The configurations of the runs, seed by seed, so that a study that stops early has whole comparisons.

        Raises:
            InputError: For an empty grid, a setting that does not fit, and two runs of the same name.
        """
        for name, values in (("norms", self.norms), ("seeds", self.seeds)):
            if not values:
                raise InputError(f"--{name}: an empty grid; name at least one")
        check_threads(self.threads)
        configs = [
            resolve(norm=norm, lr=lr, seed=seed, **self.settings)
            for seed in self.seeds
            for lr in self.lrs or (None,)
            for norm in self.norms
        ]
        self.wanted.check(configs[0].steps)
        names = [config.name for config in configs]
        if len(set(names)) < len(names):
            raise InputError(f"{max(names, key=names.count)}: twice in the grid (--norms, --lrs, --seeds)")
        return configs

    @property
    def wanted(self) -> Wanted:
        """What is measured of each run."""
        return Wanted(self.measure, self.every, self.at, self.probe, self.batches)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Put the study file, if there is one, before the message of an InputError about the grid."""
        try:
            yield
        except InputError as error:
            if self.file is None:
                raise
            raise InputError(f"{self.file}: {error}") from error

    def request(self) -> dict[str, Any]:
        """The grid as plain values, without those left at their defaults."""
        values = {"norms": self.norms, "lrs": self.lrs, "seeds": self.seeds, **self.settings, "measure": self.measure,
                  "every": self.every, "at": self.at, **self.wanted.asked, "threads": self.threads}  # fmt: skip
        chosen = {name: value for name, value in values.items() if value is not None and value != ()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def read_grid(options: Mapping[str, object], file: Path | None = None) -> Grid:
    """The grid that options and a study file describe. Options take precedence over the file.

    Args:
        options: Values by name: lists as sequences or as on the command line (`"none,l1"`, `"0.1,0.5"`, and for whole
            numbers `"0-4,7"`), and settings.
        file: A TOML file with the same names as keys.

    Raises:
        InputError: For a file that cannot be read, an unknown setting, and a value that does not fit.

    >>> read_grid({"norms": "none,l1", "seeds": "0-2", "problem": "dln"}).seeds
    (0, 1, 2)
    """
    content = {} if file is None else _read_toml(file)
    if "at" in options:
        content.pop("every", None)
    if "every" in options:
        content.pop("at", None)
    values = {**_checked(content, f"{file}: "), **_checked(options, "--")}
    settings = {name: values.pop(name) for name in _SETTINGS if name in values}
    grid = Grid(**{"norms": (), **values}, settings=settings, file=file)
    if file is not None:
        with grid.named_in_errors():
            grid.configs()
    return grid


def _checked(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """The values in Grid's types. Errors put `source` before the name."""
    known = (*_LISTS, "every", *OPTIONS, "threads", *_SETTINGS)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name, where, value = key.replace("-", "_"), f"{source}{key}", plain(value)
        if name in _MACHINE:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{where}: {flag} is an option of the command, not of the study; give it there")
        if name not in known:
            raise InputError(f"{where}: {unknown('setting', key, known)}")
        if name in _LISTS:
            value = _list(value, _LISTS[name], where)
        elif name in ("every", "threads"):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{where} {value}: give a whole number of at least 1")
        elif name == "batches":
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{where} {value}: give a whole number of at least 0")
        elif name == "probe":
            if not isinstance(value, bool):
                raise InputError(f"{where} {value}: give true or false")
        elif name == "data" and isinstance(value, str | Path):
            value = canonical(value)
        elif name != "preset":
            check_types({name: value}, source.rstrip(": ") if source != "--" else where)
        elif not isinstance(value, str):
            raise InputError(f"{where} {value}: give quick or paper")
        checked[name] = value
    return checked


def _list(value: object, convert: type, where: str) -> tuple[Any, ...]:
    parts: Iterable[Any]
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
    else:
        parts = value if isinstance(value, Iterable) else [value]
    numbers: list[Any] = []
    for part in parts:
        span = re.fullmatch(r"(\d+)-(\d+)", str(part)) if convert is int else None
        part = plain(part)
        try:
            if isinstance(part, bool) or (convert is int and isinstance(part, float)):
                raise ValueError
            first, last = (int(span[1]), int(span[2])) if span else (0, 0)
            new = range(first, min(last, first + MAX_VALUES) + 1) if span else [convert(part)]
        except (ValueError, TypeError):
            raise InputError(f"{where} '{str(part)[:40]}': give values as in {_EXAMPLES[convert]}") from None
        if convert is int and (not new or min(new) < 0 or max(new) >= 2**63):
            raise InputError(f"{where} {str(part)[:30]}: give whole numbers from 0 to 2^63 - 1, as in {_EXAMPLES[int]}")
        numbers += new
        if len(numbers) > MAX_VALUES:
            raise InputError(f"{where} {part}: more than {MAX_VALUES} values")
    return tuple(numbers)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such study file") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as TOML ({error})") from error
    data = content.get("data")
    if isinstance(data, str) and data not in (*NAMES, *TEXTS) and (path.parent / data).exists():
        content["data"] = str((path.parent / data).resolve())  # a file names others relative to itself
    return content


def command(request: Mapping[str, Any], folder: Path, runs: Sequence[Path] = ()) -> str:
    """The command line that asks for a request, for readers; `runs` are those that the study takes.

    >>> command({"norms": ["none"], "seeds": [0, 1, 2], "problem": "dln"}, Path("study"), [Path("runs/a")])
    'bnsmooth compare runs/a --norms none --seeds 0-2 --problem dln -o study'
    """
    words, values = ["bnsmooth", "compare", *map(str, runs)], {**request}
    for option in OPTIONS:
        if not any(takes(kind, option) for kind in values.get("measure", ())):
            values.pop(option, None)
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        elif name != "threads" or value != 1:
            several = value if isinstance(value, list) else [value]
            text = _ranges(several) if name in ("seeds", "at") else ",".join(map(_plain, several))
            words += [f"--{name.replace('_', '-')}", text]
    return unicode(shlex.join([*words, "-o", str(folder)]))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    parts: list[str] = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0]):
        row = [str(number) for _, number in group]
        parts += [f"{row[0]}-{row[-1]}"] if len(row) > 2 else row
    return ",".join(parts)
