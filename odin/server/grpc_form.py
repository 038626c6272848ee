"""Requests and answers of inference in gRPC's form, to and from :mod:`odin.server.messages`.

How often the bytes of an input are copied, from the socket on::

    kernel -> gRPC's buffers       1
    -> one ``bytes`` of the whole message, by grpcio 1.6x to 1.8x   2 more
    -> here                        0: raw tensors are views of that message
    -> the pipeline's slot         1, by the pipeline

Protobuf would copy twice between: into its own memory, and out of it into ``bytes`` whenever a field is read. So
the raw tensors, which are fields of the message itself, are found here, and protobuf reads the rest. For answers
likewise: values are copied once into the message here, and by gRPC from there. Values in typed contents are copied
several times, as objects of Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from odin.server.datatypes import Datatype, checked_shape, count_of, datatype_of, from_raw, to_raw
from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_messages import inference, parse
from odin.server.messages import InferRequest, InferResponse, Parameter, RequestedOutput, Tensor

__all__ = ["in_stream", "read_request", "split_raw", "write_answer"]

_RAW_INPUT = 7  # number of ModelInferRequest.raw_input_contents
_RAW_OUTPUT_TAG = b"\x32"  # field 6 of ModelInferResponse, raw_output_contents, with a length
_IN_STREAM_TAG = b"\x12"  # field 2 of ModelStreamInferResponse, infer_response, with a length

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types
_MOST_FIELDS = 4096  # inputs, outputs and parameters: two bytes each would become a hundred in memory

_WIDTH_IN_CONTENTS = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}


def _invalid(message: str) -> RequestError:
    return RequestError(FailureKind.INVALID, message)


# -- requests ---------------------------------------------------------------------------------------------------------


def split_raw(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Return a ``ModelInferRequest`` without its raw tensors, and views of these.

    Raises
    ------
    RequestError
        If the bytes are no message, or one of thousands of fields.
    """
    view = memoryview(message)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = 0
    while at < len(view):
        begin = at
        tag, at = _varint(view, at)
        wire_type = tag & 7
        if wire_type == _LENGTH:
            length, at = _varint(view, at)
            end = at + length
        elif wire_type == _VARINT:
            _, end = _varint(view, at)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            end = at + (8 if wire_type == _EIGHT_BYTES else 4)
        else:
            raise _invalid(f"no inference.ModelInferRequest: wire type {wire_type} at byte {begin}")
        if end > len(view):
            raise _invalid(f"no inference.ModelInferRequest: a field ends at byte {end} of {len(view)}")
        if tag == _RAW_INPUT << 3 | _LENGTH:
            raw.append(view[at:end])
        else:
            rest.append(view[begin:end])
        if len(rest) + len(raw) > _MOST_FIELDS:
            raise _invalid(f"more than {_MOST_FIELDS} inputs, outputs and parameters")
        at = end
    return b"".join(rest), raw


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Read a number of variable length; returns it and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _invalid(f"no inference.ModelInferRequest: no number ends at byte {at} of {len(view)}")


def read_request(
    rest: bytes, raw: list[memoryview], *, timeout_s: float | None = None, traceparent: str = ""
) -> InferRequest:
    """Translate a request whose message was split.

    Parameters
    ----------
    rest, raw
        From :func:`split_raw`; raw tensors of the request are views.
    timeout_s, traceparent
        Of the call; see :class:`odin.server.messages.InferRequest`.

    Raises
    ------
    RequestError
        If it is not valid; of the kind ``INVALID``, but ``UNSUPPORTED`` for shared memory.
    """
    message = parse(inference.ModelInferRequest, rest)
    if raw and len(raw) != len(message.inputs):
        raise _invalid(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs = tuple(_read_input(tensor, raw[number] if raw else None) for number, tensor in enumerate(message.inputs))
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters=_read_parameters(message.parameters, "the request"),
        inputs=inputs,
        outputs=tuple(map(_read_output, message.outputs)),
        timeout_s=timeout_s,
        traceparent=traceparent,
    )


def _read_input(tensor: Any, raw: memoryview | None) -> Tensor:
    what = f"input {tensor.name!r}"
    parameters = _read_parameters(tensor.parameters, what)
    try:
        datatype = datatype_of(tensor.datatype)
    except RequestError as error:
        raise _invalid(f"{what}: {error}") from None
    shape = checked_shape(tensor.shape, datatype, what=what)
    if raw is None:
        array = _read_contents(tensor, datatype, shape, what)
    elif tensor.HasField("contents"):
        raise _invalid(f"{what} has contents, and the request raw_input_contents: send all inputs in one of the two")
    else:
        array = from_raw(datatype, shape, raw, what=what)
    return Tensor(tensor.name, datatype, array, parameters)


def _read_contents(tensor: Any, datatype: Datatype, shape: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    """Values of an input from the typed field for its datatype."""
    if not datatype.contents:
        raise _invalid(f"{what}: {datatype.name} has no typed contents in the protocol; send raw_input_contents")
    for field, _ in tensor.contents.ListFields():
        if field.name != datatype.contents:
            raise _invalid(f"{what}: values of {datatype.name} belong into {datatype.contents}, not into {field.name}")
    values = getattr(tensor.contents, datatype.contents)
    if len(values) != count_of(shape):
        raise _invalid(
            f"{what}: {len(values)} values in {datatype.contents}, but shape {list(shape)} has {count_of(shape)}"
        )
    if datatype.name == "BYTES":
        texts = np.empty(len(values), object)
        texts[:] = list(values)
        return texts.reshape(shape)
    array = np.fromiter(values, _WIDTH_IN_CONTENTS.get(datatype.contents, datatype.held_as), len(values))
    if array.dtype != datatype.held_as:
        limits = np.iinfo(datatype.held_as)
        outside = array[(array < limits.min) | (array > limits.max)]
        if outside.size:
            raise _invalid(f"{what}: {outside[0]} is no {datatype.name}: {limits.min} to {limits.max}")
    return array.astype(datatype.held_as, copy=False).reshape(shape)


def _read_output(output: Any) -> RequestedOutput:
    what = f"output {output.name!r}"
    parameters = _read_parameters(output.parameters, what)
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise _invalid(f"{what}: classification is {count!r}, and no number of classes")
    return RequestedOutput(output.name, count, parameters)


def _read_parameters(given: Mapping[str, Any], what: str) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in given.items():
        field = value.WhichOneof("parameter_choice")
        if field is None:
            raise _invalid(f"parameter {name!r} of {what} has no value")
        parameters[name] = getattr(value, field)
    if "shared_memory_region" in parameters:
        raise RequestError(FailureKind.UNSUPPORTED, f"{what} lies in shared memory, which is not served: send values")
    return parameters


# -- answers ----------------------------------------------------------------------------------------------------------


def write_answer(answer: InferResponse) -> bytes:
    """Return an answer as a ``ModelInferResponse``, all values raw: tritonclient reads no others."""
    message = inference.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    _write_parameters(message.parameters, answer.parameters)
    for tensor in answer.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.array.shape)
        _write_parameters(output.parameters, tensor.parameters)
    parts: list[bytes | memoryview] = [message.SerializeToString()]
    for tensor in answer.outputs:
        parts += _field(_RAW_OUTPUT_TAG, to_raw(tensor.datatype, tensor.array))
    return b"".join(parts)


def in_stream(answer: bytes) -> bytes:
    """Return a ``ModelStreamInferResponse`` of an answer."""
    return b"".join(_field(_IN_STREAM_TAG, answer))


def _field(tag: bytes, value: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """A field with a length, as it is on the wire."""
    yield tag
    left, length = len(value), bytearray()
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    yield bytes(length)
    yield value


def _write_parameters(to: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            to[name].bool_param = value
        elif isinstance(value, int):
            setattr(to[name], "int64_param" if value < 2**63 else "uint64_param", value)
        elif isinstance(value, float):
            to[name].double_param = value
        else:
            to[name].string_param = value
