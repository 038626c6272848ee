"""True times as they change: what interference makes of the world, as a run goes on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE
from odin_lab.simulator.world import World

__all__ = ["DEAD_S", "Conditions"]

FloatArray = NDArray[np.float64]

DEAD_S = 1000.0
"""What a layer takes at most: on a dead device, whose times are infinite, requests still finish one day."""


class _Row:
    """A device's times under some scenarios."""

    __slots__ = ("prefix_s", "scenario", "true_s")

    def __init__(self, true_s: FloatArray, scenario: str) -> None:
        self.true_s = true_s
        self.scenario = scenario
        self.prefix_s = np.concatenate([[0.0], np.cumsum(np.minimum(true_s, DEAD_S))])


class Conditions:
    """The conditions at one moment, which only moves on.

    Parameters
    ----------
    world, interference
        What is true, and what disturbs it.
    known
        Whether moments are what the interference says; else they are numbers of requests, and :meth:`settle` says when
        each came.

    Attributes
    ----------
    true_s
        True seconds of each layer on each device, shape (devices, layers); ``inf`` for what never ends. Read-only.
    prefix_s
        Seconds of the layers before each cut, no layer taking more than :data:`DEAD_S`, shape (devices, layers + 1).
    scenarios
        Disturbed device -> the scenarios on it, the one that began last last.
    number
        How many changes there have been.
    next_edge
        When they change next; infinite if they do not.

    Raises
    ------
    ValueError
        If a device is none of the world's, or a scenario's effect is not known.
    """

    def __init__(self, world: World, interference: Interference, *, known: bool = True) -> None:
        if interference.events and max(event.device for event in interference.events) >= world.device_count:
            worst = max(interference.events, key=lambda event: event.device)
            raise ValueError(f"{worst} is on device {worst.device}; the world has {world.device_count}, counted from 0")
        self._world = world
        self._rows: dict[tuple[int, tuple[str, ...]], _Row] = {}
        devices = sorted({event.device for event in interference.events})
        self._changes = sorted(
            (edge, device, active)
            for device in devices
            for edge, active in zip(*interference.on_device(device), strict=True)
        )
        self._moments = [edge if known else math.inf for edge, _, _ in self._changes]
        self._unsettled = len(self._changes) if known else 0
        self.number = 0
        self.scenarios: dict[int, tuple[str, ...]] = {}
        rows = [self.row(device, ()) for device in range(world.device_count)]
        self.true_s: FloatArray = np.array([row.true_s for row in rows])
        self.true_s.setflags(write=False)
        self.prefix_s: FloatArray = np.array([row.prefix_s for row in rows])
        self.next_edge = self._moments[0] if self._moments else math.inf

    @property
    def changes(self) -> list[tuple[float, int, tuple[str, ...]]]:
        """All changes in their order: when, in the interference's unit, on which device, the scenarios from then on."""
        return list(self._changes)

    @property
    def next_unsettled(self) -> float:
        """Number of requests of which it must be said next when it came; infinite if there is none."""
        return self._changes[self._unsettled][0] if self._unsettled < len(self._changes) else math.inf

    def settle(self, at_s: float) -> None:
        """Say when :attr:`next_unsettled` came."""
        requests = self.next_unsettled
        while self.next_unsettled == requests:
            self._moments[self._unsettled] = at_s
            self._unsettled += 1
        self.next_edge = self._moments[self.number]

    def row(self, device: int, active: tuple[str, ...]) -> _Row:
        """Times of a device under some scenarios."""
        row = self._rows.get((device, active))
        if row is None:
            true_s = self._world.baseline_s[device] * self._world.effect(active)
            row = self._rows[device, active] = _Row(true_s, active[-1] if active else ALONE)
        return row

    def advance(self, to: float) -> bool:
        """Go on to a later moment; returns whether anything has changed."""
        if to < self.next_edge:
            return False
        true_s = self.true_s.copy()
        changes, moments, place = self._changes, self._moments, self.number
        while place < len(changes) and moments[place] <= to:
            _, device, active = changes[place]
            row = self.row(device, active)
            true_s[device], self.prefix_s[device] = row.true_s, row.prefix_s
            if active:
                self.scenarios[device] = active
            else:
                self.scenarios.pop(device, None)
            place += 1
        self.number = place
        self.next_edge = moments[place] if place < len(changes) else math.inf
        true_s.setflags(write=False)
        self.true_s = true_s
        return True
