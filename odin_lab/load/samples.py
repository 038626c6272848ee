"""The inputs of requests: random, of the type and shape that the model asks for, or photographs from a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from odin.server.datatypes import DATATYPES
from odin_lab.load.client import Input, NamedArray

__all__ = ["fix_shapes", "make_samples", "parse_input"]

_MEAN, _STD = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_INPUT = re.compile(r"(?P<name>.+):(?P<datatype>[A-Z0-9]+):(?P<sizes>\d+(?:,\d+)*)")


def parse_input(text: str) -> Input:
    """Parse an input: ``"image:FP32:1,3,224,224"``.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = _INPUT.fullmatch(text)
    if match is None or match["datatype"] not in DATATYPES:
        raise ValueError(
            f"--input {text}: give NAME:DATATYPE:SIZES, such as image:FP32:1,3,224,224; datatypes are "
            f"{', '.join(DATATYPES)}"
        )
    return Input(match["name"], match["datatype"], tuple(int(size) for size in match["sizes"].split(",")))


def fix_shapes(inputs: Sequence[Input], given: Sequence[Input], *, batch: int) -> tuple[Input, ...]:
    """Give every input a size in each dimension.

    Parameters
    ----------
    inputs
        As the model describes them.
    given
        What the user says, which counts more.
    batch
        The leading size where the model leaves it free.

    Raises
    ------
    ValueError
        If one is left free, or is of an unknown type; tells what to do.
    """
    own = {one.name: one for one in given}
    if inputs and (unknown := [name for name in own if name not in [one.name for one in inputs]]):
        raise ValueError(
            f"--input {unknown[0]}: the model has no such input; it has {', '.join(repr(one.name) for one in inputs)}"
        )
    fixed = []
    for one in [own.get(known.name, known) for known in inputs] or own.values():
        shape = (batch, *one.shape[1:]) if one.shape[:1] == (-1,) else one.shape
        if any(size < 0 for size in shape):
            raise ValueError(
                f"input {one.name!r} has shape {list(one.shape)}, whose sizes the request chooses: "
                f"say --input {one.name}:{one.datatype}:{','.join('N' if size < 0 else str(size) for size in shape)}"
            )
        if one.datatype not in DATATYPES:
            raise ValueError(f"input {one.name!r} is of datatype {one.datatype!r}, which is none of the protocol's")
        fixed.append(Input(one.name, one.datatype, shape))
    if not fixed:
        raise ValueError("the server does not say which inputs the model has: say --input NAME:DATATYPE:SIZES")
    return tuple(fixed)


def make_samples(
    inputs: Sequence[Input], *, count: int, seed: int, images: Path | None = None
) -> list[list[NamedArray]]:
    """Make the inputs of ``count`` different requests.

    Parameters
    ----------
    inputs
        Without free sizes.
    seed
        Of random ones.
    images
        Folder of image files, which are taken in turn in the order of their names: as they are for a BYTES input; for
        one of four dimensions scaled, cropped, and normalised as for ImageNet (integers are left as they are).

    Raises
    ------
    ValueError
        If there are no images in the folder, or the model takes none.
    """
    if images is None:
        random = np.random.default_rng(seed)
        return [[NamedArray(one.name, one.datatype, _random(one, random)) for one in inputs] for _ in range(count)]
    if len(inputs) != 1:
        raise ValueError(f"--images: the model takes {len(inputs)} inputs, and images are for models with one")
    (one,) = inputs
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files:
        raise ValueError(f"--images {images}: no image files there ({', '.join(_ENDINGS)})")
    leading = one.shape[0] if one.shape else 1
    return [
        [
            NamedArray(
                one.name,
                one.datatype,
                _of_files(one, [files[(number * leading + row) % len(files)] for row in range(leading)]),
            )
        ]
        for number in range(min(count, len(files)))
    ]


def _random(one: Input, random: np.random.Generator) -> npt.NDArray[Any]:
    held_as = DATATYPES[one.datatype].held_as
    if one.datatype == "BYTES":
        array = np.empty(one.shape, object)
        array[...] = b"odin"
        return array
    if one.datatype == "BF16":
        return (random.random(one.shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if held_as.kind == "f":
        return random.random(one.shape, np.float32).astype(held_as)
    most = {"b": 2, "u": 256}.get(held_as.kind, 128)
    return random.integers(0, most, one.shape).astype(held_as)


def _of_files(one: Input, files: Sequence[Path]) -> npt.NDArray[Any]:
    if one.datatype == "BYTES":
        array = np.empty(len(files), object)
        array[:] = [file.read_bytes() for file in files]
        return array.reshape(one.shape)
    channels_last = len(one.shape) == 4 and one.shape[3] == 3
    if len(one.shape) != 4 or not (channels_last or one.shape[1] == 3) or one.datatype == "BF16":
        raise ValueError(
            f"--images: input {one.name!r} is {one.datatype} of shape {list(one.shape)}, and no image: [N, 3, H, W], "
            "[N, H, W, 3] or BYTES"
        )
    height, width = one.shape[1:3] if channels_last else one.shape[2:]
    held_as = DATATYPES[one.datatype].held_as
    rows = []
    for file in files:
        values: npt.NDArray[Any] = np.asarray(_cropped(file, width, height), np.float32)
        if held_as.kind == "f":
            values = (values / 255 - _MEAN) / _STD
        rows.append(values if channels_last else values.transpose(2, 0, 1))
    return np.ascontiguousarray(rows, held_as)


def _cropped(file: Path, width: int, height: int) -> Image.Image:
    """The middle of the image, as large as possible, in this size."""
    try:
        with Image.open(file) as image:
            whole = image.convert("RGB")
    except OSError as error:
        raise ValueError(f"--images: {file} cannot be read: {error}") from error
    scale = min(whole.width / width, whole.height / height)
    left, top = (whole.width - width * scale) / 2, (whole.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return whole.resize((width, height), Image.Resampling.BILINEAR, box=box)
