"""Many runs: the grid and its folder, where it executes, the comparison, statistics over seeds, the paper's claims."""

from bnsmooth_cli.studies.comparison import compare

__all__ = ["compare"]
