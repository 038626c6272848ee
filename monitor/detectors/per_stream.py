"""Adapter: several detectors of one number at a time, such as those of ``river.drift``, as one ``Detector``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.detectors.history import History, samples_since_change
from odin.monitor.detectors.streams import Streams

__all__ = ["DriftDetector", "PerStreamDetector", "river_drift"]

FloatArray = NDArray[np.float64]

_HISTORY = 64
_MINIMUM = float(np.log(1.08))


class DriftDetector(Protocol):
    """The interface of ``river.drift``'s detectors; after a detected drift they reset themselves."""

    drift_detected: bool

    def update(self, x: float) -> object:
        """Take one sample."""


def river_drift() -> Any:
    """The module ``river.drift``.

    Raises
    ------
    ImportError
        If river is not installed.
    """
    try:
        return importlib.import_module("river.drift")
    except ImportError as error:
        raise ImportError(
            "this detector is an adapter to the package river, which is not installed: "
            "pip install 'odin-pipeline[compare]'"
        ) from error


class PerStreamDetector(Streams):
    """Runs one drift detector per stream; level and change point are computed from the means before and after.

    Parameters
    ----------
    streams
        How many streams, at least 1.
    make
        Makes one drift detector.

    Raises
    ------
    ValueError
        If there is no stream.
    """

    def __init__(self, streams: int, make: Callable[[], DriftDetector]) -> None:
        super().__init__(streams)
        self._make = make
        self._detectors = [make() for _ in range(streams)]
        self._samples = History(_HISTORY, streams)
        self._mean = np.zeros(streams)  # of the samples since the last change
        self._count = np.zeros(streams)
        self._base = np.zeros(streams)
        self._squares = np.zeros(streams)  # of undisturbed deviations
        self._usual = np.zeros(streams)  # how many those are
        self._disturbed = np.zeros(streams, dtype=np.bool_)

    @property
    def disturbed(self) -> NDArray[np.bool_]:
        """Whether the stream is above its undisturbed level now, (streams,)."""
        return self._disturbed.copy()

    @property
    def level(self) -> FloatArray:
        """Mean since the last change minus the mean while undisturbed, where disturbed, else 0.0, (streams,)."""
        return np.where(self._disturbed, self._mean - self._base, 0.0)

    @property
    def noise(self) -> FloatArray:
        """Standard deviation of the undisturbed samples, (streams,)."""
        return np.sqrt(self._squares / np.maximum(self._usual, 1.0))

    def update(self, x: ArrayLike) -> None:
        """Take one sample of every stream, shape (streams,); ``nan`` where there is none.

        Raises
        ------
        ValueError
            If there is not one sample per stream.
        """
        x = self._checked(x)
        finite = np.isfinite(x)  # an infinite sample would stay in their sums for ever
        self._samples.advance()[...] = np.where(finite, x, np.nan)
        self._changed[...] = False
        for stream in np.flatnonzero(finite):
            self._take(int(stream), float(x[stream]))

    def rebase(self) -> None:
        """Begin anew in all streams; a disturbed one stays disturbed above the same undisturbed level."""
        self._detectors = [self._make() for _ in self._detectors]
        self._samples.clear()
        self._count[...] = 0.0

    def _take(self, stream: int, x: float) -> None:
        self._age[stream] += 1
        detector = self._detectors[stream]
        detector.update(x)
        if detector.drift_detected:
            self._change(stream)
            return
        self._count[stream] += 1
        before = self._mean[stream]
        self._mean[stream] += (x - before) / self._count[stream]
        if not self._disturbed[stream]:
            self._base[stream] = self._mean[stream]
            if self._count[stream] > 1:
                self._squares[stream] += (x - before) * (x - self._mean[stream])
                self._usual[stream] += 1

    def _change(self, stream: int) -> None:
        deviations = self._samples.of(stream) - self._mean[stream]
        up, down = samples_since_change(deviations), samples_since_change(-deviations)
        upward = deviations[-up:].sum() / up**0.5 >= -deviations[-down:].sum() / down**0.5
        count = up if upward else down
        self._mean[stream] += deviations[-count:].mean()
        self._count[stream] = count
        self._samples.keep(stream, count)
        level = self._mean[stream] - self._base[stream]
        self._disturbed[stream] = level > _MINIMUM
        if level < -_MINIMUM:
            self._base[stream] = self._mean[stream]
        self._changed[stream] = True
        self._age[stream] = count
