"""A fleet's scheduler in simulated time: many models, a skewed trace with bursts, executors that may be disturbed.

The scheduler is the one that serves (:mod:`odin.fleet.scheduler`), or the one that predicts nothing
(:mod:`odin.fleet.on_demand`); only executors and clock are simulated. Times of actions vary as measured ones do::

    run    baseline x noise x slowdown of the executor
    load   (constant + bytes / rate, none if in memory) x noise x slowdown
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from odin.fleet.estimates import ModelFacts
from odin.fleet.on_demand import OnDemand
from odin.fleet.scheduler import LOAD, RUN, Action, Measured, Scheduler

__all__ = ["Arrival", "Disk", "FleetResult", "run_fleet", "small_models", "zipf_trace"]


class Arrival(NamedTuple):
    """A request comes."""

    at_s: float
    model: int


class Disk(NamedTuple):
    """What loads take."""

    constant_s: float = 0.003
    rate_nbytes_s: float = 1e9
    evict_s: float = 0.001


class FleetResult(NamedTuple):
    """What became of a trace.

    Attributes
    ----------
    requests, in_time, refused, late
        All; answered before their deadline; refused at once; dropped, or answered after it.
    hits, cold
        Requests taken whose model was in memory, or not.
    loads, evictions
        Actions.
    largest_nbytes
        That models took in memory at most.
    measured
        All actions, predicted and actual.
    """

    requests: int
    in_time: int
    refused: int
    late: int
    hits: int
    cold: int
    loads: int
    evictions: int
    largest_nbytes: int
    measured: tuple[Measured, ...]

    @property
    def in_time_share(self) -> float:
        """Of all requests."""
        return self.in_time / self.requests if self.requests else math.nan


def small_models(count: int, *, seed: int = 0) -> list[ModelFacts]:
    """Facts of so many models of 4 to 10 MiB, which run for 2 to 8 ms."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 11, count)
    return [ModelFacts(int(size) << 20, ((1, float(size) * 0.8e-3),), f"architecture {size}") for size in sizes]


def zipf_trace(
    models: int,
    *,
    rate_hz: float,
    duration_s: float,
    exponent: float = 1.0,
    burst_hz: float = 0.2,
    burst_requests: int = 20,
    seed: int = 0,
) -> list[Arrival]:
    """Poisson arrivals for models of which a few are asked for mostly, with bursts for single ones.

    Parameters
    ----------
    models
        How many there are; the ``k``-th most popular is asked for in proportion to ``k ** -exponent``.
    rate_hz
        Of all requests outside of bursts.
    burst_hz, burst_requests
        How often one of the models, any of them, is asked for so often within 200 ms.
    """
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate_hz * duration_s)
    weights = np.arange(1, models + 1) ** -exponent
    popular = rng.permutation(models)
    chosen = popular[rng.choice(models, count, p=weights / weights.sum())]
    times_s = rng.uniform(0, duration_s, count)
    arrivals = [Arrival(float(at), int(model)) for at, model in zip(times_s, chosen, strict=True)]
    for begin_s in rng.uniform(0, duration_s, rng.poisson(burst_hz * duration_s)):
        model = int(rng.integers(models))
        arrivals += [Arrival(float(begin_s + at), model) for at in rng.uniform(0, 0.2, burst_requests)]
    return sorted(arrivals)


class _Simulation:
    def __init__(
        self,
        scheduler: Scheduler,
        disk: Disk,
        slowdown: Callable[[int, float], float],
        noise: float,
        seed: int,
    ) -> None:
        self.scheduler, self._disk, self._slowdown, self._noise = scheduler, disk, slowdown, noise
        self._rng = np.random.default_rng(seed)
        self.events: list[tuple[float, int, Arrival | int | None]] = []  # an arrival, an executor's end, or a look
        self._order = itertools.count()
        self._sent: dict[int, deque[Action]] = {}
        self._cold_loads: set[int] = set()
        self.measured: list[Measured] = []
        self.in_time = self.late = 0
        self.largest_nbytes = 0
        self.wake_s = math.inf
        self._began_s: dict[int, float] = {}

    def at(self, at_s: float, what: Arrival | int | None) -> None:
        heapq.heappush(self.events, (at_s, next(self._order), what))

    def pump(self, now_s: float) -> None:
        before = set(self.scheduler.residency)
        actions, dropped = self.scheduler.decide(now_s)
        self.late += len(dropped)
        for action in actions:
            if action.kind == LOAD and action.model not in before:
                self._cold_loads.add(action.number)
                before.add(action.model)
            queue = self._sent.setdefault(action.executor, deque())
            queue.append(action)
            if len(queue) == 1:
                self._begin(action, now_s)
        self.largest_nbytes = max(self.largest_nbytes, self.scheduler.residency.used_nbytes)
        wake_s = self.scheduler.wake_s(now_s)
        if wake_s < self.wake_s and wake_s < math.inf:
            self.wake_s = max(wake_s, now_s + 1e-4)
            self.at(self.wake_s, None)

    def _begin(self, action: Action, now_s: float) -> None:
        self._began_s[action.executor] = now_s
        self.at(now_s + self._takes_s(action, now_s), action.executor)

    def _takes_s(self, action: Action, now_s: float) -> float:
        facts, disk = self.scheduler.models[action.model], self._disk
        if action.kind == RUN:
            if action.request is not None and now_s > action.request.deadline_s - facts.baseline_of(1):
                return 1e-5  # the executor sees that it is too late
            alone_s = facts.baseline_of(1)
        elif action.kind == LOAD:
            cold = action.number in self._cold_loads
            alone_s = disk.constant_s + (facts.nbytes / disk.rate_nbytes_s if cold else 0.0)
        else:
            alone_s = disk.evict_s
        noise = math.exp(abs(self._rng.normal(0.0, self._noise)))
        return alone_s * noise * self._slowdown(action.executor, now_s)

    def ended(self, executor: int, now_s: float) -> None:
        queue = self._sent[executor]
        action = queue.popleft()
        took_s = now_s - self._began_s[executor]
        bind_s = min(took_s, self._disk.constant_s) if action.kind == LOAD else 0.0
        ran = True
        if action.request is not None:
            ran = took_s > 2e-5
            if ran and now_s <= action.request.deadline_s:
                self.in_time += 1
            else:
                self.late += 1
        found = self.scheduler.answered(executor, action.number, now_s, took_s=took_s, bind_s=bind_s, ok=ran)
        if found is not None:
            self.measured.append(found)
        if queue:
            self._begin(queue[0], now_s)


def run_fleet(
    models: Sequence[ModelFacts],
    arrivals: Sequence[Arrival],
    *,
    executors: int = 2,
    memory_mib: float = 2048,
    deadline_s: float = 0.1,
    predicts: bool = True,
    refuses: bool = True,
    slowdown: Callable[[int, float], float] = lambda executor, now_s: 1.0,
    disk: Disk = Disk(),  # noqa: B008 - it does not change
    noise: float = 0.05,
    seed: int = 0,
) -> FleetResult:
    """Serve a trace in simulated time.

    Parameters
    ----------
    predicts
        Whether the scheduler is the one that predicts, or the one that loads on demand.
    refuses
        Whether what would be late is refused at once.
    slowdown
        Of an executor at a time.
    noise
        Standard deviation of the logarithm of what actions take more than at least.
    """
    make = Scheduler if predicts else OnDemand
    scheduler = make(models, executors=executors, memory_nbytes=int(memory_mib * 2**20), refuses=refuses)
    for executor in range(executors):
        scheduler.regain(executor, [facts.code for facts in models])
    simulation = _Simulation(scheduler, disk, slowdown, noise, seed)
    for arrival in arrivals:
        simulation.at(arrival.at_s, arrival)
    refused = hits = cold = 0
    number = 0
    while simulation.events:
        now_s, _, what = heapq.heappop(simulation.events)
        if isinstance(what, Arrival):
            resident = what.model in scheduler.residency
            verdict = scheduler.submit(number, what.model, 1, now_s + deadline_s, now_s)
            number += 1
            refused += verdict.late
            hits += not verdict.late and resident
            cold += not verdict.late and not resident
        elif what is None:
            if now_s != simulation.wake_s:  # one that was set before, for later
                continue
            simulation.wake_s = math.inf
        else:
            simulation.ended(what, now_s)
        simulation.pump(now_s)
    measured = tuple(simulation.measured)
    return FleetResult(
        len(arrivals),
        simulation.in_time,
        refused,
        simulation.late,
        hits,
        cold,
        sum(one.kind == LOAD for one in measured),
        sum(one.kind not in (LOAD, RUN) for one in measured),
        simulation.largest_nbytes,
        measured,
    )
