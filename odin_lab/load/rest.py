"""The protocol over HTTP: one connection that is kept, tensors as raw bytes where the server takes them."""

from __future__ import annotations

import http.client
import json
import select
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from odin.server.datatypes import datatype_of, to_raw
from odin_lab.load.address import Address
from odin_lab.load.client import (
    CONNECTION,
    INVALID,
    LATE,
    NOT_FOUND,
    NOT_READY,
    OTHER,
    REFUSED,
    TIMEOUT,
    Input,
    ModelFace,
    NamedArray,
    RequestFailedError,
    Target,
)

__all__ = ["Prepared", "RestClient"]

_KINDS = {400: INVALID, 404: NOT_FOUND, 429: REFUSED, 503: NOT_READY, 504: LATE}
_LENGTH = "Inference-Header-Content-Length"
_EXTENSION = "binary_tensor_data"
_MOST_TEXT = 300


class Prepared(NamedTuple):
    """A request for inference, ready to be sent."""

    headers: Mapping[str, str]
    body: bytes


class RestClient:
    """See :class:`odin_lab.load.client.Client`.

    Raises
    ------
    ValueError
        If the URL has no host, or more than a host, a port and a path before ``/v2``.
    """

    def __init__(self, target: Target) -> None:
        at = Address.parse(target.url, form="http://HOST:PORT")
        make = http.client.HTTPSConnection if at.secure else http.client.HTTPConnection
        self._connection = make(at.host, at.port or (443 if at.secure else 80), timeout=target.patience_s)
        self._target = target
        self._shown = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        self._root = at.path.removesuffix("/v2")
        self._path = f"/v2/models/{quote(target.model, safe='')}"

    def connect(self) -> None:
        """Open the connection."""
        try:
            self._connection.connect()
        except OSError as error:
            raise RequestFailedError(CONNECTION, error.strerror or str(error)) from error

    def check_ready(self, *, model: bool) -> None:
        """Ask the server, or the model."""
        self._ask("GET", f"{self._path}/ready" if model else "/v2/health/ready")

    def ready_models(self) -> list[str]:
        """Ask the model repository's index."""
        try:
            found = self._ask("POST", "/v2/repository/index", {"ready": True})
        except RequestFailedError as error:
            if error.kind == CONNECTION or error.code == "401":
                raise
            return []  # an extension that not every server has
        entries = found if isinstance(found, list) else []
        return [str(one.get("name")) for one in entries if one.get("state", "READY") == "READY"]

    def describe(self) -> ModelFace:
        """Ask for the server's metadata and the model's."""
        server, model = self._ask("GET", "/v2"), self._ask("GET", self._path)
        try:
            inputs = tuple(
                Input(str(one["name"]), str(one["datatype"]), tuple(int(size) for size in one["shape"]))
                for one in model.get("inputs") or ()
            )
            return ModelFace(
                f"{server.get('name', '')} {server.get('version', '')}".strip(),
                str(model.get("name", self._target.model)),
                inputs,
                _EXTENSION in (server.get("extensions") or ()),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RequestFailedError(OTHER, f"metadata that the protocol does not know: {error!r}") from None

    def prepare(self, tensors: Sequence[NamedArray]) -> Prepared:
        """Write the JSON, and the raw bytes behind it.

        Raises
        ------
        ValueError
            If the inputs cannot be written as JSON and the server takes nothing else.
        """
        binary = self._target.binary
        inputs, raw = [], []
        for name, datatype, array in tensors:
            entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
            if binary:
                data = to_raw(datatype_of(datatype), array)
                raw.append(data)
                entry["parameters"] = {"binary_data_size": len(data)}
            else:
                entry["data"] = _as_json(name, datatype, array)
            inputs.append(entry)
        parameters: dict[str, Any] = {"binary_data_output": True} if binary else {}
        if self._target.timeout_us:
            parameters["timeout"] = self._target.timeout_us
        header = json.dumps({"parameters": parameters, "inputs": inputs}, separators=(",", ":")).encode()
        if not binary:
            return Prepared({"Content-Type": "application/json"}, header)
        headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(header))}
        return Prepared(headers, b"".join((header, *raw)))

    def infer(self, prepared: Any) -> None:
        """Send, and read all of the answer."""
        status, data = self._exchange("POST", f"{self._path}/infer", prepared.body, prepared.headers)
        if status != 200:
            raise _failure(status, data)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        """Exchange JSON; what is no JSON is answered as an empty object."""
        body = None if content is None else json.dumps(content).encode()
        status, data = self._exchange(method, path, body, {"Content-Type": "application/json"} if body else {})
        if status != 200:
            raise _failure(status, data)
        try:
            return json.loads(data) if data else {}
        except ValueError:
            return {}

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = self._connection
        if connection.sock is not None and _was_closed(connection.sock):
            connection.close()  # while nothing was under way, as servers do after some seconds: no request has failed
        try:
            connection.request(method, self._root + path, body, {**headers, **self._shown})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError as error:
            connection.close()
            raise RequestFailedError(TIMEOUT, f"after {self._target.patience_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RequestFailedError(CONNECTION, getattr(error, "strerror", None) or str(error)) from error


def _was_closed(sock: Any) -> bool:
    """Whether the other end has closed; there is nothing else to read between two requests, but with TLS."""
    if isinstance(sock, ssl.SSLSocket):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _failure(status: int, data: bytes) -> RequestFailedError:
    text = data[: 1 << 20].decode(errors="replace").strip()
    try:
        content = json.loads(text)
        text = str(content.get("error") or content.get("detail") or text)
    except (ValueError, AttributeError):
        text = "a page of HTML" if text.startswith("<") else " ".join(text.split())
    return RequestFailedError(_KINDS.get(status, OTHER), text[:_MOST_TEXT], code=str(status))


def _as_json(name: str, datatype: str, array: Any) -> list[Any]:
    if datatype == "BF16":
        raise ValueError(f"input {name!r}: BF16 cannot be sent as JSON, and this server takes no binary tensor data")
    if datatype != "BYTES":
        return list(array.ravel().tolist())
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError:
        raise ValueError(
            f"input {name!r}: files cannot be sent as JSON, and this server takes no binary tensor data"
        ) from None
