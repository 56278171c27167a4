"""The measurements, point -> rows, and their tables over many points; a new one is a module and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bnsmooth_cli import tables
from bnsmooth_cli._version import __version__
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import line, selection
from bnsmooth_cli.measures.activations import activations, moved
from bnsmooth_cli.measures.ics import ics
from bnsmooth_cli.measures.line import landscape, line_alphas
from bnsmooth_cli.measures.smoothness import smoothness
from bnsmooth_cli.measures.theory import theory
from bnsmooth_cli.points import nearest_checkpoints, reachable, visit
from bnsmooth_cli.runs import Source, locked

__all__ = [
    "MEASURES", "activations", "ics", "landscape", "line_alphas", "measure", "smoothness", "steps_of", "theory",
]  # fmt: skip


def _no_options(config: Config) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Measure:
    """A measurement: its rows at a point, the arguments that a run's configuration and the options make for it
    (InputError where they cannot be), and what the rows before say of a run's next ones."""

    rows: Callable[..., pd.DataFrame]
    plan: Callable[..., dict[str, Any]] = _no_options
    since: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] = lambda before, rows: rows


MEASURES: Final = {
    "landscape": Measure(landscape, line.plan),
    "smoothness": Measure(smoothness, line.plan),
    "ics": Measure(ics),
    "activations": Measure(activations, selection.plan, moved),
    "theory": Measure(theory, selection.plan),
}

Progress = Callable[[str, int, int, int], None]  # (run, step, points measured, points in all)


def steps_of(source: Source, every: int | None = None, at: Sequence[int] | None = None) -> list[int]:
    """The steps to measure: the source's checkpoints, or every `every`-th step that they reach, or those in `at`."""
    if at is not None or every is None:
        return reachable(source, source.checkpoints if at is None else at)
    if not source.path.is_dir():
        raise InputError(f"--every: goes with a run; {source.path} is one checkpoint (--at chooses steps after it)")
    first, last = min(source.checkpoints, default=0), max(source.checkpoints, default=0)
    return reachable(source, range(first, last + 1, every))


def measure(
    kind: str,
    sources: Sequence[Source],
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

    `options` holds the keyword arguments of `line_alphas` or of `selection.select`, whichever the kind has. A table
    that is there already is kept where it answers the same question, refused where it does not, and replaced with
    `force`.
    """
    what = MEASURES[kind]
    groups = [[source] for source in sources] if output is None else [list(sources)]
    paths = [output or group[0].table_path(kind) for group in groups]
    if len({source.name if output else source.path.resolve() for source in sources}) < len(sources):
        raise InputError(f"{sources[0].path}: given twice, or two runs of one name in one table; give each once")
    plans = []
    for path, group in zip(paths, groups, strict=True):
        request = _request(kind, group, every, at, options or {}, data)
        tables.check_target(path, kind, force)
        if force or not _answered(path, kind, request):
            plans.append((path, group, request))
    total, done = sum(len(chosen) for plan in plans for chosen in plan[2]["steps"].values()), count()

    def walk(source: Source, request: dict[str, Any], own: bool) -> Iterator[pd.DataFrame]:
        before: pd.DataFrame | None = None
        for point in visit(source.with_data(data), request["steps"][source.name], device):
            if progress is not None:
                progress(source.name, point.step, next(done), total)
            rows = what.rows(point, **request["options"][source.name])
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


def measured(kind: str, source: Source, every: int | None = None, at: Sequence[int] | None = None) -> bool:
    """Whether a source's table of a kind is there, of these steps; InputError where it is of others."""
    return _answered(source.table_path(kind), kind, _request(kind, [source], every, at, {}, None))


def _request(
    kind: str,
    group: Sequence[Source],
    every: int | None,
    at: Sequence[int] | None,
    options: dict[str, Any],
    data: str | None,
) -> dict[str, dict[str, Any]]:
    """What a table is the answer to, by source: the configuration, the steps, the measurement's arguments."""
    return {
        "runs": {source.name: source.config.as_dict() for source in group},
        "steps": {source.name: steps_of(source, every, at) for source in group},
        "options": {source.name: MEASURES[kind].plan(source.with_data(data).config, **options) for source in group},
    }


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
