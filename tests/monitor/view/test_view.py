"""The view: every number from events that can be worked out by hand."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from synthetic_run import START_S, Story, interference, many_stages, request, run_started, shifted

from odin.monitor.events import (
    Attributed,
    Culprit,
    EventsMissing,
    LoadChanged,
    PlanChanged,
    PlanVerified,
    PolicyChanged,
    RequestFailed,
    RunEnded,
    SlowdownChanged,
    StageBack,
    StageLost,
)
from odin.monitor.view.builder import EventLine, InjectedLoad, PipelineView, Serving, ViewBuilder
from odin.monitor.view.event_text import event_text, stage_cause
from odin.monitor.view.recent import column_medians


def built(events):
    builder = ViewBuilder()
    for event in events:
        builder.apply(event)
    return builder


def steady(count, *, period_s=0.1, stage_s=(0.1, 0.08), **options):
    """Requests at a steady pace, the first one ``period_s`` after the start."""
    return [request(n, START_S + period_s * (n + 1), stage_s, **options) for n in range(count)]


def texts(view):
    return [event.text for event in view.events]


def test_before_any_request():
    view = built([run_started((7, 11), batch=4)]).view(START_S + 0.5)
    assert (view.model, view.policy, view.plan, view.epoch, view.layer_count) == (
        "resnet50",
        "filter",
        (7, 11),
        0,
        18,
    )
    assert (view.completed, view.failed, view.in_flight, view.batch, view.uptime_s) == (0, 0, None, 4, 0.5)
    assert math.isnan(view.throughput_hz)
    assert math.isnan(view.latency_p50_s)
    assert [(s.device, s.first, s.last, s.state, s.slowdown) for s in view.stages] == [
        ("cpu:0", 0, 7, "quiet", 1.0),
        ("cpu:1", 7, 18, "quiet", 1.0),
    ]
    assert [s.reference_s for s in view.stages] == pytest.approx([0.07, 0.11])
    assert math.isnan(view.stages[0].time_s)
    assert math.isnan(view.stages[0].utilisation)
    assert view.fluid_bound_hz == pytest.approx(2 / 0.18)
    assert view.history.throughput_hz == ()
    assert texts(view) == ["started: resnet50 on 2 stages, 7|11, up to 4 images a request"]
    assert view.ended is None


def test_throughput_right_after_the_start():
    builder = built([run_started()])
    first, second, third = steady(3)
    builder.apply(first)
    assert math.isnan(builder.view(START_S + 0.1).throughput_hz)
    builder.apply(second)
    assert builder.view(START_S + 0.2).throughput_hz == pytest.approx(10.0)
    builder.apply(third)
    assert builder.view(START_S + 0.35).throughput_hz == pytest.approx(10.0)


def test_throughput_is_that_of_the_last_three_seconds():
    slow = [request(n, START_S + 1.0 * n, (0.1, 0.1), latency_s=2.0) for n in range(1, 8)]
    fast = [request(8 + n, START_S + 7 + 0.25 * (n + 1), (0.1, 0.1), latency_s=0.5) for n in range(20)]
    view = built([run_started(), *slow, *fast]).view(START_S + 12)
    assert view.throughput_hz == pytest.approx(4.0)
    assert view.completed == 27


def test_throughput_falls_to_nothing_while_nothing_comes():
    builder = built([run_started(), *steady(30)])  # the last one at 3.0 s
    assert builder.view(START_S + 3.15).throughput_hz == pytest.approx(10.0)
    in_the_window = [0.1 * (n + 1) for n in range(30) if 0.1 * (n + 1) > 1.0 + 1e-9]
    assert builder.view(START_S + 4.0).throughput_hz == pytest.approx(
        (len(in_the_window) - 1) / (4.0 - in_the_window[0])
    )
    view = builder.view(START_S + 6.5)
    assert view.throughput_hz == 0.0
    assert math.isnan(view.stages[0].utilisation)


def test_a_slow_pipeline_has_a_rate_too():
    requests = [request(n, START_S + 20.0 * (n + 1), (20.0, 5.0), latency_s=25.0) for n in range(6)]
    view = built([run_started(layer_s=2.0), *requests]).view(START_S + 130)
    assert view.throughput_hz == pytest.approx(1 / 20)
    assert view.stages[1].utilisation == pytest.approx(5 / 20)


def test_a_pause_between_requests_does_not_count():
    """After a pause ``snapshot().throughput_hz`` was 0.14/s, requests over all of the time, pauses included."""
    burst = steady(60, period_s=0.06)
    later = [request(60 + n, START_S + 400 + 0.06 * n, (0.05, 0.05), latency_s=0.12) for n in range(60)]
    builder = built([run_started(), *burst])
    for number, event in enumerate(later, start=1):
        builder.apply(event)
        rate_hz = builder.view(event.at_s).throughput_hz
        assert 12.0 < rate_hz < 17.0
        if number >= 4:
            assert rate_hz == pytest.approx(1 / 0.06)
            assert [s.utilisation for s in builder.view(event.at_s).stages] == pytest.approx([0.05 / 0.06] * 2)


def test_requests_one_at_a_time_give_the_inverse_of_their_latency():
    lonely = [request(n, START_S + 100.0 * (n + 1), (0.1, 0.05), latency_s=0.2) for n in range(6)]
    builder = built([run_started(), *lonely])
    idle = Serving(6, 0, 0, 0, (9, 9))
    for now_s in (lonely[-1].at_s, lonely[-1].at_s + 3600):
        view = builder.view(now_s, idle)
        assert view.throughput_hz == pytest.approx(5.0)
        assert [s.utilisation for s in view.stages] == pytest.approx([0.5, 0.25])


def test_a_pause_that_lasts_does_not_count_but_a_pipeline_that_has_stopped_has_no_rate():
    builder = built([run_started(), *steady(30)])  # the last one at 3.0 s
    assert builder.view(START_S + 400, Serving(30, 0, 0, 0, (9, 9))).throughput_hz == pytest.approx(10.0)
    assert builder.view(START_S + 400, Serving(30, 0, 2, 0, (9, 9))).throughput_hz == 0.0
    assert builder.view(START_S + 400).throughput_hz == 0.0  # who reads a log does not know
    assert builder.view(START_S + 400).history.throughput_hz[-1] == 0.0


def test_counts_and_plan_are_those_of_the_moment():
    """Events follow a little later: the plan was not the one that requests were given."""
    builder = built([run_started(), *steady(10)])
    view = builder.view(START_S + 1, Serving(12, 3, 1, 4, (10, 8)))
    assert (view.completed, view.failed, view.in_flight) == (12, 3, 1)
    assert (view.epoch, view.plan) == (4, (10, 8))
    assert [(stage.first, stage.last) for stage in view.stages] == [(0, 10), (10, 18)]
    assert all(math.isnan(stage.time_s) for stage in view.stages)  # nothing has run under it
    assert builder.view(START_S + 1).plan == (9, 9)


def test_requests_that_were_not_recorded_are_counted():
    builder = built([run_started(), *steady(10)])
    builder.apply(EventsMissing(START_S + 1, 250, 3, "the disk was full"))
    assert builder.view(START_S + 1).completed == 260
    assert texts(builder.view(START_S + 1))[-1] == "not recorded: 250 requests, 3 other events: the disk was full"


def test_latencies_are_those_of_the_last_ten_seconds():
    old = [request(n, START_S + 0.1 * (n + 1), (0.1, 0.1), latency_s=9.0) for n in range(50)]
    new = [request(50 + n, START_S + 5 + 0.1 * (n + 1), (0.1, 0.1), latency_s=0.1 * (n % 5 + 1)) for n in range(150)]
    view = built([run_started(), *old, *new]).view(START_S + 20)
    assert view.latency_p50_s == pytest.approx(0.3)
    assert view.latency_p99_s == pytest.approx(0.5)


def test_stage_times_queues_and_shares():
    view = built([run_started(), *steady(40, stage_s=(0.09, 0.045), queue_s=0.02)]).view(START_S + 4.0)
    assert [s.time_s for s in view.stages] == pytest.approx([0.09, 0.045])
    assert [s.queue_s for s in view.stages] == pytest.approx([0.02, 0.02])
    assert [s.utilisation for s in view.stages] == pytest.approx([0.9, 0.45])
    # nothing disturbs it, so that is what its layers take on this machine, whatever the baselines say
    assert [s.reference_s for s in view.stages] == pytest.approx([0.09, 0.045])
    assert [s.slowdown for s in view.stages] == pytest.approx([1.0, 1.0])
    # 18 layers on stage 0 as fast as its own nine: 0.18 s; stage 1 takes half of its baselines: 0.09 s
    assert view.fluid_bound_hz == pytest.approx(1 / 0.18 + 1 / 0.09)


def test_a_disturbed_stage():
    quiet = steady(40, stage_s=(0.09, 0.099))  # a tenth above its baselines, undisturbed
    disturbed = [request(40 + n, START_S + 4 + 0.2 * (n + 1), (0.09, 0.198)) for n in range(5)]
    now_s = disturbed[-1].at_s
    detected = SlowdownChanged(now_s, 1, 44, 5, 1.9, "onset")
    cause = Attributed(now_s, 1, "CPU share", (Culprit(4242, "stress-ng", 0.5),))
    builder = built([run_started(), *quiet, *disturbed, detected, cause])
    view = builder.view(now_s)
    stage = view.stages[1]
    assert (stage.state, stage.interference, stage.culprits) == ("disturbed", "CPU share", cause.culprits)
    assert stage.time_s == pytest.approx(0.198)  # of the five requests since the onset alone
    assert stage.reference_s == pytest.approx(0.099)
    assert stage.slowdown == pytest.approx(2.0)  # measured, rather than the first estimate
    assert view.stages[0].state == "quiet"
    assert view.fluid_bound_hz == pytest.approx(1 / 0.18 + 1 / (0.18 * 1.1 * 2.0))
    assert texts(view)[1:] == [
        "detected: stage 1 cpu:1 1.9x",
        "cause: CPU share on stage 1, pid 4242 stress-ng 50%",
    ]

    builder.apply(SlowdownChanged(now_s + 1, 1, 44, 2, 3.0, "change"))
    view = builder.view(now_s + 1)
    assert view.stages[1].slowdown == 3.0  # two requests do not outweigh the estimate
    assert texts(view)[-1] == "changed: stage 1 cpu:1 3.0x"

    builder.apply(SlowdownChanged(now_s + 2, 1, 44, 1, 1.0, "end"))
    view = builder.view(now_s + 2)
    assert (view.stages[1].state, view.stages[1].interference, view.stages[1].culprits) == ("quiet", "", ())
    assert (texts(view)[-1], view.events[-1].kind) == ("restored: stage 1 cpu:1", "restored")
    assert view.fluid_bound_hz == pytest.approx(1 / 0.18 + 1 / (0.18 * 1.1))


def test_disturbed_seconds_do_not_become_the_reference():
    events = [run_started(), *steady(40, stage_s=(0.09, 0.09))]
    for n in range(100):
        at_s = START_S + 4 + 0.3 * (n + 1)
        events.append(request(40 + n, at_s, (0.09, 0.27)))
        if n == 9:
            events.append(SlowdownChanged(at_s, 1, 49, 10, 3.0, "onset"))
    view = built(events).view(events[-1].at_s)
    assert view.stages[1].reference_s == pytest.approx(0.09)
    assert view.stages[1].slowdown == pytest.approx(3.0)


def test_an_onset_at_the_very_start_keeps_the_baselines():
    requests = steady(6, stage_s=(0.09, 0.18), period_s=0.18)
    onset = SlowdownChanged(requests[-1].at_s, 1, 5, 6, 2.0, "onset")
    view = built([run_started(), *requests, onset]).view(requests[-1].at_s)
    assert view.stages[1].reference_s == pytest.approx(0.09)
    assert view.stages[1].slowdown == pytest.approx(2.0)


def test_a_move():
    before = steady(40, stage_s=(0.09, 0.18), period_s=0.18)
    at_s = before[-1].at_s
    events = [
        run_started(),
        *before,
        SlowdownChanged(at_s, 1, 39, 40, 2.0, "onset"),
        PlanChanged(at_s, 40, 1, (9, 9), (12, 6), "move", "", 8.3, 0.0024),
    ]
    builder = built(events)
    view = builder.view(at_s)
    assert (view.plan, view.epoch) == ((12, 6), 1)
    assert [(s.first, s.last) for s in view.stages] == [(0, 12), (12, 18)]
    assert all(math.isnan(s.time_s) for s in view.stages)  # nothing has run under the new plan
    assert texts(view)[-1] == "moved 9|9 -> 12|6 in 2.4 ms, expecting 8.30/s"
    slowdown = view.stages[1].slowdown

    builder.apply(request(40, at_s + 0.1, (0.09, 0.18)))  # submitted before, under the old plan
    assert math.isnan(builder.view(at_s + 0.1).stages[0].time_s)
    assert builder.view(at_s + 0.1).stages[1].slowdown == slowdown
    for n in range(4):
        builder.apply(request(41 + n, at_s + 0.2 + 0.12 * n, (0.12, 0.12), plan=(12, 6), epoch=1))
    builder.apply(PlanVerified(at_s + 1, 1, (12, 6), 8.3, 8.2))
    view = builder.view(at_s + 1)
    assert [s.time_s for s in view.stages] == pytest.approx([0.12, 0.12])
    assert view.stages[0].slowdown == pytest.approx(1.0)
    assert texts(view)[-1] == "got 8.20/s (expected 8.30/s)"


def test_an_emptied_stage_keeps_what_was_known():
    before = steady(10, stage_s=(0.09, 0.9), period_s=0.9)
    at_s = before[-1].at_s
    events = [
        run_started(),
        *before,
        SlowdownChanged(at_s, 1, 9, 10, 10.0, "onset"),
        PlanChanged(at_s, 10, 1, (9, 9), (18, 0), "move", "", math.nan, math.nan),
        request(10, at_s + 0.2, (0.18, 0.0), plan=(18, 0), epoch=1),
    ]
    view = built(events).view(at_s + 0.2)
    stage = view.stages[1]
    assert (stage.state, stage.first, stage.last, stage.reference_s) == ("empty", 18, 18, 0.0)
    assert math.isnan(stage.time_s)
    assert math.isnan(stage.queue_s)
    assert stage.slowdown == pytest.approx(10.0)
    assert view.fluid_bound_hz == pytest.approx(1 / 0.18 + 1 / 1.8)
    assert texts(view)[-1] == "moved 9|9 -> 18|0"


def test_history_has_a_point_per_second():
    builder = built([run_started(), *steady(35, stage_s=(0.09, 0.09), latency_s=0.3)])
    history = builder.view(START_S + 3.5).history
    assert history.seconds == 3
    assert history.throughput_hz == pytest.approx([10.0] * 3)
    assert history.latency_p50_s == pytest.approx([0.3] * 3)
    assert history.latency_p99_s == pytest.approx([0.3] * 3)
    assert history.fluid_bound_hz == pytest.approx([2 / 0.18] * 3)
    history = builder.view(START_S + 7.5).history  # nothing more came
    assert history.seconds == 7
    assert history.throughput_hz[-1] == 0.0
    assert math.isnan(history.latency_p50_s[-1])


def test_history_has_two_minutes_at_most_and_long_silence_costs_nothing():
    builder = built([run_started(), *steady(10)])
    history = builder.view(START_S + 1e8 + 0.5).history  # a hundred million steps would never end
    assert history.seconds == 100_000_000
    assert len(history.throughput_hz) == len(history.latency_p99_s) == 120
    assert set(history.throughput_hz) == {0.0}


def test_loads():
    loads = [
        LoadChanged(START_S + 1, "burst", "membw", "cpu:1", 0.25, 7),
        LoadChanged(START_S + 2, "burst", "membw", "cpu:1", 0.5, 7),
        LoadChanged(START_S + 3, "cpu", "cpu", "cpu:0", 1.0, 8),
    ]
    builder = built([run_started(), *loads])
    view = builder.view(START_S + 4)
    assert view.loads == (
        InjectedLoad("burst", "membw", "cpu:1", 0.5, 7),
        InjectedLoad("cpu", "cpu", "cpu:0", 1.0, 8),
    )
    assert texts(view)[1:] == ["load: burst on cpu:1 at 50%", "load: cpu on cpu:0 at 100%"]  # a ramp is one line
    builder.apply(LoadChanged(START_S + 5, "burst", "membw", "cpu:1", 0.0))
    view = builder.view(START_S + 5)
    assert [load.name for load in view.loads] == ["cpu"]
    assert view.events[-1] == EventLine(5.0, "load", "load: burst on cpu:1 ended")


def test_failures_of_the_same_kind_are_one_line():
    failures = [RequestFailed(START_S + n, n, "DeadlineExceededError: late") for n in range(1, 6)]
    other = RequestFailed(START_S + 6, 6, "LayerFailedError: layer fc raised ValueError: no")
    view = built([run_started(), *failures, other]).view(START_S + 7)
    assert view.failed == 6
    assert view.event_count == 3
    assert texts(view)[1:] == [
        "failed: request 5: DeadlineExceededError: late",
        "failed: request 6: LayerFailedError: layer fc raised ValueError: no",
    ]


def test_a_lost_stage():
    error = "StageLostError: stage 1 (cpu:1, process 77) is gone; start a new pipeline and submit again"
    view = built([run_started(), RequestFailed(START_S + 1, 0, error)]).view(START_S + 1)
    assert [stage.state for stage in view.stages] == ["quiet", "lost"]
    assert view.fluid_bound_hz == pytest.approx(1 / 0.18)


def test_a_lost_stage_tells_why_it_was_lost_and_not_what_disturbed_it():
    """``lost: CPU share, pid 7 stress-ng`` looked as if that had killed it."""
    events = [
        run_started(),
        SlowdownChanged(START_S + 1, 1, 0, 0, 2.0, "onset"),
        Attributed(START_S + 1, 1, "CPU share", (Culprit(7, "stress-ng", 0.5),), ""),
        StageLost(START_S + 2, 1, "process 77 is gone", False, 2),
    ]
    lost = built(events).view(START_S + 2).stages[1]
    assert (lost.state, lost.why_lost, lost.interference) == ("lost", "process 77 is gone", "")
    assert stage_cause(lost) == "process 77 is gone"
    back = built([*events, StageBack(START_S + 3, 1, 78, 1.0, True)]).view(START_S + 3).stages[1]
    assert (back.state, back.why_lost) == ("disturbed", "")
    assert stage_cause(back) == "CPU share, pid 7 stress-ng 50%"


def test_the_stage_of_a_cause_stands_before_its_note():
    """Without culprits it stood at the note's first comma: ``(mostly python worker.py on stage 0, pid 7)``."""
    event = Attributed(START_S, 0, "CPU share", (), "Ray takes 68% of the core (mostly worker.py, pid 7)")
    assert event_text(event, ["cpu:0"]) == (
        "cause: CPU share on stage 0 (Ray takes 68% of the core (mostly worker.py, pid 7))"
    )


def test_the_end():
    events = [run_started(), *steady(30), RunEnded(START_S + 3, "all images done", 30, 0)]
    view = built(events).view(START_S + 1000)
    assert (view.ended, view.uptime_s, view.completed) == ("all images done", 3.0, 30)
    assert view.throughput_hz == pytest.approx(10.0)  # as it was at the end
    assert texts(view)[-1] == "ended: all images done"


def test_policy_and_the_other_moves():
    events = [
        run_started(),
        PolicyChanged(START_S + 1, "odin:alpha=10"),
        PlanChanged(START_S + 2, 5, 1, (9, 9), (8, 10), "trial", "lighter side", math.nan, 1.5),
        PlanChanged(START_S + 3, 9, 2, (8, 10), (9, 9), "migrate", "", math.nan, 0.002),
    ]
    view = built(events).view(START_S + 4, Serving(39, 1, 3, 0, (9, 9)))
    assert (view.policy, view.in_flight) == ("odin:alpha=10", 3)
    assert texts(view)[1:] == [
        "policy: odin:alpha=10",
        "trying 9|9 -> 8|10 in 1.5 s (lighter side)",
        "asked to move 8|10 -> 9|9 in 2 ms",
    ]


def test_a_move_among_many_stages_names_those_that_change():
    plan = (2,) * 12
    after = (2, 3, 1, *plan[3:])
    view = built([run_started(plan), PlanChanged(START_S, 1, 1, plan, after, "move", "", math.nan, 0.002)]).view(
        START_S
    )
    assert texts(view)[-1] == "moved stage 1 2 -> 3, stage 2 2 -> 1 in 2 ms"
    after = tuple(count + (-1) ** index for index, count in enumerate(plan))
    view = built([run_started(plan), PlanChanged(START_S, 1, 1, plan, after, "move", "", math.nan, 0.002)]).view(
        START_S
    )
    assert texts(view)[-1] == "moved stage 0 2 -> 3, stage 1 2 -> 1, stage 2 2 -> 3 and 9 more in 2 ms"


def test_the_whole_story():
    view = built(interference()).view(START_S + 1000)
    assert texts(view) == [
        "started: resnet50 on 2 stages, 9|9",
        "load: cpu on cpu:1 at 100%",
        "detected: stage 1 cpu:1 2.1x",
        "cause: CPU share on stage 1, pid 4242 stress-ng 50%",
        "moved 9|9 -> 12|6 in 2 ms, expecting 12.6/s (stage 1 is slow)",
        "got 12.4/s (expected 12.6/s)",
        "load: cpu on cpu:1 ended",
        "restored: stage 1 cpu:1",
        "moved 12|6 -> 9|9 in 2 ms, expecting 16.8/s (stage 1 is itself again)",
        "got 16.7/s (expected 16.8/s)",
        "ended: all images done",
    ]
    assert view.loads == ()


@pytest.mark.parametrize("events", [interference(end=False), interference(), many_stages(8, disturbed=(1, 5))])
def test_json_there_and_back(events):
    builder = ViewBuilder()
    for number, event in enumerate(events):
        builder.apply(event)
        if number % 400 == 0 or number == len(events) - 1:
            view = builder.view(event.at_s)
            text = view.to_json()
            assert "\n" not in text
            assert "NaN" not in text
            again = PipelineView.from_json(text)
            assert again.to_json() == text
            assert repr(again) == repr(view)  # nan is not equal to itself, but it looks the same


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("stages"),
        lambda values: values.update(version=2),
        lambda values: values.update(plan="7|11", model=3),
        lambda values: values.update(more=1),
        lambda values: values["stages"][0].pop("device"),
        lambda values: values["stages"][0].update(state="bored"),
        lambda values: values["stages"][0].update(time_s="fast"),
        lambda values: values.update(stages=None),
    ],
)
def test_what_is_no_view_is_refused(change):
    values = json.loads(built([run_started()]).view(START_S).to_json())
    change(values)
    with pytest.raises(ValueError, match="not a view of an ODIN pipeline"):
        PipelineView.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "nonsense", '"x"'])
def test_nonsense_is_no_view(text):
    with pytest.raises(ValueError, match="not a view of an ODIN pipeline"):
        PipelineView.from_json(text)


def test_a_process_whose_name_is_no_text_is_shown_all_the_same():
    attributed = Attributed(START_S, 0, "CPU share", (Culprit(7, "gr\udcc3", math.nan),))
    onset = SlowdownChanged(START_S, 0, 0, 1, 2.0, "onset")
    text = built([run_started(), onset, attributed]).view(START_S).to_json()
    text.encode()
    assert PipelineView.from_json(text).stages[0].culprits[0].name == "gr\udcc3"


def test_events_that_cannot_be():
    with pytest.raises(ValueError, match="the first event is a 'policy'; it must be the run's start"):
        ViewBuilder().apply(PolicyChanged(1.0, "lls"))
    with pytest.raises(ValueError, match="no view before the run's start"):
        ViewBuilder().view(1.0)
    with pytest.raises(ValueError, match="another run begins"):
        built([run_started(), shifted(run_started(), 1)])
    for event in (
        SlowdownChanged(START_S, 2, 0, 1, 2.0, "onset"),
        Attributed(START_S, -1, "GPU"),
        PlanChanged(START_S, 0, 1, (9, 9), (9, 8), "move", "", 1.0, 0.0),
        PlanChanged(START_S, 0, 1, (9, 9), (9, 8, 1), "move", "", 1.0, 0.0),
    ):
        with pytest.raises(ValueError, match=r"stage -?\d; the run has 2 stages|does not fit"):
            built([run_started(), event])
    with pytest.raises(ValueError, match="does not spread 17 layers over 2 stages"):
        built([msgspec.structs.replace(run_started(), layers=("x",) * 17)])
    three = request(0, START_S + 0.1, (0.1, 0.1, 0.1), plan=(6, 6, 6))
    with pytest.raises(ValueError, match="a stage beyond the run's 2"):
        built([run_started(), three]).view(START_S + 0.2)


def test_a_little_disorder_does_no_harm():
    requests = steady(30)
    requests[10], requests[12] = requests[12], requests[10]
    view = built([run_started(), *requests]).view(START_S + 3)
    assert view.completed == 30
    assert view.throughput_hz == pytest.approx(10.0)


def test_column_medians():
    table = [[1.0, math.nan, 5.0], [3.0, math.nan, math.nan], [2.0, math.nan, 7.0]]
    medians = column_medians(np.array(table))
    assert medians[[0, 2]].tolist() == [2.0, 6.0]
    assert math.isnan(medians[1])


def test_story_times_are_exact():
    """The generator of these tests' runs: one request per time of the slowest stage."""
    story = Story(run_started((9, 9), layer_s=0.01))
    story.serve(3)
    assert [event.at_s - START_S for event in story.events[1:]] == pytest.approx([0.09, 0.18, 0.27])
