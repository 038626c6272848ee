"""Examples by which a model is quantised: from what a user gives to the batches that the quantiser takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from odin.models.image_files import find_images
from odin.models.images import load_image
from odin.models.sources import Source, as_tensors
from odin.partitioner.chain import Chain
from odin.partitioner.engines.cut_model import Array

__all__ = ["CALIBRATION_IMAGES", "calibration_batches", "load_examples", "spread"]

CALIBRATION_IMAGES = 128
"""As many of a folder's images are taken, evenly from its sorted paths."""
_BATCH = 16

T = TypeVar("T")


def calibration_batches(chain: Chain, calibration: Any) -> list[tuple[Array, ...]]:
    """Bring examples into batches of contiguous arrays.

    Parameters
    ----------
    calibration
        A tensor or ndarray of many samples, or an iterable of what single calls take: a tensor, or a tuple of them for
        several inputs, each with a leading batch dimension. None: no examples.

    Raises
    ------
    ValueError
        If there are none, or one does not fit the model's inputs; the message says which.
    """
    if calibration is None:
        return []
    if isinstance(calibration, (str, bytes, Mapping)) or not isinstance(calibration, (torch.Tensor, Iterable)):
        raise ValueError(
            f"calibration={calibration!r:.60} is no example input; give a tensor of images, or an iterable of inputs"
        )
    whole = isinstance(calibration, (torch.Tensor, np.ndarray))
    examples = [as_tensors(example) for example in ([calibration] if whole else calibration)]
    for number, example in enumerate(examples):
        _check_example(chain, example, number)
    if not examples or not sum(len(example[0]) for example in examples if example[0].dim()):
        raise ValueError("calibration holds no example; give a hundred images like those to come")
    if not chain.inputs[0].shape:
        return [tuple(tensor.contiguous().numpy() for tensor in example) for example in examples]
    size = _BATCH if chain.dynamic_batch else chain.inputs[0].shape[0]
    joined = [torch.cat(tensors) for tensors in zip(*examples, strict=True)]
    return [
        tuple(t.contiguous().numpy() for t in parts) for parts in zip(*(t.split(size) for t in joined), strict=True)
    ]


def _check_example(chain: Chain, example: tuple[torch.Tensor, ...], number: int) -> None:
    wanted = ", ".join(f"{spec.dtype}{[*spec.shape]}" for spec in chain.inputs)
    found = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')}{[*tensor.shape]}" for tensor in example)
    problem = ValueError(
        f"calibration example {number} is {found}, and {chain.name} takes {wanted}"
        + (" with any leading size" if chain.dynamic_batch else "")
    )
    if len(example) != len(chain.inputs):
        raise problem
    for tensor, spec in zip(example, chain.inputs, strict=True):
        sizes = tuple(tensor.shape)[1:] == tuple(spec.shape)[1:] and tensor.dim() == len(spec.shape)
        whole = chain.dynamic_batch or not spec.shape or tensor.shape[0] % spec.shape[0] == 0
        if not (sizes and whole and str(tensor.dtype) == f"torch.{spec.dtype}"):
            raise problem


def load_examples(folder: str | Path, source: Source, *, count: int = CALIBRATION_IMAGES) -> torch.Tensor:
    """Load images below a folder as the model takes them, ``(count, ...)`` at most, evenly from the sorted paths.

    Raises
    ------
    ValueError
        If there are none, or how images become the model's input is not known.
    """
    if source.preprocess is None:
        raise ValueError(
            f"{source.name}: how to turn image files into its input is not known; give tensors to odin.Pipeline"
        )
    return torch.cat([load_image(path, source.preprocess) for path in spread(find_images([folder]), count)])


def spread(whole: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` of these, evenly spaced."""
    step = max(1.0, len(whole) / count)
    return [whole[int(index * step)] for index in range(min(count, len(whole)))]
