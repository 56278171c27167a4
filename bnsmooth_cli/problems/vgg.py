"""VGG networks (Simonyan & Zisserman 2015, table 1) on 32 x 32 images, with cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli import norms
from bnsmooth_cli.config import Config
from bnsmooth_cli.data.images import load
from bnsmooth_cli.data.pictures import SIZE
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.chain import Chain, Layer
from bnsmooth_cli.presets import VggSettings
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.randomness import generator
from bnsmooth_cli.settings import same_digest

#: Weight layers -> convolutions in each stage, of VGG-A, B, D and E. Every stage ends in a 2 x 2 max-pooling.
STAGES: Final[dict[int, tuple[int, ...]]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS: Final = (64, 128, 256, 512, 512)
CROP_PADDING: Final = 4  # pixels on each side, the usual CIFAR augmentation (He et al. 2016, section 4.2)
EVALUATION_BATCH: Final = 500


class Vgg(Problem):
    """A VGG with the mean cross-entropy.

    The norm follows every convolution and linear layer, the last one only if `last_norm` is set. Five poolings leave
    one position of a 32 x 32 image. Hidden linear layers of `classifier` widths follow, and a last one with a unit for
    each class. `width` scales all of these widths except the last.
    """

    settings: VggSettings

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        depth, data, digest = self.settings.depth, self.settings.data, self.settings.data_digest
        if depth not in STAGES:
            raise InputError(f"--depth {depth}: VGG comes with 11, 13, 16 or 19 weight layers")
        self.images = load(data)
        if not same_digest(digest, self.images.digest):
            done = "tested" if same_digest(digest, self.images.digest.split(".")[0]) else "trained"
            raise InputError(
                f"--data {data}: not the images that the run was {done} on (their digest differs); give those, or "
                "train again if an earlier version decoded them in another way (16-bit, transparent or turned pictures)"
            )
        self.config = config.changed(data_digest=digest or self.images.digest)  # one that is known stays as it is
        self.num_samples, self.test_size = len(self.images.train_labels), len(self.images.test_labels)
        if config.batch_size > self.num_samples:
            raise InputError(
                f"--batch-size {config.batch_size}: larger than the {self.num_samples} training images of {data}"
            )
        self._images = self.images.train.to(device)
        self._labels = self.images.train_labels.to(device)
        unit, standard = (1, -1, 1, 1), self.settings.inputs == "standard"
        self._mean = self.images.mean.to(device).view(unit) * (1 if standard else 255)
        self._std = self.images.std.to(device).view(unit) if standard else None

    def network(self) -> Chain:
        """Layers named conv1, conv2, ..., fc1, fc2, ..."""
        layers: dict[str, Layer] = {}
        channels = self.images.train.shape[1]
        for convolutions, full in zip(STAGES[self.settings.depth], CHANNELS, strict=True):
            for i in range(convolutions):
                out = self._scaled(full)
                # ReLU and maximum commute, values and gradients included; this order has a quarter of the activations.
                rest = [nn.MaxPool2d(2)] * (i == convolutions - 1) + [nn.ReLU()]
                conv = nn.Conv2d(channels, out, 3, padding=1)
                layers[f"conv{len(layers) + 1}"] = Layer(conv, norms.build(self.config.norm, out), *rest)
                channels = out
        layers[next(iter(reversed(layers)))].rest.append(nn.Flatten())
        hidden = self.settings.classifier_widths
        for i, full in enumerate(hidden, 1):
            out = self._scaled(full)
            layers[f"fc{i}"] = Layer(nn.Linear(channels, out), norms.build(self.config.norm, out), nn.ReLU())
            channels = out
        classes = self.images.num_classes
        norm = norms.build(self.config.norm, classes) if self.settings.last_norm else None
        layers[f"fc{len(hidden) + 1}"] = Layer(nn.Linear(channels, classes), norm)
        chain = Chain(layers)
        chain.initialise(self.config.seed)
        for _, layer in chain.named_layers():  # not the norms: a user's may be lazy, without a shape as yet
            layer.linear.to(memory_format=torch.channels_last)
        return chain

    def _scaled(self, width: int) -> int:
        return max(1, round(width * self.settings.width))

    def data(self) -> list[Tensor]:
        """The training images on the device; all images on the CPU, which other problems share."""
        images = self.images
        return [self._images, self._labels, images.train, images.train_labels, images.test, images.test_labels]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the batch, augmented if the run augments, and centred or standardised by channel."""
        chosen = self.indices(step)
        images = self._images[chosen]
        if self.settings.augment:
            images = crop_and_flip(images, generator(self.config.seed, "augment", step))
        return self._floats(images), self._labels[chosen]

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy, averaged over the batch."""
        return F.cross_entropy(outputs, targets)

    def baseline(self) -> dict[str, float]:
        """The share of the most frequent class among the test images."""
        return {"accuracy": self.images.test_labels.bincount().max().item() / self.test_size}

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images, treated like the training images, and their labels."""
        for images, labels in zip(
            self.images.test.split(EVALUATION_BATCH), self.images.test_labels.split(EVALUATION_BATCH), strict=True
        ):
            yield self._floats(images.to(self.device)), labels.to(self.device)

    def _floats(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        if self._std is None:
            return floats.sub_(self._mean)
        return floats.div_(255).sub_(self._mean).div_(self._std)


def crop_and_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Zero-pad by 4, crop to 32 x 32 at a random place, and mirror half of the images, in one gather.

    >>> crop_and_flip(torch.zeros(2, 3, 32, 32), torch.Generator()).shape
    torch.Size([2, 3, 32, 32])
    """
    count = len(images)
    places = 2 * CROP_PADDING + 1
    top, left = torch.randint(places, (2, count, 1), generator=random)
    mirrored = torch.randint(2, (count, 1), generator=random).bool()
    along = torch.arange(SIZE)
    rows = top + along
    columns = left + torch.where(mirrored, along.flip(0), along)
    padded = F.pad(images, (CROP_PADDING,) * 4).movedim(1, -1)
    # Pixels of the padded batch by their numbers, with the channels last, which is the layout that training uses.
    first = torch.arange(count)[:, None] * padded.shape[1] + rows
    places = (first * padded.shape[2]).to(images.device)[:, :, None] + columns.to(images.device)[:, None]
    pixels = padded.reshape(-1, images.shape[1]).index_select(0, places.flatten())
    return pixels.view(count, SIZE, SIZE, -1).movedim(-1, 1)
