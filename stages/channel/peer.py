"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["is_trusted", "peer_process", "peer_user"]

_CREDENTIALS = struct.Struct("3i")


def peer_user(connection: socket.socket) -> int | None:
    """User id of the process at the other end; ``None`` if it is no Unix socket, which has credentials."""
    if connection.family != socket.AF_UNIX:
        return None
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)


def peer_process(connection: socket.socket) -> int:
    """Id of the process that listens at the other end of a Unix socket; 0 if it has none here (another namespace)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def is_trusted(user: int | None) -> bool:
    """Whether a peer is this user or root. Others than Unix sockets' peers have to show a key instead."""
    return user is None or user in (os.getuid(), 0)
