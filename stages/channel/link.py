"""What both kinds of channel share: their errors, messages and opening handshake."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from odin.stages.channel.arrays import ArrayKind
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.way import Way
from odin.stages.channel.wire import GATEWAY, Header

__all__ = ["HELLO_NBYTES", "ChannelClosedError", "Hello", "Message", "Receiver", "Sender"]

_HELLO = struct.Struct("<16sIQ?i")
HELLO_NBYTES = _HELLO.size


class ChannelClosedError(ConnectionError):
    """The other end of a channel is gone, or this end was closed.

    Attributes
    ----------
    peer
        Who is gone, where there are several: a stage's index, or ``GATEWAY``.
    """

    peer: int | None = None


class Hello(NamedTuple):
    """First message of a channel, sent by its upstream end.

    Attributes
    ----------
    token
        16 secret bytes that the listener handed out; a stranger's connection is refused.
    slots, slot_nbytes
        Size of the ring.
    credits
        Whether the receiver gives each slot back (otherwise the sender itself knows when a slot is free).
    sender
        Index of the stage that sends, or ``GATEWAY``.
    """

    token: bytes
    slots: int
    slot_nbytes: int
    credits: bool
    sender: int = GATEWAY

    def pack(self) -> bytes:
        """Encode."""
        return _HELLO.pack(*self)

    @classmethod
    def unpack(cls, data: bytes, token: bytes) -> Hello | None:
        """Decode; ``None`` if the token is not ``token``."""
        if len(data) != _HELLO.size:
            return None
        hello = cls(*_HELLO.unpack(data))
        return hello if hmac.compare_digest(hello.token, token) else None


class Message:
    """A received header with its arrays, which are views of a slot until :meth:`release`."""

    __slots__ = ("_memory", "_release", "header")

    def __init__(self, header: Header, memory: SlotMemory, release: Callable[[int], None]) -> None:
        self.header = header
        self._memory = memory
        self._release = release

    def read(self, kind: ArrayKind) -> tuple[Any, ...]:
        """Views of the slot as arrays of a kind; do not use them after :meth:`release`.

        Raises
        ------
        ValueError
            If that kind of arrays does not have a dtype.
        """
        return self._memory.read(self.header.slot, self.header.tensors, kind)

    @property
    def tensors(self) -> tuple[Any, ...]:
        """:meth:`read` as PyTorch tensors."""
        return self.read("torch")

    @property
    def wanted(self) -> bool:
        """Whether the gateway waits for this attempt of the request, as far as is known in the memory that it is in."""
        header = self.header
        return not header.tensors or self._memory.is_current(header.slot, header.request, header.attempt)

    def release(self) -> None:
        """Give the slot back to the sender. To be called once."""
        if self.header.tensors:
            self._release(self.header.slot)


class Sender(Protocol):
    """The upstream end of a channel."""

    @property
    def memory(self) -> SlotMemory:
        """The slots that tensors are copied into."""

    way: Way | None
    """What is known of the way to another machine; None within this one."""

    usable: bool
    """Whether nothing is known against sending: the receiver is not known to be gone, nor is it abandoned."""

    @property
    def readiness(self) -> Readiness:
        """What the receiving stage tells of itself."""

    @property
    def has_place(self) -> bool:
        """Whether :meth:`send` would not wait; not if the receiver is gone or abandoned."""

    def send(self, header: Header, tensors: Sequence[Any] = ()) -> int:
        """Copy arrays of whichever kind to a slot, waiting for a free one, and send the header; returns the slot.

        Raises
        ------
        ChannelClosedError
            If the receiver is gone, or :meth:`abandon` was called, before or while this waits for a slot.
        ValueError
            If they do not fit a slot, or are of a type that cannot travel.
        """

    def post(self, header: Header) -> None:
        """Send a header whose tensors the caller has written into the memory; only for channels without credits.

        Never waits. If anything else than an error of the channel comes out of it, such as a signal handler's
        exception, the message may have left or not. All calls, :meth:`push` included, are to be made under one lock.

        Raises
        ------
        ChannelClosedError
            If the receiver is gone.
        """

    def push(self) -> None:
        """Send on what could not leave when it was posted; to be called with each answer. Never waits."""

    def abandon(self) -> None:
        """Make :meth:`send` fail, from any thread, also if it is waiting for a slot. Idempotent."""

    def resume(self) -> None:
        """Undo :meth:`abandon`. Idempotent."""

    def close(self, *, graceful: bool = True) -> None:
        """Say goodbye (if ``graceful``) after everything sent has been received, and close. Idempotent."""


class Receiver(Protocol):
    """The downstream end of a channel."""

    @property
    def memory(self) -> SlotMemory:
        """The slots that received tensors lie in."""

    @property
    def sender(self) -> int:
        """Who sends: a stage's index, or ``GATEWAY``."""

    within_machine: bool
    """Whether the sender's memory is shared."""

    def fileno(self) -> int:
        """Return the descriptor that can be read from whenever :meth:`receive` would not wait."""

    def receive(self) -> Message:
        """Wait for the next message, using no CPU.

        Raises
        ------
        ChannelClosedError
            If the sender is gone without a goodbye, or :meth:`close` was called.
        """

    def take(self) -> Message | None:
        """As :meth:`receive`; None instead of a message that the sender was interrupted at and has sent twice."""

    def close(self) -> None:
        """Close, waking up a waiting :meth:`receive`. Idempotent."""
