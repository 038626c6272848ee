"""What a simulated request costs: the line of stages, the watch with its detector, the policy; and the relay.

Runs of each case, interleaved over rounds, of which each but the last adds a part: no detector and ``static``, the
detector and ``static``, the detector and the policy; the relay, which is held against the line, the first of them.
Times are CPU seconds of this process, compiling left out. ``python -m benchmarks.simulator``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.common import Environment, add_arguments, interleave, report, summarize, with_quartiles, write_result
from odin.partitioner.policies import make_policy
from odin_lab.simulator import Interference, World, simulate
from odin_lab.simulator.compiled import is_available
from odin_lab.timings import synthetic_timings

CASES = ((4_000, 4), (100_000, 52))
QUICK = ((1_000, 4), (5_000, 52))
TARGETS_S = {(4_000, 4): 0.5, (100_000, 52): 6.0}


class Cost(NamedTuple):
    """One case; microseconds of CPU time per request, but for ``whole_s``."""

    requests: int
    devices: int
    engine_us: float
    watch_us: float
    policy_us: float
    whole_s: float
    relay_us: float
    relay_of_line: float


def measure(
    requests: int, devices: int, *, layers: int, policy: str, period: int, rounds: int, seed: int
) -> list[Cost]:
    """Measure one case, round by round."""
    table = synthetic_timings(layers)
    world = World.from_timings(table, devices=devices)
    interference = Interference.periodic(
        devices=devices, scenarios=table.scenarios, period=period, duration=period, length=requests, seed=seed
    )

    def run(name: str, detector: str) -> Callable[[], float]:
        def cpu_s() -> float:
            begin_s = time.process_time()
            simulate(
                world, make_policy(name), requests=requests, interference=interference, detector=detector, seed=seed
            )
            return time.process_time() - begin_s

        return cpu_s

    kept = interleave(
        {
            "engine": run("static", "none"),
            "watch": run("static", "cusum"),
            "policy": run(policy, "cusum"),
            "relay": run("relay", "none"),
        },
        rounds=rounds,
        warmup=1 if requests <= 10_000 else 0,
        seed=seed,
    )
    scale = 1e6 / requests
    return [
        Cost(
            requests,
            devices,
            engine_s * scale,
            (watch_s - engine_s) * scale,
            (whole_s - watch_s) * scale,
            whole_s,
            relay_s * scale,
            relay_s / engine_s,
        )
        for engine_s, watch_s, whole_s, relay_s in zip(*(kept[name] for name in kept), strict=True)
    ]


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    parser.add_argument("--policy", default="filter", help="the policy (default %(default)s)")
    parser.add_argument(
        "--period", type=int, default=100, help="requests from one event to the next, and of each (default %(default)s)"
    )
    add_arguments(parser, rounds=3)
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    environment = Environment.collect(("numpy", "numba") if is_available() else ("numpy",))
    for name in ("static", args.policy, "relay"):  # compiles the loops
        simulate(World.of([[0.1, 0.1]] * 2), make_policy(name), requests=100)
    costs = {
        case: measure(
            *case,
            layers=18 if case[1] < 18 else 108,
            policy=args.policy,
            period=args.period,
            rounds=rounds,
            seed=args.seed,
        )
        for case in (QUICK if args.quick else CASES)
    }
    rows = []
    for case, measured in costs.items():
        figures = [
            with_quartiles(summarize([getattr(cost, name) for cost in measured]), form.format)
            for name, form in (
                ("engine_us", "{:.1f}"),
                ("watch_us", "{:.1f}"),
                ("policy_us", "{:.1f}"),
                ("whole_s", "{:.2f}"),
                ("relay_us", "{:.1f}"),
                ("relay_of_line", "{:.1f}"),
            )
        ]
        target_s = TARGETS_S.get(case)
        figures.insert(4, "" if target_s is None else f"{target_s:g} s")
        rows.append([f"{case[0]:,}", str(case[1]), *figures])
    costs_us = ["line, us", "watch, us", f"{args.policy}, us"]
    columns = ["requests", "devices", *costs_us, "whole run, s", "target", "relay, us", "relay / line, at most 3"]
    report(f"A simulated request, events every {args.period} requests", columns, rows, environment)
    results = [cost for measured in costs.values() for cost in measured]
    write_result(args.output, environment=environment, parameters=vars(args), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
