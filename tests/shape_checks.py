"""Checks of shapes and types at run time, for the rooms whose annotations carry shapes."""

from __future__ import annotations

import sys

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

#: The packages whose functions are checked at every call.
CHECKED = tuple(f"bnsmooth_cli.{room}" for room in ("norms", "networks", "derivatives", "points", "measures"))

#: The decorator that the import hook applies to every function: beartype, where an int is also a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Check the calls of `CHECKED`; it must run before any of them is imported.

    Only this process is checked. A forked process is checked too, a new interpreter is not.
    """
    if early := [package for package in CHECKED if package in sys.modules]:
        raise RuntimeError(f"imported before the import hook was installed: {', '.join(early)}")
    install_import_hook(CHECKED, f"{__name__}.check")
