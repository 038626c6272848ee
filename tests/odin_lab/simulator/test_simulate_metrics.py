"""A report's figures from runs made by hand: windows, service levels, events, changes, what is held against what."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision
from odin_lab.report.results import SLO_LEVELS
from odin_lab.simulator.interference import Event, Interference
from odin_lab.simulator.metrics import (
    WINDOW,
    below_peak,
    count_changes,
    momentary_hz,
    paired,
    seen_events,
    to_cell,
    to_timeline,
)
from odin_lab.simulator.run import Run

A, B, C = Plan((2, 2)), Plan((1, 3)), Plan((3, 1))
WHERE = {"study": "grid", "model": "m", "devices": 2, "period": 5.0, "duration": 2.0}


def decision(plan, kind="move"):
    return Decision(plan, kind, "")


def made_run(finished_s, *, latency_s=1.0, decisions=(), interference=None, trial=None):
    finished_s = np.array(finished_s, dtype=float)
    submitted_s = finished_s - np.broadcast_to(latency_s, finished_s.shape)
    count = len(finished_s)
    return Run(
        arrived_s=submitted_s,
        submitted_s=submitted_s,
        finished_s=finished_s,
        plan_index=np.zeros(count, dtype=np.int64),
        plans=(A,),
        true_bottleneck_s=np.ones(count),
        best_bottleneck_s=None,
        trial=np.zeros(count, dtype=bool) if trial is None else np.array(trial),
        decisions=tuple(decisions),
        changes=(),
        interference=interference or Interference(),
        peak_hz=2.0,
    )


# ---------------------------------------------------------------- throughput
def test_momentary_throughput_is_over_the_window():
    finished_s = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 3.0])
    assert momentary_hz(finished_s, window=1).tolist() == [1.0, 1.0, 2.0, 2.0, math.inf]
    assert momentary_hz(finished_s, window=4).tolist() == [4 / 3, 4 / 2]
    assert len(momentary_hz(finished_s, window=6)) == 0
    with pytest.raises(ValueError, match="window of 0"):
        momentary_hz(finished_s, window=0)


def test_shares_below_levels_of_the_peak():
    # 12 requests a second apart, then 8 half a second apart: windows wholly slow, between, wholly fast
    finished_s = np.concatenate([np.arange(12.0), 11.0 + 0.5 * np.arange(1, 9)])
    rates_hz = momentary_hz(finished_s)
    assert sorted(set(rates_hz.round(6))) == [1.0, round(4 / 3.5, 6), round(4 / 3, 6), 1.6, 2.0]
    shares = dict(zip(SLO_LEVELS, below_peak(finished_s, 2.0), strict=True))
    assert shares[0.35] == shares[0.5] == 0.0  # 1.0 is not below half of 2.0
    assert shares[0.55] == 8 / 16
    assert shares[0.6] == 9 / 16
    assert shares[0.8] == 10 / 16  # 1.6 is not below 0.8 of 2.0
    assert shares[0.95] == 11 / 16
    assert below_peak(np.arange(float(WINDOW)), 2.0) == ()


# ---------------------------------------------------------------- events and changes
def test_every_move_is_a_change_and_trials_are_those_that_leave_the_plan_before():
    tried = [decision(B, "trial"), decision(C, "trial"), decision(A, "settle")]
    assert count_changes(A, tried) == (3, 2)
    assert count_changes(A, [decision(A), decision(B), decision(B)]) == (1, 0)
    assert count_changes(A, [decision(B, "probe"), decision(A, "probe")]) == (2, 1)
    assert count_changes(A, [decision(B), decision(C, "probe"), decision(B, "probe"), decision(A, "undo")]) == (4, 1)


def test_an_event_that_begins_with_the_last_request_is_none():
    events = (Event(0, "x", 1, 3), Event(1, "y", 3, 9), Event(0, "z", 4, 6))
    run = made_run([1.0, 2.0, 3.0, 4.0], interference=Interference(events))
    assert [event.scenario for event in seen_events(run)] == ["x", "y"]
    run = made_run([1.0, 2.0, 3.0, 3.5], interference=Interference(events, "seconds"))
    assert [event.scenario for event in seen_events(run)] == ["x", "y"]


# ---------------------------------------------------------------- cells
def test_a_cell_sums_a_run_up():
    latency_s = np.linspace(1.0, 3.0, 101)
    run = made_run(
        np.arange(101) / 2 + 10,
        latency_s=latency_s,
        decisions=[(5, decision(B, "trial")), (9, decision(C, "trial")), (13, decision(B, "settle"))],
        interference=Interference((Event(0, "x", 5, 7), Event(1, "x", 10, 12))),
        trial=[10 < i < 31 for i in range(101)],
    )
    cell = to_cell(run, policy="lls (serial)", repeat=3, **WHERE)
    assert cell.key == ("grid", "m", "lls (serial)", 2, 5.0, 2.0, 3)
    assert (cell.requests, cell.lost, cell.events) == (101, 0, 2)
    assert cell.throughput_hz == pytest.approx(101 / (60.0 - 9.0))
    assert cell.latency_mean_s == pytest.approx(2.0)
    assert (cell.latency_p50_s, cell.latency_p99_s) == (pytest.approx(2.0), pytest.approx(2.98))
    assert cell.latency_quantiles_s[0] == 1.0
    assert cell.latency_quantiles_s[-1] == 3.0
    assert cell.below_peak == (0.0,) * len(SLO_LEVELS)
    assert cell.exploring == 20 / 101
    assert (cell.trials_per_event, cell.changes_per_event) == (1.0, 1.5)
    assert math.isnan(cell.of_oracle)


def test_without_events_nothing_is_said_per_event():
    cell = to_cell(made_run([1.0, 2.0]), policy="static", **WHERE)
    assert math.isnan(cell.changes_per_event)
    assert cell.below_peak == ()
    with pytest.raises(ValueError, match="no request finished"):
        to_cell(made_run([]), policy="static", **WHERE)


def test_policies_are_held_against_those_of_the_same_repeat():
    def cell(policy, seconds, repeat):
        return to_cell(made_run(np.array([0.0, seconds])), policy=policy, repeat=repeat, **WHERE)

    cells = paired(
        [
            cell("filter", 3.0, 0),
            cell("oracle", 1.0, 0),
            cell("static", 7.0, 0),
            cell("filter", 1.0, 1),
            cell("static", 0.0, 1),
        ]
    )
    by_key = {(c.policy, c.repeat): c for c in cells}
    first, second = by_key["filter", 0], by_key["filter", 1]
    # the first request is submitted a second before it finishes
    assert (first.of_oracle, first.of_static) == (0.5, 2.0)
    assert math.isnan(first.of_delayed)
    assert (second.of_static, by_key["static", 1].of_static) == (0.5, 1.0)
    assert math.isnan(second.of_oracle)


# ---------------------------------------------------------------- over time
def test_a_timeline_is_a_stretch_in_its_own_seconds():
    events = (Event(0, "x", 1, 3), Event(1, "y", 4, 6), Event(0, "z", 8, 99))
    run = made_run(
        10.0 + np.arange(9),
        latency_s=np.arange(9) * 0.1,
        decisions=[(2, decision(C)), (5, decision(B))],
        interference=Interference(events),
    )
    line = to_timeline(run, study="grid", model="m", policy="p", title="t", first=3, last=7)
    assert (line.at_s, line.throughput_hz) == ((3.0,), (1.0,))
    assert line.latency_s == pytest.approx((0.5,))
    assert line.changes == ((1.0, "1|3"),)
    # the stretch begins when request 4 is answered, at 13 s; request 6 is at 15 s
    assert line.interference == ((0.0, pytest.approx(2.0), 1, "y"),)
    whole = to_timeline(run, study="grid", model="m", policy="p", title="t")
    assert (whole.at_s, whole.throughput_hz) == ((4.0, 8.0), (1.0, 1.0))
    assert [span[3] for span in whole.interference] == ["x", "y", "z"]
    assert whole.interference[2][:2] == (7.0, 8.0)
    assert whole.changes == ((1.0, "3|1"), (4.0, "1|3"))
    with pytest.raises(ValueError, match="too few"):
        to_timeline(run, study="grid", model="m", policy="p", title="t", first=8)


def test_a_long_timeline_keeps_its_mean():
    run = made_run(np.cumsum(np.tile([1.0, 3.0], 1000)), interference=Interference((Event(0, "x", 5, 7),), "seconds"))
    line = to_timeline(run, study="grid", model="m", policy="p", title="t")
    assert len(line.at_s) == 400
    weights = np.diff((0.0, *line.at_s))
    assert np.dot(weights, line.throughput_hz) / line.at_s[-1] == pytest.approx(0.5, rel=1e-3)
    assert line.interference == ((4.0, 6.0, 0, "x"),)
