"""The measurements, one file each: from a point to the rows of a table. `bnsmooth_cli.kinds` lists them."""

from typing import Final

from bnsmooth_cli.errors import unknown

DIRECTIONS: Final = ("random", "pca")  # of a loss surface
LINE_DIRECTIONS: Final = ("gradient", "random")  # of the line probe


def check_direction(direction: str) -> None:
    """Raise InputError if the line probe does not have this direction."""
    if direction not in LINE_DIRECTIONS:
        raise unknown("direction", direction, LINE_DIRECTIONS)
