"""Loops over numbers have the results of what they stand for, to the bit: as they are, and compiled."""

import functools

import numpy as np
import pytest

from odin.monitor.watch import StageWatch
from odin.partitioner.policies import make_policy
from odin.partitioner.relay import Windows
from odin_lab.simulator import Arrivals, Event, Interference, World, simulate
from odin_lab.simulator import compiled as compiling
from odin_lab.simulator import engine as engine_module
from odin_lab.simulator import run as run_module
from odin_lab.simulator.relay import RelayLine
from odin_lab.simulator.whole_relay import WholeRelay
from odin_lab.timings import synthetic_timings


@functools.cache
def compiled_loops():
    pytest.importorskip("numba", reason="numba is not installed")
    made = compiling.loops()
    assert made is not None
    return made


@pytest.fixture(params=["as they are", pytest.param("compiled", marks=pytest.mark.slow)])
def loops(request):
    return compiling.Loops() if request.param == "as they are" else compiled_loops()


def random_world(random, *, devices, layers):
    """Recorded, log-normal or no noise; devices that are unequal, transfers that take time, ties of event moments."""
    kind = random.choice(["measured", "lognormal:0.1", "none"])
    table = synthetic_timings(layers, seed=int(random.integers(100)))
    if random.random() < 0.3:
        return World.of(
            random.integers(1, 3, (devices, layers)).astype(float),
            send_s=random.integers(0, 2, layers + 1) / 2,
            receive_s=random.integers(0, 2, layers + 1) / 4,
            slowdown={"a": np.full(layers, 3.0), "b": np.full(layers, np.inf)},
        )
    return World.from_timings(table, devices=devices, speeds=random.uniform(0.5, 2.0, devices), noise=str(kind))


def random_events(random, world, *, requests):
    names, devices = sorted(world.slowdown), world.device_count
    if random.random() < 0.5:
        period, duration = int(random.integers(5, 80)), int(random.integers(5, 80))
        return Interference.periodic(
            devices=devices, scenarios=names, period=period, duration=duration, length=requests, seed=0
        )
    length_s = requests * float(world.baseline_s.sum(axis=1).mean()) / devices
    starts = random.uniform(0, length_s, 8)
    events = [
        Event(int(random.integers(devices)), names[random.integers(len(names))], start, start + length_s / 5)
        for start in starts
    ]
    return Interference(tuple(events), "seconds")


def assert_same(one, other):
    for name in ("arrived_s", "submitted_s", "finished_s", "plan_index", "true_bottleneck_s", "trial"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.plans, one.decisions, one.changes) == (other.plans, other.decisions, other.changes)


# -- the watch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_requests_are_watched_at_once_as_one_by_one(loops, seed):
    """Disturbances and moves, samples that are missing, a stage whose baseline is too long: the same after each."""
    random = np.random.default_rng(seed)
    stages, layers, requests = int(random.integers(1, 6)), 12, 900
    baseline_s = random.uniform(0.5, 1.5, (stages, layers))
    true_s = baseline_s * random.uniform(0.8, 1.2, (stages, layers))
    true_s[0] *= random.choice([1.0, 0.7])
    even = np.linspace(0, layers, stages + 1).astype(int)
    plans = [tuple(even.tolist()), (0, *(even[1:-1] + 1).tolist(), layers)]
    cuts = [plans[(row // 250) % 2] for row in range(requests)]
    stage_s, layer_s, slowdown = np.empty((requests, stages)), np.empty((requests, layers)), np.ones(stages)
    for row in range(requests):
        if row % 60 == 59:
            slowdown[random.integers(stages)] = random.choice([1.0, 1.0, 1.2, 2.0, 4.0])
        factor = random.lognormal(0, 0.08, stages) * slowdown
        for k, (first, last) in enumerate(zip(cuts[row], cuts[row][1:], strict=False)):
            layer_s[row, first:last] = true_s[k, first:last] * factor[k]
            stage_s[row, k] = layer_s[row, first:last].sum()
        if row % 170 == 90:
            stage_s[row, random.integers(stages)] = np.nan

    one_by_one = StageWatch(baseline_s)
    expected = []
    for row in range(requests):
        changes = one_by_one.update(cuts[row], stage_s[row], layer_s[row])
        detector = one_by_one.detector
        expected.append((changes, detector.changed, detector.age, detector.noise, detector.disturbed))
    at_once, told, row = StageWatch(baseline_s), [], 0
    while row < requests:
        last = min(requests, row + int(random.integers(1, 50)))
        while cuts[last - 1] != cuts[row]:
            last -= 1
        told += at_once.update_rows(cuts[row], stage_s[row:last], layer_s[row:last], loops=loops.watch)
        row = last

    assert sum(len(each[0]) for each in expected) > 3
    assert [list(each.changes) for each in told] == [list(each[0]) for each in expected]
    for name, values in zip(
        ("changed", "age", "noise", "disturbed"), list(zip(*expected, strict=True))[1:], strict=True
    ):
        np.testing.assert_array_equal([getattr(each, name) for each in told], values, err_msg=name)
    np.testing.assert_array_equal(at_once.reference_s, one_by_one.reference_s)
    np.testing.assert_array_equal(at_once.faster, one_by_one.faster)


# -- the line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_run_is_the_same_with_loops_and_without(loops, seed, monkeypatch):
    random = np.random.default_rng(seed)
    world = random_world(random, devices=int(random.integers(1, 6)), layers=int(random.integers(6, 14)))
    requests = 500
    events = random_events(random, world, requests=requests)
    options = {
        "interference": events,
        "arrivals": str(random.choice(["closed", "closed:2", "poisson:0.8x", "poisson:2x"])),
        "in_flight": int(random.choice([1, 3, 8])),
        "slots": int(random.integers(1, 4)),
        "detector": str(random.choice(["none", "cusum", "threshold"])),
        "serial_trials": bool(random.random() < 0.3),
        "truth": str(random.choice(["now", "finished", "hidden"])),
    }

    def run(made, policy):
        monkeypatch.setattr(engine_module, "loops", lambda: made)
        return simulate(world, make_policy(policy), requests=requests, seed=seed, **options)

    for policy in ("static", str(random.choice(["filter", "odin:alpha=3", "lls"]))):
        assert_same(run(loops, policy), run(None, policy))


# -- the relay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_relay_is_the_same_with_loops_and_without(loops, seed):
    random = np.random.default_rng(100 + seed)
    world = random_world(random, devices=int(random.integers(2, 7)), layers=int(random.integers(2, 12)))
    requests = 300
    whole = Windows.whole(stage_count=world.device_count, layer_count=world.layer_count)
    arrivals = str(random.choice(["closed", "closed:3", "poisson:0.7x", "poisson:2x"]))
    peak_hz = world.device_count / float(world.baseline_s.sum(axis=1).mean())
    options = {
        "requests": requests,
        "interference": random_events(random, world, requests=requests),
        "arrivals": Arrivals.parse(arrivals).at_peak(peak_hz),
        "in_flight": int(random.choice([1, 4, 20])),
        "seed": seed,
    }
    assert WholeRelay.can_run(world)
    made = WholeRelay(world, run_events=loops.run_events, **options)
    made.run()
    line = RelayLine(world, windows=whole, **options)
    line.run()

    for name in ("arrived_s", "submitted_s", "finished_s", "conditions_number"):
        np.testing.assert_array_equal(getattr(made, name), getattr(line, name), err_msg=name)


def test_a_relay_draws_noise_for_more_requests_than_are_drawn_at_once(loops):
    world = World.from_timings(synthetic_timings(3), devices=2)
    options = {"requests": 2100, "interference": Interference(), "arrivals": Arrivals(), "in_flight": 4, "seed": 0}
    made = WholeRelay(world, run_events=loops.run_events, **options)
    made.run()
    line = RelayLine(world, windows=Windows.whole(stage_count=2, layer_count=3), **options)
    line.run()
    np.testing.assert_array_equal(made.finished_s, line.finished_s)


def test_loops_take_a_relay_only_without_bounds(monkeypatch):
    """Windows that are narrower, noise of one's own, and a single device are the event-driven line's."""
    monkeypatch.setattr(run_module, "loops", compiling.Loops)
    taken = []
    monkeypatch.setattr(WholeRelay, "run", lambda self: taken.append(self))
    world = World.from_timings(synthetic_timings(4), devices=2)
    run_module.simulate_relay(world, requests=3, windows=Windows.parse("@1-3|@4"))
    run_module.simulate_relay(World.of([[1.0, 1.0]]), requests=3)
    assert not taken
    run_module.simulate_relay(world, requests=3)
    assert len(taken) == 1
