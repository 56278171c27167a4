"""Extreme random draws, which show an effect that is too rare to be seen by chance, as of a layer dropped at times."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnsmooth_cli.randomness import seeded

#: Torch's functions of (input, p, training) that drop values, by name. Some end in "_" where they work in place.
_DROPOUTS: Final = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
                    "feature_alpha_dropout")  # fmt: skip
#: How many of the next draws of numpy and `random` are extreme. Not all: a normal deviate rejects extreme draws.
_FIRST: Final = 32
#: How far extreme normal deviates are from their mean, in standard deviations.
_FAR: Final = 6.0
#: The word of the Mersenne Twister whose output has all bits set; the output of 0 is 0.
_LARGEST: Final = 0x12DD9BB3


@contextmanager
def extreme(largest: bool) -> Iterator[None]:
    """Let draws be as small as possible, or as large; dropout drops everything.

    Whole numbers and categories are the first or the last one, permutations ascend or descend, and normal deviates are
    `_FAR` standard deviations from their mean. Draws of other kinds are those of a seed. The generators are restored
    afterwards.

    >>> with extreme(False):
    ...     torch.rand(()).item(), np.random.rand(), random.random(), torch.bernoulli(torch.tensor([0.0, 0.5])).tolist()
    (0.0, 0.0, 0.0, [0.0, 0.0])
    >>> with extreme(True):
    ...     bool(torch.rand(()) > 0.999), np.random.rand() > 0.999, torch.bernoulli(torch.tensor([0.0, 0.5])).tolist()
    (True, True, [0.0, 1.0])
    """
    with seeded(0), _Extreme(largest):
        words = [_LARGEST if largest else 0] * _FIRST
        version, state, gauss = random.getstate()
        random.setstate((version, (*words, *state[_FIRST:-1], 0), gauss))
        keys = np.random.get_state(legacy=False)["state"]["key"]
        np.random.set_state(("MT19937", np.array([*words, *keys[_FIRST:]], dtype=np.uint32), 0, 0, 0.0))
        yield


class _Extreme(TorchFunctionMode):
    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        drawn = function(*args, **kwargs)
        if self._drops(getattr(function, "__name__", ""), args, kwargs):
            return torch.zeros_like(drawn)
        if function in (torch.rand, torch.rand_like):
            return self._uniform(drawn, 0.0, 1.0)
        if function is Tensor.uniform_:
            return self._uniform(drawn, *_bounds(*args[1:], **kwargs))
        if function in (torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_):
            p = args[0] if function is torch.bernoulli or (function is Tensor.bernoulli and len(args) == 1) else None
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5) if p is None else p
            with torch.no_grad():
                return drawn.copy_(torch.as_tensor(p > 0 if self.largest else p >= 1))
        with torch.no_grad():
            return self._other(function, drawn, args, kwargs)

    def _other(self, function: Any, drawn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Whole numbers, categories, permutations and normal deviates."""
        if function in (torch.randint, torch.randint_like, Tensor.random_):
            low, high = _range(drawn, function, args, kwargs)
            return drawn.fill_(high - 1 if self.largest else low)
        if function in (torch.multinomial, Tensor.multinomial):
            weights = args[0] if args else kwargs["input"]
            places = torch.arange(weights.shape[-1], device=weights.device).expand_as(weights)
            order = places.where(weights > 0, -1 if self.largest else weights.shape[-1])
            order = order.sort(dim=-1, descending=self.largest).values[..., : drawn.shape[-1]]
            replaced = kwargs.get("replacement", args[2] if len(args) > 2 else False)
            return drawn.copy_(order[..., :1].expand_as(drawn) if replaced else order)
        if function is torch.randperm:
            return drawn.copy_(drawn.sort(descending=self.largest).values)
        if function in (torch.randn, torch.randn_like):
            return drawn.fill_(_FAR if self.largest else -_FAR)
        if function in (torch.normal, Tensor.normal_):
            place = 1 if function is Tensor.normal_ else 0
            mean, std = (kwargs.get(name, args[place + i] if len(args) > place + i else usual)
                         for i, (name, usual) in enumerate((("mean", 0.0), ("std", 1.0))))  # fmt: skip
            return drawn.copy_(torch.as_tensor(mean + std * (_FAR if self.largest else -_FAR)))
        return drawn

    def _drops(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a function is dropout that can drop something."""
        if name == "scaled_dot_product_attention":
            return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)) > 0
        if name.rstrip("_") not in _DROPOUTS:
            return False
        p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        usual = args[2] if len(args) > 2 else "alpha" not in name
        return float(p) > 0 and bool(kwargs.get("training", kwargs.get("train", usual)))

    def _uniform(self, drawn: Tensor, low: float, high: float) -> Tensor:
        share = 1 - torch.finfo(drawn.dtype).eps if self.largest else 0.0
        with torch.no_grad():
            return drawn.fill_(low + (high - low) * share)


def _range(drawn: Tensor, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """The smallest whole number that a function may draw, and the one after the largest."""
    numbers = [value for value in args if isinstance(value, int)]
    names = ("from", "to") if function is Tensor.random_ else ("low", "high")
    numbers += [kwargs[name] for name in names if kwargs.get(name) is not None]
    if not numbers:  # as many as the type holds without rounding
        whole = torch.iinfo(drawn.dtype).max if not drawn.is_floating_point() else int(2 / torch.finfo(drawn.dtype).eps)
        return 0, whole
    return (0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _bounds(low: float = 0.0, high: float = 1.0, **named: Any) -> tuple[float, float]:
    return float(named.get("from", low)), float(named.get("to", high))


#: The draws under which a loss is computed again: those of two seeds, and the extreme ones.
DRAWS: Final[tuple[Callable[[], Any], ...]] = (
    lambda: seeded(0),
    lambda: seeded(1),
    lambda: extreme(False),
    lambda: extreme(True),
)
