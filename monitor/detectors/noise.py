"""Noise of undisturbed samples: variance, autocorrelation, and probability of an outlier.

The model is a contaminated normal distribution (Huber 1964): normal with probability 1 - p, an outlier of any size (a
hiccup of the machine) with probability p. So the variance is that of winsorised residuals, and the evidence of a single
sample is limited to -ln(p).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["NoiseCalibration"]

FloatArray = NDArray[np.float64]

_WINSOR = 2.5
"""Residuals count as at most so many standard deviations ..."""
_WINSORISED_VARIANCE = 0.9776
"""... which leaves this much of a normal distribution's variance."""
_OUTLIER = 4.0
"""Farther off, in standard deviations, is an outlier; of normal samples 3 in 100,000 are, on either side."""
_OUTLIER_PRIOR = 0.1
"""Outliers that every stream is taken to have had: one in a few hundred clean samples is ruled out, then."""
_PERSISTENCE_LIMIT = 0.8
_LEAST_DEVIATION = 1e-3


class NoiseCalibration:
    """Estimates for several streams at once, from residuals: samples minus their estimated level.

    Parameters
    ----------
    streams
        How many.
    deviation
        Standard deviation to begin with, worth two samples.
    memory
        Samples over which variance and persistence are averaged.
    outlier_memory
        Samples over which outliers are remembered.

    Attributes
    ----------
    variance
        Of the normal part, (streams,).
    persistence
        Autocorrelation: correlation of neighbouring samples, from 0 to 0.8, (streams,).
    """

    def __init__(
        self, streams: int, *, deviation: float = 0.2, memory: int = 1024, outlier_memory: float = 10_000
    ) -> None:
        self._memory = memory
        self._outlier_memory = outlier_memory
        self.variance: FloatArray = np.full(streams, deviation**2)
        self.persistence: FloatArray = np.zeros(streams)
        self._weight: FloatArray = np.full(streams, 2.0)
        self._correlation: FloatArray = np.zeros(streams)
        self._outliers: FloatArray = np.full((2, streams), _OUTLIER_PRIOR)
        self._seen: FloatArray = np.ones(streams)

    @property
    def evidence_limit(self) -> FloatArray:
        """-ln(p) of an outlier above (row 0) and below (row 1), (2, streams)."""
        return -np.log(np.minimum(self._outliers / self._seen, 0.2))

    def learn(self, residuals: FloatArray) -> None:
        """Update with undisturbed residuals, oldest first, (samples, streams); ``nan`` where there is none."""
        present = ~np.isnan(residuals)
        count = present.sum(axis=0)
        deviation = np.sqrt(self.variance)
        limit = _WINSOR * deviation
        winsorised = np.where(present, np.clip(residuals, -limit, limit), 0.0)
        above = (residuals > _OUTLIER * deviation).sum(axis=0)
        below = (residuals < -_OUTLIER * deviation).sum(axis=0)

        # Correlation first: it is measured in units of the variance that the residuals were held against.
        products = (winsorised[1:] * winsorised[:-1]).sum(axis=0)
        self._weight = np.minimum(self._weight + count, self._memory)
        self._correlation += (products / self.variance - count * self._correlation) / self._weight
        self.variance += (
            np.square(winsorised).sum(axis=0) / _WINSORISED_VARIANCE - count * self.variance
        ) / self._weight
        np.maximum(self.variance, _LEAST_DEVIATION**2, out=self.variance)
        self.persistence = np.clip(self._correlation, 0.0, _PERSISTENCE_LIMIT)

        self._seen += count
        self._outliers[0] += above
        self._outliers[1] += below
        forget = np.minimum(1.0, self._outlier_memory / self._seen)
        self._seen *= forget
        self._outliers = np.maximum(self._outliers * forget, _OUTLIER_PRIOR)

    def start(self, stream: int, samples: FloatArray) -> None:
        """Estimate one stream's variance from its first few samples, by their median absolute deviation."""
        deviation = 1.4826 * float(np.median(np.abs(samples - np.median(samples))))
        count = len(samples)
        self.variance[stream] = (2 * self.variance[stream] + count * deviation**2) / (2 + count)
        self._weight[stream] = 2.0 + count

    def doubt(self, stream: int) -> None:
        """Give one stream's variance little weight: it was estimated under other conditions."""
        self._weight[stream] = 2.0

    def excuse(self, stream: int, residuals: FloatArray) -> None:
        """Update with residuals of one stream that were taken for a disturbance and turned out to be outliers."""
        column = np.full((len(residuals), len(self.variance)), np.nan)
        column[:, stream] = residuals
        # They are rare among undisturbed samples only because they were left out: let them weigh more.
        self._weight[stream] = max(self._weight[stream] / 2, 32.0)
        self.learn(column)
