"""Randomness as a function of (seed, what it is for, step), so that any step can be visited again from anywhere."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

_STREAMS: Final = ("data", "init", "order", "augment", "noise", "lanczos", "units", "surface")


def generator(
    seed: int, stream: str, step: int = 0, place: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose state depends on nothing but the arguments; `place` tells apart several draws of one step.

    Draws on the CPU are the same for every later device; a draw made on another device is that device's own.

    >>> torch.rand(1, generator=generator(0, "order", 7)) == torch.rand(1, generator=generator(0, "order", 7))
    tensor([True])
    """
    entropy = np.random.SeedSequence((seed, _STREAMS.index(stream), step, place))
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
