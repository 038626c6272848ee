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
    def recalled(self) -> bool:
        """Whether the sender has recalled the request, which is possible within one machine only."""
        return bool(self.header.tensors) and self._memory.is_recalled(self.header.slot)

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

    @property
    def readiness(self) -> Readiness:
        """What the receiving stage tells of itself."""

    @property
    def has_place(self) -> bool:
        """Whether :meth:`send` would not wait: there is a free slot, or the receiver is gone."""

    def send(self, header: Header, tensors: Sequence[Any] = ()) -> int:
        """Copy arrays of whichever kind to a slot, waiting for a free one, and send the header; returns the slot.

        Raises
        ------
        ChannelClosedError
            If the receiver is gone.
        ValueError
            If they do not fit a slot, or are of a type that cannot travel.
        """

    def release(self, slot: int) -> None:
        """Free a slot; only for channels opened without credits."""

    def sent(self, request: int) -> int | None:
        """Slot of the request sent last, if it is this one; ``None`` if it has not left, and took no slot.

        To be asked when something else than an error of the channel has come out of :meth:`send`, such as a signal
        handler's exception; only for channels opened without credits.
        """

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

    def fileno(self) -> int:
        """Return the descriptor that can be read from whenever :meth:`receive` would not wait."""

    def receive(self) -> Message:
        """Wait for the next message, using no CPU.

        Raises
        ------
        ChannelClosedError
            If the sender is gone without a goodbye, or :meth:`close` was called.
        """

    def close(self) -> None:
        """Close, waking up a waiting :meth:`receive`. Idempotent."""
