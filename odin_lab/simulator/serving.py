"""What devices take for layers, each by the conditions when it works: not all of them are at the same request.

A device goes on with the times that it has until a request would leave it after its conditions have changed. That
request is worked out layer by layer; later ones begin after the change, and have the new times from their beginning.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.conditions import DEAD_S, Conditions
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE

__all__ = ["Serving"]

FloatArray = NDArray[np.float64]


class _Device:
    """How long a device takes for layers when that changes while it works.

    A layer that was half done when conditions changed needs half of its new time from then on.
    """

    def __init__(self, conditions: Conditions, interference: Interference, device: int) -> None:
        edges, active = interference.on_device(device)
        self._edges = list(edges)
        self._edges_s = [math.inf] * len(edges) if interference.unit == "requests" else list(edges)
        self._rows = [conditions.row(device, ()), *(conditions.row(device, scenarios) for scenarios in active)]
        self._layers_s: dict[int, list[float]] = {}

    @property
    def edges(self) -> list[float]:
        """When its conditions change, in the interference's unit."""
        return self._edges

    def settle(self, requests: float, at_s: float) -> None:
        """Say when so many requests had been answered."""
        self._edges_s[bisect_right(self._edges, requests) - 1] = at_s

    def scenario_at(self, at_s: float) -> str:
        """Scenario on the device."""
        return self._rows[bisect_right(self._edges_s, at_s)].scenario

    def prefix_at(self, at_s: float) -> FloatArray:
        """Seconds of the layers before each cut, as it is from then on, shape (layers + 1,)."""
        return self._rows[bisect_right(self._edges_s, at_s)].prefix_s

    def layers_at(self, at_s: float) -> FloatArray:
        """Seconds of each layer, as it is from then on, shape (layers,)."""
        return np.minimum(self._rows[bisect_right(self._edges_s, at_s)].true_s, DEAD_S)

    def run(self, first: int, last: int, begin_s: float, factor: float) -> list[float]:
        """Seconds of each of some layers that are begun with at a time, all multiplied by a factor of noise."""
        place = bisect_right(self._edges_s, begin_s)
        taken_s, at_s = [], begin_s
        for layer in range(first, last):
            before_s, left = at_s, 1.0
            while True:
                layer_s = min(self._rows[place].true_s.item(layer), DEAD_S) * factor
                edge_s = self._edges_s[place] if place < len(self._edges_s) else math.inf
                if at_s + left * layer_s <= edge_s:
                    at_s += left * layer_s
                    break
                left = max(0.0, left - (edge_s - at_s) / layer_s)
                at_s, place = edge_s, place + 1
            taken_s.append(at_s - before_s)
        return taken_s


class Serving:
    """Times of all devices as they are where each is.

    Parameters
    ----------
    conditions, interference
        What is true, and when that changes.

    Attributes
    ----------
    layers_s
        Seconds of each layer, shape (devices, layers).
    prefix_s
        Seconds of the layers before each cut, shape (devices, layers + 1).
    scenarios
        Disturbed device -> the scenario on it that began last.
    next_s
        Before this moment nothing changes that has not been looked at.
    """

    def __init__(self, conditions: Conditions, interference: Interference) -> None:
        devices = sorted({event.device for event in interference.events})
        self._devices = {device: _Device(conditions, interference, device) for device in devices}
        self.layers_s: FloatArray = np.minimum(conditions.true_s, DEAD_S)
        self.prefix_s: FloatArray = conditions.prefix_s.copy()
        self.scenarios: dict[int, str] = {}
        changes = sorted((edge, device) for device in devices for edge in self._devices[device].edges)
        # Changes to come; those of which it is known when; those that are over, but not for the device yet.
        self._unsettled = deque(changes if interference.unit == "requests" else ())
        self._upcoming = deque(() if interference.unit == "requests" else changes)
        self._pending: list[tuple[float, int]] = []
        self._look_ahead()

    def _look_ahead(self) -> None:
        self.next_s = -math.inf if self._pending else self._upcoming[0][0] if self._upcoming else math.inf

    def settle(self, requests: float, at_s: float) -> None:
        """Say when so many requests had been answered; moments in their order."""
        while self._unsettled and self._unsettled[0][0] <= requests:
            _, device = self._unsettled.popleft()
            self._devices[device].settle(requests, at_s)
            self._upcoming.append((at_s, device))
        self._look_ahead()

    @property
    def next_upcoming_s(self) -> float:
        """When a device's conditions change next that is not pending yet."""
        return self._upcoming[0][0] if self._upcoming else math.inf

    @property
    def pending(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Changes that are over, but not for the device yet: their moments, and the devices."""
        moments_s, devices = [each[0] for each in self._pending], [each[1] for each in self._pending]
        return np.array(moments_s, dtype=np.float64), np.array(devices, dtype=np.int64)

    def changed(self, left_s: FloatArray) -> set[int]:
        """Devices that a request would leave after a change they have not heard of, given when it leaves each."""
        last_s = left_s.item(-1)
        while self._upcoming and self._upcoming[0][0] < last_s:
            self._pending.append(self._upcoming.popleft())
        self._look_ahead()
        return {device for moment_s, device in self._pending if left_s.item(device) > moment_s}

    def take(self, device: int, first: int, last: int, begin_s: float, factor: float) -> list[float]:
        """Seconds of each of some layers that a device begins with at a time."""
        return self._devices[device].run(first, last, begin_s, factor)

    def scenario_at(self, device: int, at_s: float) -> str:
        """Scenario on a device."""
        return self._devices[device].scenario_at(at_s)

    def catch_up(self, device: int, at_s: float) -> None:
        """From now on a device begins with requests at this moment or later."""
        times = self._devices[device]
        self.layers_s[device], self.prefix_s[device] = times.layers_at(at_s), times.prefix_at(at_s)
        scenario = times.scenario_at(at_s)
        if scenario == ALONE:
            self.scenarios.pop(device, None)
        else:
            self.scenarios[device] = scenario
        self._pending = [(moment_s, other) for moment_s, other in self._pending if other != device or moment_s > at_s]
        self._look_ahead()
