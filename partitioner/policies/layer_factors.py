"""What layers take beside their stage's slowdown: the kind of layer that a load slows most, and errors of baselines.

Stage i, layer l, at the stage's log slowdown x::

    ln time[i, l] = ln baseline[i, l] + x[i] + slope[i] * (memory_boundness[l] - its mean over the stage) + bias[i, l]

``x`` is a stage's slowdown over the baselines of its layers under the home plan: what these have in common is no bias.
``slope`` belongs to the present load: what was learned of it is worth as much as conditions are likely to have lasted
since. ``bias`` outlasts loads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.policies.base import Setting
from odin.partitioner.policies.kinds import memory_boundness
from odin.partitioner.policies.plan_arrays import PlanArrays

__all__ = ["LayerFactors"]

FloatArray = NDArray[np.float64]

_LAYER_NOISE = 0.1
"""Standard deviation of the logarithm of one layer's time in one request, the stage's slowdown taken out."""
_SLOPE_SD = 0.3
"""How much more a load slows layers that are one standard deviation more memory-bound, before anything was seen."""
_BIAS_SD = 0.15
"""How far a baseline is off, as a standard deviation of the logarithm, before anything was seen."""
_SLOPE_MEMORY = 50.0
"""Requests over which a slope is measured at most."""
_BIAS_MEMORY = 512.0
"""Requests over which a bias is a mean at most."""
_LEAST_S = 1e-9


class LayerFactors:
    """Learns from the times of single layers; without these all layers of a stage are slowed alike.

    Parameters
    ----------
    setting
        Baselines, and what kind of layers there are.
    home
        The plan under which stages' slowdowns hold what their layers' biases have in common.
    """

    def __init__(self, setting: Setting, home: PlanArrays) -> None:
        self._home = home
        self._possible = np.isfinite(setting.baseline_s)
        self._baseline_s = np.where(self._possible, np.maximum(setting.baseline_s, _LEAST_S), _LEAST_S)
        self._log_baseline = np.log(self._baseline_s)
        self._boundness = memory_boundness(setting.intensity)
        stages = setting.stage_count
        self._information, self._score, self._centre = np.zeros((3, stages))
        self._bias, self._seen = np.zeros(self._baseline_s.shape), np.zeros(self._baseline_s.shape)

    def take(self, arrays: PlanArrays, layer_s: FloatArray, log_slowdown: FloatArray, renewed: FloatArray) -> None:
        """Take one request.

        Parameters
        ----------
        arrays
            The plan that it ran under.
        layer_s
            Seconds of each layer, shape (layers,); what is not positive and finite was not measured.
        log_slowdown
            Of each stage, what its layers are known to take (:meth:`off`) taken out, shape (stages,).
        renewed
            Probability that each stage's conditions changed with it, shape (stages,).
        """
        stages, measured = len(renewed), (layer_s > 0) & (layer_s < np.inf)
        layers = np.flatnonzero(measured & np.isfinite(log_slowdown)[arrays.stage_of])
        of = arrays.stage_of[layers]
        at, boundness = (of, layers), self._boundness[layers]
        weight = self._baseline_s[at] * arrays.per_reference[of]
        total = np.bincount(of, weight, stages)
        centre = np.bincount(of, weight * boundness, stages) / np.maximum(total, _LEAST_S)
        self._centre = np.where(total > 0, centre, self._centre)
        off = boundness - centre[of]
        ratio = np.log(layer_s[layers]) - self._log_baseline[at] - log_slowdown[of]
        # Long layers count more; on average over the stage a layer counts as one.
        count = weight * np.bincount(of, minlength=stages)[of]
        keep = (1.0 - 1.0 / _SLOPE_MEMORY) * (1.0 - renewed)
        self._information = self._information * keep + np.bincount(of, count * off * off, stages)
        self._score = self._score * keep + np.bincount(of, count * off * (ratio - self._bias[at]), stages)
        self._seen[at] = np.minimum(self._seen[at] + 1.0, _BIAS_MEMORY)
        rest = ratio - self._slope()[of] * off
        self._bias[at] += (rest - self._bias[at]) / (self._seen[at] + (_LAYER_NOISE / _BIAS_SD) ** 2)

    def times_s(self, log_slowdown: FloatArray) -> FloatArray:
        """Seconds of each layer on each stage at log slowdowns, (stages, layers); ``inf`` where it cannot run."""
        tilt = self._slope()[:, None] * (self._boundness - self._centre[:, None])
        level = log_slowdown - self._over_baselines(self._home, np.exp(self._bias))
        times_s = self._baseline_s * np.exp(level[:, None] + tilt + self._bias)
        return np.where(self._possible, times_s, np.inf)

    def off(self, arrays: PlanArrays) -> FloatArray:
        """How much more a plan's layers exceed their baselines than the home plan's, by their biases: the difference of
        the logarithms of each stage's time over its baselines' sum, shape (stages,).
        """
        if arrays is self._home:  # a difference from itself
            return np.zeros(len(self._centre))
        factors = np.exp(self._bias)
        return self._over_baselines(arrays, factors) - self._over_baselines(self._home, factors)

    def _over_baselines(self, arrays: PlanArrays, factors: FloatArray) -> FloatArray:
        at = (arrays.stage_of, arrays.layers)
        share = self._baseline_s[at] * arrays.per_reference[arrays.stage_of]
        ratio = np.bincount(arrays.stage_of, share * factors[at], len(factors))
        over: FloatArray = np.log(np.where(ratio > 0, ratio, 1.0))
        return over

    def _slope(self) -> FloatArray:
        slope: FloatArray = self._score / (self._information + (_LAYER_NOISE / _SLOPE_SD) ** 2)
        return slope
