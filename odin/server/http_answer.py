"""Answers of the REST protocol: JSON, failures, and bodies of several parts, compressed if a client wants that."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from odin.server.failures import RequestError

__all__ = ["JsonAnswer", "PartsAnswer", "compressed", "encoding_for", "failure"]

_TOGETHER_NBYTES = 64 * 2**10  # parts that are written as one: a copy costs less than another call of the system
_WORTH_NBYTES = 1024  # what fits into one packet anyhow
_IN_THREAD_NBYTES = 64 * 2**10
_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_FAST = 1  # zlib's level: others take several times as long, and tensors hardly get smaller


class JsonAnswer(Response):
    """A value as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write the value."""
        return msgspec.json.encode(content)


class PartsAnswer(Response):
    """A body of several parts, which are written one after the other and not joined if they are large.

    Parameters
    ----------
    parts
        The body.
    headers
        Beside ``Content-Length``.
    """

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Mapping[str, str]) -> None:
        nbytes = sum(map(len, parts))
        self._parts = (b"".join(parts),) if nbytes <= _TOGETHER_NBYTES else tuple(parts)
        super().__init__(None, headers={**headers, "Content-Length": str(nbytes)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def failure(error: RequestError) -> JsonAnswer:
    """The answer to a request that cannot be answered: ``{"error": "..."}``."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return JsonAnswer({"error": str(error)}, status_code=error.kind.http_status, headers=headers)


def encoding_for(accepted: str, nbytes: int, *, is_binary: bool) -> str:
    """Whether to compress an answer, and how.

    JSON is compressed for everybody who understands it. Binary tensors get hardly smaller, so that they are compressed
    only for those who name nothing else: libraries send lists such as ``gzip, deflate`` by themselves.

    Parameters
    ----------
    accepted
        Header ``Accept-Encoding``.
    nbytes
        Size of the answer.
    is_binary
        Whether there are binary tensors in it.

    Returns
    -------
    str
        ``gzip``, ``deflate``, or nothing.

    Examples
    --------
    >>> encoding_for("deflate;q=0.5, gzip", 5000, is_binary=False)
    'gzip'
    """
    weights: dict[str, float] = {}
    for one in accepted.lower().split(","):
        name, *options = (part.strip() for part in one.split(";"))
        if name:
            weights[name] = min((_weight(option) for option in options), default=1.0)
    known = {name: weight for name, weight in weights.items() if name in _WINDOW and weight > 0}
    if not known or nbytes < _WORTH_NBYTES or (is_binary and len(weights) > 1):
        return ""
    return max(known, key=lambda name: (known[name], name == "gzip"))


def _weight(option: str) -> float:
    if not option.startswith("q="):
        return 1.0
    try:
        return float(option[2:])
    except ValueError:
        return 0.0


async def compressed(parts: Sequence[bytes | memoryview], encoding: str) -> list[bytes]:
    """Compress a body's parts as one stream."""

    def compress() -> list[bytes]:
        stream = zlib.compressobj(_FAST, zlib.DEFLATED, _WINDOW[encoding])
        return [*map(stream.compress, parts), stream.flush()]

    return compress() if sum(map(len, parts)) <= _IN_THREAD_NBYTES else await asyncio.to_thread(compress)
