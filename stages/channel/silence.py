"""Distinguishes a dead machine from a busy one, over TCP.

A receiver whose slots are full does not read, perhaps for minutes, and nothing is wrong. So no answer of the program
is waited for, nor does the age of unsent data count (``TCP_USER_TIMEOUT``, which ends a connection whose window stays
closed). What counts is whether the other machine's kernel is heard at all, which it is while a stage computes, holds
the interpreter's lock, or is stopped::

    receiver                                        sender
      sends nothing, so keepalive probes run: a       counts the segments that arrive (TCP_INFO): data acknowledged,
      probe per KEEPALIVE.idle_s of quiet, each       a window probe answered, or the receiver's own probe
      answered by the sender's kernel; after
      KEEPALIVE.silence_s without an answer           no segment in KEEPALIVE.silence_s:
      the kernel ends the connection                  the sender ends it
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

__all__ = ["KEEPALIVE", "Keepalive", "Silence", "probe", "segments_received"]

_ESTABLISHED = 1
_SEGMENTS_IN = struct.Struct("=140xI")
"""``struct tcp_info`` of ``linux/tcp.h`` up to ``tcpi_segs_in``, which Linux has since 4.2."""


class Keepalive(NamedTuple):
    """When a peer is asked whether it lives, and when it counts as lost.

    Attributes
    ----------
    idle_s
        Whole seconds without a word before the kernel asks.
    interval_s
        Whole seconds between questions that stay without an answer.
    silence_s
        Whole seconds without any sign of the other machine after which it is lost.
    """

    idle_s: int
    interval_s: int
    silence_s: int


KEEPALIVE = Keepalive(idle_s=3, interval_s=2, silence_s=15)
"""Several probes can be lost before a peer is."""


def probe(connection: socket.socket, *, receives: bool, keepalive: Keepalive = KEEPALIVE) -> None:
    """Enable keep-alive probes, and close a receiver's connection when its peer is silent.

    Parameters
    ----------
    receives
        Whether this end only receives. Only there ``TCP_USER_TIMEOUT`` measures silence: an end that sends would be
        cut off by back-pressure as well.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    unanswered = max(1, (keepalive.silence_s - keepalive.idle_s) // keepalive.interval_s)
    for option, value in (
        ("TCP_KEEPIDLE", keepalive.idle_s),
        ("TCP_KEEPINTVL", keepalive.interval_s),
        ("TCP_KEEPCNT", unanswered),
        ("TCP_USER_TIMEOUT", 1000 * keepalive.silence_s if receives else 0),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def segments_received(connection: socket.socket) -> int | None:
    """Segments that have arrived on an open connection, empty ones included; ``None`` where the kernel does not say.

    Raises
    ------
    ConnectionError
        If the peer has closed the connection, or the kernel has.
    """
    if not hasattr(socket, "TCP_INFO"):
        return None
    data = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS_IN.size)
    if data and data[0] != _ESTABLISHED:
        raise ConnectionError("the connection is closed")
    if len(data) < _SEGMENTS_IN.size:
        return None
    (count,) = _SEGMENTS_IN.unpack(data)
    return int(count) or None  # the handshake alone took one: a kernel that says zero does not count


class Silence:
    """Time since anything arrived from a peer, by readings of a counter of arrived segments.

    A look that comes late says no more than that nothing came since the one before: several looks in a row must find
    the count unchanged, so that a process which was itself stopped does not blame its peer.

    Parameters
    ----------
    limit_s
        Seconds of silence after which the peer is lost.

    Examples
    --------
    >>> silence = Silence(limit_s=15)
    >>> [silence.look(count, now_s) for count, now_s in ((1, 0), (1, 5), (2, 10), (2, 15), (2, 20), (2, 26))]
    [False, False, False, False, False, True]
    """

    LOOKS = 3
    """Looks at least that must have found nothing."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._count = -1
        self._heard_s = 0.0
        self._looks = 0

    def look(self, count: int, now_s: float) -> bool:
        """Take the counter at ``now_s``; whether the peer is lost."""
        if count != self._count:
            self._count, self._heard_s, self._looks = count, now_s, 0
            return False
        self._looks += 1
        return self._looks >= self.LOOKS and now_s - self._heard_s >= self._limit_s
