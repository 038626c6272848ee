"""The line of requests that wait for a place: earliest deadline first, and in the order of entering without deadlines.

Three kinds stand in it::

    urgent      what a callback submits, which all other callbacks wait for: before all others
    deadlines   the earliest first
    others      without a deadline, in the order of entering

While both of the latter wait, every eighth place is one for those without a deadline. So neither kind starves, and what
is in a hurry has seven eighths of the pipeline however long the line of the others is.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Line", "Stands"]

_IN_A_ROW = 7
"""So many with deadlines are taken between two without, while both wait."""


class Stands(Protocol):
    """What can stand in a line.

    Attributes
    ----------
    number
        No two have the same; those that enter later have higher ones.
    deadline_s
        Infinite for none.
    urgent
        Goes first.
    samples
        How many it has.
    """

    number: int
    deadline_s: float
    urgent: bool
    samples: int


T = TypeVar("T", bound=Stands)


class Line(Generic[T]):
    """Those who wait, in the order in which they are taken.

    Attributes
    ----------
    overtakings
        How often somebody entered before others that were there: while it stays, the order does.
    samples
        Of all who wait.
    """

    def __init__(self) -> None:
        self._urgent: OrderedDict[int, T] = OrderedDict()
        self._deadlines: list[tuple[float, int, T]] = []
        self._others: OrderedDict[int, T] = OrderedDict()
        self._row = 0  # with deadlines, taken since the last one without, while such waited
        self.overtakings = self.samples = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._deadlines) + len(self._others)

    def __iter__(self) -> Iterator[T]:
        """All in the order in which they would be taken now; nobody may enter or leave meanwhile."""
        yield from self._urgent.values()
        deadlines, others, row = iter(self._deadlines), iter(self._others.values()), self._row
        place, other = next(deadlines, None), next(others, None)
        while place is not None or other is not None:
            if place is not None and (other is None or row < _IN_A_ROW):
                row += other is not None
                yield place[2]
                place = next(deadlines, None)
            elif other is not None:
                row = 0
                yield other
                other = next(others, None)

    @property
    def mean_samples(self) -> float:
        """Of those who wait; 0.0 if nobody does."""
        return self.samples / len(self) if len(self) else 0.0

    def add(self, item: T) -> None:
        """Let one enter."""
        self.samples += item.samples
        if item.urgent:
            self.overtakings += bool(self._deadlines or self._others)
            self._urgent[item.number] = item
        elif item.deadline_s < math.inf:
            place = (item.deadline_s, item.number, item)
            self.overtakings += bool(self._others or (self._deadlines and place[:2] < self._deadlines[-1][:2]))
            insort(self._deadlines, place)
        else:
            self._others[item.number] = item

    def head(self) -> T | None:
        """Who is next; None if nobody waits."""
        if self._urgent:
            return next(iter(self._urgent.values()))
        if self._deadlines and not self._is_turn_of_others:
            return self._deadlines[0][2]
        return next(iter(self._others.values()), None)

    def take(self) -> T:
        """Remove who is next; somebody must wait."""
        if self._urgent:
            item = self._urgent.popitem(last=False)[1]
        elif self._deadlines and not self._is_turn_of_others:
            self._row += bool(self._others)
            item = self._deadlines.pop(0)[2]
        else:
            self._row = 0
            item = self._others.popitem(last=False)[1]
        self.samples -= item.samples
        return item

    @property
    def _is_turn_of_others(self) -> bool:
        return bool(self._others) and self._row >= _IN_A_ROW

    def remove(self, item: T) -> bool:
        """Let one leave who has had enough; whether it was there."""
        if self._urgent.pop(item.number, None) is not None or self._others.pop(item.number, None) is not None:
            if not self._others:
                self._row = 0
            self.samples -= item.samples
            return True
        place = bisect_left(self._deadlines, (item.deadline_s, item.number))
        if place < len(self._deadlines) and self._deadlines[place][1] == item.number:
            del self._deadlines[place]
            self.samples -= item.samples
            return True
        return False

    def ahead(self, deadline_s: float = math.inf) -> int:
        """How many are taken before one who would enter now with that deadline, and is not urgent."""
        if deadline_s < math.inf:
            return self._rank(bisect_right(self._deadlines, (deadline_s, math.inf)))
        others = len(self._others)
        before = min(len(self._deadlines), max(0, _IN_A_ROW * (others + 1) - self._row))
        return len(self._urgent) + others + before

    def behind(self, deadline_s: float) -> Iterator[tuple[T, int]]:
        """Those with later deadlines, in order, and how many are taken before each of them."""
        for place in range(bisect_right(self._deadlines, (deadline_s, math.inf)), len(self._deadlines)):
            yield self._deadlines[place][2], self._rank(place)

    def _rank(self, place: int) -> int:
        """How many are taken before that place among those with deadlines."""
        return len(self._urgent) + place + min(len(self._others), (self._row + place) // _IN_A_ROW)
