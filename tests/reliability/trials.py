"""All trials by name. A try depends only on its trial and its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import command_lines
import measured_networks
from attempts import Attempt
from broken import BROKEN
from kills import KILLS
from long_work import LONG
from told import BROKEN_OFF, TOLD

#: Name -> the function that prepares the trial in a folder.
TRIALS: dict[str, Callable[[Path], Attempt]] = {
    **{f"kill: {name}": kill.prepare for name, kill in KILLS.items()},
    **{f"told: {name}": told.prepare for name, told in TOLD.items()},
    **{f"study: {name}": study.prepare for name, study in BROKEN_OFF.items()},
    **{f"broken: {name}": broken.prepare for name, broken in BROKEN.items()},
    "options": command_lines.prepare,
    "networks": measured_networks.prepare,
    **{f"long: {name}": long.prepare for name, long in LONG.items()},
}
