"""Copies of torch's optimisers, and what their state may hold in checkpoints."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def is_torchs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch has written an optimiser's class."""
    return type(optimizer).__module__.startswith("torch.optim")


def copied(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], places: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """A copy of an optimiser with its state that updates other tensors, without hooks."""
    hooks = {name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")}  # type: ignore[var-annotated]
    # An attribute that hides a method of the class belongs to the original, such as a step that counts.
    own = {name: value for name, value in vars(optimizer).items() if name not in hooks and not (
        callable(value) and hasattr(type(optimizer), name))}  # fmt: skip
    memo: dict[int, Any] = {id(parameter): place for parameter, place in zip(parameters, places, strict=True)}
    if is_torchs(optimizer):  # whose tensors share no memory; a deep copy of each takes ten times as long
        values = [v for state in optimizer.state.values() for v in state.values() if type(v) is Tensor]
        memo |= {id(value): value.clone() for value in values}
    twin = object.__new__(type(optimizer))
    vars(twin).update(copy.deepcopy(own, memo), **hooks)
    if is_torchs(optimizer):  # their averages have the types of the parameters
        for place in places:
            state = twin.state.get(place, {})
            state.update({
                name: v.to(place) for name, v in state.items()
                if isinstance(v, Tensor) and (v.dim() or (not place.dim() and name != "step"))
            })  # fmt: skip
    return twin


@contextmanager
def no_hooks() -> Iterator[None]:
    """Leave out the hooks that are registered for the steps of all optimisers."""
    registries: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    hooks = [dict(registry) for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, before in zip(registries, hooks, strict=True):
            registry.update(before)


def strange_type(value: Any) -> str:
    """The type of a value that checkpoints cannot hold, if there is one."""
    if isinstance(value, dict):
        keys = [type(key).__name__ for key in value if not isinstance(key, str | int)]
        return next(filter(None, [*keys, *map(strange_type, value.values())]), "")
    if type(value) in (list, tuple):
        return next(filter(None, map(strange_type, value)), "")
    plain = value is None or isinstance(value, bool | int | float | str) or type(value) in (Tensor, nn.Parameter)
    return "" if plain else type(value).__name__


def keep_types(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give tensors of the state the types that they were saved with: torch converts them to those of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, state in saved["state"].items():
        loaded = optimizer.state[parameters[place]]
        for name, value in state.items():
            if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def equal_states(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and torch.allclose(one.cpu(), other.cpu(), 0, 0, equal_nan=True)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal_states(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal_states, one, other))
    return type(one) is type(other) and bool(one == other or one != one)
