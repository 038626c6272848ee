"""How far predictions have been off of late: their usual error, and how much time to allow for the unusual ones.

An error is a ratio, seconds that a request took over those predicted: what makes predictions wrong, a stage becoming
slower or faster, makes long ones as much more wrong. With the median m and the 95th percentile q of the last 200::

    expected = m * predicted        latest = (m + 2 (q - m)) * predicted

For normal errors that is 3.3 standard deviations, passed by one request in 2,000. A percentile further out (or the
largest of ten, as Clockwork has it) would rest on a few stalls, and one stall would keep the pipeline half empty for
long: see docs/deadlines.md for both in figures.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

__all__ = ["Spread"]

_REMEMBERED = 200
_HIGH, _BEYOND = 0.95, 2.0
_FEW, _UNKNOWN = 20, 1.5
"""With fewer errors than that the factor is in part, with none it is, what is taken for requests whose errors are not
known."""
_LASTS = 100.0
"""An error is forgotten after so many times what the request was predicted to take: conditions have changed."""


class Spread:
    """Errors of the last predictions.

    Examples
    --------
    >>> spread = Spread()
    >>> spread.usual, spread.high
    (1.0, 1.5)
    >>> for took_s in [1.0, 1.1, 1.2] * 10:
    ...     spread.add(took_s, predicted_s=1.0, now_s=0.0)
    >>> spread.usual, round(spread.high, 6)
    (1.1, 1.3)
    """

    def __init__(self) -> None:
        self._errors: deque[tuple[float, float]] = deque()  # until when each counts, and itself
        self._sorted: list[float] = []
        self.usual = 1.0
        """Seconds that requests usually take over those predicted."""
        self.high = _UNKNOWN
        """The same of almost all of them at most."""

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, took_s: float, *, predicted_s: float, now_s: float) -> None:
        """Learn from a request."""
        if not (took_s >= 0 and 0 < predicted_s < math.inf):
            return
        error = took_s / predicted_s
        self._errors.append((now_s + _LASTS * predicted_s, error))
        insort(self._sorted, error)
        if len(self._errors) > _REMEMBERED:
            self._drop()
        self._sum_up()

    def forget(self, now_s: float) -> None:
        """Drop what is too old."""
        if self._errors and self._errors[0][0] < now_s:
            while self._errors and self._errors[0][0] < now_s:
                self._drop()
            self._sum_up()

    def _drop(self) -> None:
        _, error = self._errors.popleft()
        del self._sorted[bisect_left(self._sorted, error)]

    def _sum_up(self) -> None:
        errors = self._sorted
        known = len(errors)
        if not known:
            self.usual, self.high = 1.0, _UNKNOWN
            return
        self.usual = errors[known // 2]
        high = errors[min(known - 1, math.ceil(_HIGH * (known + 1)) - 1)]
        beyond = self.usual + _BEYOND * (high - self.usual)
        few = max(0, _FEW - known) / _FEW
        self.high = (1.0 - few) * beyond + few * max(beyond, _UNKNOWN * self.usual)
