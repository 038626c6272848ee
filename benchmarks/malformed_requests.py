"""Requests for benchmarks/malformed.py: valid ones to each model, and the same with bytes gone, doubled or changed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from odin.server.grpc_messages import inference

__all__ = [
    "HTTP2_PREFACE",
    "MODELS",
    "SIZE",
    "broken",
    "broken_call",
    "broken_http",
    "frames",
    "valid_call",
    "valid_http",
]

MODELS = ("net", "batched", "packed", "family")
"""Each a model of the server, of one kind of serving."""

SIZE = 8
"""Height and width of the models' input."""

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")

_PARTS = (
    b"\r\n", b"\0", b"\xff", b"{", b"}", b"[", b'"', b"NaN", b"1e999", b"-1", b"null", b"FP64", b"BYTES", b"2147483648",
    b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"HTTP/1.0",
    b'"binary_data_size": 99', b"Inference-Header-Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"\xf0\x9f",
)  # fmt: skip

_PARAMETERS: Sequence[Mapping[str, Any]] = (
    {}, {}, {"timeout": 60_000_000}, {"priority": 1}, {"accuracy": 0.5}, {"latency": 60_000_000},
    {"accuracy_budget": 0.5},
)  # fmt: skip
_NUMBERS = (0, -1, 1, 7, 2**31, 2**62, -(2**63))
_TEXTS = ("", "a", "1", "-5", "NaN", "true", "\0", "é" * 40, "1" * 400)
_KEYS = (
    "timeout",
    "priority",
    "accuracy",
    "latency",
    "accuracy_budget",
    "binary_data_output",
    "classification",
    "sequence_id",
    "",
)
_GET = (
    "/v2", "/v2/models/stats", "/v2/health/ready", "/v2/health/live", "/openapi.json", "/metrics", "/",
)  # fmt: skip


def broken(data: bytes, chance: random.Random) -> bytes:
    """A request with some bytes gone, doubled, changed or put in, or a header's number changed."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at, length = chance.randrange(len(changed) + 1), chance.randrange(1, 20)
        change = chance.randrange(5)
        if change == 0:
            del changed[at : at + length]
        elif change == 1:
            changed[at:at] = changed[at : at + length]
        elif change == 2 and changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
        elif change == 3:
            changed[at:at] = chance.choice(_PARTS)
        else:
            changed = bytearray(bytes(changed).replace(b"Length: 1", b"Length: %d" % chance.randrange(9), 1))
    return bytes(changed)


def valid_http(chance: random.Random) -> bytes:
    """An HTTP request that is answered with 200."""
    if chance.randrange(6) == 0:
        ends = (f"/v2/models/{chance.choice(MODELS)}{end}" for end in ("", "/ready", "/config", "/stats"))
        return f"GET {chance.choice((*_GET, *ends))} HTTP/1.1\r\nHost: odin\r\n\r\n".encode()
    content, raw = _inference(chance)
    text = b"" if raw and chance.randrange(8) == 0 else json.dumps(content).encode()  # or nothing but the tensor
    return _framed(chance, text, raw)


def broken_http(chance: random.Random) -> bytes:
    """An HTTP request that is broken: any of its bytes, its body, or what its JSON says."""
    how = chance.randrange(3)
    if how == 0:
        return broken(valid_http(chance), chance)
    content, raw = _inference(chance)
    if how == 1:
        text = json.dumps(content).encode()
        return _framed(chance, broken(text, chance), broken(raw, chance) if raw and chance.randrange(2) else raw)
    for _ in range(chance.randrange(1, 3)):
        content = _twisted(content, chance)
    return _framed(chance, json.dumps(content).encode(), raw)


def valid_call(chance: random.Random) -> tuple[str, bytes]:
    """A gRPC method, and the bytes of a message to it that is answered."""
    method, message = _message(chance)
    return method, message.SerializeToString()


def broken_call(chance: random.Random) -> tuple[str, bytes]:
    """The same, broken: any of the message's bytes, or what it says."""
    method, message = _message(chance)
    if method != "ModelInfer" or chance.randrange(2):
        return method, broken(message.SerializeToString(), chance)
    tensor = message.inputs[0]
    for _ in range(chance.randrange(1, 3)):
        chance.choice(
            (
                lambda: tensor.shape.append(chance.choice(_NUMBERS)),
                lambda: tensor.shape.__setitem__(chance.randrange(4), chance.choice(_NUMBERS)),
                lambda: setattr(tensor, "datatype", chance.choice(("FP64", "BYTES", "FP16", "BF16", "INT64", "", "X"))),
                lambda: setattr(tensor, "name", chance.choice(("", "x", "\0"))),
                lambda: setattr(message, "model_name", chance.choice(("", "none", "../net", "x" * 5000))),
                lambda: setattr(message, "model_version", chance.choice(("2", "\0", "1" * 99))),
                lambda: message.raw_input_contents.append(chance.randbytes(chance.randrange(300))),
                lambda: tensor.contents.bytes_contents.append(chance.randbytes(9)),
                lambda: tensor.contents.fp32_contents.append(chance.choice((float("nan"), float("inf"), 0.0))),
                lambda: message.inputs.add().CopyFrom(tensor),
                lambda: message.outputs.add(name=chance.choice(("output", "none", ""))),
                lambda: setattr(message.parameters[chance.choice(_KEYS)], "int64_param", chance.choice(_NUMBERS)),
                lambda: setattr(message.parameters[chance.choice(_KEYS)], "string_param", chance.choice(_TEXTS)),
                lambda: setattr(message.parameters[chance.choice(_KEYS)], "double_param", float("nan")),
                lambda: message.parameters[chance.choice(_KEYS)].SetInParent(),
            )
        )()
    return method, message.SerializeToString()


def _inference(chance: random.Random) -> tuple[dict[str, Any], bytes]:
    """What a request for inference says as JSON, and the bytes behind it."""
    samples = chance.randrange(1, 4)
    tensor: dict[str, Any] = {"name": "input", "shape": [samples, 1, SIZE, SIZE], "datatype": "FP32"}
    values = [chance.random() for _ in range(samples * SIZE * SIZE)]
    content: dict[str, Any] = {"id": "1", "inputs": [tensor], "parameters": {**chance.choice(_PARAMETERS)}}
    if chance.randrange(3) == 0:
        tensor["data"] = [round(value, 2) for value in values]
        return content, b""
    raw = struct.pack(f"<{len(values)}f", *values)
    tensor["parameters"] = {"binary_data_size": len(raw)}
    content["parameters"]["binary_data_output"] = bool(chance.randrange(2))
    return content, raw


def _framed(chance: random.Random, text: bytes, raw: bytes) -> bytes:
    head = f"POST /v2/models/{chance.choice(MODELS)}/infer HTTP/1.1\r\nHost: odin\r\n"
    head += f"Content-Length: {len(text) + len(raw)}\r\n"
    if raw:
        head += f"Inference-Header-Content-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text + raw


def _twisted(content: Any, chance: random.Random) -> Any:
    """The same with something in it left out, doubled, or something else."""
    if isinstance(content, dict) and content and chance.randrange(6):
        key = chance.choice(list(content))
        left = {name: value for name, value in content.items() if name != key}
        if chance.randrange(8) == 0:
            return left
        named = key if chance.randrange(8) else chance.choice(_KEYS)
        return {**left, named: _twisted(content[key], chance)}
    if isinstance(content, list) and content and chance.randrange(6):
        at = chance.randrange(len(content))
        inner = [] if chance.randrange(8) == 0 else [_twisted(content[at], chance)]
        return [*content[:at], *inner, *content[at + (chance.randrange(8) > 0) :]]
    return chance.choice((*_NUMBERS, *_TEXTS, None, True, 0.5, 1e308, float("nan"), [], {}, [[1], [2, 3]], {"a": None}))


def _message(chance: random.Random) -> tuple[str, Any]:
    messages: Any = inference
    model = chance.choice(MODELS)
    if chance.randrange(6) == 0:
        method = chance.choice(("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"))
        return method, getattr(messages, f"{method}Request")(**({} if method == "RepositoryIndex" else {"name": model}))
    samples = chance.randrange(1, 4)
    values = [chance.random() for _ in range(samples * SIZE * SIZE)]
    request = messages.ModelInferRequest(model_name=model, id="1")
    for name, value in chance.choice(_PARAMETERS).items():
        kind = {bool: "bool", float: "double"}.get(type(value), "int64")
        setattr(request.parameters[name], f"{kind}_param", value)
    tensor = request.inputs.add(name="input", datatype="FP32", shape=[samples, 1, SIZE, SIZE])
    if chance.randrange(2):
        tensor.contents.fp32_contents.extend(values)
    else:
        request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return "ModelInfer", request


def frames(chance: random.Random) -> bytes:
    """HTTP/2 that makes no sense: the preface, and frames of random types, flags, streams and contents."""
    sent = HTTP2_PREFACE
    for _ in range(chance.randrange(1, 6)):
        content = chance.randbytes(chance.randrange(40))
        length = len(content) if chance.randrange(4) else chance.randrange(2**24)
        head = struct.pack(">I", length)[1:] + bytes((chance.randrange(12), chance.randrange(256)))
        sent += head + struct.pack(">I", chance.choice((0, 1, 2, 3, chance.randrange(2**32)))) + content
    return broken(sent, chance) if chance.randrange(3) == 0 else sent
