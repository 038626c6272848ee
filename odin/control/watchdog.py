"""Tells a hung stage from a slow one, by its own words: pure, fed with readings.

A stage says between layers or requests how it gets on (:mod:`odin.stages.channel.readiness`). One that is to do
something, and has said nothing new for many times as long as that takes at its present speed, hangs: stopped, swapping,
in a driver that does not return, or behind a cut wire. As soon as it says something new, it does not.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["Reading", "Watchdog"]

_TIMES = 10.0
"""So many times as long as it should take ..."""
_AND_S = 0.5
"""... and so much longer: a process may wait that long for its core on a busy machine."""
_LATE = 2.0
"""A look that comes so many times later than usual says nothing of the time in between: this process stood still."""


class Reading(NamedTuple):
    """What is seen of a stage at a moment.

    Attributes
    ----------
    has_work
        Whether it computes, or something waits for it.
    words
        What it says; only whether it has changed counts.
    expected_s
        Seconds that a request takes there, at its present speed.
    """

    has_work: bool
    words: Hashable
    expected_s: float


class Watchdog:
    """Follows one stage.

    Parameters
    ----------
    interval_s
        Usual seconds between looks.

    Examples
    --------
    >>> watchdog = Watchdog(interval_s=0.5)
    >>> stuck = Reading(has_work=True, words="layer 3", expected_s=0.1)
    >>> [watchdog.look(stuck, 0.5 * tick) for tick in range(5)]
    [False, False, False, True, True]
    >>> watchdog.look(stuck._replace(words="layer 4"), 2.5)
    False
    """

    def __init__(self, *, interval_s: float) -> None:
        self._interval_s = interval_s
        self._words: Hashable = None
        self._since_s = self._looked_s = float("nan")
        self.limit_s = 0.0
        self.silent_s = 0.0

    def look(self, reading: Reading, now_s: float) -> bool:
        """Take a reading at ``now_s``; whether the stage hangs."""
        away_s = now_s - self._looked_s
        if away_s > _LATE * self._interval_s:
            self._since_s += away_s - self._interval_s
        self._looked_s = now_s
        self.limit_s = _TIMES * reading.expected_s + _AND_S
        if reading.words != self._words or not reading.has_work:
            self._words, self._since_s = reading.words, now_s
        self.silent_s = now_s - self._since_s
        return self.silent_s >= self.limit_s
