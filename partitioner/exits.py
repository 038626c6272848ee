"""When a request that comes now will have left the stages, from what each stage is known to be busy with.

Where all stages take new requests from one queue, each is taken by the stage that is free first (list scheduling)::

    stage 0  |....r1....|....r4....|          free at f[0], c[0] seconds for a whole request
    stage 1  ..|..r2..|..r3..|..r5..|         free at f[1], c[1] seconds

Where requests pass the stages in order, D[n, s] is when request n leaves stage s, w[s] what it takes there::

    D[n, s] = max(D[n, s-1], D[n-1, s]) + w[s]

With the same w for all requests that wait, the last of n leaves at the maximum over t of
``max(D[0, t], now if t = 0) + sum(w[t:]) + (n - 1) max(w[t:])``, since the longest way through such a lattice goes
along its slowest stage. Places between stages being few holds up who goes on, not who leaves last.

A stage that may use only a share of its device pauses after a request. What lies between two requests there is a turn:
what one takes, and the pause. In place of c[s] for those before, and of w[t:] in the maximum, turns count.

Plain numbers, no arrays: there are few stages, and it is done for every request that is submitted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

__all__ = ["Exits", "LineExits", "SharedExits", "left_line"]

_ONE_BY_ONE = 4
"""From so many requests ahead per stage on, those that surely come before are counted, not taken one by one."""


class Exits(Protocol):
    """The stages at a moment, with what they have been sent."""

    def exit_s(self, ahead: int) -> float:
        """When a request leaves that is sent with so many others before it, which have not been sent yet."""

    def begin_s(self, ahead: int) -> float:
        """When the same request has done with waiting: the rest of its time it is worked on."""


class SharedExits:
    """Stages that take new requests from one queue.

    Parameters
    ----------
    free_s
        When each stage is free of what it has; not before now.
    chain_s
        Seconds of a whole request on each stage at its present speed, more than 0.
    waiting
        Requests in the queue that no stage has taken.
    turn_s
        Seconds from one request to the next on each stage, if it pauses between them.

    Examples
    --------
    >>> stages = SharedExits([10.0, 10.5], [2.0, 4.0])
    >>> [stages.exit_s(ahead) for ahead in range(4)]
    [12.0, 14.5, 14.0, 16.0]
    >>> [stages.begin_s(ahead) for ahead in range(4)]
    [10.0, 10.5, 12.0, 14.0]
    """

    def __init__(
        self, free_s: Sequence[float], chain_s: Sequence[float], waiting: int = 0, *, turn_s: Sequence[float] = ()
    ) -> None:
        self._free_s, self._waiting, self._chain_s = free_s, max(0, waiting), chain_s
        self._turn_s = turn_s or chain_s

    def exit_s(self, ahead: int) -> float:
        """See :class:`Exits`."""
        return sum(self._taken_by(ahead))

    def begin_s(self, ahead: int) -> float:
        """See :class:`Exits`."""
        return self._taken_by(ahead)[0]

    def _taken_by(self, ahead: int) -> tuple[float, float]:
        """When the stage that takes it is free, and what it takes there."""
        ahead += self._waiting
        free_s = self._free_s
        if ahead > _ONE_BY_ONE * len(free_s):
            free_s, ahead = self._all_but_few(ahead)
        stages = [*zip(free_s, self._turn_s, self._chain_s, strict=True)]
        if len(stages) > 1:
            heapq.heapify(stages)
            for _ in range(ahead):
                at_s, turn_s, chain_s = stages[0]
                heapq.heapreplace(stages, (at_s + turn_s, turn_s, chain_s))
        else:
            ((at_s, turn_s, chain_s),) = stages
            stages = [(at_s + ahead * turn_s, turn_s, chain_s)]
        return stages[0][0], stages[0][2]

    def _all_but_few(self, ahead: int) -> tuple[list[float], int]:
        """Give each stage at once what it surely takes before the last few.

        By ``level_s`` all stages together would have done ``ahead`` requests if these could be divided. What begins
        earlier than that by the slowest stage's time for one is among the first ``ahead`` in any case.
        """
        level_s = _level_s(self._free_s, self._turn_s, ahead)
        sure_s = level_s - max(self._turn_s)
        free_s = []
        for at_s, chain in zip(self._free_s, self._turn_s, strict=True):
            taken = max(0, math.ceil((sure_s - at_s) / chain))
            free_s.append(at_s + taken * chain)
            ahead -= taken
        return free_s, max(0, ahead)


def _level_s(free_s: Sequence[float], chain_s: Sequence[float], requests: int) -> float:
    """When so many requests are done if any part of one can be given to any stage that is free."""
    rate_hz = done = 0.0
    since_s = -math.inf
    for at_s, chain in sorted(zip(free_s, chain_s, strict=True)):
        if rate_hz > 0:
            done += rate_hz * (at_s - since_s)
            if done >= requests:
                return at_s - (done - requests) / rate_hz
        rate_hz, since_s = rate_hz + 1.0 / chain, at_s
    return since_s + (requests - done) / rate_hz


class LineExits:
    """Stages that requests pass in order.

    Parameters
    ----------
    now_s
        Not before this can a request begin.
    free_s
        When each stage is done with all that was sent.
    stage_s
        Seconds of a request on each stage; 0 for one that has no layers.
    turn_s
        As of :class:`SharedExits`.

    Examples
    --------
    >>> stages = LineExits(10.0, [10.0, 11.0], [1.0, 2.0])
    >>> [stages.exit_s(ahead) for ahead in range(3)]
    [13.0, 15.0, 17.0]
    >>> [stages.begin_s(ahead) for ahead in range(3)]
    [10.0, 12.0, 14.0]
    """

    def __init__(
        self, now_s: float, free_s: Sequence[float], stage_s: Sequence[float], turn_s: Sequence[float] = ()
    ) -> None:
        self._now_s, self._free_s, self._stage_s = now_s, free_s, stage_s
        self._turn_s = turn_s or stage_s

    def exit_s(self, ahead: int) -> float:
        """See :class:`Exits`."""
        rest_s = slowest_s = 0.0
        exit_s = -math.inf
        for at_s, stage_s, turn_s in zip(
            reversed(self._free_s), reversed(self._stage_s), reversed(self._turn_s), strict=True
        ):
            rest_s += stage_s
            if turn_s > slowest_s:
                slowest_s = turn_s
            exit_s = max(exit_s, at_s + rest_s + ahead * slowest_s)
        return max(exit_s, self._now_s + rest_s + ahead * slowest_s)

    def begin_s(self, ahead: int) -> float:
        """See :class:`Exits`; what it waits between stages is counted as if it were before the first."""
        return self.exit_s(ahead) - sum(self._stage_s)


def left_line(
    begin_s: Sequence[float], sent: Iterable[tuple[float, Sequence[float], Sequence[float]]], *, now_s: float
) -> list[float]:
    """When each stage will be done with all requests that are under way.

    Parameters
    ----------
    begin_s
        When each stage was done with the last request that has left them all.
    sent
        When those that have not were sent, oldest first, each with its ``stage_s`` and ``turn_s`` as of
        :class:`LineExits`.
    now_s
        The time: what should have left by now is late, and expected to be as much later again.

    Examples
    --------
    >>> left_line([0.0, 0.0], [(10.0, [1.0, 2.0], ()), (10.0, [1.0, 2.0], ())], now_s=10.5)
    [12.0, 15.0]
    >>> left_line([0.0, 0.0], [(10.0, [1.0, 2.0], ())], now_s=14.0)
    [13.0, 15.0]
    """
    left_s, late_s, oldest = list(begin_s), 0.0, True
    for at_s, stage_s, turn_s in sent:
        for stage, (takes_s, busy_s) in enumerate(zip(stage_s, turn_s or stage_s, strict=True)):
            begins_s = max(at_s, left_s[stage])
            at_s, left_s[stage] = begins_s + takes_s, begins_s + busy_s
        if oldest:
            oldest, late_s = False, max(0.0, 2.0 * (now_s - at_s))
    return [at_s + late_s for at_s in left_s] if late_s else left_s
