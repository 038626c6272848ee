"""The detection benchmark counts right: delays, false alarms, misses; traces are read and cut as they were recorded."""

from __future__ import annotations

import json
import math
import sys

import msgspec
import numpy as np
import pytest

from benchmarks.detection import Row, Trace, cell, cuttings, main, measure_trace, read_trace, target_text
from odin.monitor.detectors import CusumDetector
from odin.monitor.events import LoadChanged, RequestDone, RunStarted, StageDescription, to_json
from odin.monitor.timing import RequestTimeline, StageTiming
from odin_lab.simulator.detection import (
    Candidate,
    Delay,
    Sightings,
    detection_points,
    drifting,
    false_alarms,
    least_delay,
    log_normal,
    sightings,
    to_delay,
    with_hiccups,
)

NAN = math.nan


class Latched:
    """Follows the sign of what it sees, ``late`` samples late; a number beyond 9 is a change that is no onset."""

    def __init__(self, streams, *, late=0):
        self.seen = [np.zeros(streams)] * (late + 1)
        self.disturbed = np.zeros(streams, dtype=bool)
        self.changed = self.disturbed.copy()
        self.rebased = 0

    def update(self, x):
        self.seen.append(np.asarray(x))
        del self.seen[0]
        before, self.disturbed = self.disturbed, self.seen[0] > 0
        self.changed = (self.disturbed != before) | (np.asarray(x) < -9)

    def rebase(self):
        self.rebased += 1


# ---------------------------------------------------------------- counting
def test_least_delay():
    assert least_delay(math.e, 0.5) == pytest.approx(math.log(10_000) * 2 * 0.25)
    assert least_delay(1.25, log_normal(0.1).sigma) == pytest.approx(3.68, abs=0.01)


def test_false_alarms_do_not_count_their_end():
    samples = np.array([[1, 0], [0, 0], [1, 0], [1, 0], [0, -10], [0, 0]], dtype=float)
    assert false_alarms(Latched(2), samples, skip=0) == 3
    assert false_alarms(Latched(2), samples, skip=2) == 2
    detector = Latched(2)
    false_alarms(detector, samples, skip=0, moves=(1, 4))
    assert detector.rebased == 2


@pytest.mark.parametrize("late", [0, 3])
def test_the_request_that_detects_counts(late):
    samples = np.zeros((30, 2))
    samples[10:, 1] = -5  # never seen
    seen = sightings(Latched(2, late=late), samples, 2.0, calibration=10, limit=10)
    assert seen.onset.tolist() == [1 + late, 0]
    assert seen.end.tolist()[0] == 1 + late
    assert math.isnan(seen.end[1])


def test_what_was_disturbed_before_is_left_out():
    samples = np.zeros((30, 1))
    samples[9] = 1
    assert math.isnan(sightings(Latched(1), samples, 2.0, calibration=10, limit=10).onset[0])


def test_means_and_misses_over_rounds():
    rounds = [
        Sightings(np.array([1.0, 3.0]), np.array([2.0, NAN])),
        Sightings(np.array([5.0, NAN]), np.array([NAN, NAN])),
    ]
    delay = to_delay(1.5, rounds, 2.0)
    assert delay == Delay(1.5, 3.0, 0.0, 2.0, 0.0, 2.0, 3.0, 2.0)
    assert delay.ratio == 1.5
    assert Delay(2.0, 1.2, 0.0, 1.0, 0.0, 0.4).ratio == 1.2
    nobody = to_delay(1.5, [Sightings(np.array([NAN]), np.array([0.0]))], 2.0)
    assert math.isnan(nobody.onset)
    assert math.isnan(nobody.onset_median)
    assert (nobody.end_missed, nobody.end_median) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("delays", "missed", "median"),
    [
        ([4.0, 0.0, 2.0, 3.0], 0.25, 3.0),
        ([4.0, 0.0, 2.0, 0.0], 0.5, 4.0),
        ([4.0, 0.0, 0.0, 0.0], 0.75, math.inf),
        ([4.0, 0.0, 0.0], 2 / 3, math.inf),
        ([4.0, 3.0, 0.0], 1 / 3, 4.0),
        ([9.0, NAN, 3.0, 0.0], 1 / 3, 9.0),
    ],
)
def test_what_was_missed_was_left_out_of_the_mean(delays, missed, median):
    """A slowdown of which 66% were missed had a mean delay of 48 requests, 0.61 of the least that there can be."""
    delay = to_delay(1.5, [Sightings(np.array(delays), np.array([1.0]))], 2.0)
    assert math.isnan(delay.onset)
    assert (delay.missed, delay.onset_median) == (pytest.approx(missed), median)
    assert delay.ratio == math.inf


def test_the_median_is_right_whatever_the_limit():
    """Delays cut off at a limit have the median of those that are not, as long as it lies within."""
    delays = np.ceil(np.random.default_rng(0).exponential(60.0, 5001))
    whole = to_delay(1.1, [Sightings(delays, delays)], 50.0)
    assert whole.onset == pytest.approx(60.5, rel=0.05)
    for limit in (50, 100, 1000):
        cut = np.where(delays > limit, 0.0, delays)
        assert to_delay(1.1, [Sightings(cut, cut)], 50.0).onset_median == whole.onset_median
    cut = np.where(delays > 30, 0.0, delays)
    assert to_delay(1.1, [Sightings(cut, cut)], 50.0).onset_median == math.inf


def test_points_for_the_report_are_what_the_benchmark_counts():
    point, slow = detection_points(
        "cusum", Candidate(CusumDetector, 20), noise_cv=0.1, quiet=500, slowdowns=(1.25, 3.0), seed=3
    )
    assert (point.detector, point.noise_cv, point.slowdown) == ("cusum", 0.1, 1.25)
    assert point.bound == pytest.approx(least_delay(1.25, log_normal(0.1).sigma))
    assert 1.0 < point.delay < 2 * point.bound
    assert slow.delay < 1.5
    assert (slow.missed, slow.false_alarms) == (0.0, 0.0)


def test_cells():
    assert cell(Delay(1.5, 4.2, 0.0, NAN, 1.0, 3.0, 4.0, math.inf), end=False) == "4.20 1.40x"
    assert cell(Delay(1.5, NAN, 0.031, NAN, 0.25, 0.5, 21.0, 5.0), end=False) == "median 21, 3.1% > 100"
    assert cell(Delay(1.5, NAN, 0.031, NAN, 0.25, 0.5, 21.0, 5.0), end=True) == "median 5, 25% > 100"
    assert cell(Delay(1.5, 4.2, 0.0, NAN, 1.0, 3.0, 4.0, math.inf), end=True) == "median > 100, 100% > 100"
    assert cell(Delay(1.5, NAN, NAN, NAN, NAN, 3.0), end=True) == "-"


def test_a_detector_that_misses_does_not_meet_the_target():
    row = Row("CUSUM", "CV 10%", 0.0, 1000, (Delay(1.25, NAN, 0.01, 1.0, 0.0, 4.0, 3.0, 1.0),))
    assert "DOES NOT HOLD" in target_text([row], noise="CV 10%", detector="CUSUM")


def test_the_target_looks_at_the_worst_and_at_false_alarms():
    delays = (
        Delay(1.1, 90.0, 0.9, 1.0, 0.0, 20.0),
        Delay(1.25, 4.4, 0.0, 1.0, 0.0, 4.0),
        Delay(2.0, 1.2, 0.0, 1.0, 0.0, 0.4),
    )
    row = Row("CUSUM", "CV 10%", 0.9, 1000, delays)
    assert "holds; worst 1.20x at x2, 0.90" in target_text([row], noise="CV 10%", detector="CUSUM")
    assert "DOES NOT HOLD" in target_text([row._replace(false_alarms=1.1)], noise="CV 10%", detector="CUSUM")
    slow = row._replace(delays=(Delay(1.25, 7.0, 0.0, 1.0, 0.0, 4.0),))
    assert "DOES NOT HOLD; worst 1.75x at x1.25" in target_text([slow], noise="CV 10%", detector="CUSUM")


# ---------------------------------------------------------------- noise
def test_noise_has_the_variation_it_says():
    random = np.random.default_rng(0)
    times = np.exp(log_normal(0.2).draw(random, 1000, 100))
    assert times.std() / times.mean() == pytest.approx(0.2, rel=0.02)


def test_hiccups_have_the_share_and_size_they_say():
    random = np.random.default_rng(0)
    samples = with_hiccups(0.001).draw(random, 1000, 100)
    hit = samples > math.log(1.39)
    assert hit.mean() == pytest.approx(0.005, rel=0.1)
    assert np.exp(samples.max()) == pytest.approx(3.0, rel=0.02)


def test_drift_is_common_and_goes_both_ways():
    samples = drifting(1e-9, requests_each_way=10).draw(np.random.default_rng(0), 41, 3)
    assert np.exp(samples[[0, 10, 20, 30, 40], 1]) == pytest.approx([1.0, 1.2, 1.0, 1.2, 1.0])
    assert samples[:, 0] == pytest.approx(samples[:, 2], abs=1e-6)
    assert np.abs(np.diff(samples[:, 0])).max() == pytest.approx(math.log(1.2) / 10, rel=1e-6)


# ---------------------------------------------------------------- traces
def run_started(*baselines):
    stages = tuple(StageDescription("cpu:0", "node", 1, baseline) for baseline in baselines)
    return RunStarted(0.0, 0.0, "model", ("a", "b", "c"), stages, (1, 2), "static", 4)


def request(index, *stages):
    timings = tuple(
        StageTiming(stage, first, last, 0.0, wall_s, wall_s, 0.0, 0.0, (wall_s,) * (last - first))
        for stage, (first, last, wall_s) in enumerate(stages)
    )
    return RequestDone(float(index), RequestTimeline(index, 0, 0.0, 1.0, timings))


def write(path, *events):
    path.write_text("".join(to_json(event) + "\n" for event in events))
    return path


def test_a_trace_is_time_over_baseline(tmp_path):
    trace = read_trace(
        write(
            tmp_path / "quiet.jsonl",
            run_started((0.1, 0.2, 0.3), (0.2, 0.4, 0.6)),
            request(1, (0, 1, 0.1), (1, 3, 1.0)),
            LoadChanged(1.5, "x", "cpu", "cpu:1", 0.5),
            request(2, (0, 1, 0.2), (1, 3, 1.5)),
            request(3, (0, 3, 0.6), (3, 3, 0.0)),
            request(4, (0, 3, 1.2), (3, 3, 0.0)),
        )
    )
    assert trace.name == "quiet"
    assert trace.moves == (2,)
    assert np.exp(trace.samples[:, 0]) == pytest.approx([1.0, 2.0, 1.0, 2.0])
    assert np.exp(trace.samples[:2, 1]) == pytest.approx([1.0, 1.5])
    assert np.isnan(trace.samples[2:, 1]).all()


def test_a_trace_of_small_micro_batches_is_as_of_full_ones(tmp_path):
    """They looked like stages that had become faster."""
    run = run_started((0.1, 0.2, 0.3), (0.2, 0.4, 0.6))
    stages = tuple(
        msgspec.structs.replace(stage, single_s=tuple(seconds / 2 for seconds in stage.baseline_s))
        for stage in run.stages
    )
    done = request(1, (0, 1, 0.06), (1, 3, 0.5))
    small = RequestDone(done.at_s, done.timeline._replace(samples=1))
    trace = read_trace(write(tmp_path / "x.jsonl", msgspec.structs.replace(run, stages=stages, batch=8), small))
    assert np.exp(trace.samples) == pytest.approx(np.array([[1.2, 1.0]]))


def test_a_trace_without_baselines_is_held_against_its_medians(tmp_path):
    requests = [request(i, (0, 1, s), (1, 3, 4 * s)) for i, s in enumerate((0.1, 0.2, 0.4))]
    requests += [request(i, (0, 2, s), (2, 3, s)) for i, s in enumerate((1.0, 2.0, 8.0))]
    trace = read_trace(write(tmp_path / "trace.jsonl", *requests))
    assert np.exp(trace.samples[:, 0]) == pytest.approx([0.5, 1.0, 2.0, 0.5, 1.0, 4.0])
    assert np.exp(trace.samples[:, 1]) == pytest.approx([0.5, 1.0, 2.0, 0.5, 1.0, 4.0])
    assert trace.moves == (3,)


def test_bad_traces_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no requests"):
        read_trace(write(tmp_path / "empty.jsonl", run_started((0.1,), (0.1,))))
    path = write(tmp_path / "broken.jsonl", request(1, (0, 1, 0.1)))
    path.write_text(path.read_text() + '{"event":"request","at_s":1}\n')
    with pytest.raises(ValueError, match=r"broken.jsonl, line 2"):
        read_trace(path)


def test_cuttings_hold_no_move():
    samples = np.arange(60, dtype=float).reshape(30, 2)
    trace = Trace("t", samples, (12,))
    pieces = cuttings(trace, count=200, length=10, random=np.random.default_rng(0))
    assert pieces.shape == (10, 400)
    starts = pieces[0, ::2] / 2
    assert set(starts) == {0, 1, 2, *range(12, 21)}
    assert (np.diff(pieces, axis=0) == 2).all()
    with pytest.raises(ValueError, match="no 19 requests in a row"):
        cuttings(trace, count=1, length=19, random=np.random.default_rng(0))


def test_slowdowns_are_injected_into_a_trace():
    samples = np.random.default_rng(0).normal(0.0, 0.05, (2000, 2))
    row = measure_trace("CUSUM", Candidate(CusumDetector, 20), Trace("night", samples, ()), rounds=1, seed=0)
    assert row.noise == "night (sigma 0.050)"
    assert row.undisturbed == 3000
    assert [delay.slowdown for delay in row.delays] == [1.1, 1.25, 1.5, 2.0, 3.0]
    assert all(delay.onset < 1.2 and delay.missed == 0 for delay in row.delays[2:])


@pytest.mark.slow
def test_the_command_runs_and_keeps_its_result(tmp_path, monkeypatch, capsys):
    rows = np.random.default_rng(1).lognormal(0.0, 0.05, (900, 2))
    log = write(tmp_path / "night.jsonl", *(request(i, (0, 1, a), (1, 3, b)) for i, (a, b) in enumerate(rows)))
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["detection", "--quick", "--traces", str(log), "--output", str(output)])
    assert main() == 0
    told = capsys.readouterr().out
    assert "night (sigma 0.0" in told
    assert "target (CUSUM, CV 10%" in told
    results = json.loads(output.read_text())["results"]
    assert {row["noise"] for row in results} >= {"CV 5%", "CV 10%", "CV 20%"}
    monkeypatch.setattr(sys, "argv", ["detection", "--quick", "--traces", "nowhere.jsonl"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "nowhere.jsonl" in capsys.readouterr().err
