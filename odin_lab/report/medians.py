"""Medians of few repeats, and how far they can be trusted.

The interval is that of two order statistics, which supposes nothing but that repeats are independent and have a
continuous distribution. Of n sorted repeats x, the true median lies between x[k] and x[n - 1 - k] (0-based) with

    level = 1 - 2 * sum over i = 0..k of binomial(n, i) / 2^n

(Conover, Practical Nonparametric Statistics, 3rd ed., 3.2). The narrowest interval of at least 95% is taken. Up to five
repeats have none: theirs is their range, at the level that it has, 75% for three. (A bootstrap of three repeats gives
the same range and calls it 95%.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Median", "interval_level", "interval_text", "median_of"]

_LEAST_LEVEL = 0.95


class Median(NamedTuple):
    """Median of repeats between two order statistics; all nan without repeats, ``low`` and ``high`` with one alone.

    Attributes
    ----------
    repeats
        How many values there were, those that are not finite left out.
    level
        Probability that the true median lies between ``low`` and ``high``; ``nan`` where there is no interval.
    """

    median: float
    low: float
    high: float
    repeats: int
    level: float

    def told(self, form: Callable[[float], str]) -> str:
        """``"14.2 (13.9..14.6)"``; a dash if there is nothing, the value alone if there was one."""
        if not self.repeats:
            return "-"
        text = form(self.median)
        return text if self.repeats == 1 else f"{text} ({form(self.low)}..{form(self.high)})"


def median_of(values: Iterable[float]) -> Median:
    """Median of repeats with its interval.

    Examples
    --------
    >>> median_of([2.0, 1.0, 4.0])
    Median(median=2.0, low=1.0, high=4.0, repeats=3, level=0.75)
    """
    found = sorted(value for value in values if math.isfinite(value))
    count = len(found)
    if count < 2:
        return Median(found[0] if found else math.nan, math.nan, math.nan, count, math.nan)
    outside, level = _interval(count)
    return Median(float(np.median(found)), found[outside], found[-1 - outside], count, level)


def interval_level(repeats: int) -> float:
    """Probability that the interval of so many repeats holds the true median; ``nan`` below two."""
    return _interval(repeats)[1] if repeats > 1 else math.nan


def interval_text(repeats: int) -> str:
    """What the interval of so many repeats is: ``"range of 3 repeats, which holds the true median with 75%"``."""
    if repeats < 2:
        return "one repeat, no interval"
    outside, level = _interval(repeats)
    if outside == 0:
        return f"range of {repeats} repeats, which holds the true median with {_percent(level)}"
    return f"{_percent(level)} confidence interval of the median of {repeats} repeats"


def _interval(repeats: int) -> tuple[int, float]:
    """How many repeats lie below the interval, and its level."""
    outside, level = 0, 1 - 2 / 2**repeats
    below = 1
    for more in range(1, repeats // 2):
        below += math.comb(repeats, more)
        if 1 - 2 * below / 2**repeats < _LEAST_LEVEL:
            break
        outside, level = more, 1 - 2 * below / 2**repeats
    return outside, level


def _percent(level: float) -> str:
    """As many digits as say that it is not 100%."""
    return f"{math.floor(1000 * level) / 10:g}%"
