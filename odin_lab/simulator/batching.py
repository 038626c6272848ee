"""Dynamic batching in simulated time: requests of one sample each, a line, and stages that take t(n) for n of them.

Who is joined, and when, is decided by what serves live (:mod:`odin.requests.joining`); simulated are only arrivals and
stages::

    arrivals -> line -> a place is free, and Joining says so -> stage 0 -> stage 1 -> .. -> all of the micro-batch done
                                                                t(n) / stages on each, in order, t(n) = fixed + n * each

A place is free again when its micro-batch is done. Nothing is refused: what is late is counted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from odin.requests.admission import Forecast
from odin.requests.joining import Joining

__all__ = ["BatchingOutcome", "BatchingWorld", "simulate_batching"]


@dataclass(frozen=True)
class BatchingWorld:
    """Stages that take requests together.

    Attributes
    ----------
    name
        What it is called in tables.
    fixed_s, each_s
        Seconds of a micro-batch on all stages together: whatever its size, and for each sample.
    stages
        How many share that, each an equal part.
    places
        Micro-batches under way at most; 0: two for each stage.
    batch
        Most samples of a micro-batch.
    noise
        Standard deviation of the logarithm of what a micro-batch takes.
    """

    name: str
    fixed_s: float
    each_s: float
    stages: int = 2
    places: int = 0
    batch: int = 8
    noise: float = 0.05

    def seconds(self, samples: int) -> float:
        """Of a micro-batch on all stages."""
        return self.fixed_s + self.each_s * samples

    @property
    def alone_hz(self) -> float:
        """Requests per second if none are joined."""
        return self.stages / self.seconds(1)

    @property
    def full_hz(self) -> float:
        """Requests per second if all micro-batches are full."""
        return self.stages * self.batch / self.seconds(self.batch)


class BatchingOutcome(NamedTuple):
    """What came of it.

    Attributes
    ----------
    throughput_hz
        Requests answered per second, from the first arrival to the last answer.
    latency_s
        Of each request, from its arrival to its answer, in the order of arrival.
    mean_samples
        Of a micro-batch.
    in_time
        Part of the requests that was answered within its deadline; 1 without deadlines.
    """

    throughput_hz: float
    latency_s: tuple[float, ...]
    mean_samples: float
    in_time: float


@dataclass
class _Waiting:
    number: int
    entered_s: float
    deadline_s: float
    samples: int = 1
    form: Hashable = "all alike"
    urgent: bool = False


def simulate_batching(
    world: BatchingWorld,
    arrivals_s: Sequence[float],
    *,
    joins: bool = True,
    wait_s: float = 0.0,
    deadline_s: float = math.inf,
    largest: int | None = None,
    seed: int = 0,
) -> BatchingOutcome:
    """Serve requests that come at given times, ascending.

    Parameters
    ----------
    joins, wait_s
        As of :class:`odin.requests.joining.Joining`.
    deadline_s
        Time that each request has.
    largest
        Most samples that are joined, as ``Pipeline.largest_batch``; default: ``batch``.

    Examples
    --------
    >>> world = BatchingWorld("gains", fixed_s=0.012, each_s=0.008, stages=1, places=1, noise=0.0)
    >>> at_once = [0.0] * 9
    >>> [round(simulate_batching(world, at_once, joins=joins).throughput_hz, 1) for joins in (False, True)]
    [50.0, 93.8]
    """
    random = np.random.default_rng(seed)
    joining = Joining(world.batch, joins=joins, wait_s=wait_s)
    if largest is not None:
        joining.largest = largest
    places = world.places or 2 * world.stages
    waiting: deque[_Waiting] = deque()
    free_s = [0.0] * world.stages
    under_way: list[float] = []  # when each micro-batch is done
    over_s = [math.nan] * len(arrivals_s)
    sizes: list[int] = []
    number, now_s, look_s = 0, 0.0, math.inf

    def predict(samples: int) -> Forecast:
        part_s, done_s = world.seconds(samples) / world.stages, now_s
        for stage_s in free_s:
            done_s = max(done_s, stage_s) + part_s
        return Forecast(now_s, done_s - now_s, done_s, done_s)

    while number < len(arrivals_s) or waiting:
        coming_s = arrivals_s[number] if number < len(arrivals_s) else math.inf
        now_s = max(now_s, min(coming_s, look_s, under_way[0] if under_way else math.inf))
        while under_way and under_way[0] <= now_s:
            heapq.heappop(under_way)
        while number < len(arrivals_s) and arrivals_s[number] <= now_s:
            waiting.append(_Waiting(number, now_s, now_s + deadline_s))
            number += 1
        look_s = math.inf
        while waiting and len(under_way) < places:
            count, until_s = joining.decide(waiting, now_s=now_s, predict=predict)
            if not count:
                look_s = until_s
                break
            members = [waiting.popleft() for _ in range(count)]
            part_s = world.seconds(count) / world.stages
            done_s = now_s
            for stage in range(world.stages):
                noise = math.exp(world.noise * random.standard_normal())
                free_s[stage] = done_s = max(done_s, free_s[stage]) + part_s * noise
            heapq.heappush(under_way, done_s)
            sizes.append(count)
            for one in members:
                over_s[one.number] = done_s
    latency_s = tuple(over - came for over, came in zip(over_s, arrivals_s, strict=True))
    taken_s = max(over_s) - arrivals_s[0]
    return BatchingOutcome(
        len(arrivals_s) / taken_s,
        latency_s,
        sum(sizes) / len(sizes),
        sum(took_s <= deadline_s for took_s in latency_s) / len(latency_s),
    )
