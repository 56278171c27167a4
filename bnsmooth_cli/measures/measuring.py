"""From points to tables: what is measured, of which steps, and the table that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measurement import Measurement
from bnsmooth_cli.points.reaching import nearest_checkpoints, reachable, visit
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import checksum
from bnsmooth_cli.storage.runs import CheckpointSource, locked
from bnsmooth_cli.user_code import digest

Progress = Callable[[str, int, int, int], None]  # (run, step, points measured, points in all)


def measurement(kind: str) -> Measurement:
    """The measurement of a kind."""
    reference = kinds.get(kind).measurement
    assert reference is not None
    found: Measurement = kinds.load(reference, "measures")
    return found


def steps_of(
    source: CheckpointSource, every: int | None = None, at: Sequence[int] | None = None, last_only: bool = False
) -> list[int]:
    """The steps to measure: the source's checkpoints (or the last of them), or every `every`-th step that they reach,
    or those in `at`."""
    if at is not None or every is None:
        usual = sorted(source.checkpoints)[-1:] if last_only else source.checkpoints
        return reachable(source, usual if at is None else at)
    if not source.path.is_dir():
        raise InputError(f"--every: goes with a run; {source.path} is one checkpoint (--at chooses steps after it)")
    first, last = min(source.checkpoints, default=0), max(source.checkpoints, default=0)
    return reachable(source, range(first, last + 1, every))


def measure(
    kind: str,
    sources: Sequence[CheckpointSource],
    output: Path | None = None,
    *,
    every: int | None = None,
    at: Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
    device: str = "auto",
    data: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Measure the sources and write a table each, or one for all at `output`; the tables' paths.

    `options` holds the keyword arguments of the kind's plan (`line_alphas`, `selection.select`, ...). A table
    that is there already is kept where it answers the same question, refused where it does not, and replaced with
    `force`.
    """
    what = measurement(kind)
    groups = [[source] for source in sources] if output is None else [list(sources)]
    objective = (options or {}).get("objective", "batch")
    paths = [output or group[0].table_path(kind, objective) for group in groups]
    if len({source.name if output else source.path.resolve() for source in sources}) < len(sources):
        raise InputError(f"{sources[0].path}: given twice, or two runs of one name in one table; give each once")
    plans = []
    for path, group in zip(paths, groups, strict=True):
        request = _request(kind, group, every, at, options or {}, data)
        tables.check_target(path, kind, force)
        if force or not _answered(path, kind, request):
            plans.append((path, group, request))
    total, done = sum(len(chosen) for plan in plans for chosen in plan[2]["steps"].values()), count()

    def walk(source: CheckpointSource, request: dict[str, Any], own: bool) -> Iterator[pd.DataFrame]:
        before: pd.DataFrame | None = None
        chosen = request["options"][source.name]
        chosen = {**chosen, **what.given(source.with_data(data), chosen, device)}
        for point in visit(source.with_data(data), request["steps"][source.name], device):
            if progress is not None:
                progress(source.name, point.step, next(done), total)
            rows = what.rows(point, **chosen)
            before = rows if before is None else what.since(before, rows)
            if own and not source.path.is_dir():
                raise InputError(f"{source.path}: was removed, or moved, while it was measured; choose a table with -o")
            yield before

    for path, group, request in plans:
        reached = {source.name: nearest_checkpoints(source, request["steps"][source.name]) for source in group}
        provenance = {"version": __version__, "trained_forward_from": reached, **request}
        own = output is None and path.parent == group[0].path
        with locked(path.parent, f"{kind} table", f"{kind}.") if own else nullcontext():
            rows = chain.from_iterable(walk(source, request, own) for source in group)
            tables.write_table(path, kind, rows, provenance)
    return paths


def measured(kind: str, source: CheckpointSource, every: int | None = None, at: Sequence[int] | None = None) -> bool:
    """Whether a source's table of a kind is there, of these steps; InputError where it is of others."""
    return _answered(source.table_path(kind), kind, _request(kind, [source], every, at, {}, None))


def _request(
    kind: str,
    group: Sequence[CheckpointSource],
    every: int | None,
    at: Sequence[int] | None,
    options: dict[str, Any],
    data: str | None,
) -> dict[str, dict[str, Any]]:
    """What a table is the answer to, by source: the configuration, the steps, the measurement's arguments."""
    what, weights = measurement(kind), [source for source in group if source.weights is not None]
    return {
        "runs": {source.name: source.config.as_dict() for source in group},
        "steps": {source.name: steps_of(source, every, at, what.last_only) for source in group},
        "options": {source.name: what.plan(source.with_data(data).config, **options) for source in group},
        **({"code": found} if (found := _code(group)) else {}),
        # Of a file that has no steps and no settings of its own: another one is another question.
        **({"weights": {source.name: checksum(source.path) for source in weights}} if weights else {}),
    }


def _code(group: Sequence[CheckpointSource]) -> dict[str, str]:
    """The state of the user's own modules, where there are any: a changed one gives another table."""
    names = [name for source in group for name in (source.config.problem, source.config.norm)]
    return {name: state for name in names if (state := digest(name)) is not None}


def _answered(path: Path, kind: str, request: dict[str, Any]) -> bool:
    """Whether the table at a path is the request's; InputError where it is another's."""
    if not path.exists():
        return False
    provenance = tables.read_provenance(path, kind)
    if different := [key for key, value in request.items() if provenance.get(key) != value]:
        raise InputError(
            f"{path}: already a table of kind {kind}, of other {' and '.join(different)}; --force, or -o another file"
        )
    return True
