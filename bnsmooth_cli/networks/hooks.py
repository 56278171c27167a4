"""Running a network under watch: hooks, what modules take in and put out, eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from bnsmooth_cli.networks.structure import Site


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """Hooks that are there, and gone afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The network in eval mode, and afterwards every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def captured(modules: Sequence[nn.Module], forward: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """(first input, output) of each module in one run of the network."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        given = [*inputs, *named.values()][0]
        found.setdefault(module, (given.clone(), output.clone()))  # what follows may work in place

    with hooked([module.register_forward_hook(record, with_kwargs=True) for module in modules]):
        forward()
    return [found[module] for module in modules]


class Remainder(nn.Module):
    """The network as a function of what is fed on in place of a site's normalised output, everything else as it is."""

    def __init__(self, site: Site, forward: Callable[[], Tensor]) -> None:
        super().__init__()
        self._site, self._run = (site,), (forward,)  # in tuples: their parameters are not this module's

    def forward(self, z: Tensor) -> Tensor:
        (site,), (run,) = self._site, self._run
        fed = site.as_found(z).clone()  # what follows may work in place
        # The last module of the site has the word: what the others put out in between goes nowhere.
        last = [site.linear, *site.norms][-1]
        with hooked([last.register_forward_hook(lambda *_: fed)]):
            return run()
