"""The REST application, with models whose stages a function stands in for, and without a port."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import math
import re
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from unreal_models import UnrealModel, UnrealRepository, Waiting, colours, dataplane_of, double, echo, pair, tensor

from odin.errors import DeadlineExceededError, QueueFullError
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.rest import make_app


@asynccontextmanager
async def client_of(dataplane: DataPlane, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(dataplane, **options))
    async with httpx.AsyncClient(transport=transport, base_url="http://odin") as client:
        yield client


def asked(
    dataplane: DataPlane, ask: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], **options: Any
) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with client_of(dataplane, **options) as client:
            return await ask(client)

    return asyncio.run(scenario())


def get(dataplane: DataPlane, path: str, **options: Any) -> httpx.Response:
    return asked(dataplane, lambda client: client.get(path), **options)


def post(dataplane: DataPlane, path: str, **content: Any) -> httpx.Response:
    return asked(dataplane, lambda client: client.post(path, **content))


def rows(*values: list[float], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [len(values), 3], "datatype": "FP32", "data": values}], **more}


def framed(described: dict[str, Any], *raw: bytes) -> dict[str, Any]:
    text = json.dumps(described).encode()
    return {"content": b"".join((text, *raw)), "headers": {"Inference-Header-Content-Length": str(len(text))}}


def error_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert list(told) == ["error"]
    return str(told["error"])


# -- health, metadata --------------------------------------------------------------------------------------------------


def test_health() -> None:
    dataplane = dataplane_of(double())
    for path, told in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/double/ready", {"name": "double", "ready": True}),
        ("/v2/models/double/versions/3/ready", {"name": "double", "ready": True}),
    ):
        response = get(dataplane, path)
        assert (response.status_code, response.json()) == (200, told)


def test_it_is_not_ready_while_models_are_loaded_or_the_server_ends() -> None:
    dataplane = dataplane_of(double())
    repository: Any = dataplane.repository
    assert isinstance(repository, UnrealRepository)
    repository.starting = True
    response = get(dataplane, "/v2/health/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False})
    assert get(dataplane, "/v2/models/double/ready").status_code == 200
    assert get(dataplane, "/v2/health/live").status_code == 200
    repository.starting, dataplane.draining = False, True
    for path in ("/v2/health/ready", "/v2/models/double/ready"):
        assert get(dataplane, path).status_code == 503
    response = post(dataplane, "/v2/models/double/infer", json=rows([1, 2, 3]))
    assert "ending" in error_of(response, 503)
    assert response.headers["retry-after"] == "1"


def test_metadata() -> None:
    dataplane = dataplane_of(double())
    for path in ("/v2", "/v2/"):
        told = get(dataplane, path).json()
        assert told["name"] == "odin"
        assert "binary_tensor_data" in told["extensions"]
    for path in ("/v2/models/double", "/v2/models/double/versions/3"):
        assert get(dataplane, path).json() == {
            "name": "double",
            "versions": ["3"],
            "platform": "odin_torch",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [-1, 3]},
                {"name": "total", "datatype": "INT64", "shape": [-1]},
            ],
        }
    assert "no model 'other'" in error_of(get(dataplane, "/v2/models/other"), 404)
    assert "double" in error_of(get(dataplane, "/v2/models/double/versions/1"), 404)


def test_configuration() -> None:
    told = get(dataplane_of(double()), "/v2/models/double/config").json()
    assert told["max_batch_size"] == 1024
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert told["parameters"]["version"] == {"string_value": "3"}


def test_statistics() -> None:
    dataplane = dataplane_of(double(), pair())
    post(dataplane, "/v2/models/double/infer", json=rows([1, 2, 3], [4, 5, 6]))
    post(dataplane, "/v2/models/double/infer", json={"inputs": []})
    (told,) = get(dataplane, "/v2/models/double/stats").json()["model_stats"]
    assert (told["name"], told["version"], told["inference_count"], told["execution_count"]) == ("double", "3", 2, 1)
    assert told["inference_stats"]["success"]["count"] == 1
    assert told["inference_stats"]["success"]["ns"] > 0
    assert told["inference_stats"]["fail"]["count"] == 1
    names = [one["name"] for one in get(dataplane, "/v2/models/stats").json()["model_stats"]]
    assert names == ["double", "pair"]


def test_paths_and_methods_that_are_not_served() -> None:
    dataplane = dataplane_of(double())
    assert "nothing at /v3" in error_of(get(dataplane, "/v3"), 404)
    error_of(get(dataplane, "/v2/models/double/"), 404)
    response = asked(dataplane, lambda client: client.delete("/v2/models/double"))
    assert "does not take DELETE" in error_of(response, 405)
    assert "GET" in response.headers["allow"]
    assert "does not take GET" in error_of(get(dataplane, "/v2/models/double/infer"), 405)


# -- inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2/models/double/infer", "/v2/models/double/versions/3/infer"])
def test_inference_in_json(path: str) -> None:
    response = post(dataplane_of(double()), path, json=rows([1, 2, 3], id="7"))
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers
    assert response.json() == {
        "model_name": "double",
        "model_version": "3",
        "id": "7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 6]},
            {"name": "total", "datatype": "INT64", "shape": [1], "data": [6]},
        ],
    }


def test_binary_both_ways() -> None:
    described = {
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}],
    }
    raw = np.array([1, 2, 3], "<f4").tobytes()
    response = post(dataplane_of(double()), "/v2/models/double/infer", **framed(described, raw))
    assert response.headers["content-type"] == "application/octet-stream"
    nbytes = int(response.headers["inference-header-content-length"])
    told = json.loads(response.content[:nbytes])
    assert [one["parameters"]["binary_data_size"] for one in told["outputs"]] == [12, 8]
    assert np.frombuffer(response.content[nbytes : nbytes + 12], "<f4").tolist() == [2, 4, 6]
    assert np.frombuffer(response.content[nbytes + 12 :], "<i8").tolist() == [6]


def test_inputs_in_any_order_binary_beside_json() -> None:
    described = {
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "INT32", "data": [1, 2]},
            {"name": "a", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        ]
    }
    response = post(dataplane_of(pair()), "/v2/models/pair/infer", **framed(described, np.ones(2, "<f4").tobytes()))
    assert response.json()["outputs"][0]["data"] == [2, 3]


def test_a_body_that_is_only_a_tensor() -> None:
    response = post(
        dataplane_of(double()),
        "/v2/models/double/infer",
        content=np.array([1, 2, 3], "<f4").tobytes(),
        headers={"Inference-Header-Content-Length": "0"},
    )
    nbytes = int(response.headers["inference-header-content-length"])
    assert np.frombuffer(response.content[nbytes : nbytes + 12], "<f4").tolist() == [2, 4, 6]


def test_json_is_no_tensor() -> None:
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/json"}
    error_of(post(dataplane_of(double()), "/v2/models/double/infer", content=b"x" * 12, headers=headers), 400)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
def test_every_datatype_in_json_and_in_binary(datatype: str) -> None:
    dataplane = dataplane_of(echo(datatype))
    held = DATATYPES[datatype].held_as
    bits = np.array([0, 1], held) if datatype != "BF16" else np.array([0, 0x3F80], held)
    one = {"name": "x", "shape": [2], "datatype": datatype}
    path = f"/v2/models/echo_{datatype}/infer"
    response = post(dataplane, path, json={"inputs": [{**one, "data": [0, 1]}]})
    assert response.json()["outputs"] == [{"name": "y", "datatype": datatype, "shape": [2], "data": [0, 1]}]
    described: dict[str, Any] = {"inputs": [{**one, "parameters": {"binary_data_size": bits.nbytes}}]}
    response = post(
        dataplane, path, **framed({**described, "parameters": {"binary_data_output": True}}, bits.tobytes())
    )
    assert response.content.endswith(bits.tobytes())


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
@pytest.mark.parametrize("written", ["NaN, Infinity, -Infinity, 1", 'null, "Infinity", "-Infinity", 1'])
def test_nan_and_infinities_come_back_as_they_went(datatype: str, written: str) -> None:
    text = f'{{"inputs": [{{"name": "x", "shape": [4], "datatype": "{datatype}", "data": [{written}]}}]}}'
    answer = post(dataplane_of(echo(datatype)), f"/v2/models/echo_{datatype}/infer", content=text.encode())
    assert answer.json()["outputs"][0]["data"] == [None, "Infinity", "-Infinity", 1]


def test_tensors_lie_in_the_body_that_was_received_and_are_aligned() -> None:
    seen: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    model = UnrealModel("keep", keep, (tensor("x", "FP64", -1),), (tensor("y", "FP64", -1),))
    raw = np.arange(3, dtype="<f8").tobytes()
    for id in ("", "1", "12", "123"):
        one = {"name": "x", "shape": [3], "datatype": "FP64", "parameters": {"binary_data_size": 24}}
        response = post(dataplane_of(model), "/v2/models/keep/infer", **framed({"id": id, "inputs": [one]}, raw))
        assert response.status_code == 200
    assert all(x.data_ptr() % 8 == 0 for x in seen)


def test_requested_outputs_only() -> None:
    dataplane = dataplane_of(double())
    response = post(dataplane, "/v2/models/double/infer", json=rows([1, 2, 3], outputs=[{"name": "total"}]))
    assert [one["name"] for one in response.json()["outputs"]] == ["total"]
    response = post(dataplane, "/v2/models/double/infer", json=rows([1, 2, 3], outputs=[{"name": "z"}]))
    assert "no output 'z'; there are 'y', 'total'" in error_of(response, 400)


def test_classification() -> None:
    outputs = [{"name": "scores", "parameters": {"classification": 2}}]
    one = {"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.25] * 64 + [1] * 64 + [0] * 64}
    response = post(dataplane_of(colours()), "/v2/models/colours/infer", json={"inputs": [one], "outputs": outputs})
    (told,) = response.json()["outputs"]
    assert (told["datatype"], told["shape"]) == ("BYTES", [1, 2])
    assert told["data"] == ["10.000000:1:green", "2.500000:0:red"]


def test_the_deadline_within_the_json_is_in_microseconds() -> None:
    model = double()
    body = rows([1, 2, 3], parameters={"timeout": 2_000_000, "priority": 1})
    assert post(dataplane_of(model), "/v2/models/double/infer", json=body).status_code == 200
    (timeout_s,) = model.pipeline.timeouts_s
    assert timeout_s == pytest.approx(2.0, abs=1.0)
    assert timeout_s < 2.0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (rows([1, 2, 3], parameters={"timeout": "soon"}), "'timeout' is 'soon'"),
        ({"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [1, 2, 3]}]}, r"takes \[-1, 3\]"),
        ({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [1, 2, 3]}]}, "takes FP32"),
        ({"inputs": [{"name": "z", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}, "no input 'z'"),
        ({"inputs": []}, "input 'x' is missing"),
        ({"inputs": [*rows([1, 2, 3])["inputs"]] * 2}, "given twice"),
        ({"inputs": [{"name": "x", "shape": [0, 3], "datatype": "FP32", "data": []}]}, "any number from 1 on"),
    ],
)
def test_requests_that_the_model_does_not_take(body: Any, told: str) -> None:
    response = post(dataplane_of(double()), "/v2/models/double/infer", json=body)
    assert re.search(told, error_of(response, 400))


def test_what_is_no_json_and_header_lengths_that_cannot_be() -> None:
    dataplane = dataplane_of(double())
    path = "/v2/models/double/infer"
    assert "no JSON" in error_of(post(dataplane, path, content=b"{"), 400)
    for wrong in ("99999", "-1", "many", "5"):
        response = post(dataplane, path, content=b'{"inputs": []}', headers={"Inference-Header-Content-Length": wrong})
        error_of(response, 400)


@pytest.mark.parametrize(
    ("kind", "retry_after_s", "status", "header"),
    [
        (FailureKind.REFUSED, 0.2, 429, "1"),
        (FailureKind.BUSY, 1.5, 429, "2"),
        (FailureKind.LATE, None, 504, None),
        (FailureKind.NOT_READY, None, 503, None),
        (FailureKind.INTERNAL, None, 500, None),
    ],
)
def test_failures_have_their_status(
    kind: FailureKind, retry_after_s: float | None, status: int, header: str | None
) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RequestError(kind, "so it is", retry_after_s=retry_after_s)

    model = UnrealModel("failing", fail, (tensor("x"),), (tensor("y"),))
    one = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    response = post(dataplane_of(model), "/v2/models/failing/infer", json={"inputs": [one]})
    assert error_of(response, status) == "so it is"
    assert response.headers.get("retry-after") == header


def test_what_nobody_expected_is_json_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("a secret")

    async def broken(request: Request) -> None:
        raise ZeroDivisionError("another secret")

    model = UnrealModel("failing", fail, (tensor("x"),), (tensor("y"),))
    one = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    response = post(dataplane_of(model), "/v2/models/failing/infer", json={"inputs": [one]})
    assert error_of(response, 500) == "internal error; the server's log tells more"
    response = get(dataplane_of(model), "/broken", extra_routes=[Route("/broken", broken)])
    assert "secret" not in error_of(response, 500)
    assert sum("ZeroDivisionError" in record.exc_text for record in caplog.records if record.exc_text) == 2


def test_a_request_is_cancelled_if_its_client_goes() -> None:
    async def scenario() -> list[dict[str, Any]]:
        waiting = Waiting()
        dataplane = dataplane_of(waiting.model)
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/waiting/infer",
            "query_string": b"",
            "headers": [(b"content-length", str(len(body)).encode())],
        }
        sent: list[dict[str, Any]] = []
        coming = iter([{"type": "http.request", "body": body[:9], "more_body": True},
                       {"type": "http.request", "body": body[9:]}])  # fmt: skip

        async def receive() -> Any:
            if (message := next(coming, None)) is not None:
                return message
            await waiting.begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await make_app(dataplane)(scope, receive, send)
        assert waiting.cancelled.is_set()
        assert waiting.model.under_way == dataplane.under_way == 0
        assert waiting.model.statistics.totals().failed_by_kind == {FailureKind.GONE: 1}
        return sent

    assert asyncio.run(scenario())[0]["status"] == 499


def test_a_client_that_goes_amid_its_request_leaves_nothing() -> None:
    async def scenario() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/double/infer",
            "query_string": b"",
            "headers": [],
        }
        await make_app(dataplane_of(double()))(scope, receive, send)
        assert sent[0]["status"] == 499

    asyncio.run(scenario())


# -- sizes and compression ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [True, False])
def test_a_body_beyond_the_limit(pieces: bool) -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 1000

    dataplane = dataplane_of(double(), request_mib=0.003)
    content = in_pieces() if pieces else b"x" * 4000
    response = post(dataplane, "/v2/models/double/infer", content=content)
    assert "larger than 3145 bytes" in error_of(response, 413)
    assert "connection" not in response.headers, "what is left of it was discarded"


def test_a_body_far_beyond_the_limit_closes_the_connection() -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    response = post(dataplane_of(double(), request_mib=0.001), "/v2/models/double/infer", content=in_pieces())
    error_of(response, 413)
    assert response.headers["connection"] == "close"


def test_a_body_in_pieces_without_a_length() -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        text = json.dumps(rows(*[[1, 2, 3]] * 500)).encode()
        for at in range(0, len(text), 100):
            yield text[at : at + 100]

    response = post(dataplane_of(double()), "/v2/models/double/infer", content=in_pieces())
    assert response.json()["outputs"][0]["shape"] == [500, 3]


COMPRESS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate without header": lambda data: zlib.compress(data, wbits=-15),
    "gzip of two members": lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]),
}


@pytest.mark.parametrize("form", COMPRESS)
def test_compressed_requests(form: str) -> None:
    described = {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}],
    }
    sent = framed(described, np.array([1, 2, 3], "<f4").tobytes())
    sent["content"] = COMPRESS[form](sent["content"])
    sent["headers"]["Content-Encoding"] = form.split()[0]
    response = post(dataplane_of(double()), "/v2/models/double/infer", **sent)
    assert response.json()["outputs"][0]["data"] == [2, 4, 6]


@pytest.mark.parametrize("form", COMPRESS)
def test_a_zip_bomb_is_not_unpacked(form: str) -> None:
    content = COMPRESS[form](b"[" * 2_000_000)
    assert len(content) < 10_000
    response = post(
        dataplane_of(double(), request_mib=1),
        "/v2/models/double/infer",
        content=content,
        headers={"Content-Encoding": form.split()[0]},
    )
    assert "larger than 1048576 bytes" in error_of(response, 413)


@pytest.mark.parametrize(
    ("encoding", "content", "status", "told"),
    [
        ("gzip", b"no gzip", 400, "no gzip data"),
        ("deflate", b"\xff\xff\xff", 400, "no deflate data"),
        ("gzip", gzip.compress(b"{}" * 100)[:-9], 400, "breaks off"),
        ("deflate", zlib.compress(b"{}") + b"more", 400, "4 bytes follow"),
        ("br", b"x", 415, "'br' is none of gzip"),
        ("gzip, deflate", b"x", 415, "none of gzip"),
    ],
)
def test_compressed_requests_that_are_broken(encoding: str, content: bytes, status: int, told: str) -> None:
    response = post(
        dataplane_of(double()),
        "/v2/models/double/infer",
        content=content,
        headers={"Content-Encoding": encoding},
    )
    assert told in error_of(response, status)


def many_rows(accepted: str, binary: bool = False) -> httpx.Response:
    body = rows(*[[1, 2, 3]] * 500, parameters={"binary_data_output": binary})
    headers = {"Accept-Encoding": accepted}
    response = post(dataplane_of(double()), "/v2/models/double/infer", json=body, headers=headers)
    nbytes = int(response.headers.get("inference-header-content-length", len(response.content)))
    assert json.loads(response.content[:nbytes])["outputs"][0]["shape"] == [500, 3]
    return response


@pytest.mark.parametrize(
    ("accepted", "binary", "encoding"),
    [
        ("gzip", False, "gzip"),
        ("deflate", False, "deflate"),
        ("gzip;q=0.1, deflate;q=0.2, br", False, "deflate"),
        ("gzip;q=0", False, None),
        ("identity", False, None),
        ("", False, None),
        ("gzip", True, "gzip"),
        ("gzip, deflate", True, None),
    ],
)
def test_compressed_answers(accepted: str, binary: bool, encoding: str | None) -> None:
    assert many_rows(accepted, binary).headers.get("content-encoding") == encoding


def test_small_answers_and_failures_are_not_compressed() -> None:
    headers = {"Accept-Encoding": "gzip"}
    response = post(dataplane_of(double()), "/v2/models/double/infer", json=rows([1, 2, 3]), headers=headers)
    assert "content-encoding" not in response.headers
    response = post(dataplane_of(double()), "/v2/models/double/infer", json={}, headers=headers)
    assert "content-encoding" not in response.headers


# -- images ------------------------------------------------------------------------------------------------------------


def picture(form: str, colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_an_image_as_it_comes(form: str) -> None:
    response = post(
        dataplane_of(colours()),
        "/v2/models/colours/infer?top=2",
        content=picture(form, "blue"),
        headers={"Content-Type": f"image/{form}"},
    )
    told = response.json()
    assert (told["model_name"], told["model_version"]) == ("colours", "1")
    best, _ = told["classes"]
    assert (best["index"], best["label"]) == (2, "blue")
    assert best["probability"] == pytest.approx(1.0, abs=1e-2)


def test_images_that_cannot_be_answered() -> None:
    headers = {"Content-Type": "image/png"}
    path = "/v2/models/colours/infer"
    dataplane = dataplane_of(colours(), double())
    assert "no image" in error_of(post(dataplane, path, content=b"no image", headers=headers), 400)
    png = picture("png", "red")
    assert "takes tensors" in error_of(post(dataplane, "/v2/models/double/infer", content=png, headers=headers), 415)
    for wrong in ("0", "-1", "x", "99999", ""):
        told = error_of(post(dataplane, f"{path}?top={wrong}", content=png, headers=headers), 400)
        assert f"top={wrong!r}" in told


def test_an_images_deadline_and_priority_stand_in_its_url() -> None:
    model = UnrealModel(
        "colours",
        colours().pipeline.function,
        colours().signature.inputs,
        colours().signature.outputs,
        preprocess=colours().preprocess,
        priority_deadlines_ms=(1e6, 2e6),
    )
    dataplane, headers = dataplane_of(model), {"Content-Type": "image/png"}
    for asked in ("timeout=3000000000", "priority=2", "top=2&timeout=0&priority=1"):
        assert post(dataplane, f"/v2/models/colours/infer?{asked}", content=picture("png", "red"), headers=headers)
    assert [round(timeout_s, -2) for timeout_s in model.pipeline.timeouts_s] == [3000, 2000, 1000]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("tpo=3", "there is no parameter 'tpo' of an image; there are top, timeout, priority"),
        ("timeout=5&deadline=3", "there is no parameter 'deadline' of an image"),
        ("timeout=1&timeout=2", "timeout is given twice in the URL"),
        ("timeout=5ms", "parameter 'timeout' is '5ms', and no whole number from 0 to 2^63 - 1"),
        ("priority=-1", "parameter 'priority' is '-1', and no whole number from 0 to 2^63 - 1"),
        ("timeout=", "parameter 'timeout' is '', and no whole number from 0 to 2^63 - 1"),
    ],
)
def test_what_may_not_stand_in_an_images_url(asked: str, says: str) -> None:
    answer = post(
        dataplane_of(colours()),
        f"/v2/models/colours/infer?{asked}",
        content=picture("png", "red"),
        headers={"Content-Type": "image/png"},
    )
    assert says in error_of(answer, 400)


NO_COUNTS: list[Any] = [
    -1,
    0.5,
    True,
    2**63,
    10**400,
    "",
    "-1",
    "0.5",
    "9" * 20,
    "1" * 400,
    "1" * 5000,
    "\u0663",
    1e300,
]
"""Values of a parameter that are no whole numbers from 0 to 2^63 - 1."""


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize("value", NO_COUNTS)
def test_parameters_that_are_no_counts(name: str, value: Any) -> None:
    told = error_of(
        post(dataplane_of(double()), "/v2/models/double/infer", json=rows([1, 2, 3], parameters={name: value})), 400
    )
    assert told == f"parameter {name!r} is {repr(value)[:40]}, and no whole number from 0 to 2^63 - 1"


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize("value", [0, 2**63 - 1, "0", "9" * 18, "0" * 19])
def test_parameters_that_are_counts(name: str, value: Any) -> None:
    content = rows([1, 2, 3], parameters={name: value})
    assert post(dataplane_of(double()), "/v2/models/double/infer", json=content).status_code == 200


@pytest.mark.parametrize("value", NO_COUNTS)
def test_a_classification_is_a_count(value: Any) -> None:
    content = rows([1, 2, 3], outputs=[{"name": "y", "parameters": {"classification": value}}])
    answer = post(dataplane_of(double()), "/v2/models/double/infer", json=content)
    if isinstance(value, int) and value > 1:
        assert len(answer.json()["outputs"][0]["data"]) == 3  # all that there are
    else:
        error_of(answer, 400)


def test_an_image_within_json_as_base64() -> None:
    import base64

    one = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture("png", "red")).decode()],
    }
    outputs = [{"name": "scores", "parameters": {"classification": 1}}]
    response = post(dataplane_of(colours()), "/v2/models/colours/infer", json={"inputs": [one], "outputs": outputs})
    assert response.json()["outputs"][0]["data"] == ["10.000000:0:red"]


@pytest.mark.parametrize(("shape", "count"), [([1], 1), ([2], 2), ([2, 1], 2), ([], 1)])
def test_images_as_elements_of_a_tensor(shape: list[int], count: int) -> None:
    files = [picture("png", "red"), picture("jpeg", "blue")][:count]
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    size = {"binary_data_size": len(raw)}
    one = {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": size}
    answer = post(dataplane_of(colours()), "/v2/models/colours/infer", **framed({"inputs": [one]}, raw))
    output = answer.json()["outputs"][0]
    assert output["shape"] == [count, 3]
    assert np.reshape(output["data"], (count, 3)).argmax(1).tolist() == [0, 2][:count]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        (double(), "x", [1, 3]),
        (double(), "x", [1]),
        (pair(), "a", [1]),
        (echo("INT64"), "x", [0]),
        (double(), "z", [1]),
    ],
)
def test_bytes_are_another_datatype_to_a_model_of_tensors(
    model: UnrealModel, name: str, shape: list[int], binary: bool
) -> None:
    count = math.prod(shape)
    one: dict[str, Any] = {"name": name, "shape": shape, "datatype": "BYTES"}
    raw = b""
    if binary:
        raw = struct.pack("<I1s", 1, b"a") * count
        one["parameters"] = {"binary_data_size": len(raw)}
    else:
        one["data"] = ["a"] * count
    path = f"/v2/models/{model.config.name}/infer"
    told = error_of(post(dataplane_of(model), path, **framed({"inputs": [one]}, raw)), 400)
    known = model.signature.inputs[0]
    if name == "z":
        assert told == "there is no input 'z'; there are 'x'"
    else:
        assert told == f"input {name!r} is of datatype BYTES, the model takes {known.datatype.name}"


# -- repository --------------------------------------------------------------------------------------------------------


def test_the_repository() -> None:
    dataplane = dataplane_of(double(), pair())
    assert post(dataplane, "/v2/repository/models/double/unload").status_code == 200
    told = post(dataplane, "/v2/repository/index").json()
    assert told == [
        {"name": "double", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "pair", "version": "1", "state": "READY", "reason": ""},
    ]
    ready = post(dataplane, "/v2/repository/index", json={"ready": True}).json()
    assert [one["name"] for one in ready] == ["pair"]
    response = get(dataplane, "/v2/models/double/ready")
    assert (response.status_code, response.json()) == (503, {"name": "double", "ready": False})
    error_of(post(dataplane, "/v2/models/double/infer", json=rows([1, 2, 3])), 503)
    assert post(dataplane, "/v2/repository/models/double/load", json={}).status_code == 200
    assert get(dataplane, "/v2/models/double/ready").status_code == 200


def test_repository_requests_that_are_refused() -> None:
    dataplane = dataplane_of(double())
    load = "/v2/repository/models/double/load"
    assert "'config' is not served" in error_of(post(dataplane, load, json={"parameters": {"config": "{}"}}), 400)
    for wrong in ([1], False, 0, ""):
        assert "no object" in error_of(post(dataplane, load, json={"parameters": wrong}), 400)
    error_of(post(dataplane, load, json=[]), 400)
    error_of(post(dataplane, load, content=b"{"), 400)
    error_of(post(dataplane, "/v2/repository/index", json={"ready": 1}), 400)
    error_of(post(dataplane, "/v2/repository/models/other/load"), 404)


# -- token, other routes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (
            DeadlineExceededError.of_refusal(predicted_s=0.5, left_s=0.1, ahead=3),
            429,
            "with 3 requests ahead of it; send less at a time, or allow longer (timeout)",
        ),
        (
            QueueFullError(in_flight=2, waiting=5, limit=5, option="max_waiting"),
            429,
            "2 requests are under way and 5 wait, and max_waiting is 5; send it again later",
        ),
    ],
)
def test_a_refusal_names_only_what_a_client_can_do(error: Exception, status: int, says: str) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise error

    model = UnrealModel("busy", refuse, (tensor("x", "FP32", -1, 3),), (tensor("y", "FP32", -1, 3),))
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    told = error_of(post(dataplane_of(model), "/v2/models/busy/infer", json=body), status)
    assert told.endswith(says)


@pytest.mark.parametrize("log", [True, False])
def test_a_model_that_cannot_be_loaded_is_logged_unless_who_asked_tells_of_it(log: bool, caplog: Any) -> None:
    dataplane = dataplane_of(double())

    async def fails(name: str) -> None:
        raise RequestError(FailureKind.INVALID, f"model {name!r} cannot be served: no such weights")

    dataplane.repository.load = fails  # type: ignore[method-assign]
    with pytest.raises(RequestError):
        asyncio.run(dataplane.load("double", log=log))
    assert caplog.text.count("no such weights") == int(log)


def test_a_token() -> None:
    dataplane = dataplane_of(double())

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    def status(path: str, given: str | None) -> int:
        headers = {} if given is None else {"Authorization": given.encode()}
        options = {"token": "sécret", "extra_routes": [Route("/hello", hello)]}
        response = asked(dataplane, lambda client: client.get(path, headers=headers), **options)
        if response.status_code == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in error_of(response, 401)
        return response.status_code

    for path in ("/v2/health/live", "/v2/health/ready"):
        assert status(path, None) == 200
    for path in ("/v2", "/v2/models/double", "/hello", "/nowhere", "/openapi.json"):
        for wrong in (None, "Bearer secret", "Basic sécret", "sécret", "Bearer", "Bearer "):
            assert status(path, wrong) == 401
        assert status(path, "bearer sécret") in (200, 404)


def test_other_routes_keep_their_own_answers() -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    assert get(dataplane_of(double()), "/hello", extra_routes=[Route("/hello", hello)]).text == "hello"


def test_the_description_names_every_route() -> None:
    dataplane = dataplane_of(double())
    described = get(dataplane, "/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    app: Any = make_app(dataplane)
    served = {
        (route.path, method.lower())
        for route in app._app.routes
        for method in route.methods - {"HEAD"}
        if route.path not in ("/openapi.json", "/v2/")
    }
    assert served == {
        (path, method) for path, item in described["paths"].items() for method in item if method != "parameters"
    }


def test_more_samples_than_can_ever_wait_are_invalid_and_not_too_many_for_the_moment() -> None:
    known = double().signature
    model = UnrealModel("few", lambda x: (2 * x, x.sum(1).long()), known.inputs, known.outputs, batch=2, max_waiting=2)
    dataplane = dataplane_of(model)
    assert post(dataplane, "/v2/models/few/infer", json=rows(*[[1, 2, 3]] * 4)).status_code == 200
    response = post(dataplane, "/v2/models/few/infer", json=rows(*[[1, 2, 3]] * 5))
    assert response.status_code == 400
    assert response.json()["error"].startswith("5 samples, of which 4 may wait at a time (max_waiting = 2, batch = 2)")


def test_a_request_without_the_token_is_told_to_observers_without_a_name() -> None:
    dataplane = dataplane_of(double())
    told = []
    dataplane.observers.add(told.append)
    for path in ("/v2/models/made-up/infer", "/v2/models/double"):  # only what asks for inference
        assert asyncio.run(_asked(make_app(dataplane, token="secret"), path)).status_code == 401
    assert [(one.request.model, one.outcome, one.request.caller.protocol) for one in told] == [
        ("", "unauthenticated", "http")
    ]


async def _asked(app: Any, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://odin") as client:
        return await client.post(path, json=rows([1, 2, 3]))
