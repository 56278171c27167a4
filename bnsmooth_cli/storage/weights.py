"""Weights as people keep them: state dicts, alone or inside a training state, from torch or safetensors files.

What DataParallel, `torch.compile` and Lightning add to the names of a network is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.errors import DamagedError, InputError, remark
from bnsmooth_cli.storage.files import SAFETENSORS, check_regular, first_line, kind_of, read_head
from bnsmooth_cli.storage.tensors import load_tensors

State = dict[str, Any]
Place = tuple[str, ...]  # the keys that lead from a file's dict to a dict inside it

#: Parts of names that DataParallel and `torch.compile` add, anywhere in a name.
_WRAPPERS: Final = ("module", "_orig_mod")
#: A buffer that `torch.optim.swa_utils.AveragedModel` adds.
_AVERAGED: Final = "n_averaged"
#: A count that PyTorch's BatchNorm has had since 0.4.1. Weights from before lack it, and PyTorch starts it at 0.
_COUNT: Final = ".num_batches_tracked"
#: Names of the length and the direction that `torch.nn.utils.weight_norm` gave weights before its parametrisation.
_NORMALISED: Final = re.compile(r"(?<![^.])(\w+)_([gv])$")
_DEPTH: Final = 4  # of dicts in dicts
#: Endings of files of other libraries, which have no mark in their first bytes.
_OTHERS: Final = {
    ".onnx": "an ONNX graph",
    ".pb": "a TensorFlow graph",
    ".index": "a TensorFlow checkpoint",
    ".tflite": "a TensorFlow Lite graph",
}


def read_weights(path: Path, expected: Mapping[str, Any]) -> State:
    """The state dict in a file, under the names and in the precision of a network.

    Args:
        path: The file: `torch.save`'s or safetensors. It may hold the state dict inside other dicts.
        expected: The network's own state dict.

    Raises:
        InputError: If the file is of another kind, holds no state dict that fits, or holds several. The message says
            what it is, or lists the names and shapes that differ.
        DamagedError: If the file is damaged.
    """
    content = _content(path)
    found = {place: _fit(state, expected) for place, state in _states(content)}
    found = found or {(): _fit(content, expected)}
    fitting = {place: state for place, (state, differences) in found.items() if not differences}
    if not fitting:
        place, (_, differences) = min(found.items(), key=lambda item: len(item[1][1]))
        what = f"'{_shown(place)}' is no state dict" if place else "no state dict"
        message = f"{what} of this network: {'; '.join(differences[:4])}"[:600]
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(f"{path}: {message}{more}")
    (place, chosen), *others = fitting.items()
    for other, state in others:
        if not _equal(chosen, state):
            keys = "".join(f"[{key!r}]" for key in other)
            raise InputError(
                f"{path}: holds two state dicts that fit, '{_shown(place)}' and '{_shown(other)}'; save the one you "
                f"mean, such as torch.save(torch.load(FILE){keys[:80]}, NEW)"
            )
    return _converted(path, chosen, expected)


def _content(path: Path) -> State:
    """What a file of weights holds."""
    if path.suffix in _OTHERS:
        raise InputError(f"{path}: is {_OTHERS[path.suffix]}, not the weights of a torch module; give a state dict")
    check_regular(path)
    try:
        kind = kind_of(read_head(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if kind != SAFETENSORS:
        return load_tensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedError(f"{path}: a safetensors file that cannot be read ({first_line(error)})") from error


def _states(content: State, place: Place = (), seen: set[int] | None = None) -> Iterator[tuple[Place, State]]:
    """The dicts in a file that hold tensors under names, each with the keys that lead to it."""
    from torch import Tensor

    seen = set() if seen is None else seen
    if id(content) in seen or not all(isinstance(name, str) for name in content):
        return
    seen.add(id(content))
    if any(isinstance(value, Tensor) for value in content.values()):
        yield place, content
    for name, value in content.items():
        if isinstance(value, dict) and len(place) < _DEPTH:
            yield from _states(value, (*place, name), seen)


def _shown(place: Place) -> str:
    return ".".join(place)[:40]


def _fit(state: Mapping[Any, Any], expected: Mapping[str, Any]) -> tuple[State, list[str]]:
    """A state dict under the network's names, and its differences from the network's own."""
    names = _plain(expected)
    given = {name: state[original] for name, original in _plain(state).items()}
    if _AVERAGED not in names:
        given.pop(_AVERAGED, None)
    if not given.keys() & names.keys():
        given, names = _without_prefix(given, names), _without_prefix(names, given)
    given = {_present_name(name, names): value for name, value in given.items()}
    differences, fitted = _complete(given, names, expected), State()
    missing = [f"lacks {original}" for name, original in names.items() if name not in given]
    extra = [f"has {name}" for name in given if name not in names]
    differences += [*missing[:2], *extra[:2], *missing[2:], *extra[2:]]
    for name, original in names.items():
        if name not in given:
            continue
        value, target = given[name], expected[original]
        if problem := _misfit(value, target):
            differences.append(f"{original} {problem}")
        fitted[original] = value
    return fitted, differences


def _present_name(name: str, names: Mapping[str, str]) -> str:
    """The network's name of what old files of weight-normalised layers call `weight_g` and `weight_v`."""
    new = _NORMALISED.sub(lambda old: f"parametrizations.{old[1]}.original{'gv'.index(old[2])}", name)
    return new if name not in names and new in names else name


def _plain(names: Mapping[Any, Any]) -> dict[str, Any]:
    """The names without the parts that wrappers add, each with the name itself; all names if two would be the same."""
    plain = {".".join(p for p in str(name).split(".") if p not in _WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) else {str(name): name for name in names}


def _without_prefix(names: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The names without what comes before the other names in them, such as the `model.` of Lightning."""
    first = next(iter(others), "")
    prefixes = sorted({name.removesuffix(first) for name in names if name.endswith(f".{first}")})
    best = max(prefixes, key=lambda prefix: sum(f"{prefix}{other}" in names for other in others), default="")
    return {name.removeprefix(best): value for name, value in names.items()}


def _complete(given: State, names: Mapping[str, str], expected: Mapping[str, Any]) -> list[str]:
    """Add what a file may leave out: the second name of a shared parameter, and counts of batches.

    Returns:
        A difference for each parameter that has two values in the file.
    """
    from torch import Tensor, equal

    first: dict[tuple[object, ...], str] = {}
    differences = []
    for name, original in names.items():
        tensor = expected[original]
        if not isinstance(tensor, Tensor):
            continue
        if name.endswith(_COUNT):
            given.setdefault(name, tensor)
        if tensor.numel() == 0:
            continue
        shared = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
        if shared == name:
            continue
        one, other = given.get(shared), given.get(name)
        if other is None and one is not None:
            given[name] = one
        elif one is None and other is not None:
            given[shared] = other
        elif (
            isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and not equal(one, other)
        ):
            differences.append(f"has two values of one parameter, {names[shared]} and {original}")
    return differences


def _misfit(value: object, target: object) -> str | None:
    """Why a value cannot take the place of the network's, or None."""
    from torch import Tensor, strided

    if not isinstance(target, Tensor):  # of the module's own making
        return None
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not {tuple(target.shape)}"
    if value.shape != target.shape:
        return f"is {tuple(value.shape)}, not {tuple(target.shape)}"
    plain = not (value.is_meta or value.is_complex() or value.is_quantized) and value.layout == strided
    if not plain or value.is_floating_point() != target.is_floating_point():
        return "is no tensor of plain numbers"
    return None


def _converted(path: Path, state: State, expected: Mapping[str, Any]) -> State:
    """The values in the network's precision. Says so if that rounds them."""
    from torch import Tensor, equal

    rounded = set()
    for name, value in state.items():
        target = expected[name]
        if not isinstance(target, Tensor) or value.dtype == target.dtype:
            continue
        kinds = f"{value.dtype} to {target.dtype}".replace("torch.", "")
        state[name] = value.to(target.dtype)
        before, after = value.double(), state[name].double()
        exact = equal(before.nan_to_num(), after.nan_to_num())
        if not equal(before.isfinite(), after.isfinite()) or not (exact or value.is_floating_point()):
            raise InputError(f"{path}: {name} has values that are too large to convert from {kinds}")
        if not exact:
            rounded.add(kinds)
    if rounded:
        remark(f"{path}: the weights are rounded from {', '.join(sorted(rounded))}")
    return state


def _equal(one: State, other: State) -> bool:
    from torch import Tensor, equal

    return all(
        equal(value, other[name])
        if isinstance(value, Tensor) and isinstance(other[name], Tensor)
        else value is other[name]
        for name, value in one.items()
    )
