"""torchvision's ResNet-18 and a small transformer on drawn images: bnsmooth train --problem digits:resnet"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import bnsmooth_cli as bns

Norm = Callable[[int], nn.Module]


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar, whose position is the class."""
    x, y = torch.randn(count, 3, 32, 32), torch.randint(10, (count,))
    for image, label in zip(x, y, strict=True):
        image[:, :, 3 * label : 3 * label + 3] += 1
    return x, y


def resnet(norm: Norm) -> bns.Workload:
    """ResNet-18 with the run's norm in place of its BatchNorm."""
    model = resnet18(num_classes=10, norm_layer=norm)
    return bns.Workload(model, F.cross_entropy, images(1000), images(200))


class Patches(nn.Module):
    """A vision transformer: patches of 8 x 8 as tokens, two blocks, and the mean over the tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.place = nn.Parameter(torch.zeros(16, width))
        block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.blocks(tokens).mean(1))


def transformer(norm: Norm) -> bns.Workload:
    """The transformer with its own LayerNorm, so it is trained with --norm none."""
    return bns.Workload(Patches(), F.cross_entropy, images(1000), images(200))
