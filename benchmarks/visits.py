"""What is measured while a load comes to a core and goes again, of one who serves, and the tables made of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.common import (
    StealMeter,
    cpu_seconds,
    milliseconds,
    paired_ratio,
    percentile,
    summarize,
    with_quartiles,
)
from odin_lab.feeding import Feeder

__all__ = [
    "COST_COLUMNS",
    "PHASES",
    "RATE_COLUMNS",
    "REPLICAS",
    "Bound",
    "Stretch",
    "Visit",
    "cost_rows",
    "rate_rows",
    "stretch",
    "visit",
]

REPLICAS = "replicas:"
"""Before the name of a runtime."""
PHASES = ("undisturbed", "arrived", "later", "returned")
_SKIPPED = 10
"""Requests after a load's arrival, and after its end, that are not measured."""
_LOOK_S = 0.02
"""Between looks at how many requests have been answered, which cost the program CPU time as well."""


class Stretch(NamedTuple):
    """Requests one after the other as the caller saw them, and the bound while they were served.

    Attributes
    ----------
    throughput_hz, fluid_bound_hz
        Requests per second.
    latency_s
        Of each request.
    where
        The plan, or windows and median cuts; empty for replicas.
    steal
        Part of the cores' time that the host of a virtual machine took meanwhile.
    cpu_s, driver_cpu_s
        CPU seconds per request of all processes that serve, the program itself among them, and of the program alone.
    """

    throughput_hz: float
    fluid_bound_hz: float
    latency_s: tuple[float, ...]
    where: str
    steal: float
    cpu_s: float
    driver_cpu_s: float


Visit = tuple[Stretch, ...]
"""One coming and going of a load, a stretch for each of :data:`PHASES`."""

Bound = Callable[[float, float], tuple[float, str]]
"""Seconds from and to which requests finished -> the fluid bound, requests per second, and where they changed hands."""


def wait(feeder: Feeder, count: int) -> None:
    """Wait until ``count`` more requests have been answered."""
    wanted = feeder.finished + count
    while feeder.finished < wanted:
        if feeder.error is not None:
            raise feeder.error
        if not feeder.alive:
            raise RuntimeError("requests are not fed any more")
        time.sleep(_LOOK_S)


def stretch(feeder: Feeder, bound: Bound, pids: Iterable[int], count: int) -> Stretch:
    """Measure the next ``count`` requests, which the processes ``pids`` and this one serve."""
    own, pids = os.getpid(), set(pids)
    steal, before, begin = StealMeter(), cpu_seconds({own, *pids}), feeder.finished
    wait(feeder, count + 1)
    after, served = cpu_seconds(before), feeder.finished - begin
    cpu_s = {pid: (after[pid] - before[pid]) / served for pid in after}
    answers = feeder.answers[begin : begin + count + 1]
    begin_s, end_s = answers[0].finished_s, answers[-1].finished_s
    bound_rate_hz, text = bound(begin_s, end_s)
    latency_s = tuple(answer.finished_s - answer.submitted_s for answer in answers[1:])
    throughput_hz = count / (end_s - begin_s)
    return Stretch(throughput_hz, bound_rate_hz, latency_s, text, steal.share(), sum(cpu_s.values()), cpu_s[own])


def visit(
    feeder: Feeder,
    bound: Bound,
    come: Callable[[], Callable[[], object]],
    *,
    pids: Iterable[int] = (),
    count: int,
    rest: int,
    settle: int,
) -> Visit:
    """Let a load come and go once; ``come`` starts it and returns what ends it, ``pids`` serve beside this process."""
    wait(feeder, rest)
    undisturbed = stretch(feeder, bound, pids, count)
    go = come()
    try:
        wait(feeder, _SKIPPED)
        soon = stretch(feeder, bound, pids, count)
        wait(feeder, settle)
        later = stretch(feeder, bound, pids, count)
    finally:
        go()
    wait(feeder, _SKIPPED)
    return undisturbed, soon, later, stretch(feeder, bound, pids, count)


RATE_COLUMNS = ("requests", "who", "images/s", "of static", "of best replicas", "of fluid bound", "most steal", "where")
COST_COLUMNS = ("requests", "who", "p50 ms", "p95 ms", "p99 ms", "CPU ms per request", "of it the driver's")


def rate_rows(visits: Mapping[str, Sequence[Visit]], phase: int) -> list[list[str]]:
    """A row for each contender in one phase, one cell for each of :data:`RATE_COLUMNS`."""
    stretches = {name: [one[phase] for one in own] for name, own in visits.items()}
    rates = {name: [one.throughput_hz for one in own] for name, own in stretches.items()}
    replicas = [name for name in rates if name.startswith(REPLICAS)]
    best = max(replicas, key=lambda name: summarize(rates[name]).median, default="")

    def ratio(name: str, reference: str) -> str:
        if reference not in rates or name == reference:
            return "-"
        return with_quartiles(paired_ratio(rates[name], rates[reference]), "{:.3f}".format)

    rows = []
    for name, own in stretches.items():
        texts = [one.where for one in own]
        rows.append(
            [
                PHASES[phase],
                name,
                f"{summarize(rates[name]).median:.2f}",
                ratio(name, "static"),
                ratio(name, best),
                with_quartiles(summarize([one.throughput_hz / one.fluid_bound_hz for one in own]), "{:.3f}".format),
                f"{max(one.steal for one in own):.0%}",
                max(texts, key=texts.count),
            ]
        )
    return rows


def cost_rows(visits: Mapping[str, Sequence[Visit]], phase: int) -> list[list[str]]:
    """A row for each contender in one phase, one cell for each of :data:`COST_COLUMNS`."""
    rows = []
    for name, own in visits.items():
        stretches = [one[phase] for one in own]
        latency_s = [value for one in stretches for value in one.latency_s]
        rows.append(
            [
                PHASES[phase],
                name,
                *(milliseconds(percentile(latency_s, share)) for share in (0.5, 0.95, 0.99)),
                with_quartiles(summarize([one.cpu_s for one in stretches]), milliseconds),
                with_quartiles(summarize([one.driver_cpu_s for one in stretches]), milliseconds),
            ]
        )
    return rows
