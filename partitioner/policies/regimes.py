"""How slow each stage is and how long that will last: one forward pass over a hidden semi-Markov model.

A stage is undisturbed, or disturbed at some level for a segment of some mean life::

                   hazard of starts              1 / life                     (most of the time)
    undisturbed  -------------------->  disturbed  -------->  undisturbed   or disturbed at another level
                                     life, level drawn

State: the probability of being undisturbed, shape (stages,), and of each life and level, shape (stages, lives, levels).
A request's log slowdown updates both. The same pass counts, by their expectations, starts, ends and levels, for all
stages together, so that hazard, lives and levels are those of this machine. A mixture of lives makes survival depend on
age: what has lasted for long will go on lasting.

Forward filtering and expected counts: Rabiner, A tutorial on hidden Markov models, Proc. IEEE 77(2), 1989; online:
Cappé, Online EM algorithm for hidden Markov models, J. Comput. Graph. Stat. 20(3), 2011.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "LIVES", "RegimeFilter", "level_position"]

FloatArray = NDArray[np.float64]

LIVES: FloatArray = np.array([2.0, 6.0, 20.0, 80.0, 400.0])
"""Mean lives of disturbances, requests: shorter ones are over before a plan could follow, longer ones look alike."""

_PER_UNIT, _BELOW, _COUNT = 20.0, 8, 56
LEVELS: FloatArray = np.sinh((np.arange(_COUNT) - _BELOW) / _PER_UNIT)
"""Log slowdowns over the undisturbed level: 5% apart near it, 20% apart at the top, which is 69 times as slow."""

_UNDISTURBED_SD = 0.05
"""How far an undisturbed stage is from its slowly drifting level, as a standard deviation of the logarithm."""
_DRIFT = 48.0
"""Undisturbed requests by which the drift of the undisturbed level is followed."""
_MOST_DRIFT = 0.2
"""What is further off than this does not count as drift."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 0.2
_LOADED_NOISE = 1.6
"""Noise under a load over noise without: loads come in bursts."""
_OUTLIER, _OUTLIER_DENSITY = 0.02, 0.3
"""Share of requests with a hiccup, and the density of its log slowdown: about uniform over 3 units."""
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


def level_position(log_slowdown: FloatArray) -> FloatArray:
    """Place of log slowdowns on the grid of :data:`LEVELS`: 0 is the first, fractions between."""
    place: FloatArray = np.arcsinh(log_slowdown) * _PER_UNIT + _BELOW
    return place


_UNDISTURBED = np.exp(-0.5 * (LEVELS / _UNDISTURBED_SD) ** 2)
_UNDISTURBED /= _UNDISTURBED.sum()
_END = 1.0 / LIVES
_FACTORS = np.exp(LEVELS)


class RegimeFilter:
    """The posterior of every stage's regime, and what the regimes of this pipeline are like.

    Attributes
    ----------
    undisturbed
        Probability that each stage is undisturbed, shape (stages,).
    disturbed
        Probability of each life and level otherwise, shape (stages, lives, levels).
    base
        Log slowdown of each undisturbed stage, shape (stages,); it drifts. Levels are relative to it.
    renewed
        Probability that each stage's conditions changed with the latest request, shape (stages,).
    """

    def __init__(self, stages: int) -> None:
        self.undisturbed: FloatArray = np.ones(stages)
        self.disturbed: FloatArray = np.zeros((stages, len(LIVES), len(LEVELS)))
        self.base: FloatArray = np.zeros(stages)
        self.renewed: FloatArray = np.zeros(stages)
        self._mass: FloatArray = np.zeros((stages, len(LIVES)))
        self._starts, self._exposure = _FIRST_STARTS, _FIRST_EXPOSURE
        self._lives: FloatArray = np.full(len(LIVES), _FIRST_ENDS / len(LIVES))
        levels = np.where(LEVELS > _UNDISTURBED_SD, 1.0, 0.2) * np.exp(-LEVELS)
        self._levels: FloatArray = levels * (_FIRST_LEVELS / levels.sum())

    @property
    def expected(self) -> FloatArray:
        """Logarithm of the expected slowdown of each stage now, shape (stages,)."""
        expected: FloatArray = np.log(self.disturbed.sum(axis=1) @ _FACTORS + self.undisturbed) + self.base
        return expected

    @property
    def start_hazard(self) -> float:
        """Probability per request that an undisturbed stage becomes disturbed."""
        return min(self._starts / self._exposure, 0.5)

    def update(self, log_slowdown: FloatArray, noise: FloatArray, measured: NDArray[np.bool_]) -> None:
        """Take one request.

        Parameters
        ----------
        log_slowdown
            Logarithm of each stage's time over its reference, shape (stages,), finite.
        noise
            Standard deviation of that while nothing changes, shape (stages,).
        measured
            Which stages ran layers, shape (stages,): the others' regimes go on unseen.
        """
        off = np.minimum(log_slowdown - self.base, LEVELS[-1])
        drift = np.minimum(np.maximum(off, -_MOST_DRIFT), _MOST_DRIFT)
        self.base = self.base + measured * self.undisturbed * drift / _DRIFT
        noise = np.fmin(np.fmax(noise, _LEAST_NOISE), _MOST_NOISE)  # nan is the least
        calm_like = np.where(measured, _density(off, np.sqrt(noise * noise + _UNDISTURBED_SD**2)), 1.0)
        like = _density(off[:, None] - LEVELS, (_LOADED_NOISE * noise)[:, None])
        like[~measured] = 1.0
        lives, levels, start = self._lives / self._lives.sum(), self._levels / self._levels.sum(), self.start_hazard

        ends = self._mass * _END
        ended = ends.sum(axis=1)
        started = start * self.undisturbed
        fresh = started + (1 - _BACK) * ended
        fresh_like = like @ levels
        undisturbed = (self.undisturbed - started + _BACK * ended) * calm_like
        disturbed = self.disturbed * (1.0 - _END)[:, None]
        disturbed += (fresh[:, None] * lives)[:, :, None] * levels
        disturbed[:, :, 1:-1] += _SPREAD * (disturbed[:, :, :-2] + disturbed[:, :, 2:] - 2 * disturbed[:, :, 1:-1])
        disturbed *= like[:, None]
        mass = disturbed.sum(axis=2)
        scale = 1.0 / (undisturbed + mass.sum(axis=1))
        back_like = _BACK * calm_like + (1 - _BACK) * fresh_like
        self.renewed = (started * fresh_like + ended * back_like) * scale
        self._learn(measured, started * fresh_like * scale, ends * (back_like * scale * measured)[:, None])
        self.undisturbed = undisturbed * scale
        disturbed *= scale[:, None, None]
        self.disturbed = disturbed
        self._mass = mass * scale[:, None]

    def _learn(self, measured: NDArray[np.bool_], starts: FloatArray, ends: FloatArray) -> None:
        """Count, by their expectations, starts, and the lives and levels of the segments that ended."""
        self._starts += float(starts @ measured)
        self._exposure += float(self.undisturbed @ measured)
        self._lives = self._lives + ends.sum(axis=0)
        share = ends / np.maximum(self._mass, 1e-12)
        self._levels = self._levels + share.reshape(-1) @ self.disturbed.reshape(-1, len(LEVELS))
        if self._exposure > _MOST_EXPOSURE:
            self._starts, self._exposure = self._starts / 2, self._exposure / 2
        if self._lives.sum() > _MOST_ENDS:
            self._lives, self._levels = self._lives / 2, self._levels / 2

    def ahead(self, requests: NDArray[np.int64]) -> FloatArray:
        """Distribution of the level of each stage so many requests from now, shape (times, stages, levels)."""
        levels = self._levels / self._levels.sum()
        now = np.concatenate([self.undisturbed[:, None], self._mass], axis=1)
        step = self._transitions()
        still = (1.0 - _END) ** requests[:, None]
        kept = np.einsum("kl,slg->ksg", still, self.disturbed)
        undisturbed = np.array([now @ np.linalg.matrix_power(step, int(k))[:, 0] for k in requests])
        fresh = np.maximum(1.0 - undisturbed - kept.sum(axis=2), 0.0)
        ahead: FloatArray = kept + undisturbed[:, :, None] * _UNDISTURBED + fresh[:, :, None] * levels
        return ahead

    def survival(self, requests: int) -> FloatArray:
        """Probability that nothing changes on each stage for so many requests, shape (stages,)."""
        undisturbed = self.undisturbed * (1.0 - self.start_hazard) ** requests
        lasts: FloatArray = undisturbed + self._mass @ (1.0 - _END) ** requests
        return lasts

    def followed(self, requests: int) -> float:
        """Probability that the conditions of all stages after the next change last for so many requests."""
        lives, start = self._lives / self._lives.sum(), self.start_hazard
        disturbed = float(lives @ (1.0 - _END) ** requests)
        starts, ends = self.undisturbed * start, self._mass @ _END
        after_end = _BACK * (1.0 - start) ** requests + (1 - _BACK) * disturbed
        lasts = self.survival(requests)
        others = lasts.prod() / lasts
        return float((starts * disturbed + ends * after_end) @ others / (starts + ends).sum())

    def if_undisturbed(self, stage: int) -> RegimeFilter:
        """What would be believed if a stage were known to be undisturbed: a copy."""
        copy = RegimeFilter.__new__(RegimeFilter)
        copy.__dict__.update(self.__dict__)
        copy.undisturbed, copy.disturbed, copy._mass = (
            self.undisturbed.copy(),
            self.disturbed.copy(),
            self._mass.copy(),
        )
        copy.undisturbed[stage], copy.disturbed[stage], copy._mass[stage] = 1.0, 0.0, 0.0
        return copy

    def _transitions(self) -> FloatArray:
        """From (undisturbed, each life) to the same, one request later."""
        lives, start = self._lives / self._lives.sum(), self.start_hazard
        step = np.diag(np.concatenate([[1.0 - start], 1.0 - _END]))
        step[0, 1:] = start * lives
        step[1:, 0] = _BACK * _END
        step[1:, 1:] += (1 - _BACK) * _END[:, None] * lives
        return step


def _density(off: FloatArray, sd: FloatArray) -> FloatArray:
    """Of a log slowdown that is so far off, with hiccups."""
    density: FloatArray = np.exp(-0.5 * (off / sd) ** 2) * ((1 - _OUTLIER) / math.sqrt(math.tau) / sd)
    density += _OUTLIER * _OUTLIER_DENSITY
    return density
