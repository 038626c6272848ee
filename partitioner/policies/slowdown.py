"""The slowdown model: from observed times to what every layer would take on every stage now, and how sure that is.

Stage i, layer l, in seconds::

    ln time[i, l] = ln baseline[i, l] + level[i] + slope[i] * memory_boundness[l] + layer_bias[i, l]

- ``level``, ``slope``: the stage's *present conditions*, fitted to the samples since its last detected change only.
  ``memory_boundness[l]`` is minus the logarithm of a layer's arithmetic intensity, standardised: another program may
  slow memory-bound layers more than others. A ridge pulls the slope to 0.
- ``layer_bias``: a layer's lasting deviation, mostly the error of its baseline. It outlasts changes of conditions. Its
  prior is what earlier conditions left, else what stages with the same kind of device showed, else 0; the layer's own
  samples, as far as they outweigh their noise, draw the prediction to what was measured. So layers that a stage has
  are predicted by their own times, and all others by those times of theirs that were seen elsewhere.

At last each stage's row is scaled so that the times of what it ran add up to what was measured: *arithmetic* means of
whole stages, since throughput follows these under bursty loads too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.policies.base import Observation, Setting
from odin.partitioner.policies.forecast import Estimate
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.segments import LEAST_NOISE, LEAST_S, Segments

__all__ = ["SlowdownModel", "kinds_of_devices", "memory_boundness"]

FloatArray = NDArray[np.float64]

_BIAS_SD = 0.15
"""How far a baseline is off, as a standard deviation of the logarithm, before anything was seen."""
_SHARED_SD = 0.08
"""The same where a stage of the same kind has run the layer."""
_BIAS_CHANGE_SD = 0.03
"""How much the bias may differ from one set of conditions to the next."""
_SLOPE_SD = 0.3
_LAYER_NOISE = 1.5
"""Noise of one layer over that of its stage."""
_LONG_RUN_INDEPENDENT = 16.0
"""Samples that an average over quickly changing conditions counts as at most: as many as the conditions in it."""
_KNOWN_LEVELS = 4
_LEAST_TO_RECUR = 4
"""Levels kept per stage (the calm one and the latest others), and the samples that they take."""
_RECURRING_SD = 0.03
"""How well a level that returns is expected to agree with the level then."""
_NEAR = 1.5
"""Standard errors within which a level is taken for one seen before."""
_CALM = 0.08
"""A level that is no more than this above the lowest one seen is undisturbed."""


class SlowdownModel:
    """Learns from finished requests.

    Parameters
    ----------
    setting
        Baselines and what kind of layers there are.
    plan_arrays
        Plans as arrays, if there are some already.

    Attributes
    ----------
    segments
        What was observed under each stage's present conditions.
    calm_level
        Lowest level that each stage has shown, shape (stages,); ``nan`` before its conditions have changed.
    level_before
        Level under the conditions before the present ones, shape (stages,); that of the baselines if there were none.
    """

    def __init__(self, setting: Setting, plan_arrays: PlanArraysCache | None = None) -> None:
        baseline_s = np.maximum(setting.baseline_s, LEAST_S)
        self._possible = np.isfinite(baseline_s)
        baseline_s = np.where(self._possible, baseline_s, LEAST_S)
        self._baseline_s, self._log_baseline = baseline_s, np.log(baseline_s)
        self._boundness = memory_boundness(setting.intensity)
        self._kinds = kinds_of_devices(self._log_baseline)
        stages = len(baseline_s)
        self._all = np.arange(stages)
        self.segments = Segments(baseline_s, setting.plan, plan_arrays or PlanArraysCache(setting))

        self._layer_bias = np.zeros(baseline_s.shape)
        self._bias_variance = np.full(baseline_s.shape, _BIAS_SD**2)
        self._ever_seen = np.zeros(baseline_s.shape, dtype=bool)
        self.calm_level: FloatArray = np.full(stages, np.nan)
        self.level_before: FloatArray = np.zeros(stages)
        self._calm_slope = np.zeros(stages)
        self._known_levels = np.full((stages, _KNOWN_LEVELS), np.nan)
        self._segments_ended = np.zeros(stages, dtype=np.int64)
        self._changes, self._changed_at = np.zeros(stages), np.zeros(stages)  # exponentially forgotten, as of when

    # -- samples in -------------------------------------------------------------------------------------------------

    def take(self, observation: Observation, *, quiet: bool = False) -> None:
        """Take one finished request in; ``quiet`` if it is known that no change was detected."""
        ages = {}
        if not quiet:
            ages = {int(stage): max(1, int(observation.age[stage])) for stage in np.flatnonzero(observation.changed)}
        if observation.plan != self.segments.plan:
            back = self.segments.adopt(observation.plan, observation.request)
            self._share_bias()
            ages = dict.fromkeys(back, 1) | ages
        self.segments.add(observation)
        if ages:
            self._restart(ages)

    def restart_shifted(self, *, latest: int, errors: float, least: float = 0.0) -> list[int]:
        """Begin new segments where the latest requests differ clearly though no change was detected.

        Parameters
        ----------
        latest
            How many requests, of a segment that has more than twice as many.
        errors
            Standard errors by which they must differ.
        least
            Logarithm by which they must differ.

        Returns
        -------
        list of int
            The stages.
        """
        segments = self.segments
        old = segments.samples > 2 * latest
        if not old.any():
            return []
        shift = segments.latest_shift(latest)
        error = np.divide(shift, segments.spread / math.sqrt(latest))
        stages = [int(stage) for stage in np.flatnonzero(old & (np.abs(error) > errors) & (np.abs(shift) > least))]
        if stages:
            self._restart(dict.fromkeys(stages, latest))
        return stages

    def _restart(self, ages: dict[int, int]) -> None:
        """Begin new segments with each stage's latest ``age`` samples; what the old ones taught is kept."""
        for stage in ages:
            self._changes[stage] = self._recent_changes()[stage] + 1.0
            self._changed_at[stage] = self.segments.taken
        tails = {stage: self.segments.cut(stage, age) for stage, age in ages.items()}
        samples = self.segments.samples
        self._remember(np.array([stage for stage in ages if samples[stage] >= 1], dtype=np.int64), samples)
        for stage, tail in tails.items():
            self.segments.begin(stage, tail)

    def _recent_changes(self) -> FloatArray:
        """Changes of each stage's conditions in the long run, shape (stages,)."""
        recent: FloatArray = self._changes * np.exp((self._changed_at - self.segments.taken) / self.segments.window)
        return recent

    # -- what persists ----------------------------------------------------------------------------------------------

    def _remember(self, rows: NDArray[np.int64], samples: FloatArray) -> None:
        """Keep what segments that end have taught about their layers, and their level."""
        if not len(rows):
            return
        fit = self._fit(rows)
        seen = self.segments.seen[rows] > 0
        self._layer_bias[rows] = np.where(seen, fit.layer_bias, self._layer_bias[rows])
        self._bias_variance[rows] = np.where(seen, fit.bias_variance + _BIAS_CHANGE_SD**2, self._bias_variance[rows])
        self._ever_seen[rows] |= seen
        self.level_before[rows] = fit.level
        calmer = ~(fit.level >= self.calm_level[rows])
        self.calm_level[rows[calmer]], self._calm_slope[rows[calmer]] = fit.level[calmer], fit.slope[calmer]

        self._known_levels[rows, 0] = self.calm_level[rows]
        sure = samples[rows] >= _LEAST_TO_RECUR
        column = self._segments_ended[rows[sure]] % (_KNOWN_LEVELS - 1) + 1
        self._known_levels[rows[sure], column] = fit.level[sure]
        self._segments_ended[rows[sure]] += 1

    def _share_bias(self) -> None:
        """Before layers come to stages that never ran them: keep what is expected of them there."""
        layer_bias, variance = self._shared(self._fit(self._all))
        fill = ~(self._ever_seen | (self.segments.seen > 0))
        self._layer_bias, self._bias_variance = (
            np.where(fill, layer_bias, self._layer_bias),
            np.where(fill, variance, self._bias_variance),
        )

    def _shared(self, fit: _Fit) -> tuple[FloatArray, FloatArray]:
        """Layer biases and their variance, stages having learned from those of the same kind of device what they never
        ran.
        """
        known = self._ever_seen | (self.segments.seen > 0)
        layer_bias, variance = fit.layer_bias, fit.bias_variance
        weight = np.where(known, 1.0 / (variance + _BIAS_CHANGE_SD**2), 0.0)
        for same in self._kinds:
            total = weight[same].sum(axis=0)
            # A prior at 0 keeps one noisy sample from being taken for the truth.
            mean = (weight[same] * layer_bias[same]).sum(axis=0) / (total + 1.0 / _BIAS_SD**2)
            fill = same[:, None] & ~known & (total > 0)
            layer_bias, variance = np.where(fill, mean, layer_bias), np.where(fill, _SHARED_SD**2, variance)
        return layer_bias, variance

    # -- estimates out ----------------------------------------------------------------------------------------------

    @property
    def calm(self) -> bool:
        """Whether no stage is above the lowest level it has shown."""
        self.segments.file()
        level = self._fit(self._all).level
        return bool((np.nan_to_num(level - self.calm_level) < _CALM).all())

    def rose(self, stage: int) -> bool:
        """Whether a stage is slower under its present conditions than before them; also if that is not known."""
        self.segments.file()
        level: FloatArray = self._fit(np.array([stage])).level
        return not level[0] <= self.level_before[stage]

    def estimate(self) -> Estimate:
        """What every layer would take on every stage now."""
        self.segments.file()
        fit = self._fit(self._all)
        samples = self.segments.samples
        known, level = samples > 0, fit.level
        if not known.all() and known.any():
            # A stage that never had layers is taken to be as much above its baselines as the others when undisturbed.
            level = np.where(known, level, np.median(np.fmin(self.calm_level, level)[known]))
        level_variance = np.where(known, self.segments.spread**2 / np.maximum(samples, 1.0), _BIAS_SD**2)
        shift, level_variance = self._recurring(level, level_variance)
        level = level + shift

        layer_bias, bias_variance = self._shared(fit)
        times_s = np.exp(self._log_baseline + level[:, None] + np.outer(fit.slope, self._boundness) + layer_bias)
        tilted = fit.slope_variance[:, None] * (self._boundness - fit.centre[:, None]) ** 2
        return Estimate(
            np.where(self._possible, times_s, np.inf),
            level,
            fit.slope,
            np.sqrt(level_variance),
            np.where(self.segments.assigned > 0, 0.0, bias_variance + tilted),
        )

    def _recurring(self, level: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Draw levels toward ones seen before, as far as they are near; the shift and the variance left."""
        distance = self._known_levels - level[:, None]
        nearest = np.argmin(np.where(np.isnan(distance), np.inf, np.abs(distance)), axis=1)
        distance = distance[np.arange(len(level)), nearest]
        near = np.abs(distance) < _NEAR * np.sqrt(variance)  # nan is not
        trust = np.where(near, variance / (variance + _RECURRING_SD**2), 0.0)
        return np.where(near, distance, 0.0) * trust, variance * (1.0 - trust)

    def in_the_long_run(self, estimate: Estimate) -> Estimate:
        """Replace the present conditions by their average over the latest requests, changes included."""
        long_run, variance = self.segments.long_run()
        factor = np.nan_to_num(long_run / self.segments.ratio(), nan=1.0)
        return estimate._replace(
            times_s=estimate.times_s * factor[:, None],
            level=estimate.level + np.log(factor),
            level_error=np.sqrt(variance / np.clip(self._recent_changes() / 2, 1.0, _LONG_RUN_INDEPENDENT)),
        )

    def undisturbed(self, estimate: Estimate, stage: int) -> Estimate:
        """Replace one stage's conditions by the calmest that it has shown."""
        if np.isnan(self.calm_level[stage]):
            return estimate
        change = self.calm_level[stage] - estimate.level[stage]
        change = change + (self._calm_slope[stage] - estimate.slope[stage]) * self._boundness
        times_s = estimate.times_s.copy()
        times_s[stage] *= np.exp(change)
        return estimate._replace(times_s=times_s)

    def _fit(self, rows: NDArray[np.int64]) -> _Fit:
        """Weighted least squares of the segments' layer means, then each layer's bias by its share of variance."""
        seen, boundness = self.segments.seen[rows], self._boundness
        has = seen > 0
        layer_bias, bias_variance, log_baseline = (
            self._layer_bias[rows],
            self._bias_variance[rows],
            self._log_baseline[rows],
        )
        count = np.where(has, seen, 1.0)
        log_ratio = np.where(has, np.log(np.maximum(self.segments.layer_s[rows], LEAST_S) / count) - log_baseline, 0.0)
        spread = self.segments.spread[rows, None]
        noise_variance = ((_LAYER_NOISE * spread) ** 2 + LEAST_NOISE**2) / count

        # Long layers count more: the level is that of the stage's time, not of its number of layers.
        baseline_s = self._baseline_s[rows] * has
        share = baseline_s * has.sum(axis=1, keepdims=True) / np.maximum(baseline_s.sum(axis=1, keepdims=True), LEAST_S)
        weight = share / (bias_variance + noise_variance)
        y = np.where(has, log_ratio - layer_bias, 0.0)
        total = np.maximum(weight.sum(axis=1), 1e-300)
        centre = weight @ boundness / total
        mean = (weight * y).sum(axis=1) / total
        off = boundness - centre[:, None]
        precision = (weight * off * off).sum(axis=1) + 1.0 / _SLOPE_SD**2
        slope = (weight * off * y).sum(axis=1) / precision
        level = np.where(has.any(axis=1), mean - slope * centre, np.nan_to_num(self.level_before[rows]))

        residual = np.where(has, y - level[:, None] - np.outer(slope, boundness), 0.0)
        layer_bias = layer_bias + residual * bias_variance / (bias_variance + noise_variance)
        kept = np.where(has, bias_variance * noise_variance / (bias_variance + noise_variance), bias_variance)

        # Whole stages must add up to what was measured, in the arithmetic mean.
        predicted_s = (
            self.segments.assigned[rows]
            * np.exp(log_baseline + level[:, None] + np.outer(slope, boundness) + layer_bias)
        ).sum(axis=1)
        stage_s = self.segments.stage_s[rows]
        measured = (stage_s > 0) & (predicted_s > 0)
        level = level + np.log(np.where(measured, stage_s, 1.0) / np.where(measured, predicted_s, 1.0))
        return _Fit(level, slope, layer_bias, kept, centre, 1.0 / precision)


class _Fit(NamedTuple):
    """Parameters of some stages; ``centre`` is where the slope turns, the mean memory-boundness of their layers."""

    level: FloatArray
    slope: FloatArray
    layer_bias: FloatArray
    bias_variance: FloatArray
    centre: FloatArray
    slope_variance: FloatArray


def memory_boundness(intensity: FloatArray) -> FloatArray:
    """Minus the logarithm of the arithmetic intensity, centred, with standard deviation 1; 0 where unknown."""
    boundness = np.zeros(len(intensity))
    known = np.isfinite(intensity) & (intensity > 0)
    if known.any():
        value = -np.log(intensity[known])
        spread = float(value.std())
        boundness[known] = (value - value.mean()) / spread if spread > 1e-6 else 0.0
    return boundness


def kinds_of_devices(log_baseline: FloatArray) -> list[NDArray[np.bool_]]:
    """Groups of stages whose baselines differ by no more than a factor, each a mask of shape (stages,)."""
    profile = np.round(log_baseline - log_baseline.mean(axis=1, keepdims=True), 6)
    numbers = np.unique(profile, axis=0, return_inverse=True)[1].reshape(-1)
    return [numbers == number for number in range(int(numbers.max()) + 1)]
