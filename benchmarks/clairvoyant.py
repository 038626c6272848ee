"""The simulated relay against the best plan for every request and against the fluid bound, on the paper's nine cells.

For each request the exact best plan under its conditions is in force, at no cost and without delay, which no policy can
do; its requests pass the plan-driven line. The fluid bound divides work without granularity, also request by request.
Both have the noise that the relay has. Simulated time: what else the machine does changes nothing.
``python -m benchmarks.clairvoyant``
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Environment, report, write_result
from odin.partitioner.balance.exact import Balance, balance, fluid_bound_hz
from odin_lab.simulator import Interference, World, simulate_relay
from odin_lab.simulator.conditions import Conditions
from odin_lab.simulator.noise import ALONE, BLOCK
from odin_lab.simulator.paper import STEPS
from odin_lab.simulator.queueing import Line
from odin_lab.timings import load_timings

__all__ = ["Bounds", "Cell", "bounds", "main", "measure", "summary"]

FloatArray = NDArray[np.float64]

CASES = ("resnet50:4", "vgg16:4", "resnet152-fine:8", "resnet152-fine:26", "resnet152-fine:52")
_TARGETS = {4: (1.02, 0.95)}
_TARGET = (1.05, 0.95)


class Bounds(NamedTuple):
    """Requests per second of the best plan at every request, and of the fluid bound."""

    best_plan_hz: float
    fluid_hz: float


class Cell(NamedTuple):
    """One run of the relay, requests per second, beside its bounds."""

    model: str
    devices: int
    period: int
    duration: int
    seed: int
    relay_hz: float
    best_plan_hz: float
    fluid_hz: float


def bounds(world: World, interference: Interference, *, requests: int, seed: int) -> Bounds:
    """Let a closed loop of requests, two for each device, pass under the best plan for each.

    Parameters
    ----------
    world, interference, requests, seed
        As for :func:`odin_lab.simulator.simulate_relay`, with events in requests.

    Examples
    --------
    >>> bounds(World.of([[1.0, 1.0, 1.0]] * 2), Interference(), requests=200, seed=0)
    Bounds(best_plan_hz=0.4987531172069825, fluid_hz=0.6666666666666666)
    """
    stages = world.device_count
    line, in_flight = Line(stages), 2 * stages
    answered_s, fluid_s = np.zeros(requests), 0.0
    for request, (found, prefix_s, factors) in enumerate(_conditions(world, interference, requests, seed)):
        cuts = np.cumsum([0, *found.plan])
        stage, first, last = np.arange(stages), cuts[:-1], cuts[1:]
        stage_s = (prefix_s[stage, last] - prefix_s[stage, first]) * factors
        line.load(stage_s[None], world.receive_s[first], world.send_s[last])
        submitted_s = answered_s[request - in_flight] if request >= in_flight else 0.0
        answered_s[request] = line.step(0, submitted_s + world.send_s[0]) + world.receive_s[-1]
        fluid_s += 1 / fluid_bound_hz((prefix_s[:, -1] * factors)[:, None])
    return Bounds(requests / float(answered_s[-1]), requests / fluid_s)


def _conditions(
    world: World, interference: Interference, requests: int, seed: int
) -> Iterator[tuple[Balance, FloatArray, FloatArray]]:
    """For each request: the best plan, seconds of the layers before each cut on each device, and factors of noise."""
    conditions = Conditions(world, interference)
    blocks = world.noise.blocks(np.random.default_rng([seed, 1]), requests=BLOCK, devices=world.device_count)
    known: dict[tuple[tuple[int, tuple[str, ...]], ...], Balance] = {}
    for block in range(0, requests, BLOCK):
        drawn = next(blocks)
        alone = world.noise.factors(drawn, ALONE)
        for row in range(min(BLOCK, requests - block)):
            conditions.advance(block + row)
            key = tuple(sorted(conditions.scenarios.items()))
            if key not in known:
                known[key] = balance(conditions.true_s, send_s=world.send_s, receive_s=world.receive_s)
            factors = alone[row].copy()
            for device, scenarios in conditions.scenarios.items():
                factors[device] = world.noise.factors(drawn[row, device : device + 1], scenarios[-1])[0]
            yield known[key], conditions.prefix_s, factors


def measure(
    case: str, *, requests: int, seeds: Sequence[int], noise: str = "measured", steps: Sequence[int] = STEPS
) -> list[Cell]:
    """Simulate all cells of ``MODEL:DEVICES``."""
    model, _, count = case.rpartition(":")
    if not model or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"{case!r} is no case; write the name or file of timings and the devices, such as resnet50:4")
    table, devices = load_timings(model), int(count)
    world = World.from_timings(table, devices=devices, noise=noise)
    cells = []
    for seed, period, duration in itertools.product(seeds, steps, steps):
        events = Interference.periodic(
            devices=devices,
            scenarios=table.scenarios,
            period=period,
            duration=duration,
            length=requests,
            seed=seed,
        )
        relay = simulate_relay(world, requests=requests, interference=events, seed=seed)
        bound = bounds(world, events, requests=requests, seed=seed)
        cells.append(Cell(model, devices, period, duration, seed, relay.throughput_hz, *bound))
    return cells


def summary(cells: Sequence[Cell]) -> list[str]:
    """A row: what was simulated; the relay's share of the best plan and of the fluid bound, mean and worst cell."""
    by_cell: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        by_cell.setdefault((cell.period, cell.duration), []).append(cell)
    of_plan = {at: float(np.mean([c.relay_hz / c.best_plan_hz for c in own])) for at, own in by_cell.items()}
    of_fluid = {at: float(np.mean([c.relay_hz / c.fluid_hz for c in own])) for at, own in by_cell.items()}
    worst = min(of_plan, key=lambda at: of_plan[at])
    mean, least = _TARGETS.get(cells[0].devices, _TARGET)
    return [
        f"{cells[0].model}, {cells[0].devices}",
        f"{np.mean(list(of_plan.values())):.3f}",
        f"{of_plan[worst]:.3f} at {worst[0]}, {worst[1]}",
        f"{mean:g}, {least:g}",
        f"{np.mean(list(of_fluid.values())):.3f}",
        f"{min(of_fluid.values()):.3f}",
    ]


def main() -> int:
    """Simulate and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="MODEL:DEVICES", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=1500, help="of each run (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--noise", default="measured", help="measured (default), lognormal:CV, none")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    arguments = parser.parse_args()
    environment = Environment.collect(("numpy",))
    rows, kept = [], []
    for case in arguments.cases:
        cells = measure(case, requests=arguments.requests, seeds=arguments.seeds, noise=arguments.noise)
        kept += cells
        rows.append(summary(cells))
        print("  ".join(rows[-1]), file=sys.stderr)
    report(
        f"The simulated relay, {arguments.requests} requests, seeds {' '.join(map(str, arguments.seeds))}, noise "
        f"{arguments.noise}, nine cells of (period, duration)",
        [
            "model, devices",
            "of best plan: mean",
            "worst cell",
            "target",
            "of fluid bound: mean",
            "worst cell",
        ],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
