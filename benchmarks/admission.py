"""What admission accepts, and how much of it is in time, in simulated time: under overload and loads that come and go.

Stages that take from one queue, 1.5 requests each in flight, as live. A load on the first stage is not there, there all
the time, or comes and goes (exponentially distributed, as long there as not). Goodput is requests answered in time over
those that a closed loop without deadlines had answered by then, under the same load, with the same noise.
``python -m benchmarks.admission``
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import Environment, report, write_result
from odin.partitioner.policies import make_policy
from odin_lab.simulator import Interference, World, simulate
from odin_lab.simulator.deadlines import REFUSED
from odin_lab.simulator.interference import Event
from odin_lab.simulator.run import Run
from odin_lab.timings import load_timings

__all__ = ["Cell", "coming_and_going", "main", "measure"]

LOADS = ("none", "steady", "1", "3", "10")
_LONG_S = 10_000.0


class Cell(NamedTuple):
    """One run; see the module. ``load`` is ``none``, ``steady``, or the mean seconds that the load is there."""

    model: str
    devices: int
    noise: str
    deadline: str
    offered: float
    load: str
    seed: int
    goodput: float
    accepted: int
    in_time: int
    refused: float


def coming_and_going(load: str, *, scenario: str, seed: int) -> Interference:
    """A load on device 0.

    Examples
    --------
    >>> coming_and_going("steady", scenario="cpu-100", seed=0).events
    (Event(device=0, scenario='cpu-100', start=0.0, end=10000.0),)
    """
    if load == "none":
        return Interference((), "seconds")
    if load == "steady":
        return Interference((Event(0, scenario, 0.0, _LONG_S),), "seconds")
    draw, events, at_s = random.Random(f"{seed} {load}").random, [], 0.0
    while at_s < _LONG_S:
        begin_s = at_s - float(load) * math.log(1.0 - draw())
        at_s = begin_s - float(load) * math.log(1.0 - draw())
        events.append(Event(0, scenario, begin_s, at_s))
    return Interference(tuple(events), "seconds")


@functools.lru_cache(maxsize=16)
def _world(model: str, devices: int, noise: str) -> World:
    return World.from_timings(load_timings(model), devices=devices, noise=noise)


@functools.lru_cache(maxsize=16)
def _closed(model: str, devices: int, noise: str, load: str, scenario: str, requests: int, seed: int) -> Run:
    return _run(model, devices, noise, load, scenario, requests, seed)


def _run(
    model: str,
    devices: int,
    noise: str,
    load: str,
    scenario: str,
    requests: int,
    seed: int,
    *,
    arrivals: str = "closed",
    deadline: str = "1000000x",
    admission: str = "none",
) -> Run:
    return simulate(
        _world(model, devices, noise),
        make_policy("relay"),
        requests=requests,
        interference=coming_and_going(load, scenario=scenario, seed=seed),
        arrivals=arrivals,
        deadline=deadline,
        admission=admission,
        in_flight=math.ceil(1.5 * devices),
        seed=seed,
    )


def measure(
    model: str,
    devices: int,
    noise: str,
    deadline: str,
    offered: float,
    load: str,
    seed: int,
    *,
    scenario: str = "cpu-100",
    capacity: int = 2_000,
    admission: str = "predict",
) -> Cell:
    """Run one cell for about as long as ``capacity`` requests take with nothing else running."""
    closed = _closed(model, devices, noise, load, scenario, capacity, seed)
    run = _run(
        *(model, devices, noise, load, scenario, int(capacity * offered), seed),
        arrivals=f"poisson:{offered:g}x",
        deadline=deadline,
        admission=admission,
    )
    until_s = min(float(closed.finished_s.max()), float(run.arrived_s[-1]))
    assert run.outcome is not None
    assert run.deadline_s is not None
    in_time = run.finished_s <= run.deadline_s
    kept = run.outcome != REFUSED
    return Cell(
        *(model, devices, noise, deadline, offered, load, seed),
        int((in_time & (run.finished_s <= until_s)).sum()) / int((closed.finished_s <= until_s).sum()),
        int(kept.sum()),
        int(in_time[kept].sum()),
        float((~kept).mean()),
    )


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Goodput, mean of the seeds, and the share in time of all accepted; a row per noise, deadline and load offered."""
    found = []
    for key, group in itertools.groupby(cells, lambda cell: cell[:5]):
        by_load: dict[str, list[Cell]] = {}
        for cell in group:
            by_load.setdefault(cell.load, []).append(cell)
        row = [f"{key[0]}, {key[1]}", key[2].removeprefix("lognormal:"), key[3], f"{key[4]:g}x"]
        for same in by_load.values():
            goodput = float(np.mean([cell.goodput for cell in same]))
            share = sum(cell.in_time for cell in same) / sum(cell.accepted for cell in same)
            row.append(f"{goodput:.3f} {100 * share:.2f}")
        refused = [float(np.mean([cell.refused for cell in same])) for same in by_load.values()]
        row.append(f"{min(refused):.0%}..{max(refused):.0%}")
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the table, and write the file if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["resnet50:2", "resnet50:4", "vgg16:2"], metavar="MODEL:DEVICES")
    parser.add_argument("--noises", nargs="+", default=["lognormal:0.1", "lognormal:0.2"], metavar="NOISE")
    parser.add_argument("--deadlines", nargs="+", default=["3x", "5x"], metavar="TIMES")
    parser.add_argument("--offered", nargs="+", type=float, default=[2.0, 10.0], help="of the peak (%(default)s)")
    parser.add_argument("--loads", nargs="+", default=list(LOADS), metavar="LOAD", help="%(default)s")
    parser.add_argument("--scenario", default="cpu-100", help="the load (default %(default)s)")
    parser.add_argument("--admission", default="predict", help="the rule (default %(default)s)")
    parser.add_argument("--capacity", type=int, default=2_000, metavar="N", help="requests of capacity (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, .. (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args(argv)
    cells = []
    for case, noise, deadline, offered, load, seed in itertools.product(
        arguments.cases,
        arguments.noises,
        arguments.deadlines,
        arguments.offered,
        arguments.loads,
        range(arguments.seeds),
    ):
        model, _, devices = case.partition(":")
        cells.append(
            measure(
                *(model, int(devices), noise, deadline, offered, load, seed),
                scenario=arguments.scenario,
                capacity=arguments.capacity,
                admission=arguments.admission,
            )
        )
    title = f"goodput / capacity, and % in time of accepted, by how long {arguments.scenario} on one stage lasts (s)"
    columns = ("model, stages", "noise", "deadline", "offered", *arguments.loads, "refused")
    report(title, columns, rows(cells), Environment.collect())
    write_result(arguments.output, environment=Environment.collect(), parameters=vars(arguments), results=cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
