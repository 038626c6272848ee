"""A scenario: which load, where, from when to when; and the changes of intensity that this comes to."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

from odin.stages.device import Device
from odin_lab.inject.load import KINDS, Load, LoadError
from odin_lab.inject.named import NAMED, named_load

__all__ = ["Change", "Scenario", "Spacing", "Step"]

Spacing = Literal["fixed", "random"]

_RAMP_LEVELS = 20
_RAMP_LEVEL_S = 0.05
_LEAST_DURATION_S = 0.1


class Change(NamedTuple):
    """Step ``step`` of a scenario goes to ``intensity`` at ``at_s``, seconds from its beginning; 0 ends it."""

    at_s: float
    step: int
    intensity: float


@dataclass(frozen=True, slots=True)
class Step:
    """One load of a scenario, over the half-open time ``[start_s, end_s)``.

    Attributes
    ----------
    load
        What runs, with its full intensity.
    start_s, end_s
        Seconds from the scenario's beginning; the end may be infinite.
    name
        What records call it; the load's kind, or its program's name, if empty.
    ramp_s
        Seconds over which the intensity rises from 0 at the start, and falls to 0 before the end.

    Raises
    ------
    LoadError
        If the times do not fit together.
    """

    load: Load
    start_s: float = 0.0
    end_s: float = math.inf
    name: str = ""
    ramp_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < math.inf:
            raise LoadError(f"{self.load} starts at {self.start_s:g} s; a start is 0 or later")
        if not self.end_s > self.start_s:
            raise LoadError(f"{self.load} ends at {self.end_s:g} s, not after its start at {self.start_s:g} s")
        if not 0.0 <= self.ramp_s < math.inf:
            raise LoadError(f"{self.load} has a ramp of {self.ramp_s:g} s; a ramp takes 0 s or more")
        if 2 * self.ramp_s > self.end_s - self.start_s:
            raise LoadError(
                f"{self.load} lasts {self.end_s - self.start_s:g} s, too short to rise and fall over {self.ramp_s:g} s "
                "each: shorten the ramp"
            )
        if self.ramp_s and self.load.kind == "program":
            raise LoadError(f"{self.load} decides itself how hard it works: leave the ramp out")
        if not self.name:
            object.__setattr__(self, "name", self.load.title)

    def levels(self) -> tuple[tuple[float, float], ...]:
        """Times and the intensities from then on; a ramp goes by equal levels whose mean is half the intensity."""
        full = self.load.intensity
        count = min(_RAMP_LEVELS, max(2, int(self.ramp_s / _RAMP_LEVEL_S))) - 1 if self.ramp_s else 0
        times = [self.ramp_s * i / count for i in range(count)]
        parts = [full * (i + 1) / (count + 1) for i in range(count)]
        up = [(self.start_s + t, part) for t, part in zip(times, parts, strict=True)]
        up.append((self.start_s + self.ramp_s, full))
        if self.end_s == math.inf:
            return tuple(up)
        down = [(self.end_s - self.ramp_s + t, part) for t, part in zip(times, reversed(parts), strict=True)]
        if down and down[0][0] <= up[-1][0]:  # no time at full intensity
            up.pop()
        return (*up, *down, (self.end_s, 0.0))

    def intensity_at(self, at_s: float) -> float:
        """Intensity ``at_s`` seconds after the scenario's beginning."""
        now = 0.0
        for time_s, intensity in self.levels():
            if time_s > at_s:
                break
            now = intensity
        return now


@dataclass(frozen=True)
class Scenario:
    """Loads over time; ``steps`` are in order of their start.

    Raises
    ------
    LoadError
        If there is no step.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise LoadError("a scenario needs at least one load")
        object.__setattr__(self, "steps", tuple(sorted(self.steps, key=lambda step: step.start_s)))

    @property
    def end_s(self) -> float:
        """When the last load ends, seconds; infinite if one does not."""
        return max(step.end_s for step in self.steps)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices that it disturbs, each once."""
        return tuple(dict.fromkeys(step.load.on for step in self.steps))

    def changes(self) -> tuple[Change, ...]:
        """Every change of intensity in order of time; at the same time what falls is before what rises."""
        found = [
            (Change(at_s, index, intensity), rises)
            for index, step in enumerate(self.steps)
            for at_s, intensity, rises in _with_direction(step.levels())
        ]
        return tuple(change for change, rises in sorted(found, key=lambda item: (item[0].at_s, item[1], item[0].step)))

    def loads_at(self, at_s: float) -> tuple[Load, ...]:
        """Loads that are there at a time, with their intensities then; for programs 1."""
        now = ((step.load, step.intensity_at(at_s)) for step in self.steps)
        return tuple(
            load if intensity == load.intensity else load.at(intensity) for load, intensity in now if intensity
        )

    def until(self, end_s: float) -> Self:
        """The same, broken off at ``end_s``.

        Raises
        ------
        LoadError
            If that is before its first load.
        """
        kept = tuple(_clip(step, end_s) for step in self.steps if step.start_s < end_s)
        if not kept:
            raise LoadError(f"the first load starts at {self.steps[0].start_s:g} s, and all is to end at {end_s:g} s")
        return replace(self, steps=kept)

    @classmethod
    def load(cls, path: str | Path, *, seed: int | None = None) -> Scenario:
        """Read a TOML file; see ``examples/interference.toml`` for the format.

        Parameters
        ----------
        path
            The file.
        seed
            In place of the seed of its ``[random]`` table.

        Raises
        ------
        LoadError
            If it cannot be read; the message names the file, the entry and what to write there.
        """
        from odin_lab.inject.scenario_file import read_scenario

        return read_scenario(Path(path), seed=seed)

    @classmethod
    def random(
        cls,
        devices: Sequence[Device],
        names: Sequence[str] = tuple(NAMED),
        *,
        period_s: float,
        duration_s: float,
        length_s: float,
        seed: int,
        spacing: Spacing = "fixed",
    ) -> Scenario:
        """Interference that comes and goes: one event after the other, each a random load on a random device.

        Parameters
        ----------
        devices
            Where events may happen.
        names
            What may happen: named scenarios, or kinds of load at full intensity.
        period_s
            Seconds from the beginning of one event to that of the next; the first begins after one period.
        duration_s
            Seconds that each lasts; events may overlap.
        length_s
            Seconds in all; the last event is cut off there.
        seed
            The same seed gives the same scenario, on every machine.
        spacing
            Whether ``period_s`` and ``duration_s`` are ``"fixed"``, or the means of exponentially distributed ones
            (``"random"``; events of less than 0.1 s are made that long).

        Raises
        ------
        LoadError
            If there is nothing to choose from, a time is not positive, or no event fits in.
        """
        if not devices or not names:
            raise LoadError(f"{len(devices)} devices and {len(names)} loads leave nothing to choose from: name some")
        for what, seconds in (("period", period_s), ("duration", duration_s), ("length", length_s)):
            if not 0.0 < seconds < math.inf:
                raise LoadError(f"a {what} of {seconds:g} s is not a positive number of seconds")
        if spacing not in ("fixed", "random"):
            raise LoadError(f"spacing {spacing!r} is neither 'fixed' nor 'random'")
        for name in names:
            for device in devices:
                _load_of(name, device)
        # Only random(): of all its methods this one promises the same numbers in every version of Python.
        draw = random.Random(seed).random

        def time_s(mean_s: float) -> float:
            return mean_s if spacing == "fixed" else -mean_s * math.log(1.0 - draw())

        steps: list[Step] = []
        start_s = time_s(period_s)
        while start_s < length_s:
            device, name = devices[int(draw() * len(devices))], names[int(draw() * len(names))]
            end_s = start_s + max(_LEAST_DURATION_S if spacing == "random" else 0.0, time_s(duration_s))
            steps.append(Step(_load_of(name, device), start_s, min(end_s, length_s), name))
            # Not by adding up periods, whose rounding errors would add up too.
            start_s = (len(steps) + 1) * period_s if spacing == "fixed" else start_s + time_s(period_s)
        if not steps:
            raise LoadError(f"no event begins within {length_s:g} s: lengthen it, or shorten the period {period_s:g} s")
        return cls(tuple(steps))


def _load_of(name: str, device: Device) -> Load:
    if name in KINDS and name != "program":
        return Load(name, device)
    return named_load(name, device)


def _with_direction(levels: tuple[tuple[float, float], ...]) -> list[tuple[float, float, bool]]:
    before, found = 0.0, []
    for at_s, intensity in levels:
        found.append((at_s, intensity, intensity > before))
        before = intensity
    return found


def _clip(step: Step, end_s: float) -> Step:
    if step.end_s <= end_s:
        return step
    return replace(step, end_s=end_s, ramp_s=min(step.ramp_s, (end_s - step.start_s) / 2))
