"""The spectrum of the Hessian against PyHessian, curvlinops and hessian-eigenthings, for the same accuracy.

The networks are such that the libraries can treat them: BatchNorm is in eval mode, and attention is not fused. The
libraries are timed at their best. Where one has no stopping rule, or one that does not tell the accuracy, it is told
how many products suffice, which a user would have to find out. Its preparation counts, as ours does.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torchvision
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bnsmooth_cli as bns
from benchmarks import references
from benchmarks.harness import Result, agree, medians, row, within
from bnsmooth_cli.derivatives.eigenpairs import extreme_eigenpairs
from bnsmooth_cli.derivatives.lanczos import largest_eigenvalue
from bnsmooth_cli.measures.operators import Operator, with_operator

GOAL: Final = 1.1
TOP_ACCURACY: Final = 1e-2
TRACE_ACCURACY: Final = 5e-2
MANY: Final = 10  # eigenvalues
ENDS: Final = 5e-2  # how near the ends of two densities are: the iterations need not have found them
NODES: Final = 100
MOST_STEPS: Final = 160  # of an iteration that is told how many suffice
MOST_VECTORS: Final = 60  # of a trace: as many as ours draws


@dataclass
class Case:
    """A point, and its loss as the libraries take it."""

    row: str
    name: str
    point: bns.Point
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    #: PyHessian ends when an eigenvalue changes by less than this share in a step; chosen so that it is within
    #: TOP_ACCURACY.
    change: float
    #: Whether PyTorch can differentiate the network's backward pass forwards, which curvlinops needs.
    forwards: bool = True
    #: Whether everything runs a second time to be timed, warmed up. Where it takes minutes, the first time is timed.
    again: bool = True

    def curvlinops(self) -> Any:
        library = importlib.import_module("curvlinops")
        data, parameters = [(self.inputs, self.targets)], list(self.model.parameters())
        return library.HessianLinearOperator(
            self.model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
        )

    def eigenthings(self) -> Any:
        library = importlib.import_module("hessian_eigenthings")
        loss = library.supervised_loss(nn.CrossEntropyLoss())
        return library.HessianOperator(self.model, [(self.inputs, self.targets)], loss)

    def pyhessian(self) -> Any:
        self.model.zero_grad()
        data = (self.inputs, self.targets)
        return importlib.import_module("pyhessian").hessian(self.model, nn.CrossEntropyLoss(), data=data, cuda=False)


Works = dict[str, Callable[[], Any]]


def _installed(case: Case) -> set[str]:
    names = {name for name in ("curvlinops", "hessian_eigenthings", "pyhessian") if importlib.util.find_spec(name)}
    return names if case.forwards else names - {"curvlinops"}


def _eigenvalues(case: Case, count: int) -> Tensor:
    """Our largest eigenvalues, without the trace."""

    def find(operator: Operator) -> Tensor:
        if count == 1:
            value = largest_eigenvalue(operator.product, operator.start.clone(), operator.symmetry, signed=True)
            return torch.tensor([value], dtype=torch.float64)
        random = torch.Generator().manual_seed(0)
        found = extreme_eigenpairs(operator.product, operator.start, count, random, operator.symmetry)
        assert found.accurate.all()
        return torch.tensor(found.values[:count])

    return with_operator(case.point, "hessian", find)


def _by_arpack(case: Case, count: int, tolerance: float) -> Tensor:
    operator = case.curvlinops().to_scipy(np.float32)
    start = np.random.default_rng(0).standard_normal(operator.shape[0], np.float32)
    values = eigsh(operator, count, which="LA", tol=tolerance, return_eigenvectors=False, v0=start)
    return torch.tensor(sorted(map(float, values), reverse=True))


def _by_lanczos(case: Case, count: int, steps: int) -> Tensor:
    library = importlib.import_module("hessian_eigenthings")
    options = {"max_iter": steps, "which": "LA", "reorthogonalize": True, "seed": 0}
    return library.lanczos(case.eigenthings(), k=count, **options).eigenvalues.double()


def _enough(case: Case) -> dict[int, int]:
    """The steps after which the residuals of 1 and of MANY eigenvalues are within TOP_ACCURACY, in that Lanczos."""
    library = importlib.import_module("hessian_eigenthings")
    operator = case.eigenthings()
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    run = library.lanczos_tridiagonal(operator, start, MOST_STEPS)
    diagonal, beside = run.alphas.double(), run.betas.double()
    found = {}
    for steps in range(2, MOST_STEPS):
        sides = beside[: steps - 1]
        matrix = torch.diag(diagonal[:steps]) + torch.diag(sides, 1) + torch.diag(sides, -1)
        values, vectors = torch.linalg.eigh(matrix)
        good = beside[steps - 1] * vectors[-1].abs() <= TOP_ACCURACY * values.abs()
        for count in (1, MANY):
            if steps >= count and good[-count:].all():
                found.setdefault(count, steps)
    return found


def _by_power(case: Case) -> Tensor:
    torch.manual_seed(0)
    values, _ = case.pyhessian().eigenvalues(maxIter=1000, tol=case.change)
    return torch.tensor(values).double()


def _top(case: Case, enough: dict[int, int]) -> Iterator[Result]:
    """The largest eigenvalue to 1%, and ten of them, without PyHessian, which finds those of largest magnitude."""
    for count in (1, MANY):
        works: Works = {"ours": functools.partial(_eigenvalues, case, count)}
        for name in _installed(case):
            if name == "curvlinops":
                works["curvlinops and ARPACK, to 1%"] = functools.partial(_by_arpack, case, count, TOP_ACCURACY)
            elif name == "hessian_eigenthings":
                steps = enough.get(count, MOST_STEPS)
                works[f"hessian-eigenthings, told {steps} steps"] = functools.partial(_by_lanczos, case, count, steps)
            elif count == 1:
                works[f"PyHessian, to a change of {case.change:g}"] = functools.partial(_by_power, case)
        what = "largest eigenvalue" if count == 1 else f"{count} largest eigenvalues"
        yield from _timed(case, what, works, lambda ours, other: agree(ours, other, TOP_ACCURACY))


def _trace(case: Case) -> Iterator[Result]:
    """The trace to 5%, or by 60 vectors. Ours comes with the largest eigenvalue and the smallest one."""
    row_ = bns.spectrum(case.point, 1).iloc[0]
    vectors = MOST_VECTORS
    works: Works = {"ours": lambda: _mean_and_error(case)}
    names = _installed(case)
    if "hessian_eigenthings" in names:
        things = importlib.import_module("hessian_eigenthings")
        terms = things.hutchinson(case.eigenthings(), num_samples=MOST_VECTORS, seed=0).samples
        needed = float(terms.var()) / (TRACE_ACCURACY * row_["trace"]) ** 2
        vectors = min(MOST_VECTORS, max(6, math.ceil(needed)))
        products = 3 * math.ceil(vectors / 3)

        def by_eigenthings() -> tuple[float, float]:
            found = things.trace(case.eigenthings(), num_matvecs=products, seed=1)
            return found.estimate, found.stderr

        works[f"hessian-eigenthings, Hutch++, told {products} products"] = by_eigenthings
    if "curvlinops" in names:
        products = 3 * math.ceil(vectors / 3)
        library = importlib.import_module("curvlinops")

        def by_curvlinops() -> tuple[float, float]:
            torch.manual_seed(1)
            return float(library.hutchpp_trace(case.curvlinops(), products)), math.nan

        works[f"curvlinops, Hutch++, told {products} products"] = by_curvlinops
    if "pyhessian" in names:

        def by_pyhessian() -> tuple[float, float]:
            torch.manual_seed(1)
            terms = case.pyhessian().trace(maxIter=vectors, tol=0)
            return float(np.mean(terms)), float(np.std(terms)) / math.sqrt(len(terms))

        torch.manual_seed(1)
        # It divides by its mean to know when to stop, and stops at once where that is negative.
        if len(case.pyhessian().trace(maxIter=vectors, tol=0)) == vectors:
            works[f"PyHessian, Hutchinson, told {vectors} products"] = by_pyhessian
    yield from _timed(case, "trace", works, _close)


def _mean_and_error(case: Case) -> tuple[float, float]:
    row_ = bns.spectrum(case.point, 1).iloc[0]
    return row_["trace"], row_["trace_error"]


def _close(ours: tuple[float, float], other: tuple[float, float]) -> None:
    """Check that two estimates of a trace are within four standard errors; a library that tells none has ours."""
    errors = [error if math.isfinite(error) else ours[1] for _, error in (ours, other)]
    size = max(abs(ours[0]), abs(other[0]))
    allowed = 4 * math.hypot(*errors, TRACE_ACCURACY * size / 4)
    agree(torch.tensor(ours[0]), torch.tensor(other[0]), allowed / abs(other[0]))


def _density(case: Case) -> Iterator[Result]:
    """100 nodes of one vector. Each draws its own vector, so that only the ends can agree."""
    works: Works = {"ours": lambda: _ends(bns.spectral_density(case.point, NODES, 1)["node"].to_numpy())}
    names = _installed(case)
    if "curvlinops" in names:
        module = importlib.import_module("curvlinops.papyan2020traces.spectrum")

        def by_curvlinops() -> Tensor:
            torch.manual_seed(0)
            return _ends(module.fast_lanczos(case.curvlinops(), NODES)[0].numpy())

        works["curvlinops, its iteration alone"] = by_curvlinops
    if "hessian_eigenthings" in names:
        things = importlib.import_module("hessian_eigenthings")

        def by_eigenthings() -> Tensor:
            options = {"num_runs": 1, "lanczos_steps": NODES, "num_grid_points": 100, "seed": 0}
            return _ends(things.spectral_density(case.eigenthings(), **options).raw_eigenvalues[0].numpy())

        works["hessian-eigenthings"] = by_eigenthings
    if "pyhessian" in names:

        def by_pyhessian() -> Tensor:
            torch.manual_seed(0)
            with references.torch_eig():
                return _ends(np.array(case.pyhessian().density(iter=NODES, n_v=1)[0][0]))

        works["PyHessian, torch.eig given back"] = by_pyhessian
    yield from _timed(case, f"density, {NODES} nodes", works, lambda ours, other: agree(ours, other, ENDS))


def _ends(nodes: np.ndarray) -> Tensor:
    return torch.tensor([nodes.min(), nodes.max()]).double()


def _timed(case: Case, what: str, works: Works, check: Callable[[Any, Any], None]) -> Iterator[Result]:
    """Check that all agree, and time each."""
    if len(works) == 1:
        return
    found: dict[str, Any] = {}

    def run(name: str) -> None:
        found[name] = works[name]()

    ours_s, *seconds = medians(*(functools.partial(run, name) for name in works), repeats=1, warm_up=case.again)
    ours, *others = found.values()
    for other in others:
        check(ours, other)
    for name, reference_s in zip([*works][1:], seconds, strict=True):
        yield within(case.row, f"{case.name}: {what}", name, ours_s, reference_s, GOAL)


def _rows(case: Case) -> Iterator[Result]:
    with sdpa_kernel(SDPBackend.MATH):
        enough = _enough(case) if "hessian_eigenthings" in _installed(case) else {}
        yield from _top(case, enough)
        yield from _trace(case)
        yield from _density(case)


def _trained(problem: str, steps: int = 20, **settings: Any) -> bns.Point:
    with tempfile.TemporaryDirectory() as folder:
        run = bns.train(problem, steps=steps, output=f"{folder}/run", device="cpu", **settings)
        return bns.load_point(run, device="cpu")


@row("spectrum-vgg")
def vgg() -> Iterator[Result]:
    """VGG-16 of quarter width without a norm, on a batch of 32."""
    point = _trained("vgg", norm="none", depth=16, width=0.25, batch_size=32)
    model, _ = references.plain_loss(point)
    yield from _rows(Case("spectrum-vgg", "VGG-16", point, model, point.inputs, point.targets, 1e-3))


@row("spectrum-gpt")
def gpt() -> Iterator[Result]:
    """The transformer of the problem `gpt`, on a batch of 8. Curvlinops needs a derivative that PyTorch lacks."""
    point = _trained("gpt", norm="layer", batch_size=8, warmup=5)
    model = references.Rows(copy.deepcopy(point.model))
    yield from _rows(
        Case("spectrum-gpt", "gpt", point, model, point.inputs, point.targets.flatten(), 1e-2, forwards=False)
    )


@row("spectrum-resnet")
def resnet() -> Iterator[Result]:
    """ResNet-18 of torchvision on 32 images of 32 x 32, with BatchNorm in eval mode as the libraries need."""
    images = _trained("vgg", steps=1, norm="none", depth=11, width=0.02, batch_size=32)
    inputs, targets = images.inputs, images.targets
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    model.eval()
    point = bns.Point.of(model, lambda: nn.functional.cross_entropy(model(inputs), targets), lr=0.05)
    yield from _rows(
        Case("spectrum-resnet", "ResNet-18", point, copy.deepcopy(model), inputs, targets, 1e-3, again=False)
    )
