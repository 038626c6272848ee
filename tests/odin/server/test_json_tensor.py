"""Tensors as JSON arrays, without any server."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.server.datatypes import DATATYPES
from odin.server.failures import RequestError
from odin.server.json_tensor import from_json, to_json, to_strings

INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")


def read(name: str, shape: list[int], data: Any, *, is_base64: bool = False) -> np.ndarray:
    text = data if isinstance(data, str) else json.dumps(data)
    return from_json(DATATYPES[name], shape, msgspec.Raw(text.encode()), what="input 'a'", is_base64=is_base64)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BOOL", [True, False, True]),
        ("UINT8", [0, 1, 255]),
        ("UINT16", [0, 1, 2**16 - 1]),
        ("UINT32", [0, 1, 2**32 - 1]),
        ("UINT64", [0, 1, 2**64 - 1]),
        ("INT8", [-128, 0, 127]),
        ("INT16", [-(2**15), 0, 2**15 - 1]),
        ("INT32", [-(2**31), 0, 2**31 - 1]),
        ("INT64", [-(2**63), 2**53 + 1, 2**63 - 1]),
        ("FP16", [-65504, 0.5, 65504]),
        ("FP32", [-1.5, 3, 2.0**127]),
        ("FP64", [-1.5, 3, 1e308]),
        ("BF16", [-1.5, 3, 2.0**127]),
    ],
)
def test_every_datatype_comes_back_as_it_went(name: str, values: list[Any]) -> None:
    array = read(name, [3], values)
    assert array.dtype == DATATYPES[name].held_as
    assert to_json(DATATYPES[name], array) == values


@pytest.mark.parametrize("name", INTEGERS)
def test_every_integer_of_a_datatype_is_exact(name: str) -> None:
    info = np.iinfo(DATATYPES[name].held_as)
    values = [info.min, info.max - 1, info.max]
    assert read(name, [3], values).tolist() == values
    for beyond in (int(info.min) - 1, int(info.max) + 1, 10**30):
        with pytest.raises(RequestError, match=rf"element 1 of 'data' is {beyond}; {name} takes .*from {info.min} to"):
            read(name, [2], [0, beyond])


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("INT32", [1, 2.5], "element 1 of 'data' is 2.5; INT32 takes a whole number"),
        ("INT32", [None], "element 0 of 'data' is None"),
        ("INT32", [True], "element 0 of 'data' is True"),
        ("INT32", ["5"], "element 0 of 'data' is '5'"),
        ("FP32", ["5"], "element 0 of 'data' is '5'"),
        ("FP32", [False], "element 0 of 'data' is False"),
        ("FP32", [0, 3.5e38], "element 1 of 'data' is 3.5e"),
        ("FP16", [65520], "element 0 of 'data' is 65520.0; FP16"),
        ("BF16", [3.4e38], "element 0 of 'data' is 3.4e"),
        ("FP64", "[1e400]", "out of range"),
        ("BOOL", [2], "element 0 of 'data' is 2; BOOL takes true or false"),
        ("BYTES", [3], "element 0 of 'data' is 3; BYTES takes a string"),
        ("FP32", [[1], [2, 3]], "nested unevenly"),
        ("BYTES", [["a"], ["b", "c"]], "nested unevenly"),
        ("FP32", [1, [2]], r"element 1 of 'data' is \[2\]"),
        ("FP32", [[1], 2], "nested unevenly"),
        ("FP32", "5", "no array"),
        ("FP32", '"5"', "no array"),
        ("FP32", {"a": 1}, "no array"),
        ("FP32", "[" * 40 + "]" * 40, "nested deeper"),
        ("FP32", "[" * 5000 + "]" * 5000, "nested deeper|recursion"),
    ],
)
def test_what_a_datatype_cannot_hold_is_named(name: str, values: Any, told: str) -> None:
    shape = [len(values) if isinstance(values, list) else 1]
    with pytest.raises(RequestError, match=told):
        read(name, shape, values)


def test_whole_numbers_may_be_written_as_floats_and_booleans_as_numbers() -> None:
    assert read("INT8", [2], "[1.0, 2e1]").tolist() == [1, 20]
    assert read("BOOL", [3], [0, 1, True]).tolist() == [False, True, True]


FLOATS = ("FP16", "FP32", "FP64", "BF16")
BEYOND = [math.nan, math.inf, -math.inf, 1.0]
"""What JSON has no numbers for, and one for which it has."""


def held(name: str, values: list[float]) -> np.ndarray:
    """As the datatype has it, exact for the values here."""
    if name == "BF16":
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.array(values, DATATYPES[name].held_as)


@pytest.mark.parametrize("name", FLOATS)
def test_nan_and_infinities_of_an_answer(name: str) -> None:
    text = msgspec.json.encode(to_json(DATATYPES[name], held(name, [*BEYOND, -0.0])))
    assert text == b'[null,"Infinity","-Infinity",1.0,-0.0]'
    read_by_clients = np.array(json.loads(text), np.float64)  # as tritonclient and KServe's do
    np.testing.assert_array_equal(read_by_clients, [*BEYOND, 0.0])
    square = held(name, BEYOND).reshape(2, 2).T
    assert json.loads(msgspec.json.encode(to_json(DATATYPES[name], square))) == [None, "-Infinity", "Infinity", 1]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "text",
    [
        '[null, "Infinity", "-Infinity", 1.0]',
        '["NaN", "Infinity", "-Infinity", 1]',
        '[[null, "Infinity"], ["-Infinity", 1]]',
    ],
)
def test_nan_and_infinities_of_a_request(name: str, text: str) -> None:
    array = read(name, [2, 2] if text.startswith("[[") else [4], text)
    values = np.array([math.nan if one is None else float(one) for one in to_json(DATATYPES[name], array)])
    np.testing.assert_array_equal(values, BEYOND)


@pytest.mark.parametrize("name", [*INTEGERS, "BOOL"])
@pytest.mark.parametrize("value", [None, "NaN", "Infinity", "-Infinity"])
def test_only_floats_have_nan_and_infinities(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"element 0 of 'data' is {value!r}; {name} takes"):
        read(name, [1], [value])


@pytest.mark.parametrize("value", ["inf", "Inf", "infinity", "+Infinity", "nan", "1.5", ""])
def test_other_strings_are_no_numbers(value: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"element 0 of 'data' is {value!r}; FP32 takes a number")):
        read("FP32", [1], [value])


def test_data_flat_or_nested_is_the_same() -> None:
    flat, nested = read("INT32", [2, 1, 2], [1, 2, 3, 4]), read("INT32", [2, 1, 2], [[[1, 2]], [[3, 4]]])
    assert flat.shape == nested.shape == (2, 1, 2)
    assert (flat == nested).all()
    assert read("BYTES", [1, 2], [["a", "b"]]).tolist() == [[b"a", b"b"]]
    assert read("INT32", [], [7]).shape == ()


def test_arrays_without_elements() -> None:
    assert read("FP32", [0], []).shape == (0,)
    assert read("FP32", [2, 0], [[], []]).shape == (2, 0)
    assert read("FP32", [0, 3], []).shape == (0, 3)
    assert read("BYTES", [0], []).shape == (0,)


@pytest.mark.parametrize(
    ("shape", "data", "told"),
    [
        ([3], [1, 2], r"2 elements in 'data', but shape \[3\] has 3"),
        ([3, 2], [[1, 2, 3], [4, 5, 6]], r"nested as shape \[2, 3\], but shape is \[3, 2\]"),
        ([6], [[1, 2, 3], [4, 5, 6]], r"nested as shape \[2, 3\]"),
    ],
)
def test_a_shape_that_does_not_fit(shape: list[int], data: Any, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read("INT32", shape, data)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127, min_value=-(2.0**127)))
def test_bf16_is_rounded_to_the_nearest(value: float) -> None:
    bits = int(read("BF16", [1], [value])[0])
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert bits == int(np.array([value], ml_dtypes.bfloat16).view(np.uint16)[0])


def test_bytes_are_unicode_strings_or_base64() -> None:
    assert read("BYTES", [2], ["é", ""]).tolist() == ["é".encode(), b""]
    assert read("BYTES", [1], ["/9g="], is_base64=True).tolist() == [b"\xff\xd8"]
    with pytest.raises(RequestError, match="element 0 of 'data' is no base64"):
        read("BYTES", [1], ["no base64!"], is_base64=True)
    with pytest.raises(RequestError, match="cannot be read"):
        read("BYTES", [1], '["\\ud800"]')


def test_bytes_that_are_no_unicode_are_answered_as_base64() -> None:
    assert to_strings(np.array([b"cat", b"dog"], object)) == (["cat", "dog"], False)
    assert to_strings(np.array([b"cat", b"\xff\xd8"], object)) == (["Y2F0", "/9g="], True)


@given(
    st.sampled_from(list(DATATYPES)),
    st.lists(st.integers(0, 3), max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=10,
    ),
)
def test_whatever_data_hold_becomes_a_tensor_or_an_error_of_the_request(name: str, shape: list[int], data: Any) -> None:
    datatype = DATATYPES[name]
    for given_data in (data, msgspec.Raw(msgspec.json.encode(data))):
        try:
            array = from_json(datatype, shape, given_data, what="input 'a'")
        except RequestError as error:
            status = error.kind.http_status
        else:
            status = 400
            assert array.shape == tuple(shape)
            assert array.dtype == datatype.held_as
        assert status == 400
