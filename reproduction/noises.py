"""Parts of the paper's noise, as norms: which part keeps the plain network from training?

They are norms of the user's for bnsmooth: `bnsmooth train --norm reproduction.noises:Shift`.
"""

from __future__ import annotations

from bnsmooth_cli.norms.noise import Noise


class Shift(Noise):
    """The shift alone: $a + m$."""

    n_sigma = 1.0
    r_sigma = 0.0


class UnitShift(Shift):
    """The shift alone, the same for all samples of a step."""

    r_mu = 0.0


class SampleShift(Shift):
    """The shift alone, with a mean of zero for each unit."""

    n_mu = 0.0


class Scale(Noise):
    """The scale alone: $s a$."""

    n_mu = 0.0
    r_mu = 0.0
