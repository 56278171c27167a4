"""What `compare` does with a grid: plan it, say what it costs, execute it behind a board of bars, conclude."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import ExecutionOptions, GridOptions, MachineOptions
from bnsmooth_cli.errors import DamagedError, IncompleteError, InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from bnsmooth_cli.studies.grid import Study
    from bnsmooth_cli.studies.outcome import Outcome
    from bnsmooth_cli.studies.run import Task


def run_study(
    folder: Path,
    options: GridOptions,
    asked: dict[str, Any],
    execution: ExecutionOptions,
    machine: MachineOptions,
    target_loss: float | None,
    target_accuracy: float | None,
) -> tuple[Outcome, list[str]] | None:
    """Bring about what is missing of a study, and conclude from all its runs: what they say, and the runs that failed.

    None for a dry run. Raises InputError before any work for a grid that cannot be, and IncompleteError where no run
    has finished.
    """
    from bnsmooth_cli.studies.grid import Study, blaming, read_grid
    from bnsmooth_cli.studies.run import tasks

    if machine.threads is not None:
        asked = {**asked, "threads": machine.threads}
    grid = read_grid(asked, options.study)
    if not grid.norms:
        raise InputError("give RUN directories to compare, or a grid: --norms none,batch --seeds 0-4, or --study FILE")
    execution.check()
    study = Study(folder)
    study.join(grid)
    missing, failed = _plan(tasks(study, grid, machine.device, machine.force))
    todo = [task for task, kinds in missing.items() if kinds or task.trained() < task.config.steps]
    if todo and execution.dask in (None, "local"):
        from bnsmooth_cli.training.devices import choose_device

        choose_device(machine.device)
    with blaming(options.study):
        _check_networks(todo)
    if execution.dry_run:
        if not missing:
            raise IncompleteError(f"{folder}: none of the {len(failed)} runs that were asked for can be read")
        _print_plan(missing, execution)
        return None
    with study.locked():
        study.add(grid)
        if todo:
            failed |= _execute(study, todo, execution)
        from bnsmooth_cli.studies.outcome import conclude

        runs, refused = study.runs(besides=failed)
        for name, reason in refused.items():
            _report_failure(name, reason)
        failed |= refused
        if not runs:
            raise IncompleteError(f"{folder}: none of its {len(failed)} runs has finished")
        outcome = conclude(runs, study, target_loss=target_loss, target_accuracy=target_accuracy)
        outcome.write(study.table, runs)
    return outcome, list(failed)


def _plan(planned: list[Task]) -> tuple[dict[Task, tuple[str, ...]], dict[str, str]]:
    """The tables that every run lacks; and the runs that have failed already, by a damaged file."""
    missing, failed = {}, {}
    for task in planned:
        try:
            missing[task] = task.missing()
        except DamagedError as error:
            failed[task.config.name] = str(error)
            _report_failure(task.config.name, str(error))
    return missing, failed


def _report_failure(name: str, reason: str) -> None:
    terminal.complain(f"{name} failed, the others go on: {reason}")


def _print_plan(missing: dict[Task, tuple[str, ...]], execution: ExecutionOptions) -> None:
    """What would be done, run by run, and the time and space that it would take here."""
    import pandas as pd

    from bnsmooth_cli.studies.cost import Prices

    prices, rows, seconds, size = Prices(), [], 0.0, 0
    for task, kinds in missing.items():
        reached, steps = task.trained(), task.config.steps
        state = "finished" if reached == steps else f"from step {reached}" if reached else "new"
        row = {"run": task.config.name, "training": state, "steps": steps - reached, "tables": len(kinds)}
        if kinds or reached < steps:
            cost = prices.cost(task, kinds)
            seconds, size = seconds + cost.seconds, size + cost.bytes
            rows.append({**row, "points": cost.points, "about": _duration(cost.seconds)})
        else:
            rows.append({**row, "points": 0, "about": "-"})
    jobs, threads = min(execution.jobs or 1, len(missing)), next(iter(missing)).threads
    total = f"about {_duration(seconds / jobs)} on {_count(jobs, 'job')} of {_count(threads, 'thread')}"
    note = f"{_count(len(rows), 'run')}: {total}, {size / 1e6:.3g} MB of checkpoints" if seconds else "nothing to do"
    terminal.summary("what the study would do", pd.DataFrame(rows), list(rows[0]), f"{note}; nothing was written", None)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> _duration(42.4), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"


def _check_networks(todo: list[Task]) -> None:
    """Find a norm, a size or data that does not fit before anything is trained."""
    from bnsmooth_cli import problems

    for config in {task.config.norm: task.config for task in todo}.values():
        problems.build(config).build()


def _execute(study: Study, todo: list[Task], execution: ExecutionOptions) -> dict[str, str]:
    """The runs that failed, with why; each is reported when it does."""
    from bnsmooth_cli.studies.run import Progress, execute

    failed: dict[str, str] = {}
    permit = Progress.permit(study.path)
    todo = [replace(task, permit=permit) for task in todo]
    with _executor(execution, todo) as executor, _board(study, len(todo)) as finished:
        try:
            for task, result in execute(executor, todo):
                if isinstance(result, str):
                    failed[task.config.name] = result
                    _report_failure(task.config.name, result)
                finished()
        finally:
            Progress.stop(study.path)  # interrupted, the runs end before their workers do
    return failed


def _executor(execution: ExecutionOptions, todo: list[Task]) -> AbstractContextManager[Executor]:
    from bnsmooth_cli.studies import executors

    if execution.dask is not None:
        return executors.dask(execution.dask, execution.jobs, terminal.complain)
    import torch

    gpus = None
    if todo[0].device in ("auto", "cuda"):
        gpus = executors.gpus(torch.cuda.device_count())
    return executors.local(min(execution.jobs or 1, len(todo)), gpus)


@contextmanager
def _board(study: Study, total: int) -> Iterator[Any]:
    """Bars for the whole study and each running run, read from the runs' own files; call it when a run is over."""
    from bnsmooth_cli.studies.run import Progress

    ended = threading.Event()
    with terminal.board("study", total) as (show, finished):

        def watch() -> None:
            while not ended.wait(Progress.EVERY):
                show(Progress.read(study.path))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield finished
        finally:
            ended.set()
            watcher.join()
