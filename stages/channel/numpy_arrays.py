"""Numpy arrays in slots: sent contiguous, read with whatever strides they came with."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from odin.partitioner.strides import contiguous_strides
from odin.stages.channel.arrays import Layout
from odin.stages.channel.wire import DTYPE_CODES, DTYPES, TensorMeta

__all__ = ["NUMPY_DTYPES", "NumpyArrays", "numpy_code", "numpy_dtype"]

_NAMES = (
    "float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool", "complex64", "complex128",
    "uint16", "uint32", "uint64",
)  # fmt: skip
NUMPY_DTYPES: dict[int, np.dtype[Any]] = {DTYPE_CODES[name]: np.dtype(name) for name in _NAMES}
"""By code on the wire; those that numpy does not have are missing."""
_CODES = {dtype: code for code, dtype in NUMPY_DTYPES.items()}


def numpy_dtype(code: int) -> np.dtype[Any]:
    """Return numpy's dtype for a code on the wire.

    Raises
    ------
    ValueError
        If numpy does not have it.
    """
    dtype = NUMPY_DTYPES.get(code)
    if dtype is None:
        raise ValueError(
            f"numpy has no {DTYPES[code]}, and this engine computes with numpy arrays of {', '.join(_NAMES)}; "
            "take engine='torch'"
        )
    return dtype


def numpy_code(dtype: np.dtype[Any]) -> int:
    """Return the code on the wire for one of numpy's dtypes; the order of its bytes does not matter.

    Raises
    ------
    ValueError
        If it has none.
    """
    code = _CODES.get(dtype.newbyteorder("="))
    if code is None:
        raise ValueError(f"arrays of {dtype} cannot travel between stages; supported: numpy's {', '.join(_NAMES)}")
    return code


class NumpyArrays:
    """See :class:`odin.stages.channel.arrays.Arrays`."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping

    def describe(self, array: np.ndarray[Any, Any]) -> Layout:
        """See :meth:`odin.stages.channel.arrays.Arrays.describe`."""
        return Layout(numpy_code(array.dtype), array.nbytes, array.shape, contiguous_strides(array.shape))

    def write(self, array: np.ndarray[Any, Any], meta: TensorMeta, start: int) -> None:
        """See :meth:`odin.stages.channel.arrays.Arrays.write`."""
        np.copyto(self.read(meta, start), array)

    def read(self, meta: TensorMeta, start: int) -> np.ndarray[Any, Any]:
        """See :meth:`odin.stages.channel.arrays.Arrays.read`."""
        dtype = numpy_dtype(meta.dtype)
        strides = [stride * dtype.itemsize for stride in meta.strides]
        return np.ndarray(meta.shape, dtype, self._mapping, start, strides)
