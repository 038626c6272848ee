"""What a policy costs while nothing happens: needless moves, and throughput against ``static``, in turns.

Whether anything happens is not ours to say: other guests of a virtual machine's host slow its cores down as well. So
each move is judged in hindsight, by the requests that ran under it: in vain if the plan before would have been as fast.

``python -m benchmarks.quiet``
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from typing import NamedTuple

import torch

import odin
from benchmarks.common import Environment, add_arguments, paired_ratio, report, summarize, with_quartiles, write_result
from benchmarks.feeding import Feeder, KeptEvents, moves_in, where
from odin.monitor.events import RunStarted, SlowdownChanged
from odin.partitioner.transfer import measure_transfer
from odin.stages.device import usable_cores
from odin_lab.report.hindsight import gains_in_hindsight


class Stretch(NamedTuple):
    """A stretch without load."""

    throughput_hz: float
    requests: int
    moves: int
    in_vain: int
    alarms: int
    plan: str


def passed(recorder: KeptEvents, end_s: float) -> bool:
    """Whether a request has finished after ``end_s``."""
    return recorder.timelines(-1)[0].completed_s >= end_s


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--policy", nargs="+", default=["relay", "filter"], help="beside static")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each stretch (default %(default)s)")
    parser.add_argument("--log", metavar="FILE", help="keep the events, as traces for benchmarks.detection")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 10.0
    environment = Environment.collect()
    torch.set_num_threads(1)
    recorder = KeptEvents()
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    kept: dict[str, list[Stretch]] = {policy: [] for policy in (*arguments.policy, "static")}
    with odin.Pipeline(arguments.model, stages=stages, policy="static", on_event=recorder, log=arguments.log) as pipe:
        home = pipe.plan
        (started,) = recorder.of(RunStarted)
        baseline_s = [stage.baseline_s for stage in started.stages]
        cuts = (pipe.chain.inputs, *(layer.output for layer in pipe.chain.layers))
        transfer, cut_nbytes = measure_transfer(), [sum(spec.nbytes for spec in cut) for cut in cuts]
        send_s, receive_s = transfer.send_s(cut_nbytes), transfer.receive_s(cut_nbytes)
        with Feeder(pipe, torch.randn(1, 3, 224, 224), recorder) as feeder:
            feeder.wait(64)
            order = random.Random(arguments.seed)
            for _ in range(arguments.rounds):
                for policy in order.sample(sorted(kept), len(kept)):
                    pipe.policy = "static"  # first: the plan that a policy starts from is home to it
                    feeder.wait(2)
                    pipe.migrate(home)
                    feeder.wait(2 * pipe.max_in_flight)
                    pipe.policy = policy
                    feeder.wait(8)
                    begin, begin_s = recorder.finished, recorder.timelines(-1)[0].completed_s
                    feeder.wait_until(partial(passed, recorder, begin_s + arguments.seconds))
                    moves = moves_in(recorder, begin_s)
                    gains = gains_in_hindsight(
                        baseline_s, moves, recorder.timelines(begin), send_s=send_s, receive_s=receive_s
                    )
                    stretch = Stretch(
                        recorder.throughput_hz(begin),
                        recorder.finished - begin,
                        len(moves),
                        sum(gain <= 0 for gain in gains),
                        sum(event.state == "onset" for event in recorder.of(SlowdownChanged, since_s=begin_s)),
                        where(pipe, recorder.timelines(begin)),
                    )
                    print(policy, stretch, file=sys.stderr)
                    kept[policy].append(stretch)
    static_hz = [stretch.throughput_hz for stretch in kept["static"]]
    rows = [
        [
            policy,
            f"{sum(s.requests for s in stretches)}",
            f"{sum(s.moves for s in stretches)}",
            f"{sum(s.in_vain for s in stretches)}",
            f"{sum(s.alarms for s in stretches)}",
            with_quartiles(summarize([s.throughput_hz for s in stretches]), lambda value: f"{value:.2f}"),
            with_quartiles(paired_ratio([s.throughput_hz for s in stretches], static_hz), lambda v: f"{v:.3f}"),
            "; ".join(s.plan for s in stretches),
        ]
        for policy, stretches in kept.items()
    ]
    report(
        f"{arguments.model} without load, {arguments.rounds} x {arguments.seconds:.0f} s each in turns; home {home}",
        ["", "requests", "moves", "in vain", "onsets seen", "images/s", "of static", "plans at the ends"],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
