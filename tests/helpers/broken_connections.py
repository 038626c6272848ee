"""Breaks TCP connections of another process, as a firewall or a switch does that forgets them: both ends live on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket

_PIDFD_GETFD = 438
"""Number of the system call, on every architecture; Linux 5.6."""


def cut_connections_to(address: str, *, pid: int) -> int:
    """Shut down the channels of a stage's process to stages at an address, with all that is on the way; how many."""
    process, count = os.pidfd_open(pid), 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            descriptor = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, int(name), 0)
            if descriptor < 0:  # closed meanwhile, or none that can be had
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as connection:
                is_tcp = connection.family is socket.AF_INET
                if is_tcp and connection.getpeername()[0] == address and _sends_for_odin(connection):
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    finally:
        os.close(process)
    return count


def _sends_for_odin(connection: socket.socket) -> bool:
    """Whether it is a ``TcpSender``'s: those look after the peer while they send, Ray's do not."""
    return any(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
