"""Page-Hinkley's test of ``river``, for comparison."""

from __future__ import annotations

from odin.monitor.detectors.per_stream import PerStreamDetector, river_drift

__all__ = ["PageHinkleyDetector"]


class PageHinkleyDetector(PerStreamDetector):
    """A thin adapter to ``river.drift.PageHinkley``: one cumulative sum, without noise estimate or outlier handling.

    Parameters
    ----------
    streams
        How many streams, at least 1.
    delta
        Change of log slowdown that is tolerated.
    threshold
        Sum of log slowdowns beyond ``delta`` that is an alarm. The defaults of both suit noise of 10 %.
    min_instances
        Samples after an alarm before the next.

    Raises
    ------
    ImportError
        If river is not installed.
    ValueError
        If there is no stream.

    References
    ----------
    Page (1954), Continuous inspection schemes, as implemented by river.
    """

    def __init__(self, streams: int, *, delta: float = 0.05, threshold: float = 1.0, min_instances: int = 30) -> None:
        drift = river_drift()
        super().__init__(
            streams, lambda: drift.PageHinkley(min_instances=min_instances, delta=delta, threshold=threshold)
        )
