"""A threshold on single stage times: the ODIN paper's detection, as reconstructed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.detectors.streams import Streams

__all__ = ["ThresholdDetector"]

FloatArray = NDArray[np.float64]


class ThresholdDetector(Streams):
    """Detects a change when a stage time differs from its reference by more than a ratio; it becomes the new reference.

    The first reference is the baseline, so that a load that runs before the first request is detected.

    This is a reconstruction: Soomro, Papadopoulou and Pericas (Euro-Par 2023) watch the stages' execution times and
    start to explore when they change; published descriptions give no rule beyond that.

    Parameters
    ----------
    streams
        How many streams, at least 1.
    ratio
        Least change of time, as a part of the reference: 0.2 is 20% longer, or shorter by the same factor (1 / 1.2).

    Raises
    ------
    ValueError
        If an option is outside its range.
    """

    def __init__(self, streams: int, *, ratio: float = 0.2) -> None:
        super().__init__(streams)
        if not 0.0 < ratio < math.inf:
            raise ValueError(f"ratio={ratio}: part of the reference time, such as 0.2 for 20 %")
        self._tolerance = math.log1p(ratio)
        self._reference: FloatArray = np.zeros(streams)
        self._undisturbed: FloatArray = np.zeros(streams)
        self._rebased = np.zeros(streams, dtype=np.bool_)

    @property
    def disturbed(self) -> NDArray[np.bool_]:
        """Whether the reference is above the undisturbed one by more than the ratio, (streams,)."""
        return self._reference - self._undisturbed > self._tolerance

    @property
    def level(self) -> FloatArray:
        """Reference minus undisturbed reference where disturbed, else 0.0, (streams,)."""
        return np.where(self.disturbed, self._reference - self._undisturbed, 0.0)

    @property
    def noise(self) -> FloatArray:
        """The tolerated change, a logarithm, (streams,): this detector does not estimate noise."""
        return np.full(len(self._reference), self._tolerance)

    def update(self, x: ArrayLike) -> None:
        """Take one sample of every stream, shape (streams,); ``nan`` where there is none.

        Raises
        ------
        ValueError
            If there is not one sample per stream.
        """
        x = self._checked(x)
        valid = x > -np.inf
        self._age += valid
        self._changed = valid & (np.abs(x - self._reference) > self._tolerance) & ~self._rebased
        self._age[self._changed] = 1
        renewed = valid & (self._changed | self._rebased)
        # An undisturbed stream's jump after a rebase is no interference: its undisturbed level jumps as well.
        jumps = renewed & self._rebased & ~self.disturbed
        self._undisturbed[jumps] = x[jumps]
        self._reference[renewed] = x[renewed]
        lower = self._undisturbed - self._reference > self._tolerance
        self._undisturbed[lower] = self._reference[lower]
        self._rebased &= ~valid

    def rebase(self) -> None:
        """Take the next sample of each stream as its reference, whatever it is."""
        self._rebased[...] = True
