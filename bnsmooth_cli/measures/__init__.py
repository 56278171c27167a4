"""The measurements, one file each: from a point to the rows of a table. `bnsmooth_cli.kinds` lists them."""

from typing import Final

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError, unknown

DIRECTIONS: Final = ("random", "pca", "top")  # of a loss surface
LINE_DIRECTIONS: Final = ("gradient", *kinds.DIRECTIONS)  # of the line probe
CURVATURES: Final = ("hessian", "ggn")  # the matrices of a spectrum
#: Beta is at its limit 1 / (alpha_min lr) if it is within this share of it.
NEAR: Final = 0.02
MAX_BATCHES: Final = 100_000  # of batch sharpness


def check_direction(direction: str) -> None:
    """Raise InputError if the line probe does not have this direction."""
    if direction not in LINE_DIRECTIONS:
        raise unknown("direction", direction, LINE_DIRECTIONS)


def check_curvature(curvature: str) -> None:
    """Raise InputError if a spectrum cannot be measured of this matrix."""
    if curvature not in CURVATURES:
        raise unknown("curvature", curvature, CURVATURES)


def check_batches(batches: int) -> None:
    """Raise InputError if batch sharpness cannot be measured on this number of batches."""
    if isinstance(batches, bool) or not isinstance(batches, int) or not 0 <= batches <= MAX_BATCHES:
        raise InputError(f"--batches {batches}: give a whole number from 0 (none) to {MAX_BATCHES:,}")
