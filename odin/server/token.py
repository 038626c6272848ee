"""Whether a client has the server's token: one rule for REST and gRPC."""

from __future__ import annotations

import hmac

__all__ = ["ASK_FOR_TOKEN", "has_token"]

ASK_FOR_TOKEN = "send the server's token: Authorization: Bearer TOKEN"
"""Told to whoever has not."""


def has_token(header: bytes, token: str) -> bool:
    """Whether a header ``authorization`` holds the token; the scheme in any case, as RFC 9110 has it.

    Examples
    --------
    >>> [has_token(header, "s3cret") for header in (b"Bearer s3cret", b"bearer  s3cret ", b"Bearer S3cret")]
    [True, True, False]
    """
    scheme, _, given = header.strip().partition(b" ")
    # however much of it is right, this takes the same time
    same = hmac.compare_digest(given.strip(), token.encode())
    return scheme.lower() == b"bearer" and same
