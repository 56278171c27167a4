"""Live: programs that show the numbers of runs while these are computed. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.identity import read_settings
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.event_files import EventFile, check_tensorboard, event_path, events, tensorboard
from bnsmooth_cli.storage.journal import begun_anew
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.storage.scalars import label, scalars
from bnsmooth_cli.storage.wandb_runs import WandbRun, check_wandb

#: The least time between two looks at new numbers, in seconds: TensorBoard reads every five seconds at most.
INTERVAL: Final = 1.0


@dataclass(frozen=True)
class Exports:
    """The programs that get the numbers of runs.

    Attributes:
        tensorboard: Whether TensorBoard does: event files beside the tables.
        wandb: The project at Weights & Biases that does.
    """

    tensorboard: bool = False
    wandb: str | None = None

    def __bool__(self) -> bool:
        return self.tensorboard or self.wandb is not None

    def check(self) -> None:
        """Raise InputError, before any work, if a program cannot get them."""
        if self.tensorboard:
            check_tensorboard()
        if self.wandb is not None:
            check_wandb(self.wandb)


class Live:
    """The numbers of runs on their way to the programs that show them.

    Attributes:
        exports: The programs.
        files: The event files of the tables that are complete.
        places: Where the runs are at Weights & Biases, by their names.
    """

    def __init__(self, exports: Exports) -> None:
        self.exports = exports
        self.files: dict[Path, Path] = {}
        self.places: dict[str, str] = {}

    @contextmanager
    def feed(self, source: CheckpointSource) -> Iterator[Feed | None]:
        """Pass on the numbers of a source while they are computed; None if no program gets them.

        Raises:
            InputError: If they cannot be written.
        """
        if not self.exports:
            yield None
            return
        with Feed(self.exports, source, self.places) as feed:
            yield feed

    def complete(self, source: CheckpointSource, finished: Iterable[Path]) -> None:
        """Pass on the numbers of finished tables, as far as that has not been done.

        Args:
            source: What the tables are of, maybe together with other sources.
            finished: The tables.

        Raises:
            InputError: If a table cannot be read, or its numbers cannot be written.
        """
        if self.exports.tensorboard:
            for table in finished:
                self.files[table] = self.files.get(table) or tensorboard(table)
        if self.exports.wandb is not None and source.name not in self.places:
            with self.feed(source) as feed:
                assert feed is not None
                for table in finished:
                    feed.whole(table)


class Feed:
    """The numbers of one source on their way, in a `with` block.

    Args:
        exports: The programs that get them.
        source: The run, checkpoint or weights.
        places: Gets the place of the run at Weights & Biases.
    """

    def __init__(self, exports: Exports, source: CheckpointSource, places: dict[str, str]) -> None:
        self._tensorboard, self._source = exports.tensorboard, source
        self._files: dict[Path, EventFile] = {}
        self._wandb: WandbRun | None = None
        self._looked = -INTERVAL
        folder = source.path if source.path.is_dir() else None
        if exports.wandb is not None:
            settings = read_settings(source.config.problem, source.settings)  # with those at their default
            self._wandb = WandbRun(exports.wandb, source.name, {**settings, **source.known}, folder)
            places[source.name] = self._wandb.place
            for table in sorted(folder.glob("*.parquet")) if folder else ():  # the run is written whole
                with suppress(InputError):
                    self.whole(table)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if self._wandb is not None:
            self._wandb.finish(failed=kind is not None)

    def due(self) -> bool:
        """Whether it is time to look for new numbers again."""
        now = time.monotonic()
        if now - self._looked < INTERVAL:
            return False
        self._looked = now
        return True

    def add(self, kind: str, rows: pd.DataFrame, table: Path, options: object = None, alone: bool = True) -> None:
        """Pass on the next rows of a table that is being made.

        Args:
            kind: The kind of table.
            rows: All rows of one or more steps, in the table's order, beginning with its first step.
            table: The path of the table.
            options: The keyword arguments of the measurement.
            alone: Whether the table has no other source.
        """
        if not kinds.get(kind).tensorboard or rows.empty:
            return
        begins = label(kind, options)
        numbers = [*scalars(kind, rows, begins)]
        if self._tensorboard:
            path = event_path(table, kind, self._source.name, alone=alone)
            if path not in self._files:
                if not alone:
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._files[path] = EventFile(path)
            self._files[path].add(events(numbers))
        if self._wandb is not None:
            self._wandb.add(begins, numbers)

    def whole(self, table: Path) -> None:
        """Pass on what Weights & Biases lacks of a finished table.

        Raises:
            InputError: If it cannot be read.
        """
        if self._wandb is None or begun_anew(table):
            return
        rows = tables.read_table(table)
        provenance = rows.attrs["bnsmooth"]
        kind, options = provenance["kind"], provenance.get("options")
        names = [*provenance["runs"]]
        name = names[0] if len(names) == 1 else self._source.name  # the source may have been renamed
        if kinds.get(kind).tensorboard:
            begins = label(kind, options.get(name) if isinstance(options, dict) else None)
            self._wandb.add(begins, scalars(kind, rows[rows["run"] == name], begins))
