"""Images whose EXIF is damaged have fine pixels; what can be read of their orientation counts.

An image was refused as a whole when its EXIF was broken anywhere: a wrong byte order or magic number, an offset or a
count that leads nowhere, garbage in the GPS directory of a TIFF, malformed text in a PNG.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from odin.models.images import ImageError, Preprocess, load_image, to_rgb

ORIENTATION = 0x0112
UPRIGHT = Image.fromarray(np.linspace([0, 40, 250], [250, 90, 0], 24 * 16).reshape(16, 24, 3).astype(np.uint8))
STORED = {  # what a camera stores so that its tag makes it upright again
    1: UPRIGHT,
    3: UPRIGHT.transpose(Image.Transpose.ROTATE_180),
    6: UPRIGHT.transpose(Image.Transpose.ROTATE_90),
    8: UPRIGHT.transpose(Image.Transpose.ROTATE_270),
}


def entry(tag, kind, count, value, order="<"):
    return struct.pack(f"{order}HHL", tag, kind, count) + value.ljust(4, b"\0")


def turned(order="<", value=6):
    return entry(ORIENTATION, 3, 1, struct.pack(f"{order}H", value), order)


def exif(*entries, order="<", directory=8, following=0, head=None, count=None):
    """An EXIF block made by hand, so that it can be wrong."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    start = (mark if head is None else head) + struct.pack(f"{order}L", directory)
    number = struct.pack(f"{order}H", len(entries) if count is None else count)
    return start + number + b"".join(entries) + struct.pack(f"{order}L", following)


def jpeg(block, image=STORED[6], segments=()):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, dpi=(72, 72))  # without a resolution Pillow stumbles, and recovers, earlier
    data = file.getvalue()
    parts = [b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block] if block is not None else []
    return data[:2] + b"".join([*parts, *segments]) + data[2:]


def shown(data):
    return np.asarray(to_rgb(Image.open(io.BytesIO(data)))).astype(int)


def is_turned(data):
    """Whether the picture came out upright; if not, it must be exactly as it is stored."""
    pixels = shown(data)
    assert pixels.shape in ((16, 24, 3), (24, 16, 3))
    if pixels.shape == (16, 24, 3):
        assert np.abs(pixels - np.asarray(UPRIGHT)).max() < 30  # of JPEG
        return True
    assert np.abs(pixels - np.asarray(STORED[6])).max() < 30
    return False


LOOP = exif(turned(), following=8)
BEYOND = struct.pack("<L", 0x7FFFFFFF)
READABLE = {
    "whole": exif(turned()),
    "big-endian": exif(turned(">"), order=">"),
    "directories in a loop": LOOP,
    "next directory outside": exif(turned(), following=0x7FFFFFF0),
    "cut off after the tag": exif(turned(), entry(0x011A, 5, 1, BEYOND))[:24],
    "value outside": exif(entry(0x010F, 2, 4000, BEYOND), turned()),
    "unknown type": exif(entry(0x010F, 99, 1, b"x"), turned()),
    "type zero": exif(entry(0x010F, 0, 0xFFFFFFFF, b"x"), turned()),
    "huge count": exif(entry(0x010F, 2, 0xFFFFFFFF, struct.pack("<L", 8)), turned()),
    "GPS directory outside": exif(turned(), entry(0x8825, 4, 1, BEYOND)),
    "GPS directory is the first": exif(turned(), entry(0x8825, 4, 1, struct.pack("<L", 8))),
    "GPS directory of text": exif(turned(), entry(0x8825, 2, 4, b"abc\0")),
    "maker's note outside": exif(turned(), entry(0x8769, 4, 1, struct.pack("<L", 60))) + b"\xff" * 40,
    "more entries than there are": exif(turned(), count=0xFFFF),
    "resolution divided by zero": exif(turned(), entry(0x0128, 3, 1, b"\2"), entry(0x011A, 5, 1, struct.pack("<L", 0))),
    "magic number of the other order": exif(turned(), head=b"II\0*"),
    "tag as LONG": exif(entry(ORIENTATION, 4, 1, b"\6")),
    "tag twice": exif(turned(), turned(value=3)),
}
UNREADABLE = {
    "empty": b"",
    "one byte": b"I",
    "only the byte order": b"II",
    "no directory": b"II*\0\x08\0\0\0",
    "cut off before the tag": exif(turned())[:14],
    "directory outside": exif(turned(), directory=0xFFFFFFF0),
    "no known byte order": exif(turned(), head=b"XX*\0"),
    "wrong byte order": exif(turned(">"), head=b"MM\0*"),
    "not the magic number": exif(turned(), head=b"II\x2b\0"),
    "garbage": bytes(range(200)),
    "tag as text": exif(entry(ORIENTATION, 2, 1, b"6")),
    "tag as a fraction": exif(entry(ORIENTATION, 5, 1, BEYOND)),
    "tag of two numbers": exif(entry(ORIENTATION, 3, 2, b"\6\0\6\0")),
    "tag of no number": exif(entry(ORIENTATION, 3, 0, b"\6")),
    "tag 0": exif(turned(value=0)),
    "tag 9": exif(turned(value=9)),
    "tag 65535": exif(turned(value=65535)),
}


@pytest.mark.parametrize("block", READABLE.values(), ids=READABLE)
def test_the_tag_counts_whatever_else_is_damaged(block):
    assert is_turned(jpeg(block))


@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
def test_a_tag_that_says_nothing_is_ignored(block):
    assert not is_turned(jpeg(block))


@pytest.mark.parametrize("suffix", ["png", "webp", "mpo"])
@pytest.mark.parametrize("damaged", [False, True])
def test_other_formats(suffix, damaged):
    block = READABLE["GPS directory outside"] if damaged else READABLE["whole"]
    file = io.BytesIO()
    several = {"save_all": True, "append_images": [UPRIGHT]} if suffix == "mpo" else {}
    STORED[6].save(file, suffix.upper(), exif=b"Exif\0\0" + block, **several)
    assert is_turned(file.getvalue())


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_tiff_is_turned_once(tmp_path, turn):
    for compression in (None, "tiff_lzw"):
        STORED[turn].save(tmp_path / "x.tif", tiffinfo={ORIENTATION: turn}, compression=compression)
        assert np.array_equal(np.asarray(to_rgb(Image.open(tmp_path / "x.tif"))), np.asarray(UPRIGHT))


def test_tiff_with_a_gps_directory_that_leads_nowhere(tmp_path):
    """Pillow reads the directories of GPS and the like while it decodes a TIFF, and its pixels were lost with them."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ORIENTATION] = 6
    tags.tagtype[0x8825] = 4
    tags[0x8825] = 0x7FFFFFF0
    STORED[6].save(tmp_path / "x.tif", tiffinfo=tags)
    assert is_turned((tmp_path / "x.tif").read_bytes())


@pytest.mark.parametrize(("text", "turns"), [("", False), ("\nexif\n 8\n49zz", False), ("one line", False)])
def test_png_with_exif_as_malformed_text(text, turns):
    from PIL.PngImagePlugin import PngInfo

    file, info = io.BytesIO(), PngInfo()
    info.add_text("Raw profile type exif", text)
    STORED[6].save(file, "PNG", pnginfo=info)
    assert is_turned(file.getvalue()) is turns


def test_png_with_exif_as_text():
    from PIL.PngImagePlugin import PngInfo

    file, info, block = io.BytesIO(), PngInfo(), b"Exif\0\0" + READABLE["whole"]
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    STORED[6].save(file, "PNG", pnginfo=info)
    assert is_turned(file.getvalue())


@pytest.mark.parametrize("block", [None, UNREADABLE["garbage"]], ids=["no EXIF", "broken EXIF"])
@pytest.mark.parametrize("value", ["6", "9"])
def test_orientation_in_xmp_only(block, value):
    packet = f'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="{value}"/>'.encode()
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet
    assert is_turned(jpeg(block, segments=[segment])) is (value == "6")


def test_broken_pixels_are_refused_as_ever(tmp_path):
    whole = jpeg(UNREADABLE["garbage"])
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) - 200])
    with pytest.raises(ImageError, match=r"[Tt]runcated"):
        load_image(tmp_path / "x.jpg", Preprocess())
    (tmp_path / "y.jpg").write_bytes(whole)
    assert load_image(tmp_path / "y.jpg", Preprocess(resize=8, crop=(8, 8))).shape == (1, 3, 8, 8)
