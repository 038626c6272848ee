"""The Open Inference Protocol over REST: an application that translates to and from the data plane.

Readiness is told by the status, which is what clients and probes read: 200, or 503 as long as it is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive

from odin.server.dataplane import DataPlane, check_load_parameters
from odin.server.failures import FailureKind, RequestError
from odin.server.http_answer import JsonAnswer, PartsAnswer, compressed, encoding_for, failure
from odin.server.http_body import receive_body
from odin.server.http_guard import Token, Whole
from odin.server.image_answer import write_classes
from odin.server.json_form import HEADER_LENGTH, header_nbytes, read_request, read_tensor_only, write_answer
from odin.server.json_state import config_json, index_json, metadata_json, server_json, statistics_json
from odin.server.messages import Caller, InferRequest
from odin.server.openapi import describe

__all__ = ["make_app"]

_Answered = TypeVar("_Answered")
_TOP, _MOST_TOP = 5, 10_000
_IN_URL = ("top", "timeout", "priority", "accuracy", "latency", "accuracy_budget")
"""What may stand in the URL beside an image."""
_DISCARD_TIMES = 4  # a body beyond the limit is discarded up to so many times the limit
_OPEN = ("/v2/health/live", "/v2/health/ready", "/")
"""Answered without a token: the page holds no data, and asks for it."""


def make_app(
    dataplane: DataPlane,
    *,
    token: str | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    middleware: Sequence[Middleware] = (),
) -> ASGIApp:
    """Make the application.

    Parameters
    ----------
    dataplane
        What it serves.
    token
        Bearer token that clients have to send for all but the server's health and the page.
    extra_routes
        Beside the protocol's.
    middleware
        Around all of them; sees requests that are refused for their token too.
    """
    rest = _Rest(dataplane, has_token=token is not None)
    around = [*middleware]
    if token is not None:
        around.append(Middleware(Token, token=token, open_paths=_OPEN, on_refused=rest.refused))
    app = Starlette(
        routes=[*rest.routes(), *extra_routes],
        middleware=around,
        exception_handlers={
            HTTPException: _http_failure,
            RequestError: _request_failure,
            Exception: _unexpected_failure,
        },
    )
    app.router.redirect_slashes = False
    return Whole(app, discard_nbytes=_DISCARD_TIMES * dataplane.limits.request_nbytes)


class _Rest:
    """The routes' functions."""

    def __init__(self, dataplane: DataPlane, *, has_token: bool) -> None:
        self._dataplane = dataplane
        self._description = describe(dataplane.server_metadata().version, has_token=has_token)

    def routes(self) -> list[BaseRoute]:
        """All of the protocol's."""
        routes = [
            _get("/openapi.json", self.description),
            _get("/v2", self.metadata),
            _get("/v2/", self.metadata),
            _get("/v2/health/live", self.live),
            _get("/v2/health/ready", self.ready),
            _get("/v2/models/stats", self.statistics),
            _post("/v2/repository/index", self.index),
            _post("/v2/repository/models/{model}/load", self.load),
            _post("/v2/repository/models/{model}/unload", self.unload),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                _get(model, self.model_metadata),
                _get(f"{model}/ready", self.model_ready),
                _get(f"{model}/config", self.model_config),
                _get(f"{model}/stats", self.statistics),
                _post(f"{model}/infer", self.infer),
            ]
        return routes

    def refused(self, request: Request, error: RequestError) -> None:
        """Tell the data plane's observers of a request for inference that had no token."""
        if request.url.path.endswith("/infer"):
            self._dataplane.observers.failed(InferRequest("", "", "", {}, (), caller=_caller(request, 0)), error)

    # -- health, metadata, statistics ---------------------------------------------------------------------------------

    async def description(self, request: Request) -> Response:
        return JsonAnswer(self._description)

    async def live(self, request: Request) -> Response:
        return JsonAnswer({"live": True})

    async def ready(self, request: Request) -> Response:
        return _readiness({}, self._dataplane.is_ready())

    async def metadata(self, request: Request) -> Response:
        return JsonAnswer(server_json(self._dataplane.server_metadata()))

    async def model_ready(self, request: Request) -> Response:
        model, version = _named(request)
        return _readiness({"name": model}, self._dataplane.is_model_ready(model, version))

    async def model_metadata(self, request: Request) -> Response:
        return JsonAnswer(metadata_json(self._dataplane.model_metadata(*_named(request))))

    async def model_config(self, request: Request) -> Response:
        named = _named(request)
        metadata, config = self._dataplane.model_metadata(*named), self._dataplane.model_config(*named)
        return JsonAnswer(config_json(metadata, config, request_nbytes=self._dataplane.limits.request_nbytes))

    async def statistics(self, request: Request) -> Response:
        return JsonAnswer(statistics_json(self._dataplane.statistics(*_named(request))))

    # -- inference ----------------------------------------------------------------------------------------------------

    async def infer(self, request: Request) -> Response:
        headers = request.headers
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        with self._observed(request):
            count = _count(request.query_params.get("top", str(_TOP)))
            if is_image := media.startswith("image/"):
                parameters = _image_parameters(request.query_params.multi_items())
            else:
                asked = await self._read(request, media)
        if is_image:
            return await self._infer_image(request, count, parameters)
        answer = await _unless_gone(request.receive, self._dataplane.infer(asked))
        written = write_answer(answer, asked)
        parts: Sequence[bytes | memoryview] = written.parts
        told_of: dict[str, str] = {"Content-Type": "application/json"}
        if written.header_nbytes is not None:
            told_of = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(written.header_nbytes)}
        accepted = headers.get("accept-encoding", "")
        if encoding := encoding_for(accepted, sum(map(len, parts)), is_binary=written.header_nbytes is not None):
            parts = await compressed(parts, encoding)
            told_of["Content-Encoding"] = encoding
        return PartsAnswer(parts, {**told_of, "Vary": "Accept-Encoding"})

    async def _read(self, request: Request, media: str) -> InferRequest:
        model, version = _named(request)
        headers, limit_nbytes = request.headers, self._dataplane.limits.request_nbytes
        told = header_nbytes(headers.get(HEADER_LENGTH), limit_nbytes)
        body = await receive_body(request.receive, headers, limit_nbytes=limit_nbytes, header_nbytes=told or 0)
        nbytes = header_nbytes(headers.get(HEADER_LENGTH), len(body))
        traceparent = headers.get("traceparent", "")
        if nbytes == 0 and media != "application/json":
            known = self._dataplane.model_metadata(model, version).inputs
            asked = read_tensor_only(body, known, model=model, version=version, traceparent=traceparent)
        else:
            asked = read_request(body, nbytes, model=model, version=version, traceparent=traceparent)
        return asked._replace(caller=_caller(request, len(body)))

    @contextmanager
    def _observed(self, request: Request) -> Iterator[None]:
        """Tell the data plane's observers of a request that cannot be read in this block."""
        try:
            yield
        except RequestError as error:
            model, version = _named(request)
            unread = InferRequest(model, version, "", {}, (), caller=_caller(request, 0))
            self._dataplane.observers.failed(unread, error)
            raise

    async def _infer_image(self, request: Request, count: int, parameters: dict[str, str]) -> Response:
        model, version = _named(request)
        with self._observed(request):
            limit_nbytes = self._dataplane.limits.request_nbytes
            body = bytes(await receive_body(request.receive, request.headers, limit_nbytes=limit_nbytes))
        # All values are needed: a class's probability depends on all classes.
        work = self._dataplane.infer_image(
            model,
            version,
            body,
            count=0,
            parameters=parameters,
            traceparent=request.headers.get("traceparent", ""),
            caller=_caller(request, len(body)),
        )
        answer = await _unless_gone(request.receive, work)
        labels = self._dataplane.repository.served(model, version).labels
        return JsonAnswer(write_classes(answer, labels, count=count))

    # -- repository ---------------------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        asked = await self._object(request)
        only_ready = asked.get("ready", False)
        if not isinstance(only_ready, bool):
            raise RequestError(FailureKind.INVALID, f"'ready' is {only_ready!r}; it takes true or false")
        return JsonAnswer(index_json(self._dataplane.index(only_ready=only_ready)))

    async def load(self, request: Request) -> Response:
        parameters = await self._repository_parameters(request)
        check_load_parameters(parameters)
        await self._dataplane.load(request.path_params["model"])
        return JsonAnswer({"name": request.path_params["model"]})

    async def unload(self, request: Request) -> Response:
        await self._repository_parameters(request)
        await self._dataplane.unload(request.path_params["model"])
        return JsonAnswer({"name": request.path_params["model"]})

    async def _repository_parameters(self, request: Request) -> dict[str, Any]:
        parameters = (await self._object(request)).get("parameters")
        if not isinstance(parameters, dict | None):
            raise RequestError(FailureKind.INVALID, "'parameters' is no object")
        return parameters or {}

    async def _object(self, request: Request) -> dict[str, Any]:
        """The request's JSON object; empty if there is no body."""
        limit_nbytes = self._dataplane.limits.request_nbytes
        body = await receive_body(request.receive, request.headers, limit_nbytes=limit_nbytes)
        if not body:
            return {}
        try:
            read = msgspec.json.decode(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(FailureKind.INVALID, f"the request is no JSON: {error}") from None
        if not isinstance(read, dict):
            raise RequestError(FailureKind.INVALID, "the request is no JSON object")
        return read


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _count(text: str) -> int:
    """How many classes are wanted."""
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 0 < int(text) <= _MOST_TOP):
        raise RequestError(FailureKind.INVALID, f"top={text[:40]!r} is no number of classes from 1 to {_MOST_TOP}")
    return int(text)


def _image_parameters(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Parameters of a request whose body is an image, from its URL; those of JSON stand in the JSON."""
    names = [name for name, _ in given]
    for name in names:
        if name not in _IN_URL:
            raise RequestError(
                FailureKind.INVALID, f"there is no parameter {name[:40]!r} of an image; there are {', '.join(_IN_URL)}"
            )
        if names.count(name) > 1:
            raise RequestError(FailureKind.INVALID, f"{name} is given twice in the URL")
    return {name: value for name, value in given if name != "top"}


def _caller(request: Request, nbytes: int) -> Caller:
    client = request.client
    return Caller("http", "" if client is None else f"{client.host}:{client.port}", nbytes)


def _readiness(fields: dict[str, Any], ready: bool) -> Response:
    status = 200 if ready else FailureKind.NOT_READY.http_status
    return JsonAnswer({**fields, "ready": ready}, status_code=status)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, _Answered]) -> _Answered:
    """Wait for work, which is cancelled if the client goes first."""
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError(FailureKind.GONE, "the client has gone before the answer was there")
    finally:
        going.cancel()
        working.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# -- failures, and routes ----------------------------------------------------------------------------------------------


async def _request_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return failure(error)


async def _http_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    told = {404: f"there is nothing at {path}", 405: f"{path} does not take {method}"}.get(error.status_code)
    return JsonAnswer({"error": told or error.detail}, status_code=error.status_code, headers=error.headers)


async def _unexpected_failure(request: Request, error: Exception) -> Response:
    return failure(RequestError(FailureKind.INTERNAL, "internal error; the server's log tells more"))


_Endpoint = Callable[[Request], Awaitable[Response]]


def _get(path: str, endpoint: _Endpoint) -> BaseRoute:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: _Endpoint) -> BaseRoute:
    return Route(path, endpoint, methods=["POST"])
