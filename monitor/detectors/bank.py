"""A bank of CUSUM recursions for shifts of several sizes, up and down.

For every shift d, the sum of the log-likelihood ratios of "the mean is d higher" against "as before" (Page 1954):

    g = max(0, g + min(c, d / w * (r - d / 2)))

with r the residual and w its variance, mirrored for downward shifts. c censors the evidence of one sample (Huber 1965).
For a known shift no rule with the same mean number of samples between false alarms (ARL) has a shorter worst mean delay
(Lorden 1971; Moustakides 1986): about ln(ARL) / (d^2 / 2w). A bank covers the shifts between for little more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CusumBank"]

FloatArray = NDArray[np.float64]

_OVER_ARL = -1.0
"""Threshold minus ln(ARL), found by simulation: the bank's false alarms against the overshoot of each sum."""
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
        self._cap = np.zeros(shape)
        self._terms = np.empty(shape)
        self._both = np.empty((2, 1, streams))
        self._slope, self._offset = np.zeros(shape), np.zeros(shape)

    def censor(self, variance: FloatArray, limit: FloatArray) -> None:
        """Set how much evidence one sample may be.

        Parameters
        ----------
        variance
            Of usual samples, (streams,).
        limit
            -ln(probability of an outlier), above and below, (2, streams).
        """
        limit = limit[:, None, :]
        # A usual sample takes back d^2 / 2v of a sum. Where that is little, an outlier is remembered until the next:
        # two of them, not in a row, must not make an alarm.
        forgets = np.square(self._shift) / (2 * variance) > limit / 2
        few = np.minimum(limit, _FEW * self.threshold)
        np.copyto(self._cap, np.where(forgets | (limit > self.threshold), limit, few))

    def add(self, residual: FloatArray, precision: FloatArray) -> bool:
        """Add one residual per stream, (streams,), finite; returns whether any sum is above the threshold.

        ``precision`` is 1 / w, or 0.0 for a stream to leave as it is, (streams,).
        """
        terms, evidence = self._terms, self.evidence
        np.multiply(_UP_AND_DOWN, residual, out=self._both)
        np.subtract(self._both, self._half, out=terms)
        terms *= self._shift
        terms *= precision
        np.minimum(terms, self._cap, out=terms)
        evidence += terms
        np.maximum(evidence, 0.0, out=evidence)
        return bool(np.maximum.reduce(evidence, axis=None) > self.threshold)

    def settle(self, precision: FloatArray) -> None:
        """Take a precision for all residuals that :meth:`add_settled` will be given, (streams,)."""
        self._slope[...] = _UP_AND_DOWN * self._shift * precision
        self._offset[...] = self._shift * self._half * precision

    def add_settled(self, residual: FloatArray) -> bool:
        """:meth:`add` with the precision that has been settled: half the work."""
        terms, evidence = self._terms, self.evidence
        np.multiply(self._slope, residual, out=terms)
        np.subtract(terms, self._offset, out=terms)
        np.minimum(terms, self._cap, out=terms)
        np.add(evidence, terms, out=evidence)
        np.maximum(evidence, 0.0, out=evidence)
        return bool(np.maximum.reduce(evidence, axis=None) > self.threshold)

    def alarms(self) -> NDArray[np.intp]:
        """Indices of the streams with a sum above the threshold."""
        return np.flatnonzero(self.evidence.max(axis=(0, 1)) > self.threshold)
