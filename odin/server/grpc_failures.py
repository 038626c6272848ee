"""What becomes of a failed call in gRPC: a status code, a text, and when to try again."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from odin.server.failures import FailureKind, RequestError

__all__ = ["Method", "abort", "failure_of", "guarded", "text_of"]

_log = logging.getLogger(__name__)

_TEXT_NBYTES = 1500
"""Longest error text: it travels in a header, and clients take 8 KiB of these."""

Method = Callable[[Any, Any], Awaitable[Any]]
"""Of gRPC: from what the client sends, and the call."""


def guarded(method: Method) -> Method:
    """Return the method; what it raises becomes the call's status."""

    async def call(given: Any, context: Any) -> Any:
        try:
            return await method(given, context)
        except grpc.aio.BaseError:  # gRPC's own: the client has gone
            raise
        except Exception as error:
            failure = failure_of(error)
        await abort(context, failure)

    return call


def failure_of(error: Exception) -> RequestError:
    """Return the failure as which an exception is told; one that nobody expected is logged."""
    if isinstance(error, RequestError):
        return error
    _log.error("a call failed", exc_info=error)
    return RequestError(FailureKind.INTERNAL, f"{type(error).__name__}; the server's log says more")


async def abort(context: Any, failure: RequestError) -> NoReturn:
    """End a call with a failure."""
    trailing: tuple[tuple[str, str], ...] = ()
    if failure.retry_after_s is not None:
        trailing = (("retry-after-ms", str(math.ceil(failure.retry_after_s * 1e3))),)
    await context.abort(getattr(grpc.StatusCode, failure.kind.grpc_code), text_of(failure), trailing)
    raise AssertionError  # it has raised


def text_of(failure: RequestError) -> str:
    """Return what a failure says, so short that it fits into a header; never empty: clients take that for no error."""
    text = str(failure).encode("utf-8", "replace")
    if len(text) > _TEXT_NBYTES:
        text = text[:_TEXT_NBYTES] + b"..."
    return text.decode("utf-8", "ignore") or failure.kind.name
