"""Shared words in which a stage tells the earlier ones when it will be free, and they tell it what is on its way.

Reading them costs a memory access, no message. Each word is written by one process only, so there is no lock; who reads
while another writes sees the word before or after, and a decision that is a few microseconds old. ::

    stage 0 reads | free at | slowdown | idle since | begun | sent by gateway | by stage 0 | ... |
                    `----------- stage 1 writes -----------'  `---- each sender its own ----'

The page belongs to the receiving stage, which gives it to each sender when their channel opens.
"""

from __future__ import annotations

import mmap
import os
import time

from odin.stages.channel.wire import GATEWAY

__all__ = ["BEGUN", "FREE_S", "IDLE_SINCE_S", "SENT", "SLOWDOWN", "Readiness"]

FREE_S, SLOWDOWN, IDLE_SINCE_S, BEGUN, SENT = range(5)
"""Positions of the words, all ``float64``. ``SENT`` is the first of as many as there are senders."""
_NBYTES = mmap.PAGESIZE
_MAX_SENDERS = _NBYTES // 8 - SENT


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
        begun with; ``SENT + 1 + i`` requests that stage ``i`` has sent to it, or is sending; ``SENT`` the gateway.
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
        if made:
            self.words[SLOWDOWN] = 1.0
            self.words[IDLE_SINCE_S] = time.perf_counter()

    def close_descriptor(self) -> None:
        """Give no other process the page any more. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close_descriptor()

    @staticmethod
    def word_of(sender: int) -> int:
        """Position of the word in which a sender counts; a stage's index or ``GATEWAY``.

        Raises
        ------
        ValueError
            If there are not so many words.
        """
        position = sender - GATEWAY
        if not 0 <= position < _MAX_SENDERS:
            raise ValueError(f"sender {sender}: a stage has room for {_MAX_SENDERS} senders")
        return SENT + position
