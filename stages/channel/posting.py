"""Sending from slots that the sender frees itself: never waits, and knows after an interruption what it has sent."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.wire import Header, pack

__all__ = ["Posting"]


class Posting:
    """Requests on their way from the gateway into a socket, tensors first into a slot.

    Parameters
    ----------
    connection
        A ``SOCK_SEQPACKET`` Unix socket.
    memory, free
        Slots, and the numbers of those that are free.
    """

    def __init__(self, connection: socket.socket, memory: SlotMemory, free: deque[int]) -> None:
        self._connection, self._memory, self._free = connection, memory, free
        self._unsent: deque[bytes] = deque()
        self._sending = (-1, 0, b"")  # request, slot and header of the last one begun
        self._pushed = b""  # the last header that is on its way

    def send(self, header: Header, tensors: Sequence[Any]) -> int:
        """Send; an exception of a signal's handler comes before or after that, as :meth:`sent` tells."""
        slot = self._free[-1] if tensors else 0  # the one that was free last is the most likely still in a cache
        metas = self._memory.write(slot, tensors)
        data = pack(header._replace(slot=slot, tensors=metas, sent_s=time.perf_counter()))
        self._sending = (header.request, slot if tensors else -1, data)
        # The slots are the bound; many small headers may be more than the socket holds while the receiver stands
        # still, and whoever sends must not stand still with it. Each slot given back sends on what is left.
        self._unsent.append(data)
        if tensors:
            self._free.pop()
        self._push()
        return slot

    def sent(self, request: int) -> int | None:
        """See :meth:`odin.stages.channel.link.Sender.sent`."""
        number, slot, data = self._sending
        if number != request or not (self._pushed is data or any(waiting is data for waiting in self._unsent)):
            return None
        if self._free and self._free[-1] == slot:  # the interruption came before it was taken
            self._free.pop()
        return max(slot, 0)

    def release(self, slot: int) -> None:
        """See :meth:`odin.stages.channel.link.Sender.release`."""
        self._free.append(slot)
        self.push()

    def push(self) -> None:
        """Send on what the socket had no room for."""
        with contextlib.suppress(OSError):  # if the receiver is gone, the next send says so
            self._push()

    def _push(self) -> None:
        while self._unsent:
            try:
                self._connection.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._pushed = self._unsent[0]
            self._unsent.popleft()
