"""The HTTP server by raw sockets: clients that pipeline, break off, dawdle, send too much or garbage."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from unreal_models import UnrealModel, Waiting, dataplane_of, double, tensor

from odin.server.config import Limits
from odin.server.http_connection import HttpConnection
from odin.server.http_server import HttpServer
from odin.server.rest import make_app

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: odin\r\n\r\n"
ALIVE = b'{"live":true}'


class Client:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer."""
        status = int((await self.reader.readline()).split()[1])
        headers = {}
        while (line := await self.reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def rest(self) -> bytes:
        """Read until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)


class Serving:
    """A server that is asked."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server, self.port = server, port
        self.clients: list[Client] = []

    async def client(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def is_alive(self) -> bool:
        """Whether another client is answered."""
        client = await self.client()
        client.send(LIVE)
        status, _, body = await client.answer()
        await client.close()
        return status == 200 and body == ALIVE

    @property
    def connections(self) -> list[HttpConnection]:
        return list(self.server._state.connections)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(*models: UnrealModel, **limits: Any) -> AsyncIterator[Serving]:
    dataplane = dataplane_of(*(models or (double(),)), **limits)
    server = HttpServer(make_app(dataplane), limits=dataplane.limits)
    asked = Serving(server, await server.start())
    try:
        yield asked
    finally:
        for client in asked.clients:
            await client.close()
        await server.stop(5.0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(within_a_minute())


def infer(model: str, body: dict[str, Any] | bytes, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: odin", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + content


def rows(id: str = "") -> dict[str, Any]:
    return {"id": id, "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


def one() -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}


def test_answers_come_in_the_order_of_pipelined_requests() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model, double()) as asked:
            client = await asked.client()
            client.send(infer("waiting", one()) + infer("double", rows("2")) + LIVE + infer("double", rows("3")))
            await waiting.begun.wait()
            waiting.go_on.set()
            assert (await client.answer())[0] == 200
            assert json.loads((await client.answer())[2])["id"] == "2"
            assert (await client.answer())[2] == ALIVE
            assert json.loads((await client.answer())[2])["id"] == "3"

    run(scenario)


@pytest.mark.parametrize("how", ["half-closed", "closed", "reset"])
def test_a_client_that_goes_has_its_request_cancelled(how: str) -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as asked:
            client = await asked.client()
            client.send(infer("waiting", one()))
            await waiting.begun.wait()
            if how == "half-closed":  # not told apart from closed, before an answer is written
                client.writer.write_eof()
            elif how == "closed":
                client.writer.close()
            else:
                client.writer.transport.abort()
            await waiting.cancelled.wait()
            if how == "half-closed":
                assert await client.rest() == b""
            assert await asked.is_alive()

    run(scenario)


def test_a_client_that_goes_amid_its_body() -> None:
    async def scenario() -> None:
        async with serving() as asked:
            client = await asked.client()
            client.send(infer("double", rows())[:-10])
            client.writer.write_eof()
            assert await client.rest() == b""
            assert await asked.is_alive()

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),  # nothing ever
        (LIVE, None),  # nothing more
        (LIVE[:20], 408),
        (infer("double", rows())[:-10], 408),
        (b"POST /v2/models/double/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", 408),
    ],
)
def test_clients_that_keep_it_waiting_are_given_up(sent: bytes, status: int | None) -> None:
    async def scenario() -> None:
        async with serving(idle_s=0.3) as asked:
            client = await asked.client()
            client.send(sent)
            assert await asked.is_alive()
            if sent == LIVE:
                assert (await client.answer())[0] == 200
            if status is not None:
                answered, headers, body = await client.answer()
                assert (answered, headers["connection"]) == (status, "close")
                assert "in time" in json.loads(body)["error"]
            assert await client.rest() == b""

    run(scenario)


def test_a_client_that_sends_byte_by_byte_is_given_up_too() -> None:
    async def scenario() -> None:
        async with serving(idle_s=0.3) as asked:
            client = await asked.client()
            for byte in LIVE * 1000:
                client.send(bytes([byte]) if byte != ord("\n") else b"\nX: ")  # a head that never ends
                if client.reader.at_eof() or client.writer.is_closing():
                    break
                await asyncio.sleep(0.01)
            await client.rest()
            assert await asked.is_alive()

    run(scenario)


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def scenario() -> None:
        large = UnrealModel("large", lambda x: x.expand(8_000_000), (tensor("x"),), (tensor("y"),))
        async with serving(large, idle_s=0.3) as asked:
            client = await asked.client(limit=1024)
            client.send(infer("large", {**one(), "parameters": {"binary_data_output": True}}))
            while not asked.connections:
                await asyncio.sleep(0)
            (connection,) = asked.connections
            while connection in asked.connections:
                assert await asked.is_alive()

    run(scenario)


def test_only_clients_are_limited_in_time() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as asked:
            client = await asked.client()
            client.send(infer("waiting", one()) + LIVE)
            await waiting.begun.wait()
            (connection,) = asked.connections
            now_s = asyncio.get_running_loop().time()
            assert not connection.is_overdue(now_s + 1e6, 60.0), "it is the client that waits"
            waiting.go_on.set()
            await client.answer()
            await client.answer()
            assert not connection.is_overdue(now_s + 30, 60.0)
            assert connection.is_overdue(now_s + 2e6, 60.0)

    run(scenario)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\1\2\3\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",  # the begin of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT odin:1 HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_is_answered_in_json_and_closed(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving() as asked:
            client = await asked.client()
            client.send(sent)
            status, headers, body = await client.answer()
            assert status in (400, 404, 405)
            assert "error" in json.loads(body)
            if headers.get("connection") == "close":
                assert await client.rest() == b""
            assert await asked.is_alive()

    run(scenario)


def test_garbage_behind_a_request_is_not_mixed_into_its_answer() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as asked:
            client = await asked.client()
            client.send(infer("waiting", one()))
            await waiting.begun.wait()
            client.send(b"\0garbage\r\n\r\n")
            assert await client.rest() == b""
            await waiting.cancelled.wait()

    run(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 500_000,  # no end in sight
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200,
    ],
)
def test_heads_that_are_too_large(head: bytes) -> None:
    async def scenario() -> None:
        async with serving() as asked:
            client = await asked.client()
            client.send(head)
            status, _, body = await client.answer()
            assert status == 431 or (status == 404 and b"chunked" in head)
            assert "error" in json.loads(body)
            assert await client.rest() == b"" or status == 404
            assert await asked.is_alive()

    run(scenario)


def test_a_connection_is_usable_after_a_body_was_refused() -> None:
    async def scenario() -> None:
        async with serving(request_mib=0.01) as asked:
            client = await asked.client()
            for path in ("double", "double", "double/versions/9", "nothing/at/all"):
                client.send(infer(path, b"x" * 30_000) + LIVE)
                status, headers, _ = await client.answer()
                assert status in (413, 404)
                assert "connection" not in headers
                assert (await client.answer())[2] == ALIVE

    run(scenario)


def test_a_connection_is_closed_if_far_too_much_comes() -> None:
    async def scenario() -> None:
        async with serving(request_mib=0.01) as asked:
            client = await asked.client()
            client.send(b"POST /v2/models/double/infer HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 60_000)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert await client.rest() == b""

    run(scenario)


def test_who_asks_before_sending_a_body_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with serving(request_mib=0.01) as asked:
            head = b"POST /v2/models/double/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            client = await asked.client()
            client.send(head % 1_000_000)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (413, "close")
            client = await asked.client()
            body = json.dumps(rows()).encode()
            client.send(head % len(body))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
            assert (await client.answer())[0] == 200

    run(scenario)


def test_connections_beyond_the_limit_are_sent_away() -> None:
    async def scenario() -> None:
        async with serving(connections=2) as asked:
            first, second = await asked.client(), await asked.client()
            for client in (first, second):
                client.send(LIVE)
                await client.answer()
            third = await asked.client()
            status, headers, body = await third.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert "2 connections" in json.loads(body)["error"]
            await first.close()
            while asked.server.connections > 1:
                await asyncio.sleep(0)
            assert await asked.is_alive()
            second.send(LIVE)
            assert (await second.answer())[2] == ALIVE

    run(scenario)


def test_many_idle_connections_hold_up_nobody() -> None:
    async def scenario() -> None:
        async with serving() as asked:
            await asyncio.gather(*(asked.client() for _ in range(200)))
            assert await asked.is_alive()

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"GET /v2/health/live HTTP/1.0\r\n\r\n", ALIVE),
        (b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n", ALIVE),
        (b"HEAD /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n", b""),
        (b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", ALIVE),
    ],
)
def test_other_forms_of_http(sent: bytes, told: bytes) -> None:
    async def scenario() -> None:
        async with serving() as asked:
            client = await asked.client()
            client.send(sent)
            whole = await client.rest()
            assert whole.startswith(b"HTTP/1.1 200")
            assert whole.partition(b"\r\n\r\n")[2] == told
            assert b"date:" in whole
            assert b"server:" not in whole

    run(scenario)


def test_a_stop_lets_requests_finish_and_closes_the_others() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as asked:
            idle, busy = await asked.client(), await asked.client()
            busy.send(infer("waiting", one()))
            await waiting.begun.wait()
            stopping = asyncio.ensure_future(asked.server.stop(30.0))
            assert await idle.rest() == b""
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await asked.client()
            waiting.go_on.set()
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (200, "close")
            await stopping
            assert asked.server.connections == 0

    run(scenario)


def test_a_stop_takes_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        async with serving(waiting.model) as asked:
            client = await asked.client()
            client.send(infer("waiting", one()))
            await waiting.begun.wait()
            await asked.server.stop(0.0)
            assert waiting.cancelled.is_set()
            status, _, body = await client.answer()
            assert (status, json.loads(body)) == (503, {"error": "the server has ended; send it elsewhere"})
            await client.rest()
            assert asked.server.connections == 0

    run(scenario)


def test_a_port_that_is_taken_is_told_of() -> None:
    async def scenario() -> None:
        async with serving() as asked:
            with pytest.raises(OSError, match="in use"):
                await HttpServer(make_app(dataplane_of()), port=asked.port).start()

    run(scenario)


def test_what_cannot_be_listened_on_or_read_is_named(tmp_path: Path) -> None:
    nothing = tmp_path / "key.pem"
    nothing.touch()

    async def scenario() -> None:
        app = make_app(dataplane_of())
        with pytest.raises(OSError, match=r"^cannot listen on 192\.0\.2\.1 port 0 for REST: "):
            await HttpServer(app, host="192.0.2.1").start()  # an address that no machine has
        for path in (nothing, tmp_path / "missing.pem"):
            with pytest.raises(OSError, match=rf"^{path}, {nothing}: no certificate and its key in PEM form: "):
                await HttpServer(app, tls=(path, nothing)).start()

    run(scenario)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip

    async def scenario() -> None:
        app = make_app(dataplane_of(double()))
        server = HttpServer(app, limits=Limits(), tls=(certificate, key))
        asked = Serving(server, await server.start())
        client = await asked.client(ssl=ssl.create_default_context(cafile=certificate))
        client.send(infer("double", rows("7")))
        assert json.loads((await client.answer())[2])["id"] == "7"
        plain = await asked.client()
        plain.send(LIVE)
        await plain.rest()
        await client.close()
        await plain.close()
        await server.stop(5.0)

    run(scenario)
