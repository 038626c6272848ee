"""Base class of the built-in detectors: the number of streams, ``changed`` and ``age``."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Streams"]

FloatArray = NDArray[np.float64]


class Streams:
    """Base of the detectors: keeps ``changed`` and ``age``, and checks samples.

    Parameters
    ----------
    streams
        How many streams, at least 1.

    Raises
    ------
    ValueError
        If there is no stream.
    """

    def __init__(self, streams: int) -> None:
        if streams < 1:
            raise ValueError(f"streams={streams}: a detector watches at least one stream")
        self._changed: NDArray[np.bool_] = np.zeros(streams, dtype=np.bool_)
        self._age: NDArray[np.int64] = np.zeros(streams, dtype=np.int64)

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Whether a change was detected with the last update, (streams,)."""
        return self._changed.copy()

    @property
    def age(self) -> NDArray[np.int64]:
        """Samples since the estimated change point of the last detected change, inclusive, (streams,)."""
        return self._age.copy()

    def _checked(self, x: ArrayLike) -> FloatArray:
        """Samples as an array; ValueError if there is not one per stream."""
        samples = np.asarray(x, dtype=np.float64)
        if samples.shape != self._age.shape:
            raise ValueError(
                f"samples of shape {samples.shape} for {len(self._age)} streams: give one each, nan for none"
            )
        return samples
