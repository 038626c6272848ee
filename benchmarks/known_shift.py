"""A yardstick of detection on noise as it was recorded: a CUSUM that is told the shift, calibrated on that noise.

Lorden's bound is for independent noise. Recorded noise is correlated and drifts, so that the same delay costs more
false alarms, and nobody reaches that bound. This is Page's CUSUM for one shift d ::

    g = max(0, g + r - d / 2),   r = x - mean of the 96 samples before,   alarm where g > h

with h such that there are as many false alarms as wanted in pieces drawn from the recording (a block bootstrap). It is
told d and has seen the noise, as no detector has; but where noise is not independent it need not be the best rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.detection import LIMIT, Delay, Sightings, to_delay

__all__ = ["Draw", "known_shift_delays"]

FloatArray = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], FloatArray]
"""Generator, samples, at least so many streams -> undisturbed log slowdowns, (samples, streams)."""

_MEMORY = 96
_PIECE = 600
_STEPS = 30


def known_shift_delays(
    draw: Draw, slowdowns: Sequence[float], *, per_10_000: float, streams: int, seed: int
) -> tuple[Delay, ...]:
    """Delays of the yardstick at so many false alarms per 10,000 undisturbed samples.

    Parameters
    ----------
    draw
        The noise.
    slowdowns
        A yardstick for each, above 1.
    per_10_000
        False alarms, above 0.
    streams
        Pieces that are drawn, to calibrate on and to measure delays on; of 600 samples each.
    seed
        Of both.
    """
    quiet = _residuals(draw(np.random.default_rng([seed, 0]), _MEMORY + _PIECE, streams))
    fresh = draw(np.random.default_rng([seed, 1]), 2 * _MEMORY + LIMIT, streams)
    found = []
    for slowdown in slowdowns:
        shift = math.log(slowdown)
        threshold = calibrate(quiet, shift, per_10_000=per_10_000)
        disturbed = fresh.copy()
        disturbed[2 * _MEMORY :] += shift
        alarms = run(_residuals(disturbed), shift, threshold)
        before, after = alarms[:_MEMORY], alarms[_MEMORY:]
        first = np.where(after.any(axis=0), after.argmax(axis=0) + 1.0, 0.0)
        # Who alarms just before the onset is thought disturbed then.
        first[before[-8:].any(axis=0)] = math.nan
        found.append(to_delay(slowdown, [Sightings(first, np.full(len(first), math.nan))], math.nan))
    return tuple(found)


def calibrate(residuals: FloatArray, shift: float, *, per_10_000: float) -> float:
    """The threshold with so many false alarms, by bisection."""
    low, high = 0.0, float(np.abs(residuals).sum(axis=0).max())
    for _ in range(_STEPS):
        middle = (low + high) / 2
        alarms = run(residuals, shift, middle).mean() * 10_000
        low, high = (middle, high) if alarms > per_10_000 else (low, middle)
    return high


def run(residuals: FloatArray, shift: float, threshold: float) -> NDArray[np.bool_]:
    """Alarms, (samples, streams); after each the sum begins at 0."""
    evidence = np.zeros(residuals.shape[1])
    alarms = np.zeros(residuals.shape, dtype=np.bool_)
    for row, alarm in zip(residuals, alarms, strict=True):
        np.maximum(evidence + row - shift / 2, 0.0, out=evidence)
        np.greater(evidence, threshold, out=alarm)
        evidence[alarm] = 0.0
    return alarms


def _residuals(samples: FloatArray) -> FloatArray:
    """Samples less the mean of those before, from the 97th on."""
    sums = np.cumsum(np.nan_to_num(samples), axis=0)
    before = np.vstack([np.zeros(samples.shape[1]), sums[:-1]])
    means = (before[_MEMORY:] - before[:-_MEMORY]) / _MEMORY
    return np.nan_to_num(samples[_MEMORY:] - means)
