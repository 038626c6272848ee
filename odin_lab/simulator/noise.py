"""How the times of one layer range vary while nothing changes: drawn in blocks, whatever the policy does.

A request's time on a device is its true time times one factor, drawn for each request and device alike, whether the
device has layers or not. So two policies with the same seed see the same noise.

Measured noise has two parts. What neighbouring passes differ by is drawn for each request. How the level of a device
drifts, as a host does that others use, belongs to time and not to requests: a device goes through the recorded drift
at the pace at which it was recorded, however many requests are answered meanwhile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALONE", "BLOCK", "LogNormalNoise", "MeasuredNoise", "NoNoise", "Noise", "NoiseSource", "ReplayedNoise",
    "make_noise",
]  # fmt: skip

FloatArray = NDArray[np.float64]

ALONE = "alone"
BLOCK = 1024
"""Requests whose noise is drawn at once."""
_RUN = 16
"""Mean length of the stretches that are taken from a recording."""
_LARGE = 1 << 40
_MEASURED = np.dtype([("place", np.int64), ("drift", np.float64)])
"""Where in a recording of residuals, and the factor of the drift."""


class Noise(Protocol):
    """Factors by requests and devices; what is drawn does not depend on conditions, what it means may."""

    def blocks(self, random: np.random.Generator, *, requests: int, devices: int) -> Iterator[NDArray[Any]]:
        """Draw for every request and device, block after block without end, (requests, devices) each."""

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """Factors of what was drawn, in the same shape, for devices under a scenario or :data:`ALONE`."""


class NoiseSource(Protocol):
    """What :class:`MeasuredNoise` asks a timing table for."""

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""

    def residuals(self, scenario: str = ALONE) -> FloatArray:
        """Logarithms of time over the median time around, in order of time."""

    def drift(self) -> tuple[FloatArray, FloatArray]:
        """Seconds, ascending, and logarithms of the level then over the median level."""


class NoNoise:
    """Every time is the true time."""

    def blocks(self, random: np.random.Generator, *, requests: int, devices: int) -> Iterator[NDArray[Any]]:
        """Nothing is drawn: zeros."""
        return itertools.repeat(np.zeros((requests, devices)))

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """Ones."""
        return np.ones(drawn.shape)


class LogNormalNoise:
    """Independent log-normal factors with median 1.

    Parameters
    ----------
    cv
        Coefficient of variation: standard deviation over mean, 0.1 for 10%.

    Raises
    ------
    ValueError
        If it is negative or no number.
    """

    def __init__(self, cv: float) -> None:
        if not 0 <= cv < math.inf:
            raise ValueError(f"cv={cv}: a coefficient of variation is 0 or more, such as 0.1 for 10%")
        self.cv = cv
        self._sigma = math.sqrt(math.log1p(cv**2))

    def blocks(self, random: np.random.Generator, *, requests: int, devices: int) -> Iterator[NDArray[Any]]:
        """Logarithms of the factors."""
        while True:
            yield self._sigma * random.standard_normal((requests, devices))

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """The same under every scenario."""
        factors: FloatArray = np.exp(drawn)
        return factors


class MeasuredNoise:
    """Recorded residuals, taken in stretches, times recorded drift.

    Residuals by the stationary bootstrap (Politis and Romano, JASA 89, 1994): each device goes through the recording
    from a random place, request by request, and jumps to another after 16 on average, so that the noise keeps its
    distribution and most of its autocorrelation. Devices jump independently of each other. Under a scenario that was
    recorded the residuals are those under that scenario, else those of undisturbed passes.

    The drift is gone through forth and back from a random moment, on each device from another.

    Parameters
    ----------
    residuals
        Logarithms of time over median time in order of time, by scenario, :data:`ALONE` among them.
    drift
        Seconds, ascending, and logarithms of the level then, shape (times,) each; between them it is interpolated.
        Default: none.
    interval_s
        Seconds between two requests, by which the drift goes on.

    Raises
    ------
    ValueError
        If there are no undisturbed residuals, or a recording is empty or not finite, or moments do not ascend.
    """

    def __init__(
        self,
        residuals: Mapping[str, FloatArray],
        *,
        drift: tuple[FloatArray, FloatArray] | None = None,
        interval_s: float = 0.0,
    ) -> None:
        if ALONE not in residuals:
            raise ValueError(f"residuals of {', '.join(residuals) or 'nothing'}: those of {ALONE!r} are needed as well")
        for scenario, values in residuals.items():
            if np.ndim(values) != 1 or not len(values) or not np.isfinite(values).all():
                raise ValueError(f"residuals of {scenario!r} are no list of finite numbers; record at least one pass")
        at_s, level = (np.asarray(values, float) for values in (drift or ([0.0], [0.0])))
        if at_s.shape != level.shape or at_s.ndim != 1 or not len(at_s) or not np.isfinite([at_s, level]).all():
            raise ValueError(f"drift of shapes {at_s.shape} and {level.shape}: give as many finite levels as moments")
        if (np.diff(at_s) <= 0).any() or not 0 <= interval_s < math.inf:
            raise ValueError(f"drift whose moments do not ascend, or an interval of {interval_s} s below 0")
        self._factors = {scenario: np.exp(np.asarray(values, float)) for scenario, values in residuals.items()}
        self._at_s, self._level, self._interval_s = at_s - at_s[0], level, interval_s

    @classmethod
    def of_table(cls, table: NoiseSource, *, interval_s: float) -> MeasuredNoise:
        """Noise of all scenarios of a timing table, for a pipeline with so many seconds between requests.

        Its slowdowns are ratios of means, its residuals are about medians: residuals under load are shifted so that
        load changes the mean by the slowdown and by nothing else.
        """
        residuals = {scenario: table.residuals(scenario) for scenario in (ALONE, *table.scenarios)}
        means = {scenario: float(np.exp(values).mean()) for scenario, values in residuals.items()}
        shifted = {scenario: values + np.log(means[ALONE] / means[scenario]) for scenario, values in residuals.items()}
        return cls(shifted, drift=table.drift(), interval_s=interval_s)

    def blocks(self, random: np.random.Generator, *, requests: int, devices: int) -> Iterator[NDArray[Any]]:
        """Places in a recording, which count on beyond its end and begin anew there; and factors of the drift."""
        rows, lasts_s = np.arange(requests)[:, None], self._at_s[-1]
        period_s = max(2 * lasts_s, 1e-9)  # forth and back: no step at the end of the recording
        phase_s = random.uniform(0.0, period_s, size=devices)
        while True:
            drawn = np.empty((requests, devices), _MEASURED)
            jumps = random.random((requests, devices)) < 1 / _RUN
            jumps[0] = True
            places = random.integers(_LARGE, size=(requests, devices))
            jumped = np.maximum.accumulate(np.where(jumps, rows, 0), axis=0)
            drawn["place"] = np.take_along_axis(places, jumped, axis=0) + (rows - jumped)
            there_s = np.abs((phase_s + rows * self._interval_s) % period_s - lasts_s)
            drawn["drift"] = np.exp(np.interp(there_s, self._at_s, self._level))
            phase_s = phase_s + requests * self._interval_s
            yield drawn

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """Factors at those places and moments."""
        recorded = self.recording(scenario)
        factors: FloatArray = recorded[drawn["place"] % len(recorded)] * drawn["drift"]
        return factors

    def recording(self, scenario: str) -> FloatArray:
        """Factors as they were recorded under a scenario, in order of time."""
        recorded: FloatArray = self._factors.get(scenario, self._factors[ALONE])
        return recorded


class ReplayedNoise:
    """The noise of a recorded run as it was: nothing is drawn.

    Unlike :class:`MeasuredNoise` it keeps what devices share, and whatever lasts longer than some requests.

    Parameters
    ----------
    recorded
        Factor of each request on each device, shape (requests, devices); the last request is followed by the first.

    Raises
    ------
    ValueError
        If there is none, or one is not finite and above 0.
    """

    def __init__(self, recorded: FloatArray) -> None:
        self._recorded = np.array(recorded, dtype=np.float64)
        if self._recorded.ndim != 2 or not self._recorded.size:
            raise ValueError(f"factors of shape {self._recorded.shape}: give some, shape (requests, devices)")
        if not (np.isfinite(self._recorded) & (self._recorded > 0)).all():
            raise ValueError("a factor of recorded noise is not finite and above 0; fill in what was not measured")

    def blocks(self, random: np.random.Generator, *, requests: int, devices: int) -> Iterator[NDArray[Any]]:
        """The factors, request by request."""
        if devices != self._recorded.shape[1]:
            raise ValueError(f"noise was recorded on {self._recorded.shape[1]} devices; replay it on as many")
        for begin in itertools.count(0, requests):
            yield self._recorded[np.arange(begin, begin + requests) % len(self._recorded)]

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """The same under every scenario."""
        return np.array(drawn)


def make_noise(text: str, table: NoiseSource | None = None, *, interval_s: float = 0.0) -> Noise:
    """Make noise from its text form: ``none``, ``measured`` or ``lognormal:CV``.

    Measured noise takes a table, and the seconds between two requests of the pipeline.

    Raises
    ------
    ValueError
        If it is none of these, or there is no table to measure by.

    Examples
    --------
    >>> make_noise("lognormal:0.1").cv
    0.1
    """
    kind, _, value = text.partition(":")
    if text == "none":
        return NoNoise()
    if text == "measured":
        if table is None:
            raise ValueError("measured noise needs a timing table; take lognormal:0.05 or none")
        return MeasuredNoise.of_table(table, interval_s=interval_s)
    if kind == "lognormal":
        try:
            return LogNormalNoise(float(value))
        except ValueError as error:
            raise ValueError(f"noise {text!r}: write lognormal:CV, such as lognormal:0.1 for 10% ({error})") from error
    raise ValueError(f"noise {text!r} is not known; write measured, none or lognormal:CV")
