"""From points to tables: a `Request` describes one table, and `execute` computes and writes it."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measurement import Measurement
from bnsmooth_cli.points.reaching import nearest_checkpoints, open_problem, reachable, visit
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import checksum
from bnsmooth_cli.storage.runs import CheckpointSource, locked
from bnsmooth_cli.user_code import digest

Progress = Callable[[str, int, int, int], None]  # (run, step, points measured, points in all)


@dataclass(frozen=True)
class Request:
    """A description of the contents of one table. `plan` makes requests and `execute` answers them.

    Attributes:
        kind: The kind of table.
        path: Where the table is written.
        sources: The runs, checkpoints or weights to measure.
        steps: The steps to measure in ascending order, by the name of the source.
        arguments: The keyword arguments of the measurement's `rows`, by the name of the source.
        code: Digests of the user's own modules, by the name of the norm or problem.
        weights: Digests of the weight files, by the name of the source.
        device: Where to compute.
        data: The current folder of the images; None if they have not moved.
        problem: The problem, if there is one source and planning has opened it.
    """

    kind: str
    path: Path
    sources: tuple[CheckpointSource, ...]
    steps: dict[str, list[int]]
    arguments: dict[str, dict[str, Any]]
    code: dict[str, str]
    weights: dict[str, str]
    device: str = "auto"
    data: str | None = None
    problem: Problem | None = None

    def provenance(self) -> dict[str, dict[str, Any]]:
        """The entries of a table's provenance that decide whether it answers this request."""
        runs = {source.name: source.config.as_dict() for source in self.sources}
        entries: dict[str, dict[str, Any]] = {"runs": runs, "steps": self.steps, "options": self.arguments}
        return entries | {name: value for name in ("code", "weights") if (value := getattr(self, name))}

    def answered(self) -> bool:
        """Whether the table at `path` answers this request.

        A table that lacks a column, because an earlier version wrote it, or the measurement's additions, does not: it
        is measured again. A table that has additions which are not requested does.

        Raises:
            InputError: If the table there answers another request.
        """
        if not self.path.exists():
            return False
        written, additions = tables.read_provenance(self.path, self.kind), measurement(self.kind).additions
        options = written.get("options")
        full = {run: {**arguments, **additions} for run, arguments in self.arguments.items()}
        bare = {run: {k: v for k, v in arguments.items() if k not in additions} for run, arguments in full.items()}
        wanted = self.provenance() | ({"options": options} if options in (full, bare) else {})
        if different := [key for key, value in wanted.items() if written.get(key) != value]:
            raise InputError(
                f"{self.path}: already a table of kind {self.kind}, of other {' and '.join(different)}; replace it "
                "with --force, or write another file with -o"
            )
        return options in (full, self.arguments) and not tables.lacking(self.path)


def measurement(kind: str) -> Measurement:
    """The measurement that produces tables of a kind."""
    loaded: Measurement = pkgutil.resolve_name(f"bnsmooth_cli.measures.{kinds.get(kind).measurement}")
    return loaded


def steps_of(
    source: CheckpointSource, every: int | None = None, at: Sequence[int] | None = None, last_only: bool = False
) -> list[int]:
    """The steps to measure: `at`, or every `every`-th step, or the checkpoints (with `last_only`, the last one)."""
    if at is not None or every is None:
        usual = sorted(source.checkpoints)[-1:] if last_only else source.checkpoints
        return reachable(source, usual if at is None else at)
    if not source.path.is_dir():
        raise InputError(f"--every: needs a run; {source.path} is one checkpoint (choose steps after it with --at)")
    first, last = min(source.checkpoints, default=0), max(source.checkpoints, default=0)
    return reachable(source, range(first, last + 1, every))


def plan(
    kind: str,
    sources: Sequence[CheckpointSource],
    output: Path | None = None,
    *,
    every: int | None = None,
    at: Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
    device: str = "auto",
    data: str | None = None,
) -> list[Request]:
    """Plan one table for each source, or one table for all of them.

    Args:
        kind: The kind of table.
        sources: What to measure.
        output: The path of one table for all sources; None writes each table beside its source.
        every: The interval of the measured steps; None measures the checkpoints.
        at: The steps to measure.
        options: The keyword arguments of the measurement's `plan`.
        device: Where to compute.
        data: The current folder of the images, if they have moved.

    Raises:
        InputError: If steps or options do not fit a source, or a source is given twice.
    """
    if len({source.name if output else source.path.resolve() for source in sources}) < len(sources):
        raise InputError(f"{sources[0].path}: given twice, or two runs with the same name in one table; give each once")
    definition = measurement(kind)
    requests = []
    for group in [sources] if output else [[source] for source in sources]:
        steps = {source.name: steps_of(source, every, at, definition.last_only) for source in group}
        chosen: dict[str, dict[str, Any]] = {}
        for source in group:
            moved = source.with_data(data)
            chosen[source.name] = definition.plan(moved.config, **options or {})
            problem = definition.confirm(chosen[source.name], functools.partial(open_problem, moved, device))
        path = output or group[0].table_path(kind, chosen[group[0].name].get("objective", "batch"))
        names = [name for source in group for name in (source.config.problem, source.config.norm)]
        code = {name: state for name in names if (state := digest(name)) is not None}
        weights = {source.name: checksum(source.path) for source in group if source.weights is not None}
        shared = problem if len(sources) == 1 else None  # the problems of many sources may not fit in memory
        requests.append(Request(kind, path, tuple(group), steps, chosen, code, weights, device, data, shared))
    return requests


def pending(requests: Sequence[Request], force: bool = False) -> list[Request]:
    """The requests that no table answers yet; with `force`, all of them.

    Raises:
        InputError: If a path cannot be written, or holds something other than the answer to its request.
    """
    for request in requests:
        tables.check_target(request.path, request.kind, force)
    return [request for request in requests if force or not request.answered()]


def execute(
    requests: Sequence[Request],
    *,
    progress: Progress | None = None,
    keep: Callable[[Request, pd.DataFrame], None] = lambda request, rows: None,
) -> None:
    """Measure the requests and write their tables, replacing those that exist.

    Args:
        requests: What to measure.
        progress: Called before each point with the run, the step, the number of points measured so far, and the total.
        keep: Called with the rows of each point once they are computed.
    """
    total, done = sum(len(steps) for request in requests for steps in request.steps.values()), count()

    def walk(request: Request, source: CheckpointSource) -> Iterator[pd.DataFrame]:
        definition, moved = measurement(request.kind), source.with_data(request.data)
        rows: pd.DataFrame | None = None
        problem = request.problem or open_problem(moved, request.device)
        arguments = request.arguments[source.name]
        arguments = arguments | definition.context(moved, arguments, problem)
        for point in visit(moved, request.steps[source.name], problem=problem):
            if progress is not None:
                progress(source.name, point.step, next(done), total)
            current = definition.rows(point, **arguments)
            rows = current if rows is None else definition.since(rows, current)
            if request.path.parent == source.path and not source.path.is_dir():
                raise InputError(f"{source.path}: was removed or moved while it was measured; choose a table with -o")
            keep(request, rows)
            yield rows

    for request in requests:
        reached = {source.name: nearest_checkpoints(source, request.steps[source.name]) for source in request.sources}
        provenance = {"version": __version__, "trained_forward_from": reached, **request.provenance()}
        folder = request.path.parent
        inside = folder in [source.path for source in request.sources]
        with locked(folder, f"{request.kind} table", f"{request.kind}.") if inside else nullcontext():
            rows = chain.from_iterable(walk(request, source) for source in request.sources)
            tables.write_table(request.path, request.kind, rows, provenance)


def measure(
    kind: str,
    sources: Sequence[CheckpointSource],
    output: Path | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **planned: Any,
) -> list[Path]:
    """Plan and measure the sources in one call (see `plan` and `execute`), and return the paths of the tables.

    A table that already answers its request is kept; with `force` it is measured again. `planned` are further arguments
    of `plan`.
    """
    requests = plan(kind, sources, output, **planned)
    execute(pending(requests, force), progress=progress)
    return [request.path for request in requests]


def measured(kind: str, source: CheckpointSource, **planned: Any) -> bool:
    """Whether the table of a source answers its request; `planned` are further arguments of `plan`.

    Raises:
        InputError: If it answers another request.
    """
    (request,) = plan(kind, [source], **planned)
    return request.answered()
