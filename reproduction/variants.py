"""Variants of the quarter-width VGG-A on CIFAR-10, each with one change, for docs/reproduction/differences.md.

`CIFAR10=path/to/cifar10 bnsmooth compare --problem reproduction.variants:he ...`; without CIFAR10 it is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli.data.images import Images, load
from bnsmooth_cli.problems.vgg import CHANNELS, STAGES

Norm = Callable[[int], nn.Module]


class Standardised(nn.Sequential):
    """A network that first standardises its images, which are passed to it as stored."""

    mean: Tensor
    std: Tensor

    def __init__(self, images: Images, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.register_buffer("mean", images.mean.view(1, -1, 1, 1))
        self.register_buffer("std", images.std.view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in uint8 to the scores of the classes."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return super().forward((floats / 255 - self.mean) / self.std)


def glorot(norm: Norm) -> bns.Workload:
    """Initialised like bnsmooth's VGG: Glorot's uniform weights, zero biases."""
    return _workload(norm, nn.init.xavier_uniform_)


def he(norm: Norm) -> bns.Workload:
    """He et al. (2015): normal weights of variance 2 / fan_out, as torchvision's VGG has them; zero biases."""
    return _workload(norm, lambda weight: nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"))


def default(norm: Norm) -> bns.Workload:
    """PyTorch's default: uniform weights and biases within 1 / sqrt(fan_in)."""
    return _workload(norm, None)


def shallow(norm: Norm) -> bns.Workload:
    """One linear layer after the convolutions instead of three; initialised like bnsmooth's VGG."""
    return _workload(norm, nn.init.xavier_uniform_, hidden=0)


def _workload(norm: Norm, initialise: Callable[[Tensor], object] | None, hidden: int = 2) -> bns.Workload:
    images = load(os.environ.get("CIFAR10", "cifar10"))
    modules: list[nn.Module] = []
    channels = 3
    for convolutions, full in zip(STAGES[11], CHANNELS, strict=True):
        for _ in range(convolutions):
            modules += [nn.Conv2d(channels, full // 4, 3, padding=1), norm(full // 4), nn.ReLU()]
            channels = full // 4
        modules.append(nn.MaxPool2d(2))
    modules.append(nn.Flatten())
    for _ in range(hidden):
        modules += [nn.Linear(channels, channels), norm(channels), nn.ReLU()]
    modules.append(nn.Linear(channels, images.num_classes))
    for module in modules:
        if initialise is not None and isinstance(module, nn.Conv2d | nn.Linear):
            initialise(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    model = Standardised(images, *modules).to(memory_format=torch.channels_last)
    return bns.Workload(model, F.cross_entropy, (images.train, images.train_labels), (images.test, images.test_labels))
