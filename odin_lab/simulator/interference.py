"""Which device is disturbed by what, from when to when."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from odin_lab.inject.scenario import Scenario

__all__ = ["Event", "Interference"]


class Event(NamedTuple):
    """A scenario on a device over the half-open ``[start, end)``."""

    device: int
    scenario: str
    start: float
    end: float


@dataclass(frozen=True)
class Interference:
    """Everything that disturbs a run.

    Attributes
    ----------
    events
        In order of their start.
    unit
        What starts and ends are: seconds from the run's beginning; or numbers of requests that have been answered, so
        that each event disturbs as many requests under every policy. Either way it is a moment, and from then on the
        device is as slow for whatever request it is working on.

    Raises
    ------
    ValueError
        If an event ends before it starts, or its device or unit makes no sense.
    """

    events: tuple[Event, ...] = ()
    unit: Literal["requests", "seconds"] = "requests"

    def __post_init__(self) -> None:
        if self.unit not in ("requests", "seconds"):
            raise ValueError(f"unit {self.unit!r} is neither 'requests' nor 'seconds'")
        for event in self.events:
            if not (event.device >= 0 and 0 <= event.start < event.end):
                raise ValueError(f"{event}: a device is 0 or more, and an end after its start")
        object.__setattr__(self, "events", tuple(sorted(self.events, key=lambda event: event.start)))

    @classmethod
    def periodic(
        cls, *, devices: int, scenarios: Sequence[str], period: int, duration: int, length: int, seed: int
    ) -> Self:
        """Every ``period`` requests, from request ``period`` on, a random scenario on a random device.

        Parameters
        ----------
        devices, scenarios
            What there is to choose from.
        period, duration
            Requests from one event to the next, and that each lasts. Events on different devices overlap; on the same
            one the later takes the place of the earlier.
        length
            Requests of the run; events end with it.
        seed
            The same seed gives the same events, on every machine and whatever the period: event by event.

        Raises
        ------
        ValueError
            If there is nothing to choose from or a number is below 1.
        """
        if devices < 1 or not scenarios:
            raise ValueError(f"{devices} devices and {len(scenarios)} scenarios leave nothing to choose from")
        if min(period, duration, length) < 1:
            raise ValueError(f"period {period}, duration {duration}, length {length}: all are at least 1 request")
        # Only random(): of all its methods this one promises the same numbers in every version of Python.
        draw = random.Random(seed).random
        latest: dict[int, Event] = {}
        done: list[Event] = []
        for start in range(period, length + 1, period):
            device, scenario = int(draw() * devices), scenarios[int(draw() * len(scenarios))]
            before = latest.pop(device, None)
            if before is not None:
                done.append(before._replace(end=min(before.end, start)))
            latest[device] = Event(device, scenario, start, min(start + duration, length + 1))
        return cls((*done, *latest.values()))

    @classmethod
    def from_scenario(cls, scenario: Scenario, devices: Sequence[str], *, length_s: float = math.inf) -> Self:
        """Loads of a scenario file, as events of named scenarios or such as ``cpu*0.6x2``.

        Parameters
        ----------
        scenario
            What was, or would be, injected.
        devices
            Text forms of the pipeline's devices in order, such as ``("cpu:0", "cpu:1")``.
        length_s
            Where events end at the latest.

        Raises
        ------
        ValueError
            If a load is on a device that the pipeline has not, or is a program, whose effect nobody knows.
        """
        places = {str(device): index for index, device in enumerate(devices)}
        levels: dict[int, list[tuple[float, str]]] = {}
        for change in scenario.changes():
            load = scenario.steps[change.step].load
            if str(load.on) not in places:
                raise ValueError(f"{load} is not on a device of the pipeline, which has {', '.join(places)}")
            if load.kind == "program":
                raise ValueError(f"{load}: what a program does to a stage is not known; take cpu, membw or cache")
            text = scenario_text(load.kind, change.intensity, load.threads / load.on.threads)
            levels.setdefault(change.step, []).append((change.at_s, text if change.intensity else ""))
        device_of = {step: places[str(scenario.steps[step].load.on)] for step in levels}
        return cls(tuple(_events_of_levels(levels, device_of, length_s)), "seconds")

    def on_device(self, device: int) -> tuple[tuple[float, ...], tuple[tuple[str, ...], ...]]:
        """When what is on a device changes, and the scenarios on it from then on, the one that began first first."""
        own = deque(event for event in self.events if event.device == device)
        edges = sorted({edge for event in own for edge in (event.start, event.end) if edge < math.inf})
        now: list[Event] = []
        active = []
        for edge in edges:
            now = [event for event in now if event.end > edge]
            while own and own[0].start <= edge:
                now.append(own.popleft())
            active.append(tuple(event.scenario for event in now))
        return tuple(edges), tuple(active)


def scenario_text(kind: str, intensity: float, processes: float) -> str:
    """Text of a load by its kind, intensity and processes per core: a named scenario's name, if it is one.

    Examples
    --------
    >>> scenario_text("cpu", 0.5, 1), scenario_text("cpu", 0.6, 2)
    ('cpu-50', 'cpu*0.6x2')
    """
    percent = round(100 * intensity, 6)
    times = "" if processes == 1 else f"x{processes:g}"
    if percent == 100 or (percent in (25, 50, 75) and processes == 1):
        return f"{kind}-{percent:g}{times}"
    return f"{kind}*{intensity:g}{times}"


def _events_of_levels(
    levels: Mapping[int, Iterable[tuple[float, str]]], device_of: Mapping[int, int], length_s: float
) -> Iterable[Event]:
    for step, changes in levels.items():
        now, since_s = "", 0.0
        for at_s, text in (*changes, (length_s, "")):
            if now and min(at_s, length_s) > since_s:
                yield Event(device_of[step], now, since_s, min(at_s, length_s))
            now, since_s = text, at_s
