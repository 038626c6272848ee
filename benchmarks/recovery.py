"""Throughput under a co-located load: each policy against the best of all plans, swept under the same load.

A load arrives on the core of one of two stages. Every policy starts from the undisturbed plan and reacts; once its
layers have come to rest, its plan and the oracle's take turns under the same load, so that the drift of a shared host
cancels. The oracle's plan is the one that did best under this load in the same run: plans are tried from the
undisturbed one on both ways until throughput has fallen by a quarter, and those within reach of the best once more in
reverse order. A policy that sets windows, as ``relay`` does, goes on meanwhile, as it has no plan of its own; it may be
faster than the oracle's.
``python -m benchmarks.recovery``
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

import odin
from benchmarks.common import (
    Environment,
    StealMeter,
    add_arguments,
    interleave,
    paired_ratio,
    percentile,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.feeding import Feeder, KeptEvents, moves_in, where, windows_of
from odin.monitor.timing import RequestTimeline
from odin.partitioner.balance.exact import fluid_bound_hz
from odin.stages.device import usable_cores
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load

POLICIES = ("relay", "filter", "odin:alpha=10", "lls", "static")
_FAR_WORSE = 0.75


class Recovery(NamedTuple):
    """One policy under the load.

    Attributes
    ----------
    plan
        What it came to; windows and the requests' median cuts where it set windows.
    throughput_hz, oracle_hz
        Under that, and under the oracle's, in turns; the same measurement if they are the same plan.
    fluid_bound_hz
        Sum over devices of 1 / (whole-model time on that device as slow as it was meanwhile).
    p99_s
        Latency under the plan.
    moves
        Plan changes from the load's arrival until it came to rest.
    settled
        Requests from the load's arrival until the last of these.
    steal
        Part of the cores' time that the host of a virtual machine took during the measurement.
    """

    plan: str
    throughput_hz: float
    oracle_hz: float
    fluid_bound_hz: float
    p99_s: float
    moves: int
    settled: int
    steal: float


def bound_hz(pipe: odin.Pipeline, timelines: list[RequestTimeline]) -> float:
    """The fluid bound, from what each stage's layers took compared with their baselines; without empty stages."""
    times_s = []
    for stage, profile in enumerate(pipe.profiles):
        timings = [t.stages[stage] for t in timelines if t.stages[stage].last > t.stages[stage].first]
        if timings:
            usual_s = sum(sum(profile.layer_s[t.first : t.last]) for t in timings)
            times_s.append(sum(t.wall_s for t in timings) / usual_s * np.array(profile.layer_s))
    return fluid_bound_hz(times_s)


def compare(feeder: Feeder, oracle: odin.Plan, begin_s: float, *, turns: int, count: int) -> Recovery:
    """Measure what the present policy came to and the oracle's plan in turns; the load arrived at ``begin_s``."""
    pipe, recorder = feeder.pipe, feeder.recorder
    moves = moves_in(recorder, begin_s)
    settled = recorder.finished_by(moves[-1].at_s) - recorder.finished_by(begin_s) if moves else 0
    steal, plan = StealMeter(), pipe.plan
    own_policy = pipe.policy if windows_of(pipe) else "static"
    same = own_policy == "static" and plan == oracle
    candidates = {"own": (own_policy, plan)} if same else {"own": (own_policy, plan), "oracle": ("static", oracle)}
    seconds = dict.fromkeys(candidates, 0.0)
    kept: list[RequestTimeline] = []
    came_to = ""
    for turn in range(turns):
        for name in list(candidates)[:: 1 if turn % 2 == 0 else -1]:
            policy, wanted = candidates[name]
            if (pipe.policy, pipe.plan) != (policy, wanted):
                pipe.policy = "static"
                if pipe.plan != wanted:
                    pipe.migrate(wanted)
                pipe.policy = policy
                feeder.wait(pipe.max_in_flight + 1)
            rate_hz, timelines = feeder.measure(count)
            seconds[name] += 1 / rate_hz
            if name == "own":
                kept += timelines
                came_to = where(pipe, kept)
    return Recovery(
        came_to,
        turns / seconds["own"],
        turns / seconds["own" if same else "oracle"],
        bound_hz(pipe, kept),
        percentile([timeline.latency_s for timeline in kept], 0.99),
        len(moves),
        settled,
        steal.share(),
    )


def sweep(feeder: Feeder, home: odin.Plan, count: int) -> list[odin.Plan]:
    """Try splits between two stages under the present load, from ``home`` both ways until far worse; best first.

    Those within reach of the best are tried again in reverse order, so that a drift of the machine cancels.
    """
    rates: dict[odin.Plan, list[float]] = {}
    layers = home.layer_count

    def attempt(first: int) -> float:
        plan = odin.Plan((first, layers - first))
        feeder.pipe.migrate(plan)
        feeder.wait(feeder.pipe.max_in_flight + 1)
        rates.setdefault(plan, []).append(feeder.measure(count)[0])
        return rates[plan][-1]

    for firsts in (range(home[0], layers + 1), range(home[0] - 1, -1, -1)):
        for first in firsts:
            if attempt(first) < _FAR_WORSE * max(rate for (rate,) in rates.values()):
                break
    best = max(rate for (rate,) in rates.values())
    for plan in [plan for plan, (rate,) in rates.items() if rate >= _FAR_WORSE * best][::-1]:
        attempt(plan[0])
    return sorted((plan for plan in rates if len(rates[plan]) > 1), key=lambda plan: -sum(rates[plan]))


def recover(model: str, load: Load, arguments: argparse.Namespace) -> dict[str, list[Recovery]]:
    """All trials of one model under one load, by policy."""
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    recorder = KeptEvents()
    x = torch.randn(1, 3, 224, 224)
    with ExitStack() as stack:
        pipe = stack.enter_context(odin.Pipeline(model, stages=stages, policy="static", on_event=recorder))
        home = pipe.plan
        injector = stack.enter_context(Injector(on_event=pipe.note_load))
        feeder = stack.enter_context(Feeder(pipe, x, recorder))

        def go_home() -> None:
            pipe.policy = "static"
            pipe.migrate(home)
            feeder.wait(arguments.rest)

        def under_load(policy: str) -> Recovery:
            go_home()
            pipe.policy = policy
            begin_s, handle = feeder.change_load(partial(injector.start, load))
            try:
                feeder.settle(least=arguments.settle, quiet=arguments.quiet_requests, most=arguments.most)
                return compare(feeder, oracle, begin_s, turns=arguments.turns, count=arguments.count)
            finally:
                handle.stop()

        feeder.wait(2 * arguments.rest)
        undisturbed_hz, _ = feeder.measure(2 * arguments.count)
        handle = injector.start(load)
        feeder.wait(arguments.rest)  # a program takes a moment to be at work
        best = sweep(feeder, home, arguments.sweep_count)
        handle.stop()
        oracle = best[0]
        print(
            f"{model} under {load}: home {home} {undisturbed_hz:.2f}/s undisturbed, best plans "
            f"{', '.join(map(str, best))}",
            file=sys.stderr,
        )
        candidates = {policy: partial(under_load, policy) for policy in POLICIES}
        return interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    core = usable_cores()[:2][-1]
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg16"])
    parser.add_argument("--load", default=f"program@cpu:{core} stress-ng --cpu 1", help="default: %(default)s")
    parser.add_argument(
        "--turns", type=int, default=4, help="of the policy's plan and the oracle's (default %(default)s)"
    )
    parser.add_argument("--count", type=int, default=24, help="requests per turn (default %(default)s)")
    parser.add_argument("--sweep-count", type=int, default=12, help="requests per plan of the sweep")
    parser.add_argument("--rest", type=int, default=24, help="undisturbed requests before each load arrives")
    parser.add_argument("--settle", type=int, default=40, help="requests to react, at least (default %(default)s)")
    parser.add_argument("--quiet-requests", type=int, default=24, help="without a move before measuring")
    parser.add_argument("--most", type=int, default=250, help="requests to react, at most (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.count, arguments.sweep_count, arguments.settle = 1, 12, 3, 20
    environment = Environment.collect()
    torch.set_num_threads(1)
    load = Load.parse(arguments.load)
    results = {model: recover(model, load, arguments) for model in arguments.models}
    for model, recoveries in results.items():
        rows = []
        for name, kept in recoveries.items():
            rate_hz, oracle_hz = (
                [recovery.throughput_hz for recovery in kept],
                [recovery.oracle_hz for recovery in kept],
            )
            bound = [recovery.throughput_hz / recovery.fluid_bound_hz for recovery in kept]
            seen = sorted(
                {recovery.plan for recovery in kept}, key=[recovery.plan for recovery in kept].count, reverse=True
            )
            rows.append(
                [
                    name,
                    with_quartiles(summarize(rate_hz), lambda value: f"{value:.2f}"),
                    with_quartiles(paired_ratio(rate_hz, oracle_hz), lambda value: f"{value:.3f}"),
                    f"{summarize(bound).median:.3f}",
                    f"{summarize([recovery.p99_s for recovery in kept]).median * 1e3:.0f}",
                    f"{summarize([float(recovery.moves) for recovery in kept]).median:.0f}",
                    f"{summarize([float(recovery.settled) for recovery in kept]).median:.0f}",
                    f"{max(recovery.steal for recovery in kept):.0%}",
                    " ".join(seen),
                ]
            )
        report(
            f"{model} under {load}; target: filter >= 0.97 of the oracle",
            [
                "",
                "images/s",
                "of the oracle",
                "of fluid bound",
                "p99 ms",
                "moves",
                "requests to settle",
                "most steal",
                "plans",
            ],
            rows,
            environment,
        )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
