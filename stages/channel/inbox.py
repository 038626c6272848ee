"""Several channels that end at one stage, or at the gateway, received from as one."""

from __future__ import annotations

import select
from collections.abc import Sequence

from odin.stages.channel.link import ChannelClosedError, Message, Receiver
from odin.stages.channel.tcp import TcpReceiver
from odin.stages.channel.wire import GATEWAY, Kind

__all__ = ["Inbox"]


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
        for descriptor in self._open:
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
        later = [descriptor for descriptor in ready if descriptor > self._last]
        self._last = min(later or ready)
        return self._last

    def close(self) -> None:
        """Close all channels, waking up a waiting :meth:`receive`. Idempotent."""
        for receiver in self.receivers:
            receiver.close()
