"""What the demonstration makes of a run's events; every number can be checked by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from odin.monitor.events import (
    Attributed,
    Culprit,
    LoadChanged,
    PlanChanged,
    RequestDone,
    RunStarted,
    SlowdownChanged,
    StageDescription,
)
from odin.monitor.timing import RequestTimeline, StageTiming
from odin_lab.demo import Phase, _report, phases, render_demo
from odin_lab.feeding import KeptEvents

DEVICES = ["cpu:0", "cpu:1"]
PHASES = (
    Phase("undisturbed", 10.0, "filter", False),
    Phase("load, layers move", 10.0, "filter", True),
    Phase("load gone", 10.0, "filter", False),
)


def recorded():
    """Ten requests a second; a load from 10 to 20 s, seen after 3 requests, answered after 5; five a second with it."""
    recording = KeptEvents()
    stages = tuple(StageDescription(device, "node", 1, (0.05,) * 4) for device in DEVICES)
    recording(RunStarted(0.0, 0.0, "net", ("a", "b", "c", "d"), stages, (2, 2), "filter", 4))
    request = 0
    for begin_s, end_s, interval_s in ((0.0, 10.0, 0.1), (10.0, 20.0, 0.2), (20.0, 30.0, 0.1)):
        at_s = begin_s
        while (at_s := at_s + interval_s) < end_s:
            recording(RequestDone(at_s, RequestTimeline(request, 0, at_s - 2 * interval_s, at_s, ())))
            request += 1
    recording(LoadChanged(10.0, "cpu", "cpu@cpu:1", "cpu:1", 1.0))
    recording(SlowdownChanged(10.65, 1, 103, 3, 2.0, "onset"))
    recording(PlanChanged(11.05, 105, 1, (2, 2), (3, 1), "move", "slow", 8.0, 0.25))
    recording(Attributed(11.5, 1, "CPU share", (Culprit(42, "busy", 0.5),)))
    recording(LoadChanged(20.0, "cpu", "cpu@cpu:1", "cpu:1", 0.0))
    recording(SlowdownChanged(20.25, 1, 152, 2, 1.0, "end"))
    recording(PlanChanged(20.25, 152, 2, (3, 1), (2, 2), "move", "balance", 10.0, 0.25))
    recording.events.sort(key=lambda event: event.at_s)
    return recording


def spans():
    return [(phase, 10.0 * number, 10.0 * (number + 1)) for number, phase in enumerate(PHASES)]


def test_each_phase_has_its_plan_and_rate_once_it_has_settled():
    report = _report(recorded(), spans())
    assert [result.layers for result in report.phases] == ["2|2", "3|1", "2|2"]
    assert [result.throughput_hz for result in report.phases] == pytest.approx([10.0, 5.0, 10.0])
    assert [result.latency_p50_s for result in report.phases] == pytest.approx([0.2, 0.4, 0.2])


def test_reactions_count_requests_from_the_loads_change():
    came, went = _report(recorded(), spans()).reactions
    assert (came.detected_requests, came.moved_requests, came.moves) == (3, 5, ((2, 2), (3, 1)))
    assert (came.detected_s, came.moved_s) == pytest.approx((0.65, 1.3))
    assert (went.detected_requests, went.moved_requests, went.moves) == (2, 2, ((3, 1), (2, 2)))


def test_a_reaction_that_never_came_is_told():
    recording = recorded()
    recording.events = [e for e in recording.events if not isinstance(e, SlowdownChanged | PlanChanged)]
    report = _report(recording, spans())
    assert [(r.detected_s, r.moved_s) for r in report.reactions] == [(None, None)] * 2
    assert "not detected; layers stayed" in drawn(report)


def drawn(report):
    console = Console(file=io.StringIO(), width=140)
    console.print(render_demo(report, DEVICES))
    return console.file.getvalue()


def test_the_table_says_what_happened():
    text = drawn(_report(recorded(), spans()))
    assert "stage 1 cpu:1 2.0x, CPU share, pid 42 busy 50%" in text
    assert "detected after 3 requests (0.65 s); new plan after 5 requests (1.30 s): 2|2 -> 3|1" in text
    assert "50%" in next(line for line in text.splitlines() if line.startswith("  load, layers move"))


def test_what_was_busy_before_the_load_came_is_told():
    assert "before the load came" not in drawn(_report(recorded(), spans()))
    recording = recorded()
    recording.events.insert(1, SlowdownChanged(1.0, 0, 9, 3, 1.7, "onset"))
    recording.events.insert(2, Attributed(1.5, 0, "CPU share", (Culprit(7, "other", 0.4),)))
    text = drawn(_report(recording, spans()))
    assert "stage 0 cpu:0 1.7x, CPU share, pid 7 other 40%, before the load came: shares of undisturbed" in text
    assert "stage 1 cpu:1 2.0x, CPU share, pid 42 busy 50%\n" in text


def test_a_phase_without_requests_has_no_figures():
    recording = KeptEvents()
    stages = tuple(StageDescription(device, "node", 1, (0.05,)) for device in DEVICES)
    recording(RunStarted(0.0, 0.0, "net", ("a", "b"), stages, (1, 1), "static", 4))
    text = drawn(_report(recording, spans()))
    assert "nan" not in text


def test_phases_stretch_together():
    assert sum(phase.seconds for phase in phases("lls", scale=0.5)) == sum(p.seconds for p in phases("lls")) / 2
    assert {phase.policy for phase in phases("lls")} == {"lls", "static"}


def handing_over(cuts, *, slow_from_s=10.0, slow_until_s=20.0):
    """A relay of two stages over four layers; the first number is the median cut undisturbed, the second under load."""
    recording = KeptEvents()
    stages = tuple(StageDescription(device, "node", 1, (0.05,) * 4) for device in DEVICES)
    recording(RunStarted(0.0, 0.0, "net", ("a", "b", "c", "d"), stages, (2, 2), "relay", 4, windows="@0-4|@4"))
    for request in range(1, 300):
        at_s = request / 10
        cut = cuts[slow_from_s < at_s < slow_until_s]
        timings = [
            StageTiming(k, a, b, 0, 0, 0, 0, 0, (0.05,) * (b - a)) for k, (a, b) in enumerate([(0, cut), (cut, 4)])
        ]
        recording(RequestDone(at_s, RequestTimeline(request, 0, at_s - 0.2, at_s, tuple(timings))))
    recording(LoadChanged(10.0, "cpu", "cpu@cpu:1", "cpu:1", 1.0))
    recording(LoadChanged(20.0, "cpu", "cpu@cpu:1", "cpu:1", 0.0))
    recording.events.sort(key=lambda event: event.at_s)
    return recording


def test_of_a_relay_the_layers_that_stages_ran_are_told():
    report = _report(handing_over((2, 3)), spans())
    assert [result.layers for result in report.phases] == ["~2|2", "~3|1", "~2|2"]
    assert [reaction.shares for reaction in report.reactions] == [("~2|2", "~3|1"), ("~3|1", "~2|2")]
    assert "mean layers per request: ~2|2 -> ~3|1" in drawn(report)
    assert "~: means over requests" in drawn(report)


def test_a_relay_after_a_fixed_plan_is_not_told_to_stay():
    """Its layers did not "stay": the load went with the phase of the fixed plan."""
    recording = handing_over((2, 3))
    whole = next(event for event in recording.events if isinstance(event, RunStarted))
    fixed = PlanChanged(10.0, 1, 1, (2, 2), (2, 2), "migrate", "policy static", float("nan"), 0.0)
    again = PlanChanged(20.0, 2, 2, (2, 2), (2, 2), "migrate", "policy relay", float("nan"), 0.0, whole.windows)
    recording.events += [fixed, again]
    recording.events.sort(key=lambda event: event.at_s)
    came, went = _report(recording, spans()).reactions
    assert (came.shares, went.shares) == ((), ("~2|2",))
