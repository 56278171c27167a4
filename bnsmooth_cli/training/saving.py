"""Writing a run beside its training: a save costs training a copy of the state, and a thread writes the files."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.runs import Run


class Saver:
    """Writes the files of a run, one save after the other, in a thread. Leaving its block waits for the last one.

    An error of the thread is raised by the next call. The thread does not keep the process from ending: a file that is
    being written then is left as one of a killed process.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._copy = _Copy()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def checkpoint(
        self, rows: pd.DataFrame, provenance: dict[str, Any], step: int, state: dict[str, Any], stopped: bool = False
    ) -> None:
        """Begin to write the table, and then the checkpoint: all rows before a checkpoint must be on disk.

        Args:
            rows: The rows of the table.
            provenance: Its provenance.
            step: The step of the checkpoint.
            state: Its tensors, which may change as soon as this returns.
            stopped: Whether the run has been told to stop here.

        Raises:
            InputError: If the save before failed.
        """
        self.wait()
        copied = self._copy.of(state)

        def write() -> None:
            self._write_table(rows, provenance)
            runs.write_checkpoint(self._run, step, copied, stopped=stopped)

        self._thread = threading.Thread(target=self._guarded, args=(write,), daemon=True)
        self._thread.start()

    def table(self, rows: pd.DataFrame, provenance: dict[str, Any]) -> None:
        """Write the table alone, and wait for it.

        Raises:
            InputError: If it cannot be written, or the save before failed.
        """
        self.wait()
        self._write_table(rows, provenance)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            InputError: If it cannot be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # for the thread that trains
            self._error = error

    def _write_table(self, rows: pd.DataFrame, provenance: dict[str, Any]) -> None:
        run = self._run
        if not (run.path / "config.json").is_file():
            raise InputError(f"{run.path}: was removed or moved while it was trained; train it again")
        tables.write_table(run.train_path, "train", [rows], provenance, make_folder=False)


class _Copy:
    """A copy of a state on the CPU. Its memory is used again by the next copy."""

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []

    def of(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy a state. Tensors that share memory do so in the copy, so that its file has the bytes of the state's."""
        copied: dict[int, torch.UntypedStorage] = {}
        known: dict[int, Any] = {}
        for tensor in tensors_in(state):
            storage = tensor.untyped_storage()
            if (place := storage._cdata) not in copied:  # what torch.save goes by
                copied[place] = self._take(len(copied), storage.nbytes()).copy_(storage)
            view = torch.empty(0, dtype=tensor.dtype)
            known[id(tensor)] = view.set_(copied[place], tensor.storage_offset(), tensor.size(), tensor.stride())
        return copy.deepcopy(state, known)

    def _take(self, number: int, size: int) -> torch.UntypedStorage:
        """The memory of the storage with this number in the state."""
        if number == len(self._storages):
            self._storages.append(torch.UntypedStorage(size))
        elif self._storages[number].nbytes() != size:
            self._storages[number] = torch.UntypedStorage(size)
        return self._storages[number]


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The ordinary tensors of a state, wherever they are in it."""
    if isinstance(state, Tensor):
        if type(state) is Tensor and state.layout == torch.strided and not state.is_quantized:
            yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(part)
