"""The graphs that autograd records: their nodes, and the users' own functions in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


def nodes(roots: Iterable[Any]) -> list[Any]:
    """The nodes that can be reached from nodes of a graph, each once.

    >>> weight = nn.Parameter(Tensor([1.0]))
    >>> [node.name() for node in nodes([(2 * weight).grad_fn])]
    ['MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    found, waiting = {}, [*roots]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def own_functions(values: Iterable[Tensor]) -> list[str]:
    """The names of the subclasses of torch.autograd.Function, other than bnsmooth's, that computed values."""
    own = [node for node in nodes(value.grad_fn for value in values) if isinstance(node, BackwardCFunction)]
    classes = {node._forward_cls for node in own}  # type: ignore[attr-defined]
    return sorted({each.__name__ for each in classes if not each.__module__.startswith("bnsmooth_cli.")})


def leaves(root: Tensor) -> list[Tensor]:
    """The tensors that a value was computed from: parameters, and other tensors that record their gradient."""
    return [node.variable for node in nodes([root.grad_fn]) if _is_leaf(node)]


def begins_before(model: nn.Module, first: Tensor, second: Tensor) -> str | None:
    """The operation that made a tensor which two losses share, because it was computed from the parameters beforehand.

    A parameter can be reached from such a tensor. None if the losses share none.
    """
    found = nodes([first.grad_fn])  # alive, so that a node of the other graph has the same identity
    again = {id(node) for node in nodes([second.grad_fn])}
    shared = [node for node in found if id(node) in again and not _is_leaf(node)]
    ours = {id(p) for p in model.parameters()}
    reaches = any(_is_leaf(node) and id(node.variable) in ours for node in nodes(shared))
    return shared[0].name() if reaches else None


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"
