"""A study: the grid of runs that is asked for, and the folder that keeps them. No torch here."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import FIELDS, MAX_THREADS, Config, check_threads, check_types, from_dict, resolve
from bnsmooth_cli.data import NAMES
from bnsmooth_cli.errors import DamagedError, InputError, unknown
from bnsmooth_cli.storage.files import check_writable, load_json, read_text, save_json, unicode
from bnsmooth_cli.storage.runs import Run, locked, open_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT: Final = 1
VARIED: Final = ("norm", "lr", "seed")
_SETTINGS: Final = (
    "preset",
    *(name for name in FIELDS if name not in (*VARIED, "data_digest")),
)


@dataclass(frozen=True)
class Grid:
    """The runs that a study is asked for, every norm at every lr with every seed, and what is measured on them.

    `settings` are the other arguments of `config.resolve`; `lrs` empty stands for the preset's; `every` and `at` choose
    the measured steps, by default the checkpoints'.

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
    #: CPU threads of every run: its last bits depend on them, so they are the study's and never the machine's.
    threads: int = 1

    def configs(self) -> list[Config]:
        """The runs' configurations, seed by seed: a study that is stopped early has whole comparisons.

        Raises InputError for an empty grid, a setting that does not fit, and two runs of one name.
        """
        for name, values in (("norms", self.norms), ("seeds", self.seeds)):
            if not values:
                raise InputError(f"--{name}: an empty grid; name at least one")
        check_threads(self.threads)
        if self.every is not None and self.at is not None:
            raise InputError("--every and --at: give one of the two")
        for kind in self.measure:
            if kind not in kinds.measured(studied=True):
                raise unknown("measurement", kind, kinds.measured(studied=True))
        found = [
            resolve(norm=norm, lr=lr, seed=seed, **self.settings)
            for seed in self.seeds
            for lr in self.lrs or (None,)
            for norm in self.norms
        ]
        if self.at == ():
            raise InputError("--at: name at least one step, as in 0,100,250")
        if self.at and max(self.at) > min(config.steps for config in found):
            raise InputError(f"--at {max(self.at)}: beyond the {found[0].steps} steps of a run (--steps)")
        names = [config.name for config in found]
        if len(set(names)) < len(names):
            raise InputError(f"{max(names, key=names.count)}: twice in the grid (--norms, --lrs, --seeds)")
        return found

    def request(self) -> dict[str, Any]:
        """The grid as plain values, what was left to a default left out."""
        values = {"norms": self.norms, "lrs": self.lrs, "seeds": self.seeds, **self.settings, "measure": self.measure,
                  "every": self.every, "at": self.at, "threads": self.threads}  # fmt: skip
        chosen = {name: value for name, value in values.items() if value is not None and value != ()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def read_grid(options: Mapping[str, object], file: Path | None = None) -> Grid:
    """The grid that options describe, and a study file: TOML with the options' names as its keys. Options win.

    Lists may be strings as on the command line: `"none,l1"`, `"0.1,0.5"`, and for seeds `"0-4,7"`. Raises InputError
    for a file that cannot be read, an unknown setting, and a value that does not fit.

    >>> read_grid({"norms": "none,l1", "seeds": "0-2", "problem": "dln"}).seeds
    (0, 1, 2)
    """
    said = {} if file is None else _read_toml(file)
    if "at" in options:
        said.pop("every", None)
    if "every" in options:
        said.pop("at", None)
    values = {**_checked(said, f"{file}: "), **_checked(options, "--")}
    settings = {name: values.pop(name) for name in _SETTINGS if name in values}
    grid = Grid(**{"norms": (), **values}, settings=settings)
    if file is not None:
        with blaming(file):
            grid.configs()
    return grid


@contextmanager
def blaming(file: Path | None) -> Iterator[None]:
    """Let an InputError begin with the study file, if there is one, whose settings were looked at."""
    try:
        yield
    except InputError as error:
        if file is None:
            raise
        raise InputError(f"{file}: {error}") from error


_MACHINE: Final = ("jobs", "dask", "dry_run", "device", "force", "output", "target_loss", "target_accuracy")
_LISTS: Final[dict[str, type]] = {"norms": str, "lrs": float, "seeds": int, "measure": str, "at": int}
MOST: Final = 100_000  # of a list
_EXAMPLES: Final = {int: "0-4 or 0,1,5", float: "0.1,0.5", str: "none,batch"}


def _checked(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """The values in Grid's types; `source` is what an error puts before a name."""
    known = (*_LISTS, "every", "threads", *_SETTINGS)
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in _MACHINE:
            raise InputError(f"{source}{key}: --{key} is an option of the command, not of the study; say it there")
        if name not in known:
            raise InputError(f"{source}{key}: {unknown('setting', key, known)}")
        if name in _LISTS:
            found[name] = _list(value, _LISTS[name], f"{source}{key}")
            continue
        if name in ("every", "threads") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{source}{key} {value}: give a whole number of at least 1")
        if name == "preset" and not isinstance(value, str):
            raise InputError(f"{source}{key} {value}: give quick or paper")
        if name in _SETTINGS and name != "preset":
            check_types({name: value}, source.rstrip(": ") or key)
        found[name] = value
    return found


def _list(value: object, convert: type, where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        parts: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
    else:
        parts = list(value) if isinstance(value, list) else [value]
    found: list[Any] = []
    for part in parts:
        reach = re.fullmatch(r"(\d+)-(\d+)", str(part)) if convert is int else None
        try:
            if isinstance(part, bool) or (convert is int and isinstance(part, float)):
                raise ValueError
            new = range(int(reach[1]), min(int(reach[2]), int(reach[1]) + MOST) + 1) if reach else [convert(part)]
        except (ValueError, TypeError):
            raise InputError(f"{where} {part}: give values as in {_EXAMPLES[convert]}") from None
        if convert is int and (not new or min(new) < 0 or max(new) >= 2**63):
            raise InputError(f"{where} {str(part)[:30]}: give whole numbers from 0 to 2^63 - 1, as in {_EXAMPLES[int]}")
        found += new
        if len(found) > MOST:
            raise InputError(f"{where} {part}: more than {MOST} values")
    return tuple(found)


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
    if isinstance(data, str) and data not in NAMES and (path.parent / data).is_dir():
        content["data"] = str((path.parent / data).resolve())  # a file names its folders from where it lies
    return content


@dataclass(frozen=True)
class Study:
    """A study's folder: `study.json`, the runs in `runs/`, and the tables that `compare` writes."""

    path: Path

    @property
    def table(self) -> Path:
        """The table of the comparison; summary and claims stand beside it."""
        return self.path / "compare.parquet"

    def run(self, config: Config) -> Run:
        """Where a configuration's run is, or will be."""
        return Run(self.path / "runs" / config.name, config)

    def runs(self, besides: Collection[str] = ()) -> tuple[list[Run], dict[str, str]]:
        """The runs that can be compared, `besides` those of these names: finished or diverged, of the study's settings
        and whole; and those that cannot, by name, with why."""
        found, refused = [], {}
        shared = self.read()["settings"]
        for folder in sorted(path.parent for path in (self.path / "runs").glob("*/config.json")):
            if folder.name in besides:
                continue
            try:
                run = open_run(folder)
                mine = from_dict({**shared, **{name: getattr(run.config, name) for name in VARIED}}, str(folder))
                if (differences := mine.differences(run.config)) or folder.name != run.config.name:
                    what = "; ".join(differences) or f"it is {run.config.name}"
                    refused[folder.name] = f"{folder}: no run of this study ({what}); move it away"
                elif run.outcome() is not None:
                    for kind in kinds.measured(studied=True):
                        if (table := run.source().table_path(kind)).exists():
                            run.check_table(table, kind)
                    found.append(run)
            except DamagedError as error:
                refused[folder.name] = str(error)
        return found, refused

    def read(self) -> dict[str, Any]:
        """What study.json says: the settings that the runs share, and what was asked for, newest last.

        Raises InputError where the folder is no study.
        """
        file = self.path / "study.json"
        content = load_json(file, "study", FORMAT)
        requests = content.get("requests")
        if not isinstance(requests, list) or not requests or not all(isinstance(one, dict) for one in requests):
            raise InputError(f"{file}: names no runs; delete it, and run the study again")
        threads = content.get("threads")
        if (
            not isinstance(content.get("settings"), dict)
            or not isinstance(threads, int)
            or not 1 <= threads <= MAX_THREADS
        ):
            raise InputError(f"{file}: names no settings; delete it, and run the study again")
        from_dict({"norm": "none", "lr": 1.0, "seed": 0, **content["settings"]}, str(file))
        return content

    def join(self, grid: Grid) -> None:
        """Check that the grid's runs belong with those that are here: they share all but norm, lr and seed.

        Raises InputError for a folder that cannot be written, or that holds something else.
        """
        for target in (self.path / "study.json", self.table):
            check_writable(target)
        configs = grid.configs()
        if not (self.path / "study.json").exists():
            others = [item.name for item in self.path.glob("*") if not item.name.startswith(".")]
            if any(name != "runs" for name in others):  # runs may have been trained one by one
                raise InputError(f"{self.path}: holds files but no study; choose a new folder with -o")
            return
        content, file = self.read(), str(self.path / "study.json")
        if not any((self.path / "runs").glob("*/config.json")):
            return  # nothing that other settings would contradict
        first = configs[0]
        mine = from_dict({**content["settings"], **{name: getattr(first, name) for name in VARIED}}, file)
        differences = mine.differences(first)
        if mine.steps != first.steps:  # a longer run is the same trajectory, and no fair comparison
            differences.append(f"steps {mine.steps}, now {first.steps}")
        if grid.threads != content["threads"]:
            differences.append(f"threads {content['threads']}, now {grid.threads}")
        if differences:
            raise InputError(
                f"{file}: of a study with other settings ({'; '.join(differences)}); choose a new folder with -o"
            )

    def add(self, grid: Grid) -> None:
        """Record what is asked for, once."""
        begun = any((self.path / "runs").glob("*/config.json"))  # else what was asked for before came to nothing
        asked = self.read()["requests"] if begun and (self.path / "study.json").exists() else []
        request = grid.request()
        shared = {k: v for k, v in grid.configs()[0].as_dict().items() if k not in (*VARIED, "data_digest")}
        content = {
            "format": FORMAT,
            "version": __version__,
            "threads": grid.threads,
            "settings": shared,
            "requests": [*(one for one in asked if one != request), request],
        }
        save_json(self.path / "study.json", content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study: one command works on it at a time."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "study"):
            yield


def command(request: Mapping[str, Any], folder: Path, **changed: Any) -> str:
    """The command line of a request, with some of its values changed.

    >>> command({"norms": ["none"], "seeds": [0, 1, 2], "problem": "dln"}, Path("study"), measure=["ics"])
    'bnsmooth compare --norms none --seeds 0-2 --problem dln --measure ics -o study'
    """
    words = ["bnsmooth", "compare"]
    for name, value in {**request, **changed}.items():
        if name == "augment":
            words.append("--augment" if value else "--no-augment")
        elif name != "threads" or value != 1:
            several = value if isinstance(value, list) else [value]
            text = _ranges(several) if name in ("seeds", "at") else ",".join(map(_plain, several))
            words += [f"--{name.replace('_', '-')}", text]
    return unicode(shlex.join([*words, "-o", str(folder)]))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in parts)
