"""Opening a channel: the downstream end listens, the upstream end connects.

A channel is a bounded, ordered, one-way link that carries requests from one stage to the next. Within a machine
tensors lie in shared memory (:mod:`odin.stages.channel.shm`), between machines they cross TCP
(:mod:`odin.stages.channel.tcp`). Either way the sender copies once into a slot and blocks while none is free, the
receiver reads views and gives the slot back, nobody spins, and the death of either end is seen by the other at once,
because the kernel closes the socket.

Whoever can reach a port may knock at it while a channel opens. So handshakes run beside each other, each with a time
limit, and whoever shows the token wins at once.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from odin.stages.channel.link import HELLO_NBYTES, ChannelClosedError, Hello, Receiver, Sender
from odin.stages.channel.peer import is_trusted, peer_user
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.shm import ShmReceiver, ShmSender
from odin.stages.channel.tcp import TcpReceiver, TcpSender
from odin.stages.channel.wire import GATEWAY

__all__ = ["Address", "Listener", "connect", "open_ends"]

_TOKEN_NBYTES = 16
_BACKLOG = 128
"""Connections that the kernel keeps for us before :meth:`Listener.accept` is called."""
_HELLO_TIMEOUT_S = 5.0
_MAX_KNOCKING = 64
"""Most connections whose hello is awaited; beyond it, the one that has waited longest is closed."""


class Address(NamedTuple):
    """Where a stage listens: ``host`` is empty for the channel within a machine; a peer must know ``token``."""

    host: str
    port: int
    name: str
    token: bytes

    @property
    def local(self) -> bool:
        """Whether this is a shared-memory channel within one machine."""
        return not self.host


class Listener:
    """Waits for the upstream ends of channels: one, or one from each of several senders.

    Parameters
    ----------
    host
        IP address to listen on for TCP; empty for shared memory within this machine.
    readiness
        The listening stage's, which it gives to those who send; a new one without.
    """

    def __init__(self, host: str = "", readiness: Readiness | None = None) -> None:
        self._readiness, self._own = readiness or Readiness(), readiness is None
        token = secrets.token_bytes(_TOKEN_NBYTES)
        self._lock = threading.Lock()
        self._accepting = False
        self._stopped, self._stop = socket.socketpair()
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.bind((host, 0))
            self.address = Address(host, self._socket.getsockname()[1], "", token)
        else:
            # An abstract name is no file: nothing to remove, whatever happens.
            name = f"odin-{secrets.token_hex(8)}"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.bind(f"\0{name}")
            self.address = Address("", 0, name, token)
        self._socket.listen(_BACKLOG)
        self._socket.setblocking(False)

    def accept(self, timeout_s: float = 60.0) -> Receiver:
        """As :meth:`accept_all`, for one sender, whoever it is."""
        return self.accept_all(1, timeout_s)[0]

    def accept_all(
        self, count: int, timeout_s: float = 60.0, *, each: Callable[[Receiver], None] | None = None
    ) -> list[Receiver]:
        """Wait for so many upstream ends and stop listening; connections without the token are dropped.

        With ``each``, that is given them as they come, and keeps them if not all of them do.

        Raises
        ------
        ChannelClosedError
            If not enough of them, with the token, connect in time, or :meth:`close` is called meanwhile.
        """
        receivers: list[Receiver] = []
        try:
            self._accept_all(receivers, count, timeout_s, each)
        except BaseException:
            for receiver in receivers if each is None else ():
                receiver.close()
            raise
        finally:
            if self._own:
                self._readiness.close_descriptor()
        return receivers

    def _accept_all(
        self, receivers: list[Receiver], count: int, timeout_s: float, each: Callable[[Receiver], None] | None
    ) -> None:
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            if self._socket.fileno() < 0:
                raise ChannelClosedError("the channel was closed before the previous stage connected")
            self._accepting = True
        with self._socket, self._stop, self._stopped, selectors.DefaultSelector() as selector:
            knocking: dict[socket.socket, float] = {}  # and until when each may owe its hello, oldest first
            try:
                for waited_for in (self._socket, self._stopped):
                    selector.register(waited_for, selectors.EVENT_READ)
                while (now_s := time.monotonic()) < deadline_s:
                    for late in [connection for connection, until_s in knocking.items() if until_s <= now_s]:
                        _hang_up(late, knocking, selector)
                    ready = [key.fileobj for key, _ in selector.select(min([deadline_s, *knocking.values()]) - now_s)]
                    if self._stopped in ready:
                        raise ChannelClosedError("the channel was closed before the previous stage connected")
                    for connection in [connection for connection in knocking if connection in ready]:
                        receiver = self._hear(connection, knocking, selector)
                        if receiver is not None:
                            receivers.append(receiver)
                            if each is not None:
                                each(receiver)
                            if len(receivers) == count:
                                return
                    if self._socket in ready:
                        self._let_in(knocking, selector)
            finally:
                for connection in tuple(knocking):
                    _hang_up(connection, knocking, selector)
        missing = f"{len(receivers)} of {count} previous stages" if count > 1 else "no previous stage"
        raise ChannelClosedError(f"{missing} connected within {timeout_s:.0f} s")

    def _let_in(self, knocking: dict[socket.socket, float], selector: selectors.BaseSelector) -> None:
        """Accept one connection, whose hello is then awaited."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        if len(knocking) >= _MAX_KNOCKING:
            _hang_up(next(iter(knocking)), knocking, selector)
        try:
            _check_same_user(connection)
            if not self.address.local:
                # Not ready before the hello is there as a whole: one that comes in pieces keeps nobody busy.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, HELLO_NBYTES)
        except (OSError, ChannelClosedError):
            connection.close()
            return
        connection.setblocking(False)
        knocking[connection] = time.monotonic() + _HELLO_TIMEOUT_S
        selector.register(connection, selectors.EVENT_READ)

    def _hear(
        self, connection: socket.socket, knocking: dict[socket.socket, float], selector: selectors.BaseSelector
    ) -> Receiver | None:
        """Read the hello; ``None`` if the peer does not have the token."""
        selector.unregister(connection)
        del knocking[connection]
        try:
            if self.address.local:
                return ShmReceiver(connection, self.address.token, self._readiness)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return TcpReceiver(connection, self.address.token, self._readiness)
        except (OSError, ChannelClosedError):
            connection.close()
            return None

    def close(self) -> None:
        """Stop listening; wakes a waiting :meth:`accept`. Idempotent."""
        with self._lock:
            self._stop.close()
            if not self._accepting:  # otherwise the thread that accepts closes what it waits for
                self._socket.close()
                self._stopped.close()
                if self._own:
                    self._readiness.close_descriptor()


def connect(
    address: Address,
    *,
    slots: int,
    slot_nbytes: int,
    credits: bool = True,
    sender: int = GATEWAY,
    receiver: int | None = None,
    pool: SlotPool | None = None,
    queue: SharedQueue | None = None,
    timeout_s: float = 30.0,
) -> Sender:
    """Open the upstream end of a channel.

    Parameters
    ----------
    address
        Where the downstream end listens.
    slots, slot_nbytes
        Size of the ring: so many requests wait in it before :meth:`odin.stages.channel.link.Sender.send` blocks.
    credits
        Whether the receiver frees slots; without, the sender fills and frees slots itself, and posts headers.
    sender
        Who sends: a stage's index, or ``GATEWAY``.
    receiver
        Who receives, likewise: errors name it as ``peer``.
    pool
        Slots that other senders take, too; this one at most ``slots`` at a time. By TCP only without credits.
    queue
        Within this machine: the gateway's queue of new requests, in slots of the same pool, for this receiver, too.

    Raises
    ------
    ChannelClosedError
        If there is no listener, or it refuses.
    """
    hello = Hello(address.token, slots, slot_nbytes, credits, sender)
    connection: socket.socket | None = None
    try:
        if address.local:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(timeout_s)
            connection.connect(f"\0{address.name}")
            return ShmSender(connection, hello, pool, receiver, queue)
        connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
        return TcpSender(connection, hello, pool, receiver)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, OSError) and not isinstance(error, ChannelClosedError):
            remedy = " (processes that do not share a network namespace need transport='tcp')" if address.local else ""
            where = address.name if address.local else f"{address.host}:{address.port}"
            raise ChannelClosedError(f"cannot connect to the stage at {where}: {error}{remedy}") from error
        raise


def open_ends(
    listeners: Sequence[tuple[Listener, int]], connecting: Sequence[Callable[[], Sender]]
) -> tuple[list[Sender], list[Receiver]]:
    """Connect to those behind in the ring of stages and gateway, and accept those before, all at once.

    Each accepts only while it connects onwards itself, so one after the other would wait in a circle.

    Parameters
    ----------
    listeners
        And how many senders each is to accept.
    connecting
        Each opens one channel, as by :func:`connect`.

    Raises
    ------
    ChannelClosedError
        As :func:`connect` and :meth:`Listener.accept_all`.
    """
    with ExitStack() as opened, ThreadPoolExecutor(max(1, len(listeners))) as pool:
        senders: list[Sender] = []
        receivers: list[Receiver] = []

        def accept(listener: Listener, count: int) -> None:
            for receiver in listener.accept_all(count):
                receivers.append(receiver)
                opened.callback(receiver.close)

        accepting = [pool.submit(accept, listener, count) for listener, count in listeners]
        try:
            for open_sender in connecting:
                senders.append(open_sender())
                opened.callback(senders[-1].close, graceful=False)
            for accepted in accepting:
                accepted.result()
        except BaseException:
            for listener, _ in listeners:  # nobody waits for the previous stages any more
                listener.close()
            raise
        opened.pop_all()
        return senders, receivers


def _hang_up(connection: socket.socket, knocking: dict[socket.socket, float], selector: selectors.BaseSelector) -> None:
    selector.unregister(connection)
    del knocking[connection]
    connection.close()


def _check_same_user(connection: socket.socket) -> None:
    """Refuse another user's process on a Unix socket: it could map this process's memory."""
    user = peer_user(connection)
    if not is_trusted(user):
        raise ChannelClosedError(f"a process of user {user} knocked")
