"""The channel within one machine: slots in anonymous shared memory, descriptors over a Unix socket.

::

    sender                                   receiver
      | -- hello + memory descriptor (SCM_RIGHTS) --> maps the same slots
      | -- header(slot 0) ------------------------->  reads slot 0 in place
      | -- header(slot 1) ------------------------->
      | <------------------------- credits(0) ------  slot 0 may be used again

The memory is a ``memfd``: it has no name and is gone when both ends are, however they end. ``SOCK_SEQPACKET`` keeps
message boundaries, wakes the other end from the kernel, and reports its death. With its answer to the hello the
receiver passes on the page of its readiness.

A stage that may send to several others has one memory for all of them, a :class:`SlotPool`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from odin.stages.channel.link import HELLO_NBYTES, ChannelClosedError, Hello, Message
from odin.stages.channel.posting import Posting
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.shared_queue import QUEUE_DESCRIPTORS, QueueEnd, SharedQueue
from odin.stages.channel.slots import SlotMemory, allocate_memfd
from odin.stages.channel.way import Way
from odin.stages.channel.wire import GATEWAY, Header, Kind, WireError, pack, unpack

__all__ = ["ShmReceiver", "ShmSender", "SlotPool"]

_CREDIT_NBYTES = 4
_BUFFER_NBYTES = 256 * 1024
_GOODBYE_TIMEOUT_S = 5.0


class SlotPool:
    """Slots of one shared memory, from which several senders of one thread take.

    Parameters
    ----------
    slots, slot_nbytes
        Size of the memory.
    """

    def __init__(self, slots: int, slot_nbytes: int) -> None:
        self.descriptor = -1
        self.descriptor = allocate_memfd(SlotMemory.total_nbytes(slots, slot_nbytes))
        try:
            self.memory = SlotMemory(slots, slot_nbytes, descriptor=self.descriptor)
        except BaseException:
            self.close_descriptor()
            raise
        self.free = deque(reversed(range(slots)))
        self.senders: list[ShmSender] = []

    def close_descriptor(self) -> None:
        """Give the memory to no more receivers. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close_descriptor()

    def take(self) -> int:
        """Take a slot, waiting for a free one. The one that was free last is the most likely still in a cache."""
        while not self.free:
            self.read_credits(wait=True)
        return self.free.pop()

    @property
    def has_spare(self) -> bool:
        """Whether a later stage may have a slot: one that hangs keeps it, and the last one is for answers."""
        answering = [sender for sender in self.senders if sender.receiver == GATEWAY and len(self.senders) > 1]
        return len(self.free) > sum(not sender.owed for sender in answering)

    def read_credits(self, *, wait: bool) -> None:
        """Take back the slots that receivers have done with; with ``wait``, wait for some."""
        poll, owing = select.poll(), {}
        for sender in self.senders:
            if sender.owed:
                descriptor = sender.fileno()
                if descriptor < 0:
                    raise ChannelClosedError("the channel was closed")
                owing[descriptor] = sender
                poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(None if wait else 0):
            owing[descriptor].read_credits()


class ShmSender:
    """Upstream end; see :class:`odin.stages.channel.link.Sender`.

    Parameters
    ----------
    connection
        A connected ``SOCK_SEQPACKET`` Unix socket; owned from now on.
    hello
        Size of the ring, and the token that the listener expects.
    pool
        Slots that are shared with other senders, of which this one may have ``hello.slots`` at a time.
    receiver
        Who receives, for errors.
    queue
        The gateway's queue of new requests, which the receiver may take from as well; in slots of the same pool.
    """

    way: Way | None = None

    def __init__(
        self,
        connection: socket.socket,
        hello: Hello,
        pool: SlotPool | None = None,
        receiver: int | None = None,
        queue: SharedQueue | None = None,
    ) -> None:
        self.receiver = receiver
        own = pool is None
        if pool is None:
            pool = SlotPool(hello.slots, hello.slot_nbytes)
        self._limit = hello.slots
        self.memory = pool.memory
        hello = hello._replace(slots=pool.memory.slots, slot_nbytes=pool.memory.slot_nbytes)
        try:
            shared = [] if queue is None else queue.descriptors
            socket.send_fds(connection, [hello.pack()], [pool.descriptor, *shared])
            answer, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError as error:
            raise ChannelClosedError(f"the receiver refused the channel: {error}") from error
        finally:
            if own:
                pool.close_descriptor()
        try:
            if answer != b"+" or len(descriptors) != 1:
                raise ChannelClosedError("the receiver refused the channel: its token is another")
            self.readiness = Readiness(descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._sent_word = Readiness.word_of(hello.sender)
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _BUFFER_NBYTES)
        self._connection = connection
        self._credits = hello.credits
        self._pool, self._free = pool, pool.free
        self.owed = 0  # slots that the receiver has not given back, as far as was read
        pool.senders.append(self)
        self._posting = Posting(connection, pool.memory, pool.free)  # without credits

    def send(self, header: Header, tensors: Sequence[Any] = ()) -> int:
        """See :meth:`odin.stages.channel.link.Sender.send`."""
        counts = header.kind is Kind.REQUEST
        if counts:  # first: while the tensors are copied, the place is taken
            self.readiness.words[self._sent_word] += 1.0
        try:
            if not self._credits:
                return self._posting.send(header, tensors)
            slot = self._take_slot() if tensors else 0
            try:
                metas = self.memory.write(slot, tensors)
            except BaseException:
                if tensors:
                    self._give_back(slot)
                raise
            self._connection.send(pack(header._replace(slot=slot, tensors=metas, sent_s=time.perf_counter())))
        except BaseException as error:
            if counts and self.sent(header.request) is None:
                self.readiness.words[self._sent_word] -= 1.0
            if isinstance(error, OSError) and not isinstance(error, ChannelClosedError):
                raise self._gone(error) from error
            raise
        return slot

    def release(self, slot: int) -> None:
        """See :meth:`odin.stages.channel.link.Sender.release`."""
        self._posting.release(slot)

    def sent(self, request: int) -> int | None:
        """See :meth:`odin.stages.channel.link.Sender.sent`."""
        return self._posting.sent(request)

    def fileno(self) -> int:
        """Return the descriptor that can be read from when there are credits."""
        return self._connection.fileno()

    @property
    def has_place(self) -> bool:
        """See :attr:`odin.stages.channel.link.Sender.has_place`."""
        if not (self._pool.has_spare and self.owed < self._limit):
            try:
                self._pool.read_credits(wait=False)
            except ChannelClosedError:
                return True
        return self._pool.has_spare and self.owed < self._limit

    def _take_slot(self) -> int:
        while self.owed >= self._limit:
            self.read_credits()
        slot = self._pool.take()
        self.owed += 1
        return slot

    def _give_back(self, slot: int) -> None:
        self._free.append(slot)
        self.owed -= 1

    def read_credits(self) -> None:
        """Take back slots that the receiver has done with, waiting for some."""
        try:
            data = self._connection.recv(_CREDIT_NBYTES * self.memory.slots)
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise self._gone()
        slots = struct.unpack(f"<{len(data) // _CREDIT_NBYTES}I", data)
        self._free.extend(slots)
        self.owed -= len(slots)

    def _gone(self, why: OSError | None = None) -> ChannelClosedError:
        # Named here: whoever waits for a shared slot learns of a receiver that it was not sending to.
        error = ChannelClosedError("the next stage is gone" if why is None else f"the next stage is gone ({why})")
        error.peer = self.receiver
        return error

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
    readiness
        The receiving stage's.

    Attributes
    ----------
    queue
        The gateway's queue of new requests, if it came with this channel.
    """

    def __init__(self, connection: socket.socket, token: bytes, readiness: Readiness) -> None:
        data, descriptors, _, _ = socket.recv_fds(connection, HELLO_NBYTES, 1 + QUEUE_DESCRIPTORS)
        self.queue: QueueEnd | None = None
        try:
            hello = Hello.unpack(data, token)
            if hello is None or len(descriptors) not in (1, 1 + QUEUE_DESCRIPTORS):
                raise ChannelClosedError("a stranger knocked: wrong token")
            self.memory = SlotMemory(hello.slots, hello.slot_nbytes, descriptor=descriptors[0])
            if len(descriptors) > 1:
                page, connection_fd = descriptors[2], descriptors.pop(1)
                self.queue = QueueEnd(self.memory, connection_fd, page)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.sender = hello.sender
        socket.send_fds(connection, [b"+"], [readiness.descriptor])
        connection.settimeout(None)
        self._connection = connection
        self._credits = hello.credits
        self._given_back: list[int] = []
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))

    def fileno(self) -> int:
        """See :meth:`odin.stages.channel.link.Receiver.fileno`."""
        return self._connection.fileno()

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
        if self.queue is not None:
            self.queue.close()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
