"""Opening a channel: the downstream end listens, the upstream end connects.

A channel is a bounded, ordered, one-way link that carries requests from one stage to the next. Within a machine
tensors lie in shared memory (:mod:`stages.shm`), between machines they cross TCP (:mod:`stages.tcp`). Either way the
sender copies once into a slot and blocks while none is free, the receiver reads views and gives the slot back, nobody
spins, and the death of either end is seen by the other at once, because the kernel closes the socket.
"""

from __future__ import annotations

import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from stages.link import ChannelClosedError, Hello, Receiver, Sender
from stages.peer import is_trusted, peer_user
from stages.shm import ShmReceiver, ShmSender
from stages.tcp import TcpReceiver, TcpSender

__all__ = ["Address", "Listener", "connect", "open_ends"]

_TOKEN_NBYTES = 16


class Address(NamedTuple):
    """Where a stage listens: ``host`` is empty for the channel within a machine; ``token`` opens the door."""

    host: str
    port: int
    name: str
    token: bytes

    @property
    def local(self) -> bool:
        """Whether this is a shared-memory channel within one machine."""
        return not self.host


class Listener:
    """Waits for the one upstream end of a channel.

    Parameters
    ----------
    host
        IP address to listen on for TCP; empty for shared memory within this machine.
    """

    def __init__(self, host: str = "") -> None:
        token = secrets.token_bytes(_TOKEN_NBYTES)
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
        self._socket.listen(4)

    def accept(self, timeout_s: float = 60.0) -> Receiver:
        """Wait for the upstream end and stop listening; connections without the token are dropped.

        Raises
        ------
        ChannelClosedError
            If nobody with the token connects in time.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._socket:
            while (left_s := deadline_s - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    break
                try:
                    connection.settimeout(min(5.0, left_s))
                    _check_same_user(connection)
                    token = self.address.token
                    return ShmReceiver(connection, token) if self.address.local else TcpReceiver(connection, token)
                except (OSError, ChannelClosedError):
                    connection.close()
        raise ChannelClosedError(f"no previous stage connected within {timeout_s:.0f} s")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def connect(address: Address, *, slots: int, slot_nbytes: int, credits: bool = True, timeout_s: float = 30.0) -> Sender:
    """Open the upstream end of a channel.

    Parameters
    ----------
    address
        Where the downstream end listens.
    slots, slot_nbytes
        Size of the ring: so many requests wait in it before :meth:`stages.link.Sender.send` blocks.
    credits
        Whether the receiver frees slots; without, the sender calls ``release`` itself.

    Raises
    ------
    ChannelClosedError
        If there is no listener, or it refuses.
    """
    hello = Hello(address.token, slots, slot_nbytes, credits)
    connection: socket.socket | None = None
    try:
        if address.local:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(timeout_s)
            connection.connect(f"\0{address.name}")
            return ShmSender(connection, hello)
        connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
        return TcpSender(connection, hello)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, OSError) and not isinstance(error, ChannelClosedError):
            remedy = " (processes that do not share a network namespace need transport='tcp')" if address.local else ""
            where = address.name if address.local else f"{address.host}:{address.port}"
            raise ChannelClosedError(f"cannot connect to the stage at {where}: {error}{remedy}") from error
        raise


def open_ends(
    listener: Listener, next_address: Address, *, slots: int, slot_nbytes: int, credits: bool = True
) -> tuple[Sender, Receiver]:
    """Connect to the next in the ring of stages and gateway, and accept the previous one, both at once.

    Each accepts only while it connects onwards itself, so one after the other would wait in a circle.

    Raises
    ------
    ChannelClosedError
        As :func:`connect` and :meth:`Listener.accept`.
    """
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept)
        sender = connect(next_address, slots=slots, slot_nbytes=slot_nbytes, credits=credits)
        return sender, accepting.result()


def _check_same_user(connection: socket.socket) -> None:
    """Refuse another user's process on a Unix socket; the memory it would map is ours."""
    user = peer_user(connection)
    if not is_trusted(user):
        raise ChannelClosedError(f"a process of user {user} knocked")
