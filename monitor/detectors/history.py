"""The last samples of several streams: a ring that is written a row at a time and read a stream at a time."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["History", "samples_since_change"]

FloatArray = NDArray[np.float64]


def samples_since_change(deviations: FloatArray) -> int:
    """How many of the last samples most likely belong to a level above zero, at least 1.

    The maximum likelihood estimate of the change point for a shift of unknown size: where the mean of the samples since
    then, times the square root of their number, is largest. ``deviations`` are samples minus the level before, oldest
    first, at least one.
    """
    sums = deviations[::-1].cumsum()
    return int((sums / _root_of_counts(len(sums))).argmax()) + 1


@functools.lru_cache
def _root_of_counts(count: int) -> FloatArray:
    return np.sqrt(np.arange(1, count + 1))


class History:
    """A ring of rows; ``nan`` marks what is missing or forgotten.

    Attributes
    ----------
    rows
        Shape (capacity, streams).
    newest
        Index of the row last written.
    """

    def __init__(self, capacity: int, streams: int) -> None:
        self.rows: FloatArray = np.full((capacity, streams), np.nan)
        self.newest = capacity - 1

    def advance(self) -> FloatArray:
        """The row to write next, (streams,): the oldest one's place, still with its old content."""
        self.newest = (self.newest + 1) % len(self.rows)
        row: FloatArray = self.rows[self.newest]
        return row

    def of(self, stream: int) -> FloatArray:
        """What is remembered of one stream, oldest first, gaps closed."""
        column, oldest = self.rows[:, stream], self.newest + 1
        column = np.concatenate([column[oldest:], column[:oldest]])
        return column[~np.isnan(column)]

    def keep(self, stream: int, count: int) -> None:
        """Forget all of one stream but its ``count`` newest samples."""
        newest_first = (self.newest - np.arange(len(self.rows))) % len(self.rows)
        written = newest_first[~np.isnan(self.rows[newest_first, stream])]
        self.rows[written[count:], stream] = np.nan

    def drop(self, stream: int, count: int) -> None:
        """Forget the last ``count`` rows of one stream."""
        self.rows[(self.newest - np.arange(min(count, len(self.rows)))) % len(self.rows), stream] = np.nan

    def clear(self) -> None:
        """Forget everything."""
        self.rows[...] = np.nan
