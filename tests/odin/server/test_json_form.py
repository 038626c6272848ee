"""JSON and the binary framing behind it, without any server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.server.datatypes import DATATYPES
from odin.server.failures import RequestError
from odin.server.json_form import header_nbytes, read_request, read_tensor_only, write_answer
from odin.server.messages import InferRequest, InferResponse, Tensor, TensorMetadata

FP32, INT32, BYTES = DATATYPES["FP32"], DATATYPES["INT32"], DATATYPES["BYTES"]


def body_of(described: dict[str, Any], *raw: bytes) -> tuple[bytes, int]:
    text = json.dumps(described).encode()
    return b"".join((text, *raw)), len(text)


def binary(name: str, shape: list[int], datatype: str, nbytes: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": nbytes}}


def read(described: dict[str, Any], *raw: bytes) -> InferRequest:
    body, nbytes = body_of(described, *raw)
    return read_request(body, nbytes if raw else None, model="m", version="2")


def plain(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "a", "shape": [2], "datatype": "INT32", "data": [1, 2]}], **more}


def answered(request: InferRequest, *tensors: Tensor, **more: Any) -> tuple[dict[str, Any], bytes]:
    answer = write_answer(InferResponse("m", "2", request.id, tensors, **more), request)
    whole = b"".join(answer.parts)
    nbytes = len(whole) if answer.header_nbytes is None else answer.header_nbytes
    assert (answer.header_nbytes is None) == (len(answer.parts) == 1)
    return json.loads(whole[:nbytes]), whole[nbytes:]


def test_a_request_in_json() -> None:
    request = read(plain(id="7", parameters={"timeout": 5, "mine": None}, outputs=[{"name": "b"}]))
    assert (request.model, request.version, request.id) == ("m", "2", "7")
    assert request.parameters == {"timeout": 5}
    assert [output.name for output in request.outputs] == ["b"]
    assert request.inputs[0].array.tolist() == [1, 2]


def test_fields_that_are_null_or_unknown_are_as_if_they_were_not_there() -> None:
    request = read(plain(id=None, parameters=None, outputs=None, model_name="other"))
    assert (request.id, request.parameters, request.outputs) == ("", {}, ())


def test_several_binary_inputs_mixed_with_json_are_each_its_own_bytes() -> None:
    first, third = np.array([1, 2], "<f4"), np.array([3], "<i8")
    described = {
        "inputs": [
            binary("a", [2], "FP32", 8),
            {"name": "b", "shape": [1], "datatype": "INT32", "data": [5]},
            binary("c", [1], "INT64", 8),
            binary("d", [2], "BYTES", 10),
            binary("e", [0], "FP32", 0),
        ]
    }
    request = read(described, first.tobytes(), third.tobytes(), b"\x01\0\0\0x\x01\0\0\0y")
    assert [tensor.array.tolist() for tensor in request.inputs] == [[1, 2], [5], [3], [b"x", b"y"], []]


def test_binary_inputs_are_views_of_the_body() -> None:
    text = json.dumps({"inputs": [binary("a", [2], "FP32", 8)]}).encode()
    body = np.frombuffer(bytearray(text + np.array([1, 2], "<f4").tobytes()), np.uint8)
    request = read_request(memoryview(body), len(text), model="m")
    body[len(text) :] = np.frombuffer(np.array([3, 4], "<f4").tobytes(), np.uint8)
    assert request.inputs[0].array.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("described", "raw", "told"),
    [
        ({"inputs": [binary("a", [2], "FP32", 8)]}, b"1234", "'binary_data_size' is 8, of which 4 bytes are there"),
        ({"inputs": [binary("a", [1], "FP32", 4)]}, b"12345678", "8 bytes follow the JSON, but .* are 4 together"),
        ({"inputs": [binary("a", [3], "FP32", 8)]}, b"12345678", r"8 bytes, but shape \[3\] of FP32 takes 12"),
        ({"inputs": [binary("a", [1], "FP32", -4)]}, b"1234", "'binary_data_size' is -4"),
        ({"inputs": [binary("a", [1], "FP32", True)]}, b"1", "'binary_data_size' is True"),
        ({"inputs": [{**binary("a", [1], "FP32", 4), "data": [1]}]}, b"1234", "has both"),
        (plain(), b"1234", "4 bytes follow the JSON"),
        ({"inputs": [binary("a", [1], "BYTES", 3)]}, b"\x01\0\0", "are no length"),
        ({"inputs": [binary("a", [1], "FP16", 2), binary("b", [1], "FP32", 4)]}, b"12345", "of which 3 bytes"),
    ],
)
def test_binary_data_that_do_not_fit(described: dict[str, Any], raw: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read(described, raw)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("12", "is 12, but the body has at most 10 bytes"),
        ("-1", "no number of bytes"),
        ("1e1", "no number"),
        ("٣", "no number"),  # a digit, but none of ASCII
        ("", "no number"),
        ("9" * 400, "no number"),
    ],
)
def test_a_header_length_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        header_nbytes(text, 10)


def test_a_header_length() -> None:
    assert header_nbytes(None, 10) is None
    assert header_nbytes("0", 10) == 0
    assert header_nbytes("10", 10) == 10


def test_a_missing_header_length_is_named() -> None:
    body, _ = body_of({"inputs": [binary("a", [1], "FP32", 4)]}, b"\0\0\0\0")
    with pytest.raises(RequestError, match="Inference-Header-Content-Length has to tell"):
        read_request(body, None, model="m")
    with pytest.raises(RequestError, match="Inference-Header-Content-Length does not tell"):
        read({"inputs": [binary("a", [1], "FP32", 4)]})


@pytest.mark.parametrize("nbytes", [1, 20])
def test_a_header_length_that_cuts_the_json_elsewhere(nbytes: int) -> None:
    body, right = body_of({"inputs": [binary("a", [1], "FP32", 4)]}, b"\0\0\0\0")
    for wrong in (right - nbytes, right + 2):
        with pytest.raises(RequestError):
            read_request(body, wrong, model="m")


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({}, "`inputs`"),
        ({"inputs": {}}, "Expected `array`"),
        (plain(id=5), "Expected `str"),
        (plain(parameters=[]), "Expected `object"),
        (plain(parameters={"a": [1]}), "got `array`"),
        (plain(parameters={"binary_data_output": 1}), "takes true or false"),
        (plain(outputs=[{"name": "b", "parameters": {"binary_data": "yes"}}]), "takes true or false"),
        (plain(outputs=[{"name": "b", "parameters": {"classification": -1}}]), "no number of classes"),
        (plain(outputs=[{"name": "b", "parameters": {"shared_memory_region": "r"}}]), "shared memory"),
        ({"inputs": [{"name": "a", "shape": [1], "datatype": "INT32"}]}, "neither 'data' nor"),
        ({"inputs": [{"name": "a", "shape": [1], "datatype": "INT32", "data": None}]}, "neither 'data' nor|no array"),
        ({"inputs": [{"name": "a", "shape": [1], "datatype": "FLOAT", "data": [1]}]}, "'FLOAT' is none of"),
        ({"inputs": [{"name": "a", "shape": [1], "dataType": "FP32", "data": [1]}]}, "`datatype`"),
        ({"inputs": [{"name": "a", "shape": [-1], "datatype": "FP32", "data": [1]}]}, "negative"),
        ({"inputs": [{"name": "a", "shape": [1.5], "datatype": "FP32", "data": [1]}]}, "Expected `int`"),
        (
            {"inputs": [{"name": "a", "shape": [2**70, 0], "datatype": "FP32", "data": []}]},
            "has more than 1099511627776 elements",
        ),
        ({"inputs": [{"name": "a", "shape": [1] * 40, "datatype": "FP32", "data": [1]}]}, "40 axes"),
        (
            {"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}]},
            "shared memory",
        ),
    ],
)
def test_requests_that_are_not_valid(described: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        read(described)
    assert caught.value.kind.http_status == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"5", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"inputs": [NaN', b'{"a": NaN}', b"[NaN]",
     b'{"inputs": "NaN", "b": NaN}', b'{"inputs": [NaN]}', b"[" * 100_000 + b"NaN", b'{"id":"\xff","inputs":[]}'],
)  # fmt: skip
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(RequestError):
        read_request(body, None, model="m")


def test_nan_and_infinity_as_tritonclient_writes_them() -> None:
    body = (
        b'{"id": "NaN", "inputs": [{"name": "a", "shape": [4], "datatype": "FP32", '
        b'"data": [NaN, Infinity, -Infinity, 1.5]}, {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["NaN"]}]}'
    )
    request = read_request(body, None, model="m")
    assert request.id == "NaN"
    np.testing.assert_array_equal(request.inputs[0].array, np.array([np.nan, np.inf, -np.inf, 1.5], np.float32))
    assert request.inputs[1].array.tolist() == [b"NaN"]


def test_nan_is_no_integer_and_a_number_beyond_all_is_no_infinity() -> None:
    for datatype, data in (("INT32", "[NaN]"), ("INT32", "[Infinity]"), ("FP32", "[NaN, 1e999]")):
        body = f'{{"inputs": [{{"name": "a", "shape": [1], "datatype": "{datatype}", "data": {data}}}]}}'
        with pytest.raises(RequestError):
            read_request(body.encode(), None, model="m")


def test_text_that_is_no_unicode_is_refused_beside_nan_too() -> None:
    body = b'{"id": "\\ud800", "inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [NaN]}]}'
    with pytest.raises(RequestError, match="surrogates"):
        read_request(body, None, model="m")


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_in_json() -> None:
    tensor = Tensor("b", FP32, np.array([[1, np.nan]], np.float32))
    described, rest = answered(read(plain(id="7")), tensor, parameters={"of": "m"})
    assert described == {
        "model_name": "m",
        "model_version": "2",
        "id": "7",
        "parameters": {"of": "m"},
        "outputs": [{"name": "b", "datatype": "FP32", "shape": [1, 2], "data": [1.0, None]}],
    }
    assert rest == b""


def test_an_answer_has_no_id_if_none_was_given() -> None:
    assert "id" not in answered(read(plain()))[0]


def test_which_outputs_are_binary() -> None:
    tensors = [Tensor(name, INT32, np.array([number], "<i4")) for number, name in enumerate("bcd")]
    request = read(
        plain(
            parameters={"binary_data_output": True},
            outputs=[
                {"name": "b"},
                {"name": "c", "parameters": {"binary_data": False}},
                {"name": "d", "parameters": {"binary_data": True}},
            ],
        )
    )
    described, rest = answered(request, *tensors)
    assert [output.get("parameters") for output in described["outputs"]] == [
        {"binary_data_size": 4},
        None,
        {"binary_data_size": 4},
    ]
    assert described["outputs"][1]["data"] == [1]
    assert rest == b"\0\0\0\0\x02\0\0\0"
    request = read(plain(outputs=[{"name": "d", "parameters": {"binary_data": True}}]))
    assert answered(request, tensors[2])[1] == b"\x02\0\0\0"
    assert answered(read(plain(outputs=[{"name": "d"}])), tensors[2])[1] == b""


def test_all_outputs_are_binary_if_none_is_named() -> None:
    request = read(plain(parameters={"binary_data_output": True}))
    strings = Tensor("c", BYTES, np.array([b"ab", b""], object))
    empty = Tensor("d", FP32, np.empty((0, 3), np.float32))
    described, rest = answered(request, strings, empty)
    assert rest == b"\x02\0\0\0ab\0\0\0\0"
    assert [output["parameters"]["binary_data_size"] for output in described["outputs"]] == [10, 0]


def test_binary_outputs_are_not_copied() -> None:
    array = np.arange(4, dtype="<f4")
    request = read(plain(parameters={"binary_data_output": True}))
    parts = write_answer(InferResponse("m", "1", "", (Tensor("b", FP32, array),)), request).parts
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), array)


def test_bytes_that_are_no_unicode_say_that_they_are_base64() -> None:
    described, _ = answered(read(plain()), Tensor("b", BYTES, np.array([b"\xff\xd8"], object)))
    assert described["outputs"][0]["parameters"] == {"content_type": "base64"}
    described["outputs"][0].pop("name")
    back = read({"inputs": [{"name": "a", **described["outputs"][0]}]})
    assert back.inputs[0].array.tolist() == [b"\xff\xd8"]


# -- a body without JSON -----------------------------------------------------------------------------------------------


def test_a_body_that_is_the_only_input() -> None:
    known = [TensorMetadata("a", FP32, (-1, 2))]
    request = read_tensor_only(np.arange(6, dtype="<f4").tobytes(), known, model="m")
    assert request.inputs[0].array.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert request.parameters == {"binary_data_output": True}


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ([TensorMetadata("a", FP32, (-1, 2))], r"12 bytes, but shape \[1, 2\] of FP32 takes 8"),
        ([TensorMetadata("a", FP32, (-1, -1))], "does not follow"),
        ([TensorMetadata("a", BYTES, (1,))], "does not follow"),
        ([TensorMetadata("a", FP32, (3,)), TensorMetadata("b", FP32, (3,))], "has 2 inputs"),
    ],
)
def test_a_body_from_which_no_shape_follows(known: list[TensorMetadata], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read_tensor_only(b"123456789012", known, model="m")


# -- whatever comes ----------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=4) | _JSON,
        "shape": st.lists(st.integers(-1, 2**65) | st.integers(0, 3), max_size=4) | _JSON,
        "datatype": st.sampled_from([*DATATYPES, "FLOAT"]) | _JSON,
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.text(max_size=3), max_size=4) | _JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 40) | _JSON, "content_type": st.just("base64") | _JSON}
        ),
    },
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(max_size=5) | _JSON,
            "parameters": _JSON,
            "inputs": st.lists(_INPUT, max_size=3) | _JSON,
            "outputs": _JSON,
        },
    )
    | _JSON,
    st.binary(max_size=48),
    st.none() | st.integers(-3, 60),
    st.integers(0, 200),
)
def test_any_framing_is_a_request_or_an_error_of_the_request(
    described: Any, raw: bytes, off: int | None, broken_at: int
) -> None:
    text = json.dumps(described).encode()
    body = bytearray(text + raw)
    if broken_at < len(body) and broken_at % 3 == 0:
        body[broken_at] ^= 0x41
    try:
        nbytes = header_nbytes(None if off is None else str(len(text) + off), len(body))
        request = read_request(bytes(body), nbytes, model="m")
    except RequestError as error:
        status, told = error.kind.http_status, str(error)
    else:
        write_answer(InferResponse("m", "1", request.id, request.inputs), request)
        return
    assert status == 400
    msgspec.json.encode(told)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error_of_the_request(body: bytes) -> None:
    with pytest.raises(RequestError):
        read_request(body, None, model="m")
