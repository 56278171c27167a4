"""Studies on the command line: read the grid, plan the study, and print the plan or execute it with progress bars."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import ExecutionOptions, ExportOptions, MachineOptions
from bnsmooth_cli.errors import IncompleteError, InputError
from bnsmooth_cli.studies.progress import StudyProgress

if TYPE_CHECKING:
    from bnsmooth_cli.studies.folder import Study
    from bnsmooth_cli.studies.run import Plan
    from bnsmooth_cli.studies.work import Task


#: When the command began, but for Python's own start: this module is imported before torch and the images.
_BEGUN: Final = time.monotonic()


def run_study(
    folder: Path,
    file: Path | None,
    options: dict[str, Any],
    execution: ExecutionOptions,
    machine: MachineOptions,
    export: ExportOptions,
    target_loss: float | None,
    target_accuracy: float | None,
    runs: Sequence[Path] = (),
) -> Study | None:
    """Run the study that the options and the study file define, which takes some runs. A dry run returns None."""
    from bnsmooth_cli.studies.grid import read_grid
    from bnsmooth_cli.studies.run import plan, run

    if machine.threads is not None:
        options = {**options, "threads": machine.threads}
    grid = read_grid(options, file)
    if not grid.norms:
        raise InputError("give RUN directories to compare, or a grid: --norms none,batch --seeds 0-4, or --study FILE")
    planned = plan(
        grid, folder, jobs=execution.jobs, dask=execution.dask, device=machine.device, force=machine.force,
        runs=runs, exports=export.live().exports,
    )  # fmt: skip
    if execution.dry_run:
        _print_plan(planned)
        return None
    with Board() as board:
        return run(planned, target_loss=target_loss, target_accuracy=target_accuracy, progress=board)


class Board(StudyProgress):
    """Progress bars: one for the study, and one for each run in progress."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        console = terminal.err
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._study: TaskID | None = None
        self._runs: dict[str, tuple[TaskID, str]] = {}  # the bar and the stage of each run

    def __enter__(self) -> Board:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def planned(self, runs: Sequence[str]) -> None:
        self._study = self._bars.add_task("study", total=len(runs), note="runs")

    def advanced(self, run: str, stage: str, done: int, total: int, note: str) -> None:
        if run in self._runs and self._runs[run][1] != stage:  # each stage has its own rate
            self._remove(run)
        if run not in self._runs:
            self._runs[run] = self._bars.add_task(f"{run} {stage}", total=None, note=""), stage
        self._bars.update(self._runs[run][0], completed=done, total=total, note=note)

    def finished(self, run: str, seconds: float) -> None:
        self._remove(run)
        if self._study is not None:
            self._bars.advance(self._study)

    def failed(self, run: str, reason: str) -> None:
        self.finished(run, 0.0)
        terminal.complain(f"{run} failed, the other runs continue: {reason}")

    def message(self, text: str) -> None:
        terminal.complain(text)

    def _remove(self, run: str) -> None:
        if run in self._runs:
            self._bars.remove_task(self._runs.pop(run)[0])


def _print_plan(planned: Plan) -> None:
    """Print the work that each run still needs, and an estimate of its time, memory and disk space on this machine."""
    for name, reason in planned.unreadable.items():
        terminal.complain(f"{name} cannot be read: {reason}")
    if not planned.runs:
        count = len(planned.unreadable)
        raise IncompleteError(f"{planned.study.path}: none of the {count} runs that were asked for can be read")
    with planned.grid.named_in_errors():
        print_cost("what the study would do", planned.runs, planned.jobs or 1)


def print_cost(title: str, tasks: Sequence[Task], jobs: int) -> None:
    """Print what tasks take on this machine.

    Args:
        title: The line above the table.
        tasks: The remaining work of each run.
        jobs: The processes that share it.
    """
    from bnsmooth_cli.memory import in_words
    from bnsmooth_cli.studies.cost import estimate
    from bnsmooth_cli.training.devices import choose_device
    from bnsmooth_cli.training.needs import device_memory, free_space

    cost = estimate(tasks, start=time.monotonic() - _BEGUN)
    costs, jobs, device = cost.runs, min(jobs, len(tasks)), choose_device(tasks[0].device)
    costs["training"] = [
        "new" if reached == 0 else f"from step {reached}" if steps else "finished"
        for reached, steps in zip(costs["reached"], costs["steps"], strict=True)
    ]
    costs["about"] = [duration(seconds) if seconds else "-" for seconds in costs["seconds"]]
    note = "nothing to do"
    if costs["seconds"].any():
        memory, disk, free = cost.memory(jobs), float(costs["disk"].sum()), free_space(tasks[0].path)
        note = (
            f"{_count(len(costs), 'run')}: about {duration(cost.seconds(jobs, tasks[0].threads))} on "
            f"{_count(jobs, 'job')} of {_count(tasks[0].threads, 'thread')}, {in_words(memory)} of memory and "
            f"{in_words(disk)} on the disk"
        )
        room = device_memory(device).available
        if room is not None and memory > room and device.type == "cpu":  # jobs may use several GPUs
            terminal.complain(f"note: {in_words(memory)} of memory are more than the available {in_words(room)}")
        if free is not None and disk > free:
            terminal.complain(f"note: {in_words(disk)} on the disk are more than the free {in_words(free)}")
    for name in ("memory", "disk"):
        costs[name] = [in_words(size) if size else "-" for size in costs[name]]
    columns = ["run", "training", "steps", "points", "about", "memory", "disk"]
    terminal.summary(title, costs, columns, f"{note}; nothing was written", None)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """A duration to two or three digits.

    >>> duration(42.4), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
