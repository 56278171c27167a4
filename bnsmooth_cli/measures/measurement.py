"""The interface of a measurement, and the columns that all rows start with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import pandas as pd

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.kinds import SELECTING
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.points.reaching import structure_of
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.storage.runs import CheckpointSource

P = ParamSpec("P")


@dataclass(frozen=True)
class Measurement:
    """A measurement. `bnsmooth_cli.kinds` lists them by the kind of table they produce.

    Attributes:
        rows: Computes the rows at a point, as a function of the point and of keyword arguments.
        plan: Validates the options of a command against a run's configuration and returns those keyword arguments.
        check: Raises InputError if a network does not have the layers or units in the arguments.
        since: Completes the rows of a measured step, given the completed rows of the measured step before it, or None
            at the first one. The rows may have been completed for other steps before. None if rows are complete.
        context: Computes keyword arguments of `rows` that need more than one point of the source. It takes the source,
            the planned arguments and the source's problem. None if a point is measured for itself.
        last_only: Whether only the last checkpoint is measured by default.
    """

    rows: Callable[..., pd.DataFrame]
    plan: Callable[..., dict[str, Any]]
    check: Callable[..., object] = lambda structure, **names: None
    since: Callable[[pd.DataFrame | None, pd.DataFrame], pd.DataFrame] | None = None
    context: Callable[[CheckpointSource, dict[str, Any], Problem], dict[str, Any]] | None = None
    last_only: bool = False

    def confirm(self, arguments: dict[str, Any], open_problem: Callable[[], Problem]) -> Problem | None:
        """Check planned arguments that name layers or units.

        Returns:
            The problem that was opened for the check; None if no check needs the network.

        Raises:
            InputError: If the network does not have a layer or unit.
        """
        names = {key: arguments[key] for key in SELECTING if arguments.get(key)}
        if not names:
            return None
        problem = open_problem()
        self.check(structure_of(problem), **names)
        return problem


def measured(rows: Callable[Concatenate[Point, P], pd.DataFrame]) -> Callable[Concatenate[Point, P], pd.DataFrame]:
    """The decorator of every measurement: it runs in the context `undisturbed`, and its rows get the columns that
    identify the point."""

    @functools.wraps(rows)
    def measure(point: Point, /, *args: P.args, **kwargs: P.kwargs) -> pd.DataFrame:
        if not isinstance(point, Point):
            kind = type(point).__name__
            raise InputError(f"{rows.__name__}: takes a point, as bns.load_point gives it, and this is a {kind}")
        for name in SELECTING:
            chosen: Any = kwargs.get(name)
            listed = isinstance(chosen, Collection) and not isinstance(chosen, str) and len(chosen) > 0
            if chosen is not None and not listed:
                raise InputError(f"{name}: {chosen!r} is no list of {name}; give one, as in ['fc1'] or [0, 3]")
        with point.undisturbed():
            return _label(point, rows(point, *args, **kwargs))

    return measure


def _label(point: Point, rows: pd.DataFrame) -> pd.DataFrame:
    """Prepend the columns that identify the run, and `step`."""
    config = point.config
    lead: dict[str, object] = {"run": point.run, "problem": config.problem, "norm": config.norm, "lr": config.lr,
                               "seed": config.seed, "settings": point.settings, "step": point.step}  # fmt: skip
    return pd.DataFrame(lead | {str(name): rows[name] for name in rows}, index=rows.index)
