"""The progress of work: bars on a terminal, and plain lines where stderr is no terminal and in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from bnsmooth_cli.cli import log, terminal
from bnsmooth_cli.cli.layout import plain
from bnsmooth_cli.studies.progress import duration

#: At least this many seconds are between two lines of one piece of work: one at first, so that a short job can be
#: followed; a hundredth of the time that has passed, so that the log of a long job stays short; never more than a
#: minute, so that a job that hangs is noticed. A day has about 1,500 lines, whatever the number of evaluations.
SHORTEST, SHARE, LONGEST = 1.0, 0.01, 60.0
#: What is counted in a stage of the work, in one unit and in several.
UNITS: Final = {"train": ("step", "steps"), "measure": ("point", "points")}


@dataclass
class _Stage:
    """A stage of a piece of work: what is done of it, since when, and which line was the last one."""

    name: str
    start: int
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    note: str = ""
    printed: float | None = None
    printed_done: int = -1
    bar: TaskID | None = None

    def is_due(self, milestone: bool) -> bool:
        """Whether a line is due. A milestone is an evaluation or a measured point; others only break a long silence."""
        if self.printed is None or (milestone and self.done >= self.total):
            return True
        now = time.monotonic()
        least = min(max(SHORTEST, SHARE * (now - self.begun)), LONGEST) if milestone else LONGEST
        return now - self.printed >= least

    def line(self) -> str:
        """Where the stage is, as a line of a log."""
        one, several = UNITS[self.name]
        place = f"step {self.done} of {self.total}" if one == "step" else f"{self.done} of {self.total} {several}"
        parts = [place, self.note]
        spent, done = time.monotonic() - self.begun, self.done - self.start
        if done > 0 and spent > 0:
            rate = done / spent
            parts.append(f"{rate:.3g} {several}/s" if rate >= 1 else f"{spent / done:.3g} s/{one}")
            left = (self.total - self.done) / rate
            parts.append(f"{duration(left)} left" if left > 0 else f"{duration(spent)} in all")
        return ", ".join(filter(None, parts))


class Reports:
    """Reports the progress of pieces of work, such as the runs of a study, each in its present stage.

    Lines are printed where there are no bars, and to the log in any case. `SHORTEST` says how many.
    """

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)), BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)), _Rate(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            # A narrow terminal cuts the note, and nothing else.
            TextColumn("{task.fields[note]}", markup=False,
                       table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )  # fmt: skip
        self._as_bars = terminal.err.is_terminal and not terminal.is_quiet()
        self._bars = Progress(*columns, console=terminal.err, transient=True, expand=True, disable=not self._as_bars)
        self._stages: dict[str, _Stage] = {}

    def __enter__(self) -> Reports:
        self._bars.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for work in [*self._stages]:
                self.finish(work)
        self._bars.stop()

    def count(self, label: str, total: int, note: str) -> Callable[[], None]:
        """Add a bar that counts pieces of work, and return the function that counts one more."""
        bar = self._bars.add_task(label, total=total, note=note)
        return lambda: self._bars.advance(bar)

    def update(self, work: str, stage: str, done: int, total: int, note: str = "", *, milestone: bool = True) -> None:
        """Report what is done of a stage.

        Args:
            work: The piece of work, such as a run.
            stage: A key of `UNITS`. Each stage has its own rate.
            done: How much is done.
            total: How much there is.
            note: What is remarkable.
            milestone: Whether this is an evaluation or a measured point.
        """
        if work not in self._stages or self._stages[work].name != stage:
            self.finish(work)
            self._stages[work] = _Stage(stage, done)
            label = work if stage == "train" else f"{work}, measured"
            self._stages[work].bar = self._bars.add_task(label, total=total, note=note)
        now = self._stages[work]
        now.done, now.total, now.note = done, total, note
        assert now.bar is not None
        self._bars.update(now.bar, completed=done, total=total, note=note)
        if now.is_due(milestone) and done != now.printed_done:
            self._print(work, now)

    def has(self, work: str) -> bool:
        """Whether a piece of work has been reported and has not ended."""
        return work in self._stages

    def finish(self, work: str) -> None:
        """The present stage of a piece of work has ended well: its last point too, which was reported before."""
        if (stage := self._stages.get(work)) is not None:
            if stage.name == "measure":
                stage.done, stage.note = stage.total, ""
            if stage.done != stage.printed_done:
                self._print(work, stage)
        self.end(work)

    def end(self, work: str) -> None:
        """A piece of work, or its present stage, has ended."""
        if work in self._stages:
            stage = self._stages.pop(work)
            if stage.bar is not None:
                self._bars.remove_task(stage.bar)

    def _print(self, work: str, stage: _Stage) -> None:
        stage.printed, stage.printed_done = time.monotonic(), stage.done
        line = plain(f"{work}: {stage.line()}")
        if self._as_bars:
            log.write(line)
        else:
            terminal.inform(line)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.3g}/s")
