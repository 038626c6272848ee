"""Whether it pays to follow changes: the record of a follower who always moves, beside one who stays at home.

A move is felt late: requests already in the pipeline finish under the old plan. Where conditions last no longer than
that, every move comes when it is over, and staying would have been better. Both can be judged whatever is really done,
since each request tells every stage's present slowdown ``rho``::

    time(plan) = max over stages i of  mean over about ``lag`` requests of  rho_i * reference_i(plan) + transfer_i(plan)
    record     = running mean of  time(home plan) - time(follower's plan, in force ``lag`` requests late)

The inner mean is what the queues between the stages do: they even out what is short. The record is taken while the two
plans differ, in units of the home plan's undisturbed time. Following pays while it is positive.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from partitioner.plan import Plan
from partitioner.policies.base import Setting

__all__ = ["Pursuit"]

FloatArray = NDArray[np.float64]

_LEAST_S = 1e-9
_RATE = 1.0 / 64
_CREDIT = 0.1
"""Until shown otherwise, following pays."""
_RESUME = 0.05
"""Record at which following begins to pay again."""
_MOST = 2.0
"""No single request counts more than this."""
_LAG_RATE = 0.2


class Pursuit:
    """The follower's record.

    Attributes
    ----------
    pays
        Whether following changes has been better than staying.
    lag
        Requests that finish under the old plan after a decision.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        finite_s = np.where(np.isfinite(setting.baseline_s), setting.baseline_s, 0.0)
        self._prefix_s = np.concatenate([np.zeros((setting.stage_count, 1)), np.cumsum(finite_s, axis=1)], axis=1)
        self._rho = np.ones(setting.stage_count)
        self._home = self._follower = self._arrange(setting.plan)
        self._unit_s = max(float((self._home[1] + self._home[2]).max()), _LEAST_S)
        self._coming: deque[tuple[int, tuple[Plan, FloatArray, FloatArray]]] = deque()
        self._home_s = self._follower_s = self._home[1]
        self._apart_until = 0
        self._record = _CREDIT
        self.pays = True
        self.lag = 2.0 * setting.stage_count

    def felt(self, lag: int) -> None:
        """Take note that ``lag`` requests after a decision finished under the old plan."""
        self.lag += _LAG_RATE * (lag - self.lag)

    def settle(self, home: Plan) -> None:
        """Take note of another home plan."""
        self._home = self._arrange(home)

    def follow(self, plan: Plan, request: int) -> None:
        """Let the follower move to what is predicted to be best now."""
        if plan != (self._coming[-1][1] if self._coming else self._follower)[0]:
            self._coming.append((request + round(self.lag) + 1, self._arrange(plan)))

    def take(self, stage_s: FloatArray, plan: Plan, request: int) -> None:
        """Take the seconds of each stage under a plan, shape (stages,)."""
        while self._coming and self._coming[0][0] <= request:
            self._follower = self._coming.popleft()[1]
        apart = self._follower[0] != self._home[0]
        if not apart and request > self._apart_until:
            return
        reference_s = self._arrange(plan)[1]
        np.divide(stage_s, reference_s, out=self._rho, where=reference_s > 0)
        if request > self._apart_until:
            self._home_s = self._follower_s = self._stage_times(self._home)
        if apart:
            self._apart_until = request + 2 * round(self.lag)
        rate = 2.0 / (2.0 + self.lag)
        self._home_s = self._home_s + rate * (self._stage_times(self._home) - self._home_s)
        self._follower_s = self._follower_s + rate * (self._stage_times(self._follower) - self._follower_s)
        saved = float(self._home_s.max() - self._follower_s.max()) / self._unit_s
        self._record += _RATE * (min(max(saved, -_MOST), _MOST) - self._record)
        self.pays = self._record > (0.0 if self.pays else _RESUME)

    def _stage_times(self, arranged: tuple[Plan, FloatArray, FloatArray]) -> FloatArray:
        return self._rho * arranged[1] + arranged[2]

    def _arrange(self, plan: Plan) -> tuple[Plan, FloatArray, FloatArray]:
        cuts = np.cumsum([0, *plan])
        stages = np.arange(len(plan))
        reference_s = self._prefix_s[stages, cuts[1:]] - self._prefix_s[stages, cuts[:-1]]
        return plan, reference_s, self._setting.receive_s[cuts[:-1]] + self._setting.send_s[cuts[1:]]
