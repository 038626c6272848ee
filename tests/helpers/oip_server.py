"""A small server of the Open Inference Protocol for tests, in threads: as quick, slow or broken as it is told to be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class Close(Exception):  # noqa: N818  # an order, not an error
    """Close the connection without an answer."""


class Fault(Exception):  # noqa: N818
    """Answer with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text


class OipServer:
    """What the server is, and what it was asked.

    Attributes
    ----------
    names
        Models that there are.
    inputs
        Metadata of each.
    answer
        Called with each decoded request; raises :class:`Fault` or :class:`Close`, or waits.
    """

    def __init__(self) -> None:
        self.binary = True
        self.ready = True
        self.model_ready = True
        self.has_index = True
        self.closes_idle = False
        self.names = ["net"]
        self.inputs: list[dict[str, Any]] = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        self.answer: Callable[[dict[str, Any]], None] = lambda request: None
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        """Answer a request by an object that becomes JSON."""
        if path == "/v2":
            extensions = ["binary_tensor_data"] if self.binary else []
            return {"name": "fake", "version": "1", "extensions": extensions}
        if path == "/v2/health/ready":
            if not self.ready:
                raise Fault(503, "loading")
            return {"ready": True}
        if path == "/v2/repository/index" and self.has_index:
            return [{"name": name, "version": "1", "state": "READY"} for name in self.names]
        name, _, what = path.removeprefix("/v2/models/").partition("/")
        if not path.startswith("/v2/models/") or name not in self.names:
            raise Fault(404, f"no {path}")
        if not what:
            return {"name": name, "versions": ["1"], "platform": "none", "inputs": self.inputs, "outputs": []}
        if what == "ready":
            if not self.model_ready:
                raise Fault(503, f"{name} is being loaded")
            return {"name": name, "ready": True}
        assert (method, what) == ("POST", "infer"), (method, path)
        request = self.decode(headers, body)
        with self.lock:
            self.requests.append(request)
        self.answer(request)
        return {"model_name": name, "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}]}

    def decode(self, headers: Any, body: bytes) -> dict[str, Any]:
        """The request's JSON, with arrays of float32 in place of binary data."""
        length = headers.get("Inference-Header-Content-Length")
        if length is None:
            return dict(json.loads(body))
        assert self.binary
        request, rest = dict(json.loads(body[: int(length)])), body[int(length) :]
        for one in request["inputs"]:
            size = one["parameters"]["binary_data_size"]
            data, rest = rest[:size], rest[size:]
            one["array"] = np.frombuffer(data, np.float32).reshape(one["shape"]) if one["datatype"] == "FP32" else data
        assert not rest
        return request


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def setup(self) -> None:
        super().setup()
        with self.server.oip.lock:
            self.server.oip.connections += 1

    def do_GET(self) -> None:
        self.do("GET")

    def do_POST(self) -> None:
        self.do("POST")

    def do(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, content = 200, self.server.oip.reply(method, self.path, self.headers, body)
        except Fault as fault:
            status, content = fault.status, {"error": fault.text}
        except Close:
            self.close_connection = True
            return
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.oip.closes_idle:  # without saying so; asked before the client can go on
            self.close_connection = True
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is nothing to tell of."""


@contextmanager
def oip_server() -> Iterator[OipServer]:
    """Serve until the end of the block."""
    oip = OipServer()
    server: Any = _Server(("127.0.0.1", 0), _Handler)
    server.oip = oip
    oip.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield oip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
