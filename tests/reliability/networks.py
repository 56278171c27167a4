"""Small networks of every kind of module, each built from a recipe of names and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from bnsmooth_cli import norms

Recipe = dict[str, Any]
#: A recipe: the seed, the shape of a sample or the embedding, the parts and what is done to each, the loss, the type of
#: the parameters, the mode, further properties (MORE), the backend of torch.compile, what holds several inputs, and the
#: way in: a loop, with or without gradients, or a problem.
DEFAULTS: Recipe = {
    "seed": 0, "input": "flat", "parts": [], "loss": "mse_loss", "type": "float64", "train": True, "more": [],
    "compiled": "", "inputs": "", "way": "loop",
}  # fmt: skip

SAMPLES, WIDTH, TOKENS = 6, 4, 7
#: The shapes of a sample that parts take. All have WIDTH units; these come last in a sequence.
SHAPES = {"flat": (4,), "sequence": (4, 4), "line": (4, 4), "image": (4, 3, 3), "volume": (4, 2, 2, 2)}
TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Part:
    """A module of a network.

    Attributes:
        takes: The shape of a sample that it takes, a key of SHAPES; "any" for all of them.
        make: Makes the module.
        refused: What the message says if the network may be refused for this part.
        draws: Whether it may draw at random, in train mode only ("train") or always ("always").
        scripted: Whether `torch.jit.script` takes it.
    """

    takes: str
    make: Callable[[], nn.Module]
    refused: str = ""
    draws: str = ""
    scripted: bool = True


class Fit(nn.Module):
    """A fixed linear map from samples of any shape to samples of another one."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        size = torch.Size(shape).numel()
        random = torch.Generator().manual_seed(count * 1009 + size)
        self.register_buffer("matrix", torch.randn(count, size, generator=random, dtype=torch.float64) / count**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.to(x.dtype)).unflatten(1, self.shape)


class First(nn.Module):
    """The first value of a module that puts out several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledAttention(nn.Module):
    """Attention by the function alone, with one parameter that belongs to no other module."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.weight, self.causal = nn.Parameter(torch.randn(WIDTH, WIDTH)), causal

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return F.scaled_dot_product_attention(x, y, y, is_causal=self.causal)


class Cell(nn.Module):
    """A recurrent cell over the steps of a sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Pairs(nn.Module):
    """A module of two inputs, called with x and x mirrored."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x, x.flip(-1))
        return y if y.dim() > 1 else y[:, None]


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool1d(2, return_indices=True), nn.MaxUnpool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


class Operation(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Cube(torch.autograd.Function):
    """y = x + x^3 / 8, with a backward pass that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x + x**3 / 8

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 + 3 * x**2 / 8)


class OnceCube(Cube):
    """The same with a backward pass that cannot be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 + 3 * x**2 / 8)


class DetachedCube(Cube):
    """The same with a backward pass whose derivative autograd gets wrong, as it is computed without a graph."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 + 3 * x.detach() ** 2 / 8)


class Grid(nn.Module):
    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode, self.theta = mode, nn.Parameter(torch.tensor([[0.9, 0.1, 0.05], [-0.1, 0.8, 0.02]]))

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode=self.mode, align_corners=False)


class Own(nn.Module):
    """A norm as users write them: `kind` says how."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.gamma, self.beta = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.inner = nn.BatchNorm1d(WIDTH, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gamma * self.inner(x) + self.beta
        return {"relu": F.relu, "gelu": F.gelu, "norm": lambda y: y, "tanh": torch.tanh}[self.kind](y)


class Differentiated(nn.Module):
    """The slope of an energy in the inputs, as of forces."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def _layer(**settings: Any) -> nn.Module:
    values = {"dropout": 0.0, "batch_first": True, **settings}
    return nn.TransformerEncoderLayer(WIDTH, 2, 4, **values)


def _running(module: nn.Module) -> nn.Module:
    """A norm whose running statistics are not at their start."""
    for name, value in module.named_buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if "var" in name else value.normal_()
    return module


_RUNNING = "running_mean|buffer"
_NORM = {
    **{
        f"BatchNorm{d}d": Part(takes, lambda kind=kind: _running(kind(WIDTH)))
        for d, takes, kind in (
            (1, "line", nn.BatchNorm1d), (2, "image", nn.BatchNorm2d), (3, "volume", nn.BatchNorm3d)
        )
    },
    "BatchNorm1d flat": Part("flat", lambda: _running(nn.BatchNorm1d(WIDTH))),
    "BatchNorm1d cumulative": Part("flat", lambda: nn.BatchNorm1d(WIDTH, momentum=None)),
    "BatchNorm1d untracked": Part("flat", lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)),
    "BatchNorm2d without affine": Part("image", lambda: nn.BatchNorm2d(WIDTH, affine=False)),
    "SyncBatchNorm": Part("image", lambda: nn.SyncBatchNorm(WIDTH), "SyncBatchNorm|cannot be computed"),
    "InstanceNorm1d": Part("line", lambda: nn.InstanceNorm1d(WIDTH)),
    "InstanceNorm2d affine": Part("image", lambda: nn.InstanceNorm2d(WIDTH, affine=True)),
    "InstanceNorm3d": Part("volume", lambda: nn.InstanceNorm3d(WIDTH, affine=True)),
    "InstanceNorm2d tracked": Part(
        "image", lambda: _running(nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True)), _RUNNING
    ),
    "GroupNorm": Part("image", lambda: nn.GroupNorm(2, WIDTH)),
    "GroupNorm flat": Part("flat", lambda: nn.GroupNorm(2, WIDTH)),
    "LayerNorm": Part("sequence", lambda: nn.LayerNorm(WIDTH)),
    "LayerNorm flat": Part("flat", lambda: nn.LayerNorm(WIDTH)),
    "LayerNorm of positions": Part("image", lambda: nn.LayerNorm([WIDTH, 3, 3])),
    "RMSNorm": Part("sequence", lambda: nn.RMSNorm(WIDTH)),
    "LocalResponseNorm": Part("image", lambda: nn.LocalResponseNorm(2)),
    "CrossMapLRN2d": Part("image", lambda: nn.CrossMapLRN2d(2), scripted=False),
    "normalize": Part("flat", lambda: Operation(lambda x: F.normalize(x, dim=1)), scripted=False),
    **{f"our {name}": Part("image", lambda name=name: norms.build(name, WIDTH), scripted=False)
       for name in ("batch", "l1", "l2", "linf", "lp:3", "layer", "instance", "rms", "scale")},
    "own norm": Part("flat", lambda: Own("norm"), scripted=False),
    "own norm with ReLU": Part("flat", lambda: Own("relu"), scripted=False),
    "own norm with GELU": Part("flat", lambda: Own("gelu"), scripted=False),
}  # fmt: skip
_ACTIVATION = {
    **{
        kind.__name__: Part("any", kind)
        for kind in (
            nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
            nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.CELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
            nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Identity,
        )
    },
    "GELU tanh": Part("any", lambda: nn.GELU("tanh")),
    "PReLU by unit": Part("image", lambda: nn.PReLU(WIDTH)),
    "RReLU": Part("any", nn.RReLU, draws="train"),
    "Threshold": Part("any", lambda: nn.Threshold(0.1, -0.3)),
    "ReLU in place": Part("any", lambda: nn.ReLU(inplace=True)),
    "SiLU in place": Part("any", lambda: nn.SiLU(inplace=True)),
    "Softmax": Part("any", lambda: nn.Softmax(1)),
    "Softmin": Part("any", lambda: nn.Softmin(1)),
    "LogSoftmax": Part("any", lambda: nn.LogSoftmax(1)),
    "Softmax2d": Part("image", nn.Softmax2d),
    "GLU": Part("any", lambda: nn.GLU(1)),
    "multiply in place": Part("any", lambda: Operation(lambda x: x.clone().mul_(0.7).add_(0.1)), scripted=False),
    "abs": Part("any", lambda: Operation(torch.abs), scripted=False),
    "where": Part("any", lambda: Operation(lambda x: torch.where(x > 0, x, 0.1 * x)), scripted=False),
    "cumsum": Part("any", lambda: Operation(lambda x: torch.cumsum(x, 1)), scripted=False),
    "cumprod": Part("flat", lambda: Operation(lambda x: torch.cumprod(x, 1)), scripted=False),
    "logsumexp": Part("line", lambda: Operation(lambda x: torch.logsumexp(x, 2)), scripted=False),
    "std": Part("line", lambda: Operation(lambda x: x.std(2)), scripted=False),
    "median": Part("line", lambda: Operation(lambda x: x.median(2).values), scripted=False),
    "sort": Part("flat", lambda: Operation(lambda x: x.sort(1).values), scripted=False),
    "cdist": Part("sequence", lambda: Operation(lambda x: torch.cdist(x, x.flip(1) + 0.5)), scripted=False),
    "fft": Part("flat", lambda: Operation(lambda x: torch.fft.rfft(x, dim=1).abs()), scripted=False),
    "einsum": Part("sequence", lambda: Operation(lambda x: torch.einsum("nij,nkj->nik", x, x)), scripted=False),
    "svd": Part("sequence", lambda: Operation(lambda x: torch.linalg.svdvals(x)), scripted=False),
    "Function": Part("any", lambda: Operation(Cube.apply), scripted=False),
    "Function once": Part("any", lambda: Operation(OnceCube.apply), scripted=False),
    "Function detached": Part("any", lambda: Operation(DetachedCube.apply), scripted=False),
    "Dropout of 0": Part("any", lambda: nn.Dropout(0.0)),
    "Dropout": Part("any", nn.Dropout, draws="train"),
    "Dropout1d": Part("line", nn.Dropout1d, draws="train"),
    "Dropout2d": Part("image", nn.Dropout2d, draws="train"),
    "AlphaDropout": Part("any", nn.AlphaDropout, draws="train"),
    "FeatureAlphaDropout": Part("image", nn.FeatureAlphaDropout, draws="train"),
    "noise": Part("any", lambda: Operation(lambda x: x + 0.1 * torch.randn_like(x)), draws="always", scripted=False),
}  # fmt: skip
_POOL = {
    **{
        f"{name}{d}d": Part(takes, lambda name=name, d=d: getattr(nn, f"{name}{d}d")(2))
        for d, takes in ((1, "line"), (2, "image"), (3, "volume"))
        for name in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
    },
    "LPPool1d": Part("line", lambda: nn.Sequential(nn.Softplus(), nn.LPPool1d(2, 2))),
    "LPPool2d": Part("image", lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(3, 2))),
    "MaxUnpool1d": Part("line", Unpooled, scripted=False),
    "FractionalMaxPool2d": Part(
        "image", lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.FractionalMaxPool2d(2, 4)), draws="always"
    ),
    "ReflectionPad1d": Part("line", lambda: nn.ReflectionPad1d(1)),
    "ReflectionPad2d": Part("image", lambda: nn.ReflectionPad2d(1)),
    "ReflectionPad3d": Part("volume", lambda: nn.ReflectionPad3d(1)),
    "ReplicationPad1d": Part("line", lambda: nn.ReplicationPad1d(1)),
    "ReplicationPad2d": Part("image", lambda: nn.ReplicationPad2d(1)),
    "ReplicationPad3d": Part("volume", lambda: nn.ReplicationPad3d(1)),
    "CircularPad1d": Part("line", lambda: nn.CircularPad1d(1)),
    "CircularPad2d": Part("image", lambda: nn.CircularPad2d(1)),
    "ConstantPad2d": Part("image", lambda: nn.ConstantPad2d(1, 0.3)),
    "ZeroPad1d": Part("line", lambda: nn.ZeroPad1d(1)),
    "Upsample nearest": Part("line", lambda: nn.Upsample(scale_factor=2)),
    "Upsample linear": Part("line", lambda: nn.Upsample(scale_factor=2, mode="linear")),
    "Upsample bilinear": Part("image", lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "Upsample bicubic": Part("image", lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "Upsample trilinear": Part("volume", lambda: nn.Upsample(scale_factor=2, mode="trilinear")),
    "PixelShuffle": Part("image", lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": Part("image", lambda: nn.PixelUnshuffle(3)),
    "ChannelShuffle": Part("image", lambda: nn.ChannelShuffle(2)),
    "Flatten": Part("image", nn.Flatten),
    "Unflatten": Part("flat", lambda: nn.Unflatten(1, (2, 2))),
    "Unfold": Part("image", lambda: nn.Unfold(2)),
    "Fold": Part("line", lambda: nn.Fold(3, 2)),
    "grid_sample": Part("image", Grid, scripted=False),
    "CosineSimilarity": Part("line", lambda: Pairs(nn.CosineSimilarity())),
    "PairwiseDistance": Part("flat", lambda: Pairs(nn.PairwiseDistance())),
}
_WEIGHTS = {
    "Linear": Part("flat", lambda: nn.Linear(WIDTH, WIDTH)),
    "Linear without bias": Part("sequence", lambda: nn.Linear(WIDTH, WIDTH, bias=False)),
    "LazyLinear": Part("flat", lambda: nn.LazyLinear(WIDTH), scripted=False),
    "Bilinear": Part("flat", lambda: Pairs(nn.Bilinear(WIDTH, WIDTH, 2))),
    "Conv1d": Part("line", lambda: nn.Conv1d(WIDTH, WIDTH, 2, padding=1)),
    "Conv1d circular": Part("line", lambda: nn.Conv1d(WIDTH, 2, 3, padding=1, padding_mode="circular")),
    "Conv2d": Part("image", lambda: nn.Conv2d(WIDTH, WIDTH, 2)),
    "Conv2d grouped": Part("image", lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding="same", groups=4)),
    "Conv2d dilated": Part("image", lambda: nn.Conv2d(WIDTH, 2, 2, dilation=2, padding_mode="reflect", padding=1)),
    "Conv3d": Part("volume", lambda: nn.Conv3d(WIDTH, 2, 2)),
    "ConvTranspose1d": Part("line", lambda: nn.ConvTranspose1d(WIDTH, 2, 2, stride=2)),
    "ConvTranspose2d": Part("image", lambda: nn.ConvTranspose2d(WIDTH, 4, 2, groups=2)),
    "ConvTranspose3d": Part("volume", lambda: nn.ConvTranspose3d(WIDTH, 2, 2, groups=2)),
    "RNN": Part("sequence", lambda: First(nn.RNN(WIDTH, 3, batch_first=True))),
    "RNN of ReLU": Part("sequence", lambda: First(nn.RNN(WIDTH, 2, 2, nonlinearity="relu", batch_first=True))),
    "LSTM": Part("sequence", lambda: First(nn.LSTM(WIDTH, 2, batch_first=True))),
    "LSTM both ways": Part("sequence", lambda: First(nn.LSTM(WIDTH, 2, bidirectional=True, batch_first=True))),
    "LSTM projected": Part("sequence", lambda: First(nn.LSTM(WIDTH, 3, proj_size=2, batch_first=True))),
    "LSTM with dropout": Part(
        "sequence", lambda: First(nn.LSTM(WIDTH, 2, 2, dropout=0.5, batch_first=True)), draws="train"
    ),
    "GRU": Part("sequence", lambda: First(nn.GRU(WIDTH, 2, batch_first=True))),
    "RNNCell": Part("sequence", lambda: Cell(nn.RNNCell(WIDTH, 3)), scripted=False),
    "LSTMCell": Part("sequence", lambda: Cell(nn.LSTMCell(WIDTH, 2)), scripted=False),
    "GRUCell": Part("sequence", lambda: Cell(nn.GRUCell(WIDTH, 2)), scripted=False),
    "MultiheadAttention": Part("sequence", Attention, scripted=False),
    "MultiheadAttention with dropout": Part("sequence", lambda: Attention(dropout=0.5), draws="train", scripted=False),
    "TransformerEncoderLayer": Part("sequence", _layer, scripted=False),
    "TransformerEncoderLayer first": Part(
        "sequence", lambda: _layer(norm_first=True, activation="gelu"), scripted=False
    ),
    "TransformerEncoderLayer with dropout": Part(
        "sequence", lambda: _layer(dropout=0.2), draws="train", scripted=False
    ),
    "attention": Part("sequence", ScaledAttention, scripted=False),
    "causal attention": Part("sequence", lambda: ScaledAttention(True), scripted=False),
    "forces": Part("flat", Differentiated, scripted=False),
}
PARTS = {**_NORM, **_ACTIVATION, **_POOL, **_WEIGHTS}

#: Modules from integers (SAMPLES, 3) to samples.
EMBEDDINGS: dict[str, Callable[[], nn.Module]] = {
    "Embedding": lambda: nn.Embedding(TOKENS, WIDTH),
    "Embedding with padding": lambda: nn.Embedding(TOKENS, WIDTH, padding_idx=2),
    "Embedding scaled": lambda: nn.Embedding(TOKENS, WIDTH, scale_grad_by_freq=True),
    "Embedding sparse": lambda: nn.Embedding(TOKENS, WIDTH, sparse=True),
    "Embedding bounded": lambda: nn.Embedding(TOKENS, WIDTH, max_norm=0.5),
    "EmbeddingBag mean": lambda: nn.EmbeddingBag(TOKENS, WIDTH, mode="mean"),
    "EmbeddingBag sum": lambda: nn.EmbeddingBag(TOKENS, WIDTH, mode="sum"),
    "EmbeddingBag max": lambda: nn.EmbeddingBag(TOKENS, WIDTH, mode="max"),
    "EmbeddingBag sparse": lambda: nn.EmbeddingBag(TOKENS, WIDTH, mode="sum", sparse=True),
}
#: What the message says if such a network may be refused.
REFUSED_EMBEDDINGS = {"Embedding bounded": "max_norm", "Embedding scaled": "scale_grad_by_freq"}


class Curved(nn.Module):
    """A parametrisation of the user's: W = A + A^3 / 4."""

    def forward(self, a: Tensor) -> Tensor:
        return a + a**3 / 4


class Wrapped(nn.Module):
    """A module that is called in one of WAYS."""

    def __init__(self, module: nn.Module, way: str) -> None:
        super().__init__()
        self.module, self.way = module, way

    def forward(self, x: Tensor) -> Tensor:
        return WAYS[self.way](self.module, x)


class Checkpointed(nn.Module):
    """A module whose activations are computed again in the backward pass; with `plain`, they are kept."""

    def __init__(self, module: nn.Module, way: str, plain: bool) -> None:
        super().__init__()
        self.module, self.way, self.plain = module, way, plain

    def forward(self, x: Tensor) -> Tensor:
        function = (lambda x: torch.tanh(self.module(x))) if "function" in self.way else self.module
        if self.plain:
            return function(x)
        reentrant = "reentry" in self.way
        if reentrant and not x.requires_grad:  # otherwise it gives no gradients
            x = x.detach().requires_grad_()
        return checkpoint(function, x, use_reentrant=reentrant)


#: How a part may be called.
WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "residual": lambda module, x: x + y if (y := module(x)).shape == x.shape else y,
    "twice": lambda module, x: module(y) if (y := module(x)).shape == x.shape else y,
    "twice apart": lambda module, x: module(x) * module(x.tanh()),
    "without grad": lambda module, x: _without_grad(module, x),
    "detached": lambda module, x: module(x).detach() + x.mean(),
    "tuple": lambda module, x: (x, [module(x)])[1][0],
}


def _without_grad(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


_CHECKPOINTS = ("checkpoint", "checkpoint with reentry", "checkpointed function")
_CHANGED = "checkpoint|recomput"


def _weight(module: nn.Module, change: Callable[[nn.Module, str], object]) -> nn.Module:
    """Apply a change to the first weight matrix of a module, if it has one."""
    for inner in [*module.modules()]:
        for name, value in [*inner.named_parameters(recurse=False)]:
            if value.dim() > 1 and not isinstance(value, nn.parameter.UninitializedParameter):
                change(inner, name)
                return module
    return module


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, inputs, output: torch.sin(output) if isinstance(output, Tensor) else None)
    return module


def _hooked_before(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 1.2 + 0.1, *inputs[1:]))
    return module


def _hooked_backward(module: nn.Module) -> nn.Module:
    module.register_full_backward_hook(lambda m, inputs, outputs: None)
    return module


#: How a part may be changed.
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": lambda m: _weight(m, parametrizations.weight_norm),
    "old weight_norm": lambda m: _weight(m, nn.utils.weight_norm),
    "weight_norm of all": lambda m: _weight(m, lambda inner, name: parametrizations.weight_norm(inner, name, dim=None)),
    "spectral_norm": lambda m: _weight(m, parametrizations.spectral_norm),
    "old spectral_norm": lambda m: _weight(m, nn.utils.spectral_norm),
    "orthogonal": lambda m: _weight(m, parametrizations.orthogonal),
    "pruned": lambda m: _weight(m, lambda inner, name: prune.l1_unstructured(inner, name, 0.3)),
    "pruned by unit": lambda m: _weight(m, lambda inner, name: prune.ln_structured(inner, name, 0.3, 2, 0)),
    "parametrised": lambda m: _weight(m, lambda i, name: parametrize.register_parametrization(i, name, Curved())),
    "frozen": _frozen,
    "hooked": _hooked,
    "hooked before": _hooked_before,
    "hooked backward": _hooked_backward,
}
#: The changes that a network in train mode must be refused for, as a forward pass changes a buffer.
_POWER = ("spectral_norm", "old spectral_norm")
TWISTS = ["", *WAYS, *_CHECKPOINTS, *CHANGES]
RARE_TWISTS = ["scripted", "compiled"]


def _targets(kind: str, random: torch.Generator) -> Tensor:
    draws = torch.randn(SAMPLES, 3, generator=random, dtype=torch.float64)
    if kind == "classes":
        return torch.randint(3, (SAMPLES,), generator=random)
    if kind == "labels":
        return torch.randint(1, 3, (SAMPLES, 2), generator=random)
    if kind == "signs":
        return draws.sign()
    if kind == "sign":
        return draws[:, 0].sign()
    if kind == "bits":
        return (draws > 0).double()
    if kind == "shares":
        return draws.softmax(1)
    if kind == "sets":
        return torch.stack([torch.randperm(3, generator=random) for _ in range(SAMPLES)])
    return draws.abs() if kind == "positive" else draws


def _ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = outputs.unflatten(1, (4, 3)).log_softmax(-1).transpose(0, 1)
    lengths = torch.full((len(outputs),), 4), torch.full((len(outputs),), 2)
    return F.ctc_loss(scores, targets, *lengths)


def _triples(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.triplet_margin_loss(outputs, outputs.roll(1, 0).sin(), targets, margin=3.0)


#: Name -> the number of outputs, the kind of targets, and the loss.
LOSSES: dict[str, tuple[int, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": (3, "classes", F.cross_entropy),
    "cross_entropy smoothed": (3, "classes", lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1)),
    "cross_entropy of shares": (3, "shares", F.cross_entropy),
    "cross_entropy weighted": (3, "classes", lambda o, t: F.cross_entropy(o, t, o.new_tensor([1.0, 2.0, 0.5]))),
    "cross_entropy ignoring": (3, "classes", lambda o, t: F.cross_entropy(o, t, ignore_index=1, reduction="sum")),
    "nll_loss": (3, "classes", lambda o, t: F.nll_loss(o.log_softmax(1), t)),
    "mse_loss": (3, "real", F.mse_loss),
    "squared sum": (3, "real", lambda o, t: (o - t).square().sum()),
    "l1_loss": (3, "real", F.l1_loss),
    "huber_loss": (3, "real", F.huber_loss),
    "smooth_l1_loss": (3, "real", F.smooth_l1_loss),
    "bce_with_logits": (3, "bits", F.binary_cross_entropy_with_logits),
    "bce": (3, "bits", lambda o, t: F.binary_cross_entropy(o.sigmoid(), t)),
    "kl_div": (3, "shares", lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean")),
    "ctc_loss": (12, "labels", _ctc),
    "cosine_embedding_loss": (3, "sign", lambda o, t: F.cosine_embedding_loss(o, o.roll(1, 0).sin(), t, margin=0.2)),
    "triplet_margin_loss": (3, "real", _triples),
    "margin_ranking_loss": (3, "sign", lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t, margin=1.0)),
    "hinge_embedding_loss": (3, "signs", lambda o, t: F.hinge_embedding_loss(o.square(), t)),
    "soft_margin_loss": (3, "signs", F.soft_margin_loss),
    "multi_margin_loss": (3, "classes", F.multi_margin_loss),
    "multilabel_margin_loss": (3, "sets", F.multilabel_margin_loss),
    "multilabel_soft_margin_loss": (3, "bits", F.multilabel_soft_margin_loss),
    "poisson_nll_loss": (3, "positive", F.poisson_nll_loss),
    "gaussian_nll_loss": (3, "real", lambda o, t: F.gaussian_nll_loss(o, t, F.softplus(o.flip(1)) + 0.5)),
    "gradient penalty": (3, "real", lambda o, t: F.mse_loss(o, t) + 0.1 * o.square().mean().sqrt()),
}


class Network(nn.Module):
    """A sequence of parts, and what else the recipe asks for (`more`, some of MORE)."""

    def __init__(self, body: nn.Sequential, head: nn.Module, more: list[str]) -> None:
        super().__init__()
        self.body, self.head, self.more = body, head, more
        if "unused" in more:
            self.spare = nn.Linear(2, 2)
        if "called and unused" in more:
            self.aside = nn.Linear(WIDTH, 2)
        if "tied" in more:
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.second.weight = self.first.weight
        if "own parameter" in more:
            self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if "called and unused" in self.more:
            self.aside(x)
        if "tied" in self.more:
            x = self.second(torch.tanh(self.first(x)))
        if "own parameter" in self.more:
            x = x * self.scale
        return self.head(x)


class Several(nn.Module):
    """A network of two inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.model(x) * scale


#: Inputs: a tensor, or several in a tuple or a dict.
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def call(model: nn.Module, x: Inputs) -> Tensor:
    """The outputs of a network."""
    if isinstance(x, tuple | list):
        return model(*x)
    return model(**x) if isinstance(x, dict) else model(x)


MORE = ["unused", "called and unused", "tied", "own parameter"]


def build(recipe: Recipe, plain: bool = False) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Inputs, Tensor]:
    """The model, the loss of outputs and targets, the inputs and the targets of a recipe.

    Args:
        recipe: The recipe.
        plain: In float64, without recomputation, compilers and scripts: what the numbers are compared with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        random = torch.Generator().manual_seed(recipe["seed"])
        if recipe["input"] in EMBEDDINGS:
            x = torch.randint(TOKENS, (SAMPLES, 3), generator=random)
        else:
            x = torch.randn(SAMPLES, *SHAPES[recipe["input"]], generator=random, dtype=torch.float64)
        outputs, kind, loss = LOSSES[recipe["loss"]]
        head: nn.Module = nn.Linear(WIDTH, outputs)
        if recipe["type"] == "mixed":
            head = Cast(head)
        model: nn.Module = Network(_body(recipe, x, plain), head, recipe["more"]).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=random, dtype=p.dtype), alpha=0.2)
        model.train(recipe["train"])
        y = _targets(kind, random)
        scale = torch.rand(SAMPLES, 1, generator=random, dtype=torch.float64) + 0.5
        if recipe["inputs"]:
            model = Several(model)
        if not plain:
            model, x, y = _converted(model, x, y, recipe["type"])
            if recipe["compiled"]:
                torch._dynamo.reset()
                model = torch.compile(model, backend=recipe["compiled"])
        scale = scale.to(next(model.parameters()).dtype)
        given: Inputs = {"": x, "tuple": (x, scale), "dict": {"x": x, "scale": scale}}[recipe["inputs"]]
        return model, loss, given, y


def _body(recipe: Recipe, x: Tensor, plain: bool) -> nn.Sequential:
    """The parts in order, with a `Fit` before each that takes samples of another shape than it gets."""
    modules: list[nn.Module] = []

    def add(module: nn.Module) -> None:
        nonlocal x
        modules.append(module)
        x = module(x).detach()

    if recipe["input"] in EMBEDDINGS:
        add(EMBEDDINGS[recipe["input"]]().double())
    for name, twist in recipe["parts"]:
        part, shape = PARTS[name], tuple(x.shape[1:])
        wanted = SHAPES["flat"] if part.takes == "any" else SHAPES[part.takes]
        fits = shape in SHAPES.values() if part.takes == "any" else shape == wanted
        if not fits or ("in place" in name and not modules):  # the data themselves must not change
            add(Fit(x[0].numel(), wanted))
        module = part.make().double()
        module(x.clone())  # initialises lazy parameters
        add(_twisted(module, part, twist, plain))
    if tuple(x.shape[1:]) != SHAPES["flat"]:
        add(Fit(x[0].numel(), SHAPES["flat"]))
    return nn.Sequential(*modules)


def _twisted(module: nn.Module, part: Part, twist: str, plain: bool) -> nn.Module:
    if twist in CHANGES:
        return CHANGES[twist](module)
    if twist in _CHECKPOINTS:
        return Checkpointed(module, twist, plain)
    if twist == "scripted":
        return module if plain or not part.scripted else torch.jit.script(module)
    if twist == "compiled":
        return module if plain else torch.compile(module, backend="aot_eager")
    return Wrapped(module, twist) if twist else module


def _converted(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype) if values.is_floating_point() else values

    if kind == "mixed":
        model = model.float()
        (model.model if isinstance(model, Several) else model).head.bfloat16()
        return model, cast(x, torch.float32), cast(y, torch.float32)
    dtype = TYPES[kind]
    return model.to(dtype), cast(x, dtype), cast(y, dtype)


class Cast(nn.Module):
    """A module in bfloat16 within a network in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.to(next(self.module.parameters()).dtype)).to(x.dtype)


def refusals(recipe: Recipe) -> str:
    """What the message must match if the network of a recipe is refused; empty if there is no reason."""
    reasons = [REFUSED_EMBEDDINGS.get(recipe["input"], ""), "inference" if recipe["way"] == "inference" else ""]
    for name, twist in recipe["parts"]:
        part = PARTS[name]
        reasons += [part.refused, _CHANGED if twist in _CHECKPOINTS else ""]
        if part.draws == "always" or (part.draws and recipe["train"]):
            reasons.append("gives another output each time")
        if recipe["train"] and (twist in _POWER or (twist == "scripted" and "BatchNorm" in name)):
            reasons.append("buffer")
    return "|".join(dict.fromkeys(reason for reason in reasons if reason))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes, most of them of one to four parts in float64."""

    def chance(percent: int) -> bool:
        return draw(st.integers(0, 99)) >= 100 - percent

    parts = []
    for _ in range(draw(st.integers(1, 4))):
        twist = draw(st.sampled_from(TWISTS)) if chance(35) else ""
        twist = draw(st.sampled_from(RARE_TWISTS)) if chance(2) else twist
        parts.append([draw(st.sampled_from([*draw(st.sampled_from([_NORM, _ACTIVATION, _POOL, _WEIGHTS]))])), twist])
    return {
        "seed": draw(st.integers(0, 999)),
        "input": draw(st.sampled_from([*EMBEDDINGS])) if chance(15) else draw(st.sampled_from([*SHAPES])),
        "parts": parts,
        "loss": draw(st.sampled_from([*LOSSES])),
        "type": draw(st.sampled_from([*TYPES, "float32", "mixed"])) if chance(25) else "float64",
        "train": not chance(25),
        "more": [draw(st.sampled_from(MORE))] if chance(30) else [],
        "compiled": draw(st.sampled_from(["eager", "aot_eager"])) if chance(2) else "",
        "inputs": draw(st.sampled_from(["tuple", "dict"])) if chance(10) else "",
        "way": draw(st.sampled_from(["problem", "problem", "no_grad", "inference"])) if chance(25) else "loop",
    }  # fmt: skip
