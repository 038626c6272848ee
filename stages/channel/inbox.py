"""Several channels that end at one stage, or at the gateway, received from as one, while channels come and go."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable

from odin.stages.channel.link import ChannelClosedError, Message, Receiver
from odin.stages.channel.shared_queue import QueueEnd
from odin.stages.channel.shm import ShmReceiver
from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.tcp import TcpReceiver
from odin.stages.channel.wire import GATEWAY, Kind

__all__ = ["Inbox"]

_LEAVE_MS, _SOON_MS = 5, 1
"""How often to look whether others have taken what was left to them; the first time sooner."""
_SIGN_OF_LIFE_MS = 250
"""How often a stage that waits says so to a gateway on another machine, which learns of a cut wire by that."""


class Inbox:
    """Receives from whichever channel has a message; each channel's messages stay in their order.

    One thread receives. Others may add and drop channels meanwhile: it does that itself, as soon as it looks again.

    Parameters
    ----------
    receivers
        Owned from now on.

    Attributes
    ----------
    queue
        The gateway's queue of new requests, if it came with one of them.
    home
        The gateway's slots, if its channel is within this machine.
    """

    def __init__(self, receivers: Iterable[Receiver] = ()) -> None:
        self._open: dict[int, Receiver] = {}
        self._poll, self._channels = select.poll(), select.poll()
        # Closed descriptors' numbers may become other files' before who waits looks at them again; this one stays.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for poll in (self._poll, self._channels):
            poll.register(self._wake, select.POLLIN)
        self._changes: deque[Callable[[], None]] = deque()
        self._own: deque[Message] = deque()
        self._is_closed = False
        self.queue: QueueEnd | None = None
        self.home: SlotMemory | None = None
        self._queue_descriptor = -1
        self._takes, self._queue_first = True, False
        self._has_gateway = False  # ever: this is a stage's
        self._goodbye: Message | None = None
        self._told: Collection[int] | None = None
        self._telling: tuple[TcpReceiver, ...] = ()
        self._news: tuple[TcpReceiver, ...] = ()
        self._far_gateway: tuple[TcpReceiver, ...] = ()
        self._last = -1  # descriptor of the one that was served last
        for receiver in receivers:
            self._register(receiver)

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """The channels that are open."""
        return tuple(self._open.values())

    # -- from any thread ----------------------------------------------------------------------------------------------

    def add(self, receiver: Receiver) -> None:
        """Receive from one more channel, which is owned from now on."""
        self._change(lambda: self._register(receiver))
        if self._is_closed:  # nobody looks any more
            receiver.close()

    def drop(self, sender: int) -> None:
        """Close and forget the channels from a stage, with all that it has sent: another one takes its place."""

        def forget() -> None:
            for descriptor, receiver in tuple(self._open.items()):
                if receiver.sender == sender:
                    self._forget(descriptor)

        self._change(forget)

    def bring(self, message: Message) -> None:
        """Have a message of this stage's own received, before those that wait."""
        self._change(lambda: self._own.append(message))

    def tell_to(self, stages: Collection[int]) -> None:
        """Tell these stages, if they are on other machines, and the gateway, of this stage's readiness; first all."""

        def note() -> None:
            self._told = stages
            self._note_whom_to_tell()

        self._change(note)

    def take_new(self, takes: bool, *, first: bool = False, note: Callable[[], None] = lambda: None) -> None:
        """Take from the gateway's queue from now on, or leave all that is there to others, without looking at it.

        Parameters
        ----------
        takes
            Whether to take.
        first
            Take from it before all channels: new requests come by these, so what is left in the queue is older.
        note
            Called by the thread that receives, when it is so.
        """

        def change() -> None:
            if self._queue_descriptor >= 0 and takes != self._takes:
                if takes:
                    self._poll.register(self._queue_descriptor, select.POLLIN)
                else:
                    self._poll.unregister(self._queue_descriptor)
            self._takes, self._queue_first = takes, first
            note()

        self._change(change)

    def _change(self, change: Callable[[], None]) -> None:
        self._changes.append(change)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close all channels, waking up a waiting :meth:`receive`. Idempotent."""
        self._is_closed = True
        os.eventfd_write(self._wake, 1)
        for receiver in self.receivers:
            receiver.close()
        if self.queue is not None:
            self.queue.close()
        while self._changes:  # channels that were added late
            with contextlib.suppress(IndexError):
                self._changes.popleft()()

    # -- by the thread that receives ----------------------------------------------------------------------------------

    def receive(
        self,
        rest: Callable[[], None] | None = None,
        leaves: Callable[[float], bool] = lambda waited_s: False,
        *,
        stage: int = 0,
    ) -> Message:
        """Wait for the next message, using no CPU; next to none while a gateway on another machine is to be told.

        What waits in the gateway's queue comes after all that channels have, unless :meth:`take_new` says otherwise. A
        stage gets a goodbye when the gateway has said it and its queue has ended, if it takes from that, whatever other
        stages do. The gateway gets one when all channels have ended and a stage has said goodbye.

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
            If a sender is gone without a goodbye (``peer`` tells which): once for each; the others' messages follow.
            Without a ``peer``, if :meth:`close` was called.
        """
        left_s = math.inf
        while True:
            self._check_open()
            taken_all = self._queue_descriptor < 0 or not self._takes
            if self._goodbye is not None and taken_all and (self._has_gateway or not self._open):
                return self._goodbye
            ready = self._ready(0)
            if self._own:
                return self._own.popleft()
            if not ready:
                if rest is not None:
                    rest()
                    rest = None
                ready = self._ready(_SIGN_OF_LIFE_MS if self._far_gateway else None)
                if not ready:
                    for receiver in self._far_gateway:
                        receiver.tell_readiness()
            descriptor = self._choose(ready)
            if descriptor is None:
                continue
            if descriptor == self._queue_descriptor:
                now_s = time.monotonic()
                left_s = min(left_s, now_s)
                if not self._queue_first and leaves(now_s - left_s):
                    self._channels.poll(_LEAVE_MS if now_s > left_s else _SOON_MS)
                    if all(one != self._queue_descriptor for one, _ in self._poll.poll(0)):
                        left_s = math.inf  # they have
                elif (taken := self._take(stage)) is not None:
                    return taken
                continue
            message = self._receive_from(descriptor)
            if message is not None:
                return message

    def _receive_from(self, descriptor: int) -> Message | None:
        receiver = self._open[descriptor]
        try:
            message = receiver.take()
        except ChannelClosedError as error:
            self._check_open()
            self._forget(descriptor)
            error.peer = receiver.sender
            raise
        if message is None or message.header.kind is not Kind.CLOSE:
            return message
        if receiver.sender == GATEWAY or not self._has_gateway:
            self._goodbye = message
        self._forget(descriptor)
        return None

    def _register(self, receiver: Receiver) -> None:
        if self._is_closed:
            receiver.close()
            return
        descriptor = receiver.fileno()
        self._open[descriptor] = receiver
        self._poll.register(descriptor, select.POLLIN)
        self._channels.register(descriptor, select.POLLIN)
        if receiver.sender == GATEWAY:
            self._has_gateway = True
            if receiver.within_machine:
                self.home = receiver.memory
        if isinstance(receiver, ShmReceiver) and receiver.queue is not None:
            self.queue, receiver.queue = receiver.queue, None
            self._queue_descriptor = self.queue.fileno()
            if self._takes:
                self._poll.register(self._queue_descriptor, select.POLLIN)
        self._note_whom_to_tell()

    def _forget(self, descriptor: int) -> None:
        """Close a channel."""
        self._poll.unregister(descriptor)
        self._channels.unregister(descriptor)
        self._open.pop(descriptor).close()
        self._note_whom_to_tell()

    def _take(self, stage: int) -> Message | None:
        """Take from the queue, if no other stage was quicker."""
        queue = self.queue
        assert queue is not None
        taken = queue.take(stage)
        if queue.has_ended:  # how the gateway ended, its channel says
            self._check_open()
            self._poll.unregister(self._queue_descriptor)
            self._queue_descriptor = -1
        return taken

    @property
    def has_message(self) -> bool:
        """Whether :meth:`receive` would find one at once, or another stage is as likely to."""
        return bool(self._ready(0))

    def _ready(self, timeout_ms: int | None) -> list[int]:
        """Descriptors that can be read from, after waiting for one; none if others have changed something."""
        ready = [descriptor for descriptor, _ in self._poll.poll(timeout_ms)]
        if self._wake in ready:
            self._check_open()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._check_open()
            while self._changes:
                self._changes.popleft()()
            return self._ready(0) if timeout_ms == 0 else []
        return ready

    def _check_open(self) -> None:
        if self._is_closed:
            raise ChannelClosedError("the channel was closed")

    def _choose(self, ready: list[int]) -> int | None:
        """A channel with a message, in turn if several have one, or the queue: if no channel has, or it goes first."""
        channels = [descriptor for descriptor in ready if descriptor != self._queue_descriptor]
        if not channels or (self._queue_first and len(channels) < len(ready)):
            return self._queue_descriptor if ready else None
        later = [descriptor for descriptor in channels if descriptor > self._last]
        self._last = min(later or channels)
        return self._last

    # -- what this stage tells ----------------------------------------------------------------------------------------

    def _note_whom_to_tell(self) -> None:
        far, told = [one for one in self._open.values() if isinstance(one, TcpReceiver)], self._told
        self._news = tuple(one for one in far if one.sender != GATEWAY and (told is None or one.sender in told))
        self._far_gateway = tuple(one for one in far if one.sender == GATEWAY)
        self._telling = (*self._news, *self._far_gateway)

    def tell_readiness(self) -> None:
        """Tell senders on other machines what those on this one can read."""
        for receiver in self._telling:
            receiver.tell_readiness()

    @property
    def tells(self) -> bool:
        """Whether there are stages to tell between layers."""
        return bool(self._news)

    def tell_news(self) -> None:
        """Tell them if that has changed by more than matters, between two layers."""
        for receiver in self._news:
            receiver.tell_news()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._wake)
