"""Which settings give the first points of the paper's figures: hypotheses, measured at the start of training.

`python -m reproduction.first_step --data path/to/cifar10` measures every variant below at full size and writes the
tables in docs/paper/ and in docs/paper.md. No setting is chosen by training to the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bnsmooth_cli import norms, paper
from bnsmooth_cli.data.images import Images, load
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.presets import PROBLEMS
from bnsmooth_cli.problems.vgg import CHANNELS, STAGES
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.storage.tables import read_table
from reproduction import saturation
from reproduction.scales import LP, PLAIN

PAGE: Final = Path(__file__).parents[1] / "docs/paper.md"
#: The steps at which the training loss of the linear network is compared.
STEPS: Final = (0, 50, 100, 200, 500)
SAMPLES, UNITS = 1_000, 10
#: What is measured on the line along the gradient -> the column of `smoothness` that holds the paper's value.
LINE: Final = {
    "least loss": "loss_min",
    "largest loss": "loss_max",
    "least difference": "predictiveness_min",
    "largest difference": "predictiveness_max",
    "beta": "beta",
}
#: Norm -> the number of updates before the first loss that a figure shows: 3b shows none and batch, 12a the l_p norms.
FIRST: Final = {"none": 0, "batch": 0}
#: Parameters, or their gradients, by name. The first dimension is the seed where a module holds several networks.
Values = Mapping[str, Tensor]
#: Inputs and targets.
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Linear:
    """A hypothesis about the deep linear network.

    Attributes:
        name: Its name in the table.
        norms: The norms to measure it with.
        matrix: The distribution of A's entries: "uniform" on [0, 1), or "normal".
        inputs: The distribution of the entries of x.
        scale: The factor before the sum of squared errors.
        last: Whether the norm also follows the last layer.
        depth: The number of layers.
    """

    name: str
    norms: tuple[str, ...] = PLAIN
    matrix: str = "uniform"
    inputs: str = "normal"
    scale: float = 1.0
    last: bool = False
    depth: int = 25


@dataclass(frozen=True)
class Vgg:
    """A hypothesis about the VGG network.

    Attributes:
        name: Its name in the table.
        norms: The norms to measure it with.
        depth: The number of weight layers of the VGG with two hidden linear layers.
        classifier: The widths of the hidden linear layers.
        inputs: "centred" (0 to 255, less each channel's mean), "unit" (the same, divided by 255) or "standard" (mean 0
            and deviation 1).
        penalty: The c of the penalty c ||W||^2 / 2 of the weights, which is part of the loss.
        normalised: What the norm follows besides the convolutions: the "hidden" linear layers, the "logits".
        relu_first: Whether the non-linearity comes before the norm.
    """

    name: str
    norms: tuple[str, ...] = ("batch",)
    depth: int = 16
    classifier: tuple[int, ...] = (4096, 4096)
    inputs: str = "centred"
    penalty: float = 4.5e-4
    normalised: tuple[str, ...] = ("hidden", "logits")
    relu_first: bool = False


#: Each variant of a problem differs from the first one in what its name says.
LINEAR: Final = (
    Linear("A uniform, no norm after the last layer", LP),
    Linear("a norm after the last layer too", LP[1:], last=True),
    Linear("A normal", matrix="normal"),
    Linear("A normal, a norm after the last layer too", ("batch",), matrix="normal", last=True),
    Linear("A normal, half the sum", matrix="normal", scale=0.5),
    Linear("A normal, x uniform", matrix="normal", inputs="uniform"),
    Linear("x uniform too, half the sum", inputs="uniform", scale=0.5),
    Linear("24 layers", depth=24),
)
VGG: Final = (
    Vgg("VGG-16, classifier 4096,4096, centred inputs", ("none",)),
    Vgg("inputs centred and divided by 255", ("none",), inputs="unit"),
    Vgg("standardised inputs", ("none",), inputs="standard"),
    Vgg("VGG-13", ("none",), depth=13),
    Vgg("BatchNorm after every layer, the logits included", LP[1:]),
    Vgg("BatchNorm after every layer but the last", normalised=("hidden",)),
    Vgg("BatchNorm after the ReLU, and after the logits", relu_first=True),
)


class LinearNetworks(nn.Module):
    """Deep linear networks of several seeds, each with its own data, in one pass.

    Their units stand side by side: a layer is one block-diagonal matrix, and a norm takes each unit on its own.
    """

    def __init__(self, variant: Linear, norm: str, seeds: Sequence[int]) -> None:
        super().__init__()
        self.seeds, self.scale = len(seeds), variant.scale
        data = [generator(seed, "data") for seed in seeds]
        inputs = [_draw(variant.inputs, SAMPLES, random) for random in data]
        matrices = [_draw(variant.matrix, UNITS, random) for random in data]
        self.batch = torch.stack(inputs, 1), torch.stack([x @ a.T for x, a in zip(inputs, matrices, strict=True)], 1)
        initial = [generator(seed, "init") for seed in seeds]
        bound = (3 / UNITS) ** 0.5  # Glorot's for as many inputs as outputs
        self.weights = nn.ParameterList(
            torch.stack([torch.rand(UNITS, UNITS, generator=random) for random in initial]) * 2 * bound - bound
            for _ in range(variant.depth)
        )
        self.norms = nn.ModuleList(
            norms.build(norm, len(seeds) * UNITS) if variant.last or i < variant.depth - 1 else nn.Identity()
            for i in range(variant.depth)
        )

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every network, from inputs and targets (samples, seeds, units)."""
        h = inputs.flatten(1)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = norm(F.linear(h, torch.block_diag(*weight)))
        return self.scale * (h.view_as(targets) - targets).square().sum((0, 2))


class VggNetwork(nn.Module):
    """A VGG with the penalty in its loss."""

    seeds = 1

    def __init__(self, variant: Vgg, norm: str, seed: int, classes: int = 10) -> None:
        super().__init__()
        self.penalty = variant.penalty
        build: Callable[[int], nn.Module] = lambda units: norms.build(norm, units)  # noqa: E731
        modules: list[nn.Module] = []
        size = 3

        def activated(normalised: bool) -> list[nn.Module]:
            steps = [*([build(size)] if normalised else []), nn.ReLU()]
            return steps[::-1] if variant.relu_first else steps

        for convolutions, channels in zip(STAGES[variant.depth], CHANNELS, strict=True):
            for _ in range(convolutions):
                modules.append(nn.Conv2d(size, channels, 3, padding=1))
                size = channels
                modules += activated(True)
            modules.append(nn.MaxPool2d(2))
        modules.append(nn.Flatten())
        for width in variant.classifier:
            modules.append(nn.Linear(size, width))
            size = width
            modules += activated("hidden" in variant.normalised)
        modules.append(nn.Linear(size, classes))
        if "logits" in variant.normalised:
            modules.append(build(classes))
        random = generator(seed, "init")
        for module in modules:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=random)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.layers = nn.Sequential(*modules).to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss (1,): the mean cross-entropy and the penalty of the weights, without biases, gamma and beta."""
        weights = [module.weight for module in self.layers if isinstance(module, nn.Conv2d | nn.Linear)]
        penalty = torch.stack([weight.square().sum() for weight in weights]).sum()
        return (F.cross_entropy(self.layers(inputs), targets) + self.penalty / 2 * penalty)[None]


Network = LinearNetworks | VggNetwork


def _draw(distribution: str, rows: int, random: torch.Generator) -> Tensor:
    draw = {"normal": torch.randn, "uniform": torch.rand}[distribution]
    return draw(rows, UNITS, generator=random)


def gradients(network: Network, values: Values, batch: Batch) -> tuple[Float[Tensor, " seeds"], dict[str, Tensor]]:
    """The loss of every network at these parameters, and its gradient."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    losses = functional_call(network, leaves, batch)
    return losses.detach(), dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))


def descend(values: Values, slopes: Values, step: float) -> dict[str, Tensor]:
    """theta - step * g."""
    return {name: torch.sub(value, slopes[name], alpha=step) for name, value in values.items()}


def length(values: Values, seeds: int, summed: bool = True) -> Float[Tensor, " seeds"]:
    r"""The length of a gradient: $\sum_i \|g_i\|$ over the tensors of a network, or $\|g\|$ of all together."""
    lengths = torch.stack([torch.linalg.vector_norm(value.reshape(seeds, -1), dim=1) for value in values.values()])
    return lengths.sum(0) if summed else torch.linalg.vector_norm(lengths, dim=0)


def line(
    network: Network,
    values: Values,
    start: Values,
    batch: Batch,
    lr: float,
    alphas: Sequence[float],
    summed: bool = True,
) -> dict[str, Float[Tensor, " seeds"]]:
    """The numbers of `LINE` for every network: figures 4 and 9 at one step.

    Args:
        network: The networks.
        values: Their parameters.
        start: The gradient there.
        batch: The batch.
        lr: The learning rate.
        alphas: The step lengths in learning rates.
        summed: Whether a gradient's length is the sum over its tensors (`length`).
    """
    losses, differences, ratios = [], [], []
    for alpha in alphas:
        loss, there = gradients(network, descend(values, start, alpha * lr), batch)
        moved = {name: start[name] - there[name] for name in start}
        losses.append(loss)
        differences.append(length(moved, network.seeds, summed))
        ratios.append(differences[-1] / (alpha * lr * length(start, network.seeds, summed)))
    loss, difference, ratio = map(torch.stack, (losses, differences, ratios))
    measured = (loss.amin(0), loss.amax(0), difference.amin(0), difference.amax(0), ratio.amax(0))
    return dict(zip(LINE, measured, strict=True))


def linear(variants: Sequence[Linear] = LINEAR, seeds: Sequence[int] = range(8)) -> Iterator[dict[str, Any]]:
    """Rows of the table: the losses of the first 500 steps, and the line after the first update."""
    entry = PROBLEMS["dln"]
    for variant in variants:
        for norm in variant.norms:
            for lr in (1e-6, 1e-7) if norm in PLAIN else (1e-6,):
                known, shown = paper.rows("train", "dln", norm, lr), paper.rows("smoothness", "dln", norm, lr)
                network = LinearNetworks(variant, norm, seeds)
                values: Values = dict(network.named_parameters())
                first = FIRST.get(norm, 1)
                for step in range(first + max(STEPS) + 1):
                    numbers = {}
                    losses, slopes = gradients(network, values, network.batch)
                    if step == 1 and len(shown):
                        measured = line(network, values, slopes, network.batch, lr, entry.alphas)
                        numbers = {name: (found, _at(shown, LINE[name], 0)) for name, found in measured.items()}
                    if step - first in STEPS:
                        numbers[f"loss at step {step - first}"] = losses, _at(known, "loss", step - first)
                    for name, (found, stated) in numbers.items():
                        for seed, value in zip(seeds, found.tolist(), strict=True):
                            yield {"variant": variant.name, "norm": norm, "lr": lr, "seed": seed, "updates": step,
                                   "quantity": name, "value": value, "paper": stated}  # fmt: skip
                    values = descend(values, slopes, lr)


def vgg(data: str, variants: Sequence[Vgg] = VGG, seeds: Sequence[int] = (1, 2, 3)) -> Iterator[dict[str, Any]]:
    """Rows of the table: the line at step 0, and after the first update on the next batch.

    Args:
        data: CIFAR-10, as `bnsmooth train --data` takes it.
        variants: The hypotheses.
        seeds: The seeds of initialisation and data order.
    """
    entry, lr = PROBLEMS["vgg"], 0.1
    images = load(data)
    for variant in variants:
        for norm in variant.norms:
            shown = paper.rows("smoothness", "vgg", norm, lr)
            for seed in seeds:
                network = VggNetwork(variant, norm, seed)
                values: Values = dict(network.named_parameters())
                for updates in (0, 1):
                    batch = _batch(images, seed, updates, variant.inputs)
                    _, slopes = gradients(network, values, batch)
                    for name, measured in line(network, values, slopes, batch, lr, entry.alphas).items():
                        yield {"variant": variant.name, "norm": norm, "lr": lr, "seed": seed, "updates": updates,
                               "quantity": name, "value": measured.item(),
                               "paper": _at(shown, LINE[name], 0)}  # fmt: skip
                    values = descend(values, slopes, lr)


def _at(rows: pd.DataFrame, column: str, step: int) -> float:
    return float(rows.loc[rows["step"] == step, column].item())


def _batch(images: Images, seed: int, step: int, inputs: str) -> Batch:
    """The batch that a run with this seed trains on at this step."""
    size = 128
    chosen = torch.randperm(len(images.train), generator=generator(seed, "order", 0))[step * size : (step + 1) * size]
    unit = (1, -1, 1, 1)
    pixels = images.train[chosen].float().to(memory_format=torch.channels_last) - 255 * images.mean.view(unit)
    divisor = {"centred": torch.tensor(1.0), "unit": torch.tensor(255.0), "standard": 255 * images.std.view(unit)}
    return pixels / divisor[inputs], images.train_labels[chosen]


def linear_tables(rows: pd.DataFrame) -> str:
    """The tables of the linear network in Markdown: all variants, and the first two in detail."""
    runs = list(rows[["norm", "lr"]].drop_duplicates().itertuples(index=False, name=None))
    heads = [f"`{norm}`, {lr:.0e}".replace("e-0", "e-") for norm, lr in runs]
    lines = [_row("variant", *heads), _row(*["---"] * (len(heads) + 1))]
    for variant in rows["variant"].unique():
        cells = [_agreement(rows[(rows[["variant", "norm", "lr"]] == [variant, *run]).all(axis=1)]) for run in runs]
        lines.append(_row(variant, *cells))
    for quantities in ([f"loss at step {step}" for step in STEPS], [*LINE]):
        lines += ["", _row("run", "", *quantities), _row(*["---"] * (len(quantities) + 2))]
        for run, head in zip(runs, heads, strict=True):
            one = rows[(rows[["norm", "lr"]] == [*run]).all(axis=1) & rows["quantity"].isin(quantities)]
            if one.empty:
                continue
            stated = one.drop_duplicates("quantity").set_index("quantity")["paper"]
            lines.append(_row(head, "paper", *(_number(stated[name]) for name in quantities)))
            for variant in rows["variant"].unique()[:2]:
                if len(part := one[one["variant"] == variant]):
                    lines.append(_row("", variant, *(_range(part, name) for name in quantities)))
    return "\n".join(lines)


def vgg_tables(rows: pd.DataFrame) -> str:
    """The tables of VGG in Markdown: one for each norm, a row for each variant and number of updates."""
    lines: list[str] = []
    for norm in rows["norm"].unique():
        one = rows[rows["norm"] == norm]
        lines += ["", _row(f"`{norm}`", "updates", *LINE), _row(*["---"] * (len(LINE) + 2))]
        series = [
            (str(updates), one.query("variant == @variant and updates == @updates"), variant)
            for variant in one["variant"].unique()
            for updates in (0, 1)
        ]
        lines.append(
            _row("the paper", "", *(_number(one.query("quantity == @name")["paper"].iloc[0]) for name in LINE))
        )
        lines += [_row(variant, updates, *(_range(part, name) for name in LINE)) for updates, part, variant in series]
    return "\n".join(lines[1:])


def ranks(draws: int = 1_000) -> str:
    r"""The plateaus of the linear network in Markdown.

    A linear map of rank k has at least the loss $1000 \sum_{i>k} s_i^2$, with s the singular values of A. Each cell is
    the median over draws of A, and the range of the middle 90%.
    """
    lines = [_row("A", *(f"rank {k}" for k in range(UNITS))), _row(*["---"] * (UNITS + 1))]
    for name, matrix, scale in (
        ("uniform", "uniform", 1.0),
        ("normal", "normal", 1.0),
        ("normal, half", "normal", 0.5),
    ):
        random = generator(0, "data")
        matrices = torch.stack([_draw(matrix, UNITS, random) for _ in range(draws)])
        squares = scale * SAMPLES * torch.linalg.svdvals(matrices).square()
        losses = squares.flip(1).cumsum(1).flip(1)
        quantiles = losses.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0).T.tolist()
        lines.append(
            _row(name, *(f"{_number(mid)} ({_number(low)} to {_number(high)})" for low, mid, high in quantiles))
        )
    return "\n".join(lines)


def _agreement(rows: pd.DataFrame) -> str:
    """How many of the paper's numbers lie in the range of the seeds, and the mean factor to the medians."""
    if rows.empty:
        return ""
    values = rows.groupby("quantity").agg(
        low=("value", "min"), middle=("value", "median"), high=("value", "max"), paper=("paper", "first")
    )
    inside = ((values["low"] <= values["paper"]) & (values["paper"] <= values["high"])).sum()
    factor = 10 ** np.abs(np.log10(values["middle"] / values["paper"])).mean()
    return f"{inside} of {len(values)}, × {_number(factor)}"


def _range(rows: pd.DataFrame, quantity: str) -> str:
    values = rows.query("quantity == @quantity")["value"]
    return f"{_number(values.min())} to {_number(values.max())}"


def _number(value: float) -> str:
    if 1_000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.2f}" if 1 <= abs(value) < 10 else f"{value:.3g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


MEASURED: Final = ("dln", "vgg")


def table(problem: str) -> Path:
    """The file of a problem's table."""
    return PAGE.parent / f"paper/first-step-{problem}.parquet"


def page(text: str) -> str:
    """The text of docs/paper.md with the tables of the files between its markers."""
    linear_rows, rows = (pd.read_parquet(table(problem)) for problem in MEASURED)
    plain = rows["norm"] == "none"
    probed, smooth = (
        read_table(PAGE.parent / f"paper/beta-{kind}.parquet", kind) for kind in ("landscape", "smoothness")
    )
    beta = [saturation.HEADINGS, ["---"] * len(saturation.HEADINGS), *saturation.rows(probed, smooth)]
    parts = {
        "beta": "\n".join(_row(*cells) for cells in beta),
        "dln": linear_tables(linear_rows),
        "ranks": ranks(),
        "vgg": vgg_tables(rows[plain]),
        "norms": vgg_tables(rows[~plain]),
    }
    for name, markdown in parts.items():
        before, begin, rest = text.partition(f"<!-- first-step {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{begin}{markdown}\n{end}{after}"
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.first_step", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10, as bnsmooth train takes it (default: download)")
    parser.add_argument("--problem", choices=MEASURED, help="measure one problem alone; the page takes both tables")
    options = parser.parse_args()
    for problem in [options.problem] if options.problem else MEASURED:
        try:
            rows = pd.DataFrame(linear() if problem == "dln" else vgg(options.data))
        except InputError as error:
            parser.error(str(error))
        table(problem).parent.mkdir(exist_ok=True)
        with atomic(table(problem)) as temporary:
            rows.to_parquet(temporary, index=False)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
