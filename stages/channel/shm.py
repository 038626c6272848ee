"""The channel within one machine: slots in anonymous shared memory, descriptors over a Unix socket.

::

    sender                                   receiver
      | -- hello + memory descriptor (SCM_RIGHTS) --> maps the same slots
      | -- header(slot 0) ------------------------->  reads slot 0 in place
      | -- header(slot 1) ------------------------->
      | <------------------------- credits(0) ------  slot 0 may be used again

The memory is a ``memfd``: it has no name and is gone when both ends are, however they end. ``SOCK_SEQPACKET`` keeps
message boundaries, wakes the other end from the kernel, and reports its death.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

import torch

from odin.stages.channel.link import HELLO_NBYTES, ChannelClosedError, Hello, Message
from odin.stages.channel.slots import SlotMemory, allocate_memfd
from odin.stages.channel.wire import Header, Kind, WireError, pack, unpack

__all__ = ["ShmReceiver", "ShmSender"]

_CREDIT_NBYTES = 4
_BUFFER_NBYTES = 256 * 1024
_GOODBYE_TIMEOUT_S = 5.0


class ShmSender:
    """Upstream end; see :class:`odin.stages.channel.link.Sender`.

    Parameters
    ----------
    connection
        A connected ``SOCK_SEQPACKET`` Unix socket; owned from now on.
    hello
        Size of the ring, and the token that the listener expects.
    """

    def __init__(self, connection: socket.socket, hello: Hello) -> None:
        descriptor = allocate_memfd(SlotMemory.total_nbytes(hello.slots, hello.slot_nbytes))
        try:
            self.memory = SlotMemory(hello.slots, hello.slot_nbytes, descriptor=descriptor)
            socket.send_fds(connection, [hello.pack()], [descriptor])
            answer = connection.recv(1)
        except OSError as error:
            raise ChannelClosedError(f"the receiver refused the channel: {error}") from error
        finally:
            os.close(descriptor)
        if answer != b"+":
            raise ChannelClosedError("the receiver refused the channel: its token is another")
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _BUFFER_NBYTES)
        self._connection = connection
        self._credits = hello.credits
        self._free = deque(reversed(range(hello.slots)))
        self._unsent: deque[bytes] = deque()
        self._sending = (-1, 0, b"")  # request, slot and header of the last one begun
        self._pushed = b""  # the last header that is on its way

    def send(self, header: Header, tensors: Sequence[torch.Tensor] = ()) -> int:
        """See :meth:`odin.stages.channel.link.Sender.send`."""
        try:
            if not self._credits:
                return self._send_uninterrupted(header, tensors)
            slot = self._take_slot() if tensors else 0
            try:
                metas = self.memory.write(slot, tensors)
            except BaseException:
                self._free.append(slot)
                raise
            self._connection.send(pack(header._replace(slot=slot, tensors=metas, sent_s=time.perf_counter())))
        except ChannelClosedError:
            raise
        except OSError as error:
            raise ChannelClosedError(f"the next stage is gone ({error})") from error
        return slot

    def release(self, slot: int) -> None:
        """See :meth:`odin.stages.channel.link.Sender.release`."""
        self._free.append(slot)
        with contextlib.suppress(OSError):  # if the receiver is gone, the next send says so
            self._push()

    def _send_uninterrupted(self, header: Header, tensors: Sequence[torch.Tensor]) -> int:
        """Send; an exception of a signal's handler comes before or after that, as :meth:`sent` tells."""
        slot = self._free[-1] if tensors else 0  # the one that was free last is the most likely still in a cache
        metas = self.memory.write(slot, tensors)
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

    def _push(self) -> None:
        while self._unsent:
            try:
                self._connection.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._pushed = self._unsent[0]
            self._unsent.popleft()

    def _take_slot(self) -> int:
        while not self._free:
            self._read_credits()
        # The slot that was free last is the one most likely still in a cache.
        return self._free.pop()

    def _read_credits(self) -> None:
        data = self._connection.recv(_CREDIT_NBYTES * self.memory.slots)
        if not data:
            raise ChannelClosedError("the next stage is gone")
        self._free.extend(struct.unpack(f"<{len(data) // _CREDIT_NBYTES}I", data))

    def close(self, *, graceful: bool = True) -> None:
        """See :meth:`odin.stages.channel.link.Sender.close`."""
        with contextlib.suppress(OSError):
            if graceful:
                self._connection.settimeout(_GOODBYE_TIMEOUT_S)
                self._connection.send(pack(Header(Kind.CLOSE, 0)))
                # Closing with unread credits would reset the link and lose what the receiver has not read yet.
                while self._connection.recv(_CREDIT_NBYTES):
                    pass
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class ShmReceiver:
    """Downstream end; see :class:`odin.stages.channel.link.Receiver`.

    Parameters
    ----------
    connection
        An accepted ``SOCK_SEQPACKET`` Unix socket; owned from now on.
    token
        The token that the sender must show.
    """

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        data, descriptors, _, _ = socket.recv_fds(connection, HELLO_NBYTES, 1)
        try:
            hello = Hello.unpack(data, token)
            if hello is None or len(descriptors) != 1:
                raise ChannelClosedError("a stranger knocked: wrong token")
            self.memory = SlotMemory(hello.slots, hello.slot_nbytes, descriptor=descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(b"+")
        connection.settimeout(None)
        self._connection = connection
        self._credits = hello.credits
        self._given_back: list[int] = []
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))

    def receive(self) -> Message:
        """See :meth:`odin.stages.channel.link.Receiver.receive`."""
        try:
            received = self._connection.recv_into(self._buffer)
        except OSError as error:
            raise ChannelClosedError(f"the previous stage is gone ({error})") from error
        if received == 0:
            raise ChannelClosedError("the previous stage is gone")
        try:
            header = unpack(self._buffer[:received])
        except WireError as error:
            raise ChannelClosedError(f"the previous stage speaks another language ({error})") from error
        return Message(header, self.memory, self._release)

    def _release(self, slot: int) -> None:
        if self._credits:
            # Never waits: credits that find the socket full go with the next. The sender has as many to read before
            # it can be waiting for these. If it is gone, the next receive says so.
            self._given_back.append(slot)
            with contextlib.suppress(OSError):
                credits = struct.pack(f"<{len(self._given_back)}I", *self._given_back)
                self._connection.send(credits, socket.MSG_DONTWAIT)
                self._given_back.clear()

    def close(self) -> None:
        """See :meth:`odin.stages.channel.link.Receiver.close`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
