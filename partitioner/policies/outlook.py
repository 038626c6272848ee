"""The expected bottleneck of plans at several times ahead, stages' slowdowns being independent and uncertain.

With F(t) the probability that the slowest stage takes no longer than t, which is the product of that of all stages::

    E[bottleneck] = integral of 1 - F(t) dt from 0

so no futures need to be drawn at random: all are weighed at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.policies.plan_arrays import PlanArrays
from odin.partitioner.policies.regimes import LEVELS, level_position

__all__ = ["Outlook"]

FloatArray = NDArray[np.float64]

_POINTS = 96
"""Times at which F is taken: some 6% apart, from the least to the largest that a plan can take."""
_IMPOSSIBLE_S = 1e6
"""For a layer on a stage that cannot run it: no plan that has it there is ever better."""
_FACTORS = np.exp(LEVELS)


class Outlook:
    """What plans are expected to take.

    Parameters
    ----------
    times_s
        Seconds of each layer on each undisturbed stage, shape (stages, layers).
    levels
        Distribution of each stage's level, shape (times, stages, levels).

    Attributes
    ----------
    factors
        Expected slowdown of each stage over ``times_s``, shape (times, stages).
    """

    def __init__(self, times_s: FloatArray, levels: FloatArray) -> None:
        self.times_s = times_s
        self.factors: FloatArray = levels @ _FACTORS
        self._prefix_s = np.zeros((len(times_s), times_s.shape[1] + 1))
        np.cumsum(np.where(np.isfinite(times_s), times_s, _IMPOSSIBLE_S), axis=1, out=self._prefix_s[:, 1:])
        # At place p + 1/2 of the grid all of level p is counted: 0 below the first level, 1 above the last.
        self._below = np.zeros((*levels.shape[:2], len(LEVELS) + 2))
        np.cumsum(levels, axis=2, out=self._below[:, :, 1:-1])
        self._below[:, :, -1] = 1.0

    def stage_s(self, arrays: PlanArrays) -> FloatArray:
        """Expected seconds of each stage under a plan, transfers included, shape (times, stages)."""
        stages = np.arange(len(self.times_s))
        undisturbed_s = self._prefix_s[stages, arrays.last] - self._prefix_s[stages, arrays.first]
        stage_s: FloatArray = self.factors * undisturbed_s + arrays.transfer_s
        return stage_s

    def expected_s(self, arrays: PlanArrays) -> FloatArray:
        """Expected seconds per request of the slowest stage under a plan, shape (times,)."""
        has = np.flatnonzero(arrays.has)
        undisturbed_s = self._prefix_s[has, arrays.last[has]] - self._prefix_s[has, arrays.first[has]]
        transfer_s = arrays.transfer_s[has]
        least_s = (undisturbed_s * _FACTORS[0] + transfer_s).max()
        most_s = 1.05 * (undisturbed_s * _FACTORS[-1] + transfer_s).max()
        at_s = np.geomspace(least_s, most_s, _POINTS)
        ratio = (at_s - transfer_s[:, None]) / undisturbed_s[:, None]
        place = np.clip(level_position(np.log(np.maximum(ratio, 1e-12))) + 0.5, 0.0, len(LEVELS) + 0.999)
        whole = place.astype(np.int64)
        lower, upper = self._below[:, has[:, None], whole], self._below[:, has[:, None], whole + 1]
        all_below = (lower + (place - whole) * (upper - lower)).prod(axis=1)
        expected_s: FloatArray = at_s[0] + (1.0 - 0.5 * (all_below[:, 1:] + all_below[:, :-1])) @ np.diff(at_s)
        return expected_s
