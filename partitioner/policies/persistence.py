"""Persistence of changes: the probability that the present ones outlast the migration lag.

Some changes are bursts of a few requests (a host's other guests, a process that wakes up), others are loads that stay;
how long a change has persisted so far distinguishes them. For each request of a stage at one level, the level's age and
whether it ends with this request are counted, by age in bins of doubling width, separately for levels above and below
the previous one. This gives the hazard rate, and from it the survival probability (Kaplan and Meier, JASA 53, 1958;
here with the hazard constant within a bin)::

    h(bin) = (ended + prior) / (requests + weight)        P(last m more at age a) = product of 1 - h from a to a + m - 1
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from odin.partitioner.policies.change_points import ChangePoint

__all__ = ["Persistence"]

_EDGES = np.array([1, 2, 3, 5, 9, 17, 33, 65])
_OLD = int(_EDGES[-1])
_MEMORY = 128.0
"""Requests in one bin after which older ones count half."""
_MOST_HAZARD = 0.95
_PRIOR_LIFE, _WEIGHT = 64.0, 4.0
"""Prior: requests that a change persists on average, and the weight of this prior in requests."""


class Persistence:
    """Estimates the hazard rate of changes by direction and age.

    Parameters
    ----------
    stages
        How many.
    """

    def __init__(self, stages: int) -> None:
        self._age = np.full(stages, _OLD)
        self._upward = np.ones(stages, dtype=np.int64)
        self._requests = np.zeros((2, len(_EDGES) - 1))
        self._ended = np.zeros_like(self._requests)

    def take(self, found: Mapping[int, ChangePoint]) -> None:
        """Count one request, and the change points found with it."""
        young = np.flatnonzero(self._age < _OLD)
        if len(young):
            ages = self._age[young]
            np.add.at(self._requests, (self._upward[young], _bin(ages)), 1.0)
            self._age[young] = ages + 1
        for stage, point in found.items():
            age = int(self._age[stage]) - point.samples
            if age < _OLD - point.samples:
                self._ended[self._upward[stage], _bin(max(age, 1))] += 1.0
            self._upward[stage], self._age[stage] = int(point.step > 0), point.samples
        if (many := self._requests > _MEMORY).any():
            self._requests[many] /= 2
            self._ended[many] /= 2

    def probability(self, stages: Collection[int], *, age: float, more: float) -> float:
        """Probability that changes ``age`` requests old persist for ``more`` requests; the least among the stages."""
        overlap = np.minimum(_EDGES[1:], age + more) - np.maximum(_EDGES[:-1], age)
        overlap = np.maximum(overlap, 0.0)
        overlap[-1] += max(0.0, age + more - max(_OLD, age))
        hazard = np.minimum((self._ended + _WEIGHT / _PRIOR_LIFE) / (self._requests + _WEIGHT), _MOST_HAZARD)
        stays = np.log1p(-hazard[self._upward[list(stages)]]) @ overlap
        return math.exp(float(stays.min(initial=0.0)))


def _bin(age: np.ndarray | int) -> np.ndarray:
    """Index of the bin of an age, which is at least 1."""
    return np.minimum(np.searchsorted(_EDGES, age, side="right"), len(_EDGES) - 1) - 1
