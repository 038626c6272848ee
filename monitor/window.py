"""The last requests, and percentiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from odin.monitor.timing import RequestTimeline

__all__ = ["TimelineWindow", "percentiles_s"]


def percentiles_s(values_s: Sequence[float], percents: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
    """Percentiles by linear interpolation, seconds; ``nan`` for each where there is no value."""
    if not values_s:
        return tuple(float("nan") for _ in percents)
    return tuple(float(value) for value in np.percentile(np.asarray(values_s), percents))


class TimelineWindow:
    """The last ``capacity`` finished requests; written by one thread, read by any.

    Parameters
    ----------
    capacity
        Requests to remember, at least 1.
    """

    def __init__(self, capacity: int = 512) -> None:
        if capacity < 1:
            raise ValueError(f"a window of {capacity} requests remembers nothing; capacity must be at least 1")
        self._timelines: deque[RequestTimeline] = deque(maxlen=capacity)

    def append(self, timeline: RequestTimeline) -> None:
        """Add one finished request; the oldest is dropped when full."""
        self._timelines.append(timeline)

    def timelines(self) -> tuple[RequestTimeline, ...]:
        """The remembered requests, oldest first."""
        return tuple(self._timelines.copy())
