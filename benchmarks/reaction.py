"""How fast a pipeline answers when a load arrives on one of its cores, and when it leaves.

Requests are counted as they finish, from the moment the load begins (or ends) to work; and from the first that felt it,
for Linux may let a program that wakes up wait for up to a second beside one that is always there: the first of two
requests in a row that waited for the core for a fourth of their time (run-queue delay, which no detector here sees).
Of a policy that sets windows, as ``relay`` does, there are no new plans to tell of.
``python -m benchmarks.reaction``
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch

import odin
from benchmarks.common import (
    Environment,
    StealMeter,
    add_arguments,
    percentile,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.feeding import Feeder, KeptEvents, moves_in, windows_of
from odin.monitor.events import SlowdownChanged
from odin.monitor.timing import RequestTimeline
from odin.partitioner.plan import Plan
from odin.stages.device import usable_cores
from odin_lab.inject.injector import Handle, Injector
from odin_lab.inject.load import Load

_ABOUT_PLANS = ("new plan", "moves", "home")
_WAITED = 0.25
"""Part of a stage's time."""


class Answer(NamedTuple):
    """The answer to one load that came and went.

    Attributes
    ----------
    detected
        Requests finished from its arrival until it was detected; ``None``: not within the time.
    moved
        Requests finished from its arrival until requests entered the new plan; ``None``: no move.
    felt
        Requests finished from its arrival until the first that felt it, this one not counted; ``None``: none did.
    switch_requests
        From the decision until the first request entered the new plan, in mean times between requests.
    moves, plans
        Plan changes while it was there, and the plans.
    returned
        Requests from its end until layers were where they had been before, or where serving began; ``None``: not within
        the time.
    recovered
        Throughput from the 20th request after its end on, of that before its arrival.
    steal
        Part of the cores' time that the host of a virtual machine took meanwhile.
    """

    detected: int | None
    moved: int | None
    felt: int | None
    switch_requests: float | None
    moves: int
    plans: str
    end_detected: int | None
    returned: int | None
    moves_back: int
    recovered: float
    steal: float


def answer(feeder: Feeder, handle: Handle, homes: Sequence[Plan], *, before: int, during: int, after: int) -> Answer:
    """Let the load come and go once."""
    recorder, steal = feeder.recorder, StealMeter()
    feeder.wait(before // 2)
    undisturbed_hz, _ = feeder.measure(before)
    homes = [*homes, feeder.pipe.plan]
    arrived_s, _ = feeder.change_load(partial(handle.set_intensity, 1.0))
    arrived = recorder.finished_by(arrived_s)
    feeder.wait(during)
    left_s, _ = feeder.change_load(partial(handle.set_intensity, 0.0))
    left = recorder.finished_by(left_s)
    feeder.wait(after)

    onsets = told(recorder, arrived_s, left_s, rises=True)
    ends = told(recorder, left_s, math.inf, rises=False)
    moves = [event for event in moves_in(recorder, arrived_s) if event.at_s < left_s]
    back = moves_in(recorder, left_s)
    home_again = [e for e in back if Plan(e.after) in homes]
    switch_requests = None
    if moves:
        first = moves[0]
        later = [t for t in recorder.timelines(arrived) if t.epoch >= first.epoch]
        interval_s = during / (left_s - arrived_s)
        switch_requests = (later[0].submitted_s - first.at_s) * interval_s if later else None
    return Answer(
        recorder.finished_by(onsets[0].at_s) - arrived if onsets else None,
        recorder.finished_by(moves[0].at_s + moves[0].prepare_s) - arrived if moves else None,
        felt(recorder.timelines(arrived, left)),
        switch_requests,
        len(moves),
        " ".join("|".join(map(str, move.after)) for move in moves),
        recorder.finished_by(ends[0].at_s) - left if ends else None,
        recorder.finished_by(home_again[0].at_s) - left if home_again else None,
        len(back),
        recorder.throughput_hz(left + 20, left + after) / undisturbed_hz,
        steal.share(),
    )


def felt(timelines: Sequence[RequestTimeline]) -> int | None:
    """Index of the first of two requests in a row that waited for a core for a fourth of their time on some stage."""
    waited = [{t.stage for t in timeline.stages if t.run_delay_s > _WAITED * t.wall_s} for timeline in timelines]
    return next((index for index, (one, other) in enumerate(itertools.pairwise(waited)) if one & other), None)


def since(values: Sequence[int | None], begins: Sequence[int | None]) -> list[int | None]:
    """Requests from a beginning; ``None`` where either is not known."""
    return [None if v is None or b is None else v - b for v, b in zip(values, begins, strict=True)]


def told(recorder: KeptEvents, since_s: float, until_s: float, *, rises: bool) -> list[SlowdownChanged]:
    """What was told of a stage that became slower, or faster, than it was told to be before."""
    slowdown: dict[int, float] = {}
    found = []
    for event in recorder.of(SlowdownChanged):
        risen = event.slowdown > slowdown.get(event.stage, 1.0)
        slowdown[event.stage] = event.slowdown
        if since_s <= event.at_s < until_s and risen == rises:
            found.append(event)
    return found


def figures(values: Sequence[float | None]) -> str:
    """Median and quartiles of those that there are, and how many are missing."""
    known = [float(value) for value in values if value is not None]
    text = with_quartiles(summarize(known), lambda value: f"{value:.3g}") if known else "-"
    missing = len(values) - len(known)
    return f"{text}, {missing} never" if missing else text


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=20)
    core = usable_cores()[:2][-1]
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--load", default=f"cpu@cpu:{core}", help="default: %(default)s")
    parser.add_argument("--policy", default="filter")
    parser.add_argument("--before", type=int, default=48, help="undisturbed requests (default %(default)s)")
    parser.add_argument("--during", type=int, default=60, help="requests under the load (default %(default)s)")
    parser.add_argument("--after", type=int, default=70, help="requests after it (default %(default)s)")
    parser.add_argument(
        "--most-steal",
        type=float,
        default=0.05,
        help="of the cores, by the host, in a round that counts (default 0.05)",
    )
    parser.add_argument("--log", metavar="FILE", help="keep the events")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    environment = Environment.collect()
    torch.set_num_threads(1)
    recorder = KeptEvents()
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    answers: list[Answer] = []
    with ExitStack() as stack:
        pipe = stack.enter_context(
            odin.Pipeline(arguments.model, stages=stages, policy=arguments.policy, on_event=recorder, log=arguments.log)
        )
        injector = stack.enter_context(Injector(on_event=pipe.note_load))
        handle = injector.start(Load.parse(arguments.load), idle=True)
        homes = [pipe.plan]
        feeder = stack.enter_context(Feeder(pipe, torch.randn(1, 3, 224, 224), recorder))
        feeder.wait(64)
        while sum(a.steal <= arguments.most_steal for a in answers) < rounds and len(answers) < 2 * rounds:
            number = len(answers)
            after = arguments.after + number % 7
            one = answer(feeder, handle, homes, before=arguments.before, during=arguments.during, after=after)
            print(one, file=sys.stderr)
            answers.append(one)
        windows = windows_of(pipe)
    kept, steal = [a for a in answers if a.steal <= arguments.most_steal], [a.steal for a in answers]
    stolen = f"{len(answers) - len(kept)} of {len(answers)} left out, in which the host took more than"
    rows = [
        ["onset: detected after, requests", figures([a.detected for a in kept]), ""],
        ["onset: new plan after, requests", figures([a.moved for a in kept]), "10"],
        ["onset: felt after, requests", figures([a.felt for a in kept]), ""],
        [
            "felt: detected after, requests",
            figures(since([a.detected for a in kept], [a.felt for a in kept])),
            "",
        ],
        ["felt: new plan after, requests", figures(since([a.moved for a in kept], [a.felt for a in kept])), ""],
        ["decision to first request of the new plan, requests", figures([a.switch_requests for a in kept]), "2"],
        ["moves while it lasted", figures([a.moves for a in kept]), ""],
        ["end: detected after, requests", figures([a.end_detected for a in kept]), ""],
        ["end: home after, requests", figures([a.returned for a in kept]), "20"],
        ["moves afterwards", figures([a.moves_back for a in kept]), ""],
        ["end: throughput from the 20th request on, of before", figures([a.recovered for a in kept]), "0.97"],
    ]
    if windows:
        rows = [row for row in rows if not any(words in row[0] for words in _ABOUT_PLANS)]
    report(
        f"{arguments.model}, {arguments.policy}, {len(kept)} times {arguments.load} ({stolen} "
        f"{arguments.most_steal:.0%} of the cores; median {percentile(steal, 0.5):.1%})",
        ["", "median (quartiles)", "target"],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
