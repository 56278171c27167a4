"""From points to tables: plan the requests for tables, and execute them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bnsmooth_cli import stopping
from bnsmooth_cli.bars import Bar
from bnsmooth_cli.bars import wanted as shown
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.recording import Progress, Recording, Report, Together, recording
from bnsmooth_cli.measures.request import Request, measurement
from bnsmooth_cli.points.reaching import open_problem, reachable, visit
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import begin_anew, begun_anew, journal_path
from bnsmooth_cli.storage.live import Exports, Live
from bnsmooth_cli.storage.runs import CheckpointSource


def steps_of(
    source: CheckpointSource, every: int | None = None, at: Sequence[int] | None = None, last_only: bool = False
) -> list[int]:
    """The steps to measure: `at`, or every `every`-th step, or the checkpoints (with `last_only`, the last one)."""
    if at is not None:
        first = min(source.checkpoints, default=0) if source.path.is_dir() else 0
        reachable(source, [step for step in at if not 0 <= step < first])  # a table may have those before (--keep)
        return sorted({*at})
    if every is None:
        return reachable(source, sorted(source.checkpoints)[-1:] if last_only else source.checkpoints)
    if not source.path.is_dir():
        raise InputError(f"--every: needs a run; {source.path} is one checkpoint (choose steps after it with --at)")
    steps = range(0, source.last + 1, every)
    return reachable(source, [step for step in steps if step >= min(source.checkpoints, default=0)])


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
    _check_different(sources, together=output is not None)
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
        shared = problem if len(sources) == 1 else None  # the problems of many sources may not fit in memory
        requests.append(Request.of(kind, path, group, steps, chosen, device=device, data=data, problem=shared))
    return requests


def _check_different(sources: Sequence[CheckpointSource], together: bool) -> None:
    """Check that no source is given twice, and that those of one table have different names.

    Raises:
        InputError: If not.
    """
    seen: dict[Any, CheckpointSource] = {}
    for source in sources:
        for key in (source.path.resolve(), *([source.name] if together else [])):
            if (other := seen.setdefault(key, source)) is source:
                continue
            if other.path.resolve() == source.path.resolve():
                raise InputError(f"{source.path}: given twice; give each source once")
            raise InputError(
                f"{source.path}: has the name of {other.path}, and one table cannot tell them apart; leave out -o, "
                "which writes a table for each, or rename a folder"
            )


def pending(requests: Sequence[Request], force: bool = False) -> list[Request]:
    """The requests that no table answers yet; with `force`, all of them.

    Raises:
        InputError: If the path of one of them cannot be written, or one holds something other than the answer to its
            request.
    """
    left = [request for request in requests if force or not (request.path.is_file() and request.answered())]
    for request in left:
        tables.check_target(request.path, request.kind, force or begun_anew(request.path))
    for request in requests:
        if request not in left and journal_path(request.path).exists():  # of a command that was killed at its end
            with suppress(InputError), recording(request) as table:
                table.tidy()
    return left


def execute(
    requests: Sequence[Request],
    *,
    force: bool = False,
    progress: Progress | None = None,
    live: Live | None = None,
) -> None:
    """Measure what is missing of the requests, and write their tables.

    The tables of a source are measured together, so that its trajectory is walked once. Each point is kept as soon as
    it is measured: after an interruption, the same requests resume at the next point.

    Args:
        requests: What to measure.
        force: Whether points that are there already are measured again. Their tables stay until then.
        progress: Called before each point with the run, the step, the number of points measured so far, and the total.
        live: The programs that get the numbers of points as these are measured.

    Raises:
        InputError: If a table, or what is there of it, is of another request.
        stopping.Interrupted, stopping.Terminated, stopping.Withdrawn: If the work was told to stop.
    """
    problem = None
    if force and requests:  # all of them now: the command that continues after an interruption does not begin again
        problem = _problem(requests[0].sources[0], requests[0])  # or a wrong --device would cost the points
        for request in requests:
            begin_anew(request.path, request.kind)
    left = {request.path: len(request.sources) for request in requests}
    opened: dict[Path, tuple[Recording, ExitStack]] = {}
    report = Report(progress, sum(map(_points, requests)))
    with ExitStack() as stack, stopping.deferred():
        for path, source in {source.path: source for request in requests for source in request.sources}.items():
            mine = [request for request in requests if path in [of.path for of in request.sources]]
            for request in mine:
                if request.path not in opened:
                    own = stack.enter_context(ExitStack())
                    opened[request.path] = own.enter_context(recording(request)), own
                    report.done += opened[request.path][0].measured
                    report.total += opened[request.path][0].total - _points(request)
            _walk(source, mine, [opened[request.path][0] for request in mine], report, problem, live or Live(Exports()))
            problem = None
            for request in mine:
                left[request.path] -= 1
                if not left[request.path]:
                    table, own = opened[request.path]
                    table.finish()
                    own.close()


def _points(request: Request) -> int:
    """The number of points that a request asks for."""
    return sum(map(len, request.steps.values()))


def _problem(source: CheckpointSource, request: Request) -> Problem:
    """The problem of a source of a request."""
    return request.problem or open_problem(source.with_data(request.data), request.device)


def _walk(
    source: CheckpointSource,
    requests: Sequence[Request],
    recordings: Sequence[Recording],
    report: Report,
    problem: Problem | None,
    live: Live,
) -> None:
    """Measure what is missing of the points of a source, whose problem may be open already."""
    if not any(recording.missing(source.name) for recording in recordings):
        return  # without opening the problem
    moved, opened = source.with_data(requests[0].data), [request for request in requests if request.problem]
    problem = problem or _problem(source, [*opened, *requests][0])
    together = Together(recordings, moved, problem, report)
    with live.feed(source) as feed:
        try:
            for point in visit(moved, together.steps(source.name), problem=problem):
                together.measure(point)
                if feed is not None and feed.due():
                    together.show(feed)
        finally:
            if feed is not None:
                together.show(feed)
    if stopping.told():
        stopping.stop(together.kept)


def measure(
    kind: str,
    sources: Sequence[CheckpointSource],
    output: Path | None = None,
    *,
    force: bool = False,
    progress: Progress | bool | None = None,
    **planned: Any,
) -> list[Path]:
    """Plan and measure the sources in one call (see `plan` and `execute`), and return the paths of the tables.

    A table that already answers its request is kept; with `force` it is measured again. `progress` may also be whether
    a progress bar is shown; by default, in a terminal and in a notebook. `planned` are further arguments of `plan`.
    """
    requests = plan(kind, sources, output, **planned)
    left = pending(requests, force)
    if callable(progress) or not shown(progress):
        execute(left, force=force, progress=progress if callable(progress) else None)
    else:
        with Bar(kind, "points") as bar:
            execute(left, force=force, progress=lambda run, step, done, total: bar(done, total, f"{run} step {step}"))
            bar.end()
    return [request.path for request in requests]
