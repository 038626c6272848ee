"""Counts of values by size, as Prometheus' histograms have them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

__all__ = ["BucketCounts"]


class BucketCounts:
    """A histogram to which adding costs a search and two additions.

    Parameters
    ----------
    bounds
        Upper ends of the buckets, rising; a last one without end is added.

    Examples
    --------
    >>> counts = BucketCounts((0.1, 1.0))
    >>> for value in (0.1, 0.5, 7.0, float("nan"), float("inf")):
    ...     counts.add(value)
    >>> counts.cumulative, counts.total
    ([('0.1', 1), ('1.0', 2), ('+Inf', 3)], 7.6)
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._names = [*map(repr, self._bounds), "+Inf"]
        self._counts = [0] * len(self._names)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value; one that is not finite is left out, since it would spoil the total for ever."""
        if math.isfinite(value):
            self._counts[bisect_left(self._bounds, value)] += 1
            self.total += value

    @property
    def cumulative(self) -> list[tuple[str, int]]:
        """For each upper end how many values are not greater."""
        return list(zip(self._names, accumulate(self._counts), strict=True))

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Become a series of a family."""
        family.add_metric(labels, self.cumulative, self.total)
