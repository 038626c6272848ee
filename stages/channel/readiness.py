"""Shared words in which a stage tells the earlier ones when it will be free, and they tell it what is on its way.

Reading them costs a memory access, no message. Each word is written by one process only, so there is no lock; who reads
while another writes sees the word before or after, and a decision that is a few microseconds old. ::

    stage 0 reads | free at | slowdown | idle since | begun | working | finishing | channels | sent | sent | ... |
                    `--------------------------- stage 1 writes -----------------------------'  `- each sender its own

The page belongs to the receiving stage, which gives it to each sender when their channel opens, with the number of the
word in which that one counts. A word is used again once its channel has ended: the stage has then set it right, since
a sender that was killed may have counted what it never sent.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque

__all__ = [
    "BEGUN", "CHANNELS", "FINISHING", "FREE_S", "IDLE_SINCE_S", "SENT", "SLOWDOWN", "WORKING", "Readiness", "waiting",
]  # fmt: skip

FREE_S, SLOWDOWN, IDLE_SINCE_S, BEGUN, WORKING, FINISHING, CHANNELS, SENT = range(8)
"""Positions of the words, all ``float64``. ``SENT`` is the first of ``CHANNELS`` words of senders."""
_NBYTES = mmap.PAGESIZE
_MAX_CHANNELS = _NBYTES // 8 - SENT


class Readiness:
    """The words of one stage, which any later process may map.

    Times are readings of ``time.perf_counter``, comparable within one machine.

    Parameters
    ----------
    descriptor
        A page of shared memory made by another process's ``Readiness``; a new one without.

    Attributes
    ----------
    words
        The page as ``float64``: ``FREE_S`` when the stage expects to be free; ``SLOWDOWN`` its present time / baseline;
        ``IDLE_SINCE_S`` since when it has had nothing to do, infinite while it has; ``BEGUN`` requests that it has
        begun with; ``WORKING`` the number of the request that it computes, -1 for none, and ``FINISHING`` of the one
        before it that a GPU has not finished; ``CHANNELS`` how many words of senders follow, each with the requests
        that it has sent, or is sending.
    descriptor
        Of the page, until :meth:`close_descriptor`; for those who send to this stage.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = -1
        made = descriptor is None
        if descriptor is None:
            descriptor = self.descriptor = os.memfd_create("odin-readiness", os.MFD_CLOEXEC)
            os.posix_fallocate(descriptor, 0, _NBYTES)
        self._mapping = mmap.mmap(descriptor, _NBYTES, flags=mmap.MAP_SHARED)
        self.words: memoryview[float] = memoryview(self._mapping).cast("d")
        self._lock = threading.Lock()
        self._unused: deque[int] = deque()  # of channels that have ended
        if made:
            self.words[SLOWDOWN] = 1.0
            self.words[IDLE_SINCE_S] = time.perf_counter()
            self.words[WORKING] = self.words[FINISHING] = -1.0

    def close_descriptor(self) -> None:
        """Give no other process the page any more. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close_descriptor()

    def take_word(self) -> int:
        """Position of a word for a new channel, from any thread of the stage that the page belongs to.

        Raises
        ------
        ValueError
            If there is none left.
        """
        with self._lock:
            if self._unused:
                return self._unused.popleft()
            count = int(self.words[CHANNELS])
            if count >= _MAX_CHANNELS:
                raise ValueError(f"a stage has room for {_MAX_CHANNELS} senders")
            self.words[CHANNELS] = count + 1.0
            return SENT + count

    def give_back_word(self, position: int, count: float) -> None:
        """A channel has ended, of which so many requests were counted as begun."""
        self.words[position] = count
        with self._lock:
            self._unused.append(position)


def waiting(words: memoryview[float]) -> float:
    """How many requests wait for a stage, those on their way to it included."""
    return sum(words[SENT : SENT + int(words[CHANNELS])]) - words[BEGUN]
