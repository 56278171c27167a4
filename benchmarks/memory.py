"""Memory, in new processes: the allocator's share of a step, and the line probe's needs beyond training."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
_TOP = 10


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


Work = Callable[[bns.Point], object]


def _one_product(point: bns.Point) -> None:
    gradient, product = point.hessian()
    product(gradient)


def _eigenvalues(point: bns.Point) -> None:
    bns.spectrum(point, top=_TOP)


def _density(point: bns.Point) -> None:
    bns.spectral_density(point, nodes=10, vectors=1)


def _peaks(works: Sequence[Work]) -> list[int]:
    """The peak memory of the process in bytes, after training and after each work; and the parameters' size."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        run = bns.train("vgg", "batch", width=1.0, steps=3, save_every=3, output=f"{folder}/run", device="cpu")
        (point,) = visit(run.source(), [3], "cpu")
    peaks = []
    for work in (lambda point: None, *works):
        work(point)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return [*peaks, sum(p.nbytes for p in point.model.parameters())]


def _beyond(name: str, before: str, start: int, peak: int, parameters: int, most: int) -> Result:
    """The memory beyond a start, in copies of the parameters."""
    copies = (peak - start) / parameters
    case = f"{(peak - start) / 2**20:.0f} MiB more than {before} {start / 2**20:.0f}"
    return Result(name, case, "the parameters", None, None, copies, f"at most {most}x", copies <= most)


@row("line-memory")
def line() -> Iterator[Result]:
    """The memory of the line probe at full width beyond that of training, in copies of the parameters."""
    trained, probed, parameters = _afresh(_peaks, [bns.landscape])
    yield _beyond("line-memory", "training's", trained, probed, parameters, 3)


@row("spectrum-memory")
def spectrum() -> Iterator[Result]:
    """The memory of eigenvalues and of a density at full width beyond a product's, in copies of the parameters."""
    _, product, largest, parameters = _afresh(_peaks, [_one_product, _eigenvalues])
    yield _beyond("spectrum-memory", "a product's", product, largest, parameters, 3 * _TOP + 20)
    _, product, density, parameters = _afresh(_peaks, [_one_product, _density])
    yield _beyond("spectrum-memory", "a product's", product, density, parameters, 7)
