"""Run a study: plan the missing runs, execute them, and compare all runs. Planning does not import torch."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bnsmooth_cli import stopping, user_code
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import DamagedError, IncompleteError, InputError, remark
from bnsmooth_cli.stopping import Interrupted, Terminated, Withdrawn
from bnsmooth_cli.storage.live import Exports, Live
from bnsmooth_cli.storage.locks import locked
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies import executors
from bnsmooth_cli.studies.comparison import check_targets
from bnsmooth_cli.studies.executors import Retired
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import VARIED, Grid, read_grid
from bnsmooth_cli.studies.outcome import conclude
from bnsmooth_cli.studies.progress import INTERVAL, StudyProgress, Watch, clear, reports, shown, withdraw
from bnsmooth_cli.studies.work import Task, remaining, work

if TYPE_CHECKING:
    from torch import nn

    from bnsmooth_cli.problems.custom import Builder

#: A run whose worker dies is resumed by another worker. After this many deaths, the run has failed.
MAX_DEATHS: Final = 3
_DIED: Final = (
    f"its worker process died {MAX_DEATHS} times; there may be too little memory, or a script may call bns.study "
    "outside of if __name__ == '__main__'"
)


@dataclass(frozen=True)
class Plan:
    """The remaining work of a study, where it executes, the reasons why runs cannot be read, and the runs to take."""

    study: Study
    grid: Grid
    runs: list[Task]
    unreadable: dict[str, str]
    jobs: int | None = None
    dask: str | None = None
    device: str = "auto"
    taken: Mapping[Path, Run] = field(default_factory=dict)
    exports: Exports = Exports()  # noqa: RUF009  immutable

    @property
    def todo(self) -> list[Task]:
        """The runs that are not finished or lack a table."""
        return [task for task in self.runs if task]

    def executor(self, message: Callable[[str], None]) -> AbstractContextManager[Executor]:
        """The executor of the runs."""
        if self.dask is not None:
            return executors.dask(self.dask, self.jobs, message)
        import torch

        gpus = executors.gpus(torch.cuda.device_count()) if self.device in ("auto", "cuda") else None
        return executors.local(min(self.jobs or 1, len(self.todo)), gpus)


def study(
    norms: Sequence[str | Callable[[int], nn.Module]] | str,
    *,
    lrs: Iterable[float] | str = (),
    seeds: Iterable[int] | str = (0,),
    measure: Sequence[str] | str = (),
    every: int | None = None,
    at: Iterable[int] | str | None = None,
    probe: bool = False,
    batches: int = 0,
    problem: str | Builder | None = None,
    output: Path | str = "study",
    threads: int = 1,
    jobs: int | None = None,
    dask: str | None = None,
    device: str = "auto",
    force: bool = False,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
    progress: StudyProgress | bool | None = None,
    runs: Sequence[Path | str] = (),
    tensorboard: bool = False,
    wandb: str | None = None,
    **settings: Any,
) -> Study:
    """Train and measure a grid of runs, compare them, and judge the paper's claims, like `bnsmooth compare`.

    Existing results are kept: the same call resumes a study, and a call with more norms, learning rates, seeds or
    measurements extends it. With `jobs`, worker processes are spawned: a script then has to call this function under
    `if __name__ == "__main__":`, and a notebook has to import its own norms and problems from a file.

    Args:
        norms: The norms, by name or as classes.
        lrs: The learning rates; by default the preset's.
        seeds: The seeds. A verdict on a claim needs five.
        measure: The kinds of tables to measure, such as `smoothness` and `ics`.
        every: The interval of the measured steps; None measures at the checkpoints.
        at: The steps to measure instead.
        probe: Whether `activations` measures the batch of step 0 at every step too, and how much the moments change at
            fixed weights.
        batches: The number of random batches on which `smoothness` measures batch sharpness; 0 leaves it out.
        problem: The problem, by name or as a function; by default `vgg`.
        output: The folder of the study.
        threads: CPU threads of each run. The last bits of the results depend on them.
        jobs: Worker processes on this machine; None executes the runs one by one in this process.
        dask: The address of a Dask scheduler, or `local` for a Dask cluster on this machine.
        device: `auto`, `cpu`, `cuda` or `mps`.
        force: Replace existing measurements. Runs are never trained again.
        target_loss: Count the steps to this training loss; by default the last one of the run without a norm.
        target_accuracy: Count the steps to this test accuracy; by default the last one of the run without a norm.
        progress: Whether a progress bar is shown; by default, in a terminal and in a notebook. Or callbacks.
        runs: Folders of runs that the study takes: it copies them, and does not train them again.
        tensorboard: Whether TensorBoard's event files are written beside the tables of each run, while it trains.
        wandb: The project at Weights & Biases, or "entity/project", that gets the numbers of each run while it trains.
        **settings: The preset and other settings of `bns.train`, shared by all runs.

    Returns:
        The study, with its tables and, in `failed`, the runs that failed.

    Raises:
        InputError: If the grid, a setting or the folder does not fit. It is raised before any work.
        IncompleteError: If no run has finished.

    >>> import tempfile
    >>> small = {"problem": "dln", "depth": 3, "dimension": 4, "samples": 20, "steps": 10}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = study(["none", "batch"], lrs=[1e-4], seeds=range(2), output=f"{folder}/study", **small)
    ...     len(done.runs()), sorted(done.comparison["norm"].unique()), dict(done.failed)
    (4, ['batch', 'none'], {})
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError("a worker process imports this script again: call bns.study under if __name__ == '__main__'")
    check_targets(target_loss, target_accuracy)
    if settings.get("optimizer") is not None:
        settings["optimizer"] = user_code.name_of(settings["optimizer"], "optimizer")  # workers import it
    names = norms.split(",") if isinstance(norms, str) else norms
    own_problem = None if problem is None else user_code.name_of(problem, "problem")
    options = {"norms": [user_code.name_of(norm.strip() if isinstance(norm, str) else norm, "norm") for norm in names],
               "lrs": lrs,
               "seeds": seeds, "measure": measure, "every": every, "at": at, "probe": probe, "batches": batches,
               "threads": threads, "problem": own_problem, **settings}  # fmt: skip
    grid = read_grid({name: value for name, value in options.items() if value is not None})
    exports = Exports(tensorboard, wandb)
    exports.check()
    planned = plan(grid, Path(output), jobs=jobs, dask=dask, device=device, force=force, runs=runs,
                   exports=exports)  # fmt: skip
    with shown(progress) as callbacks:
        return run(planned, target_loss=target_loss, target_accuracy=target_accuracy, progress=callbacks)


def plan(
    grid: Grid,
    folder: Path,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    device: str = "auto",
    force: bool = False,
    runs: Sequence[Path | str] = (),
    exports: Exports | None = None,
) -> Plan:
    """Plan a study and check all of it, writing nothing; the arguments are those of `study`.

    Raises:
        InputError: If the grid is invalid or does not fit the runs in the folder, or the device is missing.
    """
    here = dask in (None, "local")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: give a whole number of at least 1")
    if jobs is not None and not here:
        raise InputError("--jobs: with --dask ADDRESS the cluster has its own workers; leave it out")
    study = Study(folder)
    study.check(grid)
    taken = _taken(study, grid, runs)
    planned = Plan(study, grid, [], {}, jobs, dask, device, taken, exports or Exports())
    configs = grid.configs()
    if taken:
        configs = [config.knowing(next(iter(taken.values())).config) for config in configs]
    for run in study.planned(configs):
        source = taken.get(run.path, run)
        try:
            task = remaining(Run(source.path, run.config), grid.wanted, grid.threads, device, force)
            if source.name != run.name:  # `Study.take` leaves its tables behind
                task = replace(task, wanted=grid.wanted)
            planned.runs.append(replace(task, path=run.path.absolute(), exports=planned.exports))
        except DamagedError as error:
            planned.unreadable[run.path.name] = str(error)
    todo = {task.config.norm: task.config for task in planned.todo}
    if todo or _data_moved(study, taken.values(), configs[0]):
        from bnsmooth_cli import problems
        from bnsmooth_cli.training.devices import choose_device

        if here:
            choose_device(device)
        with grid.named_in_errors():
            for config in todo.values() or [task.config for task in planned.runs[:1]]:  # whose data are checked
                problems.build(config).outline()
    return planned


def _data_moved(study: Study, taken: Iterable[Run], config: Config) -> bool:
    """Whether the data of a configuration are elsewhere than those of the study, or of runs that it takes."""
    data = getattr(config.settings, "data", None)
    shared = study.read()["settings"] if (study.path / "study.json").is_file() else {}
    return {shared.get("data", data), *(getattr(run.config.settings, "data", None) for run in taken)} != {data}


def _taken(study: Study, grid: Grid, sources: Sequence[Path | str]) -> dict[Path, Run]:
    """The runs that a study takes, by their folders in the study; those that it has already are left out.

    Raises:
        InputError: If a folder is no run, or has other settings than the runs of the grid.
    """
    taken: dict[Path, Run] = {}
    for source in map(open_run, sources):
        varied = {name: getattr(source.config, name) for name in VARIED}
        config = grid.configs()[0].changed(**varied).knowing(next(iter(taken.values()), source).config)
        (planned,) = study.planned([config])
        differences, target = source.config.differences(planned.config), planned.path
        if source.config.steps > config.steps:  # a shorter run is continued
            differences.append(f"steps {source.config.steps}, now {config.steps}")
        if differences:
            raise InputError(f"{source.path}: a run of other settings than the study's ({'; '.join(differences)})")
        if target in taken:
            raise InputError(f"{source.path}: the same run as {taken[target].path}; give one of them")
        if not (target / "config.json").exists():
            taken[target] = source
    return taken


def _say_changed_code(finished: Iterable[Task]) -> None:
    """Say which finished runs were trained by other code than those to come."""
    for task in finished:
        if names := user_code.changed(Run(task.path, task.config).outcome() or {}):
            said = f"{task.path}: was trained before {names} changed; restore that, or begin another study with -o"
            remark(said)


def run(
    planned: Plan,
    *,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
    progress: StudyProgress | None = None,
) -> Study:
    """Execute the plan of a study, compare all of its runs and write the three tables.

    Raises:
        IncompleteError: If no run has finished.
    """
    progress, study, failed = progress or StudyProgress(), planned.study, dict(planned.unreadable)
    for name, reason in failed.items():
        progress.failed(name, reason)
    study.path.mkdir(parents=True, exist_ok=True)
    with locked(study.path, "study"):
        study.record(planned.grid)
        for target, source in planned.taken.items():
            study.take(source, target)
        if todo := planned.todo:
            _say_changed_code(task for task in planned.runs if not task)
            for task in todo:
                task.begin_anew()
            progress.planned([task.name for task in todo])
            (study.path / "runs").mkdir(exist_ok=True)  # which no worker makes
            finished, began, clock = len(planned.runs) - len(todo), time.time(), time.monotonic()
            with stopping.deferred():
                with (
                    planned.executor(progress.message) as executor,
                    reports(study.path) as folder,
                    Watch(folder, progress) as watch,
                ):
                    for task, result in execute(executor, todo, folder):
                        if isinstance(result, str):
                            failed[task.name] = result
                        finished += not isinstance(result, str)
                        watch.end(task.name, result)
                if study.path.is_dir():  # a folder that was removed must not appear again
                    study.add_to_log(began, time.monotonic() - clock)
                if stopping.told():
                    others = "" if finished == len(planned.runs) else " and the others are kept"
                    stopping.stop(f"{finished} of {len(planned.runs)} runs of {study.path} are finished{others}")
        else:
            clear(study.path)
        runs, refused = study.inspect(skip=failed)
        for name, reason in refused.items():
            progress.failed(name, reason)
        failed |= refused
        if not runs:
            raise IncompleteError(f"{study.path}: none of its {len(failed)} runs has finished")
        conclude(runs, study, target_loss=target_loss, target_accuracy=target_accuracy).write(study.table, runs)
        _export(planned, {run.name: run for run in runs})  # last: other programs may fail
    return replace(study, failed=failed)


def _export(planned: Plan, runs: Mapping[str, Run]) -> None:
    """Pass on the numbers of the tables that were there before, which no task has."""
    live, files_alone = Live(planned.exports), Live(replace(planned.exports, wandb=None))
    for task in planned.runs:
        if task.name in runs:
            run = runs[task.name]
            new = {"train", *task.wanted.kinds} if task else set()
            before = [kind for kind in ("train", *planned.grid.wanted.kinds) if kind not in new]
            source = run.source()
            (files_alone if task else live).complete(source, [source.table_path(kind) for kind in before])


def execute(executor: Executor, todo: Sequence[Task], folder: Path) -> Iterator[tuple[Task, float | str]]:
    """Execute tasks, each yielded when it ends with the seconds that it took or the reason why it failed.

    A task whose worker process died is submitted again. A Dask cluster does so itself. The tasks report in `folder`,
    which is that of `progress.reports`. If this process is told to stop, the tasks that have begun end after their
    present step or point, no others begin, and the iterator ends.
    """
    waiting = deque((task, 1) for task in todo)
    running: dict[Future[float | Withdrawn], tuple[Task, int]] = {}
    deaths: tuple[type[Exception], ...] = (BrokenExecutor, *executors.lost())
    ending = False
    while waiting or running:
        if not ending and stopping.told():
            ending, begun = True, withdraw(folder)
            waiting.clear()
            for future, (task, _) in running.items():
                if task.name not in begun:
                    future.cancel()
        if waiting:
            task, attempt = waiting.popleft()
            running[executor.submit(work, task, folder)] = task, attempt
        # InProcess has finished by now. The others get all tasks before any result is awaited. Waits are short, because
        # a signal does not end a wait.
        over, _ = wait(running, timeout=0 if waiting else INTERVAL, return_when=FIRST_COMPLETED)
        for future in over:
            task, attempt = running.pop(future)
            try:
                result = future.result()
            except (Interrupted, Terminated, Retired):
                waiting.append((task, attempt))
            except deaths:
                if attempt < MAX_DEATHS:
                    waiting.append((task, attempt + 1))
                else:
                    yield task, _DIED
            except CancelledError:
                if not ending:
                    yield task, "the cluster that it was given to is gone; the same command resumes it"
            except InputError as error:
                yield task, str(error)
            except Exception as error:  # whatever ends one run, the others continue
                yield task, f"{type(error).__name__}: {' '.join(str(error).split())}"
            else:
                if not isinstance(result, Withdrawn):
                    yield task, result
                elif folder.is_dir():  # its worker is closing
                    waiting.append((task, attempt))
                elif not ending:
                    yield task, f"{folder} was removed; the same command resumes it"
        if ending:
            waiting.clear()
