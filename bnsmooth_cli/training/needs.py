"""What a run and its measurements take: memory and disk, estimated from the shapes of tensors before the work."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from bnsmooth_cli import kinds, norms, optimisers
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.memory import Memory, in_words, main_memory
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import Values, mapped, named, size
from bnsmooth_cli.settings import flag
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.training.optimisers import optimiser_of
from bnsmooth_cli.training.saving import tensors_in


@dataclass(frozen=True)
class _Peak:
    """The peak memory of a piece of work beyond that of a process which holds the network and the data.

    Attributes:
        constant: Bytes that any network takes, most of them for libraries that the work loads.
        activations: Copies of the activations that autograd saves for one batch.
        parameters: Copies of the trained parameters.
        vectors: Parameter vectors that a fast path takes at once; 0 if the work does not use the fast path.
    """

    constant: float
    activations: float
    parameters: float
    vectors: int = 0


#: By the command that does the work. Fitted to the peak resident memory of forked processes of one thread that keep
#: freed memory (Linux, AVX-512, float32): VGG-11 at widths 0.1 to 1 with batches of 16 to 256 and the norms none, batch
#: and l1; VGG-16 of the paper at width 1 with momentum and a penalty; linear networks of 10 to 30 layers of 10 to 500
#: units, on the fast path and not. Of 83 peaks, 81 are within a factor of 1.4 of the estimate, and one is below it by
#: 2.7. On an H200, what PyTorch reserved for VGG-16 at widths 0.25 and 1 was 0.43 to 1.05 times the estimate.
_PEAKS: Final = {
    "train": _Peak(20e6, 2.15, 1.4, 1),
    "landscape": _Peak(50e6, 1.5, 7.5, 6),
    "smoothness": _Peak(110e6, 5.65, 11, 7),
    "spectrum": _Peak(110e6, 5.65, 46, 45),
    "ics": _Peak(40e6, 1.5, 8, 1),
    "activations": _Peak(85e6, 1.4, 0.7),
    "theory": _Peak(90e6, 45, 3),
    "surface": _Peak(35e6, 0.6, 6, 1),
}
#: The largest constant of work on the fast path, which loads fewer libraries.
_FAST: Final = 40e6
#: Copies of the largest activation in an evaluation of the test set, and what a parameter vector on a fast path takes
#: beside its activations, in copies of the vector.
_EVALUATION, _VECTOR = 3.5, 3.5
#: Bytes of a checkpoint beside the numbers in its tensors: of the file, of each tensor of the network, which has a
#: name, of each tensor of the optimiser, and of each block of memory that tensors share. Measured for files of 60
#: to 600 tensors.
_FILE, _TENSOR, _UNNAMED, _BLOCK = 2000, 120, 70, 170
#: Copies of the parameters that the user's own optimiser is taken to keep: Adam's two averages.
_USERS: Final = 2


class Needs:
    """What the training of a problem takes, and its measurements, in bytes.

    Attributes:
        parameters: The parameters that training updates. Their gradients take as much.
        optimiser: What the optimiser keeps from step to step, such as momentum buffers. What the user's own optimiser
            keeps is not known: it is taken to be as much as Adam keeps.
        state: What a checkpoint holds: parameters, buffers and the optimiser's state.
        checkpoint: A checkpoint file.
        first: The checkpoint file of step 0, where most optimisers have no state yet.
        data: The samples in memory; 0 if the user's code holds them.

    >>> from bnsmooth_cli import problems
    >>> from bnsmooth_cli.config import resolve
    >>> needs = Needs(problems.build(resolve("dln", norm="none", momentum=0.9)))
    >>> needs.parameters == needs.optimiser == 25 * 10 * 10 * 4
    True
    """

    def __init__(self, problem: Problem) -> None:
        outline = problem.outline()
        model = problem.initial if outline is None else outline
        trained = [*trainable(model).values()]
        held = [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]
        self.problem = problem
        self.parameters = sum(tensor.numel() * tensor.element_size() for tensor in trained)
        before, after = _optimiser_states(problem.config, trained, outline, joined=bool(self._rows))
        self.optimiser = _bytes(after)
        self.state = _bytes(held) + self.optimiser
        self.checkpoint, self.first = (self._file(held, kept) for kept in (after, before))
        self.data = _bytes(tensor for tensor in problem.data() if tensor.device.type == problem.device.type)

    def _file(self, held: list[Tensor], kept: list[Tensor]) -> int:
        """The bytes of a checkpoint of a network's tensors and an optimiser's."""
        tensors = _TENSOR * len(held) + _UNNAMED * len({*map(id, kept)})
        # On the fast path, one block of memory holds all parameters, and one all buffers.
        blocks = (min(len(held), 2) if self._rows else len(held)) + len({*map(_place, kept)})
        return _bytes([*held, *kept]) + _FILE + tensors + _BLOCK * blocks

    @property
    def _rows(self) -> int:
        """The rows that represent a batch on the linear network's fast path; 0 without a fast path."""
        config = self.problem.config
        entry, samples, dimension = norms.find(config.norm), config.settings.full_batch, _setting(config, "dimension")
        fast = samples is not None and config.batch_size == samples and entry is not None and entry.fast_path
        return min(samples or 0, dimension + 1) if fast else 0

    @functools.cached_property
    def _saved(self) -> tuple[float, float]:
        """The bytes that autograd saves for one batch, in all and for the largest tensor.

        A built-in network saves some bytes for each sample and some for the whole batch, so two small batches tell
        both. The user's network runs on a whole batch, because its loss may compare the samples.
        """
        (inputs, targets), count = self.problem.batch(0), self.problem.config.batch_size
        if self.problem.has_users_code or count <= 3:
            return _saved_by(self.problem, inputs, targets)

        def first(few: int) -> tuple[float, float]:
            return _saved_by(self.problem, *(mapped(lambda values: values[:few], part) for part in (inputs, targets)))

        (two, _), (three, largest) = first(2), first(3)
        return two + (count - 2) * (three - two), largest * count / 3

    @property
    def activations(self) -> float:
        """The bytes of what autograd saves for one batch. Runs the network on a few samples, and the user's on all."""
        return self._saved[0]

    def _vector(self) -> float:
        """The bytes that one parameter vector takes on the fast path."""
        config = self.problem.config
        units, depth = _setting(config, "dimension"), _setting(config, "depth")
        values, entry = 6 * (depth + 1) * self._rows * units, norms.find(config.norm)
        power = next(iter(norms.parameter(entry, config.norm)), None) if entry else None
        if power not in (None, 2.0):  # as in derivatives/fast_path.py: these scales need the samples themselves
            values += 3 * (config.settings.full_batch or 0) * units // 2
        return 4.0 * values + _VECTOR * self.parameters

    def peak(self, kind: str = "train") -> float:
        """The peak memory of training, or of measuring a kind of table, beyond the state and the data.

        It includes libraries that the work loads, and of training the copy of the state that a checkpoint is written
        from.
        """
        about = _PEAKS[kinds.get(kind).command]
        if self._rows and about.vectors:
            vectors = max(1, _setting(self.problem.config, "depth") - 1) if kind == "ics" else about.vectors
            work = min(about.constant, _FAST) + vectors * self._vector()
        else:
            work = about.constant + about.activations * self.activations + about.parameters * self.parameters
        if kind != "train":
            return work
        return max(work, self._evaluation()) + (self.state if self.problem.device.type != "cuda" else 0)

    def _evaluation(self) -> float:
        """The peak memory of an evaluation of the test set."""
        problem = self.problem
        if not problem.test_size or problem.has_users_code:
            return 0.0
        samples = size(next(problem.test_batches())[0])
        return _PEAKS["train"].constant + _EVALUATION * self._saved[1] * samples / problem.config.batch_size

    def memory(self, tables: Iterable[str] = ()) -> float:
        """The peak memory of training and of measuring kinds of tables, beyond that of a process with the data."""
        return self.state + max(self.peak(kind) for kind in ("train", *tables))


def _optimiser_states(
    config: Config, trained: Sequence[Tensor], outline: nn.Module | None, *, joined: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of an optimiser's state before its first step and after it, without memory for them.

    The user's own optimiser is not asked: it may not take tensors without values, or may keep them.

    Args:
        config: The configuration.
        trained: The trained parameters.
        outline: A network without memory, if there is one.
        joined: Whether one vector holds all parameters.
    """
    slopes = [torch.empty_like(p, device="meta", requires_grad=False) for p in trained]
    if optimisers.find(config.optimizer) is None:
        return [], [torch.empty_like(slope) for _ in range(_USERS) for slope in slopes]
    theta = torch.cat([slope.flatten() for slope in slopes]) if joined else None
    optimiser = optimiser_of(config, nn.ParameterList(slopes) if outline is None else outline, theta)
    before = [*tensors_in(optimiser.state())]
    optimiser.step(slopes if theta is None else [torch.empty_like(theta)], 0)
    return before, [*tensors_in(optimiser.state())]


def _setting(config: Config, name: str) -> int:
    return int(getattr(config.settings, name, 0))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of the memory that tensors are in. What they share counts once."""
    return sum({_place(tensor): tensor.untyped_storage().nbytes() for tensor in tensors if _ordinary(tensor)}.values())


def _saved_by(problem: Problem, inputs: Values, targets: Values) -> tuple[float, float]:
    """The bytes that autograd saves for a batch, in all and for the largest tensor.

    Neither parameters nor inputs count.
    """
    model, found = problem.initial, dict[int, Tensor]()
    others = [*model.parameters(), *model.buffers(), *named(inputs, "").values()]
    own = {_place(tensor) for tensor in others if _ordinary(tensor)}

    def keep(tensor: Tensor) -> Tensor:
        if _ordinary(tensor) and _place(tensor) not in own:
            found[_place(tensor)] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks, prepared(stateful(model), problem.config.seed, 0):
        problem.objective(problem.call(model, inputs), targets)
    sizes = [tensor.untyped_storage().nbytes() for tensor in found.values()]
    return float(sum(sizes)), float(max(sizes, default=0))


def _ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is in one piece of memory, unlike a sparse one."""
    return tensor.layout == torch.strided


def _place(tensor: Tensor) -> int:
    """The memory that a tensor is in."""
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Saves:
    """The checkpoints that a run still writes.

    Attributes:
        count: Their number.
        files: How many more files the folder holds at its fullest.
        begins: Whether the checkpoint of step 0 is among these files.
        freed: The bytes that are freed before, because the run starts again.
    """

    count: int
    files: int
    begins: bool = False
    freed: int = 0

    def size(self, checkpoint: int, first: int) -> int:
        """The bytes of the files, given those of a checkpoint and of that of step 0."""
        return (self.files - self.begins) * checkpoint + self.begins * first


def saves(run: Run, *, resume: bool = True, force: bool = False) -> Saves:
    """The checkpoints that the training of a run still writes, according to what its folder holds.

    Raises:
        InputError: If the folder holds another run, or damaged files.
    """
    config, there, reached, freed = run.config, [*run.checkpoints()], -1, 0
    if (run.path / "config.json").is_file():
        if not force and run.outcome() is not None:
            return Saves(0, 0)
        if force or not resume:
            freed, there = sum(file.stat().st_size for file in run.checkpoints().values()), []
        else:
            reached = next(iter(run.resumable()), -1)
    every, last = config.save_every, config.steps
    count = last // every - reached // every + bool(last % every and last > reached)
    replaced = sum(reached < step <= last and (step == last or step % every == 0) for step in there)
    files = count - replaced
    if config.keep:
        files = min(files, config.keep + 1 - len(there))
    begins = reached < 0 and files == count  # not with --keep, which removes it before the folder is at its fullest
    return Saves(count, max(files, 1), begins, freed)  # a file that replaces another one is written beside it


def check(problem: Problem, path: Path, *, resume: bool = True, force: bool = False) -> None:
    """Refuse a training that cannot fit into the memory or the disk, and remark on one that may not fit into memory.

    It takes milliseconds, and comes before a built-in problem's network is made. Nothing is checked if the run has
    ended, or if its folder cannot be used: `storage.runs.prepare` says so. The activations of the user's network are
    not estimated, because a batch has run already.

    Args:
        problem: The problem.
        path: The folder of the run.
        resume, force: As in `training.run.train`.

    Raises:
        InputError: If the parameters, gradients, optimiser and data take more memory than there is, or the checkpoints
            more disk space than is free.
    """
    run = Run(path, problem.config)
    try:
        remaining = saves(run, resume=resume, force=force)
    except (InputError, OSError):
        return
    if not remaining.count:
        return
    needs, room = Needs(problem), device_memory(problem.device)
    own = optimisers.find(problem.config.optimizer) is None
    certain = 2 * needs.parameters + needs.optimiser * (not own) + needs.data
    if room.total is not None and certain > room.total:
        smaller = " and ".join(flag(name) for name in _SIZES if hasattr(problem.settings, name)) or "model"
        raise InputError(
            f"{path}: the parameters, their gradients, the optimiser's state and the data take {in_words(certain)} of "
            f"memory, and there are {in_words(room.total)} in all; give a smaller {smaller}"
        )
    _check_disk(needs, run, remaining)
    likely = certain - needs.data if problem.has_users_code else needs.memory()
    if room.available is not None and likely > room.available:
        remark(
            f"training takes about {in_words(likely)} of memory, and {in_words(room.available)} are available; end "
            "other programs, or give a smaller --batch-size or network",
        )  # fmt: skip


#: The settings that a network's size depends on.
_SIZES: Final = ("width", "classifier", "dimension", "depth")


def _check_disk(needs: Needs, run: Run, remaining: Saves) -> None:
    free, taken = free_space(run.path), remaining.size(needs.checkpoint, needs.first)
    if free is None or taken <= free + remaining.freed:
        return
    what, hint = "a checkpoint takes", ""
    if remaining.files > 1:
        what = f"{remaining.files} checkpoints of {in_words(needs.checkpoint)} take"
    if remaining.files > 3:  # --keep 2 has three for a moment
        hint = "--keep 2, a larger --save-every, or "
    raise InputError(
        f"{run.path}: {what} {in_words(taken)}, and the disk has {in_words(free + remaining.freed)} free; give "
        f"{hint}another disk with -o"
    )


def free_space(path: Path) -> int | None:
    """The free bytes on the disk of a file or folder that may not exist yet; None if the system does not tell."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        if not hasattr(os, "statvfs"):
            return shutil.disk_usage(folder).free
        disk = os.statvfs(folder)
    except OSError:
        return None
    free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    return free * disk.f_frsize if disk.f_blocks else None  # some network file systems tell nothing


def device_memory(device: torch.device) -> Memory:
    """The memory of a device: a GPU's own, otherwise that of `main_memory`."""
    if device.type != "cuda":
        return main_memory()
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(total if sys.platform == "linux" else None, free)  # on Windows, GPUs take main memory too
