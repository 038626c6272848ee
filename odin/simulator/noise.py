"""How the times of one layer range vary while nothing changes: drawn in blocks, whatever the policy does.

A request's time on a device is its true time times one factor, drawn for each request and device alike, whether the
device has layers or not. So two policies with the same seed see the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALONE", "BLOCK", "LogNormalNoise", "MeasuredNoise", "NoNoise", "Noise", "NoiseSource", "make_noise"]

FloatArray = NDArray[np.float64]

ALONE = "alone"
BLOCK = 1024
"""Requests whose noise is drawn at once."""
_RUN = 16
"""Mean length of the stretches that are taken from a recording."""
_LARGE = 1 << 40


class Noise(Protocol):
    """Factors by requests and devices; what is drawn does not depend on conditions, what it means may."""

    def draw(self, random: np.random.Generator, *, requests: int, devices: int) -> NDArray[Any]:
        """Draw for every request and device, shape (requests, devices)."""

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """Factors of what was drawn, in the same shape, for devices under a scenario or :data:`ALONE`."""


class NoiseSource(Protocol):
    """What :class:`MeasuredNoise` asks a timing table for."""

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""

    def residuals(self, scenario: str = ALONE) -> FloatArray:
        """Logarithms of time over median time, in order of time."""


class NoNoise:
    """Every time is the true time."""

    def draw(self, random: np.random.Generator, *, requests: int, devices: int) -> NDArray[Any]:
        """Nothing is drawn: zeros."""
        return np.zeros((requests, devices))

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

    def draw(self, random: np.random.Generator, *, requests: int, devices: int) -> NDArray[Any]:
        """Logarithms of the factors."""
        return self._sigma * random.standard_normal((requests, devices))

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """The same under every scenario."""
        factors: FloatArray = np.exp(drawn)
        return factors


class MeasuredNoise:
    """Recorded residuals, taken in stretches: the stationary bootstrap (Politis and Romano, JASA 89, 1994).

    Each device goes through the recording from a random place, and jumps to another after 16 requests on average, so
    that the noise keeps its distribution and most of its autocorrelation. Devices jump independently of each other.
    Under a scenario that was recorded the residuals are those under that scenario, else those of undisturbed passes.

    Parameters
    ----------
    residuals
        Logarithms of time over median time in order of time, by scenario, :data:`ALONE` among them.

    Raises
    ------
    ValueError
        If there are no undisturbed residuals, or a recording is empty or not finite.
    """

    def __init__(self, residuals: Mapping[str, FloatArray]) -> None:
        if ALONE not in residuals:
            raise ValueError(f"residuals of {', '.join(residuals) or 'nothing'}: those of {ALONE!r} are needed as well")
        for scenario, values in residuals.items():
            if np.ndim(values) != 1 or not len(values) or not np.isfinite(values).all():
                raise ValueError(f"residuals of {scenario!r} are no list of finite numbers; record at least one pass")
        self._factors = {scenario: np.exp(np.asarray(values, float)) for scenario, values in residuals.items()}

    @classmethod
    def of_table(cls, table: NoiseSource) -> MeasuredNoise:
        """Noise of all scenarios of a timing table.

        Its slowdowns are ratios of means, its residuals are about medians: residuals under load are shifted so that
        load changes the mean by the slowdown and by nothing else.
        """
        residuals = {scenario: table.residuals(scenario) for scenario in (ALONE, *table.scenarios)}
        means = {scenario: float(np.exp(values).mean()) for scenario, values in residuals.items()}
        return cls(
            {scenario: values + np.log(means[ALONE] / means[scenario]) for scenario, values in residuals.items()}
        )

    def draw(self, random: np.random.Generator, *, requests: int, devices: int) -> NDArray[Any]:
        """Places in a recording; they count on beyond its end, and begin anew there."""
        jumps = random.random((requests, devices)) < 1 / _RUN
        jumps[0] = True
        places = random.integers(_LARGE, size=(requests, devices))
        rows = np.arange(requests)[:, None]
        jumped = np.maximum.accumulate(np.where(jumps, rows, 0), axis=0)
        return np.take_along_axis(places, jumped, axis=0) + (rows - jumped)

    def factors(self, drawn: NDArray[Any], scenario: str) -> FloatArray:
        """Factors at those places."""
        recorded = self._factors.get(scenario)
        if recorded is None:
            recorded = self._factors[ALONE]
        factors: FloatArray = recorded[drawn % len(recorded)]
        return factors


def make_noise(text: str, table: NoiseSource | None = None) -> Noise:
    """Make noise from its text form: ``none``, ``measured`` or ``lognormal:CV``.

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
        return MeasuredNoise.of_table(table)
    if kind == "lognormal":
        try:
            return LogNormalNoise(float(value))
        except ValueError as error:
            raise ValueError(f"noise {text!r}: write lognormal:CV, such as lognormal:0.1 for 10% ({error})") from error
    raise ValueError(f"noise {text!r} is not known; write measured, none or lognormal:CV")
