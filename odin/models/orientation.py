"""Which way up an image file is to be shown: the one EXIF tag that says so, whatever else in the EXIF is damaged.

EXIF is a TIFF file of its own inside the image: a byte order (``II`` or ``MM``), the number 42, and the offset of the
first directory, whose entries are ``tag u16 | type u16 | count u32 | value``. A value of one number lies in the entry
itself, so no offset has to be followed: where entries point to, how large they say they are, other directories, GPS and
makers' notes do not matter.
"""

from __future__ import annotations

import re
import struct

from PIL import Image, TiffImagePlugin

__all__ = ["upright"]

_ORIENTATION = 0x0112
_INTEGERS = {3: "H", 4: "L", 8: "h", 9: "l"}
"""Type codes of TIFF that an orientation is written in; SHORT by the standard."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it as its orientation tag says; as it is where no such tag can be read.

    Raises
    ------
    Exception
        Whatever PIL raises on pixels that it cannot decode; never for metadata.
    """
    # PIL reads all EXIF of a TIFF while it decodes, and fails where any of it is damaged: it is shown none.
    vars(image)["getexif"] = Image.Exif
    orientation: object = None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = image.tag_v2.get(_ORIENTATION)  # decoding removes it
    image.load()  # a PNG may have its metadata after its pixels
    if not isinstance(orientation, int):
        orientation = _in_exif(_exif(image))
    if orientation is None:
        orientation = _in_xmp(image)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _exif(image: Image.Image) -> bytes:
    """The EXIF that a file carries, without the name in front of it; empty if there is none."""
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        try:  # a PNG written by ImageMagick: three lines of header, then hexadecimal digits
            exif = bytes.fromhex("".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:]))
        except ValueError:
            return b""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return exif


def _in_exif(exif: bytes) -> int | None:
    """The orientation in the first directory; None if there is none or it cannot be reached."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or exif[2:4] not in (b"*\0", b"\0*"):
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHL", exif, entry)
            if tag == _ORIENTATION:
                return struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)[0] if count == 1 else None
    except (struct.error, KeyError):  # cut off, or the orientation is of a type that holds no whole number
        return None
    return None


def _in_xmp(image: Image.Image) -> int | None:
    """The orientation that editing programs write as XML."""
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    text = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
    return None if found is None else int(found[1])
