"""Whether moving pays: a shadow comparison of always moving to the predicted best plan with always staying at home.

A move takes effect after the migration lag: requests already in the pipeline finish under the old plan. Where
conditions persist no longer than that, every move comes too late, and staying would have been better. Both can be
judged whatever is really done, since each request tells every stage's present slowdown ``rho``: two lines of stages are
simulated, in which a request takes ``rho_i * reference_i(plan) + transfer_i(plan)`` on stage i, one under the home
plan, one under the shadow plan, which is in force ``lag`` requests after it was predicted to be best::

    record     = running mean of  what a request takes longer in the home plan's line

The record is taken while the two plans differ, in units of the home plan's undisturbed time. Moving pays while it is
positive. It cannot fall below minus its ``doubt``, and pays again when it is above that: so one bad stretch is soon
forgiven. The doubt doubles each time that moving is resumed and soon given up again.

Without it an unloaded host that was recorded led to 106 and 42 moves in place of 4 and 12 (docs/measurements.md).
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Setting
from odin.partitioner.policies.plan_arrays import PlanArrays, PlanArraysCache

__all__ = ["ShadowComparison"]

FloatArray = NDArray[np.float64]

_LEAST_S = 1e-9
_MEMORY, _MEMORY_PER_LAG = 64.0, 2.0
"""Requests over which the record is a mean, at least; of migration lags, at least."""
_CREDIT = 0.1
"""Until shown otherwise, moving pays, unless the migration lag is long."""
_LEAST_DOUBT, _MOST_DOUBT = 0.05, 0.4
_TRIED = 256
"""Requests before which moving is given up soon; after each so many of moving the doubt is halved."""
_MOST_CREDIT = 0.5
_LONG_LAG = 32
"""Migration lag from which on conditions must be seen to persist first."""
_MOST = 8.0
"""No single request counts more than this."""
_LAG_RATE = 0.2


class ShadowComparison:
    """The record of always moving against always staying.

    Attributes
    ----------
    pays
        Whether moving has been better than staying.
    lag
        Requests that finish under the old plan after a decision.
    """

    def __init__(self, setting: Setting, plan_arrays: PlanArraysCache) -> None:
        self._plan_arrays = plan_arrays
        self._rho = np.ones(setting.stage_count)
        self._home = self._follower = plan_arrays.of(setting.plan)
        self._apart = False
        self._unit_s = max(float((self._home.reference_s + self._home.transfer_s).max()), _LEAST_S)
        self._coming: deque[tuple[int, PlanArrays]] = deque()
        self._lines = _Line(setting.stage_count), _Line(setting.stage_count)
        self._apart_until = 0
        self._since = -_TRIED
        self.lag = 2.0 * setting.stage_count
        self.pays = self.lag <= _LONG_LAG
        self._record = _CREDIT if self.pays else 0.0
        self._doubt = self._least_doubt = _LEAST_DOUBT * max(1.0, self.lag / _LONG_LAG)

    def observe_lag(self, lag: int) -> None:
        """Take note that ``lag`` requests after a decision finished under the old plan."""
        self.lag += _LAG_RATE * (lag - self.lag)

    def settle(self, home: Plan) -> None:
        """Take note of another home plan."""
        self._home = self._plan_arrays.of(home)
        self._apart = self._follower.plan != home

    def follow(self, plan: Plan, request: int) -> None:
        """Let the shadow plan move to what is predicted to be best now."""
        if plan != (self._coming[-1][1] if self._coming else self._follower).plan:
            self._coming.append((request + round(self.lag) + 1, self._plan_arrays.of(plan)))

    def take(self, stage_s: FloatArray, plan: Plan, request: int) -> None:
        """Take the seconds of each stage under a plan, shape (stages,)."""
        while self._coming and self._coming[0][0] <= request:
            self._follower = self._coming.popleft()[1]
            self._apart = self._follower.plan != self._home.plan
        if not self._apart and request > self._apart_until:
            return
        arrays = self._plan_arrays.of(plan)
        np.divide(stage_s, arrays.reference_s, out=self._rho, where=arrays.reference_s > 0)
        if request > self._apart_until:
            self._lines = _Line(len(plan)), _Line(len(plan))
        if self._apart:
            self._apart_until = request + 2 * round(self.lag)
        in_flight = max(1, round(self.lag) + 1)
        home_s = self._lines[0].take(self._stage_times(self._home), in_flight=in_flight)
        follower_s = self._lines[1].take(self._stage_times(self._follower), in_flight=in_flight)
        saved = (home_s - follower_s) / self._unit_s
        rate = 1.0 / max(_MEMORY, _MEMORY_PER_LAG * self.lag)
        record = self._record + rate * (min(max(saved, -_MOST), _MOST) - self._record)
        self._record = min(max(record, -self._doubt), _MOST_CREDIT)
        self._judge(request)

    def _judge(self, request: int) -> None:
        """Does it pay?"""
        if self.pays:
            if self._record <= 0.0:
                self.pays = False
                if request - self._since < _TRIED:
                    self._doubt = min(2 * self._doubt, _MOST_DOUBT)
            elif request - self._since >= _TRIED:
                self._since = request
                self._doubt = max(self._doubt / 2, self._least_doubt)
        elif self._record >= self._doubt:
            self.pays = True
            self._since = request

    def _stage_times(self, arrays: PlanArrays) -> list[float]:
        seconds: list[float] = (self._rho * arrays.reference_s + arrays.transfer_s).tolist()
        return seconds


class _Line:
    """A line of stages with room for two requests between neighbours, in a closed loop.

    With the time D[r, s] at which request r leaves stage s after w[r, s] seconds there::

        D[r, s] = max(max(D[r, s-1], D[r-1, s]) + w[r, s],  D[r-2, s+1])
    """

    __slots__ = ("_finished_s", "_left_before_s", "_left_s")

    def __init__(self, stages: int) -> None:
        self._left_s, self._left_before_s = [0.0] * stages, [0.0] * stages
        self._finished_s: deque[float] = deque([0.0])

    def take(self, busy_s: list[float], *, in_flight: int) -> float:
        """Let a request pass, with its seconds on each stage; by how much later than the one before it finishes."""
        finished_s = self._finished_s
        while len(finished_s) > in_flight:
            finished_s.popleft()
        at_s = finished_s[0] if len(finished_s) == in_flight else 0.0
        # A list that the one before last no longer needs takes what this one leaves.
        left_s, before_s = self._left_s, self._left_before_s
        last = len(busy_s) - 1
        for stage, seconds in enumerate(busy_s):
            free_s = left_s[stage]
            at_s = (at_s if at_s > free_s else free_s) + seconds
            if stage < last and before_s[stage + 1] > at_s:
                at_s = before_s[stage + 1]
            before_s[stage] = at_s
        self._left_s, self._left_before_s = before_s, left_s
        interval_s = at_s - finished_s[-1]
        finished_s.append(at_s)
        return interval_s
