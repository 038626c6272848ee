"""Rolling statistics over the last requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monitor.timing import RequestTimeline

__all__ = ["StageStatistics", "TimelineWindow", "percentiles_s"]


class StageStatistics(NamedTuple):
    """Medians of one stage over a window, seconds; ``share`` is the stage's busy part of the time, 0 to 1."""

    requests: int
    queue_s: float
    wall_s: float
    cpu_s: float
    run_delay_s: float
    transfer_s: float
    share: float


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
        Requests to remember, at least 2.
    """

    def __init__(self, capacity: int = 512) -> None:
        if capacity < 2:
            raise ValueError(f"a window of {capacity} requests shows no rate; capacity must be at least 2")
        self._timelines: deque[RequestTimeline] = deque(maxlen=capacity)

    def append(self, timeline: RequestTimeline) -> None:
        """Remember one finished request, forgetting the oldest when full."""
        self._timelines.append(timeline)

    def timelines(self) -> tuple[RequestTimeline, ...]:
        """The remembered requests, oldest first."""
        return tuple(self._timelines.copy())

    def throughput_hz(self) -> float:
        """Completed requests per second from the window's first completion to its last; ``nan`` below two."""
        timelines = self.timelines()
        if len(timelines) < 2:
            return float("nan")
        span_s = timelines[-1].completed_s - timelines[0].completed_s
        return (len(timelines) - 1) / span_s if span_s > 0 else float("nan")

    def latencies_s(self) -> list[float]:
        """Latency of each remembered request, seconds."""
        return [timeline.latency_s for timeline in self.timelines()]

    def stage(self, index: int) -> StageStatistics:
        """Medians of stage ``index``; its share is busy wall seconds over the window's span."""
        timelines = self.timelines()
        timings = [timing for timeline in timelines for timing in timeline.stages if timing.stage == index]
        if not timings:
            return StageStatistics(0, *(float("nan"),) * 6)
        table = np.array([timing[3:8] for timing in timings])
        medians = np.median(table, axis=0)
        span_s = timelines[-1].completed_s - timelines[0].completed_s
        # The first completion opens the span, so its own work lies before it.
        share = float(table[1:, 1].sum() / span_s) if span_s > 0 else float("nan")
        return StageStatistics._make((len(timings), *(float(value) for value in medians), min(share, 1.0)))
