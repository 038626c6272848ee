"""Medians of few repeats, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "bootstrap"]


class Interval(NamedTuple):
    """Median of repeats with its 95% confidence interval; ``repeats`` is how many there were, nan left out."""

    median: float
    low: float
    high: float
    repeats: int

    def told(self, form: Callable[[float], str]) -> str:
        """``"14.2 (13.9..14.6)"``; a dash if there is nothing, the value alone if there was one."""
        if not self.repeats:
            return "-"
        text = form(self.median)
        return text if self.repeats == 1 else f"{text} ({form(self.low)}..{form(self.high)})"


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Median with the percentile bootstrap's 95% interval (Efron 1979): the medians of ``resamples`` redrawn samples.

    Of up to five values that is all that they span.

    Examples
    --------
    >>> bootstrap([2.0, 1.0, 4.0])
    Interval(median=2.0, low=1.0, high=4.0, repeats=3)
    """
    found = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(found):
        return Interval(math.nan, math.nan, math.nan, 0)
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(len(found), size=(resamples, len(found)))
    low, high = np.quantile(np.median(found[drawn], axis=1), (0.025, 0.975))
    return Interval(float(np.median(found)), float(low), float(high), len(found))
