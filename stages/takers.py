"""A later stage, as one that may hand over to it sees it: on the same machine, or on another.

On the same machine it sees the present. Of another machine it sees what was so one delay ago, and whatever it sends
arrives one delay later. So it foresees: what it has sent begins when the stage there is free of what came before, and
not before it has arrived. Otherwise each answer would have to be back before the next request may leave, and on a
long way the stage there would wait for a round trip after each of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

from odin.partitioner.relay import idle_slowdown, is_expected_at
from odin.stages.channel.link import Sender
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, SLOWDOWN, waiting

__all__ = ["Taker", "make_taker"]


class Taker(Protocol):
    """A later stage."""

    stage: int
    link: Sender
    behind_s: list[float]
    """Seconds of all layers from each cut on, with nothing else running."""

    def waits(self, now_s: float) -> bool:
        """Whether the place there will be taken when a request that is sent now begins to arrive."""

    def free_s(self, nbytes: int, now_s: float) -> float:
        """When to send so many bytes so that they are there when the stage is free."""

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool) -> tuple[bool, float, float]:
        """Whether it is idle, when to send, and the seconds there that must be less than all the rest here.

        Parameters
        ----------
        cut, nbytes
            Where the request is, and how large.
        now_s
            The time.
        busy
            Whether another request waits here.
        """

    def speed(self, now_s: float) -> tuple[bool, float, float]:
        """Whether it is idle, when to send so that it is free, and its time / baseline."""


def make_taker(stage: int, link: Sender, baseline_s: Sequence[float]) -> Taker:
    """Return the view of a stage with these seconds for each layer."""
    kind = _Near if link.way is None else _Far
    return kind(stage, link, [float(layer_s) for layer_s in baseline_s])


def _behind(baseline_s: Sequence[float]) -> list[float]:
    return [*itertools.accumulate(reversed(baseline_s), initial=0.0)][::-1]


class _Near:
    """On this machine."""

    def __init__(self, stage: int, link: Sender, baseline_s: list[float]) -> None:
        self.stage, self.link = stage, link
        self._words = link.readiness.words
        self._baseline_s, self.behind_s = baseline_s, _behind(baseline_s)

    def waits(self, now_s: float) -> bool:
        return waiting(self._words) > 0

    def free_s(self, nbytes: int, now_s: float) -> float:
        return self._words[FREE_S]

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool) -> tuple[bool, float, float]:
        idle, free_s, slowdown = self.speed(now_s)
        return idle, free_s, slowdown * self._baseline_s[cut]

    def speed(self, now_s: float) -> tuple[bool, float, float]:
        words = self._words
        since_s, free_s, slowdown = words[IDLE_SINCE_S], words[FREE_S], words[SLOWDOWN]
        idle = since_s < math.inf
        if idle:
            slowdown = idle_slowdown(slowdown, idle_s=now_s - since_s, chain_s=self.behind_s[0])
        return idle, free_s, slowdown


class _Far:
    """On another machine."""

    def __init__(self, stage: int, link: Sender, baseline_s: list[float]) -> None:
        assert link.way is not None
        self.stage, self.link = stage, link
        self._words, self._way = link.readiness.words, link.way
        self._baseline_s, self._chain_s = baseline_s, sum(baseline_s)
        self.behind_s = _behind(baseline_s)

    def waits(self, now_s: float) -> bool:
        begins_s, _ = self._foreseen(now_s)
        return begins_s > now_s + self._way.delay_s

    def free_s(self, nbytes: int, now_s: float) -> float:
        way = self._way
        return max(now_s, self._foreseen(now_s)[1] - way.delay_s - way.transfer_s(nbytes))

    def seen(self, cut: int, nbytes: int, now_s: float, *, busy: bool) -> tuple[bool, float, float]:
        words, way = self._words, self._way
        since_s, slowdown, transfer_s = words[IDLE_SINCE_S], words[SLOWDOWN], way.transfer_s(nbytes)
        idle = since_s < math.inf and not way.underway
        if idle:  # a way that was slow is forgiven as a stage is that was
            slowdown = idle_slowdown(slowdown, idle_s=now_s - since_s, chain_s=self._chain_s)
            transfer_s *= 0.5 ** (max(0.0, now_s - since_s) / self._chain_s) if self._chain_s > 0 else 1.0
        if busy:  # the delay costs this request time, the others none
            takes_s = transfer_s + slowdown * self._baseline_s[cut]
        else:  # nobody else gains
            takes_s = way.delay_s + transfer_s + slowdown * self.behind_s[cut]
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
            free_s = begins_s + min(words[SLOWDOWN] * self.behind_s[cut], way.turn_s)
        return begins_s, free_s
