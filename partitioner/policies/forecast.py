"""Predicted times of plans, and their uncertainty."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.plan_arrays import PlanArrays

__all__ = ["Estimate", "Forecast"]

FloatArray = NDArray[np.float64]


class Forecast(NamedTuple):
    """The predicted times of a plan.

    Attributes
    ----------
    stage_s
        Seconds of each stage per request, transfers included, shape (stages,).
    error
        Standard deviation of the logarithm of ``stage_s`` that comes from noise, shape (stages,).
    doubt
        The same from layers that the stage has not run under these conditions, whose times are inferred, shape
        (stages,).
    """

    plan: Plan
    stage_s: FloatArray
    error: FloatArray
    doubt: FloatArray

    @property
    def bottleneck_s(self) -> float:
        """Seconds per request."""
        return float(self.stage_s.max())

    @property
    def bottleneck_error(self) -> float:
        """Largest error among the stages that are, or nearly are, the slowest."""
        return float(self.error[self._slow].max())

    @property
    def bottleneck_doubt(self) -> float:
        """Largest doubt among them."""
        return float(self.doubt[self._slow].max())

    def is_like(self, other: Forecast, near: float) -> bool:
        """Whether no stage's time differs by more than ``near`` of the bottleneck."""
        return bool((np.abs(self.stage_s - other.stage_s) <= near * other.stage_s.max()).all())

    @property
    def _slow(self) -> NDArray[np.bool_]:
        slow: NDArray[np.bool_] = self.stage_s >= 0.9 * self.stage_s.max()
        return slow


class Estimate(NamedTuple):
    """Times of all layers on all stages under the present conditions.

    Attributes
    ----------
    times_s
        Seconds, shape (stages, layers); ``inf`` where the baseline is.
    level
        Logarithm of time over baseline without the layers' biases, shape (stages,).
    slope
        Increase of the level per unit of memory-boundness, shape (stages,).
    level_error
        Standard error of ``level`` from the limited number of requests, shape (stages,).
    layer_variance
        Variance of the logarithm of each time given the level, for layers not measured on that stage now, shape
        (stages, layers).
    """

    times_s: FloatArray
    level: FloatArray
    slope: FloatArray
    level_error: FloatArray
    layer_variance: FloatArray

    def forecast(self, arrays: PlanArrays) -> Forecast:
        """Seconds of each stage under a plan."""
        stages, at = len(self.level), (arrays.stage_of, arrays.layers)
        times_s = self.times_s[at]
        stage_s = np.bincount(arrays.stage_of, times_s, stages)
        variance = np.bincount(arrays.stage_of, times_s * times_s * self.layer_variance[at], stages)
        error = np.where(stage_s > 0, self.level_error, 0.0)
        doubt = np.sqrt(variance) / np.where(stage_s > 0, stage_s, 1.0)
        return Forecast(arrays.plan, stage_s + arrays.transfer_s, error, doubt)
