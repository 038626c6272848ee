"""What is told of loads that were there before the first request."""

from __future__ import annotations

from odin.cli.starting_loads import StartingLoads
from odin.monitor.events import Attributed, Culprit, RunStarted, SlowdownChanged, StageDescription

STAGES = tuple(StageDescription(f"cpu:{core}", "", core, (0.1,)) for core in range(2))
START = RunStarted(0.0, 0.0, "small", ("a", "b"), STAGES, (1, 1), "filter", 4)
CAUSE = Attributed(1.0, 1, "CPU share", (Culprit(123, "stress-ng", 0.5),), "")


def told_of(*events):
    lines = []
    on_event = StartingLoads(lines.append)
    for event in (START, *events):
        on_event(event)
    return lines


def test_a_load_from_the_start_and_who_it_is():
    onset = SlowdownChanged(0.5, stage=1, request=4, age=4, slowdown=2.1, state="onset")
    assert told_of(onset, CAUSE, CAUSE) == [
        "stage 1 on cpu:1 is 2.1x as slow as when profiled",
        "stage 1 on cpu:1: CPU share, pid 123 stress-ng 50%",
    ]


def test_later_loads_are_left_to_the_live_view():
    onset = SlowdownChanged(0.5, stage=1, request=40, age=4, slowdown=2.1, state="onset")
    assert told_of(onset, CAUSE) == []
