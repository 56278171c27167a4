"""Tables in the making: the points of a request that are measured, kept one by one, and written when all are there."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bnsmooth_cli import __version__, stopping
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures.measurement import Measurement
from bnsmooth_cli.measures.request import Request, measurement
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import Journal, Key, end_anew, journal_path
from bnsmooth_cli.storage.live import Feed
from bnsmooth_cli.storage.locks import locked
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.storage.stretches import Machine, Stretch, changed, is_stretches, joined, machine_at, stretch
from bnsmooth_cli.training.devices import machine

Progress = Callable[[str, int, int, int], None]  # (run, step, points measured, points in all)


class Recording:
    """A table that is being measured. `recording` opens it.

    Attributes:
        request: What is measured; its steps include those of the table that it replaces.
        wanted: The steps that were asked for, by the name of the source; and those of the table that it replaces, if
            these are measured anew.
    """

    def __init__(self, request: Request, journal: Journal, wanted: dict[str, list[int]]) -> None:
        self.request, self._journal = request, journal
        self.wanted = {name: [*steps] for name, steps in wanted.items()}
        self._wanted = {name: {*steps} for name, steps in wanted.items()}
        self._completing = {name: self._completed(name) for name in request.steps}
        self._passed = dict.fromkeys(request.steps, 0)  # how many steps `ready` has returned

    @functools.cached_property
    def definition(self) -> Measurement:
        """The measurement."""
        return measurement(self.request.kind)

    def lacks(self, name: str, step: int) -> bool:
        """Whether a point of a source was asked for and remains to be measured."""
        return step in self._wanted[name] and (name, step) not in self._journal

    def missing(self, name: str) -> list[int]:
        """The steps of a source that remain to be measured."""
        return [step for step in self.wanted[name] if self.lacks(name, step)]

    @property
    def total(self) -> int:
        """The number of points that were asked for."""
        return sum(map(len, self.wanted.values()))

    @property
    def measured(self) -> int:
        """The number of points that were asked for and are there."""
        return self.total - sum(len(self.missing(name)) for name in self.wanted)

    def remark(self, now: Machine) -> None:
        """Tell the user if another machine or program than the present one has measured points that are kept."""
        earlier = [by for key in self._journal if (by := self._journal.by(key))]
        differing = next((found for by in earlier if (found := changed(by, now))), None)
        if differing:
            said = f"{self.request.path}: keeps points of another machine or program ({'; '.join(differing)}); "
            remark(said + "--force measures all of them again")

    def arguments(self, source: CheckpointSource, problem: Problem) -> dict[str, Any]:
        """The keyword arguments of the measurement for the points of a source."""
        planned = self.request.arguments[source.name]
        context = self.definition.context
        return planned if context is None else planned | context(source, planned, problem)

    def take(self, point: Point, arguments: dict[str, Any]) -> None:
        """Measure a point, and keep its rows.

        Raises:
            InputError: If the run's folder or the journal is gone, or the disk is full.
        """
        self.keep(point, self.definition.rows(point, **arguments))

    def keep(self, point: Point, rows: pd.DataFrame) -> None:
        """Keep the rows of a point. Raises InputError as `take` does."""
        self._check_place()
        by = machine(point.problem.device)
        measured = tables.without_settings(tables.to_arrow(self.request.kind, rows))
        self._journal.add((point.run, point.step), measured, by)

    def _check_place(self) -> None:
        """Raise InputError if the run's folder is gone, or the run is trained again: its points would be mixed."""
        path, folder = self._journal.path, self.request.path.parent
        if not folder.is_dir():
            raise InputError(f"{folder}: was removed or moved while it was measured; choose a table with -o")
        if not path.exists():
            raise InputError(f"{path}: was removed while its table was measured, as by `train --force`; measure again")

    def sync(self) -> None:
        """Let the points survive a power cut."""
        self._journal.sync()

    def append(self, point: Point, rows: pd.DataFrame) -> None:
        """Keep the rows of a point that nobody has asked for, after all others. Raises InputError as `take` does."""
        self.keep(point, rows)
        self.request.steps[point.run].append(point.step)
        self.wanted[point.run].append(point.step)
        self._wanted[point.run].add(point.step)

    def finish(self) -> None:
        """Write the table, and remove the points that are in it."""
        self.write()
        end_anew(self.request.path)
        self.tidy()

    def write(self, **more: Any) -> None:
        """Write the table; `more` are further entries of its provenance."""
        self._check_place()
        request = self.request
        stretches = {name: self._stretches(name) for name in request.steps}
        provenance = {"version": __version__, "stretches": stretches, **request.provenance(), **more}
        tables.write_table(request.path, request.kind, self._frames(), provenance, make_folder=False)

    def tidy(self) -> None:
        """Remove the journal, unless it has points that another request has asked for.

        The step at which a run has diverged is measured while it trains, and not afterwards.
        """
        if self.request.lacks_additions(tables.read_provenance(self.request.path, self.request.kind)):
            return  # the table is smaller
        for source in self.request.sources:
            steps, diverged_at = {*self.request.steps[source.name]}, source.diverged_at
            mine = (step for name, step in self._journal if name == source.name and step != diverged_at)
            if not steps.issuperset(mine):
                return
        self._journal.remove()

    def _stretches(self, name: str) -> list[Stretch]:
        """What computed the points of a source; tables of earlier versions do not say so."""
        machines = ((step, self._journal.by((name, step))) for step in self.request.steps[name])
        return joined(stretch(step, step, machine) for step, machine in machines if machine)

    def _frames(self) -> Iterator[pd.DataFrame | pa.Table]:
        for name in self.request.steps:
            yield from self._completed(name)

    def _completed(self, name: str) -> Iterator[pd.DataFrame | pa.Table]:
        """The rows of a source, step by step."""
        # Points may have been measured before the run got more steps.
        (settings,) = (source.settings for source in self.request.sources if source.name == name)
        before: pd.DataFrame | None = None
        for step in self.request.steps[name]:
            rows = tables.with_settings(self._journal.rows((name, step)), self.request.kind, settings)
            if self.definition.since is None:
                yield rows
                continue
            before = self.definition.since(before, rows.to_pandas(ignore_metadata=True))
            yield before

    def ready(self, name: str) -> pd.DataFrame:
        """The rows of a source that can be shown and were not returned before: those of the table's next steps, up to
        the first one that remains to be measured."""
        steps, first = self.request.steps[name], self._passed[name]
        end = next((i for i in range(first, len(steps)) if (name, steps[i]) not in self._journal), len(steps))
        self._passed[name] = end
        parts = itertools.islice(self._completing[name], end - first)
        frames = [part if isinstance(part, pd.DataFrame) else part.to_pandas(ignore_metadata=True) for part in parts]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


class Report:
    """Reports the progress of measuring.

    Attributes:
        done: The points that are measured.
        total: The points that were asked for.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self.done, self.total = progress, 0, total

    def __call__(self, run: str, step: int) -> None:
        """A point is measured next."""
        if self._progress is not None:
            self._progress(run, step, self.done, self.total)
        self.done += 1


class Together:
    """The tables of one source, which are measured together at the points of its trajectory."""

    def __init__(
        self, recordings: Sequence[Recording], source: CheckpointSource, problem: Problem, report: Report
    ) -> None:
        for recording in recordings:
            recording.remark(machine(problem.device))
        self._tables = [(recording, recording.arguments(source, problem)) for recording in recordings]
        self._report, self._name = report, source.name

    def steps(self, name: str) -> set[int]:
        """The steps of the source that remain to be measured."""
        return {step for table, _ in self._tables for step in table.missing(name)}

    def measure(self, point: Point) -> None:
        """Measure and keep what is missing of a point, until the work is told to stop."""
        for table, arguments in self._tables:
            if table.lacks(point.run, point.step) and not stopping.told():
                self._report(point.run, point.step)
                table.take(point, arguments)

    def show(self, feed: Feed) -> None:
        """Pass on the rows that have become ready."""
        for table, _ in self._tables:
            request = table.request
            rows, options = table.ready(self._name), request.arguments[self._name]
            feed.add(request.kind, rows, request.path, options, alone=len(request.sources) == 1)

    def sync(self) -> None:
        """Let the points survive a power cut."""
        for table, _ in self._tables:
            table.sync()

    @property
    def kept(self) -> str:
        """How many points are kept, for the user."""
        return "; ".join(
            f"{table.request.path} keeps {table.measured} of {table.total} points" for table, _ in self._tables
        )


@contextmanager
def recording(request: Request) -> Iterator[Recording]:
    """Open the recording of a request: with the points of its journal, and of the table that it replaces.

    Raises:
        InputError: If the table or its journal is of another request, is being written, or cannot be written.
        DamagedError: If the table or its journal cannot be read.
    """
    folder = request.path.parent
    if not folder.is_dir():
        if folder in [source.path for source in request.sources]:
            raise InputError(f"{folder}: was removed or moved; choose a table with -o")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with locked(folder, f"{request.kind} table", request.path):
        journal, joined, wanted = _begin(request)
        try:
            yield Recording(joined, journal, wanted)
        finally:
            journal.close() if len(journal) else journal.remove()


def _begin(request: Request) -> tuple[Journal, Request, dict[str, list[int]]]:
    """The journal with the points that are there, the request with the steps and additions of these points, and the
    steps that are wanted."""
    table = request.read()
    journal = _open(request)
    try:
        for written in (journal.request, table or {}):
            if request.has_additions(written):
                request = request.with_additions(written)
        if request.lacks_additions(journal.request):
            journal.remove()
            journal = _open(request)
        if table is None:
            return journal, request, request.steps
        written = _join(journal, request, table)
        steps = {name: sorted({*steps, *written.get(name, ())}) for name, steps in request.steps.items()}
        anew = request.lacks_additions(table) or tables.lacking(request.path)
        return journal, replace(request, steps=steps), steps if anew else request.steps
    except BaseException:
        journal.close()
        raise


def _open(request: Request) -> Journal:
    """The journal of a request.

    It is begun anew if its points cannot be joined to others: there are none, an earlier version measured less of them,
    or they are of another path of training.
    """
    path, columns = journal_path(request.path), tables.measured_columns(request.kind)
    schema, joinable = tables.schema_of(request.kind, columns), dict[str, Any](columns=columns)
    if measurement(request.kind).context is not None:  # which may depend on any checkpoint of the run
        joinable["checkpoints"] = {source.name: [*source.checkpoints] for source in request.sources}
    header = {"kind": request.kind, **joinable, **request.provenance()}
    journal = Journal(path, header, schema)
    other_kind = len(journal) and journal.request.get("kind") != request.kind
    if not other_kind and (not len(journal) or any(journal.request.get(key) != joinable[key] for key in joinable)):
        journal.remove()
        journal = Journal(path, header, schema)
    if different := ["kind"] if other_kind else request.differences(journal.request):
        journal.close()
        others = " and ".join(different)
        raise InputError(f"{path}: has points of a table of other {others}; finish that one, or begin with --force")
    return journal


def _join(journal: Journal, request: Request, table: Mapping[str, Any]) -> dict[str, set[int]]:
    """Add the points of a table that are not in the journal, unless they have to be measured anew.

    Args:
        journal: The journal.
        request: The request, whose path is the table's.
        table: The provenance of the table.

    Returns:
        The steps that the table has rows of, by the name of the source.
    """
    path, kind, found = request.path, request.kind, defaultdict[str, set[int]](set)
    anew, stretches = request.lacks_additions(table) or tables.lacking(path), table.get("stretches")
    frame = tables.read_table(path, kind)
    frame.attrs.clear()  # pandas copies them, with each measured step, at each access to a column
    rows = tables.without_settings(tables.to_arrow(kind, frame))
    places: dict[Key, np.ndarray[Any, Any]] = frame.groupby(["run", "step"], sort=False).indices  # type: ignore[assignment]
    for (run, at), chosen in places.items():
        step = int(at)
        found[run].add(step)
        if not anew and (run, step) not in journal:
            of_run = stretches.get(run) if isinstance(stretches, dict) else None
            by = machine_at(of_run, step) if of_run is not None and is_stretches(of_run) else None
            journal.add((run, step), rows.take(chosen), by)
    return found
