"""ADWIN of ``river``, for comparison."""

from __future__ import annotations

from odin.monitor.detectors.per_stream import PerStreamDetector, river_drift

__all__ = ["AdwinDetector"]


class AdwinDetector(PerStreamDetector):
    """A thin adapter to ``river.drift.ADWIN``: a window that is cut where the means of its two parts differ.

    Parameters
    ----------
    streams
        How many streams, at least 1.
    delta
        Significance of a difference. ADWIN's bounds are loose; with river's default, 0.002, delays are several times
        longer.
    clock
        Samples between two checks of the window; river's default of 32 delays alarms by up to so many samples.

    Raises
    ------
    ImportError
        If river is not installed.
    ValueError
        If there is no stream.

    References
    ----------
    Bifet and Gavalda (2007), Learning from time-changing data with adaptive windowing, as implemented by river.
    """

    def __init__(self, streams: int, *, delta: float = 0.2, clock: int = 1) -> None:
        drift = river_drift()
        super().__init__(streams, lambda: drift.ADWIN(delta=delta, clock=clock))
