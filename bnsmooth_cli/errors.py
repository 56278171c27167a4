"""Errors for users: one line that names the file or the option and says how to fix it."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

#: The files whose lines are not those of the user.
_NOT_THE_USERS: Final = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)
#: What was remarked of an object.
_SAID: Final[WeakKeyDictionary[object, set[str]]] = WeakKeyDictionary()


class InputError(ValueError):
    """An argument or a file cannot be used. The command line prints the message alone and exits with status 2."""


class DamagedError(InputError):
    """A file that bnsmooth wrote cannot be read, or is incomplete."""


class Remark(UserWarning):
    """A note about a valid result. The command line prints it as one line on stderr."""


class IncompleteError(RuntimeError):
    """A part of the work failed and was reported. The command line prints the message and exits with status 1."""


def remark(text: str, about: object = None) -> None:
    """Warn with a `Remark` at the line of the user's code that has led here.

    Args:
        text: The text.
        about: An object, such as a network, of which this is said once only. Python's own record of what it has shown
            does not last, because pandas empties it when it changes a filter for itself.
    """
    if about is not None:
        if text in _SAID.setdefault(about, set()):
            return
        _SAID[about].add(text)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, Remark, stacklevel=level)


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`; it suggests the most similar one.

    >>> print(unknown("norm", "bacth", ["none", "batch", "l1"]))
    unknown norm 'bacth': did you mean 'batch'? (known: none, batch, l1)
    """
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f": did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {kind} '{name[:40]}'{hint} (known: {', '.join(names)})")
