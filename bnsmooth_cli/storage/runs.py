"""The run directory: its configuration, checkpoints and lock; a run or a lone checkpoint as a source of points."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import Config, from_dict
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import load_json, load_tensors, save_json, save_tensors, unicode

FORMAT: Final = 1
CHECKPOINT_NAME: Final = re.compile(r"\d{6,}\.pt")


@dataclass(frozen=True)
class CheckpointSource:
    """Where points come from: a run's name, its configuration, and its checkpoints by step.

    A lone checkpoint is a source with one entry; so is a state dict of the user's, `weights`, as that of step 0.
    """

    path: Path
    name: str
    config: Config
    checkpoints: dict[int, Path]
    weights: Path | None = None

    def with_data(self, data: str | None) -> CheckpointSource:
        """The source with its images where they are now; None leaves them where they were."""
        return replace(self, config=self.config.changed(data=data))

    def table_path(self, kind: str, objective: str = "batch") -> Path:
        """Where a table of this kind goes unless told otherwise: by the name of the objective too, where it is another
        than `compare` compares."""
        name = f"{kind}.parquet" if objective == "batch" else f"{kind}.{objective.replace(':', '')}.parquet"
        return self.path / name if self.path.is_dir() else self.path.with_name(f"{self.path.stem}.{name}")


@dataclass(frozen=True)
class Run:
    """A run directory and the configuration that it holds."""

    path: Path
    config: Config

    @property
    def name(self) -> str:
        """The directory's name: the `run` column of every table."""
        return unicode(self.path.resolve().name)

    def checkpoint_path(self, step: int) -> Path:
        """`checkpoints/<step, 6 digits>.pt`."""
        return self.path / "checkpoints" / f"{step:06d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints by step, in order."""
        folder = self.path / "checkpoints"
        found = [p for p in folder.iterdir() if CHECKPOINT_NAME.fullmatch(p.name)] if folder.is_dir() else []
        return {int(p.stem): p for p in sorted(found, key=lambda p: int(p.stem))}

    @property
    def train_path(self) -> Path:
        """The table of the training steps; it is there, unfinished, from the first checkpoint on."""
        return self.path / "train.parquet"

    def outcome(self) -> dict[str, Any] | None:
        """The train table's provenance once the run is finished (or diverged), else None."""
        if not self.train_path.is_file():
            return None
        provenance = self.check_table(self.train_path, "train")
        reached = provenance.get("diverged_at") is not None or provenance.get("last_step") == self.config.steps
        return provenance if reached else None

    def check_table(self, path: Path, kind: str) -> dict[str, Any]:
        """The provenance of a table in this run's folder; DamagedError as `check_provenance` has it."""
        provenance: dict[str, Any] = tables.read_provenance(path, kind)
        self.check_provenance(path, provenance)
        return provenance

    def check_provenance(self, path: Path, provenance: dict[str, Any]) -> None:
        """Raise DamagedError for a table in this run's folder that is of another configuration's run."""
        said = provenance.get("runs")
        configs = list(said.values()) if isinstance(said, dict) else []
        if len(configs) != 1:
            raise DamagedError(f"{path}: is not of one run; measure it again with --force")
        if differences := from_dict(configs[0], str(path)).differences(self.config):
            raise DamagedError(f"{path}: is of another run ({'; '.join(differences)}); delete it")

    def source(self) -> CheckpointSource:
        """The run as a source of points."""
        return CheckpointSource(self.path, self.name, self.config, self.checkpoints())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: one process trains it at a time."""
        with locked(self.path, "run"):
            yield


@contextmanager
def locked(path: Path, what: str, name: str = "") -> Iterator[None]:
    """Hold a folder, or what is called `name` in it; whoever finds it held is told so, with `what` it is.

    The system drops a dead process's lock.
    """
    owner = path / f".{name}lock.owner"
    lock = FileLock(path / f".{name}lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = _read_owner(owner) or "another process"
        raise InputError(
            f"{path}: {who} is writing this {what}; wait for it, or choose another place with -o"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder with -o") from error
    try:
        with suppress(OSError):  # no space left: the lock holds without a name
            _write_owner(owner)
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a folder may be anybody's


def _write_owner(path: Path) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    with os.fdopen(handle, "w") as stream:
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")


def _read_owner(path: Path) -> str:
    with suppress(OSError, ValueError), os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK)) as stream:
        return " ".join(stream.read(200).split())
    return ""


def read_config(path: Path) -> Config:
    """The configuration in a run directory's config.json."""
    file = path / "config.json"
    content = load_json(file, "run directory", FORMAT)
    return from_dict(content.get("config"), str(file))


def write_config(run: Run) -> None:
    """Write config.json."""
    content = {"format": FORMAT, "version": __version__, "config": run.config.as_dict()}
    save_json(run.path / "config.json", content)


def open_run(path: Path | str) -> Run:
    """The run in a directory; InputError where there is none."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such run directory")
    return Run(path, read_config(path))


def prepare(path: Path, config: Config, *, resume: bool = True, force: bool = False) -> Run:
    """The run directory for a configuration: made, found and continued, or (`force`) emptied and begun again.

    A run of the same configuration is continued, also to more steps; one of another configuration is refused.
    """
    if not path.exists():
        run = Run(path, config)
        write_config(run)
        return run
    if not path.is_dir():
        raise InputError(f"{path}: is a file; a run directory is to be there (-o)")
    if not (path / "config.json").exists():
        if any(not item.name.startswith(".") for item in path.iterdir()):  # hidden: a lock, a killed process's rest
            raise InputError(f"{path}: holds files but no run; choose a new folder with -o")
        run = Run(path, config)
        write_config(run)
        return run
    if force:
        return _restart(Run(path, config))
    existing = open_run(path)
    if differences := existing.config.differences(config):
        raise InputError(
            f"{path}: a run of another configuration ({'; '.join(differences)}); -o another folder, or --force"
        )
    if config.steps < existing.config.steps:
        raise InputError(
            f"{path}: already a run of {existing.config.steps} steps; "
            f"--steps {existing.config.steps}, or --force to shorten it"
        )
    run = Run(path, config)
    if not resume and existing.outcome() is None:
        return _restart(run)
    return run


def _restart(run: Run) -> Run:
    """Remove what a run writes, and nothing else."""
    names = "|".join(kind.name for kind in kinds.KINDS if not kind.compared)
    of_ours = re.compile(rf"({names})(\.test|\.train\d+)?\.(parquet|tfevents)")
    with run.locked():
        for file in (*run.checkpoints().values(), *filter(lambda p: of_ours.fullmatch(p.name), run.path.iterdir())):
            file.unlink(missing_ok=True)
        write_config(run)
    return run


def write_checkpoint(path: Path, run: str, config: Config, step: int, state: dict[str, Any]) -> None:
    """Write a state and the configuration that makes the file usable on its own; InputError if its folder is gone."""
    content = {"format": FORMAT, "run": run, "config": config.as_dict(), "step": step, **state}
    save_tensors(path, content, make_folder=False)


def read_checkpoint(path: Path) -> tuple[CheckpointSource, dict[str, Any]]:
    """The source that a lone checkpoint is, and the state in it; InputError for a file that is none of ours."""
    content = load_tensors(path)
    step, run, format = content.get("step"), content.get("run"), content.get("format")
    if not isinstance(step, int) or not isinstance(run, str) or not isinstance(format, int):
        raise InputError(f"{path}: a torch file, but no checkpoint of bnsmooth's")
    if format != FORMAT:
        raise InputError(f"{path}: a checkpoint of format {format}, this bnsmooth reads {FORMAT}; upgrade it")
    config = from_dict(content.get("config"), str(path))
    if not 0 <= step <= config.steps:
        raise DamagedError(f"{path}: says it is of step {step}, of a run of {config.steps}")
    return CheckpointSource(path, unicode(run), config, {step: path}), content


def open_weights(path: Path, config: Config) -> CheckpointSource:
    """Already-trained weights, a file of a state dict, as a source: step 0 of a run that begins there."""
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file; give the file of a state dict")
    return CheckpointSource(path, unicode(path.stem), config, {0: path}, weights=path)


def open_source(path: Path | str) -> CheckpointSource:
    """The source at a path: a run directory or a checkpoint."""
    path = Path(path)
    if path.is_dir():
        return open_run(path).source()
    if not path.exists():
        raise InputError(f"{path}: no such run directory or checkpoint")
    return read_checkpoint(path)[0]
