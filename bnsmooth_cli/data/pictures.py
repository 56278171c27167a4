"""Decode pictures into 32 x 32 pixels of red, green and blue, as an image viewer shows them.

A picture is turned by its EXIF orientation, its transparent parts are white, and 16 bits of grey are scaled to 8. Of an
animation, the first frame is taken. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import HEAD, check_regular, first_line, kind_of, read_head

SIZE: Final = 32  # pixels per side; pictures of other sizes are resized
#: File names of pictures end like this.
SUFFIXES: Final = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
#: Pillow tells formats apart by content, and starts other programs for some of them (Ghostscript for EPS).
_FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_MAX_PIXELS: Final = 50_000_000  # of a picture; a damaged one may declare any number
_LARGE: Final = 4_000_000  # pixels; larger pictures are decoded one at a time
_GREY_16: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow has "I" for 16-bit PNG or PGM files
_HIGHEST: Final = 65_535
#: Pillow scales grey levels of 2 and 4 bits to 8, and leaves the level that is transparent as it is.
_SCALES: Final = {"L;2": 85, "L;4": 17}


def decode(sources: Sequence[tuple[str, Path | io.BytesIO]]) -> UInt8[np.ndarray, "count 3 32 32"]:
    """Decode pictures.

    Args:
        sources: For each picture, a name for messages, and its file or its bytes.

    Raises:
        InputError: If a picture cannot be read, or has a kind of pixels that a viewer could show in several ways.
    """
    images = np.empty((len(sources), 3, SIZE, SIZE), np.uint8)
    alone = threading.Lock()

    def decode_one(i: int) -> None:
        name, source = sources[i]
        try:
            if isinstance(source, Path):
                check_regular(source)
            with Image.open(source, formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > _MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {_MAX_PIXELS}")
                with alone if pixels > _LARGE else nullcontext():
                    rgb = as_shown(image)
                    if rgb.size != (SIZE, SIZE):
                        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                images[i] = np.asarray(rgb).transpose(2, 0, 1)
        except Exception as error:  # a damaged picture may raise anything
            raise InputError(f"{name}: not a readable image ({_reason(source, error)})") from error

    # Pillow decodes without holding the interpreter's lock. It warns of oddities in pictures that it can read.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for _ in pool.map(decode_one, range(len(sources)), chunksize=256):
            pass
    return images


def _reason(source: Path | io.BytesIO, error: Exception) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error)
    head = read_head(source) if isinstance(source, Path) else source.getvalue()[:HEAD]
    return f"it is {kind_of(head) or 'none of ' + ', '.join(_FORMATS)}"


def as_shown(image: Image.Image) -> Image.Image:
    """A picture in red, green and blue, as a viewer shows it on a white page.

    Raises:
        ValueError: If the picture's pixels have no levels to show, such as floating-point numbers.

    >>> as_shown(Image.new("LA", (1, 1), (0, 255 // 3))).getpixel((0, 0))  # a third of black on white
    (170, 170, 170)
    """
    raw = str(image.tile[0][3]) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    ImageOps.exif_transpose(image, in_place=True)
    clear = image.info.get("transparency")
    if image.mode in _GREY_16:
        return _from_16_bits(image, clear)
    if isinstance(clear, int) and clear * _SCALES.get(raw, 1) <= 255:
        image.info["transparency"] = clear * _SCALES.get(raw, 1)
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        raise ValueError("colours of 16 bits, one of which is transparent; save it with an alpha channel")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # many programs leave a BMP's alpha at 0, and viewers ignore it then
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(f"pixels of Pillow's mode {image.mode}; save it as an 8-bit image")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image, clear: object) -> Image.Image:
    """A grey picture of 16 bits in 8: level v becomes v / 257, rounded; the transparent level becomes white."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > _HIGHEST:
        raise ValueError(f"grey levels from {levels.min()} to {levels.max()}, expected 0 to {_HIGHEST}")
    if clear is not None:
        levels = np.where(levels == clear, _HIGHEST, levels)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
