"""What one of several pipelines on the same devices is measured to need: requests per second, seconds of its layers.

The wall time of a stage has three parts that must be told apart::

    wall = own (it computed) + delay (it was ready, others had its core)
    delay = what other tenants' stages computed meanwhile + what programs outside of them did

While the stage was ready, the other tenants had the core for a part ``u`` of the time, which is what they computed
there per second. So ``delay - u wall`` is due to outsiders. Only that, and what made ``own`` longer than the baseline,
counts as slowdown: what tenants take from each other is what planning them together is for.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.policies.base import Observation, Setting, TenantSetting

__all__ = ["StageMeans", "TenantMeasures"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HORIZON_S = 4.0
"""Requests of the last so many seconds count."""
_KEPT = 512
_LEAST_REQUESTS = 4
"""Before so many, of a pipeline that has just begun, neither what it needs nor how fast it is can be told."""
_NOT_MEASURED = 0.1
"""Standard error where nothing, or next to nothing, is measured."""
_LEAST_NOISE = 0.02
"""Of the logarithm of a stage's time."""


class StageMeans(NamedTuple):
    """Means over the latest requests, seconds per request, each of shape (stages,).

    Attributes
    ----------
    own_s, delay_s, baseline_s
        What it computed, waited for its core, and would compute undisturbed, while it had layers and since its
        conditions changed; ``nan`` if it had none.
    busy_s
        What it computed, over all these requests.
    """

    own_s: FloatArray
    delay_s: FloatArray
    baseline_s: FloatArray
    busy_s: FloatArray


class TenantMeasures:
    """Learns from one pipeline's finished requests.

    Parameters
    ----------
    setting
        The pipeline.

    Attributes
    ----------
    tenant
        What it is to others.
    now_s
        When its last request finished.
    """

    def __init__(self, setting: Setting) -> None:
        stages = setting.stage_count
        alone = TenantSetting("this pipeline", tuple(f"stage {stage}" for stage in range(stages)))
        self.setting, self.tenant = setting, setting.tenant or alone
        self._prefix_s = np.zeros((stages, setting.layer_count + 1))
        baseline_s = np.where(np.isfinite(setting.baseline_s), np.maximum(setting.baseline_s, 1e-9), 0.0)
        np.cumsum(baseline_s, axis=1, out=self._prefix_s[:, 1:])
        self._on_gpu = np.array(["gpu:" in device for device in self.tenant.devices])
        # The latest requests, in a ring: when they finished, their numbers, and own, delay and baseline seconds.
        self._at_s, self._numbers = np.zeros(_KEPT), np.zeros(_KEPT, dtype=np.int64)
        self._seconds = np.zeros((_KEPT, 3, stages))
        self._taken = 0
        self._since_s = np.full(stages, -math.inf)
        self._noise = _LEAST_NOISE
        self.now_s = 0.0

    def take(self, observation: Observation) -> None:
        """Take one finished request in."""
        at_s = observation.at_s
        if math.isnan(at_s):  # nobody else's clock matters
            interval_s = observation.interval_s
            at_s = self.now_s + (interval_s if math.isfinite(interval_s) else float(observation.stage_s.max()))
        self.now_s = max(self.now_s, at_s)
        cuts = np.array([0, *itertools.accumulate(observation.plan)])
        stages = np.arange(len(cuts) - 1)
        baseline_s = self._prefix_s[stages, cuts[1:]] - self._prefix_s[stages, cuts[:-1]]
        wall_s = np.where(baseline_s > 0, observation.stage_s, 0.0)
        delay_s = np.zeros(len(wall_s)) if observation.delay_s is None else np.minimum(observation.delay_s, wall_s)
        # A GPU does not tell who had it: what is above the baseline may have been others.
        delay_s = np.where(self._on_gpu, np.maximum(0.0, wall_s - baseline_s), delay_s)
        place = self._taken % _KEPT
        self._at_s[place], self._numbers[place] = self.now_s, observation.request
        self._seconds[place] = wall_s - delay_s, delay_s, baseline_s
        self._taken += 1
        self._noise = max(_LEAST_NOISE, float(np.nan_to_num(observation.noise).max()))
        for stage in np.flatnonzero(observation.changed).tolist():
            age = min(max(1, int(observation.age[stage])), self._taken, _KEPT)
            self._since_s[stage] = self._at_s[(self._taken - age) % _KEPT]

    # -- what it needs ----------------------------------------------------------------------------------------------

    def _places(self) -> IntArray:
        """Where the requests that are kept lie, oldest first."""
        return np.arange(max(0, self._taken - _KEPT), self._taken) % _KEPT

    def _recent(self, now_s: float) -> IntArray:
        """Of those within the horizon."""
        places = self._places()
        return places[np.searchsorted(self._at_s[places], now_s - HORIZON_S, side="right") :]

    def is_idle(self, now_s: float) -> bool:
        """Whether it had no requests of late."""
        return self._taken == 0 or bool(self._at_s[(self._taken - 1) % _KEPT] <= now_s - HORIZON_S)

    def rate_hz(self, now_s: float) -> float:
        """Requests per second of late; 0 if it is idle, and while it has just begun."""
        if self.is_idle(now_s):
            return 0.0
        places = self._places()
        # From the last one before the horizon, or the first one that is known.
        before = int(np.searchsorted(self._at_s[places], now_s - HORIZON_S, side="right"))
        first, last = places[max(0, before - 1)], places[-1]
        requests = int(self._numbers[last] - self._numbers[first])
        if before == 0 and requests < _LEAST_REQUESTS:
            return 0.0
        return requests / max(1e-9, max(now_s, float(self._at_s[last])) - float(self._at_s[first]))

    def rate_error(self, now_s: float) -> float:
        """Standard error of the logarithm of its rate."""
        at_s = self._at_s[self._recent(now_s)]
        if len(at_s) < _LEAST_REQUESTS:
            return 1.0 / math.sqrt(max(1, len(at_s)))
        intervals_s = np.diff(at_s)
        mean_s = float(intervals_s.mean())
        varies = float(intervals_s.std()) / mean_s if mean_s > 0 else 0.0
        return varies / math.sqrt(len(at_s))

    def stage_errors(self, now_s: float) -> FloatArray:
        """Standard error of the logarithm of each stage's time, shape (stages,)."""
        recent = self._recent(now_s)
        seconds = self._seconds[recent]
        counts = (self._at_s[recent, None] >= self._since_s) & (seconds[:, 2] > 0)
        errors: FloatArray = np.full(len(self._since_s), _NOT_MEASURED)
        for stage in np.flatnonzero(counts.any(axis=0)).tolist():
            own_s, delay_s, baseline_s = seconds[counts[:, stage], :, stage].T
            ratio = (own_s + delay_s) / baseline_s
            spread = float(ratio.std() / ratio.mean()) if ratio.mean() > 0 else 0.0
            # Of few samples the spread is not known either.
            spread = max(spread, self._noise) if len(ratio) >= _LEAST_REQUESTS else max(spread, _NOT_MEASURED)
            errors[stage] = spread / math.sqrt(len(ratio))
        return errors

    # -- how fast it is ---------------------------------------------------------------------------------------------

    def means(self, now_s: float) -> StageMeans:
        """Of each stage, since its conditions changed."""
        recent = self._recent(now_s)
        stages = len(self._since_s)
        if not len(recent):
            none = np.full(stages, math.nan)
            return StageMeans(none, none, none, np.zeros(stages))
        seconds = self._seconds[recent]
        counts = (self._at_s[recent, None] >= self._since_s) & (seconds[:, 2] > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            own_s, delay_s, baseline_s = (seconds * counts[:, None]).sum(axis=0) / counts.sum(axis=0)
        return StageMeans(own_s, delay_s, baseline_s, seconds[:, 0].mean(axis=0))

    def slowdown(self, means: StageMeans, others: FloatArray) -> FloatArray:
        """Time now, as if there were no other tenants, over the baseline, shape (stages,); ``nan`` where unknown.

        Parameters
        ----------
        means
            Its own.
        others
            Part of the time that other tenants computed on each stage's device, shape (stages,).
        """
        outside_s = np.maximum(0.0, means.delay_s - others * (means.own_s + means.delay_s))
        slowdown: FloatArray = (means.own_s + outside_s) / means.baseline_s
        return slowdown
