"""Errors for users: one line that names the file or the option and says how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """An argument or a file cannot be used. The command line prints the message alone and exits with status 2."""


class DamagedError(InputError):
    """A file that bnsmooth wrote cannot be read, or is incomplete."""


class Remark(UserWarning):
    """A note about a valid result. The command line prints it as one line on stderr."""


class IncompleteError(RuntimeError):
    """A part of the work failed and was reported. The command line prints the message and exits with status 1."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`; it suggests the most similar one.

    >>> print(unknown("norm", "bacth", ["none", "batch", "l1"]))
    unknown norm 'bacth': did you mean 'batch'? (known: none, batch, l1)
    """
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f": did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {kind} '{name[:40]}'{hint} (known: {', '.join(names)})")
