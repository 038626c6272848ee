"""Messages on their way from the gateway into a socket: posting one never waits, and stands any interruption."""

from __future__ import annotations

import contextlib
import socket
from collections import deque

__all__ = ["Posting"]


class Posting:
    """What is posted, numbered from 1 on; all calls are made under one lock of the caller.

    The gateway's slots are the bound of what is under way. Still, many small headers may be more than the socket holds
    while the receiver stands still, and whoever posts must not stand still with it. So what there is no room for is
    kept here.

    Parameters
    ----------
    connection
        A ``SOCK_SEQPACKET`` Unix socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._begun = 0  # number of the last one that was tried to be sent

    @property
    def last(self) -> int:
        """Number of the last message that is on its way, whatever has interrupted :meth:`post`."""
        return self._unsent[-1][0] if self._unsent else self._begun

    def post(self, data: bytes) -> None:
        """Send as number ``last + 1``.

        Raises
        ------
        OSError
            If the receiver is gone.
        """
        self._unsent.append((self.last + 1, data))
        self._push()

    def push(self) -> None:
        """Send on what the socket had no room for."""
        with contextlib.suppress(OSError):  # if the receiver is gone, the next one says so
            self._push()

    def _push(self) -> None:
        while self._unsent:
            number, data = self._unsent[0]
            # First: if an exception of a signal's handler comes before it is removed, it may be sent twice, but counts.
            self._begun = number
            try:
                self._connection.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._unsent.popleft()
