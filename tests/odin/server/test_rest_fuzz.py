"""Requests that are broken at random places: never a 5xx, never a hang, and the server lives on."""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct

import pytest
from unreal_models import dataplane_of, double, echo, pair

from benchmarks.malformed_requests import broken
from odin.server.http_server import HttpServer
from odin.server.rest import make_app


def valid(chance: random.Random) -> bytes:
    """A request that is answered."""
    kind = chance.randrange(6)
    if kind == 0:
        path = chance.choice(["/v2", "/v2/models/pair", "/v2/models/stats", "/v2/health/ready", "/openapi.json"])
        return f"GET {path} HTTP/1.1\r\nHost: odin\r\n\r\n".encode()
    raw = b""
    if kind == 1:
        model, inputs = "double", [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, None]}]
    elif kind in (2, 3):
        model, raw = "pair", struct.pack("<2f2i", 1, 2, 3, 4)
        inputs = [
            {"name": name, "shape": [2], "datatype": datatype, "parameters": {"binary_data_size": 8}}
            for name, datatype in (("a", "FP32"), ("b", "INT32"))
        ]
    elif kind == 4:
        model, inputs = "echo_BF16", [{"name": "x", "shape": [2], "datatype": "BF16", "data": [1, 2]}]
    else:
        model, inputs = "echo_INT64", [{"name": "x", "shape": [1], "datatype": "INT64", "data": [2**62]}]
    text = json.dumps({"id": "1", "inputs": inputs, "parameters": {"binary_data_output": kind == 3}}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: odin\r\nContent-Length: {len(text) + len(raw)}\r\n"
    if raw:
        head += f"Inference-Header-Content-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text + raw


async def statuses_of(port: int, sent: bytes) -> list[int]:
    """Statuses of all answers to what is sent, until the server closes or has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # What follows ends the connection, if the server still reads requests and not a body.
    writer.write(sent + b"\r\n\r\nGET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
    try:
        answered = await reader.read()
    except ConnectionResetError:
        answered = b""
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answered)]


async def fuzz(*, requests: int, seed: int, at_once: int = 100) -> dict[int, int]:
    """Send broken requests; returns how many answers there were of each status."""
    models = (double(), pair(), echo("BF16"), echo("INT64"))
    dataplane = dataplane_of(*models, idle_s=1.0, request_mib=0.05)
    server = HttpServer(make_app(dataplane), limits=dataplane.limits)
    port = await server.start()
    chance = random.Random(seed)
    counts: dict[int, int] = {}
    for _ in range(0, requests, at_once):
        answered = await asyncio.gather(*(statuses_of(port, broken(valid(chance), chance)) for _ in range(at_once)))
        for status in (status for one in answered for status in one):
            counts[status] = counts.get(status, 0) + 1
    assert await statuses_of(port, b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n") == [200]
    assert dataplane.under_way == 0
    await server.stop(5.0)
    assert server.connections == 0
    return counts


@pytest.mark.parametrize("seed", [1, 2])
def test_no_broken_request_is_the_servers_failure(seed: int) -> None:
    counts = asyncio.run(asyncio.wait_for(fuzz(requests=400, seed=seed), 120))
    assert max(counts) < 500, counts
    assert {200, 400, 404} <= set(counts), "some are broken in ways that matter"


def test_unbroken_requests_are_all_answered() -> None:
    async def scenario() -> None:
        dataplane = dataplane_of(double(), pair(), echo("BF16"), echo("INT64"))
        server = HttpServer(make_app(dataplane), limits=dataplane.limits)
        port = await server.start()
        chance = random.Random(0)
        for _ in range(30):
            assert await statuses_of(port, valid(chance)) == [200, 200]
        await server.stop(5.0)

    asyncio.run(asyncio.wait_for(scenario(), 60))
