"""A bank of CUSUM recursions for shifts of several sizes, up and down.

For every shift d, the sum of the log-likelihood ratios of "the mean is d higher" against "as before" (Page 1954):

    g = max(0, g + min(c, d / w * (r - d / 2)))

with r the residual and w its variance, mirrored for downward shifts. c censors the evidence of one sample (Huber 1965).
For a known shift no rule with the same mean number of samples between false alarms (ARL) has a shorter worst mean delay
(Lorden 1971; Moustakides 1986): about ln(ARL) / (d^2 / 2w). A bank covers the shifts between for little more.

Autocorrelated noise makes the mean of n samples less certain than that of n independent ones. With correlation r of
neighbouring samples, as in a first-order autoregression, its variance is f(n) w / n::

    f(n) = (1 + r) / (1 - r)  -  2 r (1 - r^n) / (n (1 - r)^2)

This matters little for shifts that are detected within few samples, and much for those that need many. So w is
multiplied by f(n) for each shift separately, with n three times the samples that the detection of this shift then
takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odin.monitor.detectors.cusum_rows import BankState

__all__ = ["CusumBank"]

FloatArray = NDArray[np.float64]

_OVER_ARL = -1.0
"""Threshold minus ln(ARL), found by simulation: the bank's false alarms against the overshoot of each sum."""
_LEAST_SAMPLES, _MOST_SAMPLES = 2.0, 64.0
_LONGER = 3.0
"""What noise takes for a false alarm, over what the shift itself takes, in samples; found by simulation."""
_ITERATIONS = 8
_FEW = 0.4
"""Share of the threshold that one sample may give to a sum that remembers it for long, where outliers are known."""
_UP_AND_DOWN: FloatArray = np.array([1.0, -1.0])[:, None, None]


class CusumBank:
    """The sums of several streams.

    Parameters
    ----------
    streams
        How many.
    shifts
        Sizes of shift, above 0.
    arl
        Least mean number of samples between false alarms of a stream, over the whole bank, with known noise.

    Attributes
    ----------
    threshold
        A sum above it is an alarm.
    evidence
        The sums, (2, shifts, streams): upward shifts first, then downward ones.
    """

    def __init__(self, streams: int, *, shifts: Sequence[float], arl: float) -> None:
        self.threshold = math.log(arl) + _OVER_ARL
        shape = (2, len(shifts), streams)
        self.evidence: FloatArray = np.zeros(shape)
        self._shift: FloatArray = np.asarray(shifts, dtype=np.float64)[:, None]
        self._half = self._shift / 2
        self._gain: FloatArray = np.repeat(self._shift, streams, axis=1)
        self._cap = np.zeros(shape)
        self._terms = np.empty(shape)
        self._both = np.empty((2, 1, streams))
        self._slope, self._offset = np.zeros(shape), np.zeros(shape)

    def calibrate(self, variance: FloatArray, persistence: FloatArray, limit: FloatArray) -> None:
        """Set how much evidence one sample is, and may be.

        Parameters
        ----------
        variance
            Of usual samples, (streams,).
        persistence
            Correlation of neighbouring ones, from 0 up to less than 1, (streams,).
        limit
            -ln(probability of an outlier), above and below, (2, streams).
        """
        self._gain = self._shift / self._inflation(variance, persistence)
        limit = limit[:, None, :]
        # A usual sample takes back d^2 / 2v of a sum. Where that is little, an outlier is remembered until the next:
        # two of them, not in a row, must not make an alarm.
        forgets = np.square(self._shift) / (2 * variance) > limit / 2
        few = np.minimum(limit, _FEW * self.threshold)
        np.copyto(self._cap, np.where(forgets | (limit > self.threshold), limit, few))

    def _inflation(self, variance: FloatArray, persistence: FloatArray) -> FloatArray:
        """f(n) for the n samples that each shift takes, (shifts, streams)."""
        r, per_inflation = persistence, 2 * self.threshold * variance / np.square(self._shift)
        inflation: FloatArray = np.ones_like(per_inflation)
        before, n, correlated = np.empty((3, *inflation.shape))
        most, twice, square = (1 + r) / (1 - r), 2 * r, np.square(1 - r)
        per_inflation *= _LONGER
        for _ in range(_ITERATIONS):  # f(n) / n falls with n: there is one solution, and this nears it from below
            np.multiply(per_inflation, inflation, out=n)
            np.maximum(n, _LEAST_SAMPLES, out=n)
            np.minimum(n, _MOST_SAMPLES, out=n)
            np.power(r, n, out=correlated)
            np.subtract(1, correlated, out=correlated)
            correlated *= twice
            n *= square
            correlated /= n
            before, inflation = inflation, before
            np.subtract(most, correlated, out=inflation)
            if (before == inflation).all():
                break
        return inflation

    def add(self, residual: FloatArray, precision: FloatArray) -> bool:
        """Add one residual per stream, (streams,), finite; returns whether any sum is above the threshold.

        ``precision`` is 1 / w, or 0.0 for a stream to leave as it is, (streams,).
        """
        terms, evidence = self._terms, self.evidence
        np.multiply(_UP_AND_DOWN, residual, out=self._both)
        np.subtract(self._both, self._half, out=terms)
        terms *= self._gain
        terms *= precision
        np.minimum(terms, self._cap, out=terms)
        evidence += terms
        np.maximum(evidence, 0.0, out=evidence)
        return bool(np.maximum.reduce(evidence, axis=None) > self.threshold)

    def settle(self, precision: FloatArray) -> None:
        """Take a precision for all residuals that :meth:`add_settled` will be given, (streams,)."""
        self._slope[...] = _UP_AND_DOWN * self._gain * precision
        self._offset[...] = self._gain * self._half * precision

    def add_settled(self, residual: FloatArray) -> bool:
        """:meth:`add` with the precision that has been settled: half the work."""
        terms, evidence = self._terms, self.evidence
        np.multiply(self._slope, residual, out=terms)
        np.subtract(terms, self._offset, out=terms)
        np.minimum(terms, self._cap, out=terms)
        np.add(evidence, terms, out=evidence)
        np.maximum(evidence, 0.0, out=evidence)
        return bool(np.maximum.reduce(evidence, axis=None) > self.threshold)

    @property
    def state(self) -> BankState:
        """Its arrays, for :func:`odin.monitor.detectors.cusum_rows.take_rows`."""
        return BankState(self.evidence, self._cap, self._slope, self._offset, self._gain, self._half, self.threshold)

    def alarms(self) -> NDArray[np.intp]:
        """Indices of the streams with a sum above the threshold."""
        return np.flatnonzero(self.evidence.max(axis=(0, 1)) > self.threshold)
