"""The one exception that a user is meant to read: a line naming the file or option, and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something handed to us cannot be used; the command line prints the message alone and exits 2."""


class DamagedError(InputError):
    """A file of ours that cannot be read, or is not whole."""


class IncompleteError(RuntimeError):
    """Work of which a part failed, each reported as it did; the command line prints the message and exits 1."""


def unknown(what: str, given: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of `known`, with the nearest one.

    >>> print(unknown("norm", "bacth", ["none", "batch", "l1"]))
    unknown norm 'bacth': did you mean 'batch'? (known: none, batch, l1)
    """
    names = list(known)
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f" did you mean '{nearest[0]}'?" if nearest else ""
    return InputError(f"unknown {what} '{given[:40]}':{hint} (known: {', '.join(names)})")
