"""A later stage, as one that may hand over to it sees it: on the same machine, or on another.

On the same machine it sees the present. Of another machine it sees what was so one delay ago, and whatever it sends
arrives one delay later. So it foresees: what it has sent begins when the stage there is free of what came before, and
not before it has arrived. Otherwise each answer would have to be back before the next request may leave, and on a
long way the stage there would wait for a round trip after each of them.
"""

from __future__ import annotations

import math
from typing import Protocol

from odin.monitor.samples import StageRow
from odin.partitioner.relay import idle_slowdown, is_expected_at
from odin.stages.channel.link import Sender
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, SLOWDOWN, waiting

__all__ = ["Taker", "make_taker"]


class Taker(Protocol):
    """A later stage."""

    stage: int
    link: Sender

    def waits(self, now_s: float) -> bool:
        """Whether the place there will be taken when a request that is sent now begins to arrive."""

    def free_s(self, nbytes: int, now_s: float) -> float:
        """When to send so many bytes so that they are there when the stage is free."""

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool, row: StageRow) -> tuple[bool, float, float]:
        """Whether it is idle, when to send, and the seconds there that must be less than all the rest here.

        Parameters
        ----------
        cut, nbytes
            Where the request is, and how large.
        now_s
            The time.
        busy
            Whether another request waits here.
        row
            Seconds of layers there, for as many samples as the request has.
        """

    def speed(self, now_s: float) -> tuple[bool, float, float]:
        """Whether it is idle, when to send so that it is free, and its time / baseline."""


def make_taker(stage: int, link: Sender, full: StageRow) -> Taker:
    """Return the view of a stage with these seconds for each layer of a full micro-batch."""
    kind = _Near if link.way is None else _Far
    return kind(stage, link, full)


class _Near:
    """On this machine."""

    def __init__(self, stage: int, link: Sender, full: StageRow) -> None:
        self.stage, self.link = stage, link
        self._words = link.readiness.words
        self._chain_s = full.behind_s[0]

    def waits(self, now_s: float) -> bool:
        return waiting(self._words) > 0

    def free_s(self, nbytes: int, now_s: float) -> float:
        return self._words[FREE_S]

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool, row: StageRow) -> tuple[bool, float, float]:
        idle, free_s, slowdown = self.speed(now_s)
        return idle, free_s, slowdown * row.layer_s[cut]

    def speed(self, now_s: float) -> tuple[bool, float, float]:
        words = self._words
        since_s, free_s, slowdown = words[IDLE_SINCE_S], words[FREE_S], words[SLOWDOWN]
        idle = since_s < math.inf
        if idle:
            slowdown = idle_slowdown(slowdown, idle_s=now_s - since_s, chain_s=self._chain_s)
        return idle, free_s, slowdown


class _Far:
    """On another machine."""

    def __init__(self, stage: int, link: Sender, full: StageRow) -> None:
        assert link.way is not None
        self.stage, self.link = stage, link
        self._words, self._way = link.readiness.words, link.way
        self._behind_s, self._chain_s = full.behind_s, full.behind_s[0]  # of those on the way, however many samples

    def waits(self, now_s: float) -> bool:
        begins_s, _ = self._foreseen(now_s)
        return begins_s > now_s + self._way.delay_s

    def free_s(self, nbytes: int, now_s: float) -> float:
        way = self._way
        return max(now_s, self._foreseen(now_s)[1] - way.delay_s - way.transfer_s(nbytes))

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool, row: StageRow) -> tuple[bool, float, float]:
        words, way = self._words, self._way
        since_s, slowdown, transfer_s = words[IDLE_SINCE_S], words[SLOWDOWN], way.transfer_s(nbytes)
        idle = since_s < math.inf and not way.underway
        if idle:  # a way that was slow is forgiven as a stage is that was
            slowdown = idle_slowdown(slowdown, idle_s=now_s - since_s, chain_s=self._chain_s)
            transfer_s *= 0.5 ** (max(0.0, now_s - since_s) / self._chain_s) if self._chain_s > 0 else 1.0
        if busy:  # the delay costs this request time, the others none
            takes_s = transfer_s + slowdown * row.layer_s[cut]
        else:  # nobody else gains
            takes_s = way.delay_s + transfer_s + slowdown * row.behind_s[cut]
        return idle, self.free_s(nbytes, now_s), takes_s

    def speed(self, now_s: float) -> tuple[bool, float, float]:
        return self._words[IDLE_SINCE_S] < math.inf, self.free_s(0, now_s), self._words[SLOWDOWN]

    def _foreseen(self, now_s: float) -> tuple[float, float]:
        """When the stage begins with the last request that is on the way to it, and when it is free after that."""
        words, way = self._words, self._way
        underway, seen_s = way.underway, now_s - way.delay_s  # read before the words: what has begun may count twice
        if way.others:
            return math.inf, math.inf
        begins_s = arrived_s = -math.inf
        idle = words[IDLE_SINCE_S] < math.inf
        free_s = -math.inf if idle else is_expected_at(words[FREE_S], seen_s)
        for cut, nbytes, sent_s in underway:
            arrived_s = max(arrived_s, sent_s + way.delay_s) + way.transfer_s(nbytes)
            begins_s = is_expected_at(max(free_s, arrived_s), seen_s)
            free_s = begins_s + min(words[SLOWDOWN] * self._behind_s[cut], way.turn_s)
        return begins_s, free_s
