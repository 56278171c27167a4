"""The trained parameters of a network as one vector: the theta of every measurement."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training updates, by name, in their order in theta."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def precision(parameters: Iterable[Tensor]) -> torch.dtype:
    """The floating-point type in which parameters are measured: float64 if one of them has it, otherwise float32.

    >>> precision([torch.ones(1, dtype=torch.bfloat16)])
    torch.float32
    """
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32


def coarsest(parameters: Iterable[Tensor]) -> torch.dtype:
    """The type whose rounding limits where parameters can be: float64 if all of them have it, otherwise float32.

    >>> coarsest([torch.ones(1), torch.ones(1, dtype=torch.float64)])
    torch.float32
    """
    return torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32


def fill(parameters: Collection[Tensor], theta: Shaped[Tensor, " n"]) -> None:
    """Set parameters to the pieces of a vector, in place.

    Whatever reads the parameters then reads the new values: modules, compiled and scripted ones, the user's functions,
    and backward passes that run parts of the network again. Graphs that exist already do not notice.
    """
    for parameter, piece in zip(parameters, unflatten(theta, parameters), strict=True):
        parameter.data.copy_(piece)


@contextmanager
def restored(parameters: Collection[Tensor]) -> Iterator[None]:
    """Restore the values of parameters, bit for bit, when the context ends."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a network.

    Hooks leave tensors that were computed from parameters in the attributes of modules (`torch.nn.utils.weight_norm`,
    pruning). `copy.deepcopy` refuses these tensors, so they are copied without their graph. The hooks compute them
    again in every forward pass.
    """
    attributes = (value for module in model.modules() for value in vars(module).values())
    # Recurrent modules keep a list of their weights.
    values = (value for held in attributes for value in (held if isinstance(held, list) else [held]))
    computed = {
        id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf
    }
    with torch._C.DisableTorchFunction():  # a measurement converts to float32, and the copy keeps its types
        duplicate = copy.deepcopy(model, computed)
    for parameter, own in zip(model.parameters(), duplicate.parameters(), strict=True):
        if not own.is_leaf:  # a scripted module copies its parameters as operations with a graph
            own.detach_().requires_grad_(parameter.requires_grad)
    return duplicate


def converted(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """A tensor on a device and in a precision, in which complex numbers stay complex and integers stay integers.

    `nn.Module.to` and `Tensor.to` would discard imaginary parts, such as those of rotary embeddings.

    Args:
        tensor: The tensor.
        device: The device.
        dtype: A floating-point type; None keeps the tensor's own.

    >>> converted(torch.ones(1, dtype=torch.complex64), torch.device("cpu"), torch.float64)
    tensor([1.+0.j], dtype=torch.complex128)
    """
    if tensor.is_complex() and dtype is not None:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    elif not tensor.is_floating_point():
        dtype = None
    return tensor.to(device, dtype)


def of_norms(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of PyTorch's norms, of any number of dimensions.

    >>> [len(p) for p in of_norms(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm([4, 2])))]
    [4, 4]
    """
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return [p for module in model.modules() if isinstance(module, norms) for p in module.parameters()]


def weight_normed(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The lengths g and the directions v of each weight with weight normalisation, of either of torch's kinds.

    >>> ((g, v),) = weight_normed(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    >>> g.shape, v.shape
    (torch.Size([2, 1]), torch.Size([2, 3]))
    """
    chains = [
        chain
        for module in model.modules()
        for chain in getattr(module, "parametrizations", {}).values()
        if any(isinstance(step, _WeightNorm) for step in chain)
    ]
    pairs = [(chain.original0, chain.original1) for chain in chains]
    return pairs + [
        (getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v"))
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm)
    ]


def penalised(model: nn.Module) -> list[str]:
    """The names of the parameters whose squares an L2 penalty of the weights sums up.

    Weights are parameters with two or more dimensions that do not belong to a norm. Of a layer with weight
    normalisation, of either of torch's kinds, the lengths g of any dimension are taken: the squared norm of its weights
    is that of g.

    >>> penalised(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm([4, 2])))
    ['0.weight']
    >>> penalised(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    ['parametrizations.weight.original0']
    >>> penalised(nn.utils.weight_norm(nn.Linear(3, 2)))
    ['weight_g']
    """
    pairs = weight_normed(model)
    lengths = {id(length) for length, _ in pairs}
    others = {id(p) for p in of_norms(model)} | {id(direction) for _, direction in pairs}
    return [name for name, p in trainable(model).items() if id(p) in lengths or (p.dim() > 1 and id(p) not in others)]


def squares(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum of the squares of all elements, with its graph."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def flatten(tensors: Iterable[Tensor]) -> Shaped[Tensor, " n"]:
    """Concatenate all elements of the tensors, which may be sparse, into one vector of the widest type among them.

    >>> flatten([torch.ones(2, 2), torch.zeros(1).to_sparse()])
    tensor([1., 1., 1., 1., 0.])
    """
    dense = (tensor if tensor.layout == torch.strided else tensor.to_dense() for tensor in tensors)
    return torch.cat([tensor.reshape(-1) for tensor in dense])


def unflatten(theta: Shaped[Tensor, " n"], like: Collection[Tensor]) -> list[Tensor]:
    """Split a vector into views with the shapes of the tensors in `like`.

    >>> unflatten(torch.arange(3.0), [torch.ones(1, 2), torch.ones(1)])
    [tensor([[0., 1.]]), tensor([2.])]
    """
    pieces = theta.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def positions(parameters: Mapping[str, Tensor], names: Sequence[str]) -> Int[Tensor, " m"]:
    """The indices in theta of the elements of the named parameters.

    >>> positions(dict(nn.Linear(2, 1).named_parameters()), ["bias"])
    tensor([2])
    """
    ends = dict(zip(parameters, itertools.accumulate(p.numel() for p in parameters.values()), strict=True))
    device = next(iter(parameters.values())).device
    spans = ((ends[name] - parameters[name].numel(), ends[name]) for name in names)
    return torch.cat([torch.arange(start, end, device=device) for start, end in spans])
