"""How near a pipeline comes to what its slowest stage, and its hardware, allow.

*Efficiency* is throughput times the slowest stage's own mean compute time: 1 means that this stage never waits and
hands over for free. *Of the fluid bound* divides throughput by the sum over devices of 1 / whole-model time, with the
model's time taken from the same stages' layers in the same run. ``python -m benchmarks.efficiency``
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from typing import NamedTuple

import numpy as np
import torch

import odin
from benchmarks.common import Environment, add_arguments, report, summarize, with_quartiles, write_result
from odin.monitor.timing import RequestTimeline
from odin.stages.device import usable_cores

TARGETS = {"resnet50": 0.97, "mobilenet_v2": 0.90}


class Round(NamedTuple):
    """One stretch of steady load."""

    throughput_hz: float
    bottleneck_s: float
    efficiency: float
    of_fluid_bound: float


def measure(pipe: odin.Pipeline, x: torch.Tensor, count: int) -> Round:
    """Stream ``count`` requests through a full pipeline and read the gateway's timelines of them."""
    for _ in pipe.map(x for _ in range(count)):
        pass
    timelines: deque[RequestTimeline] = deque(pipe.timelines()[-(count - pipe.max_in_flight) :])
    span_s = timelines[-1].completed_s - timelines[0].completed_s
    throughput_hz = (len(timelines) - 1) / span_s
    stage_s = np.array([[timing.wall_s for timing in timeline.stages] for timeline in timelines]).mean(axis=0)
    # Each layer's mean time where it runs now; equal devices, so the whole model takes the sum on either.
    whole_s = float(stage_s.sum())
    bottleneck_s = float(stage_s.max())
    return Round(throughput_hz, bottleneck_s, throughput_hz * bottleneck_s, throughput_hz * whole_s / len(stage_s))


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=7)
    parser.add_argument("--models", nargs="+", default=list(TARGETS))
    parser.add_argument("--count", type=int, default=200, help="requests per round (default %(default)s)")
    arguments = parser.parse_args()
    rounds, count = (2, 40) if arguments.quick else (arguments.rounds, arguments.count)
    environment = Environment.collect()
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    torch.set_num_threads(1)
    results: dict[str, list[Round]] = {}
    plans: dict[str, str] = {}
    x = torch.randn(1, 3, 224, 224)
    for model in arguments.models:
        with odin.Pipeline(model, stages=stages, policy="static") as pipe:
            measure(pipe, x, count)
            results[model] = [measure(pipe, x, count) for _ in range(rounds)]
            plans[model] = str(pipe.plan)
    rows = [
        [
            f"{model} {plans[model]}",
            with_quartiles(summarize([r.throughput_hz for r in kept]), lambda value: f"{value:.2f}"),
            with_quartiles(summarize([r.bottleneck_s for r in kept]), lambda value: f"{value * 1e3:.1f}"),
            with_quartiles(summarize([r.efficiency for r in kept]), lambda value: f"{value:.3f}"),
            f"{TARGETS.get(model, float('nan')):.2f}",
            with_quartiles(summarize([r.of_fluid_bound for r in kept]), lambda value: f"{value:.3f}"),
        ]
        for model, kept in results.items()
    ]
    report(
        f"Efficiency on {', '.join(stages)} (median of {rounds} rounds of {count} requests, quartiles)",
        ["model, plan", "images/s", "slowest stage ms", "efficiency", "target", "of fluid bound"],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
