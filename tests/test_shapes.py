"""The built-in images: their bytes, their balance, and that no test image was trained on."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from bnsmooth_cli.data.shapes import CLASSES, shapes

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return shapes()


def test_shapes_have_the_documented_sizes_and_types(arrays: Arrays) -> None:
    described = [(array.shape, array.dtype) for array in arrays]
    images, labels = np.dtype(np.uint8), np.dtype(np.int64)
    assert described == [
        ((10_000, 3, 32, 32), images),
        ((10_000,), labels),
        ((2_000, 3, 32, 32), images),
        ((2_000,), labels),
    ]


def test_shapes_are_the_same_bytes_on_every_machine(arrays: Arrays) -> None:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update((array.byteswap() if sys.byteorder == "big" else array).tobytes())
    assert digest.hexdigest() == "6ff995d2eb4d1370f27ccdd3c9537f6d7a1319c859ef84a5064abca3686006fb"


def test_every_class_is_drawn_equally_often_in_a_shuffled_order(arrays: Arrays) -> None:
    assert len(set(CLASSES)) == 10
    for labels, each in ((arrays[1], 1000), (arrays[3], 200)):
        assert np.bincount(labels).tolist() == [each] * len(CLASSES)
        assert set(labels[:100].tolist()) == set(range(len(CLASSES)))


def test_no_image_is_drawn_twice(arrays: Arrays) -> None:
    assert len({image.tobytes() for images in (arrays[0], arrays[2]) for image in images}) == 12_000


def test_both_splits_are_drawn_from_one_distribution(arrays: Arrays) -> None:
    train, labels, test, test_labels = arrays
    for label in range(len(CLASSES)):
        means = [images[which == label].mean((0, 1)) for images, which in ((train, labels), (test, test_labels))]
        correlation = np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1]
        assert correlation > 0.9, CLASSES[label]
