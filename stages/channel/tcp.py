"""The channel between two machines: header and tensors over one TCP connection.

Each end has a thread and a ring of slots of its own, so that a transfer overlaps with computing: the sender copies
into a slot and goes on, its thread puts the bytes on the wire; the receiver's thread reads the bytes into a free
slot, and stops reading while there is none, so that TCP's own flow control holds the sender back. That may last as
long as it likes; only silence of the other machine (:mod:`odin.stages.channel.silence`) ends a channel.

Frame: header length ``u32``, header, then the slot's bytes up to the end of the last tensor. The other way go words of
the receiving stage's readiness, whenever it begins with a request, has none (to the gateway again and again), or is
going to be free at another time than it has said: seconds until it expects to be free, slowdown, whether it is idle,
requests that it has begun with, those that wait there from other senders, for how long the last one that it began has
been there, and which one it computes. From these the sender learns how long the way is
(:mod:`odin.stages.channel.way`).

The gateway's channels to several stages send from the slots of one pool: a header is posted, and the thread reads the
slot when it sends. If the slot has been given to another request by then, nobody waits for this one any more.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from odin.stages.channel.link import HELLO_NBYTES, ChannelClosedError, Hello, Message
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, SLOWDOWN, WORKING, Readiness, waiting
from odin.stages.channel.silence import KEEPALIVE, Silence, probe, segments_received
from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.way import Way
from odin.stages.channel.wire import Header, Kind, WireError, pack, unpack

__all__ = ["TcpReceiver", "TcpSender", "tune"]

_LENGTH = struct.Struct("<I")
_MAX_HEADER_NBYTES = 256 * 1024
_GOODBYE_TIMEOUT_S = 5.0
_STATUS = struct.Struct("<dd?IIdd")
_TCP_INFO_NBYTES = 256
_MIN_RTT_US = struct.Struct("=148xI")
"""Where ``tcpi_min_rtt`` is in Linux's ``struct tcp_info``."""
_NEWS_S = 0.001
"""Least change of when a stage expects to be free that is told between layers."""
_SEND_TIMEOUT = struct.Struct("@ll")
"""``struct timeval``: seconds, microseconds."""


def tune(connection: socket.socket) -> None:
    """Send small frames at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _delay_s(connection: socket.socket) -> float:
    """Seconds that a small message takes: half of the shortest round trip seen."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_NBYTES)
    return float(_MIN_RTT_US.unpack_from(info)[0] * 1e-6 / 2) if len(info) >= _MIN_RTT_US.size else 0.0


def _payload_nbytes(header: Header) -> int:
    return max((meta.offset + meta.nbytes for meta in header.tensors), default=0)


class TcpSender:
    """Upstream end; see :class:`odin.stages.channel.link.Sender`.

    Parameters
    ----------
    connection
        A connected TCP socket; owned from now on.
    hello
        Size of the ring, and the token that the listener expects.
    pool
        Without credits: the slots that posted headers' tensors lie in.
    receiver
        Who receives, for errors.
    """

    def __init__(
        self,
        connection: socket.socket,
        hello: Hello,
        pool: SlotPool | None = None,
        receiver: int | None = None,
    ) -> None:
        self._receiver = receiver
        tune(connection)
        probe(connection, receives=False, keepalive=KEEPALIVE)
        try:
            connection.sendall(hello.pack())
            answer = connection.recv(1)
        except OSError as error:
            raise ChannelClosedError(f"the receiver refused the channel: {error}") from error
        if answer != b"+":
            raise ChannelClosedError("the receiver refused the channel: its token is another")
        connection.settimeout(None)
        # A blocked send comes back now and then to look after the peer; the socket itself stays a blocking one.
        self._look_s = KEEPALIVE.silence_s / Silence.LOOKS
        whole_s, part_s = divmod(self._look_s, 1)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT.pack(int(whole_s), int(1e6 * part_s))
        )
        self._silence = Silence(KEEPALIVE.silence_s)
        self.memory = SlotMemory(hello.slots, hello.slot_nbytes) if pool is None else pool.memory
        self.readiness = Readiness()
        self.readiness.close_descriptor()
        self.way: Way | None
        self.way = self._way = Way()
        self._connection = connection
        self._credits = hello.credits
        self._free = list(reversed(range(hello.slots)))
        self._changed = threading.Condition()  # what is free, broken or abandoned
        self._outgoing: queue.SimpleQueue[Header | None] = queue.SimpleQueue()
        self._broken: str | None = None
        self._abandoned = self._is_closed = False
        self._on_broken: Callable[[], None] = lambda: None
        self.usable = True
        self._thread = threading.Thread(target=self._transmit, name="odin-tcp-send", daemon=True)
        self._thread.start()
        self._way.delay_s = _delay_s(connection)
        self._listening = threading.Thread(target=self._hear, name="odin-tcp-hear", daemon=True)
        self._listening.start()

    @property
    def has_place(self) -> bool:
        """See :attr:`odin.stages.channel.link.Sender.has_place`."""
        return self.usable and bool(self._free)

    def _hear(self) -> None:
        """Keep the receiving stage's readiness as it was told last, on this machine's clock."""
        data, words, way = bytearray(_STATUS.size), self.readiness.words, self._way
        with contextlib.suppress(OSError):
            while _read_exactly(self._connection, memoryview(data)):
                free_in_s, slowdown, idle, begun, others, since_s, working = _STATUS.unpack(data)
                now_s = time.perf_counter()
                way.delay_s = _delay_s(self._connection)
                said_s = now_s - way.delay_s
                words[FREE_S], words[SLOWDOWN] = said_s + free_in_s, slowdown
                if not idle:
                    words[IDLE_SINCE_S] = math.inf
                elif words[IDLE_SINCE_S] == math.inf:  # else it has said so before
                    words[IDLE_SINCE_S] = said_s
                words[WORKING] = working
                turn_s = way.turn_s if idle else free_in_s
                way.note_heard(begun=begun, since_s=since_s, others=others, turn_s=turn_s, now_s=now_s)
        self._break("the next stage is gone")

    def send(self, header: Header, tensors: Sequence[Any] = ()) -> int:
        """See :meth:`odin.stages.channel.link.Sender.send`."""
        assert self._credits, "without credits headers are posted"
        slot = self._take_slot() if tensors else 0
        try:
            self._check()
            metas = self.memory.write(slot, tensors)
        except BaseException:
            if tensors:
                self._give_back(slot)
            raise
        header = header._replace(slot=slot, tensors=metas)
        if header.kind is Kind.REQUEST:
            self._way.note_sent(header.cut, _payload_nbytes(header), time.perf_counter())
        self._outgoing.put(header)
        return slot

    def post(self, header: Header) -> None:
        """See :meth:`odin.stages.channel.link.Sender.post`."""
        self._check()
        self._outgoing.put(header)

    def push(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.push`: the thread does it."""

    def abandon(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.abandon`."""
        with self._changed:
            self._abandoned, self.usable = True, False
            self._changed.notify_all()

    def resume(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.resume`."""
        with self._changed:
            self._abandoned = False
            self.usable = self._broken is None

    def _check(self) -> None:
        if self._broken is not None or self._abandoned:
            error = ChannelClosedError(self._broken or "the next stage is not to be sent to at present")
            error.peer = self._receiver
            raise error

    def _take_slot(self) -> int:
        with self._changed:
            while True:
                self._check()
                if self._free:
                    return self._free.pop()
                self._changed.wait()

    def _give_back(self, slot: int) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def _transmit(self) -> None:
        try:
            while (header := self._next_header()) is not None:
                data = pack(header)
                self._put(memoryview(_LENGTH.pack(len(data)) + data))
                nbytes = _payload_nbytes(header)
                if nbytes:
                    self._put(self.memory.buffer(header.slot, nbytes))
                if header.tensors and self._credits:  # empty tensors took a slot too
                    self._give_back(header.slot)
        except OSError as error:
            self._break(f"the next stage is gone ({error})")

    def _next_header(self) -> Header | None:
        while True:
            try:
                return self._outgoing.get(timeout=self._look_s)
            except queue.Empty:
                self._look_after_peer()

    def _put(self, view: memoryview) -> None:
        """Send all of it, however long the receiver takes."""
        while True:
            try:
                sent = self._connection.send(view)
            except BlockingIOError:  # not a byte in all that time
                sent = 0
            view = view[sent:]
            if not len(view):
                return
            self._look_after_peer()

    def _look_after_peer(self) -> None:
        count = segments_received(self._connection)
        if count is not None and self._silence.look(count, time.monotonic()):
            raise TimeoutError(f"nothing was heard of its machine for {KEEPALIVE.silence_s} s")

    def when_broken(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, from any thread, when what was sent may be lost; not if this end is closed.

        It must not wait.
        """
        with self._changed:
            self._on_broken = call
            tells = self._broken is not None and not self._is_closed
        if tells:
            call()

    def _break(self, reason: str) -> None:
        with self._changed:
            tells = self._broken is None and not self._is_closed
            self._broken, self.usable = self._broken or reason, False
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # or the receiver would wait for more
        if tells:
            self._on_broken()

    def close(self, *, graceful: bool = True) -> None:
        """See :meth:`odin.stages.channel.link.Sender.close`."""
        with self._changed:
            self._is_closed = True
        if graceful and self._broken is None:
            self._outgoing.put(Header(Kind.CLOSE, 0))
            self._outgoing.put(None)
            self._thread.join(_GOODBYE_TIMEOUT_S)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
                self._listening.join(_GOODBYE_TIMEOUT_S)  # until the receiver has read everything and closed
        self._break("the channel was closed")
        self._outgoing.put(None)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._thread, self._listening):
            thread.join(_GOODBYE_TIMEOUT_S)  # before its descriptor's number can become another file's
        self._connection.close()


class TcpReceiver:
    """Downstream end; see :class:`odin.stages.channel.link.Receiver`.

    Parameters
    ----------
    connection
        An accepted TCP socket; owned from now on.
    token
        The token that the sender must show.
    readiness
        The receiving stage's.
    """

    within_machine = False

    def __init__(self, connection: socket.socket, token: bytes, readiness: Readiness) -> None:
        tune(connection)
        probe(connection, receives=True, keepalive=KEEPALIVE)
        data = bytearray(HELLO_NBYTES)
        if not _read_exactly(connection, memoryview(data)) or (hello := Hello.unpack(bytes(data), token)) is None:
            raise ChannelClosedError("a stranger knocked: wrong token")
        connection.sendall(b"+")
        connection.settimeout(None)  # before the thread starts: an idle channel must not time out
        self.memory = SlotMemory(hello.slots, hello.slot_nbytes)
        self.sender = hello.sender
        self._connection = connection
        self._readiness, self._begun, self._came_s = readiness, 0, 0.0
        self._word = readiness.take_word()  # its sender cannot write it, so the thread that collects does
        self._counted = readiness.words[self._word]
        self._told_s = math.inf  # when the stage is free, as was said last
        self._untold = b""
        self._there = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(hello.slots):
            self._free.put(slot)
        self._incoming: queue.SimpleQueue[Message | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._collect, name="odin-tcp-receive", daemon=True)
        self._thread.start()

    def receive(self) -> Message:
        """See :meth:`odin.stages.channel.link.Receiver.receive`."""
        message = self._incoming.get()
        if isinstance(message, str):
            self._incoming.put(message)
            raise ChannelClosedError(message)
        with contextlib.suppress(OSError):  # closed meanwhile
            os.eventfd_read(self._there)
        if message.header.kind is Kind.REQUEST:
            self._begun += 1
            self._came_s = message.header.sent_s  # here the time of its arrival
        return message

    take = receive

    def fileno(self) -> int:
        """See :meth:`odin.stages.channel.link.Receiver.fileno`."""
        return self._there

    def tell_readiness(self) -> None:
        """Send the stage's words to the sender; left out if the connection is full, or gone."""
        words = self._readiness.words
        idle = words[IDLE_SINCE_S] < math.inf
        own = words[self._word] - self._counted - self._begun  # requests of its own that wait here
        others = max(0, int(waiting(words) - own))
        working = -1.0 if idle else words[WORKING]
        now_s, free_s = time.perf_counter(), words[FREE_S]
        self._told_s = free_s
        with contextlib.suppress(OSError):
            if self._untold:  # the rest of one that was cut short: the sender counts bytes
                sent = self._connection.send(self._untold, socket.MSG_DONTWAIT)
                self._untold = self._untold[sent:]
            if not self._untold:
                since_s = now_s - self._came_s
                status = _STATUS.pack(free_s - now_s, words[SLOWDOWN], idle, self._begun, others, since_s, working)
                sent = self._connection.send(status, socket.MSG_DONTWAIT)
                self._untold = status[sent:]

    def tell_news(self) -> None:
        """Tell the sender if the stage is going to be free at another time; not what is over when it gets there."""
        moved_s = abs(self._readiness.words[FREE_S] - self._told_s)
        if moved_s > _NEWS_S:
            with contextlib.suppress(OSError):
                if moved_s > _delay_s(self._connection):
                    self.tell_readiness()

    def _put(self, message: Message | str) -> None:
        if isinstance(message, Message) and message.header.kind is Kind.REQUEST:
            self._readiness.words[self._word] += 1.0
        # The count first: a message that is taken before it is counted would leave the count one too high for ever, and
        # a stage with nothing to do would never say so.
        with contextlib.suppress(OSError):  # closed meanwhile
            os.eventfd_write(self._there, 1)
        self._incoming.put(message)

    def _collect(self) -> None:
        reason = "the previous stage is gone"
        try:
            while (message := self._read_message()) is not None:
                self._put(message)
        except (OSError, ValueError) as error:
            reason = f"{reason} ({error})"
        self._put(reason)

    def _read_message(self) -> Message | None:
        length = bytearray(_LENGTH.size)
        if not _read_exactly(self._connection, memoryview(length)):
            return None
        (nbytes,) = _LENGTH.unpack(length)
        if nbytes > _MAX_HEADER_NBYTES:
            raise WireError(f"header of {nbytes} bytes; at most {_MAX_HEADER_NBYTES} are allowed")
        data = bytearray(nbytes)
        if not _read_exactly(self._connection, memoryview(data)):
            return None
        header = unpack(bytes(data))
        if header.tensors:
            self.memory.check(header.tensors)
            slot = self._free.get()
            if slot is None or not _read_exactly(self._connection, self.memory.buffer(slot, _payload_nbytes(header))):
                return None
            header = header._replace(slot=slot)
        # The clocks of two machines cannot be compared: queueing counts from the arrival here.
        return Message(header._replace(sent_s=time.perf_counter()), self.memory, self._free.put)

    def close(self) -> None:
        """See :meth:`odin.stages.channel.link.Receiver.close`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._free.put(None)
        self._thread.join(_GOODBYE_TIMEOUT_S)  # before its descriptor's number can become another file's
        self._connection.close()
        there, self._there = self._there, -1
        if there >= 0:
            os.close(there)
            self._readiness.give_back_word(self._word, self._counted + self._begun)


def _read_exactly(connection: socket.socket, view: memoryview) -> bool:
    """Fill ``view``; ``False`` if the connection ends first."""
    while len(view):
        received = connection.recv_into(view)
        if received == 0:
            return False
        view = view[received:]
    return True
