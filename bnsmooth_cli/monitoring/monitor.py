"""The monitor: measurements inside a user's own training loop, within a stated share of its time."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from bnsmooth_cli import stopping
from bnsmooth_cli.errors import InputError, remark, unknown
from bnsmooth_cli.kinds import measured
from bnsmooth_cli.measures.recording import Recording, recording
from bnsmooth_cli.measures.request import Request, measurement
from bnsmooth_cli.points.objective import Objective
from bnsmooth_cli.points.point import Point, external_loop
from bnsmooth_cli.randomness import kept
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.cards import Card, Shown
from bnsmooth_cli.storage.files import first_line, unicode
from bnsmooth_cli.storage.journal import Journal, journal_path
from bnsmooth_cli.storage.live import Exports, Live
from bnsmooth_cli.storage.runs import LoopSource

_T = TypeVar("_T")


@dataclass
class _Measure:
    """A measurement that the monitor repeats.

    Attributes:
        recording: Its table.
        arguments: The keyword arguments of its `rows`.
        last: The last step that its table had when the monitor began; -1 without a table.
        skipped: The steps that were due and would have exceeded the budget.
        failed: The steps at which it failed, by the reason.
        cost: The most seconds that it has taken at a step; None before it has succeeded once.
        spent: The seconds that it has taken in all.
        waiting: Whether it was skipped when it was last due.
        written: Whether the table says what was skipped and what has failed.
    """

    recording: Recording
    arguments: dict[str, Any]
    last: int
    skipped: list[int] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)
    cost: float | None = None
    spent: float = 0.0
    waiting: bool = False
    written: bool = True

    @property
    def kind(self) -> str:
        return self.recording.request.kind

    @property
    def path(self) -> Path:
        return self.recording.request.path

    @property
    def outcome(self) -> str:
        """How many points it has, in words."""
        counts = {
            "measured": self.recording.total,
            "skipped": len(self.skipped),
            "failed": sum(map(len, self.failed.values())),
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "measured")


class Monitor(Shown):
    r"""Measures a model while your own loop trains it, within a share of the time.

    Call `step` with the batch in every training step, before the optimiser's step. Every `every`-th step is due. What
    is measured there is $L(\theta_t) = \mathrm{loss}(\mathit{batch}_t)$ as a function of the parameters $\theta_t$, in
    the mode that the model is in (`objective="eval"`: in eval mode). The rows are those of the measurement at
    `Point.of` in the same place. Training does not change by a bit: parameters, gradients, optimiser, running
    statistics, modes, attributes of modules, and the default random generators are left as they were.

    A due measurement is skipped if it would bring the time of all measurements over `budget` times the time since the
    first step, at the cost of the most expensive one of its kind so far. The first one of each kind always runs. If not
    all kinds fit, each has an equal share of the budget. A `Remark` says when skipping begins, and tables record the
    steps that were skipped.

    A measurement that fails does not end training: a `Remark` gives the reason, and the table records the step. Until
    a kind has been measured once, its errors are raised, because they are mistakes of the set-up.

    The tables are written at each measured step: `landscape.parquet`, ... in the folder. A process that is killed
    leaves them with all points so far. Tables that are there already are never replaced. They are continued if training
    is resumed: with `start_step` above 0, steps that they have are not measured again.

    Gradient accumulation: call `step` once per step of the optimiser, with one micro-batch, or with all of them and a
    loss that averages over them. A gradient scaler and autocast make no difference, because the loss is measured
    unscaled in float32. With several processes, make a monitor in one of them: it measures that process's batch, and
    synchronised BatchNorm has the statistics of that batch. Sharded parameters are refused.

    Args:
        model: The network that is being trained.
        loss: Computes the scalar loss of the model from what `step` gets, as `loss(*batch)`. It must call neither
            `backward` nor an optimiser, and give the same loss twice.
        optimizer: The optimiser of the loop (`Point.of`).
        lr: The learning rate, if no optimizer is given: the unit of step length.
        every: The interval of the due steps.
        measures: The kinds of tables, such as "landscape", "smoothness", "ics" and "spectrum"; or a dict with the
            options of each, as in `{"spectrum": {"top": 3}}`.
        budget: The share of the time that measuring may take, above 0 and at most 1; None skips nothing.
        objective: "batch", or "eval" for the loss of the batch in eval mode, without dropout.
        folder: The folder of the tables; `runs/<run>` by default.
        run: The name of the run in the rows; that of the folder by default.
        norm: The name of the norm in the rows.
        seed: The seed in the rows, and of the random directions of measurements.
        start_step: The step that training begins with.
        tensorboard: Whether TensorBoard's event files are written beside the tables.
        wandb: The project at Weights & Biases, or "entity/project", that gets the numbers, in a run of its own.

    Attributes:
        next_step: The step that the next call of `step` belongs to.

    Raises:
        InputError: If an argument is invalid, the model cannot be measured, or the folder has tables that cannot be
            continued.

    >>> import tempfile
    >>> model, batches = nn.Linear(3, 1), [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(6)]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> def loss(x, y):
    ...     return (model(x) - y).square().mean()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Monitor(model, loss, optimizer=optimizer, every=2, budget=None, folder=folder) as monitor:
    ...         for x, y in batches:
    ...             monitor.step(x, y)
    ...             optimizer.zero_grad()
    ...             loss(x, y).backward()
    ...             optimizer.step()
    ...     monitor.rows("smoothness")["step"].tolist()
    [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        lr: float | None = None,
        every: SupportsIndex = 100,
        measures: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("landscape", "smoothness"),
        budget: float | None = 0.05,
        objective: str = "batch",
        folder: Path | str | None = None,
        run: str | None = None,
        norm: str = "own",
        seed: int = 0,
        start_step: SupportsIndex = 0,
        tensorboard: bool = False,
        wandb: str | None = None,
    ) -> None:
        self.every, self.next_step = _whole("every", every, 1), _whole("start_step", start_step, 0)
        if budget is not None and not (isinstance(budget, float | int) and 0 < budget <= 1):
            raise InputError(f"budget {budget}: give a share of the time above 0 and at most 1, or None for no limit")
        self.budget = budget
        if not isinstance(model, nn.Module):
            raise InputError(f"model: is a {type(model).__name__}; give the nn.Module that is trained")
        if not callable(loss):
            raise InputError(f"loss: is a {type(loss).__name__}; give a function that computes the loss of a batch")
        _check_types({
            "lr": (lr, Real, "a number"), "folder": (folder, str | Path, "a path"), "run": (run, str, "a name"),
            "norm": (norm, str, "the name of the norm"), "objective": (objective, str, "batch or eval"),
            "measures": (measures, Iterable, "names, such as ['landscape']"), "wandb": (wandb, str, "a project"),
        })  # fmt: skip
        self.folder = Path(folder) if folder is not None else Path("runs") / (run or "loop")
        self.run = run or unicode(self.folder.resolve().name)
        self._loss, self._optimizer, self._objective = loss, optimizer, Objective(objective).check_loop()
        lr = None if lr is None else float(lr)  # numpy's numbers are not written to files
        self._loop = external_loop(model, _no_loss, lr=lr, optimizer=optimizer, norm=norm, seed=seed)
        self._began: float | None = None  # when the first step began
        self._ended: float | None = None  # when the monitor was closed
        self._past = -1  # the last step that was due
        self._said: set[str] = set()  # what is said once
        exports = Exports(tensorboard, wandb)
        exports.check()
        if (self.folder / "config.json").exists():
            raise InputError(f"{self.folder}: is a run of bnsmooth; give another folder")
        source = LoopSource(self.folder, self.run, self._loop.config, {})
        requests = [self._request(source, kind, chosen) for kind, chosen in _by_kind(measures).items()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder {self.folder}: cannot be made ({error.strerror}); give another one") from error
        with ExitStack() as stack:
            self._measures = [self._open(request, stack) for request in requests]
            self._feed = stack.enter_context(Live(exports).feed(source))
            self._stack = stack.pop_all()

    def _request(self, source: LoopSource, kind: str, options: Mapping[str, Any]) -> Request:
        """The request of a table, with the steps that are there of it."""
        definition = measurement(kind)
        if definition.context is not None:
            raise InputError(f"measures: {kind} needs the checkpoints of a run, which a training loop does not have")
        own, also = ({}, "") if self._objective == "batch" else ({"objective": self._objective}, " or the objective")
        try:
            if "objective" in options:  # the monitor would measure its own under this name
                raise InputError(f"measures: {kind} has the monitor's objective; give `objective` to the monitor")
            arguments = definition.plan(source.config, **own, **options)
        except TypeError as error:
            raise InputError(f"measures: {kind} does not have these options{also} ({first_line(error)})") from error
        path = source.table_path(kind, self._objective)
        request = Request(kind, path, (source,), {self.run: []}, {self.run: arguments}, {}, {})
        written = tables.read_provenance(path, kind) if path.exists() else None
        if written is not None and request.differences(written):
            others, theirs = " and ".join(request.differences(written)), _if(dict, written.get("runs")).get(self.run)
            pairs = [(name, _if(dict, theirs).get(name), value) for name, value in source.known.items()]
            named = ", ".join(f"{name} {old}, not {new}" for name, old, new in pairs if old not in (None, new))
            raise InputError(f"{path}: is of other {others}{f' ({named})' if named else ''}; give another folder")
        kept_steps = (step for name, step in Journal.keys(journal_path(path)) if name == self.run)
        steps = sorted({*kept_steps, *tables.steps_in(written or {}, self.run)})
        if (written is not None or steps) and not self.next_step:
            raise InputError(
                f"{path}: is there, with steps up to {steps[-1] if steps else 0}; give another folder, or the "
                "start_step with which your training continues"
            )
        if steps and steps[-1] >= self.next_step:
            _say(f"{path}: keeps its steps up to {steps[-1]}, and is continued after them")
        request.steps[self.run] = steps
        return request

    def _open(self, request: Request, stack: ExitStack) -> _Measure:
        """Open the table of a request."""
        path, steps = request.path, request.steps[self.run]
        before = tables.read_provenance(path, request.kind) if path.exists() else {}
        last = steps[-1] if steps else -1

        def past(listed: object) -> list[int]:
            """Those of some steps that this loop does not come to, or leaves as they are."""
            return [step for step in _if(list, listed) if step < self.next_step or step <= last]

        table = stack.enter_context(recording(request))
        return _Measure(
            table,
            {name: value for name, value in request.arguments[self.run].items() if name != "objective"},
            last=last,
            skipped=past(before.get("skipped")),
            failed={reason: kept for reason, at in _if(dict, before.get("failed")).items() if (kept := past(at))},
            written={*steps} == tables.steps_in(before, self.run),
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended is not None:
            return
        self._ended = time.perf_counter()
        with stopping.deferred():
            try:
                for measure in self._measures:
                    if measure.recording.total and (measure.written or self._write(measure)):
                        measure.recording.tidy()
            finally:
                self._stack.__exit__(kind, error, trace)
        if any(measure.skipped or measure.failed for measure in self._measures):
            outcomes = "; ".join(f"{measure.kind}: {measure.outcome}" for measure in self._measures)
            _say(f"{self.folder}: {outcomes} ({self._time})")

    def close(self) -> None:
        """Complete the tables and release them. A `with` block does so at its end."""
        self.__exit__(None, None, None)

    def step(self, *batch: Any, **named: Any) -> None:
        """Measure the model on a batch, if this step is due. Call it in every step, before that of the optimiser.

        Args:
            *batch: What `loss` gets.
            **named: What `loss` gets by name.

        Raises:
            InputError: If the monitor is closed, or a measurement cannot be made that has not been made before.
        """
        if self._ended is not None:
            raise InputError(f"the monitor of {self.folder} is closed; make another one")
        if self._began is None:
            self._began = time.perf_counter()
        step, self.next_step = self.next_step, self.next_step + 1
        if step % self.every or step <= self._past:
            return
        self._past = step
        chosen: list[_Measure] = []
        for measure in self._measures:
            if step > measure.last and self._affords(measure, step, sum(other.cost or 0.0 for other in chosen)):
                chosen.append(measure)
        if not chosen:
            return
        self._loop.loss = functools.partial(self._loss, *batch, **named)
        try:
            self._take(chosen, step)
        except BaseException as error:
            if isinstance(error, Exception):
                self.close()
            raise
        finally:
            self._loop.loss = _no_loss  # the batch is not kept

    def _affords(self, measure: _Measure, step: int, planned: float) -> bool:
        """Whether the budget has room for a measurement after those that are planned; otherwise it is skipped."""
        if self.budget is None or measure.cost is None:
            return True
        planned += measure.cost
        allowed = self.budget * (self.seconds + planned)
        fits = self.spent + planned <= allowed
        if any(other.waiting for other in self._measures if other is not measure):
            fits = fits and measure.spent + measure.cost <= allowed / len(self._measures)
        measure.waiting = not fits
        if measure.waiting:
            said = f"{self.folder}: {measure.kind} is skipped at step {step}, and may be at others: {self._time}"
            self._say_once("skipped", said)
            measure.skipped.append(step)
            measure.written = False
        return fits

    def _take(self, chosen: list[_Measure], step: int) -> None:
        """Measure, and keep the rows once everything is measured: mistakes of the set-up leave no rows behind."""
        if self._optimizer is not None and not float(self._optimizer.param_groups[0]["lr"]):
            for measure in chosen:  # the start of a warm-up is no mistake
                self._fail(measure, step, "the learning rate, the unit of step lengths, is 0")
            return
        before = {measure.kind: measure.spent for measure in chosen}
        taken: list[tuple[_Measure, Point, pd.DataFrame]] = []
        point: Point | None = None
        with kept():
            for measure in chosen:
                with self._timed(measure), self._outlived(measure, step):
                    point = point or Point.of_loop(self._loop, self._optimizer, step, self.run, self._objective)
                    taken.append((measure, point, measure.recording.definition.rows(point, **measure.arguments)))
        with stopping.deferred():
            for measure, point, rows in taken:
                with self._timed(measure), self._outlived(measure, step):
                    measure.recording.append(point, rows)
                    self._write(measure)
                measure.cost = max(measure.cost or 0.0, measure.spent - before[measure.kind])

    @contextmanager
    def _timed(self, measure: _Measure) -> Iterator[None]:
        """Count the time of a block as that of a measurement."""
        device = self._loop.device
        _synchronise(device)
        began = time.perf_counter()
        try:
            yield
        finally:
            _synchronise(device)
            measure.spent += time.perf_counter() - began

    @contextmanager
    def _outlived(self, measure: _Measure, step: int) -> Iterator[None]:
        """Record the failure of a measurement that has been made before."""
        try:
            yield
        except Exception as error:
            if measure.cost is None:
                raise
            named = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
            self._fail(measure, step, named)

    def _fail(self, measure: _Measure, step: int, reason: str) -> None:
        said = f"{measure.path}: step {step} is not measured, and training continues: {reason}"
        self._say_once(measure.kind, said)
        measure.failed.setdefault(reason, []).append(step)
        measure.written = False

    def _say_once(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            _say(text)

    def _write(self, measure: _Measure) -> bool:
        """Write a table and pass on its new rows. If that fails, a remark says so, and the next step tries again."""
        request = measure.recording.request
        try:
            measure.written = False
            left_out = {"skipped": measure.skipped, "failed": measure.failed}
            measure.recording.write(
                every=self.every, budget=self.budget, share=self.share,
                **{name: steps for name, steps in left_out.items() if steps},
            )  # fmt: skip
            measure.written = True
            if self._feed is not None:
                rows = measure.recording.ready(self.run)
                self._feed.add(request.kind, rows, request.path, request.arguments[self.run])
        except InputError as error:
            _say(str(error))
        return measure.written

    def rows(self, kind: str) -> pd.DataFrame:
        """The table of a kind so far, as `bns.read_table` reads it.

        Raises:
            InputError: If the monitor does not measure this kind.
        """
        for measure in self._measures:
            if measure.kind == kind:
                if measure.path.exists():
                    return tables.read_table(measure.path, kind)
                empty: pd.DataFrame = tables.schema_of(kind).empty_table().to_pandas()
                return empty
        raise unknown("measure", kind, [measure.kind for measure in self._measures])

    @property
    def seconds(self) -> float:
        """The time since the first step began, until the monitor was closed."""
        return 0.0 if self._began is None else (self._ended or time.perf_counter()) - self._began

    @property
    def spent(self) -> float:
        """The seconds that measuring has taken."""
        return sum(measure.spent for measure in self._measures)

    @property
    def share(self) -> float:
        """The share of the time that measuring has taken."""
        return self.spent / self.seconds if self.spent else 0.0

    @property
    def _time(self) -> str:
        limit = "" if self.budget is None else f", and {self.budget:.1%} is the budget"
        return f"measuring has taken {self.share:.1%} of the time{limit}"

    def _card(self) -> Card:
        outcomes = {measure.kind: measure.outcome for measure in self._measures}
        return Card("Monitor", str(self.folder), {
            "of": f"{type(self._loop.network()).__name__}, every {self.every:,} steps",
            **outcomes,
            "time": self._time if self._began is not None else "",
        })  # fmt: skip


def _by_kind(measures: Iterable[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The options of each kind. Raises InputError for kinds that are not measured, or twice."""
    names = [measures] if isinstance(measures, str) else [*measures]
    options = measures if isinstance(measures, Mapping) else {}
    for kind in names:
        if kind not in measured():
            raise unknown("measure", str(kind), measured())
        if names.count(kind) > 1:
            raise InputError(f"measures: {kind} is named twice; name each once")
    if not names:
        raise InputError("measures: name at least one, such as landscape")
    return {kind: options.get(kind, {}) for kind in names}


def _check_types(values: Mapping[str, tuple[object, Any, str]]) -> None:
    """Raise InputError for a value of another type than the one beside it; None is of any type."""
    for name, (value, expected, words) in values.items():
        if value is not None and not isinstance(value, expected):
            raise InputError(f"{name}: is a {type(value).__name__}; give {words}")


def _whole(name: str, value: SupportsIndex, least: int) -> int:
    """A whole number. Raises InputError if it is none, or below the least one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{name} {value}: give a whole number of at least {least}")
    return number


def _if(kind: type[_T], value: object) -> _T:
    """A part of a table's provenance, or an empty one of its type: a file may hold anything."""
    return value if isinstance(value, kind) else kind()


def _synchronise(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _no_loss() -> Tensor:
    raise InputError("the monitor measures in `step` alone")


def _say(text: str) -> None:
    remark(text)
