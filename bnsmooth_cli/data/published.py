"""The original files of published data sets: CIFAR's, MNIST's and those like it, and SVHN's; and how to get them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs
from numpy.typing import NDArray

from bnsmooth_cli.data import DOWNLOADED
from bnsmooth_cli.data.folders import Arrays, Files
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import check_regular, first_line

_DIGITS: Final = 28  # pixels per side of MNIST's images
_CLASSES: Final = 10  # of MNIST and the data sets that share its file format
_MAX_IDX: Final = 2**30  # bytes of an idx file; a damaged one may declare any number
_MAX_GZIP: Final = 1032  # the largest ratio of a gzip file
_MATLAB: Final = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def cifar_files(folder: Path) -> Files:
    """The Python files of CIFAR-10 or CIFAR-100, in the folder itself or in the one that the archive makes."""
    for root in (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python"):
        ten = {"train": sorted(root.glob("data_batch_[1-5]")), "test": [*root.glob("test_batch")]}
        if all(ten.values()):
            return ten
        hundred = {split: [root / split] for split in ("train", "test")}
        if (root / "meta").is_file() and all(path.is_file() for (path,) in hundred.values()):
            return hundred
    return {}


def read_cifar(files: Files) -> dict[str, Arrays]:
    """CIFAR-10 or CIFAR-100. The files are pickles, so only the published ones are read."""
    from torchvision.datasets import CIFAR10, CIFAR100

    folder = files["test"][0].parent
    kind = CIFAR100 if files["test"][0].name == "test" else CIFAR10
    listed = (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"]))
    _check_published(folder, dict(listed), kind, kind.url, "no other pickle is read")
    here: Any = type(kind.__name__, (kind,), {"base_folder": ""})  # torchvision would look in a subfolder
    return {split: _arrays(here(folder, train=split == "train")) for split in files}


def svhn_files(folder: Path) -> Files:
    """SVHN's two MATLAB files. Raises InputError if one of them is missing."""
    files = {split: [folder / name] for split, name in _MATLAB.items()}
    return _complete(folder, files)


def read_svhn(files: Files) -> dict[str, Arrays]:
    """SVHN. A MATLAB file can hold anything, so only the published ones are read."""
    from torchvision.datasets import SVHN

    folder = files["train"][0].parent
    listed = {SVHN.split_list[split][1]: SVHN.split_list[split][2] for split in files}
    url = SVHN.split_list["train"][0].rpartition("/")[0]
    _check_published(folder, listed, SVHN, url, "no other MATLAB file is read")
    return {split: _arrays(SVHN(folder, split)) for split in files}


def _check_published(folder: Path, md5: dict[str, str], kind: Any, url: str, rule: str) -> None:
    from torchvision.datasets.utils import check_integrity

    for file, expected in md5.items():
        if not check_integrity(folder / file, expected):
            raise InputError(
                f"{folder / file}: missing, or not the published file of {kind.__name__} (its MD5 sum differs), and "
                f"{rule}; get it from {url}, or convert the images to Parquet or class folders"
            )


def _arrays(dataset: Any) -> Arrays:
    """Images (N, 3, 32, 32) and labels of a data set of torchvision's."""
    images = np.asarray(dataset.data)
    if images.shape[-1] == 3:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images, np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, np.int64)


def idx_files(folder: Path) -> Files:
    """MNIST's four files, gzipped or not: in the folder, or in `raw/` or `MNIST/raw/`, as torchvision keeps them.

    Raises:
        InputError: If some of the files are missing, or there are several data sets.
    """
    roots = [folder, *sorted(path for pattern in ("raw", "*/raw") for path in folder.glob(pattern))]
    found = [root for root in roots if any(_idx_file(root, *names) for names in _IDX)]
    if len(found) > 1:
        raise InputError(f"{folder}: the files of several data sets; give one folder, such as {found[0]}")
    if not found:
        return {}
    files: Files = {}
    for part, what in _IDX:
        file = _idx_file(found[0], part, what) or found[0] / f"{part}-{what}-ubyte"
        files.setdefault("train" if part == "train" else "test", []).append(file)
    return _complete(found[0], files)


_IDX: Final = [(part, what) for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


def _idx_file(root: Path, part: str, what: str) -> Path | None:
    """One of the four files. Some mirrors have a dot in its name where the original has a hyphen."""
    names = (f"{part}-{name}-ubyte{end}" for end in ("", ".gz") for name in (what, what.replace("-idx", ".idx")))
    return next((root / name for name in names if (root / name).is_file()), None)


def _complete(folder: Path, files: Files) -> Files:
    """The files if all of them exist, none if none does. Raises InputError if some are missing."""
    paths = [path for split in files.values() for path in split]
    missing = [path for path in paths if not path.exists()]
    if missing and len(missing) < len(paths):
        raise InputError(f"{missing[0]}: is missing; the data set has {', '.join(path.name for path in paths)}")
    return {} if missing else files


def read_idx(files: Files) -> dict[str, Arrays]:
    """MNIST or a data set with its format: grey images of 28 x 28, padded with their background, and ten classes.

    Raises:
        InputError: If a file is truncated or damaged, or the two files of a split do not belong together.
    """
    splits: dict[str, Arrays] = {}
    for split, (pictures, answers) in files.items():
        images, labels = _idx(pictures, 3), _idx(answers, 1)
        if images.shape[1:] != (_DIGITS, _DIGITS):
            raise InputError(f"{pictures}: images of {images.shape[1]} x {images.shape[2]} pixels, expected 28 x 28")
        if len(images) != len(labels):
            raise InputError(f"{answers}: {len(labels)} labels for {len(images)} images; get both files again")
        if len(labels) and labels.max() >= _CLASSES:
            raise InputError(f"{answers}: a label of {labels.max()}; the labels of this format are 0 to {_CLASSES - 1}")
        splits[split] = (np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None], labels.astype(np.int64))
    return splits


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of bytes, gzipped or not: http://yann.lecun.com/exdb/mnist."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            zipped = stream.read(2) == b"\x1f\x8b"
        largest = min(_MAX_IDX, path.stat().st_size * (_MAX_GZIP if zipped else 1))
        with gzip.open(path) if zipped else path.open("rb") as stream:
            header = stream.read(4 * (dimensions + 1))
            magic, *shape = struct.unpack(f">{dimensions + 1}I", header)
            if magic != 0x800 + dimensions:
                raise ValueError(f"it begins with {magic:#x}, not with {0x800 + dimensions:#x}")
            size = math.prod(shape)
            if size > largest:
                raise ValueError(f"it declares {' x '.join(map(str, shape))} values, more than it can hold")
            body = stream.read(size + 1)
            if len(body) != size:
                raise ValueError(f"it declares {size} bytes and has {'fewer' if len(body) < size else 'more'}")
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: not a whole idx file ({first_line(error)}); delete it, and get it again") from error
    return np.frombuffer(body, np.uint8).reshape(shape)


def download(name: str) -> Path:
    """The folder of a downloaded data set. torchvision downloads what it lacks, and checks the MD5 sums.

    Raises:
        InputError: If the download fails; the message says which files to get elsewhere, and how to give them.
    """
    from torchvision import datasets

    kind: Any = getattr(datasets, DOWNLOADED[name])
    root = platformdirs.user_cache_path("bnsmooth") / "downloads" / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            chosen: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
            kind(root, download=True, **chosen)
    except Exception as error:  # a download may raise anything
        if any(_present(find, root) for find, _ in ORIGINALS):  # readable, or damaged: the reader names the file
            return root
        raise InputError(
            f"--data {name}: the download failed ({' '.join(str(error).split())[:120]}); connect to the network and "
            f"try again, or {_elsewhere(name, kind)}"
        ) from error
    return root


def _present(find: Any, root: Path) -> bool:
    try:
        return bool(find(root))
    except InputError:  # a part of the files
        return False


def _elsewhere(name: str, kind: Any) -> str:
    """How to use a data set without a network."""
    if name.startswith("cifar"):
        return (
            f"get {kind.url} elsewhere, unpack it, and give the folder that is in it: --data path/to/{kind.base_folder}"
        )
    if name == "svhn":
        url, files = kind.split_list["train"][0].rpartition("/")[0], [*_MATLAB.values()]
    else:
        url, files = kind.mirrors[0].rstrip("/"), [file for file, _ in kind.resources]
    return f"get {', '.join(files)} elsewhere (from {url}) and give the folder that has them: --data path/to/folder"


#: For each format, the function that finds the files of each split in a folder, and the one that reads them.
ORIGINALS: Final = ((cifar_files, read_cifar), (idx_files, read_idx), (svhn_files, read_svhn))
