"""Requests: what one table shall contain, and whether a table, or points of it, answer that."""

from __future__ import annotations

import itertools
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnsmooth_cli import kinds
from bnsmooth_cli.config import from_dict
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures.measurement import Measurement
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import checksum
from bnsmooth_cli.storage.journal import begun_anew
from bnsmooth_cli.storage.runs import CheckpointSource
from bnsmooth_cli.user_code import check_named, digest


def measurement(kind: str) -> Measurement:
    """The measurement that produces tables of a kind."""
    loaded: Measurement = pkgutil.resolve_name(f"bnsmooth_cli.measures.{kinds.get(kind).measurement}")
    return loaded


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

    @classmethod
    def of(
        cls,
        kind: str,
        path: Path,
        sources: Sequence[CheckpointSource],
        steps: dict[str, list[int]],
        arguments: dict[str, dict[str, Any]],
        **more: Any,
    ) -> Request:
        """A request with the digests of the sources' code and weights; `more` are its other attributes."""
        names = [name for source in sources for name in (source.config.problem, source.config.norm)]
        code = {name: state for name in names if (state := digest(name)) is not None}
        weights = {source.name: checksum(source.path) for source in sources if source.weights is not None}
        return cls(kind, path, tuple(sources), steps, arguments, code, weights, **more)

    def provenance(self) -> dict[str, dict[str, Any]]:
        """The entries of a table's provenance that decide whether it answers this request."""
        runs = {source.name: source.known for source in self.sources}
        entries: dict[str, dict[str, Any]] = {"runs": runs, "steps": self.steps, "options": self.arguments}
        return entries | {name: value for name in ("code", "weights") if (value := getattr(self, name))}

    def differences(self, written: Mapping[str, Any]) -> list[str]:
        """The entries by which points are not of this request, given the provenance that is written with them.

        Other steps are no difference: each point is measured for itself. Where it is not (`Measurement.context`), every
        entry has to be the same. Nor are the measurement's additions, if only one of the two has them.
        """
        own = self.provenance()
        decisive = {**own, "code": self.code, "weights": self.weights}  # which provenance leaves out where it is empty
        different = {key for key, value in decisive.items() if written.get(key, {}) != value}
        if measurement(self.kind).context is None:
            different.discard("steps")
            if _same_trajectories(written.get("runs"), self.sources):
                different.discard("runs")
        if "runs" in different and (renamed := _other_names(written.get("runs"), own["runs"])):
            return [f"runs ({renamed})"]  # the options are listed by run
        theirs = written.get("options")
        added, present = _additions(self.kind, self.arguments), _additions(self.kind, theirs)
        alike = not added or not present or added == present
        if alike and _bare(self.kind, theirs) == _bare(self.kind, self.arguments):
            different.discard("options")
        return [key for key in decisive if key in different]

    def has_additions(self, written: Mapping[str, Any]) -> bool:
        """Whether points have the measurement's additions, given the provenance that is written with them."""
        return bool(_additions(self.kind, written.get("options")))

    def lacks_additions(self, written: Mapping[str, Any]) -> bool:
        """Whether points lack additions that are requested: they are measured anew."""
        return self.has_additions({"options": self.arguments}) and not self.has_additions(written)

    def with_additions(self, written: Mapping[str, Any]) -> Request:
        """The same request with the additions that points have, given the provenance that is written with them."""
        added = _additions(self.kind, written.get("options"))
        return replace(self, arguments={run: chosen | added.get(run, {}) for run, chosen in self.arguments.items()})

    def read(self) -> dict[str, Any] | None:
        """The provenance of the table at `path`; None if there is none, or if it is measured again (`--force`).

        Raises:
            InputError: If the table there answers another request.
        """
        if not self.path.exists() or begun_anew(self.path):
            return None
        written = tables.read_provenance(self.path, self.kind)
        if different := self.differences(written):
            code = written.get("code")
            for config, option in itertools.product((source.config for source in self.sources), ("problem", "norm")):
                if isinstance(code, dict) and (name := getattr(config, option)) in code and name not in self.code:
                    check_named(name, option)
            raise InputError(
                f"{self.path}: already a table of kind {self.kind}, of other {' and '.join(different)}; replace it "
                "with --force, or write another file with -o"
            )
        return written

    def answered(self) -> bool:
        """Whether the table at `path` answers this request.

        A table that lacks a step, the measurement's additions, or a column that an earlier version did not have, does
        not, nor does one that was written before a run got more steps: its rows have other settings. A table that has
        steps or additions which are not requested does.

        Raises:
            InputError: If the table there answers another request.
        """
        written = self.read()
        if written is None or self.lacks_additions(written) or tables.lacking(self.path):
            return False
        if any(written["runs"][source.name].get("steps") != source.config.steps for source in self.sources):
            return False
        return all({*steps} <= tables.steps_in(written, run) for run, steps in self.steps.items())


def _same_trajectories(written: object, sources: Sequence[CheckpointSource]) -> bool:
    """Whether the runs that are written are those of the sources: their points are the same at the same steps."""
    if not isinstance(written, dict) or {*written} != {source.name for source in sources}:
        return False
    try:
        return not any(from_dict(written[s.name], "").differences(s.config) for s in sources)
    except InputError:  # of another version
        return False


def _other_names(written: object, own: Mapping[str, Any]) -> str:
    """The names of the runs that are written, and those of the own runs, if these are others."""
    if not isinstance(written, dict) or {*written} == {*own}:
        return ""
    return f"{', '.join(map(str, written))}; now {', '.join(own)}"


def _bare(kind: str, options: object) -> object:
    """Options by run, without the measurement's additions."""
    if not isinstance(options, dict):
        return options
    return {
        run: {key: value for key, value in arguments.items() if key not in kinds.get(kind).additions}
        if isinstance(arguments, dict)
        else arguments
        for run, arguments in options.items()
    }


def _additions(kind: str, options: object) -> dict[str, dict[str, Any]]:
    """The measurement's additions among options, by the runs that have some."""
    by_run = options if isinstance(options, dict) else {}
    return {
        run: chosen
        for run, arguments in by_run.items()
        if isinstance(arguments, dict)
        and (chosen := {key: value for key, value in arguments.items() if key in kinds.get(kind).additions})
    }
