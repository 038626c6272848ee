"""How soon detectors see a slowdown, and how often they see one that is not there, against Lorden's bound.

Delay: requests from the onset to the one that detects it, that one included; 1 is the least there is. Missed: not seen
within ``LIMIT`` requests; how long it would have taken is not known then (it is *censored*). A mean of the others would
be too short, so there is no mean where any was missed; the median is that of Kaplan and Meier (1958): censored delays
are longer than all that were seen. False alarms: changes reported in undisturbed streams; the return from a false alarm
is not another. The bound is ln(ARL) / KL: the least worst-case mean delay, asymptotically, at a mean of ARL requests
between false alarms (Lorden 1971), KL being ln(slowdown)^2 / (2 sigma^2) for log-normal noise.

Every round draws new streams from the seed and the round's number; all detectors see the same ones, calibrate on
``CALIBRATION`` undisturbed requests, then get ``LIMIT`` slowed down and as many as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.monitor.detectors import Detector
from odin_lab.report.results import DetectionPoint

__all__ = [
    "ARL",
    "CALIBRATION",
    "LIMIT",
    "QUIET",
    "SLOWDOWNS",
    "Candidate",
    "Delay",
    "Measured",
    "Noise",
    "Sightings",
    "detection_points",
    "drifting",
    "false_alarms",
    "least_delay",
    "log_normal",
    "measure_detector",
    "sightings",
    "to_delay",
    "with_hiccups",
]

FloatArray = NDArray[np.float64]
Make = Callable[[int], Detector]

ARL = 10_000
SLOWDOWNS = (1.1, 1.25, 1.5, 2.0, 3.0)
CALIBRATION = 500
LIMIT = 100
QUIET = 4_000


class Candidate(NamedTuple):
    """A detector and how many streams of a round it is given."""

    make: Make
    streams: int


class Delay(NamedTuple):
    """Onsets and ends of one slowdown: requests until they were seen, shares missed.

    Attributes
    ----------
    onset, end
        Mean delays; ``nan`` if any was missed.
    onset_median, end_median
        Medians, ``inf`` if half or more were missed; ``nan`` if there was none to see.
    """

    slowdown: float
    onset: float
    missed: float
    end: float
    end_missed: float
    bound: float
    onset_median: float = math.nan
    end_median: float = math.nan

    @property
    def ratio(self) -> float:
        """Mean delay of the onset over the least there is; ``inf`` if any was missed."""
        return math.inf if self.missed > 0 else self.onset / max(1.0, self.bound)


def least_delay(slowdown: float, sigma: float, *, arl: float = ARL) -> float:
    """ln(ARL) / KL, requests; sigma is the standard deviation of the logarithm of times."""
    return math.log(arl) * 2 * sigma**2 / math.log(slowdown) ** 2


def false_alarms(detector: Detector, samples: FloatArray, *, skip: int, moves: Iterable[int] = ()) -> int:
    """Changes reported in undisturbed samples, (requests, streams), after the first ``skip``; ends do not count.

    Before each request in ``moves`` the layers change: the detector is told.
    """
    count = 0
    rebased = frozenset(moves)
    for request, x in enumerate(samples):
        if request in rebased:
            detector.rebase()
        before = detector.disturbed
        detector.update(x)
        if request >= skip:
            count += int((detector.changed & ~(before & ~detector.disturbed)).sum())
    return count


class Sightings(NamedTuple):
    """Per stream, requests until onset and end were seen; 0 if not within the limit. ``nan`` where none could be:
    the stream was thought disturbed before, or not at the end.
    """

    onset: FloatArray
    end: FloatArray


def sightings(detector: Detector, samples: FloatArray, slowdown: float, *, calibration: int, limit: int) -> Sightings:
    """Slow ``limit`` requests down after ``calibration``, and see.

    Parameters
    ----------
    samples
        Undisturbed log slowdowns, at least calibration + 2 limit of them, (requests, streams).
    """
    for x in samples[:calibration]:
        detector.update(x)
    onset = np.where(detector.disturbed, np.nan, 0.0)
    for delay, x in enumerate(samples[calibration : calibration + limit], start=1):
        detector.update(x + math.log(slowdown))
        onset[(onset == 0) & detector.disturbed] = delay
    end = np.where(detector.disturbed, 0.0, np.nan)
    for delay, x in enumerate(samples[calibration + limit : calibration + 2 * limit], start=1):
        detector.update(x)
        end[(end == 0) & ~detector.disturbed] = delay
    return Sightings(onset, end)


def to_delay(slowdown: float, seen: Sequence[Sightings], bound: float) -> Delay:
    """Means, medians and misses over all streams of all rounds."""
    onset, onset_missed, onset_median = _summary(np.concatenate([s.onset for s in seen]))
    end, end_missed, end_median = _summary(np.concatenate([s.end for s in seen]))
    return Delay(slowdown, onset, onset_missed, end, end_missed, bound, onset_median, end_median)


def _summary(delays: FloatArray) -> tuple[float, float, float]:
    """Mean, share missed, and median."""
    possible = delays[~np.isnan(delays)]
    if not len(possible):
        return math.nan, math.nan, math.nan
    seen = np.sort(possible[possible > 0])
    missed = 1 - len(seen) / len(possible)
    # All are censored at the same delay, so the estimator steps down by one share at each delay that was seen.
    half = math.ceil(len(possible) / 2)
    median = float(seen[half - 1]) if half <= len(seen) else math.inf
    return float(seen.mean()) if missed == 0 else math.nan, missed, median


# ---------------------------------------------------------------- what it is measured on
class Noise(NamedTuple):
    """A kind of noise: (generator, requests, streams) to log slowdowns, (requests, streams); and its sigma."""

    draw: Callable[[np.random.Generator, int, int], FloatArray]
    sigma: float


def log_normal(cv: float) -> Noise:
    """Times with a coefficient of variation of ``cv``."""
    sigma = math.sqrt(math.log1p(cv**2))
    return Noise(lambda random, requests, streams: random.normal(0.0, sigma, (requests, streams)), sigma)


def with_hiccups(cv: float, *, share: float = 0.005) -> Noise:
    """Of the times, ``share`` are longer by a factor of 1.4 to 3, one at a time."""
    plain = log_normal(cv)

    def draw(random: np.random.Generator, requests: int, streams: int) -> FloatArray:
        samples = plain.draw(random, requests, streams)
        hit = random.random(samples.shape) < share
        samples[hit] += np.log(random.uniform(1.4, 3.0, int(hit.sum())))
        return samples

    return Noise(draw, plain.sigma)


def drifting(cv: float, *, ratio: float = 1.2, requests_each_way: int = 1000) -> Noise:
    """All streams alike grow slower by ``ratio`` within so many requests, and faster again within as many."""
    plain = log_normal(cv)

    def draw(random: np.random.Generator, requests: int, streams: int) -> FloatArray:
        phase = np.arange(requests) % (2 * requests_each_way) / requests_each_way
        level = math.log(ratio) * np.minimum(phase, 2 - phase)
        return plain.draw(random, requests, streams) + level[:, None]

    return Noise(draw, plain.sigma)


# ---------------------------------------------------------------- measuring
class Measured(NamedTuple):
    """One detector under one kind of noise: false alarms in so many undisturbed observations, and delays."""

    false_alarms: int
    undisturbed: int
    delays: tuple[Delay, ...]


def measure_detector(
    candidate: Candidate,
    noise: Noise,
    *,
    rounds: int,
    seed: int,
    quiet: int = QUIET,
    slowdowns: Sequence[float] = SLOWDOWNS,
) -> Measured:
    """Measure one detector under one kind of noise; in the same round every detector gets the same samples."""
    alarms, seen = 0, {slowdown: list[Sightings]() for slowdown in slowdowns}
    for round_index in range(rounds):
        random = np.random.default_rng([seed, round_index])
        samples = noise.draw(random, CALIBRATION + quiet, candidate.streams)
        alarms += false_alarms(candidate.make(candidate.streams), samples, skip=CALIBRATION)
        for slowdown, sighted in seen.items():
            samples = noise.draw(random, CALIBRATION + 2 * LIMIT, candidate.streams)
            detector = candidate.make(candidate.streams)
            sighted.append(sightings(detector, samples, slowdown, calibration=CALIBRATION, limit=LIMIT))
    delays = tuple(to_delay(slowdown, s, least_delay(slowdown, noise.sigma)) for slowdown, s in seen.items())
    return Measured(alarms, rounds * quiet * candidate.streams, delays)


def detection_points(
    name: str,
    candidate: Candidate,
    *,
    noise_cv: float,
    rounds: int = 1,
    seed: int = 0,
    quiet: int = QUIET,
    slowdowns: Sequence[float] = SLOWDOWNS,
) -> tuple[DetectionPoint, ...]:
    """Delays of a detector under log-normal noise, one point per slowdown; false alarms are per 1,000 observations."""
    found = measure_detector(
        candidate, log_normal(noise_cv), rounds=rounds, seed=seed, quiet=quiet, slowdowns=slowdowns
    )
    alarms = found.false_alarms / found.undisturbed * 1_000
    return tuple(
        DetectionPoint(
            name, noise_cv, delay.slowdown, delay.onset, delay.bound, alarms, delay.missed, delay.onset_median, LIMIT
        )
        for delay in found.delays
    )
