"""Memory, in new processes: the allocator's share of a step, and the line probe's needs beyond training."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import bnsmooth_cli as bns
from benchmarks.harness import Result, faster, row
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.memory import keep_freed_memory
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.training.trajectory import Trajectory

_Value = TypeVar("_Value")
_Argument = TypeVar("_Argument")


def _afresh(function: Callable[[_Argument], _Value], argument: _Argument) -> _Value:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, argument).result()


def _step(keep: bool) -> float:
    """The median seconds of a step at full width."""
    if keep:
        keep_freed_memory()
    trajectory, spent = Trajectory(problems.build(resolve("vgg", norm="batch", width=1.0))), []
    for _ in range(10):
        start = time.perf_counter()
        trajectory.advance()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[2:])


@row("allocator")
def allocator() -> Iterator[Result]:
    """A step of VGG-A at full width with freed memory kept, as the command line runs it, and without."""
    kept, plain = zip(*((_afresh(_step, True), _afresh(_step, False)) for _ in range(2)), strict=True)
    ours_s, reference_s = statistics.median(kept), statistics.median(plain)
    yield faster("allocator", "VGG step, width 1", "freed memory handed back", ours_s, reference_s, 1.05)


def _peaks(folder: str) -> tuple[float, float, int]:
    """The peak memory of the process in bytes after training and after a line probe, and the parameters' size."""
    keep_freed_memory()
    run = bns.train("vgg", "batch", width=1.0, steps=3, save_every=3, output=f"{folder}/run", device="cpu")
    (point,) = visit(run.source(), [3], "cpu")
    sizes = []
    for work in (lambda: None, lambda: bns.landscape(point)):
        work()
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0)
    return sizes[0], sizes[1], sum(p.nbytes for p in point.model.parameters())


@row("line-memory")
def line() -> Iterator[Result]:
    """The memory of the line probe at full width beyond that of training, in copies of the parameters."""
    with tempfile.TemporaryDirectory() as folder:
        trained, probed, parameters = _afresh(_peaks, folder)
    copies = (probed - trained) / parameters
    case = f"{(probed - trained) / 2**20:.0f} MiB more than training's {trained / 2**20:.0f}"
    yield Result("line-memory", case, "the parameters", None, None, copies, "at most 3x", copies <= 3)
