"""Translation of gRPC's messages for inference, without any server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import examples
from tritonclient.grpc import service_pb2

from odin.server.datatypes import DATATYPES, from_raw, to_raw
from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_form import in_stream, read_request, split_raw, write_answer
from odin.server.grpc_messages import inference
from odin.server.messages import InferRequest, InferResponse, Tensor


def read(message: Any, **options: Any) -> InferRequest:
    return read_request(*split_raw(message if isinstance(message, bytes) else message.SerializeToString()), **options)


def request_of(datatype: str, shape: list[int], **contents: Any) -> Any:
    """A request of one input with typed contents."""
    message = inference.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def raw_request(datatype: str, shape: list[int], raw: bytes) -> Any:
    message = request_of(datatype, shape)
    message.raw_input_contents.append(raw)
    return message


def refusal(message: Any) -> str:
    with pytest.raises(RequestError) as caught:
        read(message)
    assert caught.value.kind is FailureKind.INVALID
    return str(caught.value)


def test_all_of_a_request_is_read() -> None:
    message = inference.ModelInferRequest(model_name="m", model_version="3", id="seven")
    message.parameters["timeout"].int64_param = 5000
    message.parameters["priority"].uint64_param = 2**64 - 1
    message.parameters["flag"].bool_param = True
    message.parameters["text"].string_param = "t"
    message.parameters["half"].double_param = 0.5
    first = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    first.parameters["of"].string_param = "x"
    message.inputs.add(name="y", datatype="BYTES", shape=[2])
    message.raw_input_contents.append(np.array([1.5, -2], "<f4").tobytes())
    message.raw_input_contents.append(b"\x02\0\0\0ab\0\0\0\0")
    wanted = message.outputs.add(name="scores")
    wanted.parameters["classification"].int64_param = 3
    message.outputs.add(name="plain")

    request = read(message, timeout_s=0.25, traceparent="00-a-b-01")

    assert (request.model, request.version, request.id) == ("m", "3", "seven")
    assert request.parameters == {"timeout": 5000, "priority": 2**64 - 1, "flag": True, "text": "t", "half": 0.5}
    assert (request.timeout_s, request.traceparent) == (0.25, "00-a-b-01")
    x, y = request.inputs
    assert (x.name, x.datatype.name, x.array.tolist(), x.parameters) == ("x", "FP32", [[1.5, -2]], {"of": "x"})
    assert (y.name, y.datatype.name, y.array.tolist()) == ("y", "BYTES", [b"ab", b""])
    assert [(output.name, output.classification) for output in request.outputs] == [("scores", 3), ("plain", 0)]


def test_raw_tensors_are_views_of_the_message() -> None:
    values = np.arange(6, dtype="<f4")
    message = raw_request("FP32", [2, 3], values.tobytes()).SerializeToString()
    array = read(message).inputs[0].array
    assert np.shares_memory(array, np.frombuffer(message, np.uint8))
    assert (array == values.reshape(2, 3)).all()


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False, True]),
        ("UINT8", "uint_contents", [0, 1, 255]),
        ("UINT16", "uint_contents", [0, 1, 65535]),
        ("UINT32", "uint_contents", [0, 1, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 1, 2**64 - 1]),
        ("INT8", "int_contents", [-128, 0, 127]),
        ("INT16", "int_contents", [-(2**15), 0, 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 0, 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 0, 2**63 - 1]),
        ("FP32", "fp32_contents", [-1.5, float("inf"), 2.0**-149]),
        ("FP64", "fp64_contents", [-1.5, float("-inf"), 5e-324]),
        ("BYTES", "bytes_contents", [b"", b"a\0", b"\xff"]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = read(request_of(datatype, [3, 1], **{field: values})).inputs
    assert tensor.array.dtype == DATATYPES[datatype].held_as
    assert tensor.array.shape == (3, 1)
    assert tensor.array.ravel().tolist() == values


def test_every_datatype_with_a_field_is_tested() -> None:
    assert {name for name, one in DATATYPES.items() if not one.contents} == {"FP16", "BF16"}


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 65536),
        ("INT8", "int_contents", -129),
        ("INT8", "int_contents", 128),
        ("INT16", "int_contents", 2**15),
    ],
)
def test_values_out_of_range_are_refused(datatype: str, field: str, value: int) -> None:
    assert f"{value} is no {datatype}" in refusal(request_of(datatype, [2], **{field: [1, value]}))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_what_has_no_typed_contents_is_sent_raw(datatype: str) -> None:
    assert "send raw_input_contents" in refusal(request_of(datatype, [1], fp32_contents=[1.0]))
    held = read(raw_request(datatype, [2], b"\x80\x3f\x00\xc0")).inputs[0].array
    assert held.view("u2").tolist() == [0x3F80, 0xC000]


def test_values_in_another_field_are_refused() -> None:
    told = refusal(request_of("FP32", [1], fp64_contents=[1.0]))
    assert told == "input 'x': values of FP32 belong into fp32_contents, not into fp64_contents"


def test_raw_and_typed_are_not_mixed() -> None:
    message = raw_request("FP32", [1], b"\0\0\0\0")
    message.inputs[0].contents.fp32_contents.append(1.0)
    assert "send all inputs in one of the two" in refusal(message)
    message = raw_request("FP32", [1], b"\0\0\0\0")
    message.inputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    assert refusal(message) == "1 raw_input_contents for 2 inputs"


def test_an_input_without_values_is_refused_unless_it_has_no_elements() -> None:
    assert "0 values in fp32_contents, but shape [2] has 2" in refusal(request_of("FP32", [2]))
    assert read(request_of("FP32", [0, 3])).inputs[0].array.shape == (0, 3)
    assert read(raw_request("FP32", [0, 3], b"")).inputs[0].array.shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ([-1, 3], "negative size"),
        ([2**62, 2**62], "has more than"),
        ([2**63 - 1] * 32, "has more than"),
        ([0, 2**62, 2**62], "has more than"),
        ([1] * 33, "33 axes"),
        ([1] * 100_000, "100000 axes"),
        ([2**40], "takes 4398046511104"),
    ],
)
def test_impossible_shapes_are_refused(shape: list[int], told: str) -> None:
    assert told in refusal(raw_request("FP32", shape, b"\0" * 4))


def test_of_bytes_no_more_elements_are_made_than_the_shape_has() -> None:
    assert "3 or more elements, but shape [2] has 2" in refusal(raw_request("BYTES", [2], b"\0" * 4_000_000))
    assert "the most of BYTES" in refusal(raw_request("BYTES", [1_000_000], b"\0" * 4_000_000))


def test_thousands_of_tiny_fields_are_refused() -> None:
    assert "more than 4096" in refusal(b"\x2a\x00" * 1_000_000)
    assert "more than 4096" in refusal(b"\x3a\x00" * 1_000_000)


def test_shared_memory_is_refused_by_name() -> None:
    message = request_of("FP32", [1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(RequestError, match="shared memory") as caught:
        read(message)
    assert caught.value.kind is FailureKind.UNSUPPORTED


@pytest.mark.parametrize("value", [{"int64_param": -1}, {"bool_param": True}, {"string_param": "3"}])
def test_a_classification_that_is_no_count_is_refused(value: dict[str, Any]) -> None:
    message = request_of("FP32", [0])
    parameter = message.outputs.add(name="y").parameters["classification"]
    for field, given_value in value.items():
        setattr(parameter, field, given_value)
    assert "no number of classes" in refusal(message)


def test_a_parameter_without_a_value_is_refused() -> None:
    message = request_of("FP32", [0])
    message.parameters["timeout"].SetInParent()
    assert refusal(message) == "parameter 'timeout' of the request has no value"


def test_an_unknown_datatype_is_refused_with_those_there_are() -> None:
    told = refusal(raw_request("fp32", [1], b"\0" * 4))
    assert told.startswith("input 'x': datatype 'fp32' is none of BOOL, ")


# -- answers ----------------------------------------------------------------------------------------------------------


def answer_of(*outputs: Tensor, **options: Any) -> InferResponse:
    return InferResponse("m", "1", "seven", outputs, **options)


@pytest.mark.parametrize("name", list(DATATYPES))
def test_answers_are_raw_in_every_datatype(name: str) -> None:
    datatype = DATATYPES[name]
    array = np.array([b"ab", b"", b"c" * 300], object) if name == "BYTES" else np.arange(3).astype(datatype.held_as)
    written = write_answer(answer_of(Tensor("y", datatype, array.reshape(1, 3))))
    theirs = service_pb2.ModelInferResponse.FromString(written)
    assert (theirs.model_name, theirs.model_version, theirs.id) == ("m", "1", "seven")
    assert (theirs.outputs[0].name, theirs.outputs[0].datatype) == ("y", name)
    assert not theirs.outputs[0].HasField("contents")
    back = from_raw(datatype, theirs.outputs[0].shape, theirs.raw_output_contents[0], what="y")
    assert back.tolist() == [array.tolist()]


def test_several_outputs_of_any_size_and_order_in_memory() -> None:
    outputs = [
        Tensor("empty", DATATYPES["FP32"], np.empty((0, 5), "f4")),
        Tensor("columns", DATATYPES["INT16"], np.arange(6, dtype="i2").reshape(2, 3).T),
        Tensor("large", DATATYPES["UINT8"], np.zeros(70_000, "u1")),
        Tensor("scalar", DATATYPES["FP64"], np.array(2.5)),
    ]
    theirs = service_pb2.ModelInferResponse.FromString(write_answer(answer_of(*outputs)))
    assert [list(output.shape) for output in theirs.outputs] == [[0, 5], [3, 2], [70_000], []]
    assert list(theirs.raw_output_contents) == [bytes(to_raw(one.datatype, one.array)) for one in outputs]


def test_parameters_of_answers() -> None:
    given_parameters = {"flag": True, "count": -3, "many": 2**63, "half": 0.5, "text": "t"}
    output = Tensor("y", DATATYPES["FP32"], np.zeros(1, "f4"), {"of": "y"})
    theirs = service_pb2.ModelInferResponse.FromString(write_answer(answer_of(output, parameters=given_parameters)))
    read_back = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in theirs.parameters.items()
    }
    assert read_back == given_parameters
    assert theirs.outputs[0].parameters["of"].string_param == "y"


def test_an_answer_in_a_stream() -> None:
    written = write_answer(answer_of(Tensor("y", DATATYPES["UINT8"], np.ones(1000, "u1"))))
    theirs = service_pb2.ModelStreamInferResponse.FromString(in_stream(written))
    assert theirs.error_message == ""
    assert theirs.infer_response == service_pb2.ModelInferResponse.FromString(written)


# -- whatever comes ---------------------------------------------------------------------------------------------------

texts = st.text(max_size=5)
parameters = st.dictionaries(
    texts,
    st.one_of(
        st.builds(lambda value: ("int64_param", value), st.integers(-(2**63), 2**63 - 1)),
        st.builds(lambda value: ("string_param", value), texts),
        st.builds(lambda value: ("bool_param", value), st.booleans()),
        st.just(None),
    ),
    max_size=2,
)
fields_of_contents = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=4),
}
sizes = st.integers(0, 4) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def requests(draw: Any) -> Any:
    """Messages that are well-formed, and mean something or nothing."""

    def set_parameters(to: Any) -> None:
        for name, value in draw(parameters).items():
            to[name].SetInParent() if value is None else setattr(to[name], *value)

    message = inference.ModelInferRequest(model_name=draw(texts), id=draw(texts))
    set_parameters(message.parameters)
    for _ in range(draw(st.integers(0, 2))):
        datatype = draw(st.sampled_from(list(DATATYPES)) | texts)
        tensor = message.inputs.add(name=draw(texts), datatype=datatype, shape=draw(st.lists(sizes, max_size=4)))
        set_parameters(tensor.parameters)
        for field in draw(st.lists(st.sampled_from(list(fields_of_contents)), max_size=2)):
            getattr(tensor.contents, field).extend(draw(st.lists(fields_of_contents[field], max_size=4)))
    for _ in range(draw(st.integers(0, 2))):
        set_parameters(message.outputs.add(name=draw(texts)).parameters)
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=16), max_size=2)))
    return message


def read_or_invalid(message: bytes) -> InferRequest | None:
    try:
        return read(message)
    except RequestError as error:
        failure = error
    assert failure.kind is FailureKind.INVALID or "shared memory" in str(failure)
    assert str(failure)
    return None


@settings(max_examples=examples(300))
@given(requests())
def test_any_request_is_read_or_invalid(message: Any) -> None:
    request = read_or_invalid(message.SerializeToString())
    if request is not None:
        assert [list(tensor.array.shape) for tensor in request.inputs] == [list(one.shape) for one in message.inputs]


@settings(max_examples=examples(300))
@given(st.binary(max_size=64) | st.lists(st.sampled_from(b"\x2a\x3a\x0a\x00\x01\x02\xff\x80\x08"), max_size=12))
def test_any_bytes_are_read_or_invalid(message: Any) -> None:
    read_or_invalid(bytes(message))


@settings(max_examples=examples(300))
@given(requests(), st.data())
def test_a_broken_request_is_read_or_invalid(message: Any, data: Any) -> None:
    whole = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read_or_invalid(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@settings(max_examples=examples(300))
@given(requests(), st.lists(st.tuples(st.integers(20, 30), st.integers(0, 2**64 - 1)), max_size=3))
def test_splitting_loses_and_invents_nothing(message: Any, unknown: list[tuple[int, int]]) -> None:
    """Raw tensors and the rest, wherever they and fields that nobody knows lie, are what protobuf reads in one."""
    pieces = [message.SerializeToString()] + [
        inference.StatisticDuration(count=value).SerializeToString().replace(b"\x08", bytes([number << 3 & 0x7F]), 1)
        for number, value in unknown
    ]
    whole = b"".join([*pieces, message.SerializeToString()])
    expected = inference.ModelInferRequest.FromString(whole)
    rest, raw = split_raw(whole)
    joined = inference.ModelInferRequest.FromString(rest)
    assert len(joined.raw_input_contents) == 0
    joined.raw_input_contents.extend(map(bytes, raw))
    # Compared as bytes: two NaN are never equal.
    assert joined.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@settings(max_examples=examples(300))
@given(st.binary(max_size=40))
def test_what_splits_is_what_protobuf_takes(message: bytes) -> None:
    try:
        rest, raw = split_raw(message)
        read_rest = inference.ModelInferRequest.FromString(rest)
    except Exception:
        return
    whole = inference.ModelInferRequest.FromString(message)
    assert list(whole.raw_input_contents) == list(map(bytes, raw))
    assert (whole.model_name, len(whole.inputs)) == (read_rest.model_name, len(read_rest.inputs))
