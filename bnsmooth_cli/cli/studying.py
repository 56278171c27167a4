"""Studies on the command line: read the grid, plan the study, and print the plan or execute it with progress bars."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli.cli import BEGUN, terminal
from bnsmooth_cli.cli.options import ExecutionOptions, ExportOptions, MachineOptions
from bnsmooth_cli.cli.progress import UNITS, Reports
from bnsmooth_cli.errors import IncompleteError, InputError
from bnsmooth_cli.studies.progress import StudyProgress, duration

if TYPE_CHECKING:
    from bnsmooth_cli.studies.folder import Study
    from bnsmooth_cli.studies.run import Plan
    from bnsmooth_cli.studies.work import Task


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
    tasks = f"{len(planned.todo)} of {_count(len(planned.runs), 'run')} to train or measure"
    terminal.explain(f"{folder}: {tasks}, {planned.jobs or 1} at once, {_count(grid.threads, 'thread')} each")
    with Board(planned.runs) as board:
        return run(planned, target_loss=target_loss, target_accuracy=target_accuracy, progress=board)


class Board(StudyProgress):
    """Reports the progress of a study and of its runs.

    Args:
        tasks: The runs of the study, as far as they are known.
    """

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self._reports, self._advance = Reports(), lambda: None
        self._tasks = {task.name: task for task in tasks}
        self._todo: Sequence[str] = ()
        self._ended = 0

    def __enter__(self) -> Board:
        self._reports.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reports.__exit__(*error)

    def planned(self, runs: Sequence[str]) -> None:
        self._todo, all_ = runs, len({*self._tasks, *runs})
        if finished := all_ - len(runs):
            terminal.inform(f"continuing: {finished} of {_count(all_, 'run')} are finished")
        self._advance = self._reports.count("study", len(runs), "runs")

    def started(self, run: str) -> None:
        task = self._tasks.get(run)
        if task is not None and 0 < task.reached < task.config.steps:
            terminal.inform(f"{run}: continuing from step {task.reached}")

    def advanced(self, run: str, stage: str, done: int, total: int, note: str) -> None:
        if stage in UNITS:
            self._reports.update(run, stage, done, total, note)

    def finished(self, run: str, seconds: float) -> None:
        self._end(run)
        terminal.inform(f"{run}: finished in {duration(seconds)}, {self._ended} of {_count(len(self._todo), 'run')}")

    def failed(self, run: str, reason: str) -> None:
        self._end(run)
        terminal.complain(f"{run} failed, the other runs continue: {reason}")

    def message(self, text: str) -> None:
        terminal.inform(text)

    def _end(self, run: str) -> None:
        self._reports.end(run)
        if run in self._todo:
            self._ended += 1
            self._advance()


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

    cost = estimate(tasks, start=_since_start())
    exact = cost.runs.copy()
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
            terminal.inform(
                f"bnsmooth: note: {in_words(memory)} of memory are more than the available {in_words(room)}"
            )
        if free is not None and disk > free:
            terminal.inform(f"bnsmooth: note: {in_words(disk)} on the disk are more than the free {in_words(free)}")
    for name in ("memory", "disk"):
        costs[name] = [in_words(size) if size else "-" for size in costs[name]]
    columns = ["run", "training", "steps", "points", "about", "memory", "disk"]
    terminal.summary(title, costs, columns, f"{note}; nothing was written", None, exact)


def _since_start() -> float:
    """The seconds since this process started; where the system does not tell, since its first import of bnsmooth."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.monotonic() - BEGUN


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
