"""Moving layers while requests flow: is anything lost, reordered or changed, and what does a switch cost?

Two parts. *Correctness*: random plans, empty stages included, one switch every few requests, every output compared bit
for bit with the unsplit model's. *Latency*: the same load under two near-balanced plans, staying on one of them or
switching between them; interleaved rounds. The 99th percentile of requests in flight during a switch is divided by that
of the rounds without. ``python -m benchmarks.migration``
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import torch

import odin
from benchmarks.common import Environment, Figure, add_arguments, percentile, report, summarize, write_result
from odin.stages.device import usable_cores


class Correctness(NamedTuple):
    """What came of requests under random migrations."""

    migrations: int
    requests: int
    lost: int
    out_of_order: int
    different: int
    seconds: float


class Latency(NamedTuple):
    """p99 of requests in flight during a switch and of those in rounds without, seconds; their ratio per round."""

    switching_p99_s: float
    steady_p99_s: float
    ratio: Figure
    switches: int
    plans: str


def check(
    pipe: odin.Pipeline, inputs: list[torch.Tensor], expected: list[torch.Tensor], migrations: int
) -> Correctness:
    """Migrate ``migrations`` times to random plans while requests flow."""
    generator = random.Random(0)
    layers, stages = pipe.plan.layer_count, len(pipe.plan)
    under_way: deque[tuple[int, Future[torch.Tensor]]] = deque()
    finished: list[int] = []
    requests = lost = different = 0
    begin = time.perf_counter()

    def take() -> None:
        nonlocal lost, different
        number, future = under_way.popleft()
        try:
            different += not torch.equal(future.result(120), expected[number % len(expected)])
        except Exception:
            lost += 1

    for _ in range(migrations):
        cuts = sorted(generator.randint(0, layers) for _ in range(stages - 1))
        bounds = [0, *cuts, layers]
        pipe.migrate(odin.Plan(last - first for first, last in itertools.pairwise(bounds)))
        for _ in range(generator.randint(1, 2)):
            future = pipe.submit(inputs[requests % len(inputs)])
            future.add_done_callback(partial(lambda number, _: finished.append(number), requests))
            under_way.append((requests, future))
            requests += 1
            if len(under_way) > pipe.max_in_flight:
                take()
    while under_way:
        take()
    out_of_order = sum(a > b for a, b in itertools.pairwise(finished))
    return Correctness(migrations, requests, lost, out_of_order, different, time.perf_counter() - begin)


def load(
    pipe: odin.Pipeline, x: torch.Tensor, count: int, switch: Callable[[int], float | None]
) -> tuple[list[float], list[float]]:
    """Stream ``count`` requests; returns latencies of all, and of those in flight when a switch began."""
    spans: list[tuple[float, float]] = []
    switches: list[float] = []
    futures: deque[Future[torch.Tensor]] = deque()
    for number in range(count):
        if (moment := switch(number)) is not None:
            switches.append(moment)
        begin = time.perf_counter()
        future = pipe.submit(x)
        future.add_done_callback(partial(lambda begin, _: spans.append((begin, time.perf_counter())), begin))
        futures.append(future)
        if len(futures) >= pipe.max_in_flight:
            futures.popleft().result()
    for future in futures:
        future.result()
    during = [end - begin for begin, end in spans if any(begin <= moment <= end for moment in switches)]
    return [end - begin for begin, end in spans], during


def measure_latency(pipe: odin.Pipeline, x: torch.Tensor, *, rounds: int, count: int, every: int) -> Latency:
    """Interleave steady rounds under two neighbouring plans with rounds that switch between them."""
    best = pipe.plan
    other = odin.Plan((best[0] - 1, best[1] + 1, *best[2:])) if best[0] > 1 else odin.Plan((best[0] + 1, best[1] - 1))
    plans = (best, other)

    def steady(plan: odin.Plan, number: int) -> float | None:
        if number == 0:
            pipe.migrate(plan)
        return None

    def switching(number: int) -> float | None:
        if number == 0 or number % every:
            return None
        moment = time.perf_counter()
        pipe.migrate(plans[number // every % 2])
        return moment

    steady_s: list[float] = []
    during_s: list[float] = []
    ratios: list[float] = []
    switches = 0
    for number in range(-1, rounds):
        # Half of the steady requests under either plan, as in the switching rounds.
        quiet = [s for plan in plans for s in load(pipe, x, count // 2, partial(steady, plan))[0]]
        _, during = load(pipe, x, count, switching)
        if number >= 0:
            switches += (count - 1) // every
            steady_s += quiet
            during_s += during
            ratios.append(percentile(during, 0.99) / percentile(quiet, 0.99))
    pipe.migrate(best)
    return Latency(
        percentile(during_s, 0.99), percentile(steady_s, 0.99), summarize(ratios), switches, f"{best} {other}"
    )


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=7)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg16"])
    parser.add_argument("--migrations", type=int, default=1000, help="random migrations (default %(default)s)")
    parser.add_argument("--count", type=int, default=200, help="requests per latency round (default %(default)s)")
    parser.add_argument("--every", type=int, default=20, help="requests per switch (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.migrations, arguments.count = 2, 30, 60
    environment = Environment.collect()
    torch.set_num_threads(1)
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    generator = torch.Generator().manual_seed(arguments.seed)
    inputs = [torch.randn(1, 3, 224, 224, generator=generator) for _ in range(8)]
    results: dict[str, tuple[Correctness, Latency]] = {}
    for model in arguments.models:
        source = odin.load_source(model)
        chain = odin.build_chain(source.torch_model, source.example_args, name=model)
        expected = [chain(x) for x in inputs]
        with odin.Pipeline(chain, stages=stages, policy="static") as pipe:
            plan = pipe.plan
            correctness = check(pipe, inputs, expected, arguments.migrations)
            pipe.migrate(plan)
            latency = measure_latency(
                pipe, inputs[0], rounds=arguments.rounds, count=arguments.count, every=arguments.every
            )
        results[model] = (correctness, latency)
    rows = [
        [
            model,
            f"{c.migrations} / {c.requests}",
            f"{c.lost} / {c.out_of_order} / {c.different}",
            latency.plans,
            f"{latency.switches}",
            f"{latency.switching_p99_s * 1e3:.1f}",
            f"{latency.steady_p99_s * 1e3:.1f}",
            f"{latency.switching_p99_s / latency.steady_p99_s:.3f}",
            f"{latency.ratio.median:.3f} ({latency.ratio.low:.3f}..{latency.ratio.high:.3f})",
        ]
        for model, (c, latency) in results.items()
    ]
    report(
        "Migration under load; target: 0 / 0 / 0, and a p99 ratio of at most 1.1",
        ["", "moves / requests", "lost / reordered / changed", "plans", "switches", "p99 during ms", "p99 steady ms",
         "ratio", "ratio per round"],
        rows,
        environment,
    )  # fmt: skip
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0 if all(c.lost + c.out_of_order + c.different == 0 for c, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
