"""Every datatype of the protocol as raw bytes, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.server.datatypes import DATATYPES, datatype_of, from_raw, to_raw
from odin.server.failures import RequestError

_FIXED = [one for one in DATATYPES.values() if one.name != "BYTES"]


@given(st.sampled_from(_FIXED), st.lists(st.integers(0, 4), max_size=4).map(tuple), st.randoms())
def test_elements_of_every_type_come_back_bit_by_bit(datatype, shape, random):
    count = int(np.prod(shape)) * datatype.held_as.itemsize
    raw = bytes(random.randrange(2) if datatype.name == "BOOL" else random.randrange(256) for _ in range(count))
    array = from_raw(datatype, shape, raw, what="x")
    assert array.shape == shape
    assert bytes(to_raw(datatype, array)) == raw


@given(st.lists(st.binary(max_size=9)))
def test_bytes_come_back(elements):
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    array = from_raw(DATATYPES["BYTES"], (len(elements),), raw, what="x")
    assert list(array) == elements
    assert to_raw(DATATYPES["BYTES"], array) == raw


def test_a_tensor_is_a_view_of_what_was_received():
    raw = bytearray(8)
    array = from_raw(DATATYPES["FP32"], (2,), memoryview(raw), what="x")
    raw[:4] = np.float32(1.5).tobytes()
    assert array.tolist() == [1.5, 0.0]


def test_rows_that_do_not_lie_one_after_the_other_are_written_so():
    array = np.arange(6, dtype="f4").reshape(2, 3).T
    assert bytes(to_raw(DATATYPES["FP32"], array)) == array.copy(order="C").tobytes()


@pytest.mark.parametrize(
    ("name", "shape", "raw", "told"),
    [
        ("FP32", (2,), b"1234", "4 bytes, but shape [2] of FP32 takes 8"),
        ("FP32", (), b"12345", "5 bytes, but shape [] of FP32 takes 4"),
        ("BYTES", (1,), b"\x01\0\0", "3 bytes at its end are no length"),
        ("BYTES", (1,), b"\x05\0\0\0abcd", "an element of 5 bytes, of which 4 are there"),
        ("BYTES", (2,), b"\x01\0\0\0a", "1 elements, but shape [2] has 2"),
        ("BYTES", (1,), b"\xff\xff\xff\xffa", "an element of 4294967295 bytes, of which 1 are there"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(name, shape, raw, told):
    with pytest.raises(RequestError) as refused:
        from_raw(DATATYPES[name], shape, raw, what="input 'x'")
    assert str(refused.value) == f"input 'x': {told}"


@pytest.mark.parametrize("name", ["FLOAT32", "fp32", None, 5, ["FP32"]])
def test_an_unknown_datatype_is_refused_with_those_that_there_are(name):
    with pytest.raises(RequestError, match="is none of BOOL, UINT8"):
        datatype_of(name)
