"""The measurements, point -> rows, and their tables over many points; a new one is a module and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bnsmooth_cli import tables
from bnsmooth_cli._version import __version__
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.ics import ics
from bnsmooth_cli.measures.line import landscape, line_alphas
from bnsmooth_cli.measures.smoothness import smoothness
from bnsmooth_cli.points import reachable, visit
from bnsmooth_cli.runs import Source

__all__ = ["MEASURES", "ics", "landscape", "line_alphas", "measure", "smoothness", "steps_of"]

MEASURES: Final[dict[str, Callable[..., pd.DataFrame]]] = {
    "landscape": landscape,
    "smoothness": smoothness,
    "ics": ics,
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
    line: dict[str, Any] | None = None,
    device: str = "auto",
    data: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Measure the sources and write a table each, or one for all at `output`; the tables' paths.

    `line` holds the keyword arguments of `line_alphas`. A table that is there already is kept where it answers the
    same question, refused where it does not, and replaced with `force`.
    """
    groups = [[source] for source in sources] if output is None else [list(sources)]
    paths = [output or group[0].table_path(kind) for group in groups]
    if len({source.name if output else source.path.resolve() for source in sources}) < len(sources):
        raise InputError(f"{sources[0].path}: given twice, or two runs of one name in one table; give each once")
    plans = []
    for path, group in zip(paths, groups, strict=True):
        arguments = [{"alphas": line_alphas(s.config.problem, **(line or {}))} if kind != "ics" else {} for s in group]
        steps = [steps_of(source, every, at) for source in group]
        request = {
            "runs": {source.name: source.config.as_dict() for source in group},
            "steps": {source.name: chosen for source, chosen in zip(group, steps, strict=True)},
            "options": {source.name: chosen for source, chosen in zip(group, arguments, strict=True)},
        }
        tables.check_target(path, kind, force)
        if force or not _answered(path, kind, request):
            plans.append((path, group, steps, arguments, request))
    total, done = sum(len(chosen) for plan in plans for chosen in plan[2]), 0
    for path, group, steps, arguments, request in plans:
        rows: list[pd.DataFrame] = []
        reached: dict[str, dict[int, int]] = {}
        for source, chosen, argument in zip(group, steps, arguments, strict=True):
            for point in visit(source, chosen, device, data):
                if progress is not None:
                    progress(source.name, point.step, done, total)
                rows.append(MEASURES[kind](point, **argument))
                reached.setdefault(source.name, {})[point.step] = point.checkpoint
                done += 1
        provenance = {"version": __version__, "trained_forward_from": reached, **request}
        tables.write_table(path, kind, pd.concat(rows, ignore_index=True), provenance)
    return paths


def _answered(path: Path, kind: str, request: dict[str, Any]) -> bool:
    """Whether the table at a path is the request's; InputError where it is another's."""
    if not path.exists():
        return False
    provenance = tables.read_provenance(path, kind)
    if different := [key for key, value in request.items() if provenance.get(key) != value]:
        raise InputError(
            f"{path}: already a {kind} table, of other {' and '.join(different)}; --force, or -o another file"
        )
    return True
