"""The samples of a custom problem: batches of the tensors or of the map-style data set that a user gives."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.problems.batches import Values, mapped, named, size
from bnsmooth_cli.randomness import seeded
from bnsmooth_cli.user_code import explaining


class Pairs(Protocol):
    """A map-style data set (torch.utils.data.Dataset): `data[i]` is (input, target), or a dict."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = tuple[Values, Values] | dict[str, Tensor] | Pairs


class Samples(ABC):
    """The samples of one split of the data, by their indices."""

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


def samples(data: Any, origin: str) -> Samples:
    """The samples of what a user's function returns as data.

    Args:
        data: The data, as `Workload` describes them.
        origin: What messages call the data.

    Raises:
        InputError: If they are not data, have no samples, or have numbers of inputs and targets that differ.
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
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
        hint = "; of a DataLoader, give the data set" if hasattr(data, "collate_fn") else ""
        raise InputError(
            f"{origin} are a {type(data).__name__}; give (inputs, targets) as tensors, or a map-style data set that is "
            f"not empty{hint}"
        )
    return _Items(data, origin)


def _is_pair(data: Any) -> bool:
    """Whether data are inputs and targets as a whole. A list of two pairs is a data set of two items."""
    if isinstance(data, list) and not any(hasattr(part, "shape") for part in data):
        return False
    return isinstance(data, list | tuple) and len(data) == 2


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
    """Check a part of a pair: a value, or values in a tuple or by name, and nothing deeper."""
    if isinstance(part, Mapping):
        part = {str(name): value for name, value in part.items()}
    elif isinstance(part, list | tuple):
        part = tuple(part)
    parts = named(part, whole)
    if not parts or (isinstance(part, tuple) and not any(hasattr(value, "__array__") for value in part)):
        raise InputError(f"{origin} have a {whole} that is a list of numbers, or is empty; make it a tensor")
    for name, value in parts.items():
        if not isinstance(value, Tensor | int | float | complex) and not hasattr(value, "__array__"):
            raise InputError(
                f"{origin} have the {name} of the kind {type(value).__name__}; give tensors, one level deep in a tuple "
                "or a dict"
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
    """The items of a map-style data set, which may draw random numbers.

    A batch has to be a function of the indices and the seed. The first one is therefore read twice.
    """

    def __init__(self, data: Pairs, origin: str) -> None:
        self._data, self._origin = data, origin
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
            inputs, targets = default_collate([_pair(self._data[index], self._origin) for index in indices])
            state = random.random(), float(np.random.rand()), float(torch.rand(()))
        inputs, targets = (tuple(values) if isinstance(values, list) else values for values in (inputs, targets))
        return _Reading(inputs, targets, state)

    def check(self) -> None:
        if self._first is None:
            return
        indices, seed, before = self._first
        after = self._read(indices, seed)
        again = named(after.inputs, "input") | named(after.targets, "target")
        for name, old in (named(before.inputs, "input") | named(before.targets, "target")).items():
            if (place := _first_difference(old, again[name])) is not None:
                raise InputError(
                    f"{self._origin} have another {name} of sample {indices[place]} each time it is read: draw from "
                    "the default generators of torch, numpy.random or random, which are set for each step, or from a "
                    "generator that __getitem__ seeds with the index"
                )
        if before.state != after.state:
            raise InputError(
                f"{self._origin} draw random numbers when samples are read for the first time (sample {indices[0]}, "
                "or another one of its batch), and others afterwards: draw at each reading, or before the data are "
                "returned"
            )


def _first_difference(a: Tensor, b: Tensor) -> int | None:
    """The first row in which two tensors differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return 0
    same = (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() or a.is_complex() else a == b
    rows = same.reshape(len(a), -1).all(1)
    return None if bool(rows.all()) else int(rows.logical_not().nonzero()[0])
