"""A small GPT on the characters of a text, with cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bnsmooth_cli import norms
from bnsmooth_cli.config import Config
from bnsmooth_cli.data.texts import TEST_SHARE, load
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.transformer import Transformer
from bnsmooth_cli.presets import MAX_NUMBERS, GptSettings
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import generator

#: Windows of the test set at most. With a context of 64, an evaluation then takes as long as about three training steps
#: of the preset. If its 16,384 characters were independent, the standard error of an accuracy would be below 0.004.
TEST_WINDOWS: Final = 256
EVALUATION_BATCH: Final = 32  # windows


class Gpt(Problem):
    """A decoder-only transformer that predicts the next character at every position of a window.

    The batch of a step is `batch_size` windows of `context` characters, from places that are drawn with replacement.
    The test set is at most TEST_WINDOWS evenly spaced windows of the last tenth of the text.
    """

    settings: GptSettings

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        data, digest, context = self.settings.data, self.settings.data_digest, self.settings.context
        entry = norms.find(config.norm)
        if entry is not None and entry.needs_positions:
            raise InputError(f"--norm {config.norm}: takes statistics over the positions of images, and gpt has none")
        if entry is not None and entry.over == "weights":
            raise InputError(
                f"--norm {config.norm}: acts on the weights of the layer before it, but the norms of gpt stand before "
                "the layers that they feed; give another norm, such as layer"
            )
        self.text = load(data)
        if digest not in (None, self.text.digest):
            raise InputError(
                f"--data {data}: not the text that the run was trained on (its digest differs); give that one"
            )
        self.config = config.changed(data_digest=self.text.digest)
        if len(self.text.test) <= context:
            raise InputError(
                f"--data {data}: too short for --context {context}: its last tenth, the test set, has "
                f"{len(self.text.test):,} characters; give at least {TEST_SHARE * context + 1:,} characters, or a "
                "shorter context"
            )
        if (numbers := 2 * len(self.text.characters) * self.settings.embedding) > MAX_NUMBERS:
            raise InputError(
                f"--embedding {self.settings.embedding}: with the {len(self.text.characters):,} characters of {data} "
                f"that is {numbers:,} numbers, at most {MAX_NUMBERS}"
            )
        self.num_samples = len(self.text.train) - context
        if config.batch_size > self.num_samples:
            raise InputError(f"--batch-size {config.batch_size}: larger than the {self.num_samples} windows of {data}")
        self._train, self._test = self.text.train.to(device), self.text.test.to(device)
        last = len(self.text.test) - context - 1
        self.test_size = min(TEST_WINDOWS, last + 1)
        self._places = torch.arange(self.test_size, device=device) * last // max(1, self.test_size - 1)

    def network(self) -> Transformer:
        """A transformer with layers named tokens, positions, block1.qkv, block1.attn_out, ..., head."""
        about = self.settings
        model = Transformer(
            self.config.norm, len(self.text.characters), about.context, about.depth, about.embedding, about.heads
        )
        model.initialise(self.config.seed)
        return model

    def data(self) -> list[Tensor]:
        """The characters on the device, and on the CPU, where other problems share them."""
        return [self._train, self._test, self.text.train, self.text.test]

    def batch(self, step: int) -> tuple[Int[Tensor, "windows positions"], Int[Tensor, "windows positions"]]:
        """The characters of the windows, and the characters that follow them."""
        random = generator(self.config.seed, "order", step)
        places = torch.randint(self.num_samples, (self.config.batch_size,), generator=random)
        return self._windows(self._train, places.to(self.device))

    def _windows(self, text: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        along = torch.arange(self.settings.context + 1, device=self.device)
        windows = text[places[:, None] + along].long()
        return windows[:, :-1], windows[:, 1:]

    def objective(self, outputs: Float[Tensor, "windows positions characters"], targets: Tensor) -> Tensor:
        """The cross-entropy in nats, averaged over all positions of all windows."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def answers(self, outputs: Float[Tensor, "windows positions characters"], targets: Tensor) -> Tensor:
        """The numbers of next characters that are predicted right, and of all."""
        return super().answers(outputs.flatten(0, 1), targets.flatten())

    def baseline(self) -> dict[str, float]:
        """The share of the most frequent character among those of the test windows that are predicted."""
        counts = torch.cat([targets.flatten() for _, targets in self.test_batches()]).bincount()
        return {"accuracy": counts.max().item() / counts.sum().item()}

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The windows of the test set and the characters that follow them."""
        for places in self._places.split(EVALUATION_BATCH):
            yield self._windows(self._test, places)
