"""One pass: a run is measured while it trains, so that its trajectory is walked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

from torch import nn
from torch.optim import Optimizer

from bnsmooth_cli.bars import Bar
from bnsmooth_cli.bars import wanted as shown
from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.measures.measuring import execute, pending
from bnsmooth_cli.measures.recording import Progress, Report, Together, recording
from bnsmooth_cli.measures.request import Request, measurement
from bnsmooth_cli.measures.wanted import NOTHING, Wanted
from bnsmooth_cli.points.reaching import point_of, reachable
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.custom import Builder
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import Journal, journal_path
from bnsmooth_cli.storage.live import Exports, Feed, Live
from bnsmooth_cli.storage.runs import CheckpointSource, Run
from bnsmooth_cli.training import run as training
from bnsmooth_cli.training.trajectory import Trajectory
from bnsmooth_cli.user_code import name_of


def train(
    problem: str | Builder = "vgg",
    norm: str | Callable[[int], nn.Module] | None = None,
    *,
    preset: str = "quick",
    optimizer: str | Callable[[list[nn.Parameter]], Optimizer] | None = None,
    seed: int = 0,
    measure: Iterable[str] = (),
    every: SupportsIndex | None = None,
    at: Iterable[SupportsIndex] | None = None,
    probe: bool = False,
    batches: SupportsIndex = 0,
    output: Path | str | None = None,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    progress: training.Progress | bool | None = None,
    tensorboard: bool = False,
    wandb: str | None = None,
    **settings: Any,
) -> Run:
    """Train a run to its end, or resume it from its last checkpoint. A finished run is returned as it is.

    With `measure`, the run is measured as it trains. The tables are those that the measuring commands write afterwards,
    byte for byte, and cost no second walk along the trajectory. What a finished run lacks of them is measured too.

    Args:
        problem: A problem's name, your own as "module:function", or the function itself.
        norm: A norm's name, your own as "module:class", or the class itself; the preset's by default.
        preset: The settings to start from: "quick", or "paper" for "vgg" and "dln".
        optimizer: An optimiser's name, your own as "module:function", or a function of the parameters that returns a
            torch.optim.Optimizer. It has its own learning rate, which a schedule of the run multiplies.
        seed: The seed of the initialisation, the data order, the noise and the augmentation.
        measure: The kinds of tables to measure, such as "landscape" and "ics".
        every: The interval of the measured steps; None measures at the checkpoints.
        at: The steps to measure instead.
        probe: Whether "activations" measures the batch of step 0 at every step too, and how much the moments change at
            fixed weights.
        batches: The number of random batches on which "smoothness" measures batch sharpness; 0 leaves it out.
        output: The folder of the run; `runs/<name of the run>` by default.
        device: "auto", "cpu", "cuda" or "mps".
        resume: Whether an unfinished run in the folder is resumed; otherwise it starts again.
        force: Whether any run in the folder is replaced.
        progress: Whether a progress bar is shown; by default, in a terminal and in a notebook. Or a function that is
            called with the step that is reached and the last loss before it, every 25 steps, at each checkpoint and at
            each measured step.
        tensorboard: Whether TensorBoard's event files are written beside the tables, while the run trains.
        wandb: The project at Weights & Biases, or "entity/project", that gets the numbers while the run trains.
        **settings: Settings that override the preset's, named like the fields of `Config`, such as `lr` and `steps`.

    Returns:
        The run.

    Raises:
        InputError: If a setting is invalid, or the folder holds a run with another configuration, or tables of other
            options.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "l1", steps=10, samples=20, measure=["ics"], every=5, output=f"{folder}/run")
    ...     sorted(bns.read_table(run.path / "ics.parquet")["step"].unique().tolist())
    [0, 5, 10]
    """
    if optimizer is not None:
        settings["optimizer"] = name_of(optimizer, "optimizer", session=True)
    own_norm = None if norm is None else name_of(norm, "norm")
    config = resolve(name_of(problem, "problem"), preset, own_norm, seed, **settings)
    wanted = Wanted(
        (measure,) if isinstance(measure, str) else tuple(measure),
        None if every is None else index(every),  # numpy's integers are no JSON
        None if at is None else tuple(map(index, at)),
        probe,
        index(batches),
    )
    exports = Exports(tensorboard, wandb)
    exports.check()
    arguments: dict[str, Any] = {"device": device, "resume": resume, "force": force, "live": Live(exports)}
    if callable(progress):
        return train_and_measure(config, output, wanted, **arguments, progress=progress)
    if not shown(progress):
        return train_and_measure(config, output, wanted, **arguments)
    name = config.former_name  # without the settings, as the line of a notebook is short
    with Bar(f"train {name}") as steps, Bar(f"measure {name}", "points") as points:
        run = train_and_measure(
            config,
            output,
            wanted,
            **arguments,
            progress=lambda step, loss: steps(step, config.steps, f"loss {loss:.4g}"),
            measuring=lambda _, step, done, total: points(done, total, f"step {step}"),
        )
        diverged = (run.outcome() or {}).get("diverged_at")
        steps.end() if diverged is None else steps.end(f"diverged at step {diverged}", whole=False)
        points.end()
    return run


def train_and_measure(
    config: Config,
    output: Path | str | None = None,
    wanted: Wanted = NOTHING,
    *,
    device: str = "auto",
    resume: bool = True,
    force: bool = False,
    parents: bool = True,
    problem: Problem | None = None,
    progress: training.Progress | None = None,
    evaluated: training.Evaluated | None = None,
    measuring: Progress | None = None,
    live: Live | None = None,
) -> Run:
    """Train a run as `training.run.train_config` does, and measure it in the same pass.

    Args:
        config: The configuration.
        output: The folder of the run.
        wanted: What is measured.
        device, resume, force, parents, problem, progress, evaluated: As in `train_config`.
        measuring: Called before each point that is measured after training: what a finished run lacks.
        live: The programs that get the numbers while they are computed. What is there already, they get at the end.
    """
    live = live or Live(Exports())
    wanted.check(config.steps)
    for kind in wanted.kinds:  # refuse wrong options before anything is written
        measurement(kind).plan(config, **wanted.options(kind))

    @contextmanager
    def observe(run: Run, problem: Problem) -> Iterator[training.Observer]:
        source = CheckpointSource(run.path, run.name, run.config, {})
        requests = _requests(source, wanted, wanted.steps(run.config), device)
        with ExitStack() as stack:
            tables = [stack.enter_context(recording(request)) for request in pending(requests)]
            together = Together(tables, source, problem, Report(None, 0))
            if run.train_path.is_file() and run.checkpoints():  # what is before has to be visited afterwards
                reachable(run.source(), together.steps(run.name))
            observer = _OnePass(run, together, stack.enter_context(live.feed(source)))
            try:
                yield observer
            finally:
                observer.show()

    run = training.train_config(
        config, output, device=device, resume=resume, force=force, parents=parents, progress=progress,
        evaluated=evaluated, problem=problem, observe=observe,
    )  # fmt: skip
    source = run.source()
    requests = _requests(source, wanted, _passed(source, wanted), device)
    execute(pending(requests), progress=measuring, live=live)
    live.complete(source, [run.train_path, *(request.path for request in requests)])
    return run


class _OnePass(training.Observer):
    """Measures the points that are missing of the tables of a run, and passes on what becomes known.

    Args:
        run: The run.
        tables: Its tables.
        feed: Gets the numbers; None if no program does.
    """

    def __init__(self, run: Run, tables: Together, feed: Feed | None) -> None:
        super().__init__(tables.steps(run.name))
        self._run, self._tables, self._feed = run, tables, feed
        self._rows: training.Rows | None = None
        self._shown = 0  # rows of the train table

    def look(self, trajectory: Trajectory) -> None:
        self._tables.measure(point_of(trajectory, self._run.name))
        self._show_in_time()

    def hear(self, rows: training.Rows) -> None:
        self._rows = rows
        self._show_in_time()

    @property
    def kept(self) -> str:
        return self._tables.kept

    def keep(self) -> None:
        self._tables.sync()

    def _show_in_time(self) -> None:
        if self._feed is not None and self._feed.due():
            self.show()

    def show(self) -> None:
        """Pass on what is known by now."""
        if self._feed is None:
            return
        if self._rows is not None:
            rows = self._rows(self._shown)
            self._feed.add("train", rows, self._run.train_path)
            self._shown += len(rows)
        self._tables.show(self._feed)


def _requests(source: CheckpointSource, wanted: Wanted, steps: list[int], device: str) -> list[Request]:
    """A request for each table of a run."""
    requests = []
    for kind in wanted.kinds:
        arguments = {source.name: measurement(kind).plan(source.config, **wanted.options(kind))}
        path, at = source.table_path(kind), {source.name: steps}
        requests.append(Request.of(kind, path, [source], at, arguments, device=device))
    return requests


def measured(kind: str, source: CheckpointSource, wanted: Wanted) -> bool:
    """Whether the table of an ended run is complete.

    A table beside a journal whose points it has is not: the command that wrote it was killed before it had tidied up.

    Raises:
        InputError: If the table is of other options.
    """
    (request,) = _requests(source, replace(wanted, kinds=(kind,)), _passed(source, wanted), "auto")
    if not request.answered():
        return False
    journal = journal_path(request.path)
    there = tables.steps_in(request.read() or {}, source.name) | {source.diverged_at}
    return not journal.exists() or not there.issuperset(step for name, step in Journal.keys(journal))


def lacking(kind: str, source: CheckpointSource, wanted: Wanted, steps: list[int]) -> list[int]:
    """Which of some steps remain to be measured for a table of a run, going by what is there of the table.

    Raises:
        InputError: If it is of other options.
    """
    (request,) = _requests(source, replace(wanted, kinds=(kind,)), steps, "auto")
    written = request.read()
    there = {step for name, step in Journal.keys(journal_path(request.path)) if name == source.name}
    if written is not None and not request.lacks_additions(written):
        there |= tables.steps_in(written, source.name)
    return [step for step in steps if step not in there]


def _passed(source: CheckpointSource, wanted: Wanted) -> list[int]:
    """The steps that a run which has ended is measured at."""
    if wanted.every is None and wanted.at is None and not source.config.keep:
        return [*source.checkpoints]
    return [step for step in wanted.steps(source.config) if wanted.at is not None or step <= source.last]
