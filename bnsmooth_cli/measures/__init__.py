"""The measurements, one file each: from a point to the rows of a table. `bnsmooth_cli.kinds` lists them."""

from typing import Final

DIRECTIONS: Final = ("random", "pca")  # of a loss surface
