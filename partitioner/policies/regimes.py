"""How slow each stage is and how long that will last: one forward pass over a hidden semi-Markov model.

A stage is undisturbed, or disturbed at some level for a segment of some mean life::

                   hazard of starts              1 / life                     (most of the time)
    undisturbed  -------------------->  disturbed  -------->  undisturbed   or disturbed at another level
                                     life, level drawn

State: the probability of being undisturbed, shape (stages,), and of each life and level, shape (stages, lives, levels).
A request's log slowdown, or under a noisy load that of the mean of several, updates both. The same pass counts, by
their expectations, starts, ends and levels, for all stages together, so that hazard, lives and levels are those of this
machine. A mixture of lives makes survival depend on age: what has lasted for long will go on lasting. A stage that is
almost certainly undisturbed is followed without its lives, which are those of any disturbance that has just begun.

Forward filtering and expected counts: Rabiner, A tutorial on hidden Markov models, Proc. IEEE 77(2), 1989; online:
Cappé, Online EM algorithm for hidden Markov models, J. Comput. Graph. Stat. 20(3), 2011.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "LIVES", "RegimeFilter", "level_position"]

FloatArray = NDArray[np.float64]

LIVES: FloatArray = np.array([2.0, 6.0, 20.0, 80.0, 400.0])
"""Mean lives of disturbances, requests: shorter ones are over before a plan could follow, longer ones look alike."""

_PER_UNIT, _BELOW, _COUNT = 20.0, 8, 56
LEVELS: FloatArray = np.sinh((np.arange(_COUNT) - _BELOW) / _PER_UNIT)
"""Log slowdowns over the undisturbed level: 5% apart near it, 30% apart at the top, which is 180 times as slow."""

_UNDISTURBED_SD = 0.05
"""How far an undisturbed stage is from its slowly drifting level, as a standard deviation of the logarithm."""
_DRIFT_SD = 0.001
"""Drift of the undisturbed level per request, followed by a Kalman filter in its steady state: gain drift / noise."""
_MOST_DRIFT = 0.2
"""What is further off than this does not count as drift."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 0.2
_LOADED_NOISE = 1.6
"""Noise under a load over noise without, at least: loads come in bursts."""
_JUMP_RATE = 0.1
"""How fast the median of what a disturbed stage's time changes by from one request to the next is learned."""
_JUMP_OVER_SD = 0.954
"""That median over the standard deviation, if it is normal: 0.674 times the square root of 2."""
_TARGET_NOISE, _MOST_TOGETHER = 0.1, 16
"""So many requests are taken together under a load that the noise of their mean comes down to this: what changes with
each of them no plan could follow.
"""
_OUTLIER, _OUTLIER_DENSITY = 0.02, 0.3
"""Share of requests with a hiccup, and the density of its log slowdown: about uniform over 3 units."""
_SLIPS = 0.02
"""Share of requests that a load leaves alone, as they run between its turns."""
_BACK = 0.8
"""Share of disturbances after which the stage is undisturbed; after the others comes another level."""
_SPREAD = 0.04
"""Part of a level's probability that goes to each neighbour per request: loads do not hold a level exactly."""
_FIRST_STARTS, _FIRST_EXPOSURE = 0.5, 150.0
"""The prior of starts, in starts and undisturbed requests: one in 300, given up as soon as a few were seen."""
_MOST_EXPOSURE = 4000.0
"""Undisturbed requests, of all stages, after which half of what was learned of starts is forgotten."""
_FIRST_ENDS, _MOST_ENDS = 2.0, 200.0
"""Weight of the prior of lives, in ended segments; and after how many half of what was learned is forgotten."""
_FIRST_LEVELS = 4.0
"""Weight of the prior of levels, in ended segments; by it a slowdown twice as large is half as likely."""
_REFRESH = 8
"""Requests after which noise and counts, which change slowly, are used anew."""
_QUIET = 0.98
"""Probability from which a stage is followed without its lives."""
_TINY = 1e-12


def level_position(log_slowdown: FloatArray) -> FloatArray:
    """Place of log slowdowns on the grid of :data:`LEVELS`: 0 is the first, fractions between."""
    place: FloatArray = np.arcsinh(log_slowdown) * _PER_UNIT + _BELOW
    return place


_MEANS = np.append(0.0, LEVELS)
_FACTORS = np.exp(_MEANS)
_UNDISTURBED = np.exp(-0.5 * (LEVELS / _UNDISTURBED_SD) ** 2)
_UNDISTURBED /= _UNDISTURBED.sum()
_END = 1.0 / LIVES
_ENDS = 1.0 - (1.0 - _END) ** np.arange(_MOST_TOGETHER + 1)[:, None]
"""Probability that a disturbance ends within so many requests, shape (requests, lives)."""
_ALL = np.ones(1 + _COUNT)


def _spread(levels: FloatArray) -> None:
    """Give a part of each level's probability to its neighbours, along the last axis."""
    levels[..., 1:-1] += _SPREAD * (levels[..., :-2] + levels[..., 2:] - 2 * levels[..., 1:-1])


class RegimeFilter:
    """The posterior of every stage's regime, and what the regimes of this pipeline are like.

    Attributes
    ----------
    levels
        Probability that each stage is undisturbed, then of each level if it is not, shape (stages, 1 + levels).
    lives
        Probability of each mean life if it is not, shape (stages, lives): these, too, add up to 1 less the first.
    base
        Log slowdown of each undisturbed stage, shape (stages,); it drifts. Levels are relative to it.
    renewed
        Probability that each stage's conditions changed with the latest request, shape (stages,).
    quiet
        Whether all stages are almost certainly undisturbed.
    """

    def __init__(self, stages: int) -> None:
        self.levels: FloatArray = np.zeros((stages, 1 + _COUNT))
        self.levels[:, 0] = 1.0
        self.lives: FloatArray = np.zeros((stages, len(LIVES)))
        self.base: FloatArray = np.zeros(stages)
        self.renewed: FloatArray = np.zeros(stages)
        self.quiet = True
        self._updates = 0
        self._last: FloatArray = np.zeros(stages)
        self._jump: FloatArray = np.full(stages, _LEAST_NOISE)
        self._gathered: list[FloatArray] = []
        self._disturbed: FloatArray = np.zeros((stages, len(LIVES), _COUNT))
        self._starts: FloatArray = np.zeros((2, stages))
        self._exposure = _FIRST_EXPOSURE
        self._life_counts: FloatArray = np.full(len(LIVES), _FIRST_ENDS / len(LIVES))
        levels = np.where(LEVELS > _UNDISTURBED_SD, 1.0, 0.2) * np.exp(-LEVELS)
        self._level_counts: FloatArray = levels * (_FIRST_LEVELS / levels.sum())
        self._use_counts()

    @property
    def undisturbed(self) -> FloatArray:
        """Probability that each stage is undisturbed, shape (stages,)."""
        return self.levels[:, 0]

    @property
    def expected(self) -> FloatArray:
        """Logarithm of the expected slowdown of each stage now, shape (stages,)."""
        expected: FloatArray = np.log(self.levels @ _FACTORS) + self.base
        return expected

    def _use_counts(self) -> None:
        """Hazard of starts, distribution of lives, and of levels after a start (undisturbed is none of them)."""
        calm = self.levels[:, 0]
        starts = float(self._starts[0] @ calm + self._starts[1] @ (1.0 - calm))
        self.start_hazard = min((_FIRST_STARTS + starts) / self._exposure, 0.5)
        self._fresh_lives = self._life_counts / self._life_counts.sum()
        self._fresh = np.append(0.0, self._level_counts / self._level_counts.sum())

    def _use_noise(self, noise: FloatArray) -> None:
        """Likelihoods of a log slowdown that is so far off a level are peak * exp(exponent * off ** 2)."""
        noise = np.fmin(np.fmax(noise, _LEAST_NOISE), _MOST_NOISE)  # nan is the least
        sd = np.repeat(_LOADED_NOISE * noise[:, None], 1 + _COUNT, axis=1)
        sd[:, 0] = np.hypot(noise, _UNDISTURBED_SD)
        self._gain = _DRIFT_SD / noise
        self._exponents, self._peaks = -0.5 / (sd * sd), (1 - _OUTLIER) / math.sqrt(math.tau) / sd

    def take(self, log_slowdown: FloatArray, noise: FloatArray, measured: NDArray[np.bool_]) -> None:
        """Take one request, as :meth:`update`; under a noisy load only once there are enough of them for an update."""
        last, self._last = self._last, np.where(measured, np.minimum(log_slowdown, LEVELS[-1]), self._last)
        if self.quiet:
            self.update(log_slowdown, noise, measured)
            return
        disturbed = 1.0 - self.levels[:, 0]
        self._jump *= np.exp(_JUMP_RATE * measured * disturbed * np.sign(np.abs(self._last - last) - self._jump))
        sd = float((self._jump * disturbed).max()) / _JUMP_OVER_SD
        self._gathered.append(np.where(measured, np.exp(self._last), 0.0))
        if len(self._gathered) < min(round((sd / _TARGET_NOISE) ** 2), _MOST_TOGETHER):
            self.renewed = np.zeros(len(measured))
            return
        slowdowns, self._gathered = np.array(self._gathered), []
        seen = np.count_nonzero(slowdowns, axis=0)
        mean = np.where(seen, slowdowns.sum(axis=0), 1.0) / np.maximum(seen, 1)
        self.update(np.log(mean), noise, seen > 0, requests=len(slowdowns))

    def update(
        self, log_slowdown: FloatArray, noise: FloatArray, measured: NDArray[np.bool_], *, requests: int = 1
    ) -> None:
        """Take one request, or the mean of several.

        Parameters
        ----------
        log_slowdown
            Logarithm of each stage's time over its reference, shape (stages,), not nan.
        noise
            Standard deviation of that while nothing changes, shape (stages,).
        measured
            Which stages ran layers, shape (stages,): the others' regimes go on unseen.
        requests
            How many they are.
        """
        if self._updates % _REFRESH == 0:
            self._use_counts()
            self._use_noise(noise)
        self._updates += 1
        before, undisturbed = self.levels, self.levels[:, 0]
        off = np.minimum(log_slowdown - self.base, LEVELS[-1])
        drift = np.maximum(np.minimum(off, _MOST_DRIFT), -_MOST_DRIFT)
        self.base = self.base + drift * (measured * undisturbed) * self._gain
        like = np.subtract.outer(off, _MEANS)
        like *= like
        like *= self._exponents
        np.exp(like, out=like)
        like *= self._peaks
        like += _OUTLIER * _OUTLIER_DENSITY
        like[:, 1:] += _SLIPS * (like[:, :1] - like[:, 1:])
        if not measured.all():
            like[~measured] = 1.0

        # All stages in one pass: prediction, by levels alone, then the likelihoods; lives as if it had just begun.
        start, ends = min(requests * self.start_hazard, 0.5), _ENDS[requests]
        end = float(self._fresh_lives @ ends)
        now: FloatArray = before * (1.0 - end)
        now += np.multiply.outer(start * undisturbed + (1 - _BACK) * end * (1.0 - undisturbed), self._fresh)
        _spread(now[:, 1:])
        now[:, 0] = undisturbed * (1.0 - start) + _BACK * end * (1.0 - undisturbed)
        now *= like
        now *= (1.0 / (now @ _ALL))[:, None]
        self.levels, self.lives = now, np.multiply.outer(1.0 - now[:, 0], self._fresh_lives)
        self.renewed = np.zeros(len(now))
        if not (self.quiet and now[:, 0].min() > _QUIET):
            active = np.flatnonzero(np.minimum(undisturbed, now[:, 0]) <= _QUIET)
            self._follow(active, before[active], like[active], start, ends)
            self.quiet = bool(self.levels[:, 0].min() > _QUIET)
        self._exposure += requests * float(now[:, 0].sum())
        if self._exposure > _MOST_EXPOSURE:
            self._starts, self._exposure = self._starts / 2, self._exposure / 2

    def _follow(
        self, active: NDArray[np.int64], before: FloatArray, like: FloatArray, start: float, end: FloatArray
    ) -> None:
        """The same for stages that may be disturbed, with all their lives; learn from them."""
        # What began was followed without lives until now.
        calm, began = before[:, 0], before[:, 0] > _QUIET
        disturbed = self._disturbed[active]
        disturbed[began] = before[began, None, 1:] * self._fresh_lives[:, None]
        started, ends = start * calm, disturbed.sum(axis=2) * end
        share, ended = disturbed.sum(axis=1) / (1.0 + _TINY - calm)[:, None], ends.sum(axis=1)
        fresh = np.multiply.outer(started + (1 - _BACK) * ended, np.outer(self._fresh_lives, self._fresh[1:]))
        disturbed = disturbed * (1.0 - end)[:, None] + fresh
        _spread(disturbed)
        disturbed *= like[:, None, 1:]
        returns = _BACK * like[:, 0]
        undisturbed = (calm - started) * like[:, 0] + ended * returns
        scale = 1.0 / (undisturbed + disturbed.sum(axis=(1, 2)))
        undisturbed *= scale
        disturbed *= scale[:, None, None]
        self.levels[active, 0], self.levels[active, 1:] = undisturbed, disturbed.sum(axis=1)
        self.lives[active] = disturbed.sum(axis=2)
        disturbed[undisturbed > _QUIET] = 0.0
        self._disturbed[active] = disturbed

        fresh_like = like @ self._fresh
        starts, returned = started * fresh_like * scale, ended * returns * scale
        end_like = (returns + (1 - _BACK) * fresh_like) * scale
        self.renewed[active] = starts + ended * end_like
        # Starts until now, if it is undisturbed and if not: each by where the stage was one request before.
        by_calm, by_slow = self._starts[:, active]
        by_slow[began] = by_calm[began] + 1.0
        self._starts[0, active] += (by_slow - by_calm) * returned / undisturbed
        self._starts[1, active] = by_slow + (by_calm + 1.0 - by_slow) * starts / (1.0 + _TINY - undisturbed)
        self._life_counts += end_like @ ends
        self._level_counts += (end_like * ended) @ share
        if self._life_counts.sum() > _MOST_ENDS:
            self._life_counts, self._level_counts = self._life_counts / 2, self._level_counts / 2

    def ahead(self, requests: NDArray[np.int64]) -> FloatArray:
        """Distribution of the level of each stage so many requests from now, shape (times, stages, levels)."""
        # From (undisturbed, each life) to the same, one request later.
        step = np.diag(np.append(1.0 - self.start_hazard, 1.0 - _END))
        step[0, 1:] = self.start_hazard * self._fresh_lives
        step[1:, 0] = _BACK * _END
        step[1:, 1:] += (1 - _BACK) * _END[:, None] * self._fresh_lives
        now = np.append(self.levels[:, :1], self.lives, axis=1)
        undisturbed = np.array([now @ np.linalg.matrix_power(step, int(k))[:, 0] for k in requests])
        ahead: FloatArray = undisturbed[:, :, None] * _UNDISTURBED
        ahead += np.einsum("kl,slg->ksg", (1.0 - _END) ** requests[:, None], self._disturbed)
        ahead += np.maximum(1.0 - ahead.sum(axis=2, keepdims=True), 0.0) * self._fresh[1:]
        return ahead

    def survival(self, requests: float) -> FloatArray:
        """Probability that nothing changes on each stage for so many requests, shape (stages,)."""
        undisturbed = self.undisturbed * (1.0 - self.start_hazard) ** requests
        lasts: FloatArray = undisturbed + self.lives @ (1.0 - _END) ** requests
        return lasts

    def lasting_change(self, requests: int) -> float:
        """Probability that the conditions of all stages after the next change last for so many requests."""
        start, disturbed = self.start_hazard, float(self._fresh_lives @ (1.0 - _END) ** requests)
        starts, ends = self.undisturbed * start, self.lives @ _END
        after_end = _BACK * (1.0 - start) ** requests + (1 - _BACK) * disturbed
        lasts = self.survival(requests)
        others = lasts.prod() / np.maximum(lasts, _TINY)
        return float((starts * disturbed + ends * after_end) @ others / (starts + ends).sum())

    def if_undisturbed(self, stage: int) -> RegimeFilter:
        """What would be believed if a stage were known to be undisturbed: a copy."""
        other = copy.deepcopy(self)
        other.levels[stage], other.lives[stage], other._disturbed[stage] = np.eye(1 + _COUNT)[0], 0.0, 0.0
        return other
