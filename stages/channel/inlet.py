"""The gateway's sending side: the slots that hold inputs, and the ways by which requests enter the stages.

There is a channel to each stage, and where all stages are CPUs of the gateway's node a queue that they share. All send
from the same slots, so that what was sent one way can be sent again another way. A stage may be lost and replaced; the
slots stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from odin.partitioner.relay import Windows
from odin.stages.channel.link import Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.wire import Header, TensorMeta

__all__ = ["InForce", "Inlet", "Way"]


class Way(Protocol):
    """By which a request enters: a stage's channel, or the queue."""

    def post(self, header: Header) -> None:
        """Send a request whose input lies in its slot; never waits."""

    def push(self) -> None:
        """Send on what there was no room for; to be called when an answer is there."""


class InForce(NamedTuple):
    """Under what a request runs.

    Attributes
    ----------
    epoch
        Its number.
    stages
        Indices of the stages that take part.
    windows
        Where each of these may hand over: one row per stage that takes part.
    """

    epoch: int
    stages: tuple[int, ...]
    windows: Windows


class Inlet:
    """Slots and ways.

    Parameters
    ----------
    pool
        The slots; owned from now on.
    senders
        Channel to each stage, by index; opened without credits, over the pool.
    queue
        From which all stages take by themselves, in slots of the same pool.
    """

    def __init__(self, pool: SlotPool, senders: dict[int, Sender], queue: SharedQueue | None = None) -> None:
        self.pool = pool
        self.senders = senders
        self.queue = queue

    @property
    def slots(self) -> int:
        """Requests that can be under way."""
        return self.pool.memory.slots

    def write(self, slot: int, tensors: Sequence[Any]) -> tuple[TensorMeta, ...]:
        """Copy an input into a slot.

        Raises
        ------
        ValueError
            If it does not fit.
        """
        return self.pool.memory.write(slot, tensors)

    def write_rows(self, slot: int, parts: Sequence[Sequence[Any]]) -> tuple[TensorMeta, ...]:
        """Copy the inputs of several requests into a slot, as one input; errors as of :meth:`write`."""
        return self.pool.memory.write_rows(slot, parts)

    def read(self, slot: int, metas: Sequence[TensorMeta]) -> tuple[Any, ...]:
        """Views of an input in its slot, valid until that is used again."""
        return self.pool.memory.read(slot, metas)

    def way_under(self, in_force: InForce) -> Way | None:
        """Where new requests go; None while there is nobody to take them.

        Whoever takes one from the queue may keep it, whatever windows hold for later ones.
        """
        if self.queue is not None and in_force.windows.all_begin:
            return self.queue
        for stage, (first, last) in zip(in_force.stages, _ranges(in_force.windows), strict=True):
            if first < last:
                return self.senders.get(stage)
        return None

    def mark(self, slot: int, request: int, attempt: int) -> None:
        """Say whose input lies in a slot: other attempts at it, and earlier requests, are not begun any more."""
        self.pool.memory.set_tag(slot, request, attempt)

    def unmark(self, slot: int) -> None:
        """Say that nobody waits for what is in a slot."""
        self.pool.memory.clear_tag(slot)

    def holders(self, slot: int, request: int, attempt: int) -> tuple[int, ...]:
        """Which stage has an attempt: one, two while it is handed over, none if that is not known."""
        return self.pool.memory.holders(slot, request, attempt)

    def is_here(self, stage: int) -> bool:
        """Whether a stage is on this machine: then it reads marks, and says what it has."""
        sender = self.senders.get(stage)
        return sender is not None and sender.way is None

    def silence(self, stage: int) -> None:
        """A stage is gone, or hangs: what it said of itself last does not count."""
        if self.queue is not None:
            self.queue.forget(stage)

    def connect(self, stage: int, sender: Sender) -> None:
        """Take the channel to a stage that has been replaced."""
        self.disconnect(stage)
        self.senders[stage] = sender

    def disconnect(self, stage: int) -> None:
        """Forget the channel to a stage that is gone. Idempotent."""
        sender = self.senders.pop(stage, None)
        if sender is not None:
            sender.close(graceful=False)

    def close(self, *, graceful: bool, silent: Iterable[int] = ()) -> None:
        """Say goodbye to all stages, without waiting for those that are ``silent``. Idempotent."""
        if self.queue is not None:
            self.queue.close()
        unheard = set(silent)
        for stage, sender in list(self.senders.items()):
            sender.close(graceful=graceful and stage not in unheard)
        self.pool.close()


def _ranges(windows: Windows) -> list[tuple[int, int]]:
    return [windows.range_of(row) for row in range(len(windows))]
