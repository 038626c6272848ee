"""Change points of the stages' slowdowns, found with the request that shows them: for times in which they are frequent.

A stage's samples ``x = ln(seconds / baseline seconds)`` since its last change point are taken for one level plus noise.
With each request the latest 1, 2, ... 8 of them are held against those before, as if they were of another level (``k``
of them, ``n`` before, ``v`` the variance of noise)::

    (mean of k - mean of n)^2 / (2 v (1/k + 1/n))  -  ln(sqrt(k) range / sqrt(2 pi v))   >   ln(1 / hazard)

On the left is the logarithm of the odds that the samples lend to a change point, its size being anything within
``range`` (Bayes' factor by Laplace's approximation); on the right those against one at a given request, so that the
more often changes come, the less evidence is asked for. What a detector for quiet times cannot do is thus learned: to
believe a single request. Whether a single request is to be believed, or is a hiccup, is learned from how often the next
one agreed with it.

Noise is not Gaussian: hiccups come in bursts, and levels drift. So nothing below some 20% is a change point.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation
from odin.partitioner.policies.plan_arrays import PlanArraysCache

__all__ = ["ChangePoint", "ChangePoints"]

FloatArray = NDArray[np.float64]

_LEAST_S = 1e-9
_BACK = 8
_RANGE = 2.0
"""Logarithms: slowdowns up to sevenfold."""
_MEMORY = 64.0
"""Samples that a level is worth at most."""
_LEAST_NOISE = 0.01
_LEAST_STEP = 0.2
"""Logarithm: what is less is drift."""
_PLAN_DOUBT = 0.04
"""How far a stage's level may be off after its layers have changed: what is the layers' own."""
_DISPLACED = 0.3
"""The first and the last sample after a change point are off by at least that part of its size, and of what the other
one is off: a hiccup among others is none."""
_MEDIAN = 0.954
"""Median distance of two samples of one level, in standard deviations of one."""
_STEP = 1.05
_SINGLES = 32


class ChangePoint(NamedTuple):
    """Of one stage: its samples since then, the present one included, and by how much its logarithm changed."""

    samples: int
    step: float


class _Single(NamedTuple):
    """One sample that is far off: what was before it, what it was, whether it was taken for a change point."""

    before: float
    after: float
    total: float
    samples: float
    believed: bool


class ChangePoints:
    """The levels of all stages since their last change points.

    Parameters
    ----------
    stages
        How many.
    plan_arrays
        Plans as arrays.
    """

    def __init__(self, stages: int, plan_arrays: PlanArraysCache) -> None:
        self._plan_arrays = plan_arrays
        self._k = np.arange(1.0, _BACK + 1)[:, None]
        self._spread = np.full(stages, np.nan)
        self._agreed, self._singles = 1.0, 2.0
        self.begin()

    def begin(self) -> None:
        """Forget the levels, not what was learned of noise and hiccups."""
        stages = len(self._spread)
        self._latest = np.zeros((_BACK, stages))  # newest first
        self._total, self._count = np.zeros(stages), np.zeros(stages)
        self._watched: dict[int, _Single] = {}
        self._plan: Plan | None = None

    def take(self, observation: Observation, *, hazard: float) -> dict[int, ChangePoint]:
        """Take one finished request in; ``hazard`` is the probability of a change per stage and request.

        Returns
        -------
        dict
            By stage, for those that have changed.
        """
        if observation.plan != self._plan:
            self._adopt(observation)
        has, total, count, latest = self._has, self._total, self._count, self._latest
        x = np.log(np.maximum(observation.stage_s, _LEAST_S) / self._reference_s)
        deviation = self._deviation(x, observation.noise)
        found = self._see_whether_singles_last(x)
        latest[1:, has] = latest[:-1, has]
        latest[0, has] = x[has]
        total[has] += x[has]
        count[has] += 1.0

        if self._nothing_new(x):
            self._forget(_MEMORY)
            return found
        before, over = self._evidence(deviation, hazard)
        singles = np.flatnonzero(over[0] > 0)
        if not self._believes_singles:
            over[0] = -np.inf
        changed = over.max(axis=0) > 0
        for stage in singles.tolist():
            believed = self._believes_singles and int(np.argmax(over[:, stage])) == 0
            if stage not in found and (believed or not changed[stage]):
                rest = float(total[stage] - x[stage]), float(count[stage] - 1.0)
                self._watched[stage] = _Single(float(before[0, stage]), float(x[stage]), *rest, believed)
        for stage in np.flatnonzero(changed).tolist():
            if stage not in found:
                k = int(np.argmax(over[:, stage])) + 1
                found[stage] = ChangePoint(k, float(latest[:k, stage].mean() - before[k - 1, stage]))
                total[stage], count[stage] = latest[:k, stage].sum(), k
        self._forget(_MEMORY)
        return found

    def _nothing_new(self, x: FloatArray) -> bool:
        """Whether the latest samples are so near to levels that are well known that none of them can show a change
        point.
        """
        known = np.where(self._has, self._count, math.inf)
        near = np.abs(self._total - self._count * x) < _LEAST_STEP / 2 * self._count
        return bool(known.min() >= 2 * _BACK and (near | ~self._has).all())

    def _adopt(self, observation: Observation) -> None:
        arrays = self._plan_arrays.of(observation.plan)
        self._has = arrays.has
        self._reference_s = np.maximum(arrays.reference_s, _LEAST_S)
        if self._plan is not None:
            self._forget(np.maximum((np.maximum(observation.noise, _LEAST_NOISE) / _PLAN_DOUBT) ** 2, 1.0))
        self._plan = observation.plan

    def _forget(self, most: FloatArray | float) -> None:
        """Let each level be worth no more than so many samples."""
        if (self._count > most).any():
            part = np.minimum(1.0, most / np.maximum(self._count, 1.0))
            self._total *= part
            self._count *= part

    def _deviation(self, x: FloatArray, noise: FloatArray) -> FloatArray:
        """Standard deviation of one sample: as reported, or more if neighbours differ by more.

        The median of their distances, whatever change points there are between some of them.
        """
        noise = np.maximum(noise, _LEAST_NOISE)
        if np.isnan(self._spread[0]):
            self._spread = noise.copy()
        off = np.where(np.abs(x - self._latest[0]) > _MEDIAN * self._spread, _STEP, 1 / _STEP)
        self._spread *= np.where(self._has & (self._count >= 1.0), off, 1.0)
        np.maximum(self._spread, noise / 2, out=self._spread)
        deviation: FloatArray = np.maximum(noise, self._spread)
        return deviation

    @property
    def _believes_singles(self) -> bool:
        return self._agreed > self._singles / 2

    def _see_whether_singles_last(self, x: FloatArray) -> dict[int, ChangePoint]:
        """Learn from the samples after single ones; a change point that was none is one back."""
        found = {}
        for stage in [stage for stage in self._watched if self._has[stage]]:
            single = self._watched.pop(stage)
            agrees = abs(x[stage] - single.after) < abs(x[stage] - single.before)
            if self._singles >= _SINGLES:
                self._singles, self._agreed = self._singles / 2, self._agreed / 2
            self._singles += 1
            self._agreed += agrees
            if not agrees:  # as if it had been a usual one
                self._total[stage], self._count[stage] = single.total + single.before, single.samples + 1
                self._latest[0, stage] = single.before
                if single.believed:
                    found[stage] = ChangePoint(1, single.before - single.after)
        return found

    def _evidence(self, deviation: FloatArray, hazard: float) -> tuple[FloatArray, FloatArray]:
        """Mean before the latest k samples, and log odds of a change point at the first of them, (8, stages) each."""
        k, latest = self._k, self._latest
        sums = np.cumsum(latest, axis=0)
        rest = self._count - k
        possible = (rest > 0.99) & self._has
        rest = np.where(possible, rest, 1.0)
        before = (self._total - sums) / rest
        step = sums / k - before
        step[step == 0] = 1e-9
        score = step * step / (1.0 / k + 1.0 / rest) / (2 * deviation**2)
        odds = np.log(_RANGE * np.sqrt(k / (2 * math.pi)) / (deviation * hazard))
        first, last = (latest - before) / step, (latest[0] - before) / step
        possible &= np.abs(step) > _LEAST_STEP
        possible &= np.minimum(first, last) > _DISPLACED * np.maximum(np.maximum(first, last), 1.0)
        return before, np.where(possible, score - odds, -np.inf)
