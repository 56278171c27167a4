"""Who computed which steps of a table: the `stretches` of its provenance. Imports no torch.

A stretch is a range of steps and what computed them, as far as it rounds in its own way. Its keys are `first` and
`last` (steps), `version` (of bnsmooth), `torch`, `device`, and on CPUs `threads`. `training.devices.machine` makes all
but the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

Machine = dict[str, Any]
Stretch = dict[str, Any]

#: The steps of a stretch; its other keys describe the machine.
_STEPS: Final = ("first", "last")
#: The keys of a machine in the order of texts; tables have them in alphabetical order.
_MACHINE: Final = ("version", "torch", "device", "threads")


def stretch(first: int, last: int, machine: Machine) -> Stretch:
    """The steps from `first` to `last`, computed by one machine."""
    return {"first": first, "last": last, **machine}


def machine_of(stretch: Stretch) -> Machine:
    """What computed a stretch."""
    return {key: value for key, value in stretch.items() if key not in _STEPS}


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Stretches in the order of their steps; neighbours of one machine become one stretch.

    The stretches of a resumed run are therefore those of an uninterrupted one if it has not changed machines.

    >>> joined([stretch(3, 5, {"threads": 1}), stretch(0, 2, {"threads": 1}), stretch(6, 6, {"threads": 2})])
    [{'first': 0, 'last': 5, 'threads': 1}, {'first': 6, 'last': 6, 'threads': 2}]
    """
    found: list[Stretch] = []
    for one in sorted(stretches, key=lambda one: (one["first"], one["last"])):
        if found and machine_of(found[-1]) == machine_of(one):
            found[-1]["last"] = max(found[-1]["last"], one["last"])
        else:
            found.append({**one})
    return found


def before(stretches: Iterable[Stretch], step: int) -> list[Stretch]:
    """The parts of stretches that are before a step.

    >>> before([stretch(0, 4, {"threads": 1}), stretch(5, 9, {"threads": 2})], 4)
    [{'first': 0, 'last': 3, 'threads': 1}]
    """
    return [{**one, "last": min(one["last"], step - 1)} for one in stretches if one["first"] < step]


def machine_at(stretches: Iterable[Stretch], step: int) -> Machine | None:
    """What computed a step; None if no stretch has it.

    >>> machine_at([stretch(0, 4, {"threads": 1}), stretch(5, 9, {"threads": 2})], 5)
    {'threads': 2}
    """
    return next((machine_of(one) for one in stretches if one["first"] <= step <= one["last"]), None)


def recorded(provenance: Mapping[str, Any], last: int) -> list[Stretch]:
    """The stretches of a run's train table.

    A table of an earlier version has none. It counts as one stretch, of the versions that it names.

    Args:
        provenance: The provenance of the table.
        last: The last step of the table; below 0 for a table without rows.
    """
    if is_stretches(provenance.get("stretches")):
        return list(provenance["stretches"])
    known = {key: provenance[key] for key in ("version", "torch") if isinstance(provenance.get(key), str)}
    return [stretch(0, last, known)] if last >= 0 else []


def is_stretches(value: object) -> bool:
    """Whether a value of a file is a list of stretches: a stranger's file may have anything there."""
    return isinstance(value, list) and all(isinstance(one, dict) and _is_stretch(one) for one in value)


def _is_stretch(one: Mapping[str, Any]) -> bool:
    first, last = (one.get(key) for key in _STEPS)
    whole = isinstance(first, int) and isinstance(last, int) and 0 <= first <= last
    return whole and all(isinstance(value, str | int) for value in one.values())


def described(machine: Machine) -> str:
    """A machine in words.

    >>> described({"version": "1.0", "torch": "2.9.0", "device": "cpu AMD EPYC AVX512", "threads": 1})
    'bnsmooth 1.0, torch 2.9.0, cpu AMD EPYC AVX512, 1 thread'
    """
    return ", ".join(_word(key, machine[key]) for key in _MACHINE if key in machine)


def _word(key: str, value: object) -> str:
    if key == "device":
        return str(value)
    if key == "threads":
        return f"{value} thread{'s' * (value != 1)}"
    return f"{'bnsmooth' if key == 'version' else key} {value}"


def history(stretches: Iterable[Stretch]) -> str:
    """Stretches in words. A single one is told without its steps.

    >>> history([stretch(0, 4, {"threads": 1}), stretch(5, 5, {"threads": 2})])
    'steps 0-4: 1 thread; step 5: 2 threads'
    """
    several = list(stretches)
    if len(several) == 1:
        return described(machine_of(several[0]))
    return "; ".join(f"{_range(one['first'], one['last'])}: {described(machine_of(one))}" for one in several)


def _range(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first}-{last}"


def changed(earlier: Machine, now: Machine) -> list[str]:
    """What differs between two machines, as `<earlier>, now <now>`; what only one of them tells makes no difference.

    >>> changed({"torch": "2.8.0", "threads": 1}, {"torch": "2.9.0", "device": "cpu", "threads": 1})
    ['torch 2.8.0, now torch 2.9.0']
    """
    return [
        f"{_word(key, earlier[key])}, now {_word(key, now[key])}"
        for key in _MACHINE
        if key in earlier and key in now and earlier[key] != now[key]
    ]
