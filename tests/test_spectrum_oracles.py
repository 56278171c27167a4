"""The spectrum against three independent libraries: PyHessian, curvlinops and hessian-eigenthings.

All in float64, on networks that the libraries can treat: without BatchNorm, or with BatchNorm in eval mode. The
libraries are the group `oracles` of pyproject.toml; a test skips the one that is not installed. What each of them
cannot do is in the docstrings of its tests.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bnsmooth_cli as bns
from benchmarks.references import Rows, torch_eig
from bnsmooth_cli.derivatives.eigenpairs import ACCURACY
from bnsmooth_cli.derivatives.lanczos import SMALL
from bnsmooth_cli.derivatives.quadrature import quadrature
from bnsmooth_cli.randomness import generator

pytestmark = pytest.mark.slow

TOP = 5
#: Products of the same matrix in float64: rounding, which a few hundred operations in a row add up to.
ROUNDING = 1e-11
#: The libraries' eigenvalues are asked for this accuracy, far below ours, so that only ours counts.
CONVERGED = 1e-8
#: Standard errors between two estimates of a trace. The seeds are fixed, so that a test passes always or never.
ERRORS = 4

#: Steps of a Lanczos iteration that is not kept orthogonal, before the first eigenvalue is found and it matters.
STEPS = 8

LOOP, PLAIN, EVAL, GPT = "loop", "vgg", "vgg with BatchNorm in eval mode", "gpt"
HESSIANS = [(case, "hessian") for case in (LOOP, PLAIN, EVAL, GPT)]
GAUSS_NEWTONS = [(case, "ggn") for case in (PLAIN, EVAL, GPT)]  # a loop of one's own has its loss alone
hessians = pytest.mark.parametrize("name", [case for case, _ in HESSIANS])
matrices = pytest.mark.parametrize(("name", "curvature"), HESSIANS + GAUSS_NEWTONS)
#: Curvlinops differentiates a backward pass forwards, which PyTorch cannot for that of the transformer's norm.
matrices_of_curvlinops = pytest.mark.parametrize(("name", "curvature"), HESSIANS[:-1] + GAUSS_NEWTONS)


@dataclass
class Case:
    """A point, and the same loss as the libraries take it: a plain module, its inputs and its targets."""

    point: bns.Point
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return len(self.point.theta)

    def vector(self, seed: int = 0) -> Tensor:
        return torch.randn(self.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def product(self, curvature: str) -> Callable[[Tensor], Tensor]:
        return self.point.hessian()[1] if curvature == "hessian" else self.point.gauss_newton()

    def spectrum(self, curvature: str) -> dict:
        (row,) = bns.spectrum(self.point, TOP, curvature=curvature).to_dict("records")
        return row

    def curvlinops(self, curvature: str, parameters=None):
        library = pytest.importorskip("curvlinops")
        kind = {"hessian": library.HessianLinearOperator, "ggn": library.GGNLinearOperator}[curvature]
        parameters = list(self.model.parameters()) if parameters is None else parameters
        data = [(self.inputs, self.targets)]
        return kind(self.model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False)

    def eigenthings(self, curvature: str):
        library = pytest.importorskip("hessian_eigenthings")
        data, loss = [(self.inputs, self.targets)], nn.CrossEntropyLoss()
        if curvature == "hessian":
            return library.HessianOperator(self.model, data, library.supervised_loss(loss))
        return library.GGNOperator(
            self.model, data, library.supervised_forward, library.supervised_loss_of_output(loss)
        )

    def pyhessian(self):
        """PyHessian's object; the default type must be float64 while it computes."""
        library = pytest.importorskip("pyhessian")
        data = (self.inputs, self.targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward", UserWarning)  # with create_graph; it does
            return library.hessian(self.model, nn.CrossEntropyLoss(), data=data, cuda=False)


@pytest.fixture
def case_of(small_run):
    def make(name: str) -> Case:
        if name == LOOP:
            return _loop()
        problem, norm, settings = {
            PLAIN: ("vgg", "none", {"width": 0.01, "batch_size": 8}),
            EVAL: ("vgg", "batch", {"width": 0.01, "batch_size": 8}),
            GPT: ("gpt", "layer", {}),
        }[name]
        point = bns.load_point(small_run(problem, norm, **settings), 3, dtype=torch.float64, objective="eval")
        model = copy.deepcopy(point.model).eval()
        if name == GPT:
            return Case(point, Rows(model), point.inputs, point.targets.flatten())
        return Case(point, model, point.inputs.double(), point.targets)

    return make


def _loop() -> Case:
    """A convolutional network after some steps of a loop of one's own."""
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()
    model = nn.Sequential(*parts, nn.Linear(24, 4)).double()
    inputs, targets = torch.randn(20, 2, 8, 8, dtype=torch.float64), torch.randint(4, (20,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    point = bns.Point.of(model, lambda: nn.functional.cross_entropy(model(inputs), targets), lr=0.2)
    return Case(point, copy.deepcopy(model).eval(), inputs, targets)


@pytest.fixture(autouse=True)
def _differentiable_attention():
    """PyTorch has no second derivative of fused attention. We replace it ourselves; the libraries do not."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def double_by_default():
    """PyHessian draws its vectors in the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def check_product(found: Tensor, expected: Tensor) -> None:
    assert torch.linalg.vector_norm(found - expected) <= ROUNDING * torch.linalg.vector_norm(expected)


def check_values(row: dict, largest, smallest: float | None = None) -> None:
    """The eigenvalues of `spectrum`, within the accuracy that it has by its definition."""
    values = [*row["eigenvalues"], row["smallest"]]
    magnitude = max(map(abs, values))
    expected = [*largest, *([] if smallest is None else [smallest])]
    for value, other in zip([*values[: len(largest)], values[-1]], expected, strict=smallest is not None):
        assert value == pytest.approx(other, abs=ACCURACY * max(abs(other), SMALL * magnitude))


def moments(nodes, weights) -> list[float]:
    return [float(np.sum(weights * nodes**power)) for power in range(1, 5)]


def moments_by_products(multiply: Callable[[Tensor], Tensor], start: Tensor) -> list[float]:
    """v'Av, v'A^2 v, v'A^3 v and v'A^4 v of the unit vector v along `start`."""
    unit = start / torch.linalg.vector_norm(start)
    once = multiply(unit)
    twice = multiply(once)
    return [float(a @ b) for a, b in ((unit, once), (once, once), (once, twice), (twice, twice))]


@matrices_of_curvlinops
def test_products_are_those_of_curvlinops(case_of, name, curvature):
    case = case_of(name)
    check_product(case.product(curvature)(case.vector()), case.curvlinops(curvature) @ case.vector())


@matrices
def test_products_are_those_of_eigenthings(case_of, name, curvature):
    case = case_of(name)
    check_product(case.product(curvature)(case.vector()), case.eigenthings(curvature).matvec(case.vector()))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_mean_over_batches_is_that_of_curvlinops(case_of, curvature):
    """Batches of equal size, so that its mean over samples is ours over batches."""
    case = case_of(PLAIN)
    point = case.point.at("train:3")
    library = pytest.importorskip("curvlinops")
    kind = {"hessian": library.HessianLinearOperator, "ggn": library.GGNLinearOperator}[curvature]
    data = [(inputs.double(), targets) for inputs, targets in (point.problem.batch(k) for k in range(3))]
    operator = kind(case.model, nn.CrossEntropyLoss(), list(case.model.parameters()), data, check_deterministic=False)
    product = point.hessian()[1] if curvature == "hessian" else point.gauss_newton()
    check_product(product(case.vector()), operator @ case.vector())


@matrices_of_curvlinops
def test_the_extreme_eigenvalues_are_those_of_scipy_on_curvlinops(case_of, name, curvature):
    """Curvlinops leaves eigenvalues to ARPACK (scipy's eigsh), whose "BE" is half from each end."""
    case = case_of(name)
    operator = case.curvlinops(curvature).to_scipy()
    if curvature == "ggn":  # ARPACK does not converge at the many eigenvalues zero
        largest = eigsh(operator, TOP, which="LA", tol=CONVERGED, return_eigenvectors=False)
        check_values(case.spectrum(curvature), sorted(largest, reverse=True))
        return
    both = sorted(eigsh(operator, 2 * TOP, which="BE", tol=CONVERGED, return_eigenvectors=False), reverse=True)
    check_values(case.spectrum(curvature), both[:TOP], both[-1])


@matrices
def test_the_largest_eigenvalues_are_those_of_eigenthings(case_of, name, curvature):
    """Its Lanczos does not restart, so it gets enough steps, and says itself whether they were."""
    case = case_of(name)
    library = pytest.importorskip("hessian_eigenthings")
    options = {"max_iter": 120, "which": "LA", "reorthogonalize": True, "seed": 0}
    found = library.lanczos(case.eigenthings(curvature), k=TOP, tol=1e-4, **options)
    assert found.converged.all()
    check_values(case.spectrum(curvature), found.eigenvalues.tolist())


@hessians
def test_the_largest_eigenvalues_are_those_of_pyhessian(case_of, name):
    """Its power iteration finds the largest magnitudes, so the negative ones among them are left out. It knows no
    residual: it ends when the eigenvalue changes by less than `tol`, here 1e-8, in a step, which may be further away
    than that where eigenvalues are close, and still well within our accuracy."""
    case = case_of(name)
    torch.manual_seed(0)
    with double_by_default():
        found, _ = case.pyhessian().eigenvalues(maxIter=2000, tol=1e-8, top_n=4)
    positive = [value for value in found if value > 0]
    assert len(positive) >= 2
    check_values(case.spectrum("hessian"), positive)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_trace_is_the_exact_one_of_curvlinops(case_of, curvature):
    """All its products with unit vectors: no error but ours."""
    case = case_of(PLAIN if curvature == "ggn" else LOOP)
    operator, exact = case.curvlinops(curvature), 0.0
    for where in torch.arange(case.size).split(100):
        columns = torch.zeros(case.size, len(where), dtype=torch.float64)
        columns[where, torch.arange(len(where))] = 1.0
        exact += float((columns * (operator @ columns)).sum())
    row = case.spectrum(curvature)
    assert abs(row["trace"] - exact) <= ERRORS * row["trace_error"]
    assert row["trace_error"] < 0.1 * abs(exact)  # so that the line above could fail


@pytest.mark.parametrize(("name", "curvature"), [(LOOP, "hessian"), (GPT, "hessian"), *GAUSS_NEWTONS])
def test_the_trace_is_that_of_eigenthings(case_of, name, curvature):
    """Two estimates with known standard errors. Its own is that of the remainder after a sketch of a third of the
    products, and too small where hardly anything remains; a thousandth of the trace is allowed beside it."""
    case = case_of(name)
    library = pytest.importorskip("hessian_eigenthings")
    other = library.trace(case.eigenthings(curvature), num_matvecs=150, seed=0)
    row = case.spectrum(curvature)
    allowed = ERRORS * math.hypot(row["trace_error"], other.stderr) + 1e-3 * abs(other.estimate)
    assert abs(row["trace"] - other.estimate) <= allowed < 0.5 * abs(other.estimate)


@pytest.mark.parametrize("name", [LOOP, GPT])
def test_the_trace_is_that_of_pyhessian(case_of, name):
    """Hutchinson's estimator, of which it returns all terms. `tol` 0 lets it go on to the end. Where a mean is
    negative, it ends nevertheless, since it divides the change by the mean and not by its magnitude; none is here."""
    case = case_of(name)
    torch.manual_seed(0)
    with double_by_default():
        terms = case.pyhessian().trace(maxIter=300, tol=0)
    assert len(terms) == 300
    row = case.spectrum("hessian")
    allowed = ERRORS * math.hypot(row["trace_error"], np.std(terms, ddof=1) / math.sqrt(len(terms)))
    assert abs(row["trace"] - np.mean(terms)) <= allowed < 0.5 * abs(np.mean(terms))


@matrices_of_curvlinops
def test_the_moments_of_the_density_are_those_of_curvlinops(case_of, name, curvature):
    """The quadrature of a vector is exact for polynomials, so its moments are v'A^k v, to rounding. The vectors are
    those that the density draws. A fourth moment of a matrix whose eigenvalues differ by 1e4 rounds more than a
    product."""
    case = case_of(name)
    rows = bns.spectral_density(case.point, nodes=40, vectors=2, curvature=curvature)
    operator = case.curvlinops(curvature)
    for number, of_vector in rows.groupby("vector"):
        random = generator(case.point.config.seed, "density", case.point.step, number)
        expected = moments_by_products(lambda v: operator @ v, torch.randn(case.size, generator=random).double())
        assert moments(of_vector["node"], of_vector["weight"]) == pytest.approx(expected, rel=1e-9)


@matrices
def test_the_density_is_that_of_eigenthings(case_of, name, curvature):
    """The same vector gives the same nodes and weights, as long as ours, which are not kept orthogonal, are so by
    themselves."""
    case = case_of(name)
    library = pytest.importorskip("hessian_eigenthings")
    found = library.lanczos_tridiagonal(case.eigenthings(curvature), case.vector(), STEPS)
    matrix = torch.diag(found.alphas) + torch.diag(found.betas, 1) + torch.diag(found.betas, -1)
    expected, vectors = torch.linalg.eigh(matrix)
    nodes, weights = quadrature(case.product(curvature), case.vector(), STEPS)
    assert nodes == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9 * abs(nodes).max())
    assert weights == pytest.approx(vectors[0].square().numpy(), rel=1e-6, abs=1e-9)


@hessians
def test_the_density_is_that_of_pyhessian(case_of, name):
    """Moments, because its vectors are kept orthogonal and ours are not."""
    case = case_of(name)
    torch.manual_seed(0)
    signs = [2.0 * torch.randint_like(p, high=2).reshape(-1) - 1 for p in case.model.parameters()]
    torch.manual_seed(0)
    with double_by_default(), torch_eig():
        (nodes,), (weights,) = case.pyhessian().density(iter=40, n_v=1)
    own = quadrature(case.product("hessian"), torch.cat(signs), 40)
    # It divides by the length of a vector and 1e-6, so that its vectors are shorter than they should be.
    assert moments(*own) == pytest.approx(moments(np.array(nodes), np.array(weights)), rel=1e-4)


def test_the_blocks_of_layers_are_those_of_curvlinops(case_of):
    """Without the layers whose block is the smallest: it has no more parameters than eigenvalues are asked for."""
    case = case_of(PLAIN)
    layers = dict(case.point.layers)
    rows = bns.spectrum_by_layer(case.point, 2, layers=["conv1", "conv3", "conv8"]).to_dict("records")
    named = dict(case.model.named_parameters())
    for row in rows:
        operator = case.curvlinops("hessian", [named[name] for name in layers[row["layer_name"]]])
        size = operator.shape[0]
        values = torch.linalg.eigvalsh(operator @ torch.eye(size, dtype=torch.float64)).tolist()
        assert row["parameters"] == size
        check_values(row, values[:-3:-1], values[0])
