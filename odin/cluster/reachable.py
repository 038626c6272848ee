"""Whether a Ray head answers at an address: asked first, since Ray itself waits two minutes for one that does not.

One call is made by hand, over a socket, as gRPC does: Ray's own client is neither imported nor waited for. ::

    us   preface, SETTINGS                              which any server of HTTP/2 answers by its SETTINGS
    us   SETTINGS taken note of, HEADERS and DATA       of the call GetClusterId without arguments
    head HEADERS                                        of its answer, or of a refusal, with a status that is not 0
"""

from __future__ import annotations

import os
import re
import socket
import time

from odin.cluster.ray_token import shown_token, token_enabled, token_path

__all__ = ["check_address", "check_head"]

_HOST_PORT = re.compile(r"(?P<host>\[[^]]+\]|[^:/\s]+):(?P<port>[0-9]{1,5})")
_RAYS_OWN = ("auto", "local")
"""Addresses that Ray looks up by itself, on this machine."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""How a client of HTTP/2, which gRPC runs over, begins."""
_DATA, _HEADERS, _RESET, _SETTINGS, _GO_AWAY = 0, 1, 3, 4, 7
"""Types of frames."""
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
"""Flags of frames."""
_STATUS = b"grpc-status"
_UNAUTHENTICATED = b"16"
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_NO_ARGUMENTS = bytes(5)
"""A gRPC message: not compressed, of no bytes."""


def check_address(address: str) -> None:
    """Raise unless a pipeline can join a cluster by this address.

    Raises
    ------
    ValueError
        If it has no form that is known.
    ConnectionError
        If no Ray head answers at ``HOST:PORT`` in a few seconds.
    """
    if not isinstance(address, str) or not (_HOST_PORT.fullmatch(address) or address in _RAYS_OWN):
        raise ValueError(
            f"{address!r} is no address of a Ray cluster: write HOST:PORT as 'odin cluster up' prints it, such as "
            "10.0.0.5:6379, or auto for the one on this machine"
        )
    try:
        check_head(address)
    except _TokenRefusedError:
        raise
    except ConnectionError as error:
        raise ConnectionError(
            f"no Ray cluster at {address}: {error}; start one with scripts/cluster.sh up, or leave it out"
        ) from error


def check_head(address: str, *, timeout_s: float = 5.0) -> None:
    """Raise ``ConnectionError`` unless something that may be a Ray head answers at ``HOST:PORT`` in time.

    Other forms of addresses, such as ``auto``, are left to Ray.
    """
    match = _HOST_PORT.fullmatch(address)
    if match is None or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    deadline_s = time.monotonic() + timeout_s
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as peer:
            peer.sendall(_PREFACE + _frame(_SETTINGS))
            answer = _call(peer, address, deadline_s)
    except TimeoutError as error:
        raise ConnectionError(f"nobody answers at {address} within {timeout_s:g} s") from error
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers at {address} ({error})") from error
    if answer is None or (status := _status(answer)) not in (b"", _UNAUTHENTICATED):
        raise ConnectionError(f"what answers at {address} is no Ray head")
    if status == _UNAUTHENTICATED:
        raise _TokenRefusedError(
            f"the Ray head at {address} asks for its cluster's token, and {_own_token()}: copy the file that the head "
            "has at ~/.ray/auth_token (mode 600), or set RAY_AUTH_TOKEN to what 'ray get-auth-token' prints there"
        )


class _TokenRefusedError(ConnectionError):
    """There is a cluster, for others."""


def _own_token() -> str:
    if not token_enabled():
        return f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} shows none (unset it)"
    path = token_path()
    if path is None:
        return "RAY_AUTH_TOKEN is not it"
    return f"{path} is not it" if path.exists() else f"there is none at {path}"


def _call(peer: socket.socket, address: str, deadline_s: float) -> bytes | None:
    """The headers of what it answers to a call; None if that is no gRPC. ``TimeoutError`` if nothing comes."""
    kind, _, _ = _next_frame(peer, deadline_s)
    if kind != _SETTINGS:
        return None
    peer.sendall(
        _frame(_SETTINGS, flags=_ACK)
        + _frame(_HEADERS, _headers(address), flags=_END_HEADERS, stream=1)
        + _frame(_DATA, _NO_ARGUMENTS, flags=_END_STREAM, stream=1)
    )
    while True:
        kind, stream, payload = _next_frame(peer, deadline_s)
        if kind in (None, _RESET, _GO_AWAY):
            return None
        if kind == _HEADERS and stream == 1:
            return payload


def _status(headers: bytes) -> bytes:
    """The status of a call that was refused, as it stands in its headers; empty in those before an answer."""
    _, found, rest = headers.partition(_STATUS)
    return rest[1 : 1 + rest[0]] if found and rest else b""


def _frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(address: str) -> bytes:
    """The call's headers, as HPACK has them: numbers of its table, and literals that are not to be remembered."""
    authority, method, token = address.encode(), _METHOD.encode(), f"Bearer {shown_token()}".encode()
    shown = b"\x00\x0dauthorization" + bytes((len(token),)) + token if 7 < len(token) < 127 else b""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + bytes((len(method),)) + method,  # :path
            b"\x01" + bytes((min(len(authority), 126),)) + authority[:126],  # :authority
            b"\x0f\x10\x10application/grpc",  # content-type
            b"\x00\x02te\x08trailers",
            shown,
        )
    )


def _next_frame(peer: socket.socket, deadline_s: float) -> tuple[int | None, int, bytes]:
    """Type, stream and payload of the next frame; no type if the connection ends, or what comes is no frame."""
    head = _receive(peer, 9, deadline_s)
    nbytes = int.from_bytes(head[:3], "big")
    if len(head) < 9 or nbytes > 1 << 14:
        return None, 0, b""
    return head[3], int.from_bytes(head[5:], "big"), _receive(peer, nbytes, deadline_s)


def _receive(peer: socket.socket, nbytes: int, deadline_s: float) -> bytes:
    """So many bytes, or less at the connection's end."""
    received = b""
    while len(received) < nbytes:
        peer.settimeout(max(0.001, deadline_s - time.monotonic()))
        part = peer.recv(nbytes - len(received))
        if not part:
            break
        received += part
    return received
