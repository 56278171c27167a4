"""Random generators that depend only on seed, purpose and step, so that any training step can be repeated exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

_STREAMS: Final = (
    "data",
    "init",
    "order",
    "augment",
    "noise",
    "lanczos",
    "units",
    "surface",
    "direction",
    "jacobian",
    "optimiser",
    "batches",
    "spectrum",
    "density",
)


def generator(
    seed: int, stream: str, step: int = 0, place: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose state depends on the arguments alone.

    Args:
        seed: The run's seed.
        stream: What the randomness is for, one of `_STREAMS`.
        step: The training step or epoch.
        place: Distinguishes several draws of one step.
        device: Where the numbers are drawn. Different devices draw different numbers.

    >>> torch.rand(1, generator=generator(0, "order", 7)) == torch.rand(1, generator=generator(0, "order", 7))
    tensor([True])
    """
    entropy = np.random.SeedSequence((seed, _STREAMS.index(stream), step, place))
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the default generators of torch, numpy and `random` for the user's code, and restore them afterwards.

    Args:
        seed: A seed, such as a run's own or the `initial_seed()` of a `generator`.

    >>> with seeded(3):
    ...     first = random.random(), np.random.rand(), torch.rand(())
    >>> with seeded(3):
    ...     first == (random.random(), np.random.rand(), torch.rand(()))
    True
    """
    with kept():
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        yield


def states() -> tuple[object, ...]:
    """The states of the default generators of torch, numpy and `random`.

    >>> before = states()
    >>> before == states(), torch.rand(()) is None, before == states()
    (True, False, False)
    """
    torchs = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    _, keys, *rest = np.random.get_state()
    return *(state.numpy().tobytes() for state in torchs), np.asarray(keys).tobytes(), *rest, random.getstate()


@contextmanager
def kept() -> Iterator[None]:
    """Restore the default generators of torch, numpy and `random` when the context ends."""
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
