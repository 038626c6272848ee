"""One queue of new requests, from which any of several stages takes the next one by itself.

::

    gateway --request--> [ r7 | r8 | r9 ] --> stage 0, 1 or 2: whoever is about to start with one

It is one connected pair of ``SOCK_SEQPACKET`` Unix sockets. The gateway has the sending end; all stages have the same
receiving end, and the kernel gives each message to one of them. So no stage is asked and none is waited for: one that
hangs takes nothing. Tensors lie in the gateway's slots, which it frees itself when the answer is there. Both come with
the gateway's channel to each stage (:mod:`odin.stages.channel.shm`), which also says goodbye.

How many requests wait can be read in shared memory, where each word is written by one process only::

    sent | stages | stage 0: taken, idle since, free at, slowdown | stage 1: ... |

Messages are numbered. The kernel hands them out in their order, so the largest number that any stage has taken says
how many are gone, also if a stage dies before it could say which one it has taken: the next taker makes up for that.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import struct
import time
from typing import NamedTuple

from odin.stages.channel.link import ChannelClosedError, Message
from odin.stages.channel.posting import Posting
from odin.stages.channel.slots import SlotMemory
from odin.stages.channel.wire import Header, WireError, pack, unpack

__all__ = ["QUEUE_DESCRIPTORS", "NewRequest", "QueueEnd", "QueueWords", "SharedQueue", "StageWords"]

QUEUE_DESCRIPTORS = 2
"""That a stage is given: the receiving end, and the page of words."""

_BUFFER_NBYTES = 64 * 1024
_SEND_BUFFER_NBYTES = 1024 * 1024
_NUMBER = struct.Struct("<Q")
_SENT, _STAGES, _FIRST, _PER_STAGE = 0, 1, 2, 4
_TAKEN, _IDLE_SINCE_S, _FREE_S, _SLOWDOWN = range(4)


class StageWords(NamedTuple):
    """What a stage tells: since when it is idle, infinite if it is not; when it will be free; its time / baseline."""

    idle_since_s: float
    free_s: float
    slowdown: float


class QueueWords:
    """The page of words.

    Parameters
    ----------
    descriptor
        Of a page that another process made.
    """

    def __init__(self, descriptor: int) -> None:
        self._mapping = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED)
        self._words: memoryview[float] = memoryview(self._mapping).cast("d")

    @staticmethod
    def make(stages: int) -> int:
        """Return the descriptor of a page for so many stages, all of them busy."""
        descriptor = os.memfd_create("odin-queue", os.MFD_CLOEXEC)
        os.posix_fallocate(descriptor, 0, 8 * (_FIRST + _PER_STAGE * stages))
        words = QueueWords(descriptor)._words
        words[_STAGES] = stages
        for stage in range(stages):
            words[_FIRST + _PER_STAGE * stage + _IDLE_SINCE_S] = math.inf
            words[_FIRST + _PER_STAGE * stage + _FREE_S] = math.inf
            words[_FIRST + _PER_STAGE * stage + _SLOWDOWN] = 1.0
        return descriptor

    @property
    def waiting(self) -> int:
        """Requests that no stage has taken, one that is being sent included."""
        words = self._words
        taken = max([words[position] for position in range(_FIRST + _TAKEN, len(words), _PER_STAGE)])
        return max(0, int(words[_SENT] - taken))

    def note_sent(self, number: int) -> None:
        """Number of the last message. By the gateway."""
        self._words[_SENT] = number

    def note_taken(self, stage: int, number: int) -> None:
        """Number of the message that a stage has taken. By the stage."""
        self._words[_FIRST + _PER_STAGE * stage + _TAKEN] = number

    def tell(self, stage: int, told: StageWords) -> None:
        """By the stage."""
        position = _FIRST + _PER_STAGE * stage + _IDLE_SINCE_S
        for offset, word in enumerate(told):
            self._words[position + offset] = word

    def told(self) -> list[StageWords]:
        """What each stage tells."""
        words, first = self._words, _FIRST + _IDLE_SINCE_S
        return [StageWords(*words[at : at + 3]) for at in range(first, len(words), _PER_STAGE)]


class SharedQueue:
    """The gateway's end. Stages may come and go while it is open.

    Parameters
    ----------
    stages
        How many may take.
    """

    def __init__(self, *, stages: int) -> None:
        self._page = -1
        self._sending, self._receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_NBYTES)
        self._page = QueueWords.make(stages)
        self.words = QueueWords(self._page)
        self._posting = Posting(self._sending)

    @property
    def descriptors(self) -> list[int]:
        """What a stage is to be given, until :meth:`close`."""
        return [self._receiving.fileno(), self._page]

    def post(self, header: Header) -> None:
        """See :meth:`odin.stages.channel.link.Sender.post`; if all stages are gone it waits for the next one.

        Raises
        ------
        ChannelClosedError
            If the queue was closed.
        """
        posting, words = self._posting, self.words
        number = posting.last + 1
        data = _NUMBER.pack(number) + pack(header._replace(sent_s=time.perf_counter()))
        words.note_sent(number)
        try:
            posting.post(data)
        except BaseException as error:
            words.note_sent(posting.last)
            if isinstance(error, OSError):
                raise ChannelClosedError(f"the queue was closed ({error})") from error
            raise

    def push(self) -> None:
        """See :meth:`odin.stages.channel.link.Sender.push`."""
        self._posting.push()

    def forget(self, stage: int) -> None:
        """A stage is gone, or hangs: nothing is left to it any more because it said that it is idle."""
        self.words.tell(stage, StageWords(math.inf, math.inf, 1.0))

    def close(self) -> None:
        """Let stages see that nothing more comes, once they have taken what is there. Idempotent."""
        with contextlib.suppress(OSError):
            self._sending.shutdown(socket.SHUT_RDWR)
        self._sending.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._receiving.close()
        page, self._page = self._page, -1
        if page >= 0:
            os.close(page)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._close_descriptors()


class NewRequest(Message):
    """A request that a stage has taken from the queue."""

    __slots__ = ()


class QueueEnd:
    """A stage's end.

    Parameters
    ----------
    memory
        The gateway's slots.
    descriptor
        Of the receiving end; owned from now on.
    page
        Descriptor of the page of words.
    """

    def __init__(self, memory: SlotMemory, descriptor: int, page: int) -> None:
        self._memory = memory
        self.words = QueueWords(page)
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._connection = socket.socket(fileno=descriptor)
        self.has_ended = False

    def fileno(self) -> int:
        """Return the descriptor that can be read from when there may be a request."""
        return self._connection.fileno()

    def take(self, stage: int) -> NewRequest | None:
        """Take the next request, if no other stage was quicker; None as well once the gateway has closed the queue.

        Raises
        ------
        ChannelClosedError
            If what comes is no request.
        """
        try:
            received = self._connection.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:  # closed by another thread
            received = 0
        if received == 0:
            self.has_ended = True
            return None
        try:
            (number,) = _NUMBER.unpack_from(self._buffer[:received])
            self.words.note_taken(stage, number)
            header = unpack(self._buffer[_NUMBER.size : received])
        except (WireError, struct.error) as error:
            raise ChannelClosedError(f"the gateway speaks another language ({error})") from error
        return NewRequest(header, self._memory, _kept)

    def close(self) -> None:
        """Close this stage's copy; not a shutdown, which would end it for all. Idempotent."""
        self._connection.close()


def _kept(slot: int) -> None:
    """The gateway frees its slots itself."""
