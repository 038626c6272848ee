"""What was observed under each stage's present conditions, as sums.

The samples of a stage since its conditions last changed are its *segment*. Requests under several plans may belong to
one segment; every sample counts for the stage that ran the layer. With each request only a few vectors are added to;
they are put into the matrices of stages by layers when somebody asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitioner.plan import Plan
from partitioner.policies.base import Observation

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
_LONG_RUN = 64
"""Requests over which conditions that change too fast are averaged."""
_ABSENCE = 16
"""Requests after which what was known of a stage without layers no longer counts as its present conditions."""


class _Held(NamedTuple):
    """A plan as arrays: which stage has each layer, which stages have any, 1 / their baselines (0 for the others)."""

    holder: NDArray[np.int64]
    has: FloatArray
    per_reference: FloatArray


class Tail(NamedTuple):
    """A stage's latest samples: held, seen, seconds of each layer, (3, layers); of the stage; which under the plan."""

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

    Attributes
    ----------
    held, seen, layer_s
        For each layer on each stage: requests in which it was there, those in which it was measured, and its seconds
        in these, shape (stages, layers). Complete after :meth:`file`.
    stage_s
        Seconds of each stage in all its samples, shape (stages,). Complete after :meth:`file`.
    """

    def __init__(self, baseline_s: FloatArray, plan: Plan) -> None:
        self._baseline_s = baseline_s
        stages, layers = baseline_s.shape
        shape = (stages, layers)
        self._layers = np.arange(layers)
        self.held: FloatArray = np.zeros(shape)
        self.seen: FloatArray = np.zeros(shape)
        self.layer_s: FloatArray = np.zeros(shape)
        self.stage_s: FloatArray = np.zeros(stages)
        self._filed: FloatArray = np.zeros(stages)

        # What came in under the running plan and is not in the arrays above yet.
        self.plan = plan
        self._now = self._arrange(plan)
        self._left_at = np.full(stages, -_ABSENCE)
        self._run_length = 0
        self._run_stage_s = np.zeros(stages)
        self._run_layer_s, self._run_seen = np.zeros(layers), np.zeros(layers)

        # Spread: squares of relative deviations from the mean under one plan, and how many of them are independent;
        # and the sums for that since the running plan began, or the segment did.
        self._noise = np.full(stages, LEAST_NOISE)
        self._squares, self._freedom = np.zeros(stages), np.zeros(stages)
        self._plan_n, self._plan_s, self._plan_s2 = np.zeros(stages), np.zeros(stages), np.zeros(stages)

        self._ring_stage_s, self._ring_layer_s = np.zeros((_KEPT, stages)), np.zeros((_KEPT, layers))
        self._ring_plan: list[tuple[Plan, _Held]] = [(plan, self._now)] * _KEPT
        self._taken = 0
        self._long_ratio, self._long_square = np.ones(stages), np.ones(stages)

    # -- samples in -------------------------------------------------------------------------------------------------

    def add(self, observation: Observation) -> None:
        """Add one request under the running plan."""
        stage_s, layer_s, now = observation.stage_s, observation.layer_s, self._now
        row = self._taken % _KEPT
        self._ring_stage_s[row], self._ring_layer_s[row] = stage_s, layer_s
        self._ring_plan[row] = observation.plan, now
        self._taken += 1

        self._run_length += 1
        self._run_stage_s += stage_s
        if (total_s := layer_s.sum()) == total_s:
            self._run_layer_s += layer_s
            self._run_seen += 1
        else:
            measured = ~np.isnan(layer_s)
            self._run_layer_s[measured] += layer_s[measured]
            self._run_seen += measured
        self._plan_n += now.has
        self._plan_s += stage_s
        self._plan_s2 += stage_s * stage_s
        ratio = stage_s * now.per_reference
        rate = max(1.0 / self._taken, 1.0 / _LONG_RUN)
        self._long_ratio += rate * (ratio - self._long_ratio) * now.has
        self._long_square += rate * (ratio * ratio - self._long_square) * now.has
        self._noise = observation.noise

    def adopt(self, plan: Plan, request: int) -> list[int]:
        """Begin with requests under another plan; returns stages that have layers again after a long time without."""
        self.file()
        self._close_spread()
        self._left_at[self._now.has > 0] = request - 1
        had, self.plan, self._now = self._now.has, plan, self._arrange(plan)
        back = (had == 0) & (self._now.has > 0) & (self._left_at < request - _ABSENCE)
        return [int(stage) for stage in np.flatnonzero(back)]

    def _arrange(self, plan: Plan) -> _Held:
        holder = np.repeat(np.arange(len(plan)), plan)
        reference_s = np.bincount(holder, weights=self._baseline_s[holder, self._layers], minlength=len(plan))
        has = (np.array(plan) > 0).astype(np.float64)
        return _Held(holder, has, has / np.where(has > 0, reference_s, 1.0))

    def file(self) -> None:
        """Put the running sums where they belong."""
        if self._run_length == 0:
            return
        holder = self._now.holder
        self.held[holder, self._layers] += self._run_length
        self.seen[holder, self._layers] += self._run_seen
        self.layer_s[holder, self._layers] += self._run_layer_s
        self.stage_s += self._run_stage_s
        self._filed += self._run_length * self._now.has
        self._run_length = 0
        for sums in (self._run_stage_s, self._run_layer_s, self._run_seen):
            sums.fill(0.0)
        if self._filed.max() > _MEMORY:
            old = self._filed > _MEMORY
            for sums in (self.held, self.seen, self.layer_s, self.stage_s, self._filed):
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
        for whole, part in zip((self.held, self.seen, self.layer_s), tail.layers, strict=True):
            whole[stage] = np.maximum(whole[stage] - part, 0.0)
        self.stage_s[stage] = max(self.stage_s[stage] - tail.stage_s.sum(), 0.0)
        self._filed[stage] = max(self._filed[stage] - len(tail.stage_s), 0.0)
        return tail

    def begin(self, stage: int, tail: Tail) -> None:
        """Forget a stage's segment and begin another with the samples that were cut off."""
        for whole, part in zip((self.held, self.seen, self.layer_s), tail.layers, strict=True):
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
            plan, held = self._ring_plan[row]
            if held.has[stage] == 0:
                continue
            mine = held.holder == stage
            measured = mine & ~np.isnan(self._ring_layer_s[row])
            layers[0] += mine
            layers[1] += measured
            layers[2, measured] += self._ring_layer_s[row, measured]
            stage_s.append(float(self._ring_stage_s[row, stage]))
            present.append(plan == self.plan)
        return Tail(layers, np.array(stage_s), np.array(present, dtype=bool))

    # -- figures out ------------------------------------------------------------------------------------------------

    @property
    def samples(self) -> FloatArray:
        """Requests in each stage's segment, shape (stages,)."""
        samples: FloatArray = self._filed + self._run_length * self._now.has
        return samples

    @property
    def spread(self) -> FloatArray:
        """Relative standard deviation of one sample of each stage under its present conditions, shape (stages,)."""
        squares, freedom = self._spread_now()
        total = _PRIOR_SAMPLES * np.maximum(self._noise, LEAST_NOISE) ** 2 + self._squares + squares
        spread: FloatArray = np.sqrt(total / (_PRIOR_SAMPLES + self._freedom + freedom))
        return spread

    def under_present_plan(self) -> tuple[FloatArray, FloatArray]:
        """Mean seconds of each stage under the present plan and conditions, and of how many requests, (stages,)."""
        return self._plan_s / np.maximum(self._plan_n, 1.0), self._plan_n.copy()

    def ratio(self) -> FloatArray:
        """Seconds over baselines of each stage in its segment, shape (stages,); ``nan`` without samples."""
        self.file()
        reference_s = (self.held * self._baseline_s).sum(axis=1)
        ratio: FloatArray = np.divide(
            self.stage_s, reference_s, out=np.full_like(reference_s, np.nan), where=reference_s > 0
        )
        return ratio

    def long_run(self) -> tuple[FloatArray, FloatArray]:
        """The same over the latest requests, whatever the conditions; and its relative variance, (stages,) each."""
        return self._long_ratio, np.maximum(self._long_square / self._long_ratio**2 - 1.0, 0.0)

    def drift(self, latest: int) -> FloatArray:
        """Mean of each stage's latest requests against its segment's, in standard errors, shape (stages,)."""
        rows = (self._taken - 1 - np.arange(min(latest, self._taken, _KEPT))) % _KEPT
        per_reference = np.array([self._ring_plan[row][1].per_reference for row in rows])
        mean = (self._ring_stage_s[rows] * per_reference).mean(axis=0)
        ratio = np.where(mean > 0, mean, np.nan) / self.ratio()
        score: FloatArray = np.nan_to_num(np.log(ratio) * np.sqrt(len(rows)) / self.spread)
        return score
