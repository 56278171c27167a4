"""The built-in images: ten shapes on noisy backgrounds, drawn in numpy, the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 32
TRAIN: Final = 10_000
TEST: Final = 2_000
_CHUNK: Final = 1_000  # images drawn at once: bounds the memory

Floats = NDArray[np.float64]


def _radius(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v)


def _box(u: Floats, v: Floats, width: float, height: float) -> Floats:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


#: Class -> a function of the shape's own coordinates that is negative inside it, and grows like the distance.
_SHAPES: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "disc": lambda u, v: _radius(u, v) - 0.9,
    "ring": lambda u, v: np.abs(_radius(u, v) - 0.75) - 0.2,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.7) - 0.18,
    "triangle": lambda u, v: np.maximum(v - 0.55, 0.866 * np.abs(u) - 0.5 * v - 0.55),
    "plus": lambda u, v: np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0)),
    "bar": lambda u, v: _box(u, v, 1.0, 0.35),
    "half disc": lambda u, v: np.maximum(_radius(u, v - 0.4) - 1.0, v - 0.4),
    "angle": lambda u, v: np.minimum(_box(u + 0.6, v, 0.3, 0.9), _box(u, v - 0.6, 0.9, 0.3)),
    "crescent": lambda u, v: np.maximum(_radius(u, v) - 1.0, 0.8 - _radius(u - 0.5, v)),
}
CLASSES: Final = tuple(_SHAPES)


def shapes() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Training images (10000, 3, 32, 32) and labels (10000,), then 2,000 test images and labels.

    An image is one shape of its class over a background. Its centre is uniform within 6 pixels of the middle, its
    radius uniform in [7, 13] pixels, its rotation any. The shape's colour is uniform in [0.4, 1]^3, the background's in
    [0, 0.6]^3, and the background brightens along a random direction by a quarter of the range. A stripe of any
    colour, 2 pixels wide, crosses at a random place over both; every channel of every pixel gets noise from the
    triangular distribution on [-0.25, 0.25]; edges are blended over one pixel. Every class has as many images.

    The numbers are raw PCG64 draws under additions, products, square roots and comparisons, all exact by IEEE 754, so
    every system draws the same bytes.

    >>> shapes()[0].shape, shapes()[1][:3].tolist()
    ((10000, 3, 32, 32), [9, 1, 8])
    """
    return (*_draw(TRAIN, seed=1), *_draw(TEST, seed=2))


def _draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    source = np.random.PCG64(seed)
    # A bit generator's raw stream is promised to stay; the Generator's methods are not.
    labels = np.argsort(source.random_raw(count), kind="stable").astype(np.int64) % len(CLASSES)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, count))
        images[chunk] = _draw_chunk(labels[chunk], source)
    return images, labels


def _uniform(source: np.random.PCG64, *shape: int) -> Floats:
    """Multiples of 2^-53 in [0, 1)."""
    raw: NDArray[np.uint64] = source.random_raw(int(np.prod(shape)))
    return (raw >> np.uint64(11)).reshape(shape) * 2.0**-53


def _direction(t: Floats) -> tuple[Floats, Floats]:
    """A point of the unit circle from t in [0, 1): sine and cosine are not the same on every system, this is."""
    half = 4 * np.mod(t * 2, 1.0) - 2  # the rational parametrisation over [-2, 2] covers most of the circle,
    sign = np.where(t < 0.5, 1.0, -1.0)  # and its mirror image the rest
    scale = sign / (1 + half * half)
    return (1 - half * half) * scale, 2 * half * scale


def _draw_chunk(labels: NDArray[np.int64], source: np.random.PCG64) -> Floats:
    count = len(labels)
    place = _uniform(source, 6, count, 1, 1)
    colours = _uniform(source, 3, count, 3, 1, 1)
    colours[0] *= 0.6
    colours[1] = 0.4 + 0.6 * colours[1]
    along = np.arange(SIZE) - (SIZE - 1) / 2
    x, y = along[None, None, :], along[None, :, None]

    radius = 7 + 6 * place[2]
    u, v = (x - 12 * place[0] + 6) / radius, (y - 12 * place[1] + 6) / radius
    cosine, sine = _direction(place[3])
    u, v = cosine * u + sine * v, cosine * v - sine * u
    distance = np.empty((count, SIZE, SIZE))
    for label, shape in enumerate(_SHAPES.values()):
        mine = labels == label
        distance[mine] = shape(u[mine], v[mine])
    inside = np.clip(0.5 - distance * radius, 0, 1)[:, None]

    cosine, sine = _direction(place[4])
    slope = (cosine * x + sine * y) * (0.25 / (SIZE / 2))
    image = colours[0] + slope[:, None]
    image = image + (colours[1] - image) * inside
    stripe = np.abs(sine * x - cosine * y - 24 * place[5] + 12)
    image = image + (colours[2] - image) * np.clip(1.5 - stripe, 0, 1)[:, None]

    # Eight bytes of noise a draw, the lowest first whatever the machine's own order.
    noise = source.random_raw(image.size // 4).astype("<u8").view(np.uint8).reshape(2, *image.shape)
    image += (noise[0].astype(np.float64) - noise[1]) * (0.25 / 255)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5)
