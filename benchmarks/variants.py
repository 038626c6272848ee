"""A mixed trace of requests of several accuracies: ODIN's choice of variants, INFaaS's, always the best, the cheapest.

For each variant there is a class of requests that ask for its accuracy, within ``--deadlines`` times its own latency
alone. The same Poisson trace is served live by each policy, with and without a load that comes and goes on one core,
and replayed by the simulator with the profiles that were measured here. A request is *violated* that is late, refused,
or answered less accurately than asked; the cost is seconds of the stages' processors for each request that is not.

Accuracies are those published for the weights that torchvision has; the weights here are random, since only time is
measured. ``python -m benchmarks.variants``
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.progress import track

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    cpu_seconds,
    milliseconds,
    percentile,
    report,
    write_result,
)
from benchmarks.open_loop import begin_each
from benchmarks.spells import Spell, coming_and_going, default_load, spells
from odin.family.facts import Facts
from odin.family.policies import POLICIES, make_variant_policy
from odin.stages.device import usable_cores
from odin_lab.inject.load import Load
from odin_lab.simulator.tenants import Outsider
from odin_lab.simulator.variants import Asked, WantClass, mixed_trace, run_family

ACCURACY = {
    "mobilenet_v2": 0.7188,
    "resnet18": 0.6976,
    "resnet34": 0.7331,
    "resnet50": 0.7613,
    "resnet101": 0.7737,
    "vgg16": 0.7159,
}
"""Top-1 on ImageNet of torchvision's first weights, as it publishes them."""
_CHOICES, _UNDER_WAY = 2000, 20


class Way(NamedTuple):
    """What became of the trace with one policy.

    Attributes
    ----------
    kept, late, refused, inaccurate, failed
        Shares of the requests.
    cost_s
        Seconds of the stages' processors for each kept request.
    latency_s
        Median and 99th percentile of the answered ones.
    by_variant
        Answered requests of each.
    off
        Median and 99th percentile of actual / predicted seconds; nan where it is not known.
    """

    policy: str
    load: str
    how: str
    requests: int
    kept: float
    late: float
    refused: float
    inaccurate: float
    failed: float
    cost_s: float
    latency_s: tuple[float, float]
    by_variant: dict[str, int]
    off: tuple[float, float] = (math.nan, math.nan)


def live(
    variants: Sequence[odin.Variant],
    policy: str,
    trace: Sequence[Asked],
    plan: Sequence[Spell],
    load: str,
    *,
    stages: Sequence[str],
    pixels: int,
) -> Way:
    """Serve the trace in real time."""
    x = torch.randn(1, 3, pixels, pixels)
    outcomes: Counter[str] = Counter()
    by_variant: Counter[str] = Counter()
    latency_s: list[float] = []
    ratios: list[float] = []

    async def ask(family: odin.Family, number: int) -> None:
        want = trace[number].want
        try:
            answer = await family.asubmit(x, accuracy=want.accuracy, latency_s=want.latency_s)
        except odin.DeadlineExceededError as error:
            outcomes["refused" if error.refused else "late"] += 1
        except odin.OdinError:
            outcomes["failed"] += 1
        else:
            by_variant[answer.variant] += 1
            latency_s.append(answer.actual_s)
            ratios.append(answer.actual_s / answer.predicted_s)
            in_time, right = answer.actual_s <= want.latency_s, answer.accuracy >= want.accuracy
            outcomes["kept" if in_time and right else "inaccurate" if in_time else "late"] += 1

    async def send(family: odin.Family) -> None:
        moments = (asked.at_s for asked in track(trace, f"{policy}{', disturbed' if load else ''}", transient=True))
        tasks = await begin_each(lambda number, _: ask(family, number), moments, begin_s=time.perf_counter())
        await asyncio.gather(*tasks)

    with odin.Family(variants, stages=list(stages), policy=policy) as family:
        before = _used_s(family)
        with coming_and_going(Load.parse(load) if load else None, plan):
            asyncio.run(send(family))
        used_s = _used_s(family) - before
    kept = outcomes["kept"]
    return _way(
        policy, load, "live", outcomes, requests=len(trace), cost_s=used_s / kept if kept else math.inf,
        latency_s=latency_s, by_variant=dict(by_variant),
        off=_quantiles(ratios),
    )  # fmt: skip


def _used_s(family: odin.Family) -> float:
    """Processor seconds of the stages of all variants that are loaded."""
    pipelines = [family.pipeline(variant.name) for variant in family.variants]
    pids = [pid for pipeline in pipelines if pipeline is not None for _, pid in pipeline.stage_names()]
    return sum(cpu_seconds(pids).values())


def simulated(
    facts: Sequence[Facts], policy: str, trace: Sequence[Asked], plan: Sequence[Spell], load: str, *, devices: int
) -> Way:
    """Replay the trace by the simulator; a load has one core's time half for itself."""
    outsiders = [Outsider(devices - 1, spell.begin_s, spell.end_s) for spell in plan] if load else []
    found = run_family(facts, make_variant_policy(policy), trace, devices=devices, outsiders=outsiders)
    outcomes = Counter(kept=found.kept, late=found.late, refused=found.refused, inaccurate=found.inaccurate)
    return _way(
        policy, load, "simulated", outcomes, requests=len(trace), cost_s=found.cost_s, latency_s=found.latency_s,
        by_variant=found.by_variant,
        off=_quantiles([took_s / said_s for took_s, said_s in zip(found.latency_s, found.predicted_s, strict=True)]),
    )  # fmt: skip


def _way(
    policy: str,
    load: str,
    how: str,
    outcomes: Counter[str],
    *,
    requests: int,
    cost_s: float,
    latency_s: Sequence[float],
    by_variant: dict[str, int],
    off: tuple[float, float] = (math.nan, math.nan),
) -> Way:
    kept, late, refused, inaccurate, failed = (
        outcomes[kind] / requests for kind in ("kept", "late", "refused", "inaccurate", "failed")
    )
    quantiles = _quantiles(latency_s)
    return Way(
        policy, load, how, requests, kept, late, refused, inaccurate, failed, cost_s, quantiles, by_variant,
        off,
    )  # fmt: skip


def _quantiles(latency_s: Sequence[float]) -> tuple[float, float]:
    return (percentile(latency_s, 0.5), percentile(latency_s, 0.99)) if latency_s else (math.nan, math.nan)


def choosing_s(
    variants: Sequence[odin.Variant], classes: Sequence[WantClass], *, stages: Sequence[str], pixels: int
) -> tuple[float, float]:
    """Median seconds of a choice among all variants: with nothing under way, and with many requests in each of them."""

    def median_s(family: odin.Family) -> float:
        took_s = []
        for number in range(_CHOICES):
            want = classes[number % len(classes)]
            begin_s = time.perf_counter()
            family.ask(accuracy=want.accuracy, latency_s=want.latency_s)
            took_s.append(time.perf_counter() - begin_s)
        return statistics.median(took_s)

    async def busy_s(family: odin.Family) -> float:
        x = torch.randn(1, 3, pixels, pixels)
        asked = [family.asubmit(x, variant=variant.name) for _ in range(_UNDER_WAY) for variant in variants]
        tasks = [asyncio.ensure_future(one) for one in asked]
        await asyncio.sleep(0)  # all are in line
        took_s = median_s(family)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return took_s

    with odin.Family(variants, stages=list(stages)) as family:
        return median_s(family), asyncio.run(busy_s(family))


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    cores = usable_cores()[:2]
    parser.add_argument("--models", nargs="+", choices=ACCURACY, default=["mobilenet_v2", "resnet34", "resnet50"])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["odin", "infaas", "best", "cheapest"])
    parser.add_argument("--pixels", type=int, default=224, help="height and width of images (default %(default)s)")
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 0.9], help="shares of what the cores can do")
    parser.add_argument("--deadlines", type=float, default=3.0, help="latency asked for / alone (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trace (default %(default)s)")
    parser.add_argument("--disturbed-by", default=default_load(cores[-1]), metavar="LOAD", help="(default %(default)s)")
    parser.add_argument("--on-s", type=float, default=5.0, help="mean seconds that it stays (default %(default)s)")
    parser.add_argument("--off-s", type=float, default=5.0, help="mean seconds between (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.pixels, arguments.seconds = arguments.models[:2], 64, min(arguments.seconds, 4.0)
        arguments.load, arguments.on_s, arguments.off_s = arguments.load[:1], 1.0, 1.0
    environment = Environment.collect()
    torch.set_num_threads(1)
    stages = [f"cpu:{core}" for core in cores]
    variants = [
        odin.Variant(name, name, image_size=arguments.pixels, accuracy=ACCURACY[name]) for name in arguments.models
    ]
    begin_s = time.perf_counter()
    with odin.Family(variants, stages=stages, refresh_profile=True) as family:
        facts = family.facts
    profile_s = time.perf_counter() - begin_s
    classes = [WantClass(one.accuracy, arguments.deadlines * one.latency_s(), 1.0) for one in facts]
    choice_s, busy_choice_s = choosing_s(variants, classes, stages=stages, pixels=arguments.pixels)
    least_s = [min(one.cost_s for one in facts if one.is_accurate(want.accuracy)) for want in classes]
    ways: list[tuple[float, Way]] = []
    for share in arguments.load:
        rate_hz = share * len(stages) / statistics.mean(least_s)
        trace = mixed_trace(classes, rate_hz=rate_hz, seconds=arguments.seconds, seed=arguments.seed)
        plan = spells(arguments.seconds, on_s=arguments.on_s, off_s=arguments.off_s, seed=arguments.seed)
        for load in ("", arguments.disturbed_by):
            for policy in arguments.policies:
                ways.append((share, simulated(facts, policy, trace, plan, load, devices=len(stages))))
            for number in range(arguments.rounds):  # one after the other, so that all get what the machine does besides
                for policy in arguments.policies:
                    way = live(variants, policy, trace, plan, load, stages=stages, pixels=arguments.pixels)
                    ways.append((share, way))
                told = f"load {share:g}{', disturbed' if load else ''}"
                print(f"{told}: round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    told = ", ".join(f"{one.name} {one.accuracy:.4g} {milliseconds(one.latency_s())} ms" for one in facts)
    report(
        f"{told}; latencies asked for {arguments.deadlines:g} x alone; choosing takes {choice_s * 1e6:.0f} us, "
        f"and {busy_choice_s * 1e6:.0f} us with {_UNDER_WAY} requests in each; "
        f"profiling {len(variants)} variants took {profile_s:.0f} s",
        [
            "", "", "load", "disturbed", "requests", "violated", "late", "refused", "inaccurate", "failed",
            "ms/kept", "p50, p99 ms", "actual / predicted", "answered by",
        ],
        [_row(share, way) for share, way in ways],
        environment,
    )  # fmt: skip
    results: dict[str, Any] = {
        "facts": [one._asdict() for one in facts],
        "choosing_s": choice_s,
        "choosing_under_load_s": busy_choice_s,
        "profiling_s": profile_s,
        "ways": [{"share": share, **way._asdict()} for share, way in ways],
    }
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


def _row(share: float, way: Way) -> list[str]:
    return [
        way.policy,
        way.how,
        f"{share:g}",
        "yes" if way.load else "",
        str(way.requests),
        f"{1 - way.kept:.1%}",
        f"{way.late:.1%}",
        f"{way.refused:.1%}",
        f"{way.inaccurate:.1%}",
        f"{way.failed:.1%}",
        milliseconds(way.cost_s) if math.isfinite(way.cost_s) else "-",
        ", ".join("-" if math.isnan(one) else milliseconds(one) for one in way.latency_s),
        "-" if math.isnan(way.off[0]) else f"{way.off[0]:.2f}, {way.off[1]:.2f}",
        ", ".join(f"{name} {count}" for name, count in sorted(way.by_variant.items())),
    ]


if __name__ == "__main__":
    sys.exit(main())
