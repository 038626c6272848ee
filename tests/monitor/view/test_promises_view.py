"""Deadlines and expected completions in the view and on the screen."""

from __future__ import annotations

import math

import msgspec
import pytest
from rich.cells import cell_len
from synthetic_run import START_S, run_started

from odin.monitor.events import RequestDone, RequestFailed, RequestsRefused, from_json, to_json
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.builder import Serving, ViewBuilder
from odin.monitor.view.pipeline_view import PipelineView
from odin.monitor.view.screen import plain, render


def done(number: int, off_s: float = math.nan, *, in_time: bool = False) -> RequestDone:
    at_s = START_S + 1.0 + number / 10
    return RequestDone(at_s, RequestTimeline(number, 0, at_s - 0.2, at_s, (), at_s - off_s, in_time))


def view_of(*events, serving: Serving | None = None) -> PipelineView:
    builder = ViewBuilder()
    builder.apply(run_started())
    for event in events:
        builder.apply(event)
    return builder.view(START_S + 5.0, serving)


@pytest.fixture
def busy() -> PipelineView:
    return view_of(
        *(done(number, (number - 5) / 1000, in_time=number != 3) for number in range(11)),
        RequestFailed(START_S + 3.0, 11, "DeadlineExceededError: its deadline passed"),
        RequestFailed(START_S + 3.0, 12, "LayerFailedError: no"),
        RequestsRefused(START_S + 3.1, 1200),
        RequestsRefused(START_S + 4.1, 34),
    )


def test_the_view_counts_and_compares(busy: PipelineView):
    assert (busy.in_time, busy.late, busy.refused, busy.failed) == (10, 1, 1234, 2)
    assert (busy.off_p50_s, busy.off_p99_s) == pytest.approx((0.0, 0.0049))
    assert PipelineView.from_json(busy.to_json()).to_json() == busy.to_json()


def test_who_serves_knows_more_than_the_events_so_far():
    assert view_of(serving=Serving(5, 1, 2, 0, (9, 9), "", 7)).refused == 7


def test_refusals_in_a_row_are_one_line_with_their_sum(busy: PipelineView):
    assert busy.events[-1].text == "refused: 1234 requests that would have been late"
    assert [line.kind for line in busy.events].count("refused") == 1
    again = view_of(
        RequestsRefused(START_S + 1.0, 1), RequestFailed(START_S + 2.0, 1, "no"), RequestsRefused(START_S + 3.0, 1)
    )
    assert again.events[-1].text == "refused: 1 request that would have been late"


def test_the_screen_has_a_line_where_there_are_deadlines(busy: PipelineView):
    line = " deadlines 10 in time  1 late  1,234 refused  p50 +0.00 ms, p99 +4.90 ms off what was expected"
    assert line in [each.rstrip() for each in render(busy, width=120, height=30).plain.split("\n")]
    assert line in plain(busy, width=120)
    assert "deadlines" not in plain(view_of(*(done(number, 0.001) for number in range(3))))


@pytest.mark.parametrize(("width", "height"), [(40, 10), (40, 24), (60, 12), (80, 24), (200, 60)])
def test_no_line_is_too_long_nor_one_too_many(busy: PipelineView, width: int, height: int):
    lines = render(busy, width=width, height=height).plain.split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_logs_and_views_of_before_can_be_read(busy: PipelineView):
    old = '{"event":"request","at_s":2.0,"timeline":[0,0,1.0,2.0,[]]}'
    timeline = from_json(old).timeline
    assert timeline[:5] == (0, 0, 1.0, 2.0, ())
    assert math.isnan(timeline.expected_s)
    assert not timeline.in_time
    event = done(0, 0.001, in_time=True)
    assert from_json(to_json(event)) == event
    values = msgspec.json.decode(busy.to_json())
    for name in ("in_time", "late", "refused", "off_p50_s", "off_p99_s"):
        del values[name]
    assert PipelineView.from_json(msgspec.json.encode(values).decode()).refused == 0
