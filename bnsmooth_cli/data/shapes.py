"""The built-in images: ten shapes on noisy backgrounds, drawn by numpy, the same bytes on every machine.

`shapes` documents what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 32  # pixels per side
TRAIN: Final = 10_000
TEST: Final = 2_000
_CHUNK: Final = 1_000  # images drawn at once, which bounds the memory; another value draws other images
_CHECK: Final = 4  # pixels per side of the background's checks

Floats = NDArray[np.float64]


def _radius(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v)


def _box(u: Floats, v: Floats, width: float, height: float) -> Floats:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


#: Class -> a function that is negative inside the shape and grows roughly as the distance from its edge. A shape fills
#: about the unit disc; u points right and v down. Each shape is its own mirror image, so a flip keeps its class.
_SHAPES: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "disc": lambda u, v: _radius(u, v) - 0.9,
    "ring": lambda u, v: np.abs(_radius(u, v) - 0.75) - 0.2,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "frame": lambda u, v: np.abs(_box(u, v, 0.7, 0.7)) - 0.18,
    "triangle": lambda u, v: np.maximum(v - 0.55, 0.866 * np.abs(u) - 0.5 * v - 0.55),
    "plus": lambda u, v: np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0)),
    "bar": lambda u, v: _box(u, v, 1.0, 0.35),
    "half disc": lambda u, v: np.maximum(_radius(u, v - 0.4) - 1.0, v - 0.4),
    "chevron": lambda u, v: np.maximum(0.7 * np.abs(v - np.abs(u) + 0.7) - 0.28, np.abs(u) - 0.95),
    "crescent": lambda u, v: np.maximum(_radius(u, v) - 1.0, 0.8 - _radius(u, v + 0.5)),
}
CLASSES: Final[tuple[str, ...]] = tuple(_SHAPES)


def shapes() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Training images (10000, 3, 32, 32) and labels (10000,), then 2,000 test images and labels.

    An image shows one shape of its class over a background. The classes are equally frequent and in random order.
    Every U below is a new uniform draw:

    - Shape: its centre U[-4, 4]^2 pixels from the middle, its radius U[7, 13] pixels, tilted by
      2 atan(U[-0.4, 0.4]), at most 44 degrees, in one colour U[0.4, 1]^3, its edge blended over about one pixel.
    - Background: a colour U[0, 0.6]^3, plus a gradient that reaches U[-0.25, 0.25] at 16 pixels from the middle
      in the direction 2 atan(U[-1, 1]), plus U[-0.25, 0.25] for each channel of each check of 4 x 4 pixels.
    - Over both: a stripe 2 pixels wide in a colour U[0, 1]^3, at U[-12, 12] pixels from the middle along its
      normal, which has the direction 2 atan(U[-1, 1]); then noise U[-0.15, 0.15] + U[-0.15, 0.15] on each
      channel of each pixel, each U of 256 levels. The result is cut to [0, 1] and rounded to bytes.

    The ranges of the two colours overlap, so a few shapes are hardly visible.

    All randomness is raw PCG64 output. All arithmetic is on doubles, element by element, in operations that IEEE 754
    defines exactly: every system and every version of numpy draws the same bytes.

    >>> images, labels, _, _ = shapes()
    >>> images.shape, [CLASSES[label] for label in labels[:3]]
    ((10000, 3, 32, 32), ['crescent', 'ring', 'chevron'])
    """
    return (*_split(TRAIN, seed=1), *_split(TEST, seed=2))


def _split(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # numpy guarantees the raw stream of a bit generator, but not the numbers that Generator makes from it.
    source = np.random.PCG64(seed)
    labels = np.argsort(source.random_raw(count), kind="stable").astype(np.int64) % len(CLASSES)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images[chunk] = _draw(labels[chunk], source)
    return images, labels


def _uniform(source: np.random.PCG64, low: float, high: float, *shape: int) -> Floats:
    raw: NDArray[np.uint64] = source.random_raw(int(np.prod(shape))).reshape(shape)
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53  # the multiples of 2^-53 in [0, 1)
    return low + (high - low) * unit


def _direction(t: Floats) -> tuple[Floats, Floats]:
    """Cosine and sine of 2 atan(t) in exact operations, as cos and sin differ between systems."""
    square = t * t
    return (1 - square) / (1 + square), 2 * t / (1 + square)


def _draw(labels: NDArray[np.int64], source: np.random.PCG64) -> Floats:
    each = (len(labels), 1, 1)
    colour = (len(labels), 3, 1, 1)
    along = np.arange(SIZE) - (SIZE - 1) / 2
    x, y = along[None, None, :], along[None, :, None]

    radius = _uniform(source, 7, 13, *each)
    u, v = (x - _uniform(source, -4, 4, *each)) / radius, (y - _uniform(source, -4, 4, *each)) / radius
    cosine, sine = _direction(_uniform(source, -0.4, 0.4, *each))
    u, v = cosine * u + sine * v, cosine * v - sine * u
    distance = np.empty_like(u)
    for label, shape in enumerate(_SHAPES.values()):
        members = labels == label
        distance[members] = shape(u[members], v[members])

    cosine, sine = _direction(_uniform(source, -1, 1, *each))
    gradient = (cosine * x + sine * y) * _uniform(source, -0.25 / 16, 0.25 / 16, *each)
    checks = _uniform(source, -0.25, 0.25, len(labels), 3, SIZE // _CHECK, SIZE // _CHECK)
    image = _uniform(source, 0, 0.6, *colour) + gradient[:, None]
    image += checks.repeat(_CHECK, axis=2).repeat(_CHECK, axis=3)
    image = _paint(image, _uniform(source, 0.4, 1, *colour), distance * radius)

    cosine, sine = _direction(_uniform(source, -1, 1, *each))
    stripe = np.abs(cosine * x + sine * y - _uniform(source, -12, 12, *each)) - 1
    image = _paint(image, _uniform(source, 0, 1, *colour), stripe)

    # Each draw gives eight bytes of noise, the lowest first on every machine.
    noise = source.random_raw(image.size // 4).astype("<u8").view(np.uint8).reshape(2, *image.shape)
    image += (noise[0].astype(np.float64) - noise[1]) * (0.3 / 255)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5)


def _paint(image: Floats, colour: Floats, distance: Floats) -> Floats:
    """Blend the colour into the image where the distance, in pixels, is negative; half of each at zero."""
    return image + (colour - image) * np.clip(0.5 - distance, 0, 1)[:, None]
