"""What is true: devices, layers, transfers, what scenarios do to layers, and noise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Setting
from odin.partitioner.relay import Windows
from odin_lab.simulator.noise import Noise, NoNoise, make_noise

if TYPE_CHECKING:
    from odin_lab.timings import TimingTable

__all__ = ["World"]

FloatArray = NDArray[np.float64]

_LEVEL = re.compile(r"(?P<kind>[a-z-]+)[*-](?P<value>[0-9.]+)(?P<times>x[0-9.]+)?")


@dataclass(frozen=True)
class World:
    """What is true, and what no policy is told but by its observations.

    Attributes
    ----------
    baseline_s
        Seconds of each layer on each device with nothing else running, shape (devices, layers); ``inf`` where a device
        cannot run it.
    send_s, receive_s
        Seconds to send, to receive, what crosses each cut, shape (layers + 1,).
    intensity
        Floating-point operations per byte of each layer, shape (layers,); ``nan`` where unknown.
    slowdown
        Scenario -> factor of each layer on a device under it, shape (layers,); ``inf`` for one that kills the device.
    noise
        Of all times.

    Raises
    ------
    ValueError
        If shapes do not fit or a value is out of its range.
    """

    baseline_s: FloatArray
    send_s: FloatArray
    receive_s: FloatArray
    intensity: FloatArray
    slowdown: Mapping[str, FloatArray] = field(default_factory=dict)
    noise: Noise = field(default_factory=NoNoise)

    def __post_init__(self) -> None:
        baseline_s = _frozen(self.baseline_s)
        if baseline_s.ndim != 2 or 0 in baseline_s.shape or not (baseline_s >= 0).all():
            raise ValueError(f"baseline_s of shape {baseline_s.shape}: give seconds >= 0, shape (devices, layers)")
        layers = baseline_s.shape[1]
        for name, size in (("send_s", layers + 1), ("receive_s", layers + 1), ("intensity", layers)):
            values = _frozen(getattr(self, name))
            if values.shape != (size,) or (name != "intensity" and not ((values >= 0) & np.isfinite(values)).all()):
                raise ValueError(f"{name} of shape {values.shape}: {layers} layers need {size} numbers, none negative")
            object.__setattr__(self, name, values)
        slowdown = {name: _frozen(np.broadcast_to(factors, (layers,))) for name, factors in self.slowdown.items()}
        for name, factors in slowdown.items():
            if not (factors > 0).all():
                raise ValueError(f"slowdown of {name!r}: factors are above 0, one for each layer")
        object.__setattr__(self, "baseline_s", baseline_s)
        object.__setattr__(self, "slowdown", slowdown)

    @classmethod
    def of(
        cls,
        baseline_s: ArrayLike,
        *,
        send_s: ArrayLike | None = None,
        receive_s: ArrayLike | None = None,
        intensity: ArrayLike | None = None,
        slowdown: Mapping[str, ArrayLike] | None = None,
        noise: Noise | str = "none",
    ) -> Self:
        """Make a world of plain numbers: transfers are free and intensities unknown unless given."""
        times_s = np.array(baseline_s, dtype=np.float64)
        layers = times_s.shape[-1] if times_s.ndim else 0
        free = np.zeros(layers + 1)
        return cls(
            times_s,
            free if send_s is None else np.asarray(send_s, dtype=np.float64),
            free if receive_s is None else np.asarray(receive_s, dtype=np.float64),
            np.full(layers, np.nan) if intensity is None else np.asarray(intensity, dtype=np.float64),
            {name: np.asarray(factors, dtype=np.float64) for name, factors in (slowdown or {}).items()},
            make_noise(noise) if isinstance(noise, str) else noise,
        )

    @classmethod
    def from_timings(
        cls,
        table: TimingTable,
        *,
        devices: int,
        speeds: Sequence[float] | None = None,
        noise: Noise | str = "measured",
    ) -> Self:
        """Make a world of so many devices like the one that a table was recorded on.

        Parameters
        ----------
        table
            Recorded times.
        devices
            How many.
        speeds
            How many times as fast each device is; default: all 1.
        noise
            ``measured``, ``none``, ``lognormal:CV`` or an object.

        Raises
        ------
        ValueError
            If there is no device, or not one speed above 0 for each.
        """
        if devices < 1:
            raise ValueError(f"{devices} devices: a pipeline has at least 1")
        fast = np.ones(devices) if speeds is None else np.array(speeds, dtype=np.float64)
        if fast.shape != (devices,) or not ((fast > 0) & np.isfinite(fast)).all():
            raise ValueError(f"speeds {speeds}: give {devices} factors above 0, one for each device")
        baseline_s = table.baseline_s() / fast[:, None]
        if isinstance(noise, str):
            home = balance(baseline_s, send_s=table.send_s, receive_s=table.receive_s)
            noise = make_noise(noise, table, interval_s=home.bottleneck_s)
        return cls(
            baseline_s,
            table.send_s,
            table.receive_s,
            table.intensity,
            {scenario: table.slowdown(scenario) for scenario in table.scenarios},
            noise,
        )

    @property
    def device_count(self) -> int:
        """Devices, and so stages."""
        return int(self.baseline_s.shape[0])

    @property
    def layer_count(self) -> int:
        """Layers of the chain."""
        return int(self.baseline_s.shape[1])

    def effect(self, scenarios: Sequence[str]) -> FloatArray:
        """Factor of each layer on a device under some scenarios at once, shape (layers,).

        What several add to a layer's time adds up: loads that share a core each take a turn. A load between two known
        ones of its kind (``cpu*0.6`` between ``cpu-50`` and ``cpu-75``) does what lies between.

        Raises
        ------
        ValueError
            If nothing is known of one.
        """
        factors: FloatArray = np.ones(self.layer_count)
        for scenario in scenarios:
            factors = factors + self._effect(scenario) - 1.0
        return np.maximum(factors, 1e-3)

    def _effect(self, scenario: str) -> FloatArray:
        if scenario in self.slowdown:
            return self.slowdown[scenario]
        known = ", ".join(self.slowdown) or "none"
        match = _LEVEL.fullmatch(scenario)
        levels = {0.0: np.ones(self.layer_count)}
        for name, factors in self.slowdown.items():
            other = _LEVEL.fullmatch(name)
            if match and other and (match["kind"], match["times"]) == (other["kind"], other["times"]):
                levels[_intensity(other)] = factors
        if match is None or len(levels) == 1 or _intensity(match) > max(levels):
            raise ValueError(f"scenario {scenario!r} has no slowdown; there is {known}")
        places = sorted(levels)
        stacked = np.array([levels[place] for place in places])
        wanted = _intensity(match)
        return np.array([np.interp(wanted, places, column) for column in stacked.T])

    def setting(self, plan: Plan | None = None) -> Setting:
        """What policies are told at the start; without a plan with the exact best one for the baselines.

        Boundaries may hand over at every cut, unless some device cannot run some layer.
        """
        if plan is None:
            plan = balance(self.baseline_s, send_s=self.send_s, receive_s=self.receive_s).plan
        plan.check_fits(layer_count=self.layer_count, stage_count=self.device_count)
        reach = None
        if np.isfinite(self.baseline_s).all():
            reach = Windows.whole(stage_count=self.device_count, layer_count=self.layer_count)
        return Setting(plan, self.baseline_s, self.send_s, self.receive_s, self.intensity, reach)


def _intensity(match: re.Match[str]) -> float:
    value = float(match["value"])
    return value if "*" in match[0] else value / 100


def _frozen(values: ArrayLike) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
