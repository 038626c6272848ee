"""Cost model of a hop: a fixed time, plus a copy of the values.

The sender copies into a slot and wakes the receiver, which reads views::

    send_s    = hop_s / 2 + nbytes * copy_s_per_byte
    receive_s = hop_s / 2

The receiver's cache misses on what the other core wrote are part of its first layer's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_HOP_S", "TransferCost", "measure_transfer"]

DEFAULT_HOP_S = 120e-6
"""Seconds per hop with next to no data, measured over shared-memory slots on two cores; both ends together."""


class TransferCost(NamedTuple):
    """Cost model of a hop within one machine.

    Attributes
    ----------
    hop_s
        Seconds per hop whatever its size, half of it at either end.
    copy_s_per_byte
        Seconds per byte for the one copy that the sender makes.
    """

    hop_s: float
    copy_s_per_byte: float

    def send_s(self, cut_nbytes: Sequence[int]) -> NDArray[np.float64]:
        """Seconds that the sender spends on each cut, given the bytes that cross it."""
        return self.hop_s / 2 + np.asarray(cut_nbytes, dtype=np.float64) * self.copy_s_per_byte

    def receive_s(self, cut_nbytes: Sequence[int]) -> NDArray[np.float64]:
        """Seconds that the receiver spends on each cut."""
        return np.full(len(cut_nbytes), self.hop_s / 2)


def measure_transfer(
    *,
    nbytes: int = 3_200_000,
    repeats: int = 20,
    hop_s: float = DEFAULT_HOP_S,
    clock: Callable[[], float] = time.perf_counter,
) -> TransferCost:
    """Measure the copy: the minimum over ``repeats`` copies of ``nbytes``, a typical activation by default.

    Source and destination alternate between several buffers, so that they are not in the nearest cache each time.

    Raises
    ------
    ValueError
        If there is nothing to copy.
    """
    if nbytes < 1 or repeats < 1:
        raise ValueError(f"nbytes is {nbytes} and repeats {repeats}; both must be at least 1")
    sources = [np.full(nbytes, index, dtype=np.uint8) for index in range(4)]
    targets = [np.zeros(nbytes, dtype=np.uint8) for _ in range(4)]
    least_s = float("inf")
    for index in range(repeats):
        source, target = sources[index % 4], targets[(index + 1) % 4]
        before = clock()
        np.copyto(target, source)
        least_s = min(least_s, clock() - before)
    return TransferCost(hop_s, max(least_s, 0.0) / nbytes)
