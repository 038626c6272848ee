"""Tensors as JSON arrays, flat or nested, and back.

Numbers are never wrapped or cut to fit a datatype: what a datatype cannot hold is an error that names it. FP16 and BF16
are JSON numbers, rounded to the nearest value. JSON has neither NaN nor infinities: NaN is ``null``, infinities are the
strings ``"Infinity"`` and ``"-Infinity"``, as in protobuf's JSON; NumPy makes numbers of both. Elements of BYTES are
JSON strings, which stand for their UTF-8; with the parameter ``content_type: base64`` they are base64, which answers
use if an element is not UTF-8.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from odin.server.datatypes import Datatype, count_of
from odin.server.failures import FailureKind, RequestError

__all__ = ["from_json", "from_strings", "to_json", "to_strings"]

_MOST_AXES = 32  # of a NumPy array of any version
_ARRAYS_ONLY = (
    8  # types of nested lists that msgspec knows are made for as many axes; beyond that elements are looked at
)
_SPACE = b" \t\r\n"
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": np.float32}
_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BF16_SHIFT, _BF16_LEAST, _BF16_INFINITY = np.uint32(16), np.uint32(0x7FFF), np.uint32(0x7F80)


def from_json(
    datatype: Datatype, shape: Sequence[int], data: Any, *, what: str, is_base64: bool = False
) -> npt.NDArray[Any]:
    """Return the tensor that a JSON array holds.

    Parameters
    ----------
    datatype, shape
        Of the tensor.
    data
        The array: its text, or what a parser made of it.
    what
        What it is, for errors: ``"input 'image'"``.
    is_base64
        Whether elements of BYTES are base64.

    Raises
    ------
    RequestError
        If an element is not of the datatype or beyond its range, or there are not as many as the shape says.
    """
    values = _fast(datatype, data)
    if values is None:  # something is wrong, or unusual: look at each element, and name the one that is wrong
        values = _one_by_one(datatype, data, what)
    if values.size != count_of(shape):
        raise _error(
            f"{what}: {values.size} elements in 'data', but shape {list(shape)} has {count_of(shape)}",
        )
    if values.ndim != 1 and values.size and values.shape != tuple(shape):
        raise _error(
            f"{what}: 'data' is nested as shape {list(values.shape)}, but shape is {list(shape)}: nest it so, or give "
            "it flat",
        )
    if datatype.name == "BYTES":
        values = from_strings(values, what=what, is_base64=is_base64)
    return _cast(datatype, values, what).reshape(shape)


def to_json(datatype: Datatype, array: npt.NDArray[Any]) -> list[Any]:
    """Return a tensor's elements, none of BYTES, flat, row by row, as what becomes JSON: NaN becomes ``null``."""
    values = _from_bf16(array) if datatype.name == "BF16" else array
    elements: list[Any] = values.ravel().tolist()
    if datatype.name in _FLOATS:
        for index in np.flatnonzero(np.isinf(values)):
            elements[index] = "Infinity" if elements[index] > 0 else "-Infinity"
    return elements


def to_strings(array: npt.NDArray[Any]) -> tuple[list[str], bool]:
    """Return elements of BYTES as strings, flat, and whether these are base64."""
    elements = [bytes(element) for element in array.ravel()]
    try:
        return [element.decode() for element in elements], False
    except UnicodeDecodeError:
        return [base64.b64encode(element).decode("ascii") for element in elements], True


def from_strings(strings: npt.NDArray[Any], *, what: str, is_base64: bool) -> npt.NDArray[Any]:
    """Return strings as elements of BYTES."""
    elements = np.empty(strings.size, object)
    for index, text in enumerate(strings.ravel()):
        try:
            elements[index] = base64.b64decode(text, validate=True) if is_base64 else text.encode()
        except (binascii.Error, ValueError) as error:
            form = "base64" if is_base64 else "Unicode text"
            raise _error(f"{what}: element {index} of 'data' is no {form}: {error}") from None
    return elements


# -- reading: as a whole, or element by element ------------------------------------------------------------------------


@functools.cache
def _decoder(name: str, axes: int) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_nested(name, axes))


@functools.cache
def _nested(name: str, axes: int) -> Any:
    nested: Any = float | None if name in _FLOATS else {"BOOL": bool, "BYTES": str}.get(name, int)
    for _ in range(axes):
        nested = list[nested]
    return nested


def _fast(datatype: Datatype, data: Any) -> npt.NDArray[Any] | None:
    """The elements as float64, int64, bool or object; None if any is not what is expected."""
    axes = _axes(data)
    if not 0 < axes <= _MOST_AXES:
        return None
    other = np.float64 if datatype.name in _FLOATS else np.int64
    held = {"BOOL": np.bool_, "BYTES": np.object_}.get(datatype.name, other)
    try:
        if isinstance(data, msgspec.Raw):
            values = _decoder(datatype.name, axes).decode(data)
        else:
            values = msgspec.convert(data, _nested(datatype.name, axes))
        array: npt.NDArray[Any] = np.array(values, held)
    except (ValueError, OverflowError, RecursionError):
        return None
    return array if array.ndim == axes else None  # strings in lists of different lengths would be an array of lists


def _axes(data: Any) -> int:
    """How deep the first element lies."""
    axes = 0
    if isinstance(data, msgspec.Raw):
        for byte in memoryview(data):
            if byte == ord("["):
                axes += 1
            elif byte not in _SPACE:
                break
        return axes
    while isinstance(data, list):
        axes += 1
        data = data[0] if data else None
    return axes


def _one_by_one(datatype: Datatype, data: Any, what: str) -> npt.NDArray[Any]:
    try:
        values = msgspec.json.decode(data) if isinstance(data, msgspec.Raw) else data
    except (ValueError, RecursionError) as error:
        raise _error(f"{what}: 'data' cannot be read: {error}") from None
    if not isinstance(values, list):
        raise _error(f"{what}: 'data' is {_short(values)}, and no array")
    shape = []
    level: Any = values
    while isinstance(level, list):
        shape.append(len(level))
        if len(shape) > _MOST_AXES:
            raise _error(f"{what}: 'data' is nested deeper than {_MOST_AXES} levels")
        level = level[0] if level else None
    flat = values
    for length in shape[1:]:
        inner = []
        for part in flat:
            if not isinstance(part, list) or len(part) != length:
                raise _error(f"{what}: 'data' is nested unevenly: {_short(part)} beside an array of {length} elements")
            inner += part
        flat = inner
    element_of = _element_of(datatype)
    elements: npt.NDArray[Any] = np.empty(len(flat), object)
    for index, value in enumerate(flat):
        try:
            elements[index] = element_of(value)
        except (TypeError, OverflowError):
            raise _bad(datatype, value, index, what) from None
    return elements.reshape(shape)


def _element_of(datatype: Datatype) -> Callable[[Any], Any]:
    name = datatype.name

    def number(value: Any) -> float:
        if isinstance(value, str) and value in _NAMED:
            return _NAMED[value]
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError
        return math.nan if value is None else float(value)

    def truth(value: Any) -> bool:
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise TypeError
        return bool(value)

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        return value

    def whole(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise TypeError
        if not _least(datatype) <= value <= _most(datatype):
            raise OverflowError
        return int(value)

    return {"BOOL": truth, "BYTES": text}.get(name, number if name in _FLOATS else whole)


# -- datatypes ---------------------------------------------------------------------------------------------------------


def _least(datatype: Datatype) -> int:
    return int(np.iinfo(datatype.held_as).min)


def _most(datatype: Datatype) -> int:
    return int(np.iinfo(datatype.held_as).max)


def _cast(datatype: Datatype, values: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """Values that were read, as the datatype's array; flat."""
    values = values.ravel()
    if datatype.name in ("BOOL", "BYTES"):
        return values.astype(datatype.held_as)
    if datatype.name not in _FLOATS:
        if values.dtype != object:
            wrong = (values < _least(datatype)) | (values > min(_most(datatype), np.iinfo(np.int64).max))
            if wrong.any():
                index = int(wrong.argmax())
                raise _bad(datatype, int(values[index]), index, what)
        return values.astype(datatype.held_as)
    exact = values.astype(np.float64)
    with np.errstate(over="ignore"):
        near: npt.NDArray[Any] = exact.astype(_FLOATS[datatype.name])
        held = _to_bf16(near) if datatype.name == "BF16" else near
    infinite = (held & 0x7FFF) == _BF16_INFINITY if datatype.name == "BF16" else np.isinf(held)
    wrong = infinite & np.isfinite(exact)
    if wrong.any():
        index = int(wrong.argmax())
        raise _bad(datatype, float(exact[index]), index, what)
    return held


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + _BF16_LEAST + ((bits >> _BF16_SHIFT) & np.uint32(1))) >> _BF16_SHIFT
    rounded = np.where(np.isnan(values), (bits >> _BF16_SHIFT) | np.uint32(0x40), rounded)
    return rounded.astype(np.uint16)


def _from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << _BF16_SHIFT).view(np.float32)


def _bad(datatype: Datatype, value: Any, index: int, what: str) -> RequestError:
    name = datatype.name
    if name in _FLOATS:
        known = "a number that it can hold, or null for NaN"
    elif name == "BOOL":
        known = "true or false"
    elif name == "BYTES":
        known = "a string"
    else:
        known = f"a whole number from {_least(datatype)} to {_most(datatype)}"
    return _error(f"{what}: element {index} of 'data' is {_short(value)}; {name} takes {known}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _error(message: str) -> RequestError:
    return RequestError(FailureKind.INVALID, message)
