"""Whether a Ray head answers at an address: asked first, since Ray itself waits two minutes for one that does not."""

from __future__ import annotations

import os
import re
import socket

__all__ = ["check_head"]

_HOST_PORT = re.compile(r"(?P<host>\[[^]]+\]|[^:/]+):(?P<port>[0-9]{1,5})")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2, which gRPC runs over, begins: its preface and an empty frame of settings."""
_SETTINGS = 4
"""Type of the frame that a server answers with, its fourth byte."""


def check_head(address: str, *, timeout_s: float = 5.0) -> None:
    """Raise ``ConnectionError`` unless something that may be a Ray head answers at ``HOST:PORT`` in time.

    Other forms of addresses, such as ``auto``, are left to Ray.
    """
    match = _HOST_PORT.fullmatch(address)
    if match is None or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    try:
        with socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=timeout_s) as peer:
            peer.sendall(_PREFACE)
            answer = peer.recv(9)
    except TimeoutError as error:
        raise ConnectionError(f"nobody answers at {address} within {timeout_s:g} s") from error
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers at {address} ({error})") from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ConnectionError(f"what answers at {address} is no Ray head")
