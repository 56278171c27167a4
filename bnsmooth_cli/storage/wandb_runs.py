"""Runs at Weights & Biases: one for each run, written whole by every command. Imports no torch."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import __version__
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import first_line, load_json, save_json

#: The file in a run's folder with the ids of its runs at Weights & Biases, by project.
IDS: Final = "wandb.json"
FORMAT: Final = 1


def check_wandb(project: str) -> None:
    """Check before the work that the package is installed, and that runs can be written to a project.

    Without a login, and where somebody can be asked, wandb asks for one.

    Raises:
        InputError: If they cannot.
    """
    if not re.fullmatch(r"[^/\\#?%:]+(/[^/\\#?%:]+)?", project):
        raise InputError(f"--wandb {project[:60]}: give the name of a project, or ENTITY/PROJECT")
    try:
        wandb = _wandb()
    except ImportError as error:
        raise InputError("--wandb: needs the extra: pip install 'bnsmooth[wandb]'") from error
    try:
        if wandb.setup().settings.mode not in ("offline", "disabled", "dryrun"):
            wandb.login()
    except wandb.errors.Error as error:
        raise InputError(f"--wandb: {first_line(error)} (or set WANDB_MODE=offline, and `wandb sync` later)") from error


def _wandb() -> Any:
    """The package, with a service of this process.

    A process that another one has started would use the service of that one. If it is killed, its run stays in use
    there, and the worker that resumes the run could not write it.
    """
    if "wandb" not in sys.modules:
        os.environ.pop("WANDB_SERVICE", None)
    import wandb

    return wandb


class WandbRun:
    """A run at Weights & Biases.

    Weights & Biases appends to the history of a run that is resumed, but replaces an offline run when a later one of
    the same id is uploaded. Every command therefore writes the whole history under the same id, in place of the one
    before: nothing is there twice or missing, whatever became of that command.

    Args:
        project: "project" or "entity/project".
        name: The name of the run.
        config: Its settings.
        folder: The run's folder, which keeps the id; None for what has no folder.

    Raises:
        InputError: If it cannot be begun.
    """

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path | None) -> None:
        wandb = _wandb()
        entity, _, short = project.rpartition("/")
        self._written: defaultdict[str, set[int]] = defaultdict(set)
        # A run of its own: one that a notebook has begun goes on. What is printed is not captured.
        settings = wandb.Settings(console="off", silent=True, reinit="create_new")
        try:
            self._run = wandb.init(
                project=short, entity=entity or None, name=name, id=_id_of(folder, project),
                config={**config, "bnsmooth": __version__}, settings=settings,
            )  # fmt: skip
        except Exception as error:  # of its service, which has many
            raise InputError(f"--wandb {project}: {first_line(error)}") from error

    @property
    def place(self) -> str:
        """The address of the run, or the folder of an offline run, for `wandb sync`."""
        return str(self._run.settings.sync_dir if self._run.offline else self._run.url)

    def add(self, label: str, numbers: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Add the numbers of a table by step; those of steps that it has already are left out.

        Args:
            label: What the tags begin with.
            numbers: The numbers.
        """
        if label not in self._written:
            self._run.define_metric(f"{label}/*", step_metric="step")
        for step, values in numbers:
            if step not in self._written[label]:
                self._written[label].add(step)
                self._run.log({"step": step, **values})

    def finish(self, failed: bool = False) -> None:
        """End the run, and wait until it is written."""
        self._run.finish(exit_code=int(failed))


def _id_of(folder: Path | None, project: str) -> str:
    """The id of a run in a project, which its folder keeps."""
    if folder is None:
        return secrets.token_hex(4)
    file = folder / IDS
    ids = load_json(file, "run directory", FORMAT, ("ids",)).get("ids") if file.exists() else {}
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise InputError(f"{file}: has no ids of runs; delete it, and the run gets a new id")
    if project not in ids:
        ids[project] = secrets.token_hex(4)
        save_json(file, {"format": FORMAT, "ids": ids})
    return str(ids[project])
