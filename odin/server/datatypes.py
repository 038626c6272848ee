"""Datatypes of the Open Inference Protocol, and tensors of each as raw bytes.

BF16 has no type in NumPy: its elements are held as uint16, with their bits. BYTES elements are ``bytes`` objects in an
array of type object; raw, each is its length (4 bytes, little endian) and its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from odin.server.failures import FailureKind, RequestError

__all__ = ["DATATYPES", "Datatype", "checked_shape", "count_of", "datatype_of", "from_raw", "to_raw"]

_LENGTH = struct.Struct("<I")
_MOST_AXES = 32  # of a NumPy array of any version
_MOST_ELEMENTS = 2**40  # far beyond any message, and so few that no product overflows
_MOST_TEXTS = 2**16  # BYTES elements are Python objects, each


class Datatype(NamedTuple):
    """One datatype.

    Attributes
    ----------
    name
        In the protocol: ``"FP32"``.
    held_as
        Type of the arrays that hold it here, little endian.
    torch_name
        Name of PyTorch's type without its prefix; empty if it has none.
    contents
        Field of gRPC's typed contents; empty if there is none.
    """

    name: str
    held_as: np.dtype[Any]
    torch_name: str
    contents: str


DATATYPES = {
    one.name: one
    for one in (
        Datatype("BOOL", np.dtype("?"), "bool", "bool_contents"),
        Datatype("UINT8", np.dtype("u1"), "uint8", "uint_contents"),
        Datatype("UINT16", np.dtype("<u2"), "uint16", "uint_contents"),
        Datatype("UINT32", np.dtype("<u4"), "uint32", "uint_contents"),
        Datatype("UINT64", np.dtype("<u8"), "uint64", "uint64_contents"),
        Datatype("INT8", np.dtype("i1"), "int8", "int_contents"),
        Datatype("INT16", np.dtype("<i2"), "int16", "int_contents"),
        Datatype("INT32", np.dtype("<i4"), "int32", "int_contents"),
        Datatype("INT64", np.dtype("<i8"), "int64", "int64_contents"),
        Datatype("FP16", np.dtype("<f2"), "float16", ""),
        Datatype("FP32", np.dtype("<f4"), "float32", "fp32_contents"),
        Datatype("FP64", np.dtype("<f8"), "float64", "fp64_contents"),
        Datatype("BF16", np.dtype("<u2"), "bfloat16", ""),
        Datatype("BYTES", np.dtype("O"), "", "bytes_contents"),
    )
}
"""By name."""


def datatype_of(name: object) -> Datatype:
    """Look a datatype up.

    Raises
    ------
    RequestError
        If there is none of that name; tells which there are.
    """
    found = DATATYPES.get(name) if isinstance(name, str) else None
    if found is None:
        raise RequestError(FailureKind.INVALID, f"datatype {name!r} is none of {', '.join(DATATYPES)}")
    return found


def count_of(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def checked_shape(shape: Sequence[int], datatype: Datatype, *, what: str) -> tuple[int, ...]:
    """Return a shape that a client has sent.

    Raises
    ------
    RequestError
        If it has too many axes, a negative size, or more elements than any message holds.
    """
    if len(shape) > _MOST_AXES:
        raise RequestError(FailureKind.INVALID, f"{what}: a shape of {len(shape)} axes; {_MOST_AXES} are the most")
    if any(size < 0 for size in shape):
        told = "has a negative size; -1 is for metadata, say how many there are"
        raise RequestError(FailureKind.INVALID, f"{what}: shape {list(shape)} {told}")
    # A size of 0 makes the product 0, and the others may be anything: NumPy takes none whose product overflows.
    most = _MOST_TEXTS if datatype.name == "BYTES" else _MOST_ELEMENTS
    if math.prod(size or 1 for size in shape) > most:
        told = f"has more than {most} elements, the most of {datatype.name}"
        raise RequestError(FailureKind.INVALID, f"{what}: shape {list(shape)} {told}")
    return tuple(shape)


def from_raw(datatype: Datatype, shape: Sequence[int], raw: bytes | memoryview, *, what: str) -> npt.NDArray[Any]:
    """Return the tensor that raw bytes hold: a view of them, which must not be changed, unless it is of BYTES.

    Parameters
    ----------
    datatype, shape
        Of the tensor.
    raw
        Its elements, row by row, little endian.
    what
        What it is, for errors: ``"input 'image'"``.

    Raises
    ------
    RequestError
        If there are too few or too many bytes.
    """
    if datatype.name == "BYTES":
        count = count_of(shape)
        elements = list(islice(_split(memoryview(raw), what), min(count, len(raw)) + 1))  # no millions in vain
        if len(elements) != count:
            more = "or more " if len(elements) > count else ""
            raise RequestError(
                FailureKind.INVALID, f"{what}: {len(elements)} {more}elements, but shape {list(shape)} has {count}"
            )
        array = np.empty(len(elements), object)
        array[:] = elements
        return array.reshape(shape)
    expected = count_of(shape) * datatype.held_as.itemsize
    if len(raw) != expected:
        raise RequestError(
            FailureKind.INVALID,
            f"{what}: {len(raw)} bytes, but shape {list(shape)} of {datatype.name} takes {expected}",
        )
    return np.frombuffer(raw, datatype.held_as).reshape(shape)


def _split(raw: memoryview, what: str) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise RequestError(FailureKind.INVALID, f"{what}: {len(raw) - at} bytes at its end are no length")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise RequestError(
                FailureKind.INVALID, f"{what}: an element of {length} bytes, of which {len(raw) - at} are there"
            )
        yield bytes(raw[at : at + length])
        at += length


def to_raw(datatype: Datatype, array: npt.NDArray[Any]) -> bytes | memoryview:
    """Return a tensor's elements as raw bytes: a view of it where it lies in rows, as nearly always."""
    if datatype.name == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element for element in array.ravel())
    if array.size == 0:  # of which there is no view as bytes
        return b""
    in_rows: Any = np.ascontiguousarray(array, datatype.held_as)
    return memoryview(in_rows).cast("B")
