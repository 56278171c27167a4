"""The samples of a custom problem: batches of tensors, of a data set, of a DataLoader's data set, or of a stream."""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data
from torch.utils.data import default_collate

from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.memory import in_words, main_memory
from bnsmooth_cli.problems.batches import Values, mapped, named, size
from bnsmooth_cli.randomness import seeded
from bnsmooth_cli.user_code import explaining

#: The largest share of the available memory that the samples of a stream may take.
SHARE: Final = 0.5
#: The bytes that they may take where the available memory is unknown.
UNKNOWN: Final = 4 * 10**9
#: Samples of a stream that is read to its end. A longer one may have none.
MAX_READ: Final = 100_000


class Pairs(Protocol):
    """A map-style data set (torch.utils.data.Dataset): `data[i]` is (input, target), or a dict."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Collate = Callable[[list[Any]], Any]
Data = tuple[Values, Values] | dict[str, Any] | Pairs | Iterable[Any]


class Samples(ABC):
    """The samples of one split of the data, by their indices.

    Attributes:
        ordered: Whether the order of the samples is theirs, as in a stream; otherwise each epoch has a random one.
    """

    ordered: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor, seed: int) -> tuple[Values, Values]:
        """The inputs and targets of the samples. The seed sets the default generators, from which a data set draws."""

    def targets(self, indices: Tensor) -> Values | None:
        """The targets of the samples; None if they cannot be read without the inputs."""
        return None

    def check(self) -> None:  # noqa: B027  tensors do not change
        """Raise InputError if samples that have been read before are now different."""


def samples(data: Any, origin: str, needed: int | None = None, seed: int = 0) -> Samples:
    """The samples of what a user's function returns as data.

    Args:
        data: The data, as `Workload` describes them.
        origin: What messages call the data.
        needed: The number of samples that are read of a stream, as far as it has them; None reads all of it.
        seed: Seeds the default generators, from which a stream draws.

    Raises:
        InputError: If they are not data, have no samples, or have numbers of inputs and targets that differ; if a
            stream does not fit into memory, or gives other samples when it is read again; if a DataLoader draws
            samples in a way of its own.
    """
    if isinstance(data, Mapping) or _is_pair(data):
        inputs, targets = _pair(data, origin)
        tensors = named(inputs, "input") | named(targets, "target")
        for tensor in tensors.values():
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"{origin} are no tensors but hold a {type(tensor).__name__}; convert them (torch.from_numpy)"
                )
        counts = {name: len(tensor) if tensor.dim() else 0 for name, tensor in tensors.items()}
        if 0 in counts.values() or len({*counts.values()}) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise InputError(f"{origin} need equally many samples in each tensor, and at least one: {listed}")
        return _Tensors(inputs, targets)
    collate: Collate | None = None
    if isinstance(data, torch_data.DataLoader):
        data, collate = _of_loader(data, origin)
    if _is_stream(data):
        return _buffered(data, origin, collate, needed, seed)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
        raise InputError(
            f"{origin} are a {type(data).__name__}; give (inputs, targets) as tensors, a data set that is not empty, "
            "or a DataLoader"
        )
    return _Items(data, origin, collate)


def _is_pair(data: Any) -> bool:
    """Whether data are inputs and targets as a whole. A list of two pairs is a data set of two items."""
    if isinstance(data, list) and not any(hasattr(part, "shape") for part in data):
        return False
    return isinstance(data, list | tuple) and len(data) == 2


def _is_stream(data: Any) -> bool:
    """Whether samples can only be read one after another."""
    return isinstance(data, torch_data.IterableDataset) or (
        isinstance(data, Iterable) and not isinstance(data, str | bytes) and not hasattr(data, "__getitem__")
    )


def _of_loader(loader: torch_data.DataLoader[Any], origin: str) -> tuple[Any, Collate | None]:
    """The data set of a DataLoader and the function that collates its samples, if it is not PyTorch's.

    Raises:
        InputError: If some samples would be drawn more often than others, or come in batches of the data set's own.
    """
    data, collate = loader.dataset, loader.collate_fn
    if loader.batch_size is None and loader.batch_sampler is None:
        raise InputError(
            f"{origin} are a DataLoader with batch_size=None, whose data set makes the batches; let it give samples"
        )
    if not isinstance(data, torch_data.IterableDataset):
        sampler: Any = loader.sampler
        plain = type(loader.batch_sampler) is torch_data.BatchSampler
        if not plain or not _takes_each(sampler, data):
            own = type(sampler if plain else loader.batch_sampler).__name__
            raise InputError(
                f"{origin} are a DataLoader with a {own}, but bnsmooth draws every sample once an epoch; give its "
                "data set (loader.dataset), or a DataLoader without a sampler"
            )
        if isinstance(sampler, torch_data.SubsetRandomSampler):
            data = torch_data.Subset(data, [int(index) for index in sampler.indices])
        remark(
            f"{origin}: of the DataLoader, the data set and collate_fn are used; --batch-size and the seed set the "
            "batches and their order"
        )  # fmt: skip
    return data, None if collate is default_collate else collate


def _takes_each(sampler: Any, data: Any) -> bool:
    """Whether a sampler takes each sample once, or each of a subset."""
    if isinstance(sampler, torch_data.RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(data)
    if isinstance(sampler, torch_data.SequentialSampler):
        return len(sampler) == len(data)
    return isinstance(sampler, torch_data.SubsetRandomSampler | torch_data.DistributedSampler)


def _pair(item: Any, origin: str) -> tuple[Any, Any]:
    """Inputs and targets, each a value, a tuple or a dict. A dict alone is the inputs, with targets under "labels"."""
    if isinstance(item, Mapping):
        inputs = _values(item, "input", origin)
        return inputs, inputs.get("labels", inputs)
    if not isinstance(item, list | tuple) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, list | tuple) else type(item).__name__
        raise InputError(
            f"{origin} do not give pairs (input, target): an item is a {kind}; several inputs belong in a tuple or a "
            "dict, as in ((a, b), target)"
        )
    return _values(item[0], "input", origin), _values(item[1], "target", origin)


def _values(part: Any, whole: str, origin: str) -> Any:
    """Check a part of a pair: a number or an array, or such parts in a tuple or by name."""
    if isinstance(part, Mapping | list | tuple):
        if not part or (not isinstance(part, Mapping) and all(isinstance(value, int | float) for value in part)):
            raise InputError(f"{origin} have a {whole} that is a list of numbers, or is empty; make it a tensor")
        if isinstance(part, Mapping):
            return {str(name): _values(value, f"{whole} '{name}'", origin) for name, value in part.items()}
        return tuple(_values(value, f"{whole} {place}", origin) for place, value in enumerate(part, 1))
    if not isinstance(part, Tensor | int | float | complex) and not hasattr(part, "__array__"):
        raise InputError(
            f"{origin} have the {whole} of the kind {type(part).__name__}; give tensors, in tuples or dicts"
        )
    return part


class _Tensors(Samples):
    """Tensors whose first dimension runs over the samples."""

    def __init__(self, inputs: Values, targets: Values) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return size(self._inputs)

    def batch(self, indices: Tensor, seed: int) -> tuple[Values, Values]:
        return self._chosen(self._inputs, indices), self.targets(indices)

    def targets(self, indices: Tensor) -> Values:
        return self._chosen(self._targets, indices)

    @staticmethod
    def _chosen(values: Values, indices: Tensor) -> Values:
        def rows(tensor: Tensor) -> Tensor:
            return tensor.detach()[indices.to(tensor.device)].requires_grad_(tensor.requires_grad)

        return mapped(rows, values)


class _Reading(NamedTuple):
    """A batch as it was read, with numbers that tell in which state it left the random generators."""

    inputs: Values
    targets: Values
    state: tuple[float, ...]


class _Items(Samples):
    """The items of a data set, which may draw random numbers.

    A batch has to be a function of the indices and the seed. The first one is therefore read twice.

    Args:
        data: The data set, or the items of a stream.
        origin: What messages call the data.
        collate: Makes a batch of items; by default PyTorch's `default_collate`.
        ordered: As for `Samples`.
    """

    def __init__(self, data: Pairs, origin: str, collate: Collate | None = None, ordered: bool = False) -> None:
        self._data, self._origin, self._collate, self.ordered = data, origin, collate, ordered
        self._first: tuple[list[int], int, _Reading] | None = None

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: Tensor, seed: int) -> tuple[Values, Values]:
        reading = self._read(indices.tolist(), seed)
        if self._first is None:
            inputs, targets = (mapped(lambda tensor: tensor.detach().clone(), values) for values in reading[:2])
            self._first = indices.tolist(), seed, _Reading(inputs, targets, reading.state)
            self.check()
        return reading[:2]

    def _read(self, indices: list[int], seed: int) -> _Reading:
        with seeded(seed), explaining(f"{self._origin} do not give pairs (input, target) that make a batch"):
            inputs, targets = self._collated([self._data[index] for index in indices])
            state = random.random(), float(np.random.rand()), float(torch.rand(()))
        return _Reading(inputs, targets, state)

    def _collated(self, items: list[Any]) -> tuple[Values, Values]:
        if self._collate is None:
            inputs, targets = default_collate([_pair(item, self._origin) for item in items])
            return _tuples(inputs), _tuples(targets)
        inputs, targets = _pair(self._collate(items), f"{self._origin}: its collate_fn: batches")
        for name, tensor in (named(inputs, "input") | named(targets, "target")).items():
            if not isinstance(tensor, Tensor):
                raise InputError(
                    f"{self._origin}: its collate_fn gives a {type(tensor).__name__} as the {name}; give tensors"
                )
        first = next(iter(named(inputs, "input").values()))
        if not first.dim() or size(inputs) != len(items):
            raise InputError(
                f"{self._origin}: its collate_fn makes a first tensor of the shape {tuple(first.shape)} from "
                f"{len(items)} samples; its first dimension has to run over them"
            )
        return inputs, targets

    def check(self) -> None:
        if self._first is None:
            return
        indices, seed, before = self._first
        after = self._read(indices, seed)
        if (difference := _difference(before, after)) is not None:
            name, place = difference
            raise InputError(
                f"{self._origin} have another {name} of sample {indices[min(place, len(indices) - 1)]} each time it is "
                "read: draw from the default generators of torch, numpy.random or random, which are set for each step, "
                "or from a generator that __getitem__ seeds with the index"
            )
        if before.state != after.state:
            raise InputError(
                f"{self._origin} draw random numbers when samples are read for the first time (sample {indices[0]}, "
                "or another one of its batch), and others afterwards: draw at each reading, or before the data are "
                "returned"
            )


def _tuples(values: Any) -> Any:
    """Values with tuples in place of the lists of `default_collate`."""
    if isinstance(values, dict):
        return {name: _tuples(value) for name, value in values.items()}
    return tuple(map(_tuples, values)) if isinstance(values, list) else values


def _buffered(data: Iterable[Any], origin: str, collate: Collate | None, needed: int | None, seed: int) -> Samples:
    """The first samples of a stream, in its order and in memory.

    A stream cannot be visited again at a step, so what a run takes of it is kept. Draws of its iterator depend on the
    seed alone: it is read under seeded generators, and its beginning is read a second time.
    """
    available = main_memory().available
    limit = UNKNOWN if available is None else SHARE * available
    most = MAX_READ if needed is None else needed
    items: list[Any] = []
    taken = 0
    with seeded(seed), explaining(f"{origin} cannot be read"):
        for item in islice(data, most + (needed is None)):
            items.append(item)
            taken += _bytes(item)
            if taken > limit:
                raise InputError(
                    f"{origin} are a stream, and {len(items):,} samples of the {most:,} that are needed already take "
                    f"{in_words(taken)} of memory; use fewer --steps or a smaller --batch-size, or give a data set "
                    "with an index (__getitem__)"
                )
    if needed is None and len(items) > most:
        raise InputError(
            f"{origin} are a stream that does not end after {most:,} samples; let it end, as "
            "itertools.islice(stream, 1000) does"
        )
    if not items:
        raise InputError(f"{origin} are a stream without samples; if it can be read only once, make it in the function")
    found = _Items(items, origin, collate, ordered=needed is not None)
    if iter(data) is not data:  # it can be read again
        with seeded(seed), explaining(f"{origin} cannot be read again"):
            again = [*islice(data, 2)]
        _check_again(_Items(items[: len(again)], origin, collate), _Items(again, origin, collate), origin)
    remark(
        f"{origin}: {'the first' if len(items) == needed else 'all'} {len(items):,} samples of the stream are kept in "
        f"memory ({in_words(taken)}), in their order"
    )  # fmt: skip
    return found


def _check_again(first: _Items, again: _Items, origin: str) -> None:
    """Raise InputError if a stream begins with other samples when it is read again."""
    every = [*range(len(first))]
    if not len(again) or _difference(first._read(every, 0), again._read(every, 0)) is not None:
        raise InputError(
            f"{origin} are a stream that gives other samples each time it is read: draw from the default generators of "
            "torch, numpy.random or random, which are seeded before it is read"
        )


def _bytes(item: Any) -> int:
    """The memory of an item of a stream, about."""
    if isinstance(item, Tensor | np.ndarray):
        return int(item.nbytes)
    if isinstance(item, Mapping):
        item = [*item.values()]
    return sys.getsizeof(item) + (sum(map(_bytes, item)) if isinstance(item, list | tuple) else 0)


def _difference(before: _Reading, after: _Reading) -> tuple[str, int] | None:
    """The tensor and the row in which two readings of a batch differ first."""
    again = named(after.inputs, "input") | named(after.targets, "target")
    for name, old in (named(before.inputs, "input") | named(before.targets, "target")).items():
        if (place := _first_difference(old, again[name])) is not None:
            return name, place
    return None


def _first_difference(a: Tensor, b: Tensor) -> int | None:
    """The first row in which two tensors differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return 0
    a, b = torch.atleast_1d(a, b)
    same = (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() or a.is_complex() else a == b
    rows = same.reshape(len(a), -1).all(1)
    return None if bool(rows.all()) else int(rows.logical_not().nonzero()[0])
