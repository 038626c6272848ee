"""Several channels that end at one stage, or at the gateway, received from as one."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections.abc import Callable, Sequence

from odin.stages.channel.link import ChannelClosedError, Message, Receiver
from odin.stages.channel.shared_queue import QueueEnd
from odin.stages.channel.shm import ShmReceiver
from odin.stages.channel.tcp import TcpReceiver
from odin.stages.channel.wire import GATEWAY, Kind

__all__ = ["Inbox"]

_CAUSE_S = 1.0
"""Longest wait for what a stage that another calls gone has said itself. If it died its channel ends at once."""

_LEAVE_MS = 5
"""How often to look whether others have taken what was left to them."""


class Inbox:
    """Receives from whichever channel has a message; each channel's messages stay in their order.

    Parameters
    ----------
    receivers
        Owned from now on.

    Attributes
    ----------
    queue
        The gateway's queue of new requests, if it came with one of them.
    """

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self.receivers = tuple(receivers)
        self._open = {receiver.fileno(): receiver for receiver in receivers}
        self._poll, self._channels = select.poll(), select.poll()
        # Closed descriptors' numbers may become other files' before who waits looks at them again; this one stays.
        self._closed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for descriptor in (self._closed, *self._open):
            self._poll.register(descriptor, select.POLLIN)
            self._channels.register(descriptor, select.POLLIN)
        self.queue: QueueEnd | None = None
        self._queue_descriptor = -1
        for receiver in receivers:
            if isinstance(receiver, ShmReceiver) and receiver.queue is not None:
                self.queue, receiver.queue = receiver.queue, None
                self._queue_descriptor = self.queue.fileno()
                self._poll.register(self._queue_descriptor, select.POLLIN)
        self._goodbye: Message | None = None  # the last one, while the queue has not ended
        self._telling = [one for one in receivers if isinstance(one, TcpReceiver) and one.sender != GATEWAY]
        self._last = -1  # descriptor of the one that was served last

    def receive(
        self,
        rest: Callable[[], None] | None = None,
        leaves: Callable[[float], bool] = lambda waited_s: False,
        *,
        stage: int = 0,
    ) -> Message:
        """Wait for the next message, using no CPU; a goodbye only once all senders have said it.

        What waits in the gateway's queue comes after all that channels have.

        Parameters
        ----------
        rest
            Called before there is a wait.
        leaves
            Asked whether to leave what waits in the queue to others, with the seconds for which it was left already.
        stage
            Who takes from the queue.

        Raises
        ------
        ChannelClosedError
            If a sender is gone without a goodbye (``peer`` tells which), or :meth:`close` was called.
        """
        left_s = math.inf
        while True:
            if self._goodbye is not None and self._queue_descriptor < 0:
                return self._goodbye
            if rest is not None and not self.has_message:
                rest()
                rest = None
            descriptor = self._next()
            if descriptor == self._queue_descriptor:
                now_s = time.monotonic()
                left_s = min(left_s, now_s)
                if leaves(now_s - left_s):
                    self._channels.poll(_LEAVE_MS)
                    if all(ready != self._queue_descriptor for ready, _ in self._poll.poll(0)):
                        left_s = math.inf  # they have
                elif (taken := self._take(stage)) is not None:
                    return taken
                continue
            receiver = self._open[descriptor]
            try:
                message = receiver.receive()
            except ChannelClosedError as error:
                error.peer = receiver.sender
                raise
            if message.header.kind is Kind.CLOSE and (len(self._open) > 1 or self._queue_descriptor >= 0):
                if len(self._open) == 1:
                    self._goodbye = message
                self._drop(descriptor)
                continue
            return message

    def _drop(self, descriptor: int) -> None:
        """Close a channel whose sender has said goodbye, and waits for that."""
        self._poll.unregister(descriptor)
        self._channels.unregister(descriptor)
        self._open.pop(descriptor).close()

    def _take(self, stage: int) -> Message | None:
        """Take from the queue, if no other stage was quicker."""
        queue = self.queue
        assert queue is not None
        taken = queue.take(stage)
        if queue.has_ended:  # how the gateway ended, its channel says
            self._poll.unregister(self._queue_descriptor)
            self._queue_descriptor = -1
        return taken

    @property
    def has_message(self) -> bool:
        """Whether :meth:`receive` would find one at once, or another stage is as likely to."""
        return bool(self._poll.poll(0))

    def tell_readiness(self) -> None:
        """Tell senders on other machines what those on this one can read."""
        for receiver in self._telling:
            receiver.tell_readiness()

    @property
    def tells(self) -> bool:
        """Whether there are such senders."""
        return bool(self._telling)

    def tell_news(self) -> None:
        """Tell them if that has changed by more than matters, between two layers."""
        for receiver in self._telling:
            receiver.tell_news()

    def _next(self) -> int:
        """Wait for a channel with a message, in turn if several have one, or for the queue if no channel has."""
        if len(self._open) == 1 and self._queue_descriptor < 0:
            return next(iter(self._open))
        ready = [descriptor for descriptor, _ in self._poll.poll()]
        if self._closed in ready:
            raise ChannelClosedError("the channel was closed")
        if self._queue_descriptor in ready:
            ready.remove(self._queue_descriptor)
            if not ready:
                return self._queue_descriptor
        later = [descriptor for descriptor in ready if descriptor > self._last]
        self._last = min(later or ready)
        return self._last

    def cause_of_loss(self, stage: int) -> int:
        """Who is gone, if one stage calls another gone: that one may only have closed, since it lost a third.

        To be called when nothing more is to be received: messages of the stages that are asked are dropped.
        """
        asked: set[int] = set()
        while stage not in asked:
            asked.add(stage)
            for descriptor, receiver in self._open.items():
                if receiver.sender == stage:
                    stage = _last_word(receiver, descriptor, stage)
                    break
        return stage

    def close(self) -> None:
        """Close all channels, waking up a waiting :meth:`receive`. Idempotent."""
        os.eventfd_write(self._closed, 1)
        for receiver in self.receivers:
            receiver.close()
        if self.queue is not None:
            self.queue.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._closed)


def _last_word(receiver: Receiver, descriptor: int, stage: int) -> int:
    """Whom a stage has lost, as it says itself; the stage itself if it ends otherwise, or says nothing."""
    poll, end_s = select.poll(), time.monotonic() + _CAUSE_S
    poll.register(descriptor, select.POLLIN)
    with contextlib.suppress(ChannelClosedError):
        while poll.poll(max(0.0, 1e3 * (end_s - time.monotonic()))):
            message = receiver.receive()
            if message.header.kind is Kind.LOST:
                return message.header.request
            if message.header.kind is Kind.CLOSE:
                break
            message.release()
    return stage
