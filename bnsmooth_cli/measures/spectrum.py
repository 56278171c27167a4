"""The spectrum of the Hessian or the Gauss-Newton matrix: its largest eigenvalues, its trace and its density."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from bnsmooth_cli.config import Config
from bnsmooth_cli.derivatives.eigenpairs import extreme_eigenpairs
from bnsmooth_cli.derivatives.lanczos import largest_eigenvalue
from bnsmooth_cli.derivatives.quadrature import quadrature, trace
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.measures.landscape import plan_objective
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.operators import Operator, with_operator
from bnsmooth_cli.measures.selection import plan_layers
from bnsmooth_cli.measures.smoothness import threshold
from bnsmooth_cli.networks.structure import chosen_layers, layer_numbers
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.randomness import generator

TOP: Final = 10  # eigenvalues, by default
MAX_TOP: Final = 1000
NODES: Final = 80  # of the quadrature for each vector, by default
MAX_NODES: Final = 10_000
VECTORS: Final = 4  # of the density, by default
MAX_VECTORS: Final = 10_000


@measured
def spectrum(
    point: Point, top: int | None = None, objective: str | None = None, curvature: str = "hessian"
) -> pd.DataFrame:
    r"""Measure the largest eigenvalues of the Hessian, the smallest one and its trace.

    Sagun et al. (2017, arXiv 1706.04454) describe the spectrum of a network's Hessian: a bulk near zero, and a few
    large eigenvalues. The eigenvalues are found by Lanczos' iteration with all vectors kept orthogonal and thick
    restarts (`derivatives.eigenpairs`), the trace by Hutch++ (`derivatives.quadrature`). The effective rank is
    $\operatorname{tr} H / \lambda_1$ (Vershynin 2018, section 7.6, for a positive semidefinite matrix), the number of
    equal eigenvalues $\lambda_1$ that would have this trace. A penalty with the factor c (`weight_decay`) adds c times
    the number of penalised weights to the trace, which may be most of it; the objective "test" leaves it out.

    The Gauss-Newton matrix $G = J^T \nabla^2 \ell \, J$, with the network's Jacobian J and the Hessian of its loss in
    its outputs, is the part of the Hessian that a network linear in its parameters would have (`gauss_newton`). The
    penalty counts as part of it.

    Beside the memory of a product, it takes that of 3 K + 20 parameter vectors.

    Args:
        point: Where to measure.
        top: The number K of the largest eigenvalues; TOP by default, or all if there are fewer.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        curvature: "hessian" or "ggn", the Gauss-Newton matrix.

    Returns:
        One row. Columns: `step_lr`, the learning rate of the step; `threshold`, the eigenvalue beyond which the
        optimiser's step diverges on a quadratic loss (null for an optimiser that divides by a diagonal, whose
        preconditioned sharpness `smoothness` measures); `parameters`, their number n; `largest` and `smallest`;
        `eigenvalues`, the K largest ones in descending order, and `residuals`, $\|Hu - \lambda u\|$ of these and,
        last, of the smallest one: an eigenvalue is within this distance; `trace` and its standard error `trace_error`;
        `top_share`, the sum of the K eigenvalues divided by the trace, and `effective_rank`, the trace divided by the
        largest eigenvalue, both null unless the trace is positive (negative eigenvalues can make the share larger than
        1, and the rank smaller); `products`, how products are computed; `product_error`, the relative error of a
        difference of gradients, measured on one vector, and null for other products; and `product_count`. Of the
        Gauss-Newton matrix, there is also `beside`, the eigenvalue of H - G of largest magnitude, signed.
        What is not found within 300 + 60 K products is null. If a product is not finite, everything is.

    Raises:
        InputError: If there are fewer parameters than eigenvalues, the problem does not have the objective, or the
            outputs of the network are unknown, which the Gauss-Newton matrix needs; or if PyTorch has no second
            derivative, and differences of gradients are inaccurate or not symmetric.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     row = bns.spectrum(bns.load_point(run), top=3).iloc[0]
    >>> len(row.eigenvalues), bool(row.largest == row.eigenvalues[0] >= row.smallest)
    (3, True)
    """
    check_top(top)
    point = point.at(objective)
    row = with_operator(point, curvature, functools.partial(_extremes, point, top))
    if curvature == "ggn":
        row["beside"] = with_operator(point, "hessian", functools.partial(_beside, point))
    edge = math.nan if point.optimiser.preconditions else threshold(point)
    return pd.DataFrame([{"step_lr": point.lr, "threshold": edge, **row}])


def _extremes(point: Point, top: int | None, operator: Operator, place: int = 0) -> dict[str, Any]:
    """The columns of eigenvalues and of the trace."""
    n, random = len(operator.start), generator(point.config.seed, "spectrum", point.step, place)
    count = min(TOP, n) if top is None else top
    if count > n:
        raise InputError(f"--top {top}: there are {n} parameters and as many eigenvalues; give at most {n}")
    found = extreme_eigenpairs(operator.product, operator.start, count, random, operator.symmetry)
    whole, error, drawn = math.nan, math.nan, 0
    values = np.where(found.accurate, found.values, np.nan)
    if np.isfinite(found.values).all():
        whole, error, drawn = trace(operator.product, found.values, found.vectors, random)
        if lost := int(np.isnan(values).sum()):
            said = f"{lost} of {count + 1} eigenvalues not found within {found.products} products; give a smaller --top"
            remark(said)
    largest, smallest, of_top = values[0], values[-1], values[:-1].sum()
    return {
        "parameters": n,
        "largest": largest,
        "smallest": smallest,
        "eigenvalues": values[:-1].tolist(),
        "residuals": found.residuals.tolist(),
        "trace": whole,
        "trace_error": error,
        "top_share": of_top / whole if whole > 0 else math.nan,
        "effective_rank": whole / largest if whole > 0 else math.nan,
        "products": operator.products,
        "product_error": operator.error,
        "product_count": found.products + drawn,
    }


def _beside(point: Point, operator: Operator) -> float:
    """The eigenvalue of H - G of largest magnitude."""
    gauss_newton = point.gauss_newton()
    return largest_eigenvalue(lambda v: operator.product(v) - gauss_newton(v), operator.start, operator.symmetry)


@measured
def spectral_density(
    point: Point,
    nodes: int = NODES,
    vectors: int = VECTORS,
    objective: str | None = None,
    curvature: str = "hessian",
) -> pd.DataFrame:
    r"""Measure the density of the eigenvalues of the Hessian: Ghorbani et al. (2019, arXiv 1901.10159).

    The density $\phi(x) = \frac{1}{n} \sum_i \delta(x - \lambda_i)$ is approximated by nodes $x_{jk}$ with weights
    $w_{jk}$ from random vectors $v_j$ (stochastic Lanczos quadrature, `derivatives.quadrature`):
    $$\frac{1}{n} \operatorname{tr} f(H) \approx \frac{1}{J} \sum_j \sum_k w_{jk} f(x_{jk}).$$
    The vectors depend only on the run's seed and the step. Beside the memory of a product, it takes that of seven
    parameter vectors.

    Args:
        point: Where to measure.
        nodes: The number of nodes, and of products, of each random vector.
        vectors: The number J of random vectors.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        curvature: "hessian" or "ggn", the Gauss-Newton matrix.

    Returns:
        One row per node. Columns: `vector`, the number of the random vector, and `rank`, that of the node, both from 0;
        `node`, in ascending order, and `weight`. The weights of each vector add up to 1. Fewer nodes than requested are
        an exact density. If a product is not finite, both are null.

    Raises:
        InputError: If there are fewer than two nodes or no vector, the problem does not have the objective, or the
            outputs of the network are unknown, which the Gauss-Newton matrix needs; or if PyTorch has no second
            derivative, and differences of gradients are inaccurate or not symmetric.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     rows = bns.spectral_density(bns.load_point(run), nodes=20, vectors=2)
    >>> rows.groupby("vector")["weight"].sum().round(6).tolist()
    [1.0, 1.0]
    """
    check_density(nodes, vectors)
    point = point.at(objective)
    return with_operator(point, curvature, functools.partial(_density, point, nodes, vectors))


def _density(point: Point, nodes: int, vectors: int, operator: Operator) -> pd.DataFrame:
    frames = []
    for number in range(vectors):
        random = generator(point.config.seed, "density", point.step, number)
        start = torch.randn(len(operator.start), generator=random, dtype=torch.float32).to(operator.start)
        values, weights = quadrature(operator.product, start, min(nodes, len(start)), operator.symmetry)
        frames.append(pd.DataFrame({"vector": number, "rank": range(len(values)), "node": values, "weight": weights}))
    return pd.concat(frames, ignore_index=True)


@measured
def spectrum_by_layer(
    point: Point, top: int | None = None, objective: str | None = None, layers: Sequence[str] | None = None
) -> pd.DataFrame:
    r"""Measure the spectrum of each layer's diagonal block of the Hessian, all other layers held fixed.

    Args:
        point: Where to measure.
        top: The number K of the largest eigenvalues of each block; TOP by default, or all if there are fewer.
        objective: The loss L: "batch", "train:K", "eval" or "test"; the point's own by default.
        layers: Layers by name or number, or other modules of the network; all layers by default.

    Returns:
        One row per layer. Columns: `layer`, `layer_name`, and those of `spectrum` from `parameters` on.

    Raises:
        InputError: If the network does not have a layer, a layer has fewer parameters than K, or the problem does not
            have the objective.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", depth=3, steps=5, samples=20, output=f"{folder}/run")
    ...     list(bns.spectrum_by_layer(bns.load_point(run), top=2).layer_name)
    ['fc1', 'fc2', 'fc3']
    """
    check_top(top)
    point, rows = point.at(objective), []
    chosen = chosen_layers(point.structure, layers)
    for number, (name, names) in zip(layer_numbers(point.structure, chosen), chosen, strict=True):
        found = with_operator(point, "hessian", functools.partial(_extremes, point, top, place=number), names, number)
        rows.append({"layer": number, "layer_name": name, **found})
    return pd.DataFrame(rows)


def check_top(top: int | None) -> None:
    """Raise InputError if there cannot be this number of largest eigenvalues."""
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MAX_TOP):
        raise InputError(f"--top {top}: give a whole number from 1 to {MAX_TOP:,}")


def check_density(nodes: int, vectors: int) -> None:
    """Raise InputError if a density cannot have these numbers of nodes and vectors."""
    for name, value, least, most in (("nodes", nodes, 2, MAX_NODES), ("vectors", vectors, 1, MAX_VECTORS)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"--{name} {value}: give a whole number from {least} to {most:,}")


def plan(config: Config, objective: str = "batch", top: int | None = None) -> dict[str, Any]:
    """The keyword arguments of `spectrum`."""
    check_top(top)
    return {**({} if top is None else {"top": top}), **plan_objective(config, objective)}


def plan_density(
    config: Config, objective: str = "batch", nodes: int = NODES, vectors: int = VECTORS
) -> dict[str, Any]:
    """The keyword arguments of `spectral_density`."""
    check_density(nodes, vectors)
    return {"nodes": nodes, "vectors": vectors, **plan_objective(config, objective)}


def plan_by_layer(config: Config, layers: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """The keyword arguments of `spectrum_by_layer`; `options` go to the plan of `spectrum`."""
    return {**plan(config, **options), **plan_layers(config, layers)}


MEASUREMENT: Final = Measurement(spectrum, plan)
GGN: Final = Measurement(functools.partial(spectrum, curvature="ggn"), plan)
DENSITY: Final = Measurement(spectral_density, plan_density)
GGN_DENSITY: Final = Measurement(functools.partial(spectral_density, curvature="ggn"), plan_density)
BY_LAYER: Final = Measurement(spectrum_by_layer, plan_by_layer, chosen_layers)
