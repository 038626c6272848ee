"""Requests that are broken at random places: never a 5xx, never a hang, and the server lives on."""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct

import pytest
from unreal_models import dataplane_of, double, echo, pair

from odin.server.http_server import HttpServer
from odin.server.rest import make_app

PARTS = (
    b"\r\n", b"\0", b"\xff", b"{", b"}", b"[", b'"', b"NaN", b"1e999", b"-1", b"null", b"FP64", b"BYTES", b"2147483648",
    b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"HTTP/1.0",
    b'"binary_data_size": 99', b"Inference-Header-Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"\xf0\x9f",
)  # fmt: skip


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


def broken(chance: random.Random) -> bytes:
    """A request with some bytes gone, doubled, changed or put in, or a header's number changed."""
    data = bytearray(valid(chance))
    for _ in range(chance.randrange(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.randrange(1, 20)
        change = chance.randrange(5)
        if change == 0:
            del data[at : at + length]
        elif change == 1:
            data[at:at] = data[at : at + length]
        elif change == 2 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif change == 3:
            data[at:at] = chance.choice(PARTS)
        else:
            data = bytearray(bytes(data).replace(b"Length: 1", b"Length: %d" % chance.randrange(9), 1))
    return bytes(data)


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
        answered = await asyncio.gather(*(statuses_of(port, broken(chance)) for _ in range(at_once)))
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
