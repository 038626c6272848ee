"""The CUSUM detector's plain samples, many at a time: loops over numbers that a compiler of such loops can take.

:func:`take_rows` does what :meth:`CusumDetector.update` does with a sample of every stream, to the bit, as long as
nothing happens that is for Python: an alarm, a calibration, a level that is learned, a sample that is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MEMORY", "OWN_WEIGHT", "OWN_WINSOR", "BankState", "Look", "PlainState", "add", "add_settled", "is_news",
    "keep", "take_rows",
]  # fmt: skip

FloatArray = NDArray[np.float64]

MEMORY = 96
"""Most samples over which a level is averaged; a drift slower than that is followed without an alarm."""
OWN_WEIGHT = 2.0
"""Weight of the prior of a disturbed segment's noise, in samples."""
OWN_WINSOR = 3.0
"""Samples of a disturbed segment are clipped to so many standard deviations for its noise estimate."""


class BankState(NamedTuple):
    """The arrays of a :class:`~odin.monitor.detectors.bank.CusumBank`, by reference, (2, shifts, streams) or less."""

    evidence: FloatArray
    cap: FloatArray
    slope: FloatArray
    offset: FloatArray
    gain: FloatArray
    half: FloatArray
    threshold: float


class PlainState(NamedTuple):
    """A detector's own arrays, by reference, (streams,) unless said otherwise, and numbers."""

    samples: FloatArray
    """Ring of samples, (capacity, streams)."""
    residuals: FloatArray
    """Ring of undisturbed residuals, (capacity, streams)."""
    newest_sample: int
    newest_residual: int
    """Rows of the rings last written."""
    mean: FloatArray
    variance: FloatArray
    samples_known: FloatArray
    """Samples that the mean is of, the prior's among them."""
    bound: FloatArray
    winsor: FloatArray
    least: FloatArray
    disturbed: NDArray[np.bool_]
    age: NDArray[np.int64]
    base: FloatArray
    usual_variance: FloatArray
    own_prior: FloatArray
    bank: BankState
    steady: bool
    ahead: int
    """Steady samples that are not in counts and ages yet."""
    any_disturbed: bool


class Look(NamedTuple):
    """What :class:`~odin.monitor.watch.StageWatch` has told, and when it looks whether there is more to tell."""

    told: NDArray[np.bool_]
    """Streams that are told to be disturbed, (streams,)."""
    any_told: bool
    onset_level: float
    end_level: float
    since_change: int
    settled: int
    looks: int


def take_rows(
    x: FloatArray, first: int, last: int, state: PlainState, look: Look, ages: NDArray[np.int64]
) -> tuple[int, bool, bool, int]:
    """Take samples ``x[first:last]``, (samples, streams), until something is for Python.

    Parameters
    ----------
    ages
        Here the age of every stream after each sample is written, (samples, streams).

    Returns
    -------
    tuple
        How many samples were taken; whether the last of them made an alarm; whether it is for Python, which it also is
        if it fills the ring of residuals or is to be told; and the watch's ``since_change`` without that sample.
    """
    streams = x.shape[1]
    samples, residuals, mean, variance, count = (
        state.samples,
        state.residuals,
        state.mean,
        state.variance,
        state.samples_known,
    )
    since_change, ahead = look.since_change, state.ahead
    newest_sample, newest_residual = state.newest_sample, state.newest_residual
    r, precision = np.empty(streams), np.empty(streams)
    for row in range(first, last):
        for k in range(streams):
            if not -np.inf < x[row, k] < np.inf:
                return row - first, False, False, since_change
        newest_sample = (newest_sample + 1) % samples.shape[0]
        newest_residual = (newest_residual + 1) % residuals.shape[0]
        ahead += state.steady
        for k in range(streams):
            samples[newest_sample, k] = x[row, k]
            residuals[newest_residual, k] = r[k] = x[row, k] - mean[k]
            if not state.steady:
                if state.disturbed[k]:
                    residuals[newest_residual, k] = np.nan
                    square = min(r[k] * r[k] * (count[k] / (count[k] + 1.0)), OWN_WINSOR**2 * variance[k])
                    variance[k] += (square - variance[k]) / (count[k] + OWN_WEIGHT)
                precision[k] = 1.0 / (variance[k] / count[k] + variance[k])
        alarm = add_settled(state.bank, r) if state.steady else add(state.bank, r, precision)
        for k in range(streams):
            step = max(min(r[k], state.winsor[k]), state.least[k])
            if state.steady:
                step *= 1.0 / MEMORY
            else:
                state.age[k] += 1
                count[k] += 1.0
                step *= 1.0 / min(count[k], float(MEMORY))
            mean[k] = min(mean[k] + step, state.bound[k])
            ages[row, k] = state.age[k] + ahead
        if alarm or newest_residual == residuals.shape[0] - 1:
            return row + 1 - first, alarm, True, since_change
        if look.any_told or state.any_disturbed:
            if (since_change < look.settled or (since_change + 1) % look.looks == 0) and is_news(state, look):
                return row + 1 - first, False, True, since_change
            since_change += 1
    return last - first, False, False, since_change


def add(bank: BankState, r: FloatArray, precision: FloatArray) -> bool:
    """Add a residual of each stream, as ``CusumBank.add``; whether a sum is above the threshold."""
    alarm = False
    for j in range(len(bank.gain)):
        half = bank.half[j, 0]
        for k in range(len(r)):
            up, down = (r[k] - half) * bank.gain[j, k] * precision[k], (-r[k] - half) * bank.gain[j, k] * precision[k]
            up, down = keep(bank, 0, j, k, up), keep(bank, 1, j, k, down)
            alarm |= (up > bank.threshold) | (down > bank.threshold)
    return alarm


def add_settled(bank: BankState, r: FloatArray) -> bool:
    """The same with the precision that has been settled, as ``CusumBank.add_settled``."""
    alarm = False
    for j in range(len(bank.gain)):
        for k in range(len(r)):
            up = keep(bank, 0, j, k, bank.slope[0, j, k] * r[k] - bank.offset[0, j, k])
            down = keep(bank, 1, j, k, bank.slope[1, j, k] * r[k] - bank.offset[1, j, k])
            alarm |= (up > bank.threshold) | (down > bank.threshold)
    return alarm


def keep(bank: BankState, side: int, j: int, k: int, term: float) -> float:
    """Add to a sum what may be added, and not below 0."""
    cap = bank.cap[side, j, k]
    total = bank.evidence[side, j, k] + (cap if cap < term else term)
    total = total if total > 0.0 else 0.0
    bank.evidence[side, j, k] = total
    return total


def is_news(state: PlainState, look: Look) -> bool:
    """Whether a stream's level says otherwise than what the watch has told."""
    variance, usual = state.variance, state.usual_variance
    for k in range(len(look.told)):
        now = False
        if state.disturbed[k]:
            added = variance[k] - usual[k]
            added -= (state.own_prior[k] - usual[k]) * OWN_WEIGHT / (state.samples_known[k] + OWN_WEIGHT - 1)
            level = state.mean[k] - state.base[k] + added / 2
            now = level >= (look.end_level if look.told[k] else look.onset_level)
        if now != look.told[k]:
            return True
    return False
