"""What is measured of a run: which tables, at which steps. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bnsmooth_cli import kinds
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.measures import check_batches

#: Option -> a column that it fills. Kinds of tables with this column take the option.
OPTIONS: Final = {"probe": "probe_mean", "batches": "batch_sharpness"}


@dataclass(frozen=True)
class Wanted:
    """The tables that are measured of a run while it trains, or afterwards.

    Attributes:
        kinds: The kinds of tables.
        every: The interval of the measured steps; None measures at the checkpoints.
        at: The steps to measure instead.
        probe: Whether `activations` measures the probe batch and the floor too.
        batches: The number of batches of `smoothness`'s batch sharpness; 0 leaves it out.

    >>> from bnsmooth_cli.config import resolve
    >>> Wanted(("ics",), every=100).steps(resolve("dln", steps=250))
    [0, 100, 200]
    """

    kinds: tuple[str, ...] = ()
    every: int | None = None
    at: tuple[int, ...] | None = None
    probe: bool = False
    batches: int = 0

    def check(self, steps: int) -> None:
        """Check the values for runs of this many steps.

        Raises:
            InputError: If a kind is unknown, a step is none of the run's, or two values contradict each other.
        """
        if self.every is not None and self.at is not None:
            raise InputError("--every and --at: give only one of them")
        if self.every is not None and self.every < 1:
            raise InputError(f"--every {self.every}: give a whole number of at least 1")
        for place, kind in enumerate(self.kinds):
            if kind in self.kinds[:place]:
                raise InputError(f"--measure {kind}: given twice; give it once")
            if kind not in kinds.measured(studied=True):
                raise unknown("measurement", kind, kinds.measured(studied=True))
        check_batches(self.batches)
        for option in self.asked:
            if not any(takes(kind, option) for kind in self.kinds):
                those = ", ".join(kind for kind in kinds.measured(studied=True) if takes(kind, option))
                raise InputError(f"--{option}: an option of {those}; add it to --measure, or leave the option out")
        for option in ("every", "at"):
            if not self.kinds and getattr(self, option) is not None:
                raise InputError(f"--{option}: an option of --measure; add --measure A,B, or leave the option out")
        if self.at == ():
            raise InputError("--at: name at least one step, as in 0,100,250")
        if self.at and min(self.at) < 0:
            raise InputError(f"--at {min(self.at)}: give steps from 0 to {steps}")
        if self.at and max(self.at) > steps:
            raise InputError(f"--at {max(self.at)}: beyond the {steps} steps of a run (--steps)")

    def options(self, kind: str) -> dict[str, Any]:
        """The options of a measurement."""
        return {option: value for option, value in self.asked.items() if takes(kind, option)}

    @property
    def asked(self) -> dict[str, Any]:
        """The options that some of the kinds take, without those that are left out."""
        return {option: value for option in OPTIONS if (value := getattr(self, option))}

    def steps(self, config: Config) -> list[int]:
        """The steps that are measured while a run trains."""
        if self.at is not None:
            return sorted({*self.at})
        ends = {config.steps} if self.every is None else set()
        return sorted({*range(0, config.steps + 1, self.every or config.save_every), *ends})


def takes(kind: str, option: str) -> bool:
    """Whether a kind of table takes an option of `Wanted.asked`.

    >>> takes("activations", "probe"), takes("ics", "probe")
    (True, False)
    """
    return kind in kinds.names() and OPTIONS[option] in kinds.get(kind).columns


#: No table.
NOTHING: Final = Wanted()
