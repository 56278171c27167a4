"""What a command says on stderr beside its progress, which batch jobs print there."""

from __future__ import annotations

import re

_PROGRESS = re.compile(
    r"^(?!bnsmooth: ).*(: step \d+ of \d+|: \d+ of \d+ points|: continuing |^continuing: |: finished in ).*\n?", re.M
)


def complaints(err: str) -> str:
    """The lines of stderr that do not report progress: errors, notes, and whatever should not be there."""
    return _PROGRESS.sub("", err)
