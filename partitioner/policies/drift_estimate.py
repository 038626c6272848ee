"""Drift of levels without a change: the part of the error that averaging over more requests does not reduce.

The speed of cores drifts, by clocks, caches and other users of the machine. On virtual machines the means of 1, of 4
and of 32 requests were seen to differ from the next such mean by about the same amount (flicker noise): more samples do
not predict the next level better. Drift is estimated from the median difference between neighbouring blocks of
requests, less the part that independent noise adds::

    drift^2  = (1.4826 median |m[b] - m[b-1]|)^2 / 2  -  spread^2 / block        m[b]: mean log slowdown of block b

A detected change discards the block, so that interference does not count as drift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DriftEstimate"]

FloatArray = NDArray[np.float64]

_BLOCK = 16
"""Requests per block: about as many as a move needs to take effect and be verified."""
_KEPT = 32
"""Differences the median is of, at most."""
_LEAST_KEPT = 4
_NORMAL = 1.4826
"""Standard deviations in the median absolute deviation of a normal distribution, inverted."""
_MARGIN = 1.5
"""Factor on the independent noise that is subtracted: a median of few differences is uncertain."""


class DriftEstimate:
    """Estimates each stage's drift from every request's slowdown.

    Parameters
    ----------
    stages
        How many.

    Attributes
    ----------
    deviation
        Standard deviation of the difference of neighbouring blocks' means, over the square root of 2, shape (stages,);
        0.0 until there are enough blocks.
    """

    def __init__(self, stages: int) -> None:
        self._sum, self._count = np.zeros(stages), np.zeros(stages, dtype=np.int64)
        self._before: FloatArray = np.full(stages, np.nan)
        self._differences = np.full((stages, _KEPT), np.nan)
        self._kept = np.zeros(stages, dtype=np.int64)
        self.deviation: FloatArray = np.zeros(stages)

    def take(self, log_slowdown: FloatArray, spread: FloatArray) -> None:
        """Add requests, oldest first.

        Parameters
        ----------
        log_slowdown
            Logarithms of seconds over baselines, shape (requests, stages); ``nan`` for stages without layers.
        spread
            Standard deviation of one of them, shape (stages,).
        """
        begin = 0
        while begin < len(log_slowdown):
            # As far as the next end of a block.
            part = log_slowdown[begin : begin + int((_BLOCK - self._count).min())]
            begin += len(part)
            here = ~np.isnan(part)
            self._sum += np.where(here, part, 0.0).sum(axis=0)
            self._count += here.sum(axis=0)
            for stage in np.flatnonzero(self._count == _BLOCK).tolist():
                self._end_block(stage, float(spread[stage]))

    def restart(self, stage: int) -> None:
        """Forget a stage's block and the one before: its conditions have changed."""
        self._before[stage] = np.nan
        self._sum[stage], self._count[stage] = 0.0, 0

    def _end_block(self, stage: int, spread: float) -> None:
        mean = self._sum[stage] / _BLOCK
        self._sum[stage], self._count[stage] = 0.0, 0
        if not np.isnan(self._before[stage]):
            self._differences[stage, self._kept[stage] % _KEPT] = abs(mean - self._before[stage])
            self._kept[stage] += 1
            if self._kept[stage] >= _LEAST_KEPT:
                typical = _NORMAL * float(np.nanmedian(self._differences[stage]))
                self.deviation[stage] = max(typical**2 / 2 - _MARGIN * spread**2 / _BLOCK, 0.0) ** 0.5
        self._before[stage] = mean
