"""A user's folder of images: one folder of pictures for each class, or Hugging Face Parquet files.

Train numbers the classes, and every other file is read with its numbers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bnsmooth_cli.data.pictures import SIZE, SUFFIXES, decode
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import check_regular, first_line

#: Images (N, C, 32, 32) and labels (N,).
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
#: The files of each split.
Files = dict[str, list[Path]]

#: Names of the split that is not trained on; the first one that exists is taken.
_TESTS: Final = ("test", "val", "valid", "validation")
#: Text that people keep beside their pictures.
_NOTES: Final = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".ini", ".db", ".log")
_PARQUET_BATCH: Final = 512  # images decoded at once
_MIN_BYTES: Final = 16  # of a compressed image
_IMAGE_NAMES: Final = ("image", "img")
_LABEL_NAMES: Final = ("label", "labels", "fine_label", "target", "class")
_SHOWN: Final = 8  # names in a message


def class_folders(folder: Path) -> Files:
    """The pictures of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`; none if the folder has no `train/CLASS`.

    The classes are the folders of train that hold pictures. Files and folders whose names begin with a dot, which
    programs make, are ignored.

    Raises:
        InputError: If a picture would be left out, the test split is missing, or it has a class that train lacks.
    """
    if not _folders(folder / "train"):
        return {}
    test = next((folder / name for name in _TESTS if _folders(folder / name)), None)
    files = {"train": _pictures(folder / "train"), "test": [] if test is None else _pictures(test)}
    if not files["train"]:
        return {}
    if not files["test"]:
        raise InputError(
            f"{folder}: has train/CLASS/IMAGE, but no test/CLASS/IMAGE ({'/, '.join(_TESTS[1:])}/ will do)"
        )
    classes = {path.parent.name for path in files["train"]}
    for path in files["test"]:
        if path.parent.name not in classes:
            raise InputError(
                f"{path.parent}: a class without images in train ({_list(sorted(classes))}); rename or remove the "
                "folder, or add the class to train"
            )
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(split: Path) -> list[Path]:
    return [path for path in _visible(split) if path.is_dir()] if split.is_dir() else []


def _pictures(split: Path) -> list[Path]:
    """The pictures of a split, in order. Raises InputError for a file that is neither a picture nor a note."""
    found = []
    for path in _visible(split):
        if not path.is_dir():
            _check_note(path, f"{split.name}/CLASS/IMAGE is read")
            continue
        for file in _visible(path):
            if file.is_dir():
                raise InputError(f"{file}: a folder in a class's folder; {split.name}/CLASS/IMAGE is read, so move it")
            if file.suffix.lower() in SUFFIXES:
                found.append(file)
            else:
                _check_note(file, f"images are read as {', '.join(suffix[1:] for suffix in SUFFIXES)}")
    return found


def _check_note(path: Path, why: str) -> None:
    if path.suffix.lower() not in _NOTES:
        raise InputError(f"{path}: would be left out ({why}); convert it, or move it elsewhere")


def read_class_folders(files: Files) -> dict[str, Arrays]:
    """The pictures and the numbers of their classes in train, sorted by name."""
    numbers = {name: i for i, name in enumerate(sorted({path.parent.name for path in files["train"]}))}
    return {
        split: (
            decode([(str(path), path) for path in paths]),
            np.array([numbers[path.parent.name] for path in paths], np.int64),
        )
        for split, paths in files.items()
    }


def parquet_files(folder: Path) -> Files:
    """The Parquet files of both splits, in order; none if there are no `train-*.parquet` below the folder.

    Raises:
        InputError: If files are missing, or belong to several data sets.
    """
    if not (train := _shards(folder, "train")):
        return {}
    test = next(filter(None, (_shards(folder, name) for name in _TESTS)), None)
    if test is None:
        others = ", ".join(f"{name}-*" for name in _TESTS[1:])
        raise InputError(f"{folder}: has train-*.parquet, but no test-*.parquet ({others} will do)")
    return {"train": train, "test": test}


def _shards(folder: Path, split: str) -> list[Path]:
    below = (path for path in folder.rglob(f"{split}-*.parquet") if not _hidden(path.relative_to(folder)))
    paths = sorted(below)
    if len(folders := sorted({str(path.parent.relative_to(folder)) for path in paths})) > 1:
        raise InputError(
            f"{folder}: {split}-*.parquet of several data sets ({_list(folders)}); give one of the folders"
        )
    for path in paths:
        if (numbered := re.fullmatch(r"(.*-)(\d{1,9})-of-(\d{1,9})(.*)", path.name)) is None:
            continue
        before, number, count, after = numbered.groups()
        if len(paths) != int(count):  # ten files of nine, or of another set of files
            places = (path.with_name(f"{before}{i:0{len(number)}}-of-{count}{after}") for i in range(int(count)))
            lacking = next((place for place in places if place not in paths), None)
            problem = "is missing" if lacking else f"is one of {int(count)}, but there are {len(paths)}"
            raise InputError(f"{lacking or path}: {problem}; get all files of the data set")
    return paths


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_parquet(files: Files) -> dict[str, Arrays]:
    """The images of Parquet files, with the labels as train numbers them."""
    labels = _by_name({split: [_labels(path) for path in paths] for split, paths in files.items()})
    return {split: (np.concatenate([*map(_images, paths)]), labels[split]) for split, paths in files.items()}


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        check_regular(path)
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            if file.metadata.num_rows * _MIN_BYTES > path.stat().st_size:  # repeated rows take no space
                raise InputError(f"{path}: declares {file.metadata.num_rows} images, more than its size can hold")
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({first_line(error)})") from error


def _images(path: Path) -> NDArray[np.uint8]:
    images: list[NDArray[np.uint8]] = [np.empty((0, 3, SIZE, SIZE), np.uint8)]
    with _opened(path) as file:
        first = 0
        for batch in file.iter_batches(_PARQUET_BATCH, columns=[f"{_image_column(path, file.schema_arrow)}.bytes"]):
            bodies = (io.BytesIO(body.as_py() or b"") for body in batch.column(0).field(0))
            images.append(decode([(f"{path}: image {i}", body) for i, body in enumerate(bodies, first)]))
            first += len(batch)
    return np.concatenate(images)


def _image_column(path: Path, schema: pa.Schema) -> str:
    structs = [c for c in schema if pa.types.is_struct(c.type) and c.type.get_field_index("bytes") >= 0]
    names = [c.name for c in structs if _is_bytes(c.type.field("bytes").type)]
    return _only(path, names, _IMAGE_NAMES, "of images (a struct with 'bytes')")


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _only(path: Path, names: Sequence[str], usual: Sequence[str], what: str) -> str:
    """The column that has a usual name, or is the only one."""
    for name in usual:
        if name in names:
            return name
    if len(names) != 1:
        several = (
            f"has several columns {what}: {_list(names)}; call one of them" if names else f"has no column {what} named"
        )
        raise InputError(f"{path}: {several} '{usual[0]}'")
    return names[0]


@dataclass(frozen=True)
class _Labels:
    """The labels of a file.

    Attributes:
        path: The file.
        numbers: The label of each image.
        names: The classes that the numbers stand for; None if the file does not say.
        declared: Whether the file lists the names. Otherwise, the labels themselves are names.
    """

    path: Path
    numbers: NDArray[np.int64]
    names: tuple[str, ...] | None
    declared: bool


def _labels(path: Path) -> _Labels:
    with _opened(path) as file:
        schema, listed = file.schema_arrow, _listed_names(file.metadata.metadata or {})
        usual = [c.name for c in schema if pa.types.is_integer(c.type) or _is_text(c.type)]
        usual = [name for name in usual if name in _LABEL_NAMES or name in listed]
        column = _only(path, usual, _LABEL_NAMES, "of labels (whole numbers or text)")
        text = _is_text(schema.field(column).type)
        seen: dict[str, int] = {}
        parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for batch in file.iter_batches(_PARQUET_BATCH, columns=[column]):
            labels = batch.column(0)
            if labels.null_count:
                raise InputError(f"{path}: an image without a label")
            if text:
                labels = labels.dictionary_encode()
                places = [seen.setdefault(str(name), len(seen)) for name in labels.dictionary.to_pylist()]
                parts.append(np.array(places, np.int64)[labels.indices.to_numpy(zero_copy_only=False)])
            else:
                parts.append(labels.to_numpy(zero_copy_only=False).astype(np.int64))
    names = tuple(seen) if text else listed.get(column)
    return _Labels(path, np.concatenate(parts), names, not text and names is not None)


def _listed_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The names of the classes in each column, as Hugging Face's `ClassLabel` lists them in a file's metadata."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = {column: feature["names"] for column, feature in features.items() if feature.get("names")}
        return {column: _in_order(listed) for column, listed in names.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}  # no such metadata, or of another version


def _in_order(names: list[str] | dict[str, str]) -> tuple[str, ...]:
    """The names of the classes; some files list them by number."""
    return tuple(names[str(i)] for i in range(len(names))) if isinstance(names, dict) else tuple(map(str, names))


def _by_name(splits: dict[str, list[_Labels]]) -> dict[str, NDArray[np.int64]]:
    """The labels of each split as train's first file numbers the classes, or else by the sorted names in train.

    Raises:
        InputError: If a label has a name that train lacks, or some labels are names and others are numbers.
    """
    train = splits["train"]
    reference = next((part for part in train if part.declared), None)
    classes: tuple[str, ...] | None = None
    if reference is not None:
        classes = reference.names
    elif any(part.names is not None for part in train):
        classes = tuple(sorted({name for part in train for name in part.names or ()}))
    return {
        split: np.concatenate([_numbered(part, classes, reference is not None, train[0].path) for part in parts])
        for split, parts in splits.items()
    }


def _numbered(part: _Labels, classes: tuple[str, ...] | None, listed: bool, train: Path) -> NDArray[np.int64]:
    """The labels of a file as numbers of train's classes. `listed` says that train's file lists their names."""
    if (classes is None) != (part.names is None) and not (listed or part.declared):
        kinds = ("names", "numbers") if classes is None else ("numbers", "names")
        raise InputError(f"{part.path}: its labels are {kinds[0]}, and those of {train} are {kinds[1]}; convert them")
    if classes is None or part.names is None or part.names == classes:
        names = part.names or classes
        if names is not None and len(part.numbers) and part.numbers.max() >= len(names):
            raise InputError(f"{part.path}: a label of {part.numbers.max()}, but it has {len(names)} classes")
        return part.numbers
    used = np.unique(part.numbers)
    if used.min(initial=0) < 0 or used.max(initial=0) >= len(part.names):
        bad = used[0] if used[0] < 0 else used[-1]
        raise InputError(f"{part.path}: a label of {bad}, but its classes are 0 to {len(part.names) - 1}")
    numbers = {name: i for i, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise InputError(
            f"{train}: gives two classes the same name, and other files name their classes in another order"
        )
    for label in used:
        if (name := part.names[label]) not in numbers:
            raise InputError(
                f"{part.path}: a class '{name[:40]}' that {train} lacks ({_list(classes)}); rename or remove its images"
            )
    return np.array([numbers.get(name, -1) for name in part.names], np.int64)[part.numbers]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:40] for name in names[:_SHOWN]) + more
