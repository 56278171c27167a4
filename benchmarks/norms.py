"""The l_p norms, forward and backward, against their formula and against nn.BatchNorm2d."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Result, agree, faster, medians, row, within
from benchmarks.references import PlainLpNorm
from bnsmooth_cli.norms import build

NAMES = ("l1", "linf", "l2", "lp:3")


@row("norms")
def norms() -> Iterator[Result]:
    """Two shapes, in the layout that the networks use (channels_last)."""
    for shape in ((128, 64, 32, 32), (128, 512, 4, 4)):
        x, g = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
        x.requires_grad_()
        for name in NAMES:
            ours_s = build(name, shape[1])
            modules = (ours_s, PlainLpNorm(shape[1], ours_s.p), nn.BatchNorm2d(shape[1]))

            def both(module: nn.Module) -> tuple[Tensor, ...]:
                return torch.autograd.grad(module(x), [x, *module.parameters()], g)

            agree(both(modules[0])[0], both(modules[1])[0], 1e-5)
            times = medians(*(lambda module=module: both(module) for module in modules), repeats=15)
            case = f"{name}, {' x '.join(map(str, shape))}"
            yield faster("norms", case, "formula in elementary operations", times[0], times[1], 2)
            yield within("norms", case, "nn.BatchNorm2d", times[0], times[2], 1.5)
