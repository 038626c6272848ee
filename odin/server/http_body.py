"""The body of an HTTP request: received into one piece of memory, and uncompressed, within a limit."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from starlette.types import Receive

from odin.server.failures import FailureKind, RequestError

__all__ = ["receive_body"]

_ALIGNMENT = 16  # of elements that follow the JSON, as of any array
_IN_THREAD_NBYTES = 64 * 2**10  # what takes longer than a thread's start to uncompress
_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


async def receive_body(
    receive: Receive, headers: Mapping[str, str], *, limit_nbytes: int, header_nbytes: int = 0
) -> memoryview:
    """Return the body, uncompressed.

    Parameters
    ----------
    receive
        Of the ASGI application.
    headers
        Of the request.
    limit_nbytes
        Most bytes, as they come and uncompressed.
    header_nbytes
        After how many bytes elements of tensors begin: there they are aligned.

    Raises
    ------
    RequestError
        If the body is larger, broken, or breaks off.
    """
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", *_WINDOW):
        raise RequestError(
            FailureKind.UNKNOWN_MEDIA, f"Content-Encoding {encoding[:40]!r} is none of gzip, deflate, identity"
        )
    body = await _receive(receive, headers.get("content-length", ""), limit_nbytes, header_nbytes)
    if encoding in _WINDOW:
        small = len(body) <= _IN_THREAD_NBYTES
        parts = (
            _uncompress(body, encoding, limit_nbytes)
            if small
            else await asyncio.to_thread(_uncompress, body, encoding, limit_nbytes)
        )
        body = _room(sum(map(len, parts)), header_nbytes)
        at = 0
        for part in parts:
            at = _put(part, body, at)
    return body.data


def _room(nbytes: int, header_nbytes: int) -> npt.NDArray[np.uint8]:
    """Memory that nobody has touched, so that a length that is only claimed costs nothing."""
    before = -header_nbytes % _ALIGNMENT
    return np.empty(before + nbytes, np.uint8)[before:]


def _put(part: bytes, room: npt.NDArray[np.uint8], at: int) -> int:
    end = at + len(part)
    room[at:end] = np.frombuffer(part, np.uint8)
    return end


async def _receive(receive: Receive, claimed: str, limit_nbytes: int, header_nbytes: int) -> npt.NDArray[np.uint8]:
    known = int(claimed) if claimed.isascii() and claimed.isdecimal() else None
    if known is not None and known > limit_nbytes:
        raise _too_large(limit_nbytes)
    room = _room(known or 0, header_nbytes)
    at, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(FailureKind.GONE, "the client has gone before the request was whole")
        part, more = message.get("body", b""), message.get("more_body", False)
        if at + len(part) > limit_nbytes:
            raise _too_large(limit_nbytes)
        if at + len(part) > len(room):
            grown = _room(max(2 * len(room), at + len(part)), header_nbytes)
            grown[:at] = room[:at]
            room = grown
        at = _put(part, room, at)
    return room[:at]


def _uncompress(body: npt.NDArray[np.uint8], encoding: str, limit_nbytes: int) -> list[bytes]:
    """The parts of what was compressed; not more of a bomb than the limit is unpacked."""
    left: bytes | memoryview = body.data
    window = _WINDOW[encoding]
    if encoding == "deflate" and not _has_zlib_header(left):  # as some clients understand the word
        window = -zlib.MAX_WBITS
    parts: list[bytes] = []
    nbytes = 0
    try:
        while len(left):  # gzip may have several members
            member = zlib.decompressobj(window)
            parts.append(member.decompress(left, limit_nbytes - nbytes + 1))
            nbytes += len(parts[-1])
            if nbytes > limit_nbytes:
                raise _too_large(limit_nbytes)
            if not member.eof:
                raise RequestError(FailureKind.INVALID, f"the body breaks off within its {encoding} data")
            left = member.unused_data
            if left and encoding != "gzip":
                raise RequestError(FailureKind.INVALID, f"{len(left)} bytes follow the body's {encoding} data")
    except zlib.error as error:
        raise RequestError(FailureKind.INVALID, f"the body is no {encoding} data: {error}") from None
    return parts


def _has_zlib_header(data: bytes | memoryview) -> bool:
    return len(data) >= 2 and data[0] & 0x0F == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0


def _too_large(limit_nbytes: int) -> RequestError:
    return RequestError(FailureKind.TOO_LARGE, f"the request is larger than {limit_nbytes} bytes, which is the limit")
