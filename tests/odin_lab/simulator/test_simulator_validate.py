"""Live runs simulated: here the 'live' run is made up by another simulation of stages, and written as an event log."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from odin.monitor.eventlog import EventLog
from odin.monitor.events import (
    LoadChanged,
    PlanChanged,
    PolicyChanged,
    RequestDone,
    RunEnded,
    RunStarted,
    StageDescription,
)
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin.partitioner.relay import Windows
from odin.partitioner.transfer import DEFAULT_HOP_S
from odin_lab.simulator import Arrivals, Event, Interference, World, simulate
from odin_lab.simulator.liverun import read_live_run
from odin_lab.simulator.noise import ReplayedNoise
from odin_lab.simulator.relay import RelayLine
from odin_lab.simulator.validate import replay, simulate_like, twin_of, validate
from odin_lab.timings import synthetic_timings

LAYERS, SEND_S, RECEIVE_S, ORIGIN_S = 8, 0.0004, DEFAULT_HOP_S / 2, 1000.0


class Watching:
    """A policy that keeps what another one is told."""

    def __init__(self, policy):
        self.policy, self.name = policy, policy.name

    def start(self, setting):
        self.seen = []
        self.policy.start(setting)

    def decide(self, observation):
        self.seen.append(observation)
        return self.policy.decide(observation)


def world_of(noise="measured"):
    table = synthetic_timings(LAYERS)
    free = np.zeros(LAYERS + 1)
    base_s = np.array([table.baseline_s(), 1.2 * table.baseline_s()])
    slowdown = {"load": table.slowdown("cpu-100"), "beside": np.full(LAYERS, 1.1)}
    measured = World.from_timings(table, devices=1, noise=noise).noise
    return World.of(base_s, send_s=free + SEND_S, receive_s=free + RECEIVE_S, slowdown=slowdown, noise=measured)


def write_run(path, world, *, policy="static", requests=600, spans=((5.0, 12.0), (20.0, 26.0)), **options):
    """Simulate, and write what live stages would have told. Loads are on the second device and felt on the first."""
    events = [Event(device, ("beside", "load")[device], *span) for span in spans for device in (0, 1)]
    watching = Watching(make_policy(policy))
    run = simulate(world, watching, requests=requests, interference=Interference(tuple(events), "seconds"),
                   in_flight=4, truth="hidden", **options)  # fmt: skip
    lines = [
        LoadChanged(ORIGIN_S + at_s, "cpu", "cpu@cpu:1", "cpu:1", intensity, 7)
        for span in spans
        for at_s, intensity in zip(span, (1.0, 0.0), strict=True)
        if at_s < math.inf
    ]
    left_s = np.full((requests + 2, 2), -math.inf)  # two rows ahead: nobody waits for requests before the first
    handed_s = np.zeros((requests + 1, 2))
    for index, seen in enumerate(watching.seen):
        row, at_s, timings = index + 2, run.submitted_s[index] + SEND_S, []
        for stage, (first, last) in enumerate(seen.plan.ranges):
            begin_s = max(at_s, left_s[row - 1, stage]) + RECEIVE_S
            done_s = begin_s + seen.stage_s[stage]
            slot_s = left_s[row - 2, 1] if stage == 0 else -math.inf
            left_s[row, stage] = max(done_s, slot_s) + SEND_S
            handed_s[index + 1, stage] = left_s[row, stage] - done_s
            queue_s, told_s = begin_s - at_s, handed_s[index, stage]
            layer_s = tuple(seen.layer_s[first:last])
            timings.append(StageTiming(stage, first, last, queue_s, seen.stage_s[stage], 0.0, 0.0, told_s, layer_s))
            at_s = left_s[row, stage]
        times = (ORIGIN_S + run.submitted_s[index], ORIGIN_S + run.finished_s[index])
        lines.append(RequestDone(times[1], RequestTimeline(index, 0, *times, tuple(timings))))
    for request, decision in run.decisions:
        at_s = ORIGIN_S + run.finished_s[request - 1]
        lines.append(PlanChanged(at_s, request, 1, (), tuple(decision.plan), decision.kind, "", math.nan, 0.009))
    write_log(path, world, lines, plan=tuple(watching.seen[0].plan), policy=policy, requests=requests)
    return run


def write_log(path, world, lines, *, plan, policy, requests, windows=""):
    describe = [StageDescription(f"cpu:{i}", "", 0, tuple(0.9 * world.baseline_s[i])) for i in (0, 1)]
    names = tuple(f"layer{i}" for i in range(LAYERS))
    started = RunStarted(ORIGIN_S - 1, 0.0, "made up", names, tuple(describe), plan, policy, 4, windows=windows)
    lines = sorted(lines, key=lambda line: line.at_s)
    with EventLog(path) as log:
        log.append(started)
        for line in lines:
            log.append(line)
        log.append(RunEnded(lines[-1].at_s + 1, "closed", requests, 0))


def write_relay_run(path, world, *, requests, seed):
    """Simulate a relay, and write what live stages would have told of it; a load slows the second device down."""
    events = Interference((Event(1, "load", 8.0, 20.0),), "seconds")
    windows = Windows.whole(stage_count=2, layer_count=LAYERS)
    line = RelayLine(world, windows=windows, requests=requests, interference=events, arrivals=Arrivals(), in_flight=3,
                     seed=seed)  # fmt: skip
    line.run()
    parts = {(part.request, part.stage): part for part in line.parts}
    lines = [
        LoadChanged(ORIGIN_S + at_s, "cpu", "cpu@cpu:1", "cpu:1", intensity, 7)
        for at_s, intensity in ((8.0, 1.0), (20.0, 0.0))
    ]
    for request in range(requests):
        cut, at_s, timings = 0, line.submitted_s[request] + SEND_S, []
        for stage in (0, 1):
            part = parts.get((request, stage))
            if part is None:
                timings.append(StageTiming(stage, cut, cut, 0.0, 0.0, 0.0, 0.0, 0.0, ()))
                continue
            cut, wall_s = part.last, part.left_s - part.began_s - RECEIVE_S - SEND_S
            share = world.baseline_s[stage, part.first : cut] / world.baseline_s[stage, part.first : cut].sum()
            queue_s, layer_s = part.began_s + RECEIVE_S - at_s, tuple(wall_s * share)
            timings.append(StageTiming(stage, part.first, cut, queue_s, wall_s, 0.0, 0.0, SEND_S, layer_s))
            at_s = part.left_s
        times = (ORIGIN_S + line.submitted_s[request], ORIGIN_S + line.finished_s[request])
        lines.append(RequestDone(times[1], RequestTimeline(request, 0, *times, tuple(timings))))
    write_log(path, world, lines, plan=(4, 4), policy="relay", requests=requests, windows=str(windows))
    return line


def test_micro_batches_of_different_sizes_are_made_even(tmp_path):
    """A stage's times were compared whatever the number of samples: small micro-batches looked like noise."""
    random, single = np.random.default_rng(0), 0.25
    lines = []
    for index in range(60):
        samples = int(random.choice((1, 8)))
        part = 1.0 if samples == 8 else single
        timings = tuple(
            StageTiming(stage, 4 * stage, 4 * stage + 4, 0.0, 0.04 * part, 0.0, 0.0, 0.0, (0.01 * part,) * 4)
            for stage in (0, 1)
        )
        at_s = ORIGIN_S + 0.1 * index
        lines.append(RequestDone(at_s + 0.09, RequestTimeline(index, 0, at_s, at_s + 0.09, timings, samples=samples)))
    stages = tuple(StageDescription(f"cpu:{at}", "", 0, (0.01,) * 8, (0.01 * single,) * 8) for at in (0, 1))
    names = tuple(f"layer{at}" for at in range(8))
    with EventLog(tmp_path / "run.jsonl") as log:
        log.append(RunStarted(ORIGIN_S - 1, 0.0, "made up", names, stages, (4, 4), "static", 4, batch=8))
        for line in lines:
            log.append(line)
        log.append(RunEnded(lines[-1].at_s + 1, "closed", 60, 0))
    live = read_live_run(tmp_path / "run.jsonl")
    share = np.mean([1.0 if line.timeline.samples == 8 else single for line in lines])
    assert 0.4 < share < 0.9
    np.testing.assert_allclose(live.share, [share, share])
    np.testing.assert_allclose(live.even_s, 0.04 * share)
    np.testing.assert_allclose(live.layer_s, 0.01 * share, rtol=1e-6)
    assert len(np.unique(live.stage_s)) == 2  # as they were
    twin = twin_of(live)
    np.testing.assert_allclose(twin.world.baseline_s, 0.01 * share, rtol=1e-6)
    np.testing.assert_allclose(twin.told.baseline_s, 0.01 * share)


def test_a_replay_is_exact_where_the_stages_behave_as_modelled(tmp_path):
    run = write_run(tmp_path / "run.jsonl", world_of())
    live = read_live_run(tmp_path / "run.jsonl")

    hz, p99_s = replay(live)

    assert live.is_closed_loop
    np.testing.assert_allclose(live.throughput_hz, run.throughput_hz)
    assert hz == pytest.approx(run.throughput_hz, rel=1e-4)  # the gateway's own way out is not in it
    assert p99_s == pytest.approx(np.percentile(run.latency_s, 99), rel=1e-3)


def test_truth_is_found_in_the_run(tmp_path):
    world = world_of(noise="none")
    write_run(tmp_path / "run.jsonl", world, plan=Plan((4, 4)))
    live = read_live_run(tmp_path / "run.jsonl")

    twin = twin_of(live)

    assert [(span.stage, span.start_s, span.end_s) for span in live.loads] == [(1, 5.0, 12.0), (1, 20.0, 26.0)]
    own = [(0, slice(0, 4)), (1, slice(4, 8))]  # the layers that each stage had
    for stage, layers in own:
        np.testing.assert_allclose(twin.world.baseline_s[stage, layers], world.baseline_s[stage, layers], rtol=1e-6)
        slowdown = twin.world.effect((f"cpu@cpu:1*1 seen by stage {stage}",))
        np.testing.assert_allclose(slowdown[layers], world.slowdown[("beside", "load")[stage]][layers], rtol=1e-6)
    # Of others it is known what the profile said, and that this stage is so much slower than its profile.
    np.testing.assert_allclose(twin.world.baseline_s[0, 4:], world.baseline_s[0, 4:], rtol=1e-6)
    np.testing.assert_allclose(twin.told.baseline_s, 0.9 * world.baseline_s)
    np.testing.assert_allclose(twin.world.send_s, SEND_S)


def test_noise_that_lasts_and_that_stages_share_is_the_run_s(tmp_path):
    """It was drawn anew in short stretches, by each stage for itself, and without requests beneath a change of loads.

    So policies that move met other levels than live, and p99 was up to 59% too large, or a long halt was missing.
    """
    world, requests = world_of(noise="none"), 600
    level = np.exp(0.3 * np.sin(np.arange(requests) / 40))[:, None] * [1.0, 1.0]
    level *= np.exp(0.05 * np.random.default_rng(3).standard_normal(level.shape))
    written = write_run(tmp_path / "before.jsonl", replace(world, noise=ReplayedNoise(level)), policy="filter")
    halted = int(np.searchsorted(written.submitted_s, 5.0)) - 2  # the load comes while it is computed on
    level[halted, 1] *= 40
    run = write_run(tmp_path / "run.jsonl", replace(world, noise=ReplayedNoise(level)), policy="filter")

    twin = simulate_like(read_live_run(tmp_path / "run.jsonl"))

    latency_s = run.finished_s - run.submitted_s
    assert len(run.decisions) >= 4  # there and back for each load
    assert run.submitted_s[halted] < 5.0 < run.finished_s[halted] - 1.0
    assert abs(len(twin.decisions) - len(run.decisions)) <= 2
    assert twin.throughput_hz == pytest.approx(run.throughput_hz, rel=0.01)
    for quantile in (50, 99, 100):
        at_s = np.percentile(latency_s, quantile)
        assert np.percentile(twin.finished_s - twin.submitted_s, quantile) == pytest.approx(at_s, rel=0.05)


def test_what_a_stage_takes_to_begin_with_a_request_is_the_run_s(tmp_path, monkeypatch):
    """It was half a hop of 0.12 ms, where busy stages take a millisecond: loads met other requests than live."""
    monkeypatch.setattr(sys.modules[__name__], "RECEIVE_S", 0.0015)
    run = write_run(tmp_path / "run.jsonl", world_of(noise="none"), requests=300)
    live = read_live_run(tmp_path / "run.jsonl")

    np.testing.assert_allclose(twin_of(live).world.receive_s, 0.0015, rtol=1e-3)
    assert simulate_like(live).throughput_hz == pytest.approx(run.throughput_hz, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["static", "filter", "odin:alpha=2"])
def test_a_run_s_twin_comes_to_the_same(tmp_path, policy):
    run = write_run(tmp_path / "run.jsonl", world_of(), policy=policy, requests=900, seed=11)

    validation = validate(tmp_path / "run.jsonl")

    assert (validation.policy, validation.name) == (policy, "made up, 2 stages, 900 requests, 2 loads")
    assert validation.live_hz == pytest.approx(run.throughput_hz)
    assert validation.live_p99_s == pytest.approx(np.percentile(run.latency_s, 99))
    assert validation.simulated_hz == pytest.approx(validation.live_hz, rel=0.001)
    assert validation.simulated_p99_s == pytest.approx(validation.live_p99_s, rel=0.001)


@pytest.mark.slow
def test_a_relay_s_twin_comes_to_the_same(tmp_path):
    line = write_relay_run(tmp_path / "run.jsonl", world_of(), requests=900, seed=11)
    live = read_live_run(tmp_path / "run.jsonl")
    latency_s = line.finished_s - line.submitted_s

    validation = validate(tmp_path / "run.jsonl")

    assert {part.stage for part in line.parts if part.first == 0 and part.last == 8} == {0, 1}  # it was no plan
    assert live.is_closed_loop
    assert (live.in_flight, live.started.max_in_flight) == (3, 4)
    assert str(live.plan) == "4|4"
    assert validation.live_hz == pytest.approx(900 / line.finished_s.max(), rel=1e-6)
    assert validation.live_p99_s == pytest.approx(np.percentile(latency_s, 99), rel=1e-6)
    assert validation.simulated_hz == pytest.approx(validation.live_hz, rel=0.001)
    assert validation.simulated_p99_s == pytest.approx(validation.live_p99_s, rel=0.001)
    with pytest.raises(ValueError, match="the run had windows @0-8"):
        replay(live)


def test_open_arrivals_come_as_they_came(tmp_path):
    write_run(tmp_path / "run.jsonl", world_of(noise="none"), requests=200, arrivals="poisson:8", spans=((5.0, 12.0),))
    live = read_live_run(tmp_path / "run.jsonl")

    run = simulate_like(live)

    assert not live.is_closed_loop
    np.testing.assert_allclose(run.arrived_s, live.submitted_s)
    np.testing.assert_allclose(run.finished_s, live.finished_s, atol=2e-3)


def test_what_loads_do_may_come_from_a_table(tmp_path):
    write_run(tmp_path / "run.jsonl", world_of(noise="none"))
    table = synthetic_timings(LAYERS, seed=5)

    twin = twin_of(read_live_run(tmp_path / "run.jsonl"), table=table)

    np.testing.assert_allclose(twin.world.effect(("cpu@cpu:1*1 seen by stage 1",)), table.slowdown("cpu-100"))
    np.testing.assert_allclose(twin.world.effect(("cpu@cpu:1*1 seen by stage 0",)), 1.0)
    with pytest.raises(ValueError, match="9 layers, the run 8"):
        validate(tmp_path / "run.jsonl", table=synthetic_timings(9))


def test_only_what_comes_before_another_policy_counts(tmp_path):
    write_run(tmp_path / "run.jsonl", world_of(), requests=200, spans=((1.0, 3.0),))
    whole = read_live_run(tmp_path / "run.jsonl")
    with EventLog(tmp_path / "run.jsonl", append=True) as log:
        log.append(PolicyChanged(ORIGIN_S + whole.finished_s[149] + 1e-6, "odin:alpha=2"))

    assert len(read_live_run(tmp_path / "run.jsonl").finished_s) == 150


def test_a_log_that_cannot_be_simulated_is_named(tmp_path):
    # Of several logs one was of a policy that is no more: which one was not told.
    write_run(tmp_path / "old.jsonl", world_of(), requests=100)
    text = (tmp_path / "old.jsonl").read_text()
    (tmp_path / "old.jsonl").write_text(text.replace('"policy":"static"', '"policy":"predictive"', 1))
    with pytest.raises(ValueError, match=r"old\.jsonl cannot be simulated: policy 'predictive' is gone; use 'filter'"):
        validate(tmp_path / "old.jsonl")
    with pytest.raises(ValueError, match=r"old\.jsonl cannot be simulated: .*9 layers, the run 8"):
        validate(tmp_path / "old.jsonl", table=synthetic_timings(9))


def test_runs_that_cannot_be_simulated(tmp_path):
    write_run(tmp_path / "short.jsonl", world_of(), requests=10)
    with pytest.raises(ValueError, match="10 whole requests"):
        validate(tmp_path / "short.jsonl")

    write_run(tmp_path / "hand.jsonl", world_of(), requests=100)
    with EventLog(tmp_path / "hand.jsonl", append=True) as log:
        log.append(PlanChanged(ORIGIN_S + 1.0, 9, 1, (4, 4), (3, 5), "migrate", "asked for", math.nan, 0.01))
    with pytest.raises(ValueError, match="moved by hand after request 9"):
        validate(tmp_path / "hand.jsonl")
