"""The channel within one machine: slots in anonymous shared memory, descriptors over a Unix socket.

::

    sender                                   receiver
      | -- hello + memory descriptor (SCM_RIGHTS) --> maps the same slots
      | -- header(slot 0) ------------------------->  reads slot 0 in place
      | -- header(slot 1) ------------------------->
      | <------------------------- credits(0) ------  slot 0 may be used again

The memory is a ``memfd``: it has no name and is gone when both ends are, however they end. ``SOCK_SEQPACKET`` keeps
message boundaries, wakes the other end from the kernel, and reports its death. With its answer to the hello the
receiver passes on the page of its readiness, and says which of its words the sender counts in.

A stage that may send to several others has one memory for all of them (:mod:`odin.stages.channel.pool`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from odin.stages.channel.link import HELLO_NBYTES, ChannelClosedError, Hello, Message
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.posting import Posting
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.shared_queue import QUEUE_DESCRIPTORS, QueueEnd, SharedQueue
from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.way import Way
from odin.stages.channel.wire import Header, Kind, WireError, pack, unpack

__all__ = ["ShmReceiver", "ShmSender", "SlotPool"]

_CREDIT_NBYTES = 4
_BUFFER_NBYTES = 256 * 1024
_GOODBYE_TIMEOUT_S = 5.0
_ANSWER = struct.Struct("<cI")
"""To a hello: ``+``, and the position of the word in which the sender counts."""


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

    Attributes
    ----------
    owed
        Slots that the receiver has not given back, as far as was read.
    limit
        How many those may be.
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
        self._owns_pool = pool is None
        if pool is None:
            pool = SlotPool(hello.slots, hello.slot_nbytes)
        self._pool, self.memory = pool, pool.memory
        self.limit, self.owed = hello.slots, set[int]()
        self._abandoned = self._closed = False
        self._why = "the next stage is gone"
        hello = hello._replace(slots=pool.memory.slots, slot_nbytes=pool.memory.slot_nbytes)
        try:
            self.readiness, self._word = self._shake_hands(connection, hello, queue)
        except BaseException:
            if self._owns_pool:
                pool.close()
            raise
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _BUFFER_NBYTES)
        self._connection = connection
        self._credits = hello.credits
        self._posting = Posting(connection)  # without credits
        self._counted = self.readiness.words[self._word]
        self.usable = True
        if hello.credits:
            pool.senders.append(self)

    def _shake_hands(self, connection: socket.socket, hello: Hello, queue: SharedQueue | None) -> tuple[Readiness, int]:
        """Say hello; the receiver's page, and the word to count in."""
        try:
            shared = [] if queue is None else queue.descriptors
            socket.send_fds(connection, [hello.pack()], [self._pool.descriptor, *shared])
            answer, descriptors, _, _ = socket.recv_fds(connection, _ANSWER.size, 1)
        except OSError as error:
            raise ChannelClosedError(f"the receiver refused the channel: {error}") from error
        try:
            if len(answer) != _ANSWER.size or len(descriptors) != 1:
                raise ChannelClosedError("the receiver refused the channel: its token is another")
            return Readiness(descriptors[0]), _ANSWER.unpack(answer)[1]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def send(self, header: Header, tensors: Sequence[Any] = ()) -> int:
        """See :meth:`odin.stages.channel.link.Sender.send`."""
        assert self._credits, "without credits headers are posted"
        self.check()
        counts = header.kind is Kind.REQUEST
        if counts:  # first: while the tensors are copied, the place is taken
            self.readiness.words[self._word] += 1.0
        try:
            slot = self._pool.take(self) if tensors else 0
            try:
                metas = self.memory.write(slot, tensors)
            except BaseException:
                if tensors:
                    self._pool.give_back(self, slot)
                raise
            self._connection.send(pack(header._replace(slot=slot, tensors=metas, sent_s=time.perf_counter())))
        except BaseException as error:
            if counts:
                self.readiness.words[self._word] -= 1.0
            if isinstance(error, OSError) and not isinstance(error, ChannelClosedError):
                self._pool.drop(self, str(error))
                raise self._gone() from error
            raise
        return slot

    def post(self, header: Header) -> None:
        """See :meth:`odin.stages.channel.link.Sender.post`."""
        words, posting = self.readiness.words, self._posting
        words[self._word] = self._counted + posting.last + 1
        try:
            posting.post(pack(header._replace(sent_s=time.perf_counter())))
        except BaseException as error:
            words[self._word] = self._counted + posting.last
            if isinstance(error, OSError):
                self.usable = False
                raise self._gone() from error
            raise

    def push(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.push`."""
        self._posting.push()

    def fileno(self) -> int:
        """Return the descriptor that can be read from when there are credits."""
        return self._connection.fileno()

    @property
    def has_place(self) -> bool:
        """See :attr:`odin.stages.channel.link.Sender.has_place`; sees as well whether the receiver is gone."""
        if self.usable:
            self._pool.look(self)
        return self.usable and self._pool.has_slot_for(self)

    def check(self) -> None:
        """Raise :class:`ChannelClosedError` unless the channel can be used."""
        if not self.usable:
            raise self._gone()

    def abandon(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.abandon`."""
        self._abandoned, self.usable = True, False
        self._pool.wake()

    def resume(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.resume`."""
        self._abandoned = False
        self.usable = not self._closed

    def read_credits(self) -> Sequence[int] | None:
        """Slots that the receiver has done with since the last time, without waiting; None if it is gone."""
        try:
            data = self._connection.recv(_CREDIT_NBYTES * self.memory.slots, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ()
        except OSError:
            return None
        return struct.unpack(f"<{len(data) // _CREDIT_NBYTES}I", data) if data else None

    def end(self, why: str = "") -> None:
        """Nothing can be sent any more. By the pool, which closes the descriptor."""
        self._closed, self.usable = True, False
        if why:
            self._why = f"the next stage is gone ({why})"

    def close_connection(self) -> None:
        """By the pool, when no thread waits for it."""
        self._connection.close()

    def _gone(self) -> ChannelClosedError:
        abandoned = self._abandoned and not self._closed
        error = ChannelClosedError("the next stage is not to be sent to at present" if abandoned else self._why)
        error.peer = self.receiver
        return error

    def close(self, *, graceful: bool = True) -> None:
        """See :meth:`odin.stages.channel.link.Sender.close`."""
        if not self._closed:
            self._why = "the channel was closed"
        with contextlib.suppress(OSError):
            if graceful and not self._closed:
                self._connection.settimeout(_GOODBYE_TIMEOUT_S)
                self._connection.send(pack(Header(Kind.CLOSE, 0)))
                # Closing with unread credits would reset the link and lose what the receiver has not read yet.
                while self._connection.recv(_CREDIT_NBYTES):
                    pass
            self._connection.shutdown(socket.SHUT_RDWR)
        self.end()
        if self._credits:
            self._pool.retire(self)
        else:
            self._connection.close()
        if self._owns_pool:
            self._pool.close()


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

    within_machine = True

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
        self._readiness, self._word = readiness, readiness.take_word()
        self._begun = readiness.words[self._word]  # requests, as its word counts them
        try:
            socket.send_fds(connection, [_ANSWER.pack(b"+", self._word)], [readiness.descriptor])
        except BaseException:
            readiness.give_back_word(self._word, self._begun)
            raise
        connection.settimeout(None)
        self._connection = connection
        self._credits = hello.credits
        self._last: tuple[int, int, float] | None = None
        self._given_back: list[int] = []
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))

    def fileno(self) -> int:
        """See :meth:`odin.stages.channel.link.Receiver.fileno`."""
        return self._connection.fileno()

    def receive(self) -> Message:
        """See :meth:`odin.stages.channel.link.Receiver.receive`."""
        while (message := self.take()) is None:
            pass
        return message

    def take(self) -> Message | None:
        """See :meth:`odin.stages.channel.link.Receiver.take`."""
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
        if not self._credits:
            last, self._last = self._last, (header.request, header.attempt, header.sent_s)
            if last == self._last:  # posting was interrupted between sending and noting it
                return None
        if header.kind is Kind.REQUEST:
            self._begun += 1.0
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
        word, self._word = self._word, -1
        if word >= 0:
            self._readiness.give_back_word(word, self._begun)
