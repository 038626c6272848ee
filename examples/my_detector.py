"""A detector of one's own: a control chart of exponentially weighted averages (Roberts 1959), one per stage.

odin run resnet50 --input photographs --detector examples.my_detector:ChartDetector:width=4
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from odin.monitor.detectors.streams import Streams

MINIMUM = np.log(1.1)
"""A stage that is slower by less is not called disturbed."""


class ChartDetector(Streams):
    """A change is an average that leaves the level learned before by ``width`` of its standard deviations."""

    def __init__(self, streams: int, *, weight: float = 0.25, width: float = 4.5, learn: int = 24) -> None:
        super().__init__(streams)  # keeps changed and age
        self.weight, self.learn = weight, learn
        self.limit = width * (weight / (2 - weight)) ** 0.5
        self.base, self.centre, self.average, self.count = np.zeros((4, streams))
        self.variance = np.full(streams, 0.1**2)
        self.disturbed = np.zeros(streams, dtype=bool)

    @property
    def level(self) -> np.ndarray:
        """Logarithm of the slowdown, (streams,)."""
        level: np.ndarray = np.where(self.disturbed, self.centre - self.base, 0.0)
        return level

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation of the samples, (streams,)."""
        return np.sqrt(self.variance)

    def update(self, x: ArrayLike) -> None:
        """Take one sample of every stream, (streams,); ``nan`` where there is none."""
        samples = self._checked(x)
        there = np.isfinite(samples)
        samples = np.where(there, samples, self.average)
        self._age += there
        self.count += there
        learning = self.count <= self.learn
        rate = np.where(learning, 1 / np.maximum(self.count, 1), self.weight) * there
        self.average += rate * (samples - self.average)
        away = there & ~learning & (abs(self.average - self.centre) > self.limit * self.noise)
        square = np.minimum((samples - self.centre) ** 2, 9 * self.variance)
        self.variance += there * ~learning * ~away * (square - self.variance) / 100
        self.centre[learning] = self.average[learning]
        self._changed = away
        self._age[away] = np.ceil(1 / self.weight)  # about what the average looks back on
        self.centre[away] = self.average[away] = samples[away]
        self.count[away] = 1
        self.base = np.where(self.disturbed | away, np.minimum(self.base, self.centre), self.centre)
        self.disturbed = (self.disturbed | away) & (self.centre - self.base > MINIMUM)

    def rebase(self) -> None:
        """Learn the levels anew: the stages hold other layers from the next sample on."""
        self.count[:] = 0
