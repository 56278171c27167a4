"""Image data sets as uint8 tensors: the built-in shapes, torchvision's, and a user's folder in three layouts.

A folder is decoded once and kept in the user's cache folder. Nothing in it is executed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bnsmooth_cli.data import BUILT_IN, DOWNLOADED, NAMES
from bnsmooth_cli.data.shapes import shapes
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.storage.files import check_regular, first_line, load_tensors, save_tensors

SIZE: Final = 32  # pixels per side; images of other sizes are resized, and 28 x 28 digits padded
_CACHE_FORMAT: Final = 1
_PARQUET_BATCH: Final = 512  # images decoded at once
_MIN_BYTES: Final = 16  # of a compressed image
_MAX_PIXELS: Final = 50_000_000  # of an image; a damaged one may declare any number
_LARGE: Final = 4_000_000  # pixels; larger images are decoded one at a time
_SUFFIXES: Final = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
#: Pillow tells formats apart by content, and starts other programs for some of them (Ghostscript for EPS).
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "PPM")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Images:
    """A data set: images (N, C, 32, 32) in uint8 and labels (N,) of both splits.

    `mean` and `std` (C,) are those of the training pixels, scaled to [0, 1]. `digest` is a fingerprint of the training
    images and labels.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int
    digest: str


@functools.lru_cache(maxsize=1)
def load(data: str) -> Images:
    """Load a data set by its name or from a folder.

    Args:
        data: A name of `data.NAMES`, or a folder with the original CIFAR files, Hugging Face Parquet files, or a folder
            of images for each class.

    Raises:
        InputError: For an unknown name, a folder in no known layout, an unreadable file, or a failed download.

    >>> load("shapes").train.shape
    torch.Size([10000, 3, 32, 32])
    """
    if data == BUILT_IN:
        images, labels, test_images, test_labels = shapes()
        return _finish({"train": (images, labels), "test": (test_images, test_labels)}, data)
    if data in DOWNLOADED:
        return _cached(data, [data], lambda: _download(data))
    folder = Path(data)
    if not folder.is_dir():
        if folder.is_absolute() or "/" in data or "\\" in data:
            raise InputError(f"--data {data}: no such folder")
        raise unknown("data set", data, (*NAMES, "PATH"))
    layout = next(((files, read) for find, read in _LAYOUTS if (files := find(folder))), None)
    if layout is None:
        raise InputError(
            f"--data {data}: none of the known layouts: data_batch_*/test_batch or train/test (CIFAR's Python files), "
            "train-*.parquet and test-*.parquet (Hugging Face), or train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    files, read = layout
    paths = (path for split in files.values() for path in split)
    stamp = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return _cached(data, [str(folder.resolve()), stamp], lambda: {split: read(files[split]) for split in files})


def canonical(data: str) -> str:
    """The data set as configurations record it: by its name, or by the absolute path of its folder."""
    return data if data in NAMES or not Path(data).exists() else str(Path(data).resolve())


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
    digest = hashlib.sha256(train.numpy().tobytes() + train_labels.numpy().tobytes()).hexdigest()[:16]
    return Images(
        train=train.contiguous(memory_format=torch.channels_last),
        train_labels=train_labels,
        test=test.contiguous(memory_format=torch.channels_last),
        test_labels=test_labels,
        mean=mean.float(),
        std=var.sqrt().clamp_min(1 / 255).float(),
        num_classes=num_classes,
        digest=digest,
    )


def _download(name: str) -> dict[str, Arrays]:
    """Both splits of a data set of torchvision's, which checks the MD5 sums of what it downloads."""
    from torchvision import datasets

    root = platformdirs.user_cache_path("bnsmooth") / "downloads" / name
    splits = {}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            chosen: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
            splits[split] = _arrays(getattr(datasets, DOWNLOADED[name])(root, download=True, **chosen))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--data {name}: the download failed ({' '.join(str(error).split())[:120]}); connect to the network and "
            "try again, or fetch the data set elsewhere and give its folder: --data PATH"
        ) from error
    return splits


def _arrays(dataset: Any) -> Arrays:
    """Images (N, C, 32, 32) and labels of a data set of torchvision's."""
    images = np.asarray(dataset.data)
    if images.ndim == 3:  # grey digits, 28 x 28: padded with their background, not stretched
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]
    elif images.shape[-1] == 3:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images, np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, np.int64)


# Each layout has two functions. One finds the files of each split in a folder, or none if the layout differs. The other
# one reads the files of a split.


def _splits(train: Iterable[Path], test: Iterable[Path]) -> dict[str, list[Path]]:
    files = {"train": sorted(train), "test": sorted(test)}
    return files if all(files.values()) else {}


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    return _splits(folder.rglob("train-*.parquet"), folder.rglob("test-*.parquet"))


def _read_parquet(files: list[Path]) -> Arrays:
    images: list[NDArray[np.uint8]] = [np.empty((0, 3, SIZE, SIZE), np.uint8)]
    labels: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for path in files:
        try:
            with path.open("rb") as stream, pq.ParquetFile(stream) as file:
                if file.metadata.num_rows * _MIN_BYTES > path.stat().st_size:  # repeated rows take no space
                    raise InputError(f"{path}: declares {file.metadata.num_rows} images, more than its size can hold")
                first = 0
                for batch in file.iter_batches(_PARQUET_BATCH, columns=_columns(path, file.schema_arrow)):
                    encoded, label = batch.column(0).field(0), batch.column(1)
                    if label.null_count:
                        raise InputError(f"{path}: an image without a label")
                    bodies = (io.BytesIO(body.as_py() or b"") for body in encoded)
                    images.append(_decode([(f"{path}: image {i}", body) for i, body in enumerate(bodies, first)]))
                    labels.append(label.to_numpy(zero_copy_only=False).astype(np.int64))
                    first += len(batch)
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a readable parquet file ({first_line(error)})") from error
    return np.concatenate(images), np.concatenate(labels)


def _columns(path: Path, schema: pa.Schema) -> list[str]:
    """The columns of the encoded images and of their labels."""
    structs = [c for c in schema if pa.types.is_struct(c.type) and c.type.get_field_index("bytes") >= 0]
    binary = [c.name for c in structs if pa.types.is_binary(c.type.field("bytes").type)]
    integers = [c.name for c in schema if pa.types.is_integer(c.type)]
    label = next((c for c in ("label", "fine_label") if c in integers), integers[0] if integers else None)
    if not binary or label is None:
        raise InputError(f"{path}: needs a column of images (a struct with 'bytes') and an integer column 'label'")
    return [f"{binary[0]}.bytes", label]


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    def images(split: str) -> list[Path]:
        return [path for path in folder.glob(f"{split}/*/*") if path.suffix.lower() in _SUFFIXES]

    return _splits(images("train"), images("test") or images("val"))


def _read_class_folders(files: list[Path]) -> Arrays:
    classes = sorted({path.parent.name for path in files})
    labels = np.array([classes.index(path.parent.name) for path in files], np.int64)
    return _decode([(str(path), path) for path in files]), labels


def _decode(sources: list[tuple[str, Path | io.BytesIO]]) -> NDArray[np.uint8]:
    images = np.empty((len(sources), 3, SIZE, SIZE), np.uint8)
    alone = threading.Lock()

    def decode(i: int) -> None:
        name, source = sources[i]
        try:
            if isinstance(source, Path):
                check_regular(source)
            with Image.open(source, formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > _MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {_MAX_PIXELS}")
                with alone if pixels > _LARGE else nullcontext():
                    rgb = image if image.mode == "RGB" else image.convert("RGB")
                    if rgb.size != (SIZE, SIZE):
                        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                images[i] = np.asarray(rgb).transpose(2, 0, 1)
        except Exception as error:  # a damaged image may raise anything
            raise InputError(f"{name}: not a readable image ({first_line(error)})") from error

    # Pillow decodes without holding the interpreter's lock. It warns of oddities in images that it can read.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for _ in pool.map(decode, range(len(sources)), chunksize=256):
            pass
    return images


def _cifar_files(folder: Path) -> dict[str, list[Path]]:
    for root in (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python"):
        ten = _splits(root.glob("data_batch_[1-5]"), root.glob("test_batch"))
        hundred = _splits(root.glob("train"), root.glob("test")) if (root / "meta").is_file() else {}
        if ten or hundred:
            return ten or hundred
    return {}


def _read_cifar(files: list[Path]) -> Arrays:
    """A split of CIFAR-10 or CIFAR-100. Its files are pickles, so only the published ones are read."""
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity

    folder, name = files[0].parent, files[0].name
    kind = CIFAR100 if name in ("train", "test") else CIFAR10
    for file, md5 in (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])):
        if not check_integrity(folder / file, md5):
            raise InputError(
                f"{folder / file}: missing, or not the published file of {kind.__name__} (its MD5 sum differs), and no "
                f"other pickle is read; get it from {kind.url}, or convert the images to Parquet or class folders"
            )
    here: Any = type(kind.__name__, (kind,), {"base_folder": ""})  # torchvision would look in a subfolder
    return _arrays(here(folder, train=name not in ("test", "test_batch")))


_LAYOUTS: Final[tuple[tuple[Callable[[Path], dict[str, list[Path]]], Callable[[list[Path]], Arrays]], ...]] = (
    (_parquet_files, _read_parquet),
    (_cifar_files, _read_cifar),
    (_class_folders, _read_class_folders),
)
