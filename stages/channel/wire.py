"""The header that travels with a request: a small fixed binary format, never pickle.

Layout, little-endian, no padding::

    magic u16 | version u8 | kind u8 | keep NaN u8 | request u64 | attempt u16 | home u32
    epoch u32 | oldest epoch u32 | cut u32 | samples u32
    left f64 | sent f64 | slot u32 | tensors u16 | timings u32 | error u32      (byte counts for the last two)
    per tensor: dtype u8 | dimensions u8 | offset u64 | bytes u64 | shape i64 x d | strides i64 x d
    timings: records of odin.monitor.timing, one appended by each stage
    error:   four UTF-8 strings, each with its length as u32
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

__all__ = [
    "DTYPES",
    "DTYPE_CODES",
    "GATEWAY",
    "ITEM_NBYTES",
    "NO_STAGE",
    "Failure",
    "Header",
    "Kind",
    "TensorMeta",
    "WireError",
    "pack",
    "unpack",
]

GATEWAY = -1
"""The gateway, where stages are told by their index: it is before the first and behind the last one."""

NO_STAGE = 2**32 - 1
"""In place of a stage's index where there is none."""

MAGIC, VERSION = 0x0D14, 5
_FIXED = struct.Struct("<HBB?QHIIIIIddIHII")
_TENSOR = struct.Struct("<BBQQ")
_LENGTHS = struct.Struct("<IIII")

_DTYPES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "bool": 1, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "complex32": 4,
}  # fmt: skip
DTYPES = tuple(_DTYPES)
"""Names of what travels, as PyTorch has them; index in this tuple = code on the wire; append only."""
ITEM_NBYTES = tuple(_DTYPES.values())
"""Bytes of an element, by code on the wire."""
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}


class WireError(ValueError):
    """Bytes that are not a header of this version."""


class Kind(enum.IntEnum):
    """What a message says."""

    REQUEST = 0
    ERROR = 1  #: the request failed in a stage
    CLOSE = 2  #: the sender is done; nothing follows
    RETURNED = 3  #: the request could not be handed on: it has to be sent again
    UNREACHED = 4  #: the connection from stage ``request`` to stage ``cut`` is broken


_KINDS = frozenset(Kind)


class TensorMeta(NamedTuple):
    """Where a tensor's bytes lie in its slot and how to read them; ``dtype`` is a wire code, strides in elements."""

    dtype: int
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Failure(NamedTuple):
    """A failure inside a stage, as text: where, the exception's type, its message and its traceback."""

    where: str
    kind: str
    message: str
    traceback: str


class Header(NamedTuple):
    """One message between stages.

    Attributes
    ----------
    oldest
        No request of an epoch before this one is under way any more.
    cut
        The next layer to run.
    left_s
        Seconds after ``sent_s`` from which on no stage starts on the request; infinity for no deadline. A time left and
        not a time of day: clocks of two machines cannot be compared.
    sent_s
        The sender's monotonic clock, comparable within one machine only; receivers on another machine replace it.
    slot
        Slot of the channel that holds the tensors.
    timings
        Records of :mod:`odin.monitor.timing`, oldest first, not decoded on the way.
    keep_nan
        A stage found NaN, or values so large that it could arise, which the fastest kernels would lose: the stages
        after it take those that keep it.
    attempt
        How often the gateway had sent the request before.
    home
        The gateway's slot that the request's input lies in, on whichever stage it is.
    samples
        How many are computed together; 0 if that is not known.
    """

    kind: Kind
    request: int
    epoch: int = 0
    left_s: float = float("inf")
    sent_s: float = 0.0
    slot: int = 0
    tensors: tuple[TensorMeta, ...] = ()
    timings: bytes = b""
    failure: Failure | None = None
    keep_nan: bool = False
    oldest: int = 0
    cut: int = 0
    attempt: int = 0
    home: int = 0
    samples: int = 0


def pack(header: Header) -> bytes:
    """Encode a header."""
    error = b""
    if header.failure is not None:
        texts = [text.encode("utf-8", "replace")[:20_000] for text in header.failure]
        error = _LENGTHS.pack(*map(len, texts)) + b"".join(texts)
    parts = [
        _FIXED.pack(
            MAGIC, VERSION, header.kind, header.keep_nan, header.request, header.attempt, header.home,
            header.epoch, header.oldest, header.cut, header.samples, header.left_s, header.sent_s, header.slot,
            len(header.tensors), len(header.timings), len(error),
        )
    ]  # fmt: skip
    for meta in header.tensors:
        dimensions = len(meta.shape)
        parts.append(_TENSOR.pack(meta.dtype, dimensions, meta.offset, meta.nbytes))
        parts.append(struct.pack(f"<{2 * dimensions}q", *meta.shape, *meta.strides))
    parts.append(header.timings)
    parts.append(error)
    return b"".join(parts)


def unpack(data: bytes | memoryview) -> Header:
    """Decode a header.

    Raises
    ------
    WireError
        If the bytes are not a header of this version.
    """
    try:
        fields = _FIXED.unpack_from(data, 0)
        magic, version, kind, keep_nan, request, attempt, home, epoch, oldest, cut, *others = fields
        samples, left_s, sent_s, slot, tensors, timings, error = others
        if (magic, version) != (MAGIC, VERSION):
            raise WireError(
                f"header begins with {magic:#06x} version {version}, expected {MAGIC:#06x} version {VERSION}"
            )
        offset, metas = _FIXED.size, []
        for _ in range(tensors):
            dtype, dimensions, start, nbytes = _TENSOR.unpack_from(data, offset)
            offset += _TENSOR.size
            sizes = struct.unpack_from(f"<{2 * dimensions}q", data, offset)
            offset += 16 * dimensions
            metas.append(TensorMeta(dtype, start, nbytes, sizes[:dimensions], sizes[dimensions:]))
            if dtype >= len(DTYPES) or min(sizes, default=0) < 0:
                raise WireError(f"tensor of dtype code {dtype} with sizes and strides {sizes}")
        if offset + timings + error != len(data):
            raise WireError(f"header of {len(data)} bytes, {offset + timings + error} expected")
        if kind not in _KINDS:
            raise WireError(f"header of unknown kind {kind}")
        timing_bytes = bytes(data[offset : offset + timings])
        failure = _unpack_failure(data, offset + timings, error) if error else None
        return Header(
            Kind(kind), request, epoch, left_s, sent_s, slot, tuple(metas), timing_bytes, failure, keep_nan, oldest,
            cut, attempt, home, samples,
        )  # fmt: skip
    except struct.error as cause:
        raise WireError(f"header of {len(data)} bytes ends early") from cause


def _unpack_failure(data: bytes | memoryview, offset: int, nbytes: int) -> Failure:
    lengths = _LENGTHS.unpack_from(data, offset)
    offset += _LENGTHS.size
    if _LENGTHS.size + sum(lengths) != nbytes:
        raise WireError(f"failure texts of {lengths} bytes in a field of {nbytes}")
    texts = []
    for length in lengths:
        texts.append(bytes(data[offset : offset + length]).decode("utf-8", "replace"))
        offset += length
    return Failure(*texts)
