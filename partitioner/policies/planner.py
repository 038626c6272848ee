"""The best plan for the estimated layer times, computed again only if these have changed."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.balance.costs import stage_times
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Setting
from odin.partitioner.policies.forecast import Estimate, Forecast
from odin.partitioner.policies.plan_arrays import PlanArraysCache

__all__ = ["Planner"]

FloatArray = NDArray[np.float64]


class _Solved(NamedTuple):
    """The last solution, and the times that it is for."""

    present: Forecast
    best: Forecast
    level: FloatArray


class Planner:
    """Finds the best plan for estimated times, and predicts the times of any plan.

    Parameters
    ----------
    setting
        The pipeline: baselines and transfer times.
    plan_arrays
        Cache of plans as arrays.
    near
        Relative difference between times that counts as none.

    Attributes
    ----------
    home
        The preferred plan: chosen over others that are about as good. It is the plan that serving starts with if that
        is about as good as the best one for the baselines, else the latter. (A policy may start under a plan that was
        made for a load.)
    """

    def __init__(self, setting: Setting, plan_arrays: PlanArraysCache, *, near: float) -> None:
        self._setting, self._plan_arrays, self._near = setting, plan_arrays, near
        best = balance(setting.baseline_s, send_s=setting.send_s, receive_s=setting.receive_s)
        start_s = max(stage_times(setting.plan, setting.baseline_s, setting.send_s, setting.receive_s))
        self.home = setting.plan if start_s <= best.bottleneck_s * (1 + near) else best.plan
        self._solved: _Solved | None = None

    def forecast(self, estimate: Estimate, plan: Plan) -> Forecast:
        """Predict a plan's times."""
        return estimate.forecast(self._plan_arrays.of(plan))

    def solve(self, estimate: Estimate) -> Forecast:
        """The best plan for these times."""
        plan = balance(estimate.times_s, send_s=self._setting.send_s, receive_s=self._setting.receive_s).plan
        return self.forecast(estimate, plan)

    def at_home_if_as_good(self, estimate: Estimate, best: Forecast) -> Forecast:
        """The home plan, unless it is slower than ``best`` by more than a standard error."""
        home = self.forecast(estimate, self.home)
        loss = math.log(home.bottleneck_s / best.bottleneck_s)
        unsure = math.hypot(home.bottleneck_error, best.bottleneck_error)
        return home if loss <= max(unsure, math.log1p(self._near)) else best

    def best(self, estimate: Estimate, present: Forecast, banned: Set[Plan]) -> Forecast:
        """The best plan; the home plan if about as good; the last solution if the times are about the same.

        If the best plan is banned: the present plan.
        """
        solved = self._solved
        if solved is not None and solved.present.plan == present.plan and solved.best.plan not in banned:
            best = self.forecast(estimate, solved.best.plan)
            same = np.abs(estimate.level - solved.level).max() <= self._near
            if same and present.is_like(solved.present, self._near) and best.is_like(solved.best, self._near):
                return best
        best = self.at_home_if_as_good(estimate, self.solve(estimate))
        if best.plan in banned:
            best = present
        self._solved = _Solved(present, best, estimate.level)
        return best
