r"""The theory of Santurkar et al. (2018), section 4, with both sides of every statement measured.

The two networks of figure 5 have the same weights. After the layer y = W x (+ b) the plain one feeds y to the rest of
the network, the other one feeds it BatchNorm's output; what norm the run has there, both lack, and the norms of the
other layers are part of the rest. For one unit j, with m activations y over the batch (over samples, height and width),
$$\mu = \tfrac1m \langle 1, y \rangle, \quad \sigma^2 = \tfrac1m \|y - \mu\|^2, \quad \hat y = (y - \mu) / \sigma, \quad
z = \gamma \hat y + \beta, \quad \langle 1, \hat y \rangle = 0, \quad \|\hat y\|^2 = m,$$
$L$ the loss as a function of what feeds the rest, $\hat L(y) = L(z(y))$ and $g = \nabla L(z)$. Everything below follows
from the derivative of $\hat y$, with no eps and gamma and beta constant:
$$\frac{\partial \sigma}{\partial y} = \frac{\hat y}{m}, \qquad \frac{\partial \hat y}{\partial y} = \frac{P}{\sigma},
\qquad P = I - \tfrac1m 1 1^T - \tfrac1m \hat y \hat y^T \quad \text{(a projection)}.$$

**4.1** $\nabla \hat L = \frac{\gamma}{\sigma} P g$, and as P is an orthogonal projection,
$$\|\nabla \hat L\|^2 = \frac{\gamma^2}{\sigma^2} \left( \|g\|^2 - \tfrac1m \langle 1, g \rangle^2
- \tfrac1m \langle g, \hat y \rangle^2 \right).$$
The paper has $\le$ and writes the plain network's gradient; where that is taken at z it is an equality. Taken at y, as
a reading in practice would, nothing guarantees it: `4.1 at y` has that right-hand side.

**4.2** Differentiating $P g / \sigma$ once more, with H the Hessian of L at z in the unit's m activations,
$$\nabla^2 \hat L = \frac{\gamma^2}{\sigma^2} P H P - \frac{\gamma}{m \sigma^2} \left( (P g) \hat y^T + \hat y (P g)^T
+ \langle g, \hat y \rangle P \right).$$
Along $v = \nabla \hat L$, where $P v = v$ and $\hat y^T v = 0$,
$$v^T \nabla^2 \hat L \, v = \frac{\gamma^2}{\sigma^2} v^T H v
- \frac{\gamma}{m \sigma^2} \langle g, \hat y \rangle \|v\|^2.$$
The paper has $\le$; it is an equality. It makes the gradient more predictive where $v^T H v \ge 0$ and
$\langle g, \hat y \rangle > 0$ (`condition`).

**4.3** With $\gamma = \sigma, \beta = \mu$ the two networks are one function at these weights: z = y.

**4.4** A gradient g of the activations is $X^T g$ in the unit's weights, X (m, d) the layer's inputs. Over all X of
spectral (or Frobenius) norm at most $\lambda$ the largest $\|X^T g\|^2$ is $\lambda^2 \|g\|^2$, by
$X = \lambda g u^T / \|g\|$ with any unit vector u. So the worst case with BatchNorm and without it are
$\lambda^2 \|\nabla \hat L\|^2$ and $\lambda^2 \|g\|^2$, and by 4.1
$$\hat g_j = \frac{\gamma^2}{\sigma^2} \left( g_j - m \lambda^2 \mu_g^2
- \tfrac{\lambda^2}{m} \langle g, \hat y \rangle^2 \right), \qquad \mu_g = \tfrac1m \langle 1, g \rangle.$$
As printed in the paper, the second term lacks $\lambda^2$ and the third $\frac1m$; these are the constants that the
maximisation gives. Here $\lambda$ is the spectral norm of the layer's actual inputs.

**4.5** BatchNorm's output is the same for $a W$, a > 0, so every point of the ray through an optimum $W^*$ is one. The
distance from $W_0$ to the ray's nearest point, $a = \langle W_0, W^* \rangle / \|W^*\|^2$, which is on the ray where
$\langle W_0, W^* \rangle > 0$ (`condition`), is
$$\|W_0 - a W^*\|^2 = \|W_0 - W^*\|^2 - \frac{(\|W^*\|^2 - \langle W^*, W_0 \rangle)^2}{\|W^*\|^2}.$$
Again an equality, for any $W^*$; here it is the unit's weights at the point, and $W_0$ those that the run began with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli.derivatives.products import twice_differentiable
from bnsmooth_cli.derivatives.taylor import curve, second_derivatives
from bnsmooth_cli.measures.measurement import Measurement, label
from bnsmooth_cli.measures.selection import Selected, plan, select
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.norms.state import prepared
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.loop import ExternalLoop

#: The statements that are proved, here as equalities, to this relative residual.
PROVED: Final = ("4.1", "4.2", "4.3", "4.4", "4.5")
TOLERANCE: Final = 1e-9
#: A unit whose deviation is below this share of its activations' size has no digits left in y - mu: null.
_CONSTANT: Final = 1e-10


def theory(point: Point, layers: Sequence[str] | None = None, units: Sequence[int] | None = None) -> pd.DataFrame:
    r"""Both sides of the statements of section 4 in float64: one row a layer, unit, statement and gamma and beta.

    Columns: `statement` (4.1 to 4.5, and `4.1 at y`), `affine` (`identity`: gamma = sigma, beta = mu, so that z = y;
    `standard`: gamma = 1, beta = 0), the sides `lhs` and `rhs`, `residual` = (rhs - lhs) / the largest term of either
    side, `holds` (of the proved: equality to TOLERANCE; of `4.1 at y`: lhs <= rhs), and `condition` where the statement
    needs one. Of what they are made: `sigma`, `gamma`, `grad_norm` $\|g\|$, the reductions as fractions of it,
    `mean_fraction` $\frac1m \langle 1, g \rangle^2 / \|g\|^2$ and `output_fraction`
    $\frac1m \langle g, \hat y \rangle^2 / \|g\|^2$, `alignment`, the cosine of $g$ and $\hat y$ (4.5: of $W_0$ and
    $W^*$), `curvature` $v^T H v / v^T v$ and `input_norm` $\lambda$. The module derives the statements. A unit that is
    constant over the batch, or an overflow, gives null.

    By default all layers that a norm may follow and all units. Raises InputError for those that are not there.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, output=f"{folder}/run")
    ...     rows = bns.theory(bns.load_point(run), layers=["fc3"])
    >>> bool(rows[rows["statement"] != "4.1 at y"]["holds"].all())
    True
    """
    point = point.at("batch")
    double = point.to(torch.float64)
    # By number: the sites of the copy are other modules.
    numbers = {one.number: one.units for one in select(point.sites, layers, units)}
    selected = [Selected(site, numbers[site.number]) for site in double.sites if site.number in numbers]
    modules = [site.linear for site, _ in selected]
    with prepared(double.norms, point.config.seed, point.step), twice_differentiable():
        with torch.no_grad():
            inputs = [x for x, _ in captured(modules, double.loss)]
        weights = first_weights(point, [site.name for site, _ in selected])
        frames = []
        for chosen, x, begun in zip(selected, inputs, weights, strict=True):
            frames += _activations(double, chosen, x)
            if begun is not None:
                frames.append(_nearest_optimum(chosen, begun.to(x)))
    return label(point, pd.concat(frames, ignore_index=True))


def first_weights(point: Point, names: Sequence[str]) -> list[Tensor | None]:
    """The weights that the run began with, of the sites of these names; None where nobody knows (a user's loop)."""
    if isinstance(point.problem, ExternalLoop):
        return [None] * len(names)
    begun = dataclasses.replace(point, model=point.problem.initial)
    known = {site.name: site.linear.weight.detach() for site in begun.sites}
    return [known[name] for name in names]


def _rest(point: Point, chosen: Selected) -> tuple[Sequence[nn.Module], Callable[[Tensor], Tensor]]:
    """The network after a site, as modules and an objective, for what the site would feed to it."""
    if isinstance(point.model, Chain):
        later = list(point.model.layers.values())[chosen.number - 1 :]
        rest = [cast(Layer, later[0]).rest, *later[1:]]
        return rest, lambda outputs: point.problem.objective(outputs, point.targets)
    return [], chosen.site.remainder(point.loss)


def _activations(point: Point, chosen: Selected, x: Tensor) -> list[pd.DataFrame]:
    """Statements 4.1 to 4.4 of the site with inputs x, for both choices of gamma and beta."""
    linear, units = chosen.site.linear, chosen.units.to(x.device)
    rest, objective = _rest(point, chosen)
    with torch.no_grad():
        y = chosen.site.by_unit(linear(x))
        mu, sigma = _mean(y), _deviation(y)
        yhat = (y - mu) / sigma
        defined = (_mean((y - mu).square()) > _CONSTANT**2 * _mean(y.square())).flatten()[units]
        input_norm = _spectral_norms(linear, x)[units]
    m = y.numel() // y.shape[1]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(_samples(a))[units]

    frames, at_y = [], y
    for affine in ("identity", "standard"):
        gamma, beta = (sigma, mu) if affine == "identity" else (torch.ones_like(sigma), torch.zeros_like(mu))
        norm = functools.partial(_batch_norm, gamma=gamma, beta=beta)
        z, g, slope = _gradients(norm, rest, objective, y)
        velocity, acceleration = curve(norm, y, slope)
        # Along the curve z(y + t v) the loss bends by z'Hz' + <g, z''>; z' = gamma / sigma v, so 4.2 has z'Hz' on both
        # sides, and it is measured once.
        bend = second_derivatives(rest, objective, z, velocity, chosen.units)

        ratio, squared = (gamma / sigma).square().flatten()[units], dot(slope, slope)
        sizes = {"sigma": sigma.flatten()[units], "gamma": gamma.flatten()[units]}
        terms, reductions = _reductions(dot, g, yhat, m)
        first = [ratio * term for term in terms]
        second = [bend, (gamma / sigma.square()).flatten()[units] / m * dot(g, yhat) * squared]
        worst = [input_norm.square() * term for term in first]
        curvature = {"curvature": bend / (ratio * squared)}
        smoother = (curvature["curvature"] >= 0) & (reductions["alignment"] > 0)

        rows = functools.partial(_rows, chosen, affine=affine, defined=defined)
        columns = sizes | reductions
        frames.append(rows("4.1", squared, first, columns))
        frames.append(rows("4.2", bend + dot(g, acceleration), second, columns | curvature, condition=smoother))
        largest = {"input_norm": input_norm}
        frames.append(rows("4.4", input_norm.square() * squared, worst, columns | largest))
        if affine == "identity":
            at_y = g  # z is y here
            apart = dot(z - y, z - y).sqrt() / dot(y, y).sqrt()
            frames.append(rows("4.3", dot(z, z).sqrt(), [dot(y, y).sqrt()], sizes, residual=apart))
        else:
            terms, reductions = _reductions(dot, at_y, yhat, m)
            frames.append(rows("4.1 at y", squared, [ratio * term for term in terms], sizes | reductions))
    return frames


def _gradients(
    norm: Callable[[Tensor], Tensor], rest: Sequence[nn.Module], objective: Callable[[Tensor], Tensor], y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """z, g and the gradient with BatchNorm, by backpropagation: the left side of 4.1 knows no formula for it."""
    y = y.detach().requires_grad_()
    z = norm(y)
    fed = z.detach().requires_grad_()
    out = fed
    for module in rest:
        out = module(out)
    (g,) = torch.autograd.grad(objective(out), fed)
    (slope,) = torch.autograd.grad(z, y, g)
    return z.detach(), g, slope


def _reductions(
    dot: Callable[[Tensor, Tensor], Tensor], g: Tensor, yhat: Tensor, m: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The terms of 4.1 before their scaling, and the columns that say how large they are."""
    squared, mean, output = dot(g, g), dot(g, torch.ones_like(g)).square() / m, dot(g, yhat).square() / m
    parts = {"mean_fraction": mean / squared, "output_fraction": output / squared}
    alignment = dot(g, yhat) / (squared * m).sqrt()
    return [squared, mean, output], {"grad_norm": squared.sqrt(), "alignment": alignment, **parts}


def _nearest_optimum(chosen: Selected, first: Tensor) -> pd.DataFrame:
    """Statement 4.5 for the rows of the weights, from those that the run began with."""
    units = chosen.units.to(first.device)
    with torch.no_grad():
        begun, found = (w.flatten(1)[units] for w in (first, chosen.site.linear.weight))
        way = begun - found
        squared, along = found.square().sum(1), (found * way).sum(1)
        # a W* with a = 1 + t, a >= 0; from the difference, which keeps its digits while W* is still near W_0.
        t = (along / squared).clamp_min(-1)
        nearest = (way - t[:, None] * found).square().sum(1)
        alignment = (begun * found).sum(1) / (begun.square().sum(1) * squared).sqrt()
        terms = [way.square().sum(1), along.square() / squared]
    return _rows(chosen, "4.5", nearest, terms, {"alignment": alignment}, condition=alignment > 0)


def _rows(
    chosen: Selected,
    statement: str,
    lhs: Tensor,
    terms: Sequence[Tensor],
    columns: dict[str, Tensor],
    *,
    affine: str | None = None,
    defined: Tensor | None = None,
    residual: Tensor | None = None,
    condition: Tensor | None = None,
) -> pd.DataFrame:
    """A statement of every chosen unit; `terms` are the right side's: the first less the others."""
    rhs = terms[0] - sum(terms[1:])
    if residual is None:
        largest = torch.stack([lhs.abs(), *(term.abs() for term in terms)]).amax(0)
        residual = (rhs - lhs) / largest.where(largest > 0, 1.0)
    everywhere = torch.ones_like(lhs)
    flags = [everywhere if flag is None else flag.to(lhs) for flag in (defined, condition)]
    numbers = {"lhs": lhs, "rhs": rhs, "residual": residual, **columns}
    # One transfer for all of them.
    table = dict(
        zip(("defined", "condition", *numbers), torch.stack([*flags, *numbers.values()]).cpu().numpy(), strict=True)
    )
    unknown = (table["defined"] == 0) | ~np.isfinite([table["lhs"], table["rhs"], table["residual"]]).all(axis=0)
    with np.errstate(invalid="ignore"):
        holds = abs(table["residual"]) <= TOLERANCE if statement in PROVED else table["residual"] >= -TOLERANCE
    return pd.DataFrame(
        {
            "statement": statement,
            "layer": chosen.number,
            "layer_name": chosen.name,
            "unit": chosen.units.numpy(),
            "affine": affine,
            "holds": pd.arrays.BooleanArray(holds, unknown),
            "condition": pd.arrays.BooleanArray(table["condition"] > 0, unknown | (condition is None)),
            **{name: np.where(unknown, np.nan, table.get(name, np.nan)) for name in _NUMBERS},
        }
    )


_NUMBERS: Final = (
    "lhs", "rhs", "residual", "sigma", "gamma", "grad_norm", "mean_fraction", "output_fraction", "alignment",
    "curvature", "input_norm",
)  # fmt: skip


def _samples(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _mean(x: Tensor) -> Tensor:
    """Over the m activations of every unit."""
    return x.mean(_samples(x), keepdim=True)


def _deviation(y: Tensor) -> Tensor:
    """sigma; 1 where it is 0, so that a unit without any does not spoil the network for the others."""
    variance = _mean((y - _mean(y)).square())
    return variance.where(variance > 0, 1.0).sqrt()


def _batch_norm(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return gamma * (y - _mean(y)) / _deviation(y) + beta


def _spectral_norms(linear: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """For every unit, that of the matrix X (m, d) that its weights are multiplied with: a convolution's patches are its
    rows, of the unit's own group of channels."""
    groups = 1
    if isinstance(linear, nn.Conv2d):
        groups, padding = linear.groups, linear.padding
        if linear.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if linear.padding_mode == "zeros" else linear.padding_mode
            x, padding = F.pad(x, linear._reversed_padding_repeated_twice, mode=mode), (0, 0)
        patches = F.unfold(x, linear.kernel_size, linear.dilation, padding, linear.stride)
        x = patches.movedim(1, -1)
    norms = [_spectral_norm(part.flatten(0, -2)) for part in x.chunk(groups, -1)]
    return torch.stack(norms).repeat_interleave(linear.weight.shape[0] // groups)


def _spectral_norm(x: Tensor) -> Tensor:
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
    if not torch.isfinite(gram).all():
        return gram.new_tensor(torch.nan)
    return torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()


MEASUREMENT: Final = Measurement(theory, plan)
