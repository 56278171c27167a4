"""Custom norms and problems, which the tests name as `--norm own_code:Scaled` or `--problem own_code:residual`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import bnsmooth_cli as bns


class Scaled(nn.Module):
    """A norm with a derivative that is not simple and running statistics that respect `update_statistics`."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.register_buffer("seen", torch.zeros(num_features))
        self.update_statistics = True

    def forward(self, y: Tensor) -> Tensor:
        dims = [d for d in range(y.dim()) if d != 1]
        size = y.square().mean(dims).add(0.1).sqrt()
        if self.training and self.update_statistics:
            self.seen.lerp_(size.detach(), 0.1)
        unit = (-1,) + (1,) * (y.dim() - 2)
        return y * (self.gamma / (size if self.training else self.seen.clamp_min(0.1))).view(unit)


class Rectified(nn.Module):
    """BatchNorm with a non-linearity inside, which is no norm."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_features))

    def forward(self, y: Tensor) -> Tensor:
        normalised = F.batch_norm(y, None, None, training=True)
        return F.leaky_relu(normalised * self.gamma.view((-1,) + (1,) * (y.dim() - 2)))


def _images(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, size, size)
    return x, (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0, :4].mean((1, 2)) > 0).long()


def resnet(norm) -> bns.Workload:
    """torchvision's ResNet-18: a residual network, which is no chain of layers, with in-place ReLUs."""
    model = resnet18(num_classes=4, norm_layer=norm)
    return bns.Workload(model, F.cross_entropy, _images(24), _images(12))


class Residual(nn.Module):
    """A residual network that is small enough for its whole Hessian."""

    def __init__(self, norm, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.norm2 = norm(width)
        self.act = nn.SiLU()
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.head(self.act(x).mean((2, 3)))


def residual(norm) -> bns.Workload:
    return bns.Workload(Residual(norm), F.cross_entropy, _images(24, 8), _images(12, 8))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A pre-norm transformer over integer tokens. One parameter belongs to no submodule."""

    def __init__(self, width: int = 8, tokens: int = 6, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(torch.randn(5, width) / 4)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).movedim(-1, 1)


def transformer(norm) -> bns.Workload:
    tokens = torch.randint(6, (24, 5))
    return bns.Workload(Transformer(), F.cross_entropy, (tokens, tokens.roll(1, 1)), (tokens[:8], tokens[:8]))


class Pairs(torch.utils.data.Dataset):
    """A map-style data set whose items are random."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Tensor, float]:
        return torch.full((3,), i / 20) + 0.01 * torch.randn(3), i / 20


def regression(norm) -> bns.Workload:
    model = nn.Sequential(nn.Linear(3, 6), norm(6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    return bns.Workload(model, F.mse_loss, Pairs(), Pairs())


class Odd(nn.Module):
    """Norms in unusual places: called twice, in a sequence with a non-linearity, and after an in-place operation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.twice = nn.LayerNorm(4)
        self.tail = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
        self.late, self.scale = nn.BatchNorm1d(4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.twice(self.b(torch.tanh(self.twice(self.a(input=x)))))
        return self.late(self.d(self.tail(self.c(x))).mul_(2)) * self.scale


def odd(norm) -> bns.Workload:
    return bns.Workload(
        Odd(), F.mse_loss, (torch.randn(24, 3), torch.randn(24, 4)), (torch.ones(3, 3), torch.ones(3, 4))
    )


#: A tensor that a loss keeps a reference to, by mistake.
HELD = torch.zeros(1)
