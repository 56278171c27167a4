r"""Products with the Gauss-Newton matrix of any loss, by PyTorch's double backward.

With the outputs $z(\theta)$ of a network and its loss $\ell(z)$, the Hessian is
$$H = J^T \nabla^2 \ell(z) J + \sum_i \frac{\partial \ell}{\partial z_i} \nabla^2 z_i(\theta), \quad J = \frac{\partial z}{\partial \theta}.$$
The first part is the (generalised) Gauss-Newton matrix G, which is positive semidefinite for a convex $\ell$
(Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent").
"""  # noqa: E501  a formula

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.derivatives.products import Product, twice_differentiable
from bnsmooth_cli.networks.parameters import flatten, unflatten

#: A term of the objective: its weight, the outputs of the network with their graph, and the loss of outputs.
Pass = tuple[float, Tensor, Callable[[Tensor], Tensor]]


def gauss_newton(passes: Callable[[], Iterator[Pass]], leaves: Sequence[Tensor], *, keep_graph: bool) -> Product:
    r"""The product with the Gauss-Newton matrix of a sum of losses.

    Of $G v = J^T \nabla^2 \ell \, (J v)$, the first factor $J v$ is the derivative of $J^T u$ in u, along v: two
    backward passes make a forward one (Townsend 2017, "A new trick for calculating Jacobian vector products").

    Args:
        passes: Computes the terms of the sum.
        leaves: The tensors to differentiate in; the vectors are their elements, in this order.
        keep_graph: Whether the graphs of the terms are kept for all products. Otherwise they are computed again for
            each product, so that memory holds the graph of a single term.
    """

    def linear() -> Iterator[tuple[float, Tensor, Tensor, Sequence[Tensor], Tensor, Tensor]]:
        with twice_differentiable():
            for share, outputs, loss in passes():
                dual = torch.zeros_like(outputs, requires_grad=True)
                back = torch.autograd.grad(outputs, leaves, dual, create_graph=True, materialize_grads=True)
                free = outputs.detach().requires_grad_()
                (slope,) = torch.autograd.grad(loss(free), free, create_graph=True)
                yield share, outputs, dual, back, free, slope

    kept = list(linear()) if keep_graph else None

    def product(v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        pieces, total = unflatten(v, leaves), torch.zeros_like(v)
        with twice_differentiable():
            for share, outputs, dual, back, free, slope in kept or linear():
                reached = [i for i, b in enumerate(back) if b.requires_grad]
                if not (reached and slope.requires_grad):  # the outputs are constant, or the loss is linear in them
                    continue
                vectors = [pieces[i].to(back[i]) for i in reached]
                (forward,) = torch.autograd.grad([back[i] for i in reached], dual, vectors, retain_graph=True)
                (bent,) = torch.autograd.grad(slope, free, forward, retain_graph=True)
                found = torch.autograd.grad(outputs, leaves, bent, retain_graph=True, materialize_grads=True)
                total.add_(flatten(g.detach() for g in found), alpha=share)
        return total

    return product
