"""The measuring commands: the options that all of them share, and the work that all of them do.

A command module declares its own groups of options, its help text, and a function that prints a summary of the rows.
`measuring` makes a command of these.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import (
    ExportOptions,
    FileOptions,
    MachineOptions,
    MeasureOptions,
    RunOptions,
    StepOptions,
    grouped,
    say_exported,
    say_places,
)
from bnsmooth_cli.cli.progress import Reports
from bnsmooth_cli.cli.train import train_or_find
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


Rows: TypeAlias = "pd.DataFrame"  # a name that does not import pandas
#: Prints a summary of the measured rows.
Summarise = Callable[[Rows], None]


def line_of(rows: Rows) -> str:
    """Along what the line of a table goes, in words; empty for the gradient."""
    return kinds.DIRECTIONS[str(rows["direction"].iloc[0])] if "direction" in rows and len(rows) else ""


def measuring(*groups: type[MeasureOptions], problem: str | None = None) -> Callable[[Summarise], Callable[..., None]]:
    """Make a measuring command from a function that prints a summary of the measured rows.

    The name of the function is the kind of table, and its docstring is the help text of the command.

    Args:
        groups: The groups of options that become keyword arguments of the measurement's `plan`.
        problem: The problem that is trained if neither a run nor `--problem` is given; None for the usual default.
    """

    def decorate(summarise: Summarise) -> Callable[..., None]:
        name = summarise.__name__
        groups_by_key = {f"group{number}": group for number, group in enumerate(groups)}

        @functools.wraps(summarise)
        def command(**values: Any) -> None:
            chosen: list[MeasureOptions] = [values.pop(key) for key in groups_by_key]
            options = {key: value for group in chosen for key, value in group.given().items()}
            kind = f"{name}-{options.pop('variant')}" if "variant" in options else name
            _measure(summarise, kind, options, problem, **values)

        steps, *others = [*inspect.signature(_measure, eval_str=True).parameters.values()][4:]
        if not kinds.get(name).tensorboard:
            others = [parameter for parameter in others if parameter.annotation is not ExportOptions]
        own = [inspect.Parameter(key, steps.kind, annotation=group) for key, group in groups_by_key.items()]
        command.__signature__ = inspect.Signature([steps, *own, *others])  # type: ignore[attr-defined]
        return grouped(command)

    return decorate


def _measure(
    summarise: Summarise,
    kind: str,
    options: dict[str, Any],
    problem: str | None,
    *,
    steps: StepOptions,
    run: RunOptions,
    files: FileOptions,
    machine: MachineOptions,
    export: ExportOptions = ExportOptions(),
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|CKPT",
            help="Run directories or checkpoints (default: the run that the options describe).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure the sources, or the weights or the run that the options describe, and summarise the rows."""
    weights = files.weights
    where = steps.chosen()
    described = [f"{flag}: describes a run to train" for flag in run.described()]
    if sources and (described or weights):
        reason = described[0] if described else f"--weights {weights}: names what to measure"
        raise InputError(f"{reason}; leave it out, or leave out {sources[0]}")
    config = None if sources else run.config(problem)  # a wrong setting is refused before torch is imported
    machine.apply()
    live = export.live()
    import pandas as pd

    from bnsmooth_cli import problems
    from bnsmooth_cli.measures.measuring import execute, pending, plan
    from bnsmooth_cli.measures.request import measurement
    from bnsmooth_cli.storage.runs import open_source, open_weights
    from bnsmooth_cli.storage.tables import check_target, read_table
    from bnsmooth_cli.training.devices import choose_device

    if sources:
        opened = [open_source(path) for path in sources]
        for source in opened:
            run.check_code(source.config, source.path)
    elif weights is not None:
        assert config is not None
        opened = [open_weights(weights, config)]
    else:
        assert config is not None
        # Refuse wrong options before training, which takes longer.
        arguments = measurement(kind).plan(config, **options)
        checked = measurement(kind).confirm(arguments, lambda: problems.build(config, choose_device(machine.device)))
        if files.output is not None:
            check_target(files.output, kind, machine.force)
        # --force replaces this command's table. It never trains an existing run again.
        opened = [train_or_find(config, device=machine.device, problem=checked, live=live).source()]
    data = run.given().get("data")
    requests = plan(kind, opened, files.output, **where, options=options, device=machine.device, data=data)
    left = pending(requests, machine.force)
    for request in requests:
        points = sum(map(len, request.steps.values()))
        what = "measures" if request in left else "is there, with"
        terminal.explain(f"{request.path}: {what} {points} point{'s' * (points != 1)}")
    with Reports() as reports:

        def progress(name: str, step: int, done: int, total: int) -> None:
            if done and not reports.has(kind):
                terminal.inform(f"{kind}: continuing with {done} of {total} points")
            reports.update(kind, "measure", done, total, f"{name} step {step}")

        execute(left, force=machine.force, progress=progress, live=live)
    for request in requests:
        for source in request.sources:
            live.complete(source, [request.path])
        terminal.wrote(request.path)
        say_exported(live, request.path)
    say_places(live)
    columns = [name for name, column in kinds.get(kind).columns.items() if column.type != "list"]
    summarise(pd.concat([read_table(request.path, kind, columns) for request in requests], ignore_index=True))
