"""The page at ``/``: what ``odin top`` shows, of all models, live in a browser.

The page itself holds no data and asks for nothing from elsewhere; it follows ``/events``, which sends the whole state
each second. The state is made once for all who follow, and not at all while nobody does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from odin.monitor.json_text import json_text
from odin.monitor.view.event_text import answered_text
from odin.server.dataplane import DataPlane
from odin.server.messages import ModelState
from odin.server.page_view import page_view
from odin.server.served import ServedModel
from odin.server.served_family import ServedFamily
from odin.server.views import views_of
from odin.version import __version__

__all__ = ["Feed", "page_routes"]

EVERY_S = 1.0
MOST_STREAMS = 16
PATIENCE_S = 10.0
"""Who does not take a state for so long is not sent any more."""


def page_routes(
    dataplane: DataPlane, *, every_s: float = EVERY_S, most_streams: int = MOST_STREAMS, patience_s: float = PATIENCE_S
) -> list[Route]:
    """``GET /`` and ``GET /events``.

    Parameters
    ----------
    dataplane
        What is shown.
    every_s
        Seconds from one state to the next.
    most_streams
        How many may follow at once; others get 503.
    patience_s
        How long a state may take to be sent.
    """
    html = files("odin.server").joinpath("page_files/index.html").read_text("utf-8")
    headers = _security_headers(html)
    feed = Feed(dataplane, every_s=every_s)
    following = 0

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    @contextlib.contextmanager
    def counted() -> Any:
        nonlocal following
        following += 1
        try:
            yield
        finally:
            following -= 1

    async def events(request: Request) -> Response:
        if following >= most_streams:
            return PlainTextResponse(
                f"{following} follow already, and no more may\n", 503, headers={"Retry-After": "10"}
            )
        if request.method == "HEAD":
            return Response(media_type=_EventStream.media_type)
        return _EventStream(feed, counted, patience_s)

    return [Route("/", page, methods=["GET"]), Route("/events", events, methods=["GET"])]


class Feed:
    """Makes the state for all who wait for the next one.

    Parameters
    ----------
    dataplane
        Whose state.
    every_s
        Seconds from one to the next.
    clock
        In seconds.
    """

    def __init__(
        self, dataplane: DataPlane, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.dataplane = dataplane
        self._every_s, self._clock = every_s, clock
        self._next_s = clock()
        self._making: asyncio.Task[str] | None = None

    async def next(self) -> str:
        """The next state as one line of JSON."""
        if self._making is None or self._making.done():
            self._making = asyncio.get_running_loop().create_task(self._make())
        return await asyncio.shield(self._making)  # others wait for it, too

    async def _make(self) -> str:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        self._next_s = self._clock() + self._every_s
        dataplane = self.dataplane
        models = dataplane.index()
        served = dict(dataplane.repository.all_served())
        views = await asyncio.to_thread(lambda: {name: page_view(view) for name, view in views_of(served).items()})
        return json_text(
            {
                "server": {
                    "version": __version__,
                    "ready": dataplane.is_ready(),
                    "draining": dataplane.draining,
                    "under_way": dataplane.under_way,
                },
                "models": [entry for model in models for entry in _entries(model, served.get(model.name), views)],
            }
        )


def _entries(
    model: ModelState, served: ServedModel | None, views: Mapping[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What the page shows of a model: of a family first what its variants did, then each of them as a model."""
    own = {**model._asdict(), "view": views.get(model.name), "family": ""}
    if not isinstance(served, ServedFamily):
        yield own
        return
    told = served.family.view()
    counts = [one.counts.told(one.facts.name) for one in told.variants]
    yield {**own, "family": f"{told.policy}: {answered_text(counts, told.refused)}"}
    for one, count in zip(told.variants, counts, strict=True):
        name = f"{model.name}/{one.facts.name}"
        state = "READY" if one.state == "loaded" else one.state.upper()
        text = answered_text([count])
        yield {**own, "name": name, "state": state, "reason": "", "view": views.get(name), "family": text}


class _EventStream(Response):
    """States as server-sent events, until the client goes, is too slow, or the server ends."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, counted: Callable[[], Any], patience_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed, self._counted, self._patience_s = feed, counted, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        gone = asyncio.ensure_future(_disconnected(receive))
        with self._counted():
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                ended = False
                while not ended and not gone.done():
                    state = asyncio.ensure_future(self._feed.next())
                    await asyncio.wait((state, gone), return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        state.cancel()
                        break
                    ended = self._feed.dataplane.draining  # or its end would wait for this one
                    async with asyncio.timeout(self._patience_s):
                        body = f"data: {state.result()}\n\n".encode()
                        await send({"type": "http.response.body", "body": body, "more_body": not ended})
            except TimeoutError:
                pass  # the connection is closed, since the answer is not complete
            finally:
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _security_headers(html: str) -> Mapping[str, str]:
    """What a browser may do with the page: run its own script and style, and ask this server."""
    allowed = {
        f"{tag}-src": " ".join(_digest(text) for text in re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL))
        for tag, element in (("script", "script"), ("style", "style"))
    }
    policy = {
        "default-src": "'none'",
        **allowed,
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
