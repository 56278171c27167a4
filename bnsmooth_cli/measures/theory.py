r"""The theory of section 4 and appendix C, with both sides of every statement measured. Santurkar et al. (2018).

The two networks of figure 5 have the same weights. After a layer y = W x (+ b), the plain network passes y to the rest
of the network, and the other one passes BatchNorm's output. Both leave out the run's own norm at this layer; the norms
of the other layers belong to the rest. For one unit j, with m activations y over the batch (over samples, height
and width),
$$\mu = \tfrac1m \langle 1, y \rangle, \quad \sigma^2 = \tfrac1m \|y - \mu\|^2, \quad \hat y = (y - \mu) / \sigma, \quad
z = \gamma \hat y + \beta, \quad \langle 1, \hat y \rangle = 0, \quad \|\hat y\|^2 = m,$$
$L$ is the loss as a function of the input of the rest, $\hat L(y) = L(z(y))$ and $g = \nabla L(z)$. All statements
follow from the derivative of $\hat y$, without eps, and with gamma > 0 and beta constant:
$$\frac{\partial \sigma}{\partial y} = \frac{\hat y}{m}, \qquad \frac{\partial \hat y}{\partial y} = \frac{P}{\sigma},
\qquad P = I - \tfrac1m 1 1^T - \tfrac1m \hat y \hat y^T \quad \text{(a projection)}.$$

**Fact C.1** is the gradient through BatchNorm, $v = \nabla \hat L = \frac{\gamma}{\sigma} P g$, in elements
$$v_b = \frac{\gamma}{m \sigma} \Bigl( m g_b - \sum_k g_k - \hat y_b \sum_k g_k \hat y_k \Bigr).$$
**Fact C.2** is the derivative of $\hat y$, in elements
$\partial \hat y_b / \partial y_k = \frac1\sigma (\delta_{bk} - \frac1m - \frac1m \hat y_b \hat y_k)$.
The sides of `fact C.1` are the lengths of v by backpropagation and by the formula. Those of `fact C.2` are the lengths
of the derivative of $\hat y$ along a random direction u, by forward differentiation, and of $P u / \sigma$: a matrix
other than $P / \sigma$ has another product with u, with probability 1. The residuals compare the vectors, not their
lengths.

**4.1** As P is an orthogonal projection,
$$\|v\|^2 = \frac{\gamma^2}{\sigma^2} \left( \|g\|^2 - \tfrac1m \langle 1, g \rangle^2
- \tfrac1m \langle g, \hat y \rangle^2 \right).$$
The paper states $\le$ and writes the gradient of the plain network. If that gradient is taken at z, the statement is an
equality. If it is taken at y, as in practice, nothing guarantees the statement: `4.1 at y` has that right-hand side.

**4.2** Differentiating $P g / \sigma$ once more, with H the Hessian of L at z in the unit's m activations,
$$\hat H = \nabla^2 \hat L = \frac{\gamma^2}{\sigma^2} P H P - \frac{\gamma}{m \sigma^2} \left( (P g) \hat y^T
+ \hat y (P g)^T + \langle g, \hat y \rangle P \right).$$
Along v, where $P v = v$ and $\hat y^T v = 0$,
$$v^T \hat H v = \frac{\gamma^2}{\sigma^2} v^T H v - \frac{\gamma}{m \sigma^2} \langle g, \hat y \rangle \|v\|^2.$$
The paper states $\le$; it is an equality. BatchNorm makes the gradient more predictive where $v^T H v \ge 0$ and
$\langle g, \hat y \rangle > 0$ (column `condition`). The paper calls two conditions mild: that H is positive
semi-definite, and the second of these. Whether H is positive semi-definite is not measured, because it takes many
products with H for every unit. What is measured are two of its consequences, $v^T H v \ge 0$ and $g^T H g \ge 0$
(column `curvature` of 4.2 and of 4.2b).

**4.2b**, the second part of theorem 4.2: where H preserves the relative norms of g and v, the paper concludes
$$v^T \hat H v \le \frac{\gamma^2}{\sigma^2} \left( g^T H g
- \tfrac{1}{m \gamma} \langle g, \hat y \rangle \|v\|^2 \right).$$
By 4.2, the right side exceeds the left one by $\frac{\gamma^2}{\sigma^2} (g^T H g - v^T H v)$. So the statement is
equivalent to $v^T H v \le g^T H g$, with equality if these are equal. The condition is read here as: H orders v and g
as their lengths do, so that $v^T H v \le g^T H g$ if and only if $\|v\| \le \|g\|$ (column `condition`). It is met if H
keeps the ratio, $v^T H v / g^T H g = \|v\|^2 / \|g\|^2$ with $g^T H g > 0$, as every $H = c I$ with c > 0 does. Under
the condition, the statement holds if and only if $\|v\| \le \|g\|$. By 4.1 this is so for $\gamma \le \sigma$, which
the paper does not require. For $\gamma > \sigma$ the statement can fail although the condition is met: for
$H = I$ and $\frac{\gamma}{\sigma} \|P g\| > \|g\|$ it does. What holds for every gamma, where
$(P g)^T H (P g) \le g^T H g$, has $\frac{\gamma^2}{\sigma^2} g^T H g$ as the first term in the parentheses.

**4.3** With $\gamma = \sigma$ and $\beta = \mu$, the two networks are the same function at these weights: z = y.

**4.4** A gradient g in the activations is $X^T g$ in the unit's weights, where X (m, d) holds the layer's inputs. Over
all X of spectral (or Frobenius) norm at most $\lambda$, the largest $\|X^T g\|^2$ is $\lambda^2 \|g\|^2$, attained by
$X = \lambda g u^T / \|g\|$ with any unit vector u. The worst cases with and without BatchNorm are therefore
$\lambda^2 \|v\|^2$ and $\lambda^2 \|g\|^2$, and by 4.1
$$\hat g_j = \frac{\gamma^2}{\sigma^2} \left( g_j - m \lambda^2 \mu_g^2
- \tfrac{\lambda^2}{m} \langle g, \hat y \rangle^2 \right), \qquad \mu_g = \tfrac1m \langle 1, g \rangle.$$
The paper prints the second term without $\lambda^2$ and the third without $\frac1m$; the maximisation gives these
constants. Here $\lambda$ is the spectral norm of the layer's actual inputs.

**C.1**, the minimax smoothness of the weights. The quadratic form of the weights' Hessian $X^T H X$ along their
gradient $X^T g$ is $w^T H w$ with $w = X X^T g$. The paper states for the largest values over all X of spectral norm at
most $\lambda$
$$\max_X \, (X X^T v)^T \hat H (X X^T v) < \frac{\gamma^2}{\sigma^2} \left( \max_X \, (X X^T g)^T H (X X^T g)
- \lambda^4 \kappa \right), \qquad \kappa = \tfrac{1}{m \gamma} \langle g, \hat y \rangle \|v\|^2.$$
At the X that attains 4.4, each network's own, $w = \lambda^2 g$ and $\lambda^2 v$, and the statement is 4.2b times
$\lambda^4$. The rows `C.1` have these two sides, with `holds` and `condition` as for 4.2b. They are not the maxima,
which need the whole of H. With g, H and $\hat y$ fixed, as in 4.4, the vectors w are those of the ball $\|w\|^2 \le
\lambda^2 \langle w, g \rangle$, each attained by an X of rank one, $w u^T / \sqrt{\langle w, g \rangle}$, whatever d
is. So by duality
$$\max_X \, w^T H w = \inf_{\nu > \max(0, \nu_{\max}(H))} \tfrac{\lambda^4 \nu^2}{4} \, g^T (\nu I - H)^{-1} g,$$
with the largest eigenvalue $\nu_{\max}$. This is at least $\lambda^4 g^T H g$, and equal only if g is an eigenvector
of H. For BatchNorm it is always more than $\lambda^4 v^T \hat H v$ where $v \ne 0$, because v is no eigenvector:
$\hat H v$ has the component $-\frac{1}{m \sigma} \|v\|^2 \hat y$. For the maxima themselves the statement is therefore
not true in general. With $H = c I$, c > 0, $\gamma = \sigma$ and g orthogonal to 1 and $\hat y$, all conditions hold
and $\kappa = 0$, but BatchNorm's maximum exceeds the plain $\lambda^4 c \|g\|^2$; so it does for a small
$\langle g, \hat y \rangle > 0$. What can be proved, for $\gamma \le \sigma$ and $\langle g, \hat y \rangle \ge 0$, is
$$\max_X \, (X X^T v)^T \hat H (X X^T v) \le \frac{\gamma^2}{\sigma^2} \max_X \, (X X^T g)^T H (X X^T g)
+ \frac{3 \sqrt 3}{8} \frac{\lambda^4 \|v\|^3}{\sqrt m \, \sigma}:$$
for w = p + b $\hat y / \sqrt m$ + a 1 with p = P w, p is in the plain network's ball, and the term in $\langle w,
\hat y \rangle$ is at most $\frac{2}{\sqrt m \sigma} \langle v, p \rangle \sqrt{\lambda^2 \langle v, p \rangle -
\|p\|^2}$.

**4.5** BatchNorm's output is the same for $a W$ with any a > 0, so that every point of the ray through an optimum $W^*$
is an optimum. The point of the ray nearest to $W_0$ has $a = \langle W_0, W^* \rangle / \|W^*\|^2$, which is positive
where $\langle W_0, W^* \rangle > 0$ (column `condition`). Its distance is
$$\|W_0 - a W^*\|^2 = \|W_0 - W^*\|^2 - \frac{(\|W^*\|^2 - \langle W^*, W_0 \rangle)^2}{\|W^*\|^2}.$$
This is an equality for any $W^*$. Here $W^*$ are the unit's weights at the point, and $W_0$ those at the start of the
run. Where the condition is not met, the lemma states nothing: `holds` is null.

**How the sides are computed.** The proved statements are identities in g, H, $\lambda$ and $\hat y$. With the same
numbers on both sides they would hold even if these numbers were wrong. The sides are therefore computed independently,
so that a wrong ingredient makes the statement fail:

- g and v: g by backpropagation through the rest of the network, v by another backpropagation, through BatchNorm and the
  rest together. The term $\|g\|^2$ of 4.1 and 4.4 is the derivative of L along g, by Taylor polynomials
  (`derivatives.taylor`), which is $\|g\|^2$ only if g is the gradient.
- H: $v^T \hat H v$ by double backward through BatchNorm and the rest together, $v^T H v$ and $g^T H g$ by Taylor
  polynomials through the rest. For the unit of a layer with the longest g, $g^T H g$ is also computed by double
  backward through the rest. The residual of 4.2 for this unit is the larger of its own and the relative difference of
  the two values.
- $\hat y$ and $\sigma$: the network with BatchNorm computes its own. The formulas have $\sigma$ from another routine.
- $\lambda$: the right side of 4.4 has the root of the largest eigenvalue of $X^T X$, the left side $\|X u\|$ with the
  eigenvector u. Theorem C.1 has the first.
- 4.5: the left side is the residual of a projection on the ray, the right side the formula.

For modules without a Taylor rule, such as all modules of a network that is not a chain, both methods are PyTorch's
automatic differentiation. A module whose own derivative is wrong then goes unnoticed.

In float64, the sides agree to 1e-12 of the largest term, and to 1e-10 where a term is itself a small difference: before
a saturated softmax, or a norm over two units. TOLERANCE is ten times that. Where all terms are zero, as for a unit with
a gradient of zero, nothing is tested: `residual`, `holds` and `condition` are null.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.functional import jvp
from torch.nn import functional as F

from bnsmooth_cli import kinds
from bnsmooth_cli.derivatives.products import twice_differentiable
from bnsmooth_cli.derivatives.taylor import directional_derivatives
from bnsmooth_cli.measures.measurement import Measurement, measured
from bnsmooth_cli.measures.selection import Selected, plan, select
from bnsmooth_cli.networks.chain import Layer
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.networks.structure import unit_weights
from bnsmooth_cli.norms.state import prepared
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.problems.loop import ExternalLoop
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.user_code import explaining

#: Of the residual of a proved statement. Each is an equality; the module's docstring says how exactly the sides agree.
TOLERANCE: Final = 1e-9
#: A unit counts as constant if its standard deviation is below this fraction of its activations' size: the difference
#: y - mu then has no correct digits.
_CONSTANT: Final = 1e-10
#: Products of numbers that are smaller than this have lost digits: float64 has none between 0 and 5e-324.
_SMALLEST: Final = 1e-290
#: The share of a gradient that the reductions of 4.1 leave, below which it is rounding alone.
_LEFT: Final = 1e-12

Activations = Float[Tensor, "batch units ..."]
PerUnit = Float[Tensor, "1 units ..."]
#: The rows of a statement, by column.
Rows = dict[str, np.ndarray]
#: Values of the units, by column.
Columns = dict[str, Tensor]


@measured
def theory(point: Point, layers: Sequence[str] | None = None, units: Sequence[int] | None = None) -> pd.DataFrame:
    r"""Measure both sides of the statements of Santurkar et al. (2018), section 4 and appendix C, in float64.

    The docstring of the module states and derives them.

    Args:
        point: Where to measure.
        layers: Layers by name or number; by default all layers that a norm may follow.
        units: Units of each layer; all of them by default.

    Returns:
        One row per layer, unit, statement and choice of gamma and beta. Columns:

        - `statement`: one of `kinds.PROVED` or `kinds.UNPROVED`.
        - `affine`: "identity" (gamma = sigma and beta = mu, so that z = y) or "standard" (gamma = 1 and beta = 0).
        - `lhs`, `rhs`: the two sides.
        - `residual`: rhs - lhs, divided by the largest term of either side; for 4.3 and the facts, the length of the
          vectors' difference, divided likewise. Null where all terms are zero.
        - `holds`: for a proved statement, whether it is an equality to TOLERANCE; otherwise whether lhs <= rhs, to
          TOLERANCE. Null where all terms are zero, and for 4.5 where its condition is not met.
        - `condition`: whether the condition of the statement is met, if it has one.
        - `sigma`, `gamma`, `grad_norm` $\|g\|$, `input_norm` $\lambda$, `curvature` $v^T H v / v^T v$; for 4.2b and
          C.1, $g^T H g / g^T g$.
        - `mean_fraction` $\frac1m \langle 1, g \rangle^2 / \|g\|^2$ and `output_fraction`
          $\frac1m \langle g, \hat y \rangle^2 / \|g\|^2$: the sizes of the two reductions.
        - `alignment`: the cosine of g and $\hat y$; for 4.5, of $W_0$ and $W^*$.
        - `reduction`: for 4.5, the fraction by which the nearest optimum's squared distance is smaller than
          $\|W_0 - W^*\|^2$.

        Values are null for units that are constant over the batch, and where a computation overflows.

    Raises:
        InputError: If the network does not have a layer or unit.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, output=f"{folder}/run")
    ...     rows = bns.theory(bns.load_point(run), layers=["fc3"])
    >>> bool(rows[rows["statement"].isin(kinds.PROVED)]["holds"].all())
    True
    """
    point = point.at("batch")
    double = point.to(torch.float64)
    selected = select(double.structure, layers, units)
    modules = [site.linear for site, _ in selected]
    with prepared(double.norms, point.config.seed, point.step), twice_differentiable():
        with double.problem.forward_only():
            inputs = [x for x, _ in captured(modules, double.loss)]
        weights = first_weights(double, modules)
        parts = []
        for chosen, x, first in zip(selected, inputs, weights, strict=True):
            # Hooks that replace the output of a layer are gone when a recomputation runs that layer again.
            unsaved = torch.autograd.graph.disable_saved_tensors_hooks("the network runs parts again going back")
            with explaining(f"layer {chosen.site.name}: its output cannot be replaced"), unsaved:
                parts += _activations(double, chosen, x)
            if first is not None:
                parts.append(_nearest_optimum(chosen, first.to(x)))
    rows = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return rows.astype({"holds": "boolean", "condition": "boolean"})


def first_weights(point: Point, modules: Sequence[nn.Module]) -> list[Tensor | None]:
    """The weights of modules of the network at the start of the run; None if they are unknown (an external loop)."""
    if isinstance(point.problem, ExternalLoop):
        return [None] * len(modules)
    names, start = {module: name for name, module in point.model.named_modules()}, point.problem.initial
    return [unit_weights(start.get_submodule(names[module])).detach() for module in modules]


def _rest(point: Point, chosen: Selected) -> tuple[Sequence[nn.Module], Callable[[Tensor], Tensor]]:
    """The network after a site: modules, and the objective of their output."""
    if point.chain is not None:
        later = list(point.chain.layers.values())[chosen.site.number - 1 :]
        rest = [cast(Layer, later[0]).rest, *later[1:]]
        return rest, lambda outputs: point.problem.objective(outputs, point.targets)
    return [], chosen.site.remainder(point.loss)


class _Networks:
    r"""The two networks of figure 5 at a site, for one choice of gamma and beta. The names are the docstring's above.

    Attributes:
        sigma, gamma, yhat, z: As above. `norm` computes z with a mean and deviation of its own.
        g, v: The gradients of the plain network at z and of the one with BatchNorm at y, by backpropagation.
        slope, plain: Along g, the derivative of the plain network and $g^T H g$, by Taylor polynomials.
        bend: $v^T H v$, by Taylor polynomials.
        form: $v^T \hat H v$, by double backward.
        apart: The relative difference of $g^T H g$ by double backward and by Taylor polynomials, for the unit with the
            longest g; 0 for the others.

    Args:
        chosen: The site, and the units whose statements are measured.
        affine: The choice of gamma and beta.
        y: The output of the site's linear map.
        rest: The modules after the site.
        objective: The loss of their output.
    """

    def __init__(
        self,
        chosen: Selected,
        affine: str,
        y: Activations,
        rest: Sequence[nn.Module],
        objective: Callable[[Tensor], Tensor],
    ) -> None:
        self.chosen, self.affine, self.units = chosen, affine, chosen.units.to(y.device)
        self.y, mu, self.m, c = y, _mean(y), y.numel() // y.shape[1], _centred(y)
        variance = c.var(_samples(y), correction=0, keepdim=True)
        self.sigma = variance.where(variance > 0, 1.0).sqrt()
        self.yhat = c / self.sigma
        self.defined = self.of(variance > _CONSTANT**2 * _mean(y.square()))
        standard = (torch.ones_like(mu), torch.zeros_like(mu))
        self.gamma, beta = (self.sigma, mu) if affine == "identity" else standard
        self.norm = functools.partial(_batch_norm, gamma=self.gamma, beta=beta)
        self.z = self.norm(y)

        def after(z: Tensor) -> Tensor:
            return objective(nn.Sequential(*rest)(z))

        self.g, checked = _backpropagated(after, self.z, self.longest)
        self.v, self.form = _backpropagated(lambda y: after(self.norm(y)), y, lambda _: self.units)
        self.slope, self.plain = directional_derivatives(rest, objective, self.z, self.g, chosen.units)
        _, self.bend = directional_derivatives(rest, objective, self.z, self.v, chosen.units)
        difference = torch.where(self.units == self.longest(self.g), checked - self.plain, 0.0)
        self.apart = _relative(difference, torch.maximum(checked.abs(), self.plain.abs())).nan_to_num(0)

    def of(self, statistic: Tensor) -> Tensor:
        """The chosen units' values of a statistic."""
        return statistic.flatten()[self.units]

    def dot(self, a: Activations, b: Activations) -> Tensor:
        return (a * b).sum(_samples(a))[self.units]

    def length(self, a: Activations) -> Tensor:
        return self.dot(a, a).sqrt()

    def longest(self, a: Activations) -> Tensor:
        """The one of the chosen units where a is longest, (1,)."""
        return self.units[self.length(a).argmax(keepdim=True)]

    def project(self, a: Activations) -> Activations:
        """P a, by its elements."""
        return a - _mean(a) - self.yhat * _mean(a * self.yhat)

    def bound(self, plain: _Networks) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The terms of the right side of 4.1 with the gradient of `plain`, and the columns with their sizes."""
        g, ratio = plain.g, self.of(self.gamma / self.sigma).square()
        squared = self.dot(g, g)
        mean, output = (self.dot(g, along).square() / self.m for along in (torch.ones_like(g), self.yhat))
        sizes = {"grad_norm": squared.sqrt(), "mean_fraction": mean / squared, "output_fraction": output / squared}
        alignment = self.dot(g, self.yhat) / (squared * self.m).sqrt()
        # The derivative along g is ||g||^2 only if g is the gradient.
        return [ratio * term for term in (plain.slope, mean, output)], sizes | {"alignment": alignment}

    def rows(self, statement: str, lhs: Tensor, terms: Sequence[Tensor], columns: Columns, **more: Tensor) -> Rows:
        """The rows of a statement (`_rows`)."""
        sizes = {"sigma": self.of(self.sigma), "gamma": self.of(self.gamma)}
        return _rows(
            self.chosen, statement, lhs, terms, sizes | columns, affine=self.affine, defined=self.defined, **more
        )

    def vectors(
        self, statement: str, left: Activations, right: Activations, size: Tensor, columns: Columns | None = None
    ) -> Rows:
        """The rows of a statement about two vectors: their lengths, and that of their difference divided by `size`."""
        apart = _relative(self.length(left - right), size)
        return self.rows(statement, self.length(left), [self.length(right)], columns or {}, residual=apart)


def _backpropagated(
    f: Callable[[Activations], Tensor], x: Activations, choose: Callable[[Activations], Int[Tensor, " chosen"]]
) -> tuple[Activations, Float[Tensor, " chosen"]]:
    """The gradient g of f at x by backpropagation, and $g_j^T H_{jj} g_j$ by double backward for chosen units j.

    Args:
        f: The function.
        x: Where to differentiate it.
        choose: The units j as a function of g.
    """
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(f(x), x, create_graph=True, materialize_grads=True)
    g, forms = slope.detach(), []
    for unit in choose(g).tolist():  # one at a time: batched products are not faster, and need more memory
        along = torch.zeros_like(g)
        along[:, unit] = g[:, unit]
        if slope.grad_fn is None:  # f is linear, or does not use x
            forms.append(g.new_zeros(()))
        else:
            (product,) = torch.autograd.grad(slope, x, along, retain_graph=True, materialize_grads=True)
            forms.append((product[:, unit] * g[:, unit]).sum())
    return g, torch.stack(forms)


def _activations(point: Point, chosen: Selected, x: Float[Tensor, "batch ..."]) -> list[Rows]:
    """All statements but 4.5 at a site with inputs x, for both choices of gamma and beta."""
    linear, (rest, objective) = chosen.site.linear, _rest(point, chosen)
    with torch.no_grad():
        y = chosen.site.by_unit(linear(x))
        input_norm, attained = _spectral_norms(linear, x)[:, chosen.units.to(x.device)]
    same, standard = (_Networks(chosen, affine, y, rest, objective) for affine in ("identity", "standard"))
    parts: list[Rows] = []
    for networks in (same, standard):
        parts += _first_order(networks, input_norm, attained)
        parts += _second_order(networks, input_norm)

    u = torch.randn(y.shape, generator=generator(point.config.seed, "jacobian"), dtype=y.dtype).to(y)
    forward = jvp(standard.norm, y, u)[1]  # of y_hat, which the standard z is
    formula = standard.project(u) / standard.sigma
    terms, sizes = standard.bound(same)  # the gradient at y
    return [
        *parts,
        standard.vectors("fact C.2", forward, formula, standard.length(u / standard.sigma)),
        standard.rows("4.1 at y", standard.dot(standard.v, standard.v), terms, sizes),
        same.vectors("4.3", same.z, y, same.length(y)),
    ]


def _first_order(networks: _Networks, input_norm: Tensor, attained: Tensor) -> Iterator[Rows]:
    """Fact C.1, 4.1 and 4.4."""
    g, v, squared = networks.g, networks.v, networks.dot(networks.v, networks.v)
    terms, sizes = networks.bound(networks)
    formula = networks.gamma / networks.sigma * networks.project(g)
    size = networks.of(networks.gamma / networks.sigma) * networks.length(g)
    yield networks.vectors("fact C.1", v, formula, size, sizes)
    yield networks.rows("4.1", squared, terms, sizes)
    worst = [input_norm.square() * term for term in terms]
    yield networks.rows("4.4", attained.square() * squared, worst, sizes | {"input_norm": input_norm})


def _second_order(networks: _Networks, input_norm: Tensor) -> Iterator[Rows]:
    """4.2 and its second part, and theorem C.1 at the X that attains 4.4."""
    g, v, of, dot = networks.g, networks.v, networks.of, networks.dot
    form, bend, plain = networks.form, networks.bend, networks.plain
    ratio, lengths = of(networks.gamma / networks.sigma).square(), (dot(v, v), dot(g, g))
    reduction = of(networks.gamma / networks.sigma.square()) / networks.m * dot(g, networks.yhat) * lengths[0]

    _, sizes = networks.bound(networks)
    # Of two samples, BatchNorm leaves no gradient but rounding, and nothing to compare.
    left = networks.length(v) > _LEFT * of(networks.gamma / networks.sigma).abs() * networks.length(g)

    def compared(residual: Tensor) -> Tensor:
        return residual.where(left, torch.nan)

    smoother = (bend >= 0) & (sizes["alignment"] > 0)
    terms, residual = [ratio * bend, reduction], _residual(form, [ratio * bend, reduction])
    yield networks.rows(
        "4.2", form, terms, sizes | {"curvature": bend / lengths[0]}, condition=smoother,
        residual=compared(torch.where(networks.apart.abs() > residual.abs(), networks.apart, residual)),
    )  # fmt: skip

    sizes |= {"curvature": plain / lengths[1]}
    ordered = _at_most(bend, plain) == _at_most(*lengths)
    terms = [ratio * plain, reduction]
    residual = compared(_residual(form, terms))
    yield networks.rows("4.2b", form, terms, sizes, condition=ordered, residual=residual)
    worst = [input_norm**4 * side for side in (form, *terms)]
    residual = compared(_residual(worst[0], worst[1:]))
    sizes |= {"input_norm": input_norm}
    yield networks.rows("C.1", worst[0], worst[1:], sizes, condition=ordered, residual=residual)


def _nearest_optimum(chosen: Selected, first: Float[Tensor, "units ..."]) -> Rows:
    """Statement 4.5 for each row of the weights, from the first weights of the run."""
    units = chosen.units.to(first.device)
    with torch.no_grad():
        start, optimum = (w.flatten(1)[units] for w in (first, unit_weights(chosen.site.linear)))
        # Both sides use W_0 - W*, which keeps digits if W* is near W_0. The nearest point is (1 + t) W* / ||W*||.
        difference, ray = start - optimum, F.normalize(optimum, dim=1, eps=0)
        t = torch.linalg.vecdot(ray, difference).clamp_min(-torch.linalg.vector_norm(optimum, dim=1))
        nearest = (difference - t[:, None] * ray).square().sum(1)
        squared, along = optimum.square().sum(1), (optimum * difference).sum(1)
        terms = [difference.square().sum(1), along.square() / squared]
        alignment = (start * optimum).sum(1) / (start.square().sum(1) * squared).sqrt()
    columns = {"alignment": alignment, "reduction": (terms[0] - nearest) / terms[0]}
    return _rows(chosen, "4.5", nearest, terms, columns, condition=alignment > 0)


def _rows(
    chosen: Selected,
    statement: str,
    lhs: Tensor,
    terms: Sequence[Tensor],
    columns: Columns,
    *,
    affine: str | None = None,
    defined: Tensor | None = None,
    residual: Tensor | None = None,
    condition: Tensor | None = None,
) -> Rows:
    """The rows of a statement. Its right side is the first of the `terms` minus the others."""
    if residual is None:
        residual = _residual(lhs, terms)
    everywhere = torch.ones_like(lhs)
    flags = [everywhere if flag is None else flag.to(lhs) for flag in (defined, condition)]
    numbers = {"lhs": lhs, "rhs": _right(terms), "residual": residual, **columns}
    # One transfer for all numbers.
    table = dict(
        zip(("defined", "condition", *numbers), torch.stack([*flags, *numbers.values()]).cpu().numpy(), strict=True)
    )
    unknown = (table["defined"] == 0) | ~np.isfinite([table["lhs"], table["rhs"]]).all(axis=0)
    untested = unknown | ~np.isfinite(table["residual"])
    with np.errstate(invalid="ignore"):
        holds = abs(table["residual"]) <= TOLERANCE if statement in kinds.PROVED else table["residual"] >= -TOLERANCE
    inapplicable = (table["condition"] == 0) & (statement == "4.5")
    rows: dict[str, object] = {
        "statement": statement,
        "layer": chosen.site.number,
        "layer_name": chosen.site.name,
        "unit": chosen.units.numpy(),
        "affine": affine,
        "holds": np.where(untested | inapplicable, np.nan, holds),
        "condition": np.where(untested | (condition is None), np.nan, table["condition"]),
        **{name: np.where(unknown, np.nan, table.get(name, np.nan)) for name in _NUMBERS},
    }
    return {name: np.broadcast_to(np.asarray(value), len(unknown)) for name, value in rows.items()}


#: The columns of numbers.
_NUMBERS: Final = [
    name for name, column in kinds.get("theory").columns.items() if column.type == "double" and name != "lr"
]


def _samples(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _mean(x: Activations) -> PerUnit:
    """The mean over the m activations of each unit."""
    return x.mean(_samples(x), keepdim=True)


def _centred(y: Activations) -> Activations:
    """y - mu. The difference is centred again: if sigma is far below mu, the rounding error of mu is not small."""
    c = y - _mean(y)
    return c - _mean(c)


def _right(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] - sum(terms[1:])


def _residual(lhs: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """The difference of the sides, divided by the largest term of either."""
    return _relative(_right(terms) - lhs, torch.stack([lhs.abs(), *(term.abs() for term in terms)]).amax(0))


def _relative(difference: Tensor, size: Tensor) -> Tensor:
    """difference / size; NaN where the size is 0, or so small that it has lost digits to underflow."""
    return difference / size.where(size > _SMALLEST, torch.nan)


def _at_most(a: Tensor, b: Tensor) -> Tensor:
    """Whether a <= b, to TOLERANCE."""
    return a - b <= TOLERANCE * torch.maximum(a.abs(), b.abs())


def _batch_norm(y: Activations, gamma: PerUnit, beta: PerUnit) -> Activations:
    c = _centred(y)
    variance = _mean(c.square())
    # A constant unit must not spoil the others.
    return gamma * c / variance.where(variance > 0, 1.0).sqrt() + beta


def _spectral_norms(linear: nn.Module, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "2 units"]:
    """The spectral norm, for each unit, of the matrix X (m, d) that multiplies its weights, twice (`_spectral_norm`).

    For a convolution, the rows of X are the patches in the unit's group of channels.
    """
    groups = 1
    if isinstance(linear, nn.Conv2d):
        groups, padding = linear.groups, linear.padding
        if linear.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if linear.padding_mode == "zeros" else linear.padding_mode
            x, padding = F.pad(x, linear._reversed_padding_repeated_twice, mode=mode), (0, 0)
        patches = F.unfold(x, linear.kernel_size, linear.dilation, padding, linear.stride)
        x = patches.movedim(1, -1)
    norms = [_spectral_norm(part.flatten(0, -2)) for part in x.chunk(groups, -1)]
    return torch.stack(norms, 1).repeat_interleave(len(unit_weights(linear)) // groups, dim=1)


def _spectral_norm(x: Float[Tensor, "m d"]) -> Float[Tensor, " 2"]:
    """The largest singular value of X by the Gram matrix's eigenvalue, and the length of X u for its unit vector u."""
    x = x if len(x) > x.shape[1] else x.T
    gram = x.T @ x
    if not torch.isfinite(gram).all():
        return gram.new_full((2,), torch.nan)
    values, vectors = torch.linalg.eigh(gram)
    return torch.stack([values[-1].clamp_min(0).sqrt(), torch.linalg.vector_norm(x @ vectors[:, -1])])


MEASUREMENT: Final = Measurement(theory, plan, select)
