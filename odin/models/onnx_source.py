"""An ONNX file as a source: example inputs of the sizes that it says, or leaves to the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from odin.partitioner.engines.onnx_file import OnnxFile, OnnxValue, read_onnx

__all__ = ["IMAGE_SIZE", "open_onnx"]

IMAGE_SIZE = 224
"""Of images whose size the file leaves free."""
_CHANNELS = (1, 3, 4)


def open_onnx(
    path: Path, *, example: tuple[torch.Tensor, ...] | None, image_size: int | None
) -> tuple[OnnxFile, tuple[torch.Tensor, ...]]:
    """Look at a file, and return it with example inputs, seeded noise unless they are given.

    A leading size that is free is 1, the height and width of images that are free are ``image_size`` pixels, or 224.

    Raises
    ------
    ValueError
        If the file cannot be taken, a size is free that nobody gave, or the example or image size does not fit.
    """
    file = read_onnx(path)
    if example is not None:
        _check_example(file, example)
        return file, example
    return file, tuple(_noise(file, value, image_size) for value in file.inputs)


def _check_example(file: OnnxFile, example: Sequence[torch.Tensor]) -> None:
    takes = f"model {file.path} takes {', '.join(map(str, file.inputs))}"
    if len(example) != len(file.inputs):
        raise ValueError(f"{takes}, and the example has {len(example)} inputs: give one for each")
    for value, tensor in zip(file.inputs, example, strict=True):
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        fits = value.sizes is None or (
            len(shape) == len(value.sizes)
            and all(isinstance(size, str) or size == its for size, its in zip(value.sizes, shape, strict=True))
        )
        if dtype != value.dtype or not fits:
            raise ValueError(f"{takes}, and the example's {value.name} is {dtype}{shape}")


def _noise(file: OnnxFile, value: OnnxValue, image_size: int | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = _shape(file, value, image_size)
    try:
        tensor = torch.randn(shape, generator=generator)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"model {file.path} takes {value}, which does not fit into memory: export it with smaller inputs"
        ) from error
    dtype: torch.dtype = getattr(torch, value.dtype)
    # small numbers: they may be indices
    return tensor.to(dtype) if dtype.is_floating_point else tensor.abs().to(dtype)


def _shape(file: OnnxFile, value: OnnxValue, image_size: int | None) -> tuple[int, ...]:
    sizes = list(value.sizes or ())
    if sizes and isinstance(sizes[0], str):
        sizes[0] = 1
    axes = _image_axes(sizes) if len(file.inputs) == 1 else ()
    for axis in axes:
        fixed = sizes[axis]
        if isinstance(fixed, str):
            sizes[axis] = image_size or IMAGE_SIZE
        elif image_size not in (None, fixed):
            raise ValueError(f"model {file.path} takes images of {fixed} pixels only; export it at {image_size}")
    if image_size is not None and not axes:
        raise ValueError(f"model {file.path} takes {value}: no image that could be of {image_size} pixels")
    free = next((size or "?" for size in sizes if isinstance(size, str)), None)
    if value.sizes is None or free is not None:
        which = "its number of dimensions" if free is None else f"the size {free}"
        raise ValueError(
            f"model {file.path} takes {value} and leaves {which} open: give example_input= of the sizes to come"
        )
    return tuple(size for size in sizes if isinstance(size, int))


def _image_axes(sizes: Sequence[int | str]) -> tuple[int, ...]:
    """Where height and width are, if it looks like images, channels first or last."""
    if len(sizes) != 4:
        return ()
    if sizes[1] in _CHANNELS:
        return (2, 3)
    return (1, 2) if sizes[3] in _CHANNELS else ()
