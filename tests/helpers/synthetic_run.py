"""Events of made-up runs, for tests of the log, the view and the screen: a story told at exact times."""

from __future__ import annotations

import random

import msgspec

from odin.monitor.events import Attributed, Culprit, LoadChanged, PlanChanged, PlanVerified, RunEnded, SlowdownChanged
from odin.testing import START_S as START_S
from odin.testing import request_done
from odin.testing import run_started as started


def run_started(plan=(9, 9), **options):
    """A run of 18 layers on two stages."""
    return started(plan, **options)


def request(number, at_s, stage_s, *, plan=(9, 9), **options):
    """A request of such a run."""
    return request_done(number, at_s, stage_s, plan=plan, **options)


class Story:
    """Makes requests one after the other, as fast as the slowest stage, and other events in between."""

    def __init__(self, run, *, noise=0.0, seed=0):
        self.run = run
        self.events = [run]
        self.plan, self.epoch = run.plan, 0
        self.slowdown = [1.0] * len(run.plan)
        self.now_s, self.number = run.at_s, 0
        self.noise, self.rng = noise, random.Random(seed)

    def tell(self, kind, *arguments, **options):
        self.events.append(kind(self.now_s, *arguments, **options))

    def serve(self, count):
        for _ in range(count):
            layer_s = self.run.stages[0].baseline_s[0]
            stage_s = [
                layer_s * layers * slow * self.rng.lognormvariate(0.0, self.noise)
                for layers, slow in zip(self.plan, self.slowdown, strict=True)
            ]
            self.now_s += max(stage_s)
            latency_s = 1.9 * max(stage_s) * self.rng.lognormvariate(0.0, self.noise)
            queue_s = max(stage_s) * 0.4
            self.events.append(
                request(
                    self.number, self.now_s, stage_s, plan=self.plan, epoch=self.epoch, latency_s=latency_s,
                    queue_s=queue_s,
                )
            )  # fmt: skip
            self.number += 1

    def move(self, plan, *, decision="move", why="", predicted_hz=float("nan")):
        before, self.plan, self.epoch = self.plan, tuple(plan), self.epoch + 1
        self.tell(PlanChanged, self.number, self.epoch, before, self.plan, decision, why, predicted_hz, 0.002)


def interference(*, layer_s=0.0066, noise=0.0, seconds=(30, 25, 25), culprit="stress-ng", end=True):
    """A load lands on stage 1, layers move away from it and, when it has gone, back: all events of the run."""
    story = Story(run_started((9, 9), layer_s=layer_s), noise=noise)
    rate_hz = 1 / (9 * layer_s)
    story.serve(int(seconds[0] * rate_hz))
    story.tell(LoadChanged, "cpu", "cpu", "cpu:1", 1.0, 4242)
    story.slowdown[1] = 2.1
    story.serve(6)
    story.tell(SlowdownChanged, 1, story.number - 1, 6, 2.1, "onset")
    story.tell(Attributed, 1, "CPU share", (Culprit(4242, culprit, 0.5),))
    predicted_hz = 1 / (12 * layer_s)
    story.move((12, 6), why="stage 1 is slow", predicted_hz=predicted_hz)
    story.serve(12)
    story.tell(PlanVerified, story.epoch, story.plan, predicted_hz, predicted_hz * 0.98)
    story.serve(int(seconds[1] * predicted_hz))
    story.tell(LoadChanged, "cpu", "cpu", "cpu:1", 0.0, 4242)
    story.slowdown[1] = 1.0
    story.serve(8)
    story.tell(SlowdownChanged, 1, story.number - 1, 8, 1.0, "end")
    story.move((9, 9), why="stage 1 is itself again", predicted_hz=rate_hz)
    story.serve(12)
    story.tell(PlanVerified, story.epoch, story.plan, rate_hz, rate_hz * 0.99)
    story.serve(int(seconds[2] * rate_hz))
    if end:
        story.tell(RunEnded, "all images done", story.number, 0)
    return story.events


def many_stages(count, *, layers_each=2, disturbed=(), seconds=20):
    """A quiet run of many stages, some of which were found disturbed half-way."""
    story = Story(run_started((layers_each,) * count, layer_s=0.03), noise=0.02)
    half = int(seconds / 2 / (layers_each * 0.03))
    story.serve(half)
    for index, stage in enumerate(disturbed):
        story.slowdown[stage] = 1.5 + 0.25 * index
    story.serve(6)
    for stage in disturbed:
        story.tell(SlowdownChanged, stage, story.number - 1, 6, story.slowdown[stage], "onset")
        story.tell(Attributed, stage, "memory", (Culprit(7000 + stage, "train.py", 0.97),))
    story.serve(half)
    return story.events


def shifted(event, by_s):
    """The same event at another time."""
    return msgspec.structs.replace(event, at_s=event.at_s + by_s)
