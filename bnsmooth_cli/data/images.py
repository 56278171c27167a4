"""Image data sets as uint8 tensors: the built-in shapes, torchvision's, and a user's folder in three layouts.

A folder is decoded once and kept in the user's cache folder; nothing in it is ever executed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

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
from bnsmooth_cli.storage.files import PlainUnpickler, check_regular, load_tensors, save_tensors

SIZE: Final = 32  # pixels a side; other sizes are resized to it (28 x 28 digits are padded)
_CACHE_FORMAT: Final = 1
_AT_ONCE: Final = 512  # images of a parquet file that are decoded at once
_FEWEST_BYTES: Final = 16  # of a compressed image
_MOST_PIXELS: Final = 50_000_000  # of an image; a damaged one may declare any number
_LARGE: Final = 4_000_000  # pixels; images larger than that are decoded one at a time
_SUFFIXES: Final = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
#: Pillow tells formats apart by content, and for some it starts other programs (for EPS Ghostscript).
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "PPM")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Images:
    """Images (N, C, 32, 32) in uint8 and labels (N,) of both splits; `mean` and `std` (C,) of the training pixels."""

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
    """The data set of that name or in that folder: CIFAR's Python files, Hugging Face Parquet, or class folders.

    Raises InputError for an unknown name, a folder in no known layout, an unreadable file, or a failed download.

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
    files, read = next(((found, read) for find, read in _LAYOUTS if (found := find(folder))), ({}, None))
    if read is None:
        raise InputError(
            f"--data {data}: none of the known layouts: data_batch_*/test_batch or train/test (CIFAR's Python files), "
            "train-*.parquet and test-*.parquet (Hugging Face), or train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    stamp = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in _all(files)]
    return _cached(data, [str(folder.resolve()), stamp], lambda: {split: read(files[split]) for split in files})


def canonical(data: str) -> str:
    """The name itself, or a folder's absolute path: what a configuration holds."""
    return data if data in NAMES or not Path(data).exists() else str(Path(data).resolve())


def _cached(data: str, key: Sequence[object], read: Callable[[], dict[str, Arrays]]) -> Images:
    name = hashlib.sha256(json.dumps([_CACHE_FORMAT, key]).encode()).hexdigest()[:20]
    path = platformdirs.user_cache_path("bnsmooth") / "images" / f"{name}.pt"
    with suppress(InputError, TypeError, OSError):  # a cache that is not there, or cannot be read, is made again
        return Images(**load_tensors(path))
    images = _finish(read(), data)
    with suppress(InputError, OSError):  # one that cannot be written costs the next command its time, and nothing else
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
    # Over the histogram of the 256 levels: no float copy of the images, and the same for any number of threads.
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
    from torchvision import datasets

    root = platformdirs.user_cache_path("bnsmooth") / "downloads" / name
    kind = getattr(datasets, DOWNLOADED[name])
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name.startswith("cifar"):  # read as a folder of them is: torchvision would unpickle them
            datasets.utils.download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
            return {split: _read_cifar(files) for split, files in _cifar_files(root).items()}
        splits = {}
        for split in ("train", "test"):
            chosen: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
            dataset = kind(root, download=True, **chosen)
            labels = dataset.labels if name == "svhn" else dataset.targets
            splits[split] = (_planar(np.asarray(dataset.data), name), np.asarray(labels, np.int64))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--data {name}: the download failed ({' '.join(str(error).split())[:120]}); connect to the network and "
            "try again, or fetch the data set elsewhere and give its folder: --data PATH"
        ) from error
    return splits


def _planar(array: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if name == "svhn":
        return array  # already (N, C, H, W)
    if array.ndim == 3:  # 28 x 28 grey digits: padded with their background, not stretched
        return np.pad(array, ((0, 0), (2, 2), (2, 2)))[:, None]
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


# One pair of functions a layout: which files a folder holds for each split (none: not this layout), and their content.


def _all(files: dict[str, list[Path]]) -> Iterable[Path]:
    return (path for paths in files.values() for path in paths)


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
                if file.metadata.num_rows * _FEWEST_BYTES > path.stat().st_size:  # repeated, they would take no space
                    raise InputError(f"{path}: declares {file.metadata.num_rows} images, more than its size can hold")
                first = 0
                for batch in file.iter_batches(_AT_ONCE, columns=_columns(path, file.schema_arrow)):
                    encoded, label = batch.column(0).field(0), batch.column(1)
                    if label.null_count:
                        raise InputError(f"{path}: an image without a label")
                    bodies = (io.BytesIO(one.as_py() or b"") for one in encoded)
                    images.append(_decode([(f"{path}: image {i}", body) for i, body in enumerate(bodies, first)]))
                    labels.append(label.to_numpy(zero_copy_only=False).astype(np.int64))
                    first += len(batch)
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a readable parquet file ({_first_line(error)})") from error
    return np.concatenate(images), np.concatenate(labels)


def _columns(path: Path, schema: pa.Schema) -> list[str]:
    """The images' bytes, and the labels."""
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
                if pixels > _MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {_MOST_PIXELS}")
                with alone if pixels > _LARGE else nullcontext():
                    rgb = image if image.mode == "RGB" else image.convert("RGB")
                    if rgb.size != (SIZE, SIZE):
                        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                images[i] = np.asarray(rgb).transpose(2, 0, 1)
        except Exception as error:  # a damaged image raises whatever its bytes happen to spell
            raise InputError(f"{name}: not a readable image ({_first_line(error)})") from error

    # Pillow decodes outside the interpreter's lock; it warns of what is odd in an image that it reads nevertheless.
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
    images, labels = [], []
    for path in files:
        try:
            check_regular(path)
            content = _CifarUnpickler(path.read_bytes()).load()
            array = content[b"data"].pixels.reshape(-1, 3, SIZE, SIZE)
            given = content.get(b"labels", content.get(b"fine_labels"))
            if not isinstance(given, list) or len(given) != len(array) or not all(type(one) is int for one in given):
                raise ValueError(f"its labels are no list of {len(array)} whole numbers, one an image")
            these = np.array(given, np.int64)
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
            raise InputError(f"{path}: not a file of CIFAR's Python version ({_first_line(error)})") from error
        images.append(array)
        labels.append(these)
    return np.concatenate(images), np.concatenate(labels)


_ARRAYS: Final = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
)


class _CifarArray:
    """What stands in for numpy's array while CIFAR's pickles are read: nothing but bytes of a known shape."""

    pixels: NDArray[np.uint8]

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state[-1], bytes):  # (version, shape, dtype, fortran order, bytes); a dtype's state has none
            self.pixels = np.frombuffer(state[-1], np.uint8).reshape(state[1])


class _CifarUnpickler(PlainUnpickler):
    """Knows the few globals that CIFAR's files name, and what stands in for each: no other code can be reached."""

    dispatch: ClassVar = dict(PlainUnpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return _CifarArray
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in Python 2's pickles
            return self._encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR's files do not")

    def _encode(self, text: str, encoding: str) -> bytes:
        self._left -= len(text)  # one text again and again would take forever
        if encoding != "latin1" or self._left < 0:
            raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
        return text.encode("latin1")

    def _set_state(self) -> None:
        state, array = self.stack.pop(), self.stack[-1]
        if not isinstance(array, _CifarArray):
            raise pickle.UnpicklingError("it gives a state to what is no array")
        array.__setstate__(state)

    dispatch[pickle.BUILD[0]] = _set_state  # type: ignore[assignment]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


_LAYOUTS: Final[tuple[tuple[Callable[[Path], dict[str, list[Path]]], Callable[[list[Path]], Arrays]], ...]] = (
    (_parquet_files, _read_parquet),
    (_cifar_files, _read_cifar),
    (_class_folders, _read_class_folders),
)
