"""Pictures become pixels as a viewer shows them, or are refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bnsmooth_cli import InputError
from bnsmooth_cli.data.pictures import decode

RAMP = np.arange(32 * 32).reshape(32, 32) * 64  # 16-bit levels, 0 to 65472
COLOURS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth, colour, rows, *chunks):
    """A PNG file of 32 x 32 pixels, given its rows of bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def shown(body):
    """The pixels (32, 32, 3) of a picture, which are the same from a file and from bytes."""
    return decode([("picture", io.BytesIO(body))])[0].transpose(1, 2, 0)


def grey(levels):
    return np.repeat(levels[:, :, None], 3, 2)


def test_sixteen_bits_of_grey_become_eight():
    expected = grey(np.round(RAMP / 257).astype(np.uint8))
    assert np.array_equal(shown(saved(Image.fromarray(RAMP.astype(np.uint16)))), expected)
    pgm = b"P5 32 32 65535\n" + RAMP.astype(">u2").tobytes()
    assert np.array_equal(shown(pgm), expected)
    twelve = b"P5 32 32 4095\n" + (RAMP // 16).astype(">u2").tobytes()
    assert np.array_equal(shown(twelve), grey(np.round(RAMP // 16 / 4095 * 255).astype(np.uint8)))


def test_sixteen_bits_of_colour_become_eight():
    wide = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)
    for depth, body in (("RGB", png(16, 2, [row.astype(">u2").tobytes() for row in wide])),
                        ("PPM", b"P6 32 32 65535\n" + wide.astype(">u2").tobytes())):  # fmt: skip
        assert np.abs(shown(body).astype(int) - wide / 257).max() < 1, depth


def test_grey_and_two_levels_and_palettes_and_colours_keep_their_levels():
    levels = (RAMP // 256).astype(np.uint8)
    for image in (Image.fromarray(levels), Image.fromarray(levels).convert("P")):
        assert np.array_equal(shown(saved(image)), grey(levels))
    assert np.array_equal(shown(saved(Image.fromarray(levels > 99))), grey(np.where(levels > 99, 255, 0)))
    for kind in ("PNG", "BMP", "PPM"):
        assert np.array_equal(shown(saved(Image.fromarray(COLOURS), kind)), COLOURS)
    assert np.array_equal(shown(saved(Image.fromarray(COLOURS), "WEBP", lossless=True)), COLOURS)


def on_white(colours, alpha):
    a = alpha[:, :, None] / 255
    return colours * a + 255 * (1 - a)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP"])
def test_transparency_shows_a_white_page(mode):
    alpha = (RAMP // 256).astype(np.uint8)
    image = Image.fromarray(np.dstack([COLOURS, alpha]))
    if mode == "LA":
        image = image.convert("LA")
    if mode == "P":
        image = Image.fromarray(np.arange(1024).reshape(32, 32).astype(np.uint8)).convert("P")
        image.putpalette([value for colour in COLOURS.reshape(-1, 3)[:256] for value in colour.tolist()])
        body = saved(image, transparency=bytes(range(256)))
        index = np.arange(1024).reshape(32, 32) % 256
        expected = on_white(COLOURS.reshape(-1, 3)[index], index)
    else:
        body = saved(image, "WEBP", lossless=True, exact=True) if mode == "WEBP" else saved(image)
        expected = on_white(np.asarray(image.convert("RGB")).astype(float), alpha)
    assert np.abs(shown(body) - expected).max() <= 1


def test_a_black_drawing_on_a_transparent_ground_stays_visible():
    canvas = np.zeros((32, 32, 4), np.uint8)
    canvas[8:24, 8:24, 3] = 255
    assert np.array_equal(shown(saved(Image.fromarray(canvas))), grey(np.where(canvas[:, :, 3], 0, 255)))


@pytest.mark.parametrize("alpha", [255, 128, 0])
def test_the_alpha_of_a_bmp_counts_unless_it_is_zero_everywhere(alpha):
    pixels = np.dstack([COLOURS[::-1, :, ::-1], np.full((32, 32), alpha, np.uint8)]).tobytes()
    sizes = struct.pack("<IiiHHIIiiII", 108, 32, 32, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    header = sizes + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    body = b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels
    expected = COLOURS if alpha == 0 else on_white(COLOURS, np.full((32, 32), alpha))
    assert np.abs(shown(body) - expected).max() <= 1


def tRNS(*levels):
    return chunk(b"tRNS", struct.pack(f">{len(levels)}H", *levels))


@pytest.mark.parametrize(("depth", "clear"), [(1, 0), (1, 1), (2, 1), (4, 3), (8, 200), (16, 1000)])
def test_a_transparent_level_of_grey_is_white_for_every_number_of_bits(depth, clear):
    """Pillow scales the levels to 8 bits, but not the transparent one."""
    levels = (np.arange(1024).reshape(32, 32) * 251) % 2**depth
    levels[0, :4] = clear
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in levels]
    else:
        bits = (levels[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [row.tobytes() for row in np.packbits(bits.reshape(32, -1).astype(np.uint8), axis=1)]
    expected = np.where(levels == clear, 255, np.round(levels * 255 / (2**depth - 1)))
    assert np.array_equal(shown(png(depth, 0, rows, tRNS(clear))), grey(expected.astype(np.uint8)))


def test_a_transparent_colour_is_white():
    body = png(8, 2, [row.tobytes() for row in COLOURS], tRNS(*COLOURS[3, 4].tolist()))
    expected = COLOURS.copy()
    expected[3, 4] = 255
    assert np.array_equal(shown(body), expected)
    wide = COLOURS.astype(">u2") * 257
    body = png(16, 2, [row.astype(">u2").tobytes() for row in wide], tRNS(*wide[3, 4].tolist()))
    with pytest.raises(InputError, match=r"picture: .*16 bits, one of which is transparent; save it with an alpha"):
        shown(body)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_cameras_say(kind, orientation):
    image = Image.fromarray(np.kron(np.array([[0, 255], [80, 160]], np.uint8), np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    corners = shown(saved(image, kind, exif=exif, **options))[8::16, 8::16, 0].tolist()
    turned = {
        1: [[0, 255], [80, 160]], 2: [[255, 0], [160, 80]], 3: [[160, 80], [255, 0]], 4: [[80, 160], [0, 255]],
        5: [[0, 80], [255, 160]], 6: [[80, 0], [160, 255]], 7: [[160, 255], [80, 0]], 8: [[255, 160], [0, 80]],
    }  # fmt: skip
    assert corners == turned[orientation]


def test_a_jpeg_of_four_inks_has_its_colours():
    colours = np.kron(np.array([[[200, 30, 60], [40, 180, 90]]], np.uint8), np.ones((32, 16, 1), np.uint8))
    found = shown(saved(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(found.astype(int) - colours)[:, [5, 25]].max() <= 4


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        body = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(shown(body), COLOURS)


def test_floating_point_pixels_are_refused():
    body = b"Pf\n32 32\n-1.0\n" + RAMP.astype("<f4").tobytes()
    # Old versions of Pillow do not know the format.
    with pytest.raises(InputError, match=r"picture: (.*mode F; save it as an 8-bit image|not a readable image)"):
        shown(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (saved(Image.fromarray(COLOURS), "GIF"), "a GIF picture"),
        (saved(Image.fromarray(COLOURS), "TIFF"), "a TIFF picture"),
        (saved(Image.fromarray(COLOURS))[:-300], "picture: not a readable image"),
        (b"", r"picture: not a readable image \(it is none of PNG, JPEG"),
    ],
)
def test_other_files_are_refused_by_what_they_are(body, why, tmp_path):
    with pytest.raises(InputError, match=why):
        shown(body)
    (tmp_path / "a.png").write_bytes(body)
    with pytest.raises(InputError, match=why):
        decode([("picture", tmp_path / "a.png")])
