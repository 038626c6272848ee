"""What stands around the REST application: the token, bodies that nobody reads, and failures that nobody expected."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from odin.server.failures import FailureKind, RequestError
from odin.server.http_answer import failure
from odin.server.token import ASK_FOR_TOKEN, has_token

__all__ = ["Token", "Whole"]

_log = logging.getLogger(__name__)
_DISCARD_S = 5.0


class Token:
    """Lets only those through who have the bearer token.

    Parameters
    ----------
    app
        For them.
    token
        What they have to send.
    open_paths
        Paths that everybody may ask for.
    on_refused
        Told of others' requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        open_paths: Collection[str],
        on_refused: Callable[[Request, RequestError], None],
    ) -> None:
        self._app, self._token, self._open = app, token, open_paths
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in self._open or self._has_it(scope):
            await self._app(scope, receive, send)
            return
        error = RequestError(FailureKind.UNAUTHENTICATED, ASK_FOR_TOKEN)
        answer = failure(error)
        answer.headers["WWW-Authenticate"] = "Bearer"
        self._on_refused(Request(scope), error)
        await answer(scope, receive, send)

    def _has_it(self, scope: Scope) -> bool:
        return has_token(Headers(scope=scope).get("authorization", "").encode("latin-1"), self._token)


class Whole:
    """Keeps connections usable: every request gets an answer, and no answer leaves a part of a request behind.

    A client that sends its whole request before it reads the answer would lose an answer that comes earlier, if the
    connection were closed on it. So a body that nobody reads is discarded first, up to a limit; beyond that the
    connection is closed.

    Parameters
    ----------
    app
        Which may raise, and may leave bodies unread.
    discard_nbytes
        Most bytes of one to discard.
    """

    def __init__(self, app: ASGIApp, *, discard_nbytes: int) -> None:
        self._app, self._discard_nbytes = app, discard_nbytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._discard_nbytes)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # the server does not wait any longer
            if exchange.started:
                raise
            error = RequestError(FailureKind.NOT_READY, "the server has ended; send it elsewhere", retry_after_s=1.0)
            await failure(error)(scope, receive, send)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not exchange.started:
                error = RequestError(FailureKind.INTERNAL, "internal error; the server's log tells more")
                await failure(error)(scope, exchange.receive, exchange.send)
            elif not exchange.complete:
                raise  # half an answer: the connection has to be closed


class _Exchange:
    """One request and its answer, and how far they have come."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, discard_nbytes: int) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send, self._discard_nbytes = receive, send, discard_nbytes
        self._unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._asks_first = headers.get("expect", "").lower() == "100-continue"  # its body comes once it is read
        self.started = self.complete = False

    async def receive(self) -> Message:
        self._asks_first = False
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._unread and not self._asks_first:
                await self._discard()
            if self._unread:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            self.started = True
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def _discard(self) -> None:
        left_nbytes = self._discard_nbytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while self._unread and left_nbytes > 0:
                    left_nbytes -= len((await self.receive()).get("body", b""))
