"""Image data sets as uint8 tensors: the built-in shapes, published ones, and a user's folder.

A folder is decoded once and kept in the user's cache folder. Nothing in it is executed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
import torch
from torch import Tensor

from bnsmooth_cli.data import BUILT_IN, DOWNLOADED, NAMES, TEXTS
from bnsmooth_cli.data.folders import Arrays, Files, class_folders, parquet_files, read_class_folders, read_parquet
from bnsmooth_cli.data.published import ORIGINALS, download
from bnsmooth_cli.data.shapes import shapes
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.storage.tensors import load_tensors, save_tensors

_CACHE_FORMAT: Final = 3  # of the decoded images; another way of decoding them has another number

#: For each layout of a folder, the function that finds the files of each split, and the one that reads them.
_LAYOUTS: Final = ((parquet_files, read_parquet), *ORIGINALS, (class_folders, read_class_folders))


#: What tells whether the files of a folder have changed: the path, size and time of each.
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Images:
    """A data set: images (N, C, 32, 32) in uint8 and labels (N,) of both splits.

    `mean` and `std` (C,) are those of the training pixels, scaled to [0, 1]. `digest` has the fingerprints of both
    splits, images and labels: TRAIN.TEST.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int
    digest: str


def load(data: str) -> Images:
    """Load a data set by its name or from a folder.

    Args:
        data: A name of `data.NAMES`, or a folder with the original files of CIFAR, MNIST (and data sets with its
            format) or SVHN, with Hugging Face Parquet files, or with a folder of images for each class.

    Raises:
        InputError: For an unknown name, a folder in no known layout, an unreadable file, or a failed download.

    >>> load("shapes").train.shape
    torch.Size([10000, 3, 32, 32])
    """
    if data == BUILT_IN:
        return _built_in()
    if data in TEXTS:
        raise InputError(f"--data {data}: is a text; give one of {', '.join(NAMES)}, or a folder of images")
    if data in DOWNLOADED:
        return _downloaded(data)
    folder = Path(data)
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"--data {data}: is a file; give a folder (unpack an archive first)")
        if folder.is_absolute() or "/" in data or "\\" in data:
            raise InputError(f"--data {data}: no such folder")
        raise unknown("data set", data, (*NAMES, "PATH"))
    files, _ = _layout(folder, data)
    return _of_folder(data, folder.resolve(), _stamp(folder, files))


@functools.lru_cache(maxsize=1)
def _built_in() -> Images:
    images, labels, test_images, test_labels = shapes()
    return _finish({"train": (images, labels), "test": (test_images, test_labels)}, BUILT_IN)


@functools.lru_cache(maxsize=1)
def _downloaded(data: str) -> Images:
    return _cached(data, [data], lambda: _read(download(data), data))


@functools.lru_cache(maxsize=1)
def _of_folder(data: str, folder: Path, stamp: Stamp) -> Images:
    """The images of a folder whose files are those of the stamp."""
    return _cached(data, [str(folder), stamp], lambda: _read(folder, data))


def _layout(folder: Path, data: str) -> tuple[Files, Callable[[Files], dict[str, Arrays]]]:
    """The files of each split in a folder, and the function that reads them."""
    try:
        for find, read in _LAYOUTS:
            if files := find(folder):
                return files, read
    except OSError as error:
        raise InputError(f"--data {data}: {error.filename} cannot be read ({error.strerror})") from error
    raise InputError(
        f"--data {data}: none of the known layouts: data_batch_*/test_batch or train/test (CIFAR's Python files), "
        "train-images-idx3-ubyte and its three companions (MNIST), train_32x32.mat and test_32x32.mat (SVHN), "
        "train-*.parquet and test-*.parquet (Hugging Face), or train/CLASS/IMAGE and test/CLASS/IMAGE"
    )


def _stamp(folder: Path, files: Files) -> Stamp:
    """What tells changed files from those that were decoded."""
    try:
        found = [(path, path.stat()) for split in files.values() for path in split]
    except OSError as error:  # a link without a target
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return tuple((str(path.relative_to(folder)), state.st_size, state.st_mtime_ns) for path, state in found)


def _read(folder: Path, data: str) -> dict[str, Arrays]:
    files, read = _layout(folder, data)
    return read(files)


def _cached(data: str, key: Sequence[object], read: Callable[[], dict[str, Arrays]]) -> Images:
    name = hashlib.sha256(json.dumps([_CACHE_FORMAT, key]).encode()).hexdigest()[:20]
    path = platformdirs.user_cache_path("bnsmooth") / "images" / f"{name}.pt"
    with suppress(InputError, TypeError, OSError):  # a missing or unreadable cache is made again
        return Images(**load_tensors(path))
    images = _finish(read(), data)
    with suppress(InputError, OSError):  # without a cache, the next command is slower but gives the same images
        save_tensors(path, dict(vars(images)))
    return images


def _finish(splits: dict[str, Arrays], data: str) -> Images:
    train, train_labels = (torch.from_numpy(array) for array in splits["train"])
    test, test_labels = (torch.from_numpy(array) for array in splits["test"])
    if not len(train) or not len(test):
        raise InputError(f"--data {data}: no images in its {'test' if len(train) else 'train'} split")
    num_classes = int(train_labels.max()) + 1
    if num_classes > len(train):
        raise InputError(
            f"--data {data}: a label of {num_classes - 1} in its train split of {len(train)} images; number from 0 on"
        )
    for split, labels in (("train", train_labels), ("test", test_labels)):
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < num_classes:
                raise InputError(
                    f"--data {data}: a label of {label} in its {split} split; labels are 0 to {num_classes - 1}, the "
                    "largest in the train split"
                )
    # From the histogram of the 256 levels: it needs no copy in floats, and gives the same for any number of threads.
    counts = [torch.bincount(train[:, c].flatten(), minlength=256).double() for c in range(train.shape[1])]
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = torch.stack([(n * levels).sum() / n.sum() for n in counts])
    var = torch.stack([(n * (levels - m).square()).sum() / n.sum() for n, m in zip(counts, mean, strict=True)])
    digests = [
        hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
        for images, labels in ((train, train_labels), (test, test_labels))
    ]
    return Images(
        train=train.contiguous(memory_format=torch.channels_last),
        train_labels=train_labels,
        test=test.contiguous(memory_format=torch.channels_last),
        test_labels=test_labels,
        mean=mean.float(),
        std=var.sqrt().clamp_min(1 / 255).float(),
        num_classes=num_classes,
        digest=".".join(digests),
    )
