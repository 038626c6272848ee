"""Slots of one shared memory that several senders take from, while receivers come, die and hang."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from odin.stages.channel.slots import SlotMemory, allocate_memfd
from odin.stages.channel.wire import GATEWAY

__all__ = ["PoolSender", "SlotPool"]


class PoolSender(Protocol):
    """What a pool needs of its senders."""

    receiver: int | None
    limit: int
    owed: set[int]
    usable: bool

    def fileno(self) -> int:
        """Return the descriptor that credits come from."""

    def check(self) -> None:
        """Raise ``ChannelClosedError`` unless the channel can be used."""

    def read_credits(self) -> Sequence[int] | None:
        """Slots that the receiver has done with, without waiting; None if it is gone."""

    def end(self, why: str = "") -> None:
        """Nothing can be sent any more."""

    def close_connection(self) -> None:
        """Close the descriptor."""


class SlotPool:
    """Slots of one shared memory.

    One thread sends. Others may add senders, abandon and close them, whenever they want; they wake up the thread that
    waits for a slot, and what it polls is closed by nobody else.

    Without credits (the gateway) whoever sends takes slots from ``free`` and puts them back by itself.

    Parameters
    ----------
    slots, slot_nbytes
        Size of the memory.

    Attributes
    ----------
    descriptor
        Of the memory, for receivers, until :meth:`close`.
    free
        Numbers of the slots that nobody has.
    senders
        Those that take slots and whose receivers give them back.
    """

    def __init__(self, slots: int, slot_nbytes: int) -> None:
        self.descriptor = self._wake = -1
        self.descriptor = allocate_memfd(SlotMemory.total_nbytes(slots, slot_nbytes))
        try:
            self.memory = SlotMemory(slots, slot_nbytes, descriptor=self.descriptor)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except BaseException:
            self.close()
            raise
        self.free = deque(reversed(range(slots)))
        self.senders: list[PoolSender] = []
        self._lock = threading.Lock()  # held by the thread that looks for credits
        self._retired: deque[PoolSender] = deque()

    def close(self) -> None:
        """Give the memory to no more receivers. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()
        if self._wake >= 0:  # not before: another thread may be about to wake one up
            os.close(self._wake)

    def take(self, sender: PoolSender) -> int:
        """Take a slot, waiting for a free one. The one that was free last is the most likely still in a cache.

        Raises
        ------
        ChannelClosedError
            If the sender cannot be used (any more).
        """
        while True:
            sender.check()
            if self.has_slot_for(sender):
                slot = self.free.pop()
                sender.owed.add(slot)
                return slot
            self._wait(sender)

    def give_back(self, sender: PoolSender, slot: int) -> None:
        """Take back a slot that was not sent."""
        if slot in sender.owed:
            sender.owed.discard(slot)
            self.free.append(slot)

    def has_slot_for(self, sender: PoolSender) -> bool:
        """Whether there is a free slot that a sender may have: a stage that hangs keeps its own, so the last one is
        for answers.
        """
        if len(sender.owed) >= sender.limit:
            return False
        kept = 0
        if sender.receiver != GATEWAY:
            kept = sum(one.receiver == GATEWAY and not one.owed for one in self.senders)
        return len(self.free) > kept

    def look(self, sender: PoolSender) -> None:
        """See without waiting what has been given back, and whether the receiver is gone."""
        with self._lock:
            self._settle()
            self._read(sender)
            if not self.has_slot_for(sender):
                for other in tuple(self.senders):
                    if other.owed:
                        self._read(other)

    def _wait(self, sender: PoolSender) -> None:
        """Wait until some slot is given back, a receiver that has some is gone, or :meth:`wake` is called."""
        with self._lock:
            self._settle()
            poll, polled = select.poll(), dict[int, PoolSender]()
            poll.register(self._wake, select.POLLIN)
            for one in tuple(self.senders):
                if one.owed or one is sender:
                    polled[one.fileno()] = one
                    poll.register(one.fileno(), select.POLLIN)
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                else:
                    self._read(polled[descriptor])
            self._settle()

    def _read(self, sender: PoolSender) -> None:
        if sender not in self.senders:
            return
        given_back = sender.read_credits()
        if given_back is None:
            self._remove(sender)
            return
        for slot in given_back:
            self.give_back(sender, slot)

    def drop(self, sender: PoolSender, why: str) -> None:
        """The receiver is gone: its slots are free. By the thread that sends."""
        with self._lock:
            self._remove(sender, why)

    def retire(self, sender: PoolSender) -> None:
        """A sender was closed, by any thread: its slots are free as soon as nobody polls its descriptor."""
        self._retired.append(sender)
        self.wake()
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def wake(self) -> None:
        """Make the thread that waits for a slot look again whether it may go on waiting. From any thread."""
        os.eventfd_write(self._wake, 1)

    def _settle(self) -> None:
        while self._retired:
            self._remove(self._retired.popleft())

    def _remove(self, sender: PoolSender, why: str = "") -> None:
        sender.end(why)
        if sender in self.senders:
            self.senders.remove(sender)
            self.free.extend(sorted(sender.owed, reverse=True))
            sender.owed.clear()
        sender.close_connection()
