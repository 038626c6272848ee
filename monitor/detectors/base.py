"""The interface of detectors: ``update`` takes one sample per stream; the properties are read afterwards."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Detector"]

FloatArray = NDArray[np.float64]


class Detector(Protocol):
    """Detects changes of slowdown in several streams at once, one per stage.

    A sample is the logarithm of time / baseline, so that 0.69 is a twofold slowdown; ``nan`` where a stream has no
    sample this time (its stage holds no layers), which leaves that stream as it was.
    """

    def update(self, x: ArrayLike) -> None:
        """Take one sample of every stream, shape (streams,)."""

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Whether a change, up or down, was detected with the last update, (streams,)."""

    @property
    def disturbed(self) -> NDArray[np.bool_]:
        """Whether the stream is above its undisturbed level now, (streams,)."""

    @property
    def level(self) -> FloatArray:
        """Present level minus undisturbed level: the logarithm of the slowdown, (streams,); 0.0 at first."""

    @property
    def age(self) -> NDArray[np.int64]:
        """Samples since the estimated change point of the last detected change, inclusive, (streams,)."""

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of the undisturbed samples, (streams,)."""

    def rebase(self) -> None:
        """Announce a jump that is not interference: layers have moved, from the next sample on.

        The undisturbed level and ``disturbed`` are kept; the present level is estimated anew.
        """
