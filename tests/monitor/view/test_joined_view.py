"""Requests that are joined into one micro-batch count each; the bound is of micro-batches such as those of late."""

from __future__ import annotations

import math

import msgspec
import pytest
from synthetic_run import START_S, request, run_started

from odin.monitor.events import PlanChanged, PlanVerified, RequestDone
from odin.monitor.view.builder import PipelineView, ViewBuilder
from odin.monitor.view.event_text import event_text
from odin.monitor.view.screen import plain, render


def run(*, batch: int = 8):
    """A full micro-batch takes 0.18 s on either stage, one sample a third of that."""
    started = run_started(batch=batch)
    stages = tuple(
        msgspec.structs.replace(stage, single_s=tuple(seconds / 3 for seconds in stage.baseline_s))
        for stage in started.stages
    )
    return msgspec.structs.replace(started, stages=stages)


def done(number: int, *, samples: int, requests: int = 1) -> RequestDone:
    stage_s = 0.03 if samples == 1 else 0.09  # as expected, undisturbed
    event = request(number, START_S + 0.1 * (number + 1), (stage_s, stage_s))
    return RequestDone(event.at_s, event.timeline._replace(samples=samples, requests=requests))


def view_of(*events, batch: int = 8, at_s: float = 2.0) -> PipelineView:
    builder = ViewBuilder()
    for event in (run(batch=batch), *events):
        builder.apply(event)
    return builder.view(START_S + at_s)


def test_ten_micro_batches_a_second_of_four_requests_are_forty_requests():
    view = view_of(*(done(number, samples=8, requests=4) for number in range(20)))
    assert view.throughput_hz == pytest.approx(40.0)
    assert view.samples_hz == pytest.approx(80.0)
    assert view.completed == 80
    assert view.fluid_bound_hz == pytest.approx(4 * 2 / 0.18)
    assert view.history.throughput_hz[-1] == pytest.approx(40.0)


def test_small_micro_batches_are_held_against_small_ones():
    """The bound was that of full ones, so that single samples passed it by."""
    view = view_of(*(done(number, samples=1) for number in range(20)))
    assert (view.throughput_hz, view.samples_hz) == (pytest.approx(10.0), pytest.approx(10.0))
    assert view.fluid_bound_hz == pytest.approx(3 * 2 / 0.18)
    mixed = view_of(*(done(number, samples=8 if number % 2 else 1) for number in range(20)))
    assert mixed.samples_hz == pytest.approx(89 / 1.9)  # ten of eight and nine of one, after the first
    assert mixed.fluid_bound_hz == pytest.approx(2 / (0.18 * 2 / 3))


def test_an_unknown_number_of_samples_is_a_full_micro_batch():
    view = view_of(*(done(number, samples=0) for number in range(20)))
    assert (view.throughput_hz, view.samples_hz) == (pytest.approx(10.0), pytest.approx(80.0))
    assert view.fluid_bound_hz == pytest.approx(2 / 0.18)
    alone = view_of(*(done(number, samples=3) for number in range(20)), batch=1)  # a leading size that is no batch
    assert alone.samples_hz == alone.throughput_hz == pytest.approx(10.0)


def test_samples_are_told_where_they_are_others():
    joined = view_of(*(done(number, samples=8, requests=4) for number in range(20)))
    single = view_of(*(done(number, samples=1) for number in range(20)))
    assert " 40.0/s, 80.0 samples/s " in plain(joined)
    assert "40.0/s, 80.0 samples/s of" in render(joined, width=60, height=10).plain
    assert "samples/s" not in plain(single)
    assert math.isnan(view_of().samples_hz)


def test_it_travels_as_json():
    view = view_of(*(done(number, samples=8, requests=4) for number in range(20)))
    assert PipelineView.from_json(view.to_json()).samples_hz == pytest.approx(view.samples_hz)


def test_what_plans_are_expected_to_do_is_told_in_full_micro_batches():
    moved = PlanChanged(1.0, 3, 1, (9, 9), (12, 6), "move", "", 12.0, 0.004)
    verified = PlanVerified(2.0, 1, (12, 6), 12.0, 11.5)
    assert event_text(moved, []) == "moved 9|9 -> 12|6 in 4 ms, expecting 12.0/s"
    assert event_text(moved, [], batch=8) == "moved 9|9 -> 12|6 in 4 ms, expecting 12.0 micro-batches of 8/s"
    assert event_text(verified, []) == "got 11.5/s (expected 12.0/s)"
    assert event_text(verified, [], batch=8) == "got 11.5 micro-batches of 8/s (expected 12.0)"
