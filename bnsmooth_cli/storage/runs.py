"""Run directories, with their configuration, checkpoints and lock; runs and checkpoints as sources of points."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import IDENTIFYING, Config, from_dict
from bnsmooth_cli.errors import DamagedError, InputError, remark
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.cards import Card, Shown, guarded, settings_in_words
from bnsmooth_cli.storage.files import load_json, save_json, unicode
from bnsmooth_cli.storage.locks import locked
from bnsmooth_cli.storage.tensors import load_tensors, save_tensors

FORMAT: Final = 1
CHECKPOINT_NAME: Final = re.compile(r"\d{6,}\.pt")
#: The checkpoint of a run that was told to stop, at whatever step it had reached. The next checkpoint replaces it.
STOPPED_NAME: Final = re.compile(r"stopped-\d{6,}\.pt")
#: Where runs are whose folder nobody names.
_RUNS: Final = Path("runs")
#: The number of steps in the name of a run.
_STEPS: Final = re.compile(r"-steps\d+")


@dataclass(frozen=True)
class CheckpointSource:
    """Where points are loaded from: a run, a single checkpoint, or a state dict.

    Attributes:
        path: The run directory or the file.
        name: The run's name: the `run` column of the tables.
        config: The run's configuration.
        checkpoints: The checkpoint files by step, in order. A state dict counts as the checkpoint of step 0.
        weights: The file of a state dict; None for a run or a checkpoint.
        diverged_at: The step whose loss is not finite, if the run has diverged.
    """

    path: Path
    name: str
    config: Config
    checkpoints: dict[int, Path]
    weights: Path | None = None
    diverged_at: int | None = None

    @property
    def last(self) -> int:
        """The last step that is measured unless other steps are asked for."""
        return max([0, *self.checkpoints, (self.diverged_at or 0) - 1])

    @property
    def settings(self) -> str:
        """The column `settings` of its rows."""
        return self.config.settings_text

    @property
    def known(self) -> dict[str, Any]:
        """What is known of its run, for the provenance of tables."""
        return self.config.as_dict()

    def with_data(self, data: str | None) -> CheckpointSource:
        """The same source with its images in another folder; None keeps the folder."""
        return replace(self, config=self.config.changed(data=data))

    def table_path(self, kind: str, objective: str = "batch") -> Path:
        """The default path of a table of this kind. An objective other than `batch` is part of the file name."""
        name = _table_name(kind, objective)
        return self.path / name if self.path.is_dir() else self.path.with_name(f"{self.path.stem}.{name}")


class LoopSource(CheckpointSource):
    """A user's own training loop: a folder of tables without checkpoints, of a configuration that is mostly unknown."""

    @property
    def settings(self) -> str:
        """None: they are unknown."""
        return ""

    @property
    def known(self) -> dict[str, Any]:
        """Its problem, norm, learning rate and seed."""
        return {name: getattr(self.config, name) for name in IDENTIFYING}

    def table_path(self, kind: str, objective: str = "batch") -> Path:
        """The path of a table, in a folder that need not exist."""
        return self.path / _table_name(kind, objective)


def _table_name(kind: str, objective: str) -> str:
    return f"{kind}.parquet" if objective == "batch" else f"{kind}.{objective.replace(':', '')}.parquet"


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A run directory and its configuration. At a prompt and in a notebook, it says how far it is.

    Attributes:
        path: The directory.
        config: The configuration.
    """

    path: Path
    config: Config

    def _card(self) -> Card:
        from bnsmooth_cli.storage.listing import points_in_words, row_of

        def lines() -> Card:
            config, row = self.config, row_of(Path(self.path))
            ended = f" at step {config.steps}" if row["state"] == "finished" else ""
            lr = "" if row.get("step_lr") in (None, config.lr) else f"; lr {row['step_lr']:.3g} there"
            return Card("Run", name, {
                "trains": f"{config.problem}, norm {config.norm}, lr {config.lr:g}, seed {config.seed}",
                "settings": settings_in_words(config),
                "state": row["state"] + ended + lr if Path(self.path).exists() else "not begun",
                "tables": points_in_words(row),
            })  # fmt: skip

        name = unicode(str(self.path))
        return guarded("Run", name, lines)

    @property
    def name(self) -> str:
        """The directory's name: the `run` column of the tables."""
        return unicode(self.path.resolve().name)

    def checkpoint_path(self, step: int) -> Path:
        """`checkpoints/<step, 6 digits>.pt`."""
        return self.path / "checkpoints" / f"{step:06d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints by step, in order."""
        return self._checkpoints(CHECKPOINT_NAME)

    def stopped(self) -> dict[int, Path]:
        """The checkpoint at which the run was told to stop, by step. It serves to resume training alone."""
        return self._checkpoints(STOPPED_NAME)

    def resumable(self) -> dict[int, Path]:
        """The checkpoints that training can resume from, the latest first; none without the train table."""
        states = {**self.checkpoints(), **self.stopped()} if self.train_path.is_file() else {}
        return {step: states[step] for step in sorted(states, reverse=True) if step <= self.config.steps}

    def _checkpoints(self, name: re.Pattern[str]) -> dict[int, Path]:
        folder = self.path / "checkpoints"
        files = [file for file in folder.iterdir() if name.fullmatch(file.name)] if folder.is_dir() else []
        return dict(sorted((int(file.stem.rpartition("-")[2]), file) for file in files))

    @property
    def train_path(self) -> Path:
        """The table of the training steps. It exists from the first checkpoint on."""
        return self.path / "train.parquet"

    def outcome(self) -> dict[str, Any] | None:
        """The provenance of the train table if the run is finished or diverged, else None."""
        if not self.train_path.is_file():
            return None
        provenance = self.check_table(self.train_path, "train")
        ended = provenance.get("diverged_at") is not None or provenance.get("last_step") == self.config.steps
        return provenance if ended else None

    def check_table(self, path: Path, kind: str) -> dict[str, Any]:
        """The provenance of a table of this run. Raises DamagedError as `check_provenance` does."""
        provenance: dict[str, Any] = tables.read_provenance(path, kind)
        self.check_provenance(path, provenance)
        return provenance

    def check_provenance(self, path: Path, provenance: dict[str, Any]) -> None:
        """Raise DamagedError if a table in this directory does not belong to this run's configuration."""
        runs = provenance.get("runs")
        configs = list(runs.values()) if isinstance(runs, dict) else []
        if len(configs) != 1:
            raise DamagedError(f"{path}: is not of one run; measure it again with --force")
        if differences := from_dict(configs[0], str(path)).differences(self.config):
            raise DamagedError(f"{path}: is of another run ({'; '.join(differences)}); delete it")

    def source(self) -> CheckpointSource:
        """The run as a source of points. Raises DamagedError as `check_table` does."""
        diverged_at = (self.outcome() or {}).get("diverged_at")
        return CheckpointSource(self.path, self.name, self.config, self.checkpoints(), diverged_at=diverged_at)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock: one process trains it at a time."""
        with locked(self.path, "run"):
            yield


def write_config(run: Run) -> None:
    """Write config.json in the run's directory, which exists."""
    content = {"format": FORMAT, "version": __version__, "config": run.config.as_dict()}
    save_json(run.path / "config.json", content)


def open_run(path: Path | str) -> Run:
    """The run in a directory. Raises InputError if there is none."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such run directory")
    file = path / "config.json"
    return Run(
        path, from_dict(load_json(file, "run directory", FORMAT, ("version", "config")).get("config"), str(file))
    )


def default_folder(config: Config) -> Path:
    """Where a run is that nobody named a directory for: `runs/<name of the run>`.

    A run of the same settings under another name is returned instead: one that an earlier version named, or a shorter
    one that was extended.
    """
    path = _RUNS / config.name
    if (path / "config.json").exists():
        return path
    return next((run.path for run in _same_trajectory(config) if run.config.steps == config.steps), path)


def shorter(config: Config) -> Run | None:
    """The longest run in `runs/` that is the beginning of a configuration's run; None if there is none."""
    begun = [run for run in _same_trajectory(config) if run.config.steps < config.steps and run.resumable()]
    return max(begun, key=lambda run: run.config.steps, default=None)


def _same_trajectory(config: Config) -> Iterator[Run]:
    """The runs in `runs/` whose steps are those of a configuration, in the order of their names.

    Only names that runs get by themselves count: users may train a run again under another one.
    """
    start, _, seed = config.former_name.rpartition("-")
    usual = {config.former_name, _STEPS.sub("", config.name)}
    for file in sorted(_RUNS.glob(f"{glob.escape(start)}*-{seed}/config.json")):
        with suppress(InputError):
            run = open_run(file.parent)
            if _STEPS.sub("", file.parent.name) in usual and not run.config.differences(config):
                yield run


def prepare(path: Path, config: Config, *, resume: bool = True, force: bool = False, parents: bool = True) -> Run:
    """The run directory for a configuration: a new one, or an existing one to resume, restart or return.

    A run that has ended keeps the settings that do not define it, and a `Remark` names those that were to change.

    Args:
        path: The directory.
        config: The configuration to train.
        resume: Whether to resume an unfinished run; otherwise it is restarted.
        force: Whether to restart any run in the directory.
        parents: Whether to make the directories above it too, as `Path.mkdir` does; otherwise they must exist.

    Raises:
        InputError: If the directory cannot be made, or holds other files, a run of another configuration or a longer
            run.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; give the run another directory with -o")
    run = Run(path, config)
    if not (path / "config.json").exists():
        # Hidden files are locks, and what a killed process left behind.
        if path.exists() and any(not item.name.startswith(".") for item in path.iterdir()):
            raise InputError(f"{path}: contains files but no run; choose a new folder with -o")
        try:
            path.mkdir(parents=parents, exist_ok=True)
        except FileNotFoundError as error:
            raise InputError(f"{path.parent}: was removed or moved; the same command begins again") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        write_config(run)
        return run
    if force:
        return _restart(run)
    existing = open_run(path)
    if differences := existing.config.differences(config):
        raise InputError(
            f"{path}: a run of another configuration ({'; '.join(differences)}); choose another -o, or --force"
        )
    if config.steps < existing.config.steps:
        raise InputError(
            f"{path}: already has a run of {existing.config.steps} steps; give "
            f"--steps {existing.config.steps}, another -o, or --force to shorten it"
        )
    if run.outcome() is not None:
        if changes := existing.config.changes(config):
            said = f"{path}: has ended, and is not trained again for other settings ({'; '.join(changes)})"
            remark(said)
        return Run(path, config.changed(**existing.config.incidental()))
    if not resume and existing.outcome() is None:
        return _restart(run)
    return run


def _restart(run: Run) -> Run:
    """Remove the files that a run writes, and nothing else."""
    names = "|".join(kind.name for kind in kinds.KINDS if not kind.compared)
    own_file = re.compile(
        rf"\.{{0,2}}({names})(\.test|\.eval|\.train\d+)?\.([a-z0-9_]{{8}}\.tmp\.)?(parquet|tfevents|points|again)"
    )
    with run.locked():
        for file in (*run.checkpoints().values(), *run.stopped().values(), *run.path.iterdir()):
            if file.parent != run.path or own_file.fullmatch(file.name):
                file.unlink(missing_ok=True)
        write_config(run)
    return run


def write_checkpoint(run: Run, step: int, state: dict[str, Any], *, stopped: bool = False) -> None:
    """Write a state with its configuration, so that the file can be used alone.

    Once the file is durable, it replaces the checkpoint at which the run was told to stop before. Of the regular
    checkpoints, the configuration's last `keep` stay.

    Args:
        run: The run.
        step: The step.
        state: The tensors of the step.
        stopped: Whether the run has been told to stop here.

    Raises:
        InputError: If it cannot be written, or the folder is gone.
    """
    replaced, path = [*run.stopped().values()], run.checkpoint_path(step)
    if stopped:
        path = path.with_name(f"stopped-{path.name}")
    elif run.config.keep:  # those of later steps are left from training that is now repeated
        replaced += [file for at, file in run.checkpoints().items() if at < step][: -run.config.keep + 1 or None]
    content = {"format": FORMAT, "run": run.name, "config": run.config.as_dict(), "step": step, **state}
    save_tensors(path, content, make_folder=False)
    for file in replaced:
        if file != path:
            file.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[CheckpointSource, dict[str, Any]]:
    """Read a checkpoint.

    Returns:
        The checkpoint as a source with one step, and the state.

    Raises:
        InputError: If the file is not a checkpoint of bnsmooth, of a newer format, or damaged.
    """
    content = load_tensors(path)
    step, run, format = content.get("step"), content.get("run"), content.get("format")
    if not isinstance(step, int) or not isinstance(run, str) or not isinstance(format, int):
        raise InputError(f"{path}: a torch file, but not a checkpoint of bnsmooth (--weights FILE takes state dicts)")
    if format != FORMAT:
        raise InputError(f"{path}: a checkpoint of format {format}, this bnsmooth reads {FORMAT}; upgrade it")
    config = from_dict(content.get("config"), str(path))
    if not 0 <= step <= config.steps:
        raise DamagedError(f"{path}: claims to be step {step} of a run of {config.steps}")
    return CheckpointSource(path, unicode(run), config, {step: path}), content


def open_weights(path: Path, config: Config) -> CheckpointSource:
    """A file of a state dict as a source: step 0 of a run that starts from these weights."""
    if path.is_dir():
        raise InputError(f"--weights {path}: is a folder; give the file of a state dict")
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; give the file of a state dict")
    return CheckpointSource(path, unicode(path.stem), config, {0: path}, weights=path)


def open_source(path: Path | str) -> CheckpointSource:
    """The source at a path: a run directory or a checkpoint. Raises InputError if it is neither."""
    path = Path(path)
    if path.is_dir():
        return open_run(path).source()
    if not path.exists():
        raise InputError(f"{path}: no such run directory or checkpoint")
    return read_checkpoint(path)[0]
