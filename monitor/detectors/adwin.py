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
        Significance of a difference. Its bounds are loose: river's own default, 0.002, waits several times as long.
    clock
        Samples between two looks at the window; river's own default is 32, which delays every alarm by that.

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
