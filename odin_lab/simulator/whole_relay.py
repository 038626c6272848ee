"""A relay without bounds, its events in :mod:`odin_lab.simulator.relay_loop`: many times as fast where compiled."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.conditions import DEAD_S, Conditions
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE, BLOCK, LogNormalNoise, MeasuredNoise, NoNoise
from odin_lab.simulator.relay_loop import (
    ARRIVE_ORDER,
    ARRIVED_S,
    AT,
    COMING,
    CONDITIONS,
    EDGE,
    ENTERING_ORDER,
    EVENT,
    FACTOR,
    FINISHED_S,
    FREE_PLACE,
    ITEM,
    MOMENT,
    OPEN,
    PUSHED,
    ROW,
    SCENARIO,
    SLOWDOWN,
    TAKER,
    UNSETTLED,
    WAITING,
    Changes,
    Draws,
    Requests,
    Stages,
    change,
    come,
    foresee_change,
    run_until_drawn,
)
from odin_lab.simulator.world import World

__all__ = ["WholeRelay"]

FloatArray = NDArray[np.float64]


class WholeRelay:
    """One run with the results of :class:`odin_lab.simulator.relay.RelayLine`, to the bit, where it may be used.

    Parameters
    ----------
    run_events
        :func:`~odin_lab.simulator.relay_loop.run_until_drawn`, which may be compiled.
    world, requests, interference, arrivals, in_flight, seed
        As :func:`odin_lab.simulator.simulate_relay` has them.
    """

    def __init__(
        self,
        world: World,
        *,
        requests: int,
        interference: Interference,
        arrivals: Arrivals,
        in_flight: int,
        seed: int,
        run_events: Callable[..., bool] = run_until_drawn,
    ) -> None:
        self._world, self._run_events = world, run_events
        stages = world.device_count
        coming_s = arrivals.times_s(requests, np.random.default_rng([seed, 2]))
        self._first = requests if coming_s is not None else min(arrivals.clients or in_flight, requests)
        conditions = Conditions(world, interference, known=interference.unit == "seconds")
        self._blocks = world.noise.blocks(np.random.default_rng([seed, 1]), requests=BLOCK, devices=stages)
        self._begin, self._recordings = -BLOCK, _Recordings(world, conditions)
        self._changes = _changes_of(world, conditions, self._recordings, known=interference.unit == "seconds")
        self._stages = _stages_of(world)
        self._requests = _requests_of(requests, np.empty(0) if coming_s is None else coming_s, in_flight)
        if interference.unit == "seconds":
            self._requests.counts[UNSETTLED] = len(self._changes.real[AT])
        recorded = in_flight if len(self._recordings.first) else 0
        self._own = np.ones((in_flight, stages))
        self._own_place = np.zeros((recorded, stages), dtype=np.int64)
        self._own_drift = np.ones((recorded, stages))
        self.arrived_s, self.submitted_s, self.finished_s = self._requests.times_s
        self.conditions_number = self._requests.numbers[CONDITIONS]

    @staticmethod
    def can_run(world: World) -> bool:
        """Whether it knows this world's noise, and there is somebody to hand over to."""
        return world.device_count > 1 and type(world.noise) in (NoNoise, LogNormalNoise, MeasuredNoise)

    def run(self) -> None:
        """Serve all requests."""
        requests, changes, counts = self._requests, self._changes, self._requests.counts
        at = changes.real[AT]
        while counts[UNSETTLED] < len(at) and at[counts[UNSETTLED]] <= 0:
            changes.real[MOMENT, counts[UNSETTLED]] = 0.0
            counts[UNSETTLED] += 1
        change(self._stages, requests, changes, 0.0)
        if len(requests.coming_s):
            requests.times_s[ARRIVED_S] = requests.coming_s
            requests.numbers[ARRIVE_ORDER] = np.arange(1, self._first + 1)
            counts[COMING] = counts[PUSHED] = self._first
        else:
            for _ in range(self._first):
                come(requests, 0.0)
        foresee_change(counts, changes)
        while not self._run_events(self._stages, requests, changes, self._draw()):
            pass

    def _draw(self) -> Draws:
        drawn = next(self._blocks)
        self._begin += BLOCK
        alone = self._world.noise.factors(drawn, ALONE)
        place, drift = np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0))
        if len(self._recordings.first):
            place, drift = np.ascontiguousarray(drawn["place"]), np.ascontiguousarray(drawn["drift"])
        own = self._own, self._own_place, self._own_drift
        return Draws(self._begin, alone, place, drift, *own, self._recordings.factors, self._recordings.first)


class _Recordings:
    """Recorded noise of the scenarios that there are, one behind the other; empty if noise is always the same."""

    def __init__(self, world: World, conditions: Conditions) -> None:
        names = sorted({active[-1] for _, _, active in conditions.changes if active})
        self.numbers = {name: number for number, name in enumerate((ALONE, *names))}
        parts = []
        if isinstance(world.noise, MeasuredNoise):
            parts = [world.noise.recording(name) for name in self.numbers]
        self.factors: FloatArray = np.concatenate(parts) if parts else np.empty(0)
        ends = np.cumsum([0, *(len(part) for part in parts)]) if parts else np.empty(0)
        self.first: NDArray[np.int64] = ends.astype(np.int64)


def _changes_of(world: World, conditions: Conditions, recordings: _Recordings, *, known: bool) -> Changes:
    rows: dict[tuple[int, tuple[str, ...]], int] = {(k, ()): k for k in range(world.device_count)}
    real, whole = [], []
    for at, device, active in conditions.changes:
        row = rows.setdefault((device, active), len(rows))
        real.append((at, at if known else math.inf))
        whole.append((device, row, recordings.numbers[active[-1]] if active else 0))
    return Changes(
        np.array([np.minimum(conditions.row(*row).true_s, DEAD_S) for row in rows]),
        np.array(real, dtype=np.float64).reshape(-1, 2).T.copy(),
        np.array(whole, dtype=np.int64).reshape(-1, 3).T.copy(),
    )


def _stages_of(world: World) -> Stages:
    stages, usual_s = world.device_count, np.minimum(world.baseline_s, DEAD_S)
    behind_s = np.zeros((stages, world.layer_count + 1))
    behind_s[:, :-1] = np.cumsum(usual_s[:, ::-1], axis=1)[:, ::-1]
    real, whole = np.zeros((EVENT + 1, stages)), np.zeros((SCENARIO + 1, stages), dtype=np.int64)
    real[[FACTOR, SLOWDOWN]], real[OPEN], real[EVENT] = 1.0, -math.inf, math.inf
    whole[[ITEM, WAITING, TAKER]], whole[ROW] = -1, np.arange(stages)
    return Stages(usual_s, behind_s, np.array([world.receive_s, world.send_s]), real, whole)


def _requests_of(requests: int, coming_s: FloatArray, in_flight: int) -> Requests:
    times_s, places = np.zeros((3, requests)), np.zeros((ENTERING_ORDER + 1, in_flight), dtype=np.int64)
    times_s[FINISHED_S], places[FREE_PLACE] = math.inf, np.arange(in_flight)
    counts = np.zeros(EDGE + 1, dtype=np.int64)
    counts[EDGE] = -1
    numbers = np.zeros((2, requests), dtype=np.int64)
    return Requests(coming_s, times_s, numbers, np.zeros((2, in_flight)), places, counts)
