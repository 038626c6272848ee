"""Knob policies in simulated time: latencies as a batch or instances make them, under loads that come and go.

The policies and periods are those that serve live (:mod:`odin.tuning`); simulated are only a device and its clock::

    batch       one micro-batch of b samples at a time         (fixed + b each) x slowdown x noise
    instances   n samples at a time, one on each instance      each x max(1, n / cores) x slowdown x noise

A load slows all that runs down alike.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from odin.tuning.periods import REQUESTS, Period, Periods
from odin.tuning.policy import KnobName, PolicyName, make_knob_policy

__all__ = ["Spell", "TuningOutcome", "TuningWorld", "share_within", "simulate_tuning", "standard_worlds"]

_Z95 = 1.6448536269514722
"""95% of a normal distribution lie below so many standard deviations."""


class Spell(NamedTuple):
    """A load: from when to when, and how much slower a request is then."""

    begin_s: float
    end_s: float
    slowdown: float


@dataclass(frozen=True)
class TuningWorld:
    """What latencies come from.

    Attributes
    ----------
    name
        What it is called in tables.
    knob
        Which one is turned.
    each_s
        Seconds that each sample adds to a batch, or that a sample takes on an instance with a core of its own.
    fixed_s
        Seconds of a batch whatever its size.
    largest
        Largest value of the knob.
    cores
        From so many instances on they share cores.
    limit_s
        Latency to keep.
    spells
        Loads.
    noise
        Standard deviation of the logarithm of a latency.
    """

    name: str
    knob: KnobName
    each_s: float
    limit_s: float
    fixed_s: float = 0.0
    largest: int = 32
    cores: int = 2
    spells: tuple[Spell, ...] = ()
    noise: float = 0.05

    def slowdown(self, at_s: float) -> float:
        """How much slower everything is at a time."""
        return max((spell.slowdown for spell in self.spells if spell.begin_s <= at_s < spell.end_s), default=1.0)

    def latency_s(self, value: int, at_s: float) -> float:
        """Latency without noise."""
        if self.knob == "batch":
            return (self.fixed_s + self.each_s * value) * self.slowdown(at_s)
        return (self.fixed_s + self.each_s * max(1.0, value / self.cores)) * self.slowdown(at_s)

    def best(self, at_s: float) -> int:
        """The value with the most throughput of those whose p95 keeps the limit; 1 if none does."""
        tail = math.exp(_Z95 * self.noise)
        keep = [value for value in range(1, self.largest + 1) if tail * self.latency_s(value, at_s) <= self.limit_s]
        return max(keep, key=lambda value: (round(value / self.latency_s(value, at_s), 6), -value), default=1)


class TuningOutcome(NamedTuple):
    """What came of a policy in a world.

    Attributes
    ----------
    settled_periods
        Periods until the value did not change any more before the first load; ``nan`` if it changed to its end.
    within
        Part of the time in periods whose p95 kept the limit.
    throughput_hz, best_hz
        Samples per second; and if at every moment the knob had the best value for it.
    turns
        How often the knob was turned.
    periods
        All, in order.
    """

    settled_periods: float
    within: float
    throughput_hz: float
    best_hz: float
    turns: int
    periods: tuple[Period, ...]

    @property
    def of_best(self) -> float:
        """Throughput as a part of the best."""
        return self.throughput_hz / self.best_hz if self.best_hz > 0 else math.nan


def simulate_tuning(
    world: TuningWorld,
    policy: PolicyName,
    *,
    seconds: float,
    seed: int = 0,
    statistic: str = "p95",
    start: int = 1,
    requests: int = REQUESTS,
) -> TuningOutcome:
    """Run a policy in a world for so many seconds, with as much under way as is computed at a time.

    Examples
    --------
    >>> world = TuningWorld("batches", "batch", each_s=0.003, limit_s=0.05, noise=0.0)
    >>> found = simulate_tuning(world, "dnnscaler", seconds=60.0)
    >>> found.periods[-1].after, round(found.of_best, 2)
    (15, 1.0)
    """
    rng = np.random.default_rng(seed)
    knob = make_knob_policy(
        policy, knob=world.knob, limit_s=world.limit_s, largest=world.largest, start=start, free=world.cores
    )
    periods = Periods(knob, limit_s=world.limit_s, statistic=statistic, requests=requests)
    ended: list[Period] = []
    under_way: list[tuple[float, float, int]] = []  # completed, submitted, samples
    now_s, samples = 0.0, 0
    while now_s < seconds:
        wanted = 1 if world.knob == "batch" else knob.value
        while len(under_way) < wanted:
            size = knob.value if world.knob == "batch" else 1
            latency_s = world.latency_s(knob.value, now_s) * math.exp(world.noise * rng.standard_normal())
            heapq.heappush(under_way, (now_s + latency_s, now_s, size))
        now_s, submitted_s, size = heapq.heappop(under_way)
        samples += size
        period = periods.take(submitted_s=submitted_s, completed_s=now_s)
        if period is not None:
            ended.append(period)
            if period.after != period.before:
                periods.turned(now_s)
    calm_s = min((spell.begin_s for spell in world.spells), default=seconds)
    within = share_within(ended, world.limit_s)
    turns = sum(period.after != period.before for period in ended)
    best_hz = _best_samples(world, now_s) / now_s
    return TuningOutcome(_settled(ended, calm_s), within, samples / now_s, best_hz, turns, tuple(ended))


def share_within(ended: Sequence[Period], limit_s: float, *, begin_s: float = 0.0) -> float:
    """Part of the time, from a moment on, in periods that kept a limit; ``nan`` without periods.

    Examples
    --------
    >>> share_within([Period(30.0, 1, 1, 0.05, 40), Period(40.0, 1, 1, 0.15, 40)], 0.1)
    0.75
    """
    edges_s = [begin_s, *(period.at_s for period in ended)]
    kept_s = sum(
        end_s - start_s
        for (start_s, end_s), period in zip(pairwise(edges_s), ended, strict=True)
        if period.latency_s <= limit_s
    )
    return kept_s / (edges_s[-1] - begin_s) if ended else math.nan


def _settled(ended: Sequence[Period], calm_s: float) -> float:
    calm = [period for period in ended if period.at_s < calm_s]
    turned = [number for number, period in enumerate(calm, 1) if period.after != period.before]
    last = turned[-1] if turned else 0
    return math.nan if not calm or last == len(calm) else float(last)


def _best_samples(world: TuningWorld, seconds: float) -> float:
    """Samples if the knob always had the best value; between the moments at which a load begins or ends."""
    edges = sorted({0.0, seconds, *(at_s for spell in world.spells for at_s in spell[:2] if at_s < seconds)})
    total = 0.0
    for begin_s, end_s in pairwise(edges):
        value = world.best(begin_s)
        total += (end_s - begin_s) * value / world.latency_s(value, begin_s)
    return total


def standard_worlds() -> tuple[TuningWorld, ...]:
    """A device that gains by batches, one that hardly does, and instances; calm, and with a load that comes and goes.

    Times are about those of EfficientNet-B0 (a batch has much to gain), ResNet50 (little) and ResNet50 on two cores.
    """
    calm = (
        TuningWorld("batch, gains", "batch", each_s=0.008, fixed_s=0.012, limit_s=0.150),
        TuningWorld("batch, gains little", "batch", each_s=0.055, fixed_s=0.010, limit_s=0.400),
        TuningWorld("instances", "instances", each_s=0.110, limit_s=0.130, largest=4),
        TuningWorld("instances, room", "instances", each_s=0.110, limit_s=0.400, largest=8, cores=4),
    )
    spells = (Spell(120.0, 180.0, 1.8), Spell(240.0, 300.0, 1.4))
    return (*calm, *(replace(one, name=f"{one.name}, load", spells=spells) for one in calm))
