"""Medians of few repeats, and how far they can be trusted.

The interval is that of two order statistics, which supposes nothing but that repeats are independent and have a
continuous distribution. Of n sorted repeats x, the true median lies between x[k] and x[n - 1 - k] (0-based) with

    level = 1 - 2 * sum over i = 0..k of binomial(n, i) / 2^n

(Conover, Practical Nonparametric Statistics, 3rd ed., 3.2). The narrowest interval of at least 95% is taken. Up to five
repeats have none: theirs is their range, at the level that it has, 75% for three. (A bootstrap of three repeats gives
the same range and calls it 95%.)

**Who is ahead.** One rule, for every table. Contenders are compared in the same repeats: one is ahead of another if the
interval of the median of their differences, at a level of at least 95%, lies on its side of 0. That is the sign test.
The order within a repeat is drawn, so that of two that are alike each is the better one with one half, whatever the
noise: skewed, or correlated within the repeat or from one to the next. ``leader`` names who is ahead of *all* others.
Where there is no such interval, the words are "no difference seen"; that is so for fewer than six repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

__all__ = ["Median", "interval_level", "interval_text", "leader", "median_of", "verdict"]

_Name = TypeVar("_Name", bound=Hashable)

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

    def side_of(self, value: float) -> int:
        """1 if the interval lies above ``value``, -1 if it lies below; 0 if it does not, or is of less than 95%."""
        if not self.level >= _LEAST_LEVEL:
            return 0
        return int(self.low > value) - int(self.high < value)


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


def verdict(ratios: Iterable[float], *, lower_is_better: bool = False) -> str:
    """``"ahead"``, ``"behind"`` or ``"no difference seen"``, of ratios to another in the same repeats; "" of none."""
    found = median_of(ratios)
    side = -found.side_of(1.0) if lower_is_better else found.side_of(1.0)
    return {1: "ahead", -1: "behind"}.get(side, "no difference seen") if found.repeats else ""


def leader(values: Mapping[_Name, Mapping[int, float]], *, lower_is_better: bool = False) -> _Name | None:
    """Who is ahead of all others; None if nobody is, or there is nobody else.

    Parameters
    ----------
    values
        Of each contender, its value in each repeat.

    Examples
    --------
    >>> leader({"a": dict(enumerate([3, 4, 5, 6, 7, 8])), "b": dict(enumerate([2, 3, 4, 5, 6, 7]))})
    'a'
    >>> leader({"a": {0: 3.0, 1: 4.0, 2: 5.0}, "b": {0: 2.0, 1: 3.0, 2: 4.0}}) is None  # three times out of three
    True
    """
    wanted = -1 if lower_is_better else 1

    def ahead(name: _Name, other: _Name) -> bool:
        own, its = values[name], values[other]
        return median_of(own[repeat] - its[repeat] for repeat in own.keys() & its.keys()).side_of(0.0) == wanted

    return next(
        (name for name in values if len(values) > 1 and all(ahead(name, other) for other in values if other != name)),
        None,
    )


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
