"""Requests and answers as the REST protocol has them: JSON, and behind it the tensors' raw bytes.

::

    {"inputs": [{"name": "a", ..., "parameters": {"binary_data_size": 8}}, {"name": "b", ..., "data": [1, 2]},
                {"name": "c", ..., "parameters": {"binary_data_size": 4}}]}  aaaaaaaa  cccc
    |<------------------ Inference-Header-Content-Length ----------------->|
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from odin.server.datatypes import checked_shape, datatype_of, from_raw, to_raw
from odin.server.failures import FailureKind, RequestError
from odin.server.json_tensor import from_json, to_json, to_strings
from odin.server.messages import (
    InferRequest,
    InferResponse,
    Parameter,
    RequestedOutput,
    Tensor,
    TensorMetadata,
)

__all__ = ["HEADER_LENGTH", "Answer", "header_nbytes", "read_request", "read_tensor_only", "write_answer"]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header that tells how many bytes of a body are JSON."""

_Parameters = dict[str, bool | int | float | str | None] | None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = None
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Request)


class Answer(NamedTuple):
    """The body of an answer.

    Attributes
    ----------
    parts
        Its bytes, in order; those of binary tensors are views of them.
    header_nbytes
        How many of these are JSON, if others follow; None: all.
    """

    parts: tuple[bytes | memoryview, ...]
    header_nbytes: int | None


def header_nbytes(text: str | None, body_nbytes: int) -> int | None:
    """Read :data:`HEADER_LENGTH`; None if it is not given.

    Raises
    ------
    RequestError
        If it is no number, or the body is shorter.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise _error(f"{HEADER_LENGTH} is {text[:40]!r}, and no number of bytes")
    if int(text) > body_nbytes:
        raise _error(f"{HEADER_LENGTH} is {int(text)}, but the body has at most {body_nbytes} bytes")
    return int(text)


def read_request(
    body: bytes | memoryview,
    header_nbytes: int | None,
    *,
    model: str,
    version: str = "",
    traceparent: str = "",
) -> InferRequest:
    """Read a request; binary tensors are views of its body.

    Parameters
    ----------
    body
        All of it, uncompressed.
    header_nbytes
        How many of its bytes are JSON; None: all.
    model, version, traceparent
        As in the request that is made of it.

    Raises
    ------
    RequestError
        If it is not valid.
    """
    view = memoryview(body)
    text, rest = (view, None) if header_nbytes is None else (view[:header_nbytes], view[header_nbytes:])
    read, data = _decode(text, whole=rest is None)
    inputs = tuple(_inputs(read.inputs, data, rest))
    outputs = tuple(_output(output.name, _parameters(output.parameters)) for output in read.outputs or ())
    parameters = _parameters(read.parameters)
    _flag(parameters, "binary_data_output", "the request")
    return InferRequest(model, version, read.id or "", parameters, inputs, outputs, traceparent=traceparent)


def read_tensor_only(
    body: bytes | memoryview, known: Sequence[TensorMetadata], *, model: str, version: str = "", traceparent: str = ""
) -> InferRequest:
    """Read a request whose body is nothing but the only input's bytes; all outputs are wanted as binary data.

    Parameters
    ----------
    body
        All of it.
    known
        The model's inputs.
    model, version, traceparent
        As in the request that is made of it.

    Raises
    ------
    RequestError
        If the model has several inputs, or its input's shape does not follow from the number of bytes.
    """
    remedy = f"describe it in JSON, and give the length of that as {HEADER_LENGTH}"
    if len(known) != 1:
        raise _error(f"a body without JSON is one input's bytes, but model {model!r} has {len(known)} inputs: {remedy}")
    (one,) = known
    fixed = math.prod(size for size in one.shape if size != -1) * one.datatype.held_as.itemsize
    if one.datatype.name == "BYTES" or one.shape.count(-1) > 1 or fixed == 0:
        raise _error(f"the shape of input {one.name!r} does not follow from a number of bytes: {remedy}")
    shape = [len(body) // fixed if size == -1 else size for size in one.shape]
    array = from_raw(one.datatype, shape, body, what=f"input {one.name!r}")
    return InferRequest(
        model,
        version,
        "",
        {"binary_data_output": True},
        (Tensor(one.name, one.datatype, array),),
        traceparent=traceparent,
    )


def write_answer(answer: InferResponse, request: InferRequest) -> Answer:
    """Write the answer to a request; binary data are views of the tensors."""
    described, raw = [], []
    for tensor in answer.outputs:
        one: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype.name,
            "shape": list(tensor.array.shape),
        }
        if _is_binary(tensor.name, request):
            raw.append(to_raw(tensor.datatype, tensor.array))
            one["parameters"] = {"binary_data_size": len(raw[-1])}
        elif tensor.datatype.name == "BYTES":
            one["data"], is_base64 = to_strings(tensor.array)
            if is_base64:
                one["parameters"] = {"content_type": "base64"}
        else:
            one["data"] = to_json(tensor.datatype, tensor.array)
        described.append(one)
    whole: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        whole["id"] = answer.id
    if answer.parameters:
        whole["parameters"] = dict(answer.parameters)
    whole["outputs"] = described
    text = msgspec.json.encode(whole)
    return Answer((text, *raw), len(text) if raw else None)


def _is_binary(name: str, request: InferRequest) -> bool:
    everywhere = request.parameters.get("binary_data_output", False)
    for output in request.outputs:
        if output.name == name:
            return bool(output.parameters.get("binary_data", everywhere))
    return bool(everywhere)


# -- reading -----------------------------------------------------------------------------------------------------------


def _decode(text: memoryview, *, whole: bool) -> tuple[_Request, list[Any] | None]:
    """The request, and its inputs' data if these have been read already."""
    try:
        return _DECODER.decode(text), None
    except msgspec.ValidationError as error:
        raise _error(f"the request is not valid: {error}") from None
    except (ValueError, RecursionError) as error:
        copied = bytes(text)
        if b"NaN" in copied or b"Infinity" in copied:
            return _decode_lax(copied)
        remedy = f"; with binary data behind it, {HEADER_LENGTH} has to tell its length" if whole else ""
        raise _error(f"the request is no JSON: {error}{remedy}") from None


def _decode_lax(text: bytes) -> tuple[_Request, list[Any]]:
    """As :func:`_decode`, of JSON with NaN and infinities, which some clients write."""
    try:
        read = json.loads(text.decode(), parse_float=_finite)
        msgspec.json.encode(read)  # is all of it Unicode?
        inputs = read["inputs"] if isinstance(read, dict) and isinstance(read.get("inputs"), list) else []
        data = [one.pop("data", None) if isinstance(one, dict) else None for one in inputs]
        return msgspec.convert(read, _Request), data
    except (ValueError, RecursionError) as error:
        raise _error(f"the request is not valid: {error}") from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is out of range")
    return value


def _inputs(inputs: Sequence[_Input], read: list[Any] | None, rest: memoryview | None) -> Iterator[Tensor]:
    at = 0
    for number, one in enumerate(inputs):
        what = f"input {one.name!r}"
        datatype = datatype_of(one.datatype)
        parameters = _parameters(one.parameters)
        shape = checked_shape(one.shape, datatype, what=what)
        data = _given(one.data) if read is None else read[number]
        size = parameters.get("binary_data_size")
        if any(name.startswith("shared_memory_") for name in parameters):
            raise _error(f"{what} lies in shared memory, which is not served: send its data")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise _error(f"{what}: 'binary_data_size' is {size!r}, and no number of bytes")
            if data is not None:
                raise _error(f"{what} has both 'data' and 'binary_data_size': give one of them")
            if rest is None:
                raise _error(f"{what} has 'binary_data_size', but {HEADER_LENGTH} does not tell where its data begin")
            if at + size > len(rest):
                raise _error(f"{what}: 'binary_data_size' is {size}, of which {len(rest) - at} bytes are there")
            array = from_raw(datatype, shape, rest[at : at + size], what=what)
            at += size
        elif data is None:
            raise _error(f"{what} has neither 'data' nor 'binary_data_size'")
        else:
            is_base64 = parameters.get("content_type") == "base64"
            array = from_json(datatype, shape, data, what=what, is_base64=is_base64)
        yield Tensor(one.name, datatype, array, parameters)
    if rest is not None and at != len(rest):
        raise _error(f"{len(rest)} bytes follow the JSON, but the inputs' 'binary_data_size' are {at} together")


def _given(data: msgspec.Raw) -> msgspec.Raw | None:
    nbytes = memoryview(data).nbytes
    return None if nbytes == 0 or (nbytes == len(b"null") and bytes(data) == b"null") else data


def _parameters(given: _Parameters) -> Mapping[str, Parameter]:
    if not given:
        return {}
    return {name: value for name, value in given.items() if value is not None}


def _flag(parameters: Mapping[str, Parameter], name: str, what: str) -> None:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _error(f"parameter {name!r} of {what} is {value!r}; it takes true or false")


def _output(name: str, parameters: Mapping[str, Parameter]) -> RequestedOutput:
    what = f"output {name!r}"
    _flag(parameters, "binary_data", what)
    if any(parameter.startswith("shared_memory_") for parameter in parameters):
        raise _error(f"{what} is wanted in shared memory, which is not served")
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise _error(f"parameter 'classification' of {what} is {count!r}, and no number of classes")
    return RequestedOutput(name, count, parameters)


def _error(message: str) -> RequestError:
    return RequestError(FailureKind.INVALID, message)
