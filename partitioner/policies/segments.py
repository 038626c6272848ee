"""What was observed under each stage's present conditions, as sums.

The samples of a stage since its conditions last changed are its *segment*. Requests under several plans may belong to
one segment; every sample counts for the stage that ran the layer. Requests wait, and are put into the matrices of
stages by layers together when somebody asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation
from odin.partitioner.policies.plan_arrays import PlanArraysCache

__all__ = ["LEAST_NOISE", "LEAST_S", "Segments", "Tail"]

FloatArray = NDArray[np.float64]

LEAST_S = 1e-9
"""For layers that take no time that a clock can see."""
LEAST_NOISE = 0.01

_PRIOR_SAMPLES = 2.0
"""Weight of the detector's noise estimate beside a segment's own spread."""
_MEMORY = 512.0
"""Samples after which half of them are forgotten, so that slow drift is followed."""
_KEPT = 64
"""Latest requests that are kept one by one, for segments to begin in the past."""
_LONG_RUN, _LONG_RUN_PER_STAGE = 64, 8
"""Requests over which conditions that change too fast are averaged: several migration lags."""
_ABSENCE = 16
"""Requests after which what was known of a stage without layers no longer counts as its present conditions."""


class Tail(NamedTuple):
    """A stage's latest samples: assigned, seen, seconds of each layer, (3, layers); of the stage; which under the
    plan.
    """

    layers: FloatArray
    stage_s: FloatArray
    present: NDArray[np.bool_]


class Segments:
    """Every stage's segment, the latest requests one by one, and an average over all conditions.

    Parameters
    ----------
    baseline_s
        Finite seconds above 0, shape (stages, layers).
    plan
        The plan that serving starts with.
    plan_arrays
        Plans as arrays.

    Attributes
    ----------
    assigned, seen, layer_s
        For each layer on each stage: requests in which it was assigned to the stage, those in which it was measured,
        and its seconds in these, shape (stages, layers). Complete after :meth:`file`.
    stage_s
        Seconds of each stage in all its samples, shape (stages,). Complete after :meth:`file`.
    plan
        The one that requests run under.
    window
        Requests that the long run is an average over.
    """

    def __init__(self, baseline_s: FloatArray, plan: Plan, plan_arrays: PlanArraysCache) -> None:
        self._baseline_s, self._plan_arrays = baseline_s, plan_arrays
        stages, layers = baseline_s.shape
        shape = (stages, layers)
        self._layers = np.arange(layers)
        self.assigned: FloatArray = np.zeros(shape)
        self.seen: FloatArray = np.zeros(shape)
        self.layer_s: FloatArray = np.zeros(shape)
        self.stage_s: FloatArray = np.zeros(stages)
        self._filed: FloatArray = np.zeros(stages)

        self.plan = plan
        self._now = plan_arrays.of(plan)
        self._waiting: list[Observation] = []  # under the running plan
        self._left_at = np.full(stages, -_ABSENCE)

        # Spread: squares of relative deviations from the mean under one plan, and how many of them are independent;
        # and the sums for that since the running plan began, or the segment did.
        self._noise = np.full(stages, LEAST_NOISE)
        self._squares, self._freedom = np.zeros(stages), np.zeros(stages)
        self._plan_n, self._plan_s, self._plan_s2 = np.zeros(stages), np.zeros(stages), np.zeros(stages)

        self._ring_stage_s, self._ring_layer_s = np.zeros((_KEPT, stages)), np.zeros((_KEPT, layers))
        self._ring_arrays = [self._now] * _KEPT
        self._taken = 0
        self.window = max(_LONG_RUN, _LONG_RUN_PER_STAGE * stages)
        self._long_ratio, self._long_square = np.ones(stages), np.ones(stages)

    # -- samples in -------------------------------------------------------------------------------------------------

    def add(self, observation: Observation) -> None:
        """Add one request under the running plan."""
        self._waiting.append(observation)
        if len(self._waiting) == _KEPT:
            self.file()

    def adopt(self, plan: Plan, request: int) -> list[int]:
        """Begin with requests under another plan; returns stages that have layers again after a long time without."""
        self.file()
        self._close_spread()
        had, now = self._now.has, self._plan_arrays.of(plan)
        self._left_at[had] = request - 1
        self.plan, self._now = plan, now
        back = ~had & now.has & (self._left_at < request - _ABSENCE)
        return [int(stage) for stage in np.flatnonzero(back)]

    def file(self) -> None:
        """Put what waits where it belongs."""
        count = len(self._waiting)
        if count == 0:
            return
        stage_s = np.array([observation.stage_s for observation in self._waiting])
        layer_s = np.array([observation.layer_s for observation in self._waiting])
        self._noise = self._waiting[-1].noise
        self._waiting.clear()
        now, at = self._now, (self._now.stage_of, self._now.layers)
        rows = (self._taken + np.arange(count)) % _KEPT
        self._ring_stage_s[rows], self._ring_layer_s[rows] = stage_s, layer_s
        for row in rows.tolist():
            self._ring_arrays[row] = now

        missing = np.isnan(layer_s)
        self.assigned[at] += count
        self.seen[at] += count - missing.sum(axis=0)
        self.layer_s[at] += np.where(missing, 0.0, layer_s).sum(axis=0)
        sum_s = stage_s.sum(axis=0)
        self.stage_s += sum_s
        self._filed += count * now.has
        self._plan_n += count * now.has
        self._plan_s += sum_s
        self._plan_s2 += (stage_s * stage_s).sum(axis=0)
        ratio = stage_s * now.per_reference
        self._average(ratio)
        self._taken += count
        self._halve_old()

    def _average(self, ratio: FloatArray) -> None:
        """Take seconds over baselines into the long run, exponentially weighted, (requests, stages)."""
        taken = self._taken + 1.0 + np.arange(len(ratio))
        left = np.append(np.cumprod(1.0 - np.maximum(1.0 / taken, 1.0 / self.window)[::-1])[::-1], 1.0)
        weight, has = left[1:] - left[:-1], self._now.has
        self._long_ratio = np.where(has, left[0] * self._long_ratio + weight @ ratio, self._long_ratio)
        self._long_square = np.where(has, left[0] * self._long_square + weight @ (ratio * ratio), self._long_square)

    def _halve_old(self) -> None:
        if self._filed.max() > _MEMORY:
            old = self._filed > _MEMORY
            for sums in (self.assigned, self.seen, self.layer_s, self.stage_s, self._filed):
                sums[old] *= 0.5
        if self._plan_n.max() > _MEMORY:
            old = self._plan_n > _MEMORY
            for sums in (self._plan_n, self._plan_s, self._plan_s2):
                sums[old] *= 0.5

    def _close_spread(self) -> None:
        """Count the spread under the plan that ends; the next plan's mean is another one."""
        squares, freedom = self._spread_now()
        self._squares += squares
        self._freedom += freedom
        for sums in (self._plan_n, self._plan_s, self._plan_s2):
            sums.fill(0.0)

    def _spread_now(self) -> tuple[FloatArray, FloatArray]:
        n = np.maximum(self._plan_n, 1.0)
        mean_s = np.maximum(self._plan_s / n, LEAST_S)
        squares = np.maximum(self._plan_s2 - n * mean_s**2, 0.0) / mean_s**2
        freedom = np.maximum(self._plan_n - 1.0, 0.0)
        return np.where(freedom > 0, squares, 0.0), freedom

    # -- segments begin ---------------------------------------------------------------------------------------------

    def cut(self, stage: int, age: int) -> Tail:
        """Take the latest ``age`` samples of a stage off its segment."""
        self.file()
        tail = self._tail(stage, age)
        for whole, part in zip((self.assigned, self.seen, self.layer_s), tail.layers, strict=True):
            whole[stage] = np.maximum(whole[stage] - part, 0.0)
        self.stage_s[stage] = max(self.stage_s[stage] - tail.stage_s.sum(), 0.0)
        self._filed[stage] = max(self._filed[stage] - len(tail.stage_s), 0.0)
        return tail

    def begin(self, stage: int, tail: Tail) -> None:
        """Forget a stage's segment and begin another with the samples that were cut off."""
        for whole, part in zip((self.assigned, self.seen, self.layer_s), tail.layers, strict=True):
            whole[stage] = part
        self.stage_s[stage], self._filed[stage] = tail.stage_s.sum(), len(tail.stage_s)
        self._squares[stage] = self._freedom[stage] = 0.0
        present = tail.stage_s[tail.present]
        self._plan_n[stage], self._plan_s[stage] = len(present), present.sum()
        self._plan_s2[stage] = (present**2).sum()

    def _tail(self, stage: int, age: int) -> Tail:
        """The latest ``age`` samples of a stage, as far back as they are kept."""
        layers = np.zeros((3, len(self._layers)))
        stage_s: list[float] = []
        present: list[bool] = []
        for back in range(1, min(self._taken, _KEPT) + 1):
            if len(stage_s) >= age:
                break
            row = (self._taken - back) % _KEPT
            arrays = self._ring_arrays[row]
            if not arrays.has[stage]:
                continue
            mine = arrays.stage_of == stage
            measured = mine & ~np.isnan(self._ring_layer_s[row])
            layers[0] += mine
            layers[1] += measured
            layers[2, measured] += self._ring_layer_s[row, measured]
            stage_s.append(float(self._ring_stage_s[row, stage]))
            present.append(arrays.plan == self.plan)
        return Tail(layers, np.array(stage_s), np.array(present, dtype=bool))

    # -- figures out ------------------------------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """Requests so far."""
        return self._taken + len(self._waiting)

    @property
    def has(self) -> NDArray[np.bool_]:
        """Which stages have layers under the running plan, shape (stages,)."""
        return self._now.has

    @property
    def samples(self) -> FloatArray:
        """Requests in each stage's segment, shape (stages,)."""
        self.file()
        return self._filed.copy()

    @property
    def spread(self) -> FloatArray:
        """Relative standard deviation of one sample of each stage under its present conditions, shape (stages,)."""
        self.file()
        squares, freedom = self._spread_now()
        total = _PRIOR_SAMPLES * np.maximum(self._noise, LEAST_NOISE) ** 2 + self._squares + squares
        spread: FloatArray = np.sqrt(total / (_PRIOR_SAMPLES + self._freedom + freedom))
        return spread

    def under_present_plan(self) -> tuple[FloatArray, FloatArray]:
        """Mean seconds of each stage under the present plan and conditions, and of how many requests, (stages,)."""
        self.file()
        return self._plan_s / np.maximum(self._plan_n, 1.0), self._plan_n.copy()

    def ratio(self) -> FloatArray:
        """Seconds over baselines of each stage in its segment, shape (stages,); ``nan`` without samples."""
        self.file()
        reference_s = (self.assigned * self._baseline_s).sum(axis=1)
        ratio: FloatArray = np.divide(
            self.stage_s, reference_s, out=np.full_like(reference_s, np.nan), where=reference_s > 0
        )
        return ratio

    def long_run(self) -> tuple[FloatArray, FloatArray]:
        """The same over the latest requests, whatever the conditions; and its relative variance, (stages,) each."""
        self.file()
        return self._long_ratio, np.maximum(self._long_square / self._long_ratio**2 - 1.0, 0.0)

    def latest_shift(self, latest: int) -> FloatArray:
        """Logarithm of the mean of each stage's latest requests over its segment's, shape (stages,); 0.0 if unknown."""
        self.file()
        rows = (self._taken - 1 - np.arange(min(latest, self._taken, _KEPT))) % _KEPT
        per_reference = np.array([self._ring_arrays[row].per_reference for row in rows.tolist()])
        mean = (self._ring_stage_s[rows] * per_reference).mean(axis=0)
        ratio = np.where(mean > 0, mean, np.nan) / self.ratio()
        shift: FloatArray = np.nan_to_num(np.log(ratio))
        return shift
