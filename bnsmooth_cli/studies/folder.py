"""The folder of a study: its requests, its runs, and the tables that compare them. It does not import torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, TypeAlias

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import KNOWN_LATER, MAX_THREADS, Config, from_dict
from bnsmooth_cli.errors import DamagedError, InputError, remark
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.cards import Card, Shown
from bnsmooth_cli.storage.files import atomic, check_writable, load_json, save_json, unicode
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies.cards import card
from bnsmooth_cli.studies.grid import VARIED, Grid

FORMAT: Final = 1


#: What `bns.compare` takes for runs.
Source: TypeAlias = "Run | Study | Path | str"


def table_paths(path: Path) -> dict[str, Path]:
    """The paths of a comparison's three tables by kind: `compare.parquet`, with its summary and claims beside it.

    >>> [str(path) for path in table_paths(Path("compare.parquet")).values()]
    ['compare.parquet', 'compare.summary.parquet', 'compare.claims.parquet']
    """
    compared = [kind.name for kind in kinds.KINDS if kind.compared]
    endings = {name: name.removeprefix("compare").replace("-", ".") for name in compared}
    return {name: path.with_name(f"{path.stem}{ending}{path.suffix}") for name, ending in endings.items()}


@dataclass(frozen=True, repr=False)
class Study(Shown):
    """A study in a folder: `study.json`, `log.json`, the runs in `runs/`, and the tables that compare them.

    At a prompt and in a notebook, it says how far its runs are, and what has become of the claims.

    Attributes:
        path: The folder.
        failed: Why runs failed or were left out, by their names, when the study was last run by `bns.study`.
    """

    path: Path
    failed: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # users give a text

    def _card(self) -> Card:
        return card(self)

    @property
    def table(self) -> Path:
        """The table of the comparison. Its summary and claims are beside it."""
        return self.path / "compare.parquet"

    @property
    def comparison(self) -> pd.DataFrame:
        """One row per run: the table of kind `compare`."""
        return self._table("compare")

    @property
    def summary(self) -> pd.DataFrame:
        """Medians over seeds with their intervals: the table of kind `compare-summary`."""
        return self._table("compare-summary")

    @property
    def claims(self) -> pd.DataFrame:
        """The verdicts on the paper's claims, one row per part: the table of kind `compare-claims`."""
        return self._table("compare-claims")

    def _table(self, kind: str) -> pd.DataFrame:
        return tables.read_table(table_paths(self.table)[kind], kind)

    def runs(self) -> list[Run]:
        """The runs that can be compared: finished or diverged, undamaged, and of the study's settings."""
        return self.inspect()[0]

    def inspect(self, skip: Collection[str] = ()) -> tuple[list[Run], dict[str, str]]:
        """The runs that can be compared, and the reasons why others cannot, by name. Runs in `skip` are left out."""
        runs, refused = [], {}
        shared, known = self.read()["settings"], self._knowing()
        for folder in sorted(path.parent for path in (self.path / "runs").glob("*/config.json")):
            if folder.name in skip:
                continue
            try:
                run = open_run(folder)
                differences = known(_of_study(run.config, shared, folder)).differences(run.config)
                if run.config.steps != shared["steps"]:
                    differences.append(f"steps {shared['steps']}, now {run.config.steps}")
                if not differences and not self._is_named(folder, run.config):
                    differences = [f"it is {run.config.name}"]
                if differences:
                    refused[folder.name] = f"{folder}: no run of this study ({'; '.join(differences)}); move it away"
                elif run.outcome() is not None:
                    for kind in kinds.measured(studied=True):
                        if (table := run.source().table_path(kind)).exists():
                            run.check_table(table, kind)
                    runs.append(run)
            except DamagedError as error:
                refused[folder.name] = str(error)
        return runs, refused

    def _is_named(self, folder: Path, config: Config) -> bool:
        """Whether the folder of a run has its name; one from an earlier version counts unless the present one is there
        too."""
        there = (folder.with_name(config.name) / "config.json").exists()
        return folder.name == config.name or (folder.name == config.former_name and not there)

    def planned(self, configs: Sequence[Config]) -> list[Run]:
        """The runs of configurations, which may not exist yet. They have the data of the runs that do.

        Earlier versions gave shorter names to runs. A study that has such runs keeps their names.
        """
        former, runs = self._has_former_names(), self.path / "runs"
        configs = [*map(self._knowing(), configs)]
        paths = [[runs / name for name in (config.name, config.former_name)] for config in configs]
        existing = [next((path for path in both if (path / "config.json").exists()), None) for both in paths]
        folders = [there or both[former] for there, both in zip(existing, paths, strict=True)]
        return [Run(path, config) for path, config in zip(folders, configs, strict=True)]

    def _knowing(self) -> Callable[[Config], Config]:
        """`Config.knowing` of the first run of the study whose data are known."""
        for file in sorted((self.path / "runs").glob("*/config.json")):
            with suppress(InputError):
                known = open_run(file.parent).config
                if getattr(known.settings, "data_digest", None) is not None:
                    return lambda config: config.knowing(known)
        return lambda config: config

    def _has_former_names(self) -> bool:
        for file in sorted((self.path / "runs").glob("*/config.json")):
            with suppress(InputError):
                config, name = open_run(file.parent).config, file.parent.name
                if name in (config.name, config.former_name):
                    return name != config.name
        return False

    def read(self) -> dict[str, Any]:
        """The content of study.json: the settings that the runs share, and the requests, newest last.

        Raises:
            InputError: If the folder is no study.
        """
        file = self.path / "study.json"
        content = load_json(file, "study", FORMAT, ("version", "threads", "settings", "requests"))
        requests = content.get("requests")
        if not isinstance(requests, list) or not requests or not all(isinstance(item, dict) for item in requests):
            raise InputError(f"{file}: names no runs; delete it, and run the study again")
        settings, threads = content.get("settings"), content.get("threads")
        if not isinstance(settings, dict) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise InputError(f"{file}: names no settings; delete it, and run the study again")
        from_dict({"norm": "none", "lr": 1.0, "seed": 0, **settings}, str(file))
        return content

    def check(self, grid: Grid) -> None:
        """Check that the runs of a grid may join those in the folder, which share all settings but norm, lr and seed.

        Settings that do not define a run may differ. A `Remark` names them.

        Raises:
            InputError: If they may not, the folder cannot be written, or it holds something else.
        """
        for target in (self.path / "study.json", self.table):
            check_writable(target)
        configs = grid.configs()
        if not (self.path / "study.json").exists():
            others = [item.name for item in self.path.glob("*") if not item.name.startswith(".")]
            if any(name != "runs" for name in others):  # runs may have been trained one by one
                raise InputError(f"{self.path}: holds files but no study; choose a new folder with -o")
            return
        content = self.read()
        if not self._has_runs():
            return
        known, file = self._knowing(), self.path / "study.json"
        first, recorded = known(configs[0]), known(_of_study(configs[0], content["settings"], file))
        differences = recorded.differences(first)
        if recorded.steps != first.steps:  # the same trajectory continued, but not a fair comparison
            differences.append(f"steps {recorded.steps}, now {first.steps}")
        if grid.threads != content["threads"]:
            differences.append(f"threads {content['threads']}, now {grid.threads}")
        if differences:
            only_data = len(differences) == 1 and differences[0].startswith("data ")
            hint = ", or rename the data if they have only moved" if only_data else ""
            raise InputError(
                f"{file}: of a study with other settings ({'; '.join(differences)}); choose a new folder with -o{hint}"
            )
        if changes := recorded.changes(first):
            said = f"{file}: other settings than before ({'; '.join(changes)}), which runs that have ended do not get"
            remark(said)

    def record(self, grid: Grid) -> None:
        """Add a grid to the requests in study.json, unless it is there already."""
        earlier = self.read()["requests"] if self._has_runs() and (self.path / "study.json").exists() else []
        request = grid.request()
        shared = {k: v for k, v in grid.configs()[0].as_dict().items() if k not in (*VARIED, *KNOWN_LATER)}
        content = {
            "format": FORMAT,
            "version": __version__,
            "threads": grid.threads,
            "settings": shared,
            "requests": [*(item for item in earlier if item != request), request],
        }
        save_json(self.path / "study.json", content)

    def log(self) -> list[dict[str, Any]]:
        """When commands trained or measured runs: `began`, in UTC, and `seconds`; none in studies of earlier versions.

        It is in log.json, since tables of equal runs have equal bytes, and equal studies an equal study.json. No result
        depends on it, so that a damaged one counts as none.
        """
        file, entries = self.path / "log.json", None
        if file.exists():
            with suppress(DamagedError):
                entries = load_json(file, "study", FORMAT, ("entries",)).get("entries")
        known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        return [entry for entry in known
                if isinstance(entry.get("began"), str) and isinstance(entry.get("seconds"), int | float)]  # fmt: skip

    def add_to_log(self, began: float, seconds: float) -> None:
        """Record a command that trained or measured runs.

        Args:
            began: When it began, in seconds since 1970.
            seconds: How long it took.
        """
        said = datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="seconds")
        entries = [*self.log(), {"began": said, "seconds": round(seconds, 1)}]
        save_json(self.path / "log.json", {"format": FORMAT, "entries": entries})

    def take(self, run: Run, target: Path) -> None:
        """Copy a run to its folder in the study (`planned`), with its checkpoints and its tables.

        Tables name their run. Under another name, the run is therefore measured again, and not trained again.
        """
        kept = [kind.name for kind in kinds.KINDS if kind.name == "train" or run.name == target.name]
        files = [run.source().table_path(kind) for kind in kept]
        states = [*run.checkpoints().values(), *run.stopped().values()]
        for file in [*states, *filter(Path.is_file, files), run.path / "config.json"]:  # which makes it a run
            with atomic(target / file.relative_to(run.path)) as temporary:
                shutil.copyfile(file, temporary)

    def _has_runs(self) -> bool:
        return any((self.path / "runs").glob("*/config.json"))


def opened(sources: Source | Iterable[Source]) -> list[Run]:
    """The runs that sources stand for; those of a study are `Study.runs`.

    Args:
        sources: Runs, studies, and the folders of either, mixed; or one of them.

    Raises:
        InputError: If a folder holds neither a run nor a study.
    """
    runs: list[Run] = []
    for source in [sources] if isinstance(sources, Run | Study | Path | str) else sources:
        if isinstance(source, Run):
            runs.append(source)
        elif isinstance(source, Study):
            runs += source.runs()
        elif (Path(source) / "study.json").is_file():
            runs += Study(Path(source)).runs()
        else:
            runs.append(open_run(source))
    return runs


def labels(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by names of their own: a name that several of them have is preceded by as much of their paths as differs.

    Raises:
        InputError: If a run is given twice.

    >>> from bnsmooth_cli.config import resolve
    >>> paths = ["a/runs/none", "b/runs/none", "a/runs/batch"]
    >>> list(labels([Run(Path(path), resolve()) for path in paths]))
    ['a/runs/none', 'b/runs/none', 'batch']
    """
    paths = [run.path.resolve() for run in runs]
    if len({*paths}) < len(paths):
        twice = next(run.path for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1)
        raise InputError(f"{twice}: given twice; give each run once")
    named: dict[str, Run] = {}
    for run, path in zip(runs, paths, strict=True):
        others = [other for other in paths if other != path and other.name == path.name]
        length = 1
        while any(other.parts[-length:] == path.parts[-length:] for other in others):
            length += 1
        named[unicode(Path(*path.parts[-length:]).as_posix())] = run
    return named


def _of_study(config: Config, shared: Mapping[str, Any], source: Path) -> Config:
    """The configuration of a run of the study that has the norm, learning rate and seed of another run."""
    return from_dict({**shared, **{name: getattr(config, name) for name in VARIED}}, str(source))
