"""A knob that is turned, in the view and on the screen."""

from __future__ import annotations

import math

from synthetic_run import START_S, run_started

from odin.monitor.events import KnobTurned
from odin.monitor.view.builder import PipelineView, ViewBuilder
from odin.monitor.view.pipeline_view import TunedKnob
from odin.monitor.view.screen import plain

EVENTS = (
    KnobTurned(START_S + 1, "batch", 8, 8, "p95", math.nan, 0.1, 0),
    KnobTurned(START_S + 2, "batch", 8, 1, "p95", 0.125, 0.1, 40),
    KnobTurned(START_S + 3, "batch", 1, 4, "p95", 0.04, 0.1, 40),
    KnobTurned(START_S + 4, "instances", 1, 2, "mean", 0.04, 0.1, 40),
)


def view_of(count: int) -> PipelineView:
    builder = ViewBuilder()
    for event in (run_started(), *EVENTS[:count]):
        builder.apply(event)
    return builder.view(START_S + 5)


def test_what_is_turned_and_how_often():
    assert view_of(0).tuned is None
    assert view_of(1).tuned == TunedKnob("batch", 8, "p95", 0.1, 0)
    assert view_of(3).tuned == TunedKnob("batch", 4, "p95", 0.1, 2)


def test_it_travels_as_json():
    for count in (0, 3):
        assert PipelineView.from_json(view_of(count).to_json()).tuned == view_of(count).tuned


def test_each_turn_is_told():
    assert [line.text for line in view_of(4).events][1:] == [
        "tuning: batch 8, p95 limit 100 ms",
        "tuning: batch 8 -> 1 (p95 125 ms, over the limit of 100 ms)",
        "tuning: batch 1 -> 4 (p95 40.0 ms, below the limit of 100 ms)",
        "tuning: instances 1 -> 2 (mean 40.0 ms, below the limit of 100 ms)",
    ]


def test_it_is_on_the_screen_while_there_is_one():
    assert " tuning batch 4, p95 limit 100 ms, changed 2 times" in plain(view_of(3))
    assert "tuned" not in plain(view_of(0))
