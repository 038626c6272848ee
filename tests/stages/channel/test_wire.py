"""Headers on the wire: what goes in comes out, and nothing else is taken for a header."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from odin.stages.channel.wire import (
    DTYPE_CODES,
    DTYPES,
    ITEM_NBYTES,
    Failure,
    Header,
    Kind,
    TensorMeta,
    WireError,
    pack,
    unpack,
)

UNSIGNED_64 = st.integers(0, 2**64 - 1)
SIZES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=6)
METAS = st.builds(
    lambda dtype, offset, nbytes, dims: TensorMeta(
        dtype, offset, nbytes, tuple(size for size, _ in dims), tuple(stride for _, stride in dims)
    ),
    st.integers(0, len(DTYPES) - 1),
    UNSIGNED_64,
    UNSIGNED_64,
    SIZES,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
HEADERS = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    request=UNSIGNED_64,
    epoch=st.integers(0, 2**32 - 1),
    oldest=st.integers(0, 2**32 - 1),
    cut=st.integers(0, 2**32 - 1),
    attempt=st.integers(0, 2**16 - 1),
    home=st.integers(0, 2**32 - 1),
    samples=st.integers(0, 2**32 - 1),
    left_s=st.floats(allow_nan=False),
    sent_s=st.floats(allow_nan=False),
    slot=st.integers(0, 2**32 - 1),
    tensors=st.lists(METAS, max_size=4).map(tuple),
    timings=st.binary(max_size=200),
    failure=st.none() | st.builds(Failure, TEXTS, TEXTS, TEXTS, TEXTS),
)
FULL = Header(
    Kind.ERROR,
    7,
    epoch=3,
    oldest=2,
    cut=11,
    attempt=2,
    home=5,
    samples=3,
    left_s=2.5,
    slot=1,
    tensors=(TensorMeta(0, 0, 96, (2, 3, 4), (12, 4, 1)), TensorMeta(8, 128, 8, (), ())),
    timings=b"times",
    failure=Failure("layer conv1", "ValueError", "wörse", "Traceback"),
)


@given(HEADERS)
@example(FULL)
def test_a_header_comes_back_as_it_was(header: Header):
    assert unpack(pack(header)) == header
    assert unpack(memoryview(pack(header))) == header


@pytest.mark.parametrize("kind", Kind)
def test_kinds_come_back_as_kinds(kind: Kind):
    assert unpack(pack(Header(kind, 1))).kind is kind


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_has_its_own_code(dtype: str):
    meta = TensorMeta(DTYPE_CODES[dtype], 64, ITEM_NBYTES[DTYPE_CODES[dtype]], (1,), (1,))
    assert DTYPES[unpack(pack(Header(Kind.REQUEST, 0, tensors=(meta,)))).tensors[0].dtype] == dtype


def test_names_and_sizes_are_pytorchs():
    assert [getattr(torch, name).itemsize for name in DTYPES] == list(ITEM_NBYTES)


def test_codes_never_change():
    assert list(DTYPES) == [
        *("float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32"),
        *("int64", "bool", "complex64", "complex128", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "complex32"),
    ]


def test_long_failure_texts_are_cut_and_odd_characters_replaced():
    failure = unpack(pack(Header(Kind.ERROR, 0, failure=Failure("a" * 30_000, "\ud800", "", "ü" * 15_000)))).failure
    assert failure == Failure("a" * 20_000, "?", "", "ü" * 10_000)


@given(HEADERS, st.data())
def test_a_header_that_ends_early_is_refused(header: Header, data: st.DataObject):
    packed = pack(header)
    with pytest.raises(WireError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(HEADERS, st.binary(min_size=1))
def test_a_header_that_ends_late_is_refused(header: Header, more: bytes):
    with pytest.raises(WireError):
        unpack(pack(header) + more)


def unpacks_or_refuses(data: bytes) -> None:
    try:
        header = unpack(data)
    except WireError:
        return
    assert isinstance(header, Header)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read_and_raise_nothing_else(data: bytes):
    unpacks_or_refuses(data)
    unpacks_or_refuses(pack(FULL)[:4] + data)


@given(HEADERS, st.data())
def test_garbled_headers_are_refused_or_read_and_raise_nothing_else(header: Header, data: st.DataObject):
    garbled = bytearray(pack(header))
    position = data.draw(st.integers(0, len(garbled) - 1))
    garbled[position] ^= data.draw(st.integers(1, 255))
    unpacks_or_refuses(bytes(garbled))


def garbled(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(pack(FULL))
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


FIRST_TENSOR = struct.calcsize("<HBB?QHIIIIIddIHII")
FAILURE = len(pack(FULL._replace(failure=None)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (garbled(0, "<H", 0x0D15), "begins with 0x0d15 version 5, expected 0x0d14 version 5"),
        (garbled(2, "<B", 9), "begins with 0x0d14 version 9"),
        (garbled(3, "<B", len(Kind)), f"unknown kind {len(Kind)}"),
        (garbled(FIRST_TENSOR, "<B", len(DTYPES)), f"dtype code {len(DTYPES)}"),
        (garbled(FIRST_TENSOR + 18, "<q", -2), r"sizes and strides \(-2, 3, 4"),
        (garbled(FAILURE, "<I", 1), r"failure texts of \(1, "),
        (b"", "header of 0 bytes ends early"),
    ],
)
def test_the_refusal_says_what_is_wrong(data: bytes, message: str):
    with pytest.raises(WireError, match=message):
        unpack(data)
