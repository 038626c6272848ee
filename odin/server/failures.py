"""Why a request was not answered: one kind of failure for both protocols, with its code in each."""

from __future__ import annotations

import enum

__all__ = ["SERVER_ENDS", "FailureKind", "RequestError"]

SERVER_ENDS = "the server is ending; send it elsewhere"
"""Told to whoever asks for more then."""


class FailureKind(enum.Enum):
    """A kind of failure.

    Attributes
    ----------
    http_status
        Of a REST answer.
    grpc_code
        Name in ``grpc.StatusCode``.
    """

    INVALID = 400, "INVALID_ARGUMENT"
    UNAUTHENTICATED = 401, "UNAUTHENTICATED"
    NOT_FOUND = 404, "NOT_FOUND"
    TOO_LARGE = 413, "RESOURCE_EXHAUSTED"
    UNKNOWN_MEDIA = 415, "INVALID_ARGUMENT"
    BUSY = 429, "RESOURCE_EXHAUSTED"
    REFUSED = 429, "RESOURCE_EXHAUSTED", "refused"  # it would have been late
    GONE = 499, "CANCELLED"  # its client does not wait any more
    INTERNAL = 500, "INTERNAL"
    UNSUPPORTED = 501, "UNIMPLEMENTED"
    NOT_READY = 503, "UNAVAILABLE"
    LATE = 504, "DEADLINE_EXCEEDED"

    def __init__(self, http_status: int, grpc_code: str, _: str = "") -> None:
        self.http_status, self.grpc_code = http_status, grpc_code


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes
    ----------
    kind
        Which kind of failure.
    retry_after_s
        Seconds after which another try may succeed; None if that is not known.
    """

    def __init__(self, kind: FailureKind, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s
