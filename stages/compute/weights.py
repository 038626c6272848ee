"""Weights as plain arrays, so that one copy per node in Ray's object store serves every stage without copying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from odin.partitioner.strides import contiguous_strides
from odin.stages.channel.numpy_arrays import numpy_code, numpy_dtype

__all__ = ["ALIGNMENT", "StoredTensor", "load_arrays", "store_arrays"]

ALIGNMENT = 64
"""Where runtimes read weights in place, these start at multiples of this many bytes."""
_RAY_ALIGNS_NBYTES = 2048
"""Ray starts arrays of at least so many bytes at multiples of 64, and shorter ones at multiples of 8."""


class StoredTensor(NamedTuple):
    """A tensor as a 1-D array of bytes with what is needed to read it.

    Attributes
    ----------
    dtype
        Code on the wire.
    strides
        In elements; none for a packed tensor.
    form
        oneDNN's description of a packed tensor (:mod:`odin.stages.compute.opaque`); empty for a plain one.
    """

    data: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    form: bytes = b""


def store_arrays(weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, StoredTensor]:
    """Describe numpy arrays as arrays of bytes that share their memory, except short ones and those with gaps.

    Put the result into Ray's object store, from which every process of a node reads them in place and aligned.

    Raises
    ------
    ValueError
        If a weight is of a type that stages cannot hold; the message names both.
    """
    stored = {}
    for name, weight in weights.items():
        try:
            code = numpy_code(weight.dtype)
        except ValueError as error:
            raise ValueError(f"weight {name}: {error}") from error
        data = np.ascontiguousarray(weight, numpy_dtype(code)).reshape(-1).view(np.uint8)
        if data.nbytes < _RAY_ALIGNS_NBYTES:
            data = np.concatenate([data, np.zeros(_RAY_ALIGNS_NBYTES - data.nbytes, np.uint8)])
        stored[name] = StoredTensor(data, code, weight.shape, contiguous_strides(weight.shape))
    return stored


def load_arrays(stored: Mapping[str, StoredTensor]) -> dict[str, np.ndarray[Any, Any]]:
    """View stored arrays as numpy arrays that cannot be written; only what lies at an odd address is copied.

    Raises
    ------
    ValueError
        If one is packed for PyTorch, or of a type that numpy does not have.
    """
    weights = {}
    for name, (data, code, shape, strides, form) in stored.items():
        if form:
            raise ValueError(f"weight {name} is packed for PyTorch; store the plain one for other engines")
        dtype = numpy_dtype(code)
        if data.ctypes.data % ALIGNMENT:
            data = _aligned_copy(data)
        weight = np.ndarray(shape, dtype, data, 0, [stride * dtype.itemsize for stride in strides])
        weight.flags.writeable = False
        weights[name] = weight
    return weights


def _aligned_copy(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    room = np.empty(data.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + data.nbytes]
    copy[:] = data
    return copy
