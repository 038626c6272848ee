"""Several channels that end at one stage, or at the gateway, received from as one."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence

from odin.stages.channel.link import ChannelClosedError, Message, Receiver
from odin.stages.channel.tcp import TcpReceiver
from odin.stages.channel.wire import GATEWAY, Kind

__all__ = ["Inbox"]

_CAUSE_S = 1.0
"""Longest wait for what a stage that another calls gone has said itself. If it died its channel ends at once."""


class Inbox:
    """Receives from whichever channel has a message; each channel's messages stay in their order.

    Parameters
    ----------
    receivers
        Owned from now on.
    """

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self.receivers = tuple(receivers)
        self._open = {receiver.fileno(): receiver for receiver in receivers}
        self._poll = select.poll()
        # Closed descriptors' numbers may become other files' before who waits looks at them again; this one stays.
        self._closed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for descriptor in (self._closed, *self._open):
            self._poll.register(descriptor, select.POLLIN)
        self._telling = [one for one in receivers if isinstance(one, TcpReceiver) and one.sender != GATEWAY]
        self._last = -1  # descriptor of the one that was served last

    def receive(self) -> Message:
        """Wait for the next message, using no CPU; a goodbye only once all senders have said it.

        Raises
        ------
        ChannelClosedError
            If a sender is gone without a goodbye (``peer`` tells which), or :meth:`close` was called.
        """
        while True:
            descriptor = self._next()
            receiver = self._open[descriptor]
            try:
                message = receiver.receive()
            except ChannelClosedError as error:
                error.peer = receiver.sender
                raise
            if message.header.kind is Kind.CLOSE and len(self._open) > 1:
                del self._open[descriptor]
                self._poll.unregister(descriptor)
                receiver.close()  # its sender waits for that
                continue
            return message

    @property
    def has_message(self) -> bool:
        """Whether :meth:`receive` would find one at once."""
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
        """Descriptor of a channel with a message, in turn if several have one."""
        if len(self._open) == 1:
            (only,) = self._open
            return only
        ready = [descriptor for descriptor, _ in self._poll.poll()]
        if self._closed in ready:
            raise ChannelClosedError("the channel was closed")
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
