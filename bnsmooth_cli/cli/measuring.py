"""The measuring commands: the options that all of them take, and how a command is made from its own part.

A command module declares the groups of options that its measurement takes, its help text, and how its rows are
summarised. Everything else is done here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import (
    ExportOptions,
    MachineOptions,
    MeasureOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    WeightOptions,
    grouped,
)
from bnsmooth_cli.cli.train import train_or_find
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def measuring(
    *groups: type[MeasureOptions], problem: str | None = None
) -> Callable[[Callable[[pd.DataFrame], None]], Callable[..., None]]:
    """Make a measuring command from a function that prints a summary of the measured rows.

    The name of the function is the kind of table, and its docstring is the help text of the command.

    Args:
        groups: The groups of options whose `chosen` are keyword arguments of the measurement's `plan`.
        problem: The problem that is trained if neither a run nor `--problem` is given; None for the usual default.
    """

    def decorate(summarise: Callable[[pd.DataFrame], None]) -> Callable[..., None]:
        name = summarise.__name__
        export = {"export": ExportOptions} if kinds.get(name).tensorboard else {}

        def command(
            *,
            steps: StepOptions,
            run: RunOptions,
            weights: WeightOptions,
            machine: MachineOptions,
            export: ExportOptions | None = None,
            sources: list[Path] | None = None,
            output: Path | None = None,
            **options: MeasureOptions,
        ) -> None:
            kind = next((group.kind for group in options.values() if group.kind), name)
            arguments = {key: value for group in options.values() for key, value in group.chosen().items()}
            paths, file = sources or [], weights.weights
            summarise(_measure(kind, paths, output, run, file, steps, arguments, machine, export, problem))

        command.__name__, command.__doc__ = name, summarise.__doc__
        command.__module__ = summarise.__module__
        own = {f"group{number}": group for number, group in enumerate(groups)}
        shared = {"run": RunOptions, "weights": WeightOptions, "machine": MachineOptions, **export}
        parameters = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=group)
            for key, group in {"steps": StepOptions, **own, **shared}.items()
        ]
        parameters += [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for key, annotation in (("sources", Sources), ("output", TableOutput))
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return grouped(command)

    return decorate


def _measure(
    kind: str,
    paths: list[Path],
    output: Path | None,
    run: RunOptions,
    weights: Path | None,
    steps: StepOptions,
    options: dict[str, Any],
    machine: MachineOptions,
    export: ExportOptions | None,
    problem: str | None,
) -> pd.DataFrame:
    """Measure the paths, or the weights or the run that the options describe; the rows without their lists."""
    chosen = steps.chosen()
    for flag in [*run.described(), *([f"--weights {weights}"] if weights else [])]:
        if paths:
            raise InputError(f"{flag}: describes what to measure; leave it out, or leave out {paths[0]}")
    machine.apply()
    if export is not None:
        export.check()
    import pandas as pd

    from bnsmooth_cli.measures.measuring import execute, measurement, pending, plan
    from bnsmooth_cli.storage.runs import open_source, open_weights
    from bnsmooth_cli.storage.tables import check_target, read_table

    arguments = None
    if paths:
        sources = [open_source(path) for path in paths]
        for source in sources:
            run.check_code(source.config, source.path)
    elif weights is not None:
        sources = [open_weights(weights, run.config(problem))]
    else:
        config = run.config(problem)
        arguments = measurement(kind).plan(config, **options)  # before the training, which takes longer
        if output is not None:
            check_target(output, kind, machine.force)
        # --force replaces this command's table. It never trains an existing run again.
        sources = [train_or_find(config, MachineOptions(machine.device)).source()]
    data = run.given().get("data") if paths else None
    requests = plan(kind, sources, output, **chosen, options=options, arguments=arguments, data=data)
    todo = pending(requests, machine.force)
    columns = [name for name, column in kinds.get(kind).columns.items() if column.type != "list"]
    frames: dict[Path, list[pd.DataFrame]] = {request.path: [] for request in requests}
    with terminal.progress(kind) as update:
        execute(
            todo,
            device=machine.device,
            progress=lambda name, step, done, total: update(done, total, f"{name} step {step}"),
            keep=lambda request, rows: frames[request.path].append(rows[columns]),
        )
    for path in frames:
        terminal.say(path)
        if export is not None and (scalars := export.write(path)) is not None:
            terminal.say(scalars)
    kept = {path: [read_table(path, kind, columns)] for path, rows in frames.items() if not rows}
    return pd.concat(chain.from_iterable((frames | kept).values()), ignore_index=True)
