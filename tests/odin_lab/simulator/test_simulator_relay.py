"""The simulated relay: exact schedules, windows, work conservation, stages that are slow, and the plan-driven line."""

import itertools

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin.partitioner.relay import Windows
from odin_lab.simulator import Arrivals, Event, Interference, World, simulate, simulate_relay
from odin_lab.simulator.metrics import to_cell, to_timeline
from odin_lab.simulator.relay import RelayLine
from odin_lab.simulator.study import Contestant, RunJob, Setup, run_job
from odin_lab.timings import load_timings


def line(world, *, requests, windows=None, interference=None, in_flight=None, seed=0):
    whole = Windows.whole(stage_count=world.device_count, layer_count=world.layer_count)
    made = RelayLine(
        world,
        windows=Windows.parse(windows) if windows else whole,
        requests=requests,
        interference=interference or Interference(),
        arrivals=Arrivals.parse("closed"),
        in_flight=in_flight or 2 * world.device_count,
        seed=seed,
    )
    made.run()
    return made


def drawn(made, stage):
    return [
        f"{part.request}:{part.first}-{part.last} {part.began_s:g}..{part.left_s:g}"
        for part in sorted(made.parts, key=lambda part: part.began_s)
        if part.stage == stage
    ]


def test_schedule_of_two_stages():
    """Layers of one second, three of them.

    ::

        stage 0  |r0 |r1 |r2         |
        stage 1      |r0     |r1     |
        t        0   1   2   3   4   5

    r1 waits for stage 1 from 2 to 3, as r2 is there for stage 0. r2 would only wait at stage 1, behind r1.
    """
    made = line(World.of([[1.0] * 3] * 2), requests=3, windows="@1-3|@3")

    assert drawn(made, 0) == ["0:0-1 0..1", "1:0-1 1..2", "2:0-3 2..5"]
    assert drawn(made, 1) == ["0:1-3 1..3", "1:1-3 3..5"]
    assert made.finished_s.tolist() == [3.0, 5.0, 5.0]


def test_schedule_of_two_stages_that_take_new_requests_by_themselves():
    """Layers of one second, two of them; the second stage takes twice as long, and nobody but the first can help it.

    ::

        stage 0  |r0     |r2     |r4     |
        stage 1  |r1             |r3             |
        t        0   1   2   3   4   5   6   7   8
    """
    made = line(World.of([[1.0] * 2, [2.0] * 2]), requests=5, in_flight=3)

    assert drawn(made, 0) == ["0:0-2 0..2", "2:0-2 2..4", "4:0-2 4..6"]
    assert drawn(made, 1) == ["1:0-2 0..4", "3:0-2 4..8"]
    assert made.submitted_s.tolist() == [0.0, 0.0, 0.0, 2.0, 4.0]


def test_a_slow_stage_hands_over_what_another_would_be_done_with_much_sooner():
    """Layers of one second, and of 3.5 on the first stage, which takes one as there are two.

    ::

        stage 0  |r1           |
        stage 1  |r0         | |r1     |
        t        0   1   2   3   4   5   6
    """
    made = line(World.of([[3.5] * 3, [1.0] * 3]), requests=2, in_flight=2)

    assert drawn(made, 1) == ["0:0-3 0..3", "1:1-3 3.5..5.5"]
    assert drawn(made, 0) == ["0:0-0 0..0", "1:0-1 0..3.5"]


def test_an_idle_stage_leaves_a_request_to_one_that_is_much_faster():
    for speeds in ([2.0, 1.0], [1.0, 2.0]):
        made = line(World.of([[speed] * 3 for speed in speeds]), requests=3, in_flight=1)
        assert {part.stage for part in made.parts} == {speeds.index(1.0)}


def test_transfers_take_the_time_of_both():
    world = World.of([[1.0] * 2] * 2, send_s=[0.1, 0.2, 0.4], receive_s=[0.01, 0.02, 0.04])

    made = line(world, requests=1, windows="@1|@2")

    assert drawn(made, 0) == ["0:0-1 0.1..1.31"]
    assert drawn(made, 1) == ["0:1-2 1.31..2.73"]
    assert made.finished_s.tolist() == pytest.approx([2.77])


@pytest.mark.parametrize("counts", [(2, 3, 1), (1, 1, 4), (6,), (5, 1)])
@pytest.mark.parametrize("arrivals", ["closed", "poisson:0.2"])
def test_windows_of_one_cut_are_the_plan_driven_line(counts, arrivals):
    plan = Plan(counts)
    random = np.random.default_rng(len(counts))
    world = World.of(
        random.uniform(0.5, 2.0, (len(plan), 6)),
        send_s=random.uniform(0, 0.2, 7),
        receive_s=random.uniform(0, 0.1, 7),
        slowdown={"slow": [3.0] * 6},
        noise="lognormal:0.2",
    )
    interference = Interference(
        tuple(Event(k % len(plan), "slow", 10.0 + 7.3 * k, 40.0 + 9.1 * k) for k in range(9)), "seconds"
    )
    options = {"requests": 200, "interference": interference, "arrivals": arrivals, "seed": 3}
    planned = simulate(world, make_policy("static"), plan=plan, detector="none", **options)
    # The plan-driven line takes the noise of the scenario at the beginning of a request, as the relay does.
    relay = simulate_relay(world, windows=Windows.of_plan(plan), **options)

    np.testing.assert_allclose(relay.submitted_s, planned.submitted_s, rtol=1e-9)
    np.testing.assert_allclose(relay.finished_s, planned.finished_s, rtol=1e-9)


def test_windows_are_respected():
    random = np.random.default_rng(0)
    world = World.of(random.uniform(0.5, 2.0, (3, 9)), noise="lognormal:0.5")
    windows = Windows.parse("@2-4|@4-7|@9")

    made = line(world, requests=200, windows=str(windows))

    cuts = {(part.stage, part.last) for part in made.parts}
    assert {cut for stage, cut in cuts if stage == 0} <= {2, 3, 4}
    assert {cut for stage, cut in cuts if stage == 1} <= {4, 5, 6, 7}
    assert {cut for stage, cut in cuts if stage == 2} == {9}


def test_every_layer_of_every_request_runs_once_and_in_order():
    made = line(World.of(np.random.default_rng(1).uniform(0.1, 1, (4, 12)), noise="lognormal:0.5"), requests=300)

    for number in range(300):
        parts = sorted((part for part in made.parts if part.request == number), key=lambda part: part.began_s)
        assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
        assert parts[-1].last == 12
        assert [part.stage for part in parts] == sorted({part.stage for part in parts})
        assert all(after.began_s >= before.left_s for before, after in itertools.pairwise(parts))


def test_work_is_conserved_and_nobody_idles_for_longer_than_a_layer():
    """All layers alike, no hand-over costs: a stage waits at most until its predecessor ends a layer."""
    made = line(World.of([[1.0] * 12] * 4, noise="lognormal:0.3"), requests=400)

    end_s = made.finished_s.max()
    for stage in range(4):
        parts = sorted((part for part in made.parts if part.stage == stage), key=lambda part: part.began_s)
        gaps = [b.began_s - a.left_s for a, b in itertools.pairwise(parts) if b.began_s < 0.95 * end_s]
        assert min(gaps) > -1e-9
        assert max(gaps) < 3.0
    busy_s = sum(part.left_s - part.began_s for part in made.parts)
    assert busy_s / (4 * end_s) > 0.98


def test_a_stage_that_is_infinitely_slow_keeps_what_it_has_and_gets_no_more():
    world = World.of([[1.0] * 6] * 4, slowdown={"dead": [np.inf] * 6})
    interference = Interference((Event(2, "dead", 50.0, 1e9),), "seconds")

    made = line(world, requests=200, interference=interference)

    stuck = [part.request for part in made.parts if part.stage == 2 and part.left_s > 1000]
    answered = np.sort(made.finished_s)
    assert len(stuck) <= 2
    assert answered[-3] < 500  # the other three stages do two a second


def test_a_stage_that_recovers_works_again():
    world = World.of([[1.0] * 6] * 3, slowdown={"slow": [20.0] * 6})
    interference = Interference((Event(1, "slow", 50.0, 300.0),), "seconds")

    made = line(world, requests=600, interference=interference)

    def share(from_s, to_s):
        return sum(p.last - p.first for p in made.parts if p.stage == 1 and from_s < p.left_s <= to_s) / (to_s - from_s)

    assert share(100, 300) < 0.1
    assert share(400, 800) > 0.8


@pytest.mark.parametrize("speeds", [(2.0, 1.0), (1.0, 2.0), (4.0, 1.0, 2.0)])
def test_unequal_devices_do_work_in_proportion_to_their_speeds(speeds):
    """As two cores beside one. The best plan of whole layers, 12 of them, has at most as much."""
    world = World.of([[1.0 / speed] * 12 for speed in speeds], noise="lognormal:0.1")

    made = line(world, requests=600)

    layers = np.zeros(len(speeds))
    for part in made.parts:
        layers[part.stage] += part.last - part.first
    assert layers / layers.sum() == pytest.approx(np.array(speeds) / sum(speeds), abs=0.03)
    assert 600 / made.finished_s.max() > 0.95 * sum(speeds) / 12


@pytest.mark.parametrize("slow", [0, 1, 2])
@pytest.mark.parametrize("speed", [0.25, 0.1])
def test_a_slow_stage_holds_nobody_up_wherever_it_is(slow, speed):
    """Each request goes through the first stage, which passes it on as it is; a layer of each there had 0.57 at 0.1."""
    speeds = [1.0] * 3
    speeds[slow] = speed

    made = line(World.of([[1.0 / speed] * 12 for speed in speeds]), requests=300)

    assert 290 / np.sort(made.finished_s)[289] > 0.9 * sum(speeds) / 12


@pytest.mark.parametrize("slow", [1, 2])
def test_a_stage_that_is_always_far_too_slow_does_nothing(slow):
    speeds = [1.0] * 3
    speeds[slow] = 0.01

    made = line(World.of([[1.0 / speed] * 12 for speed in speeds]), requests=300)

    assert {part.stage for part in made.parts if part.last > part.first} == {0, 1, 2} - {slow}
    assert 290 / np.sort(made.finished_s)[289] > 0.95 * 2 / 12


def test_results_are_by_request_though_requests_overtake():
    world = World.of([[1.0] * 6] * 3, slowdown={"slow": [8.0] * 6})
    run = simulate_relay(world, requests=300, interference=Interference((Event(1, "slow", 20, 200),)))

    assert (np.diff(run.finished_s) < 0).any()
    assert (run.latency_s > 0).all()
    assert run.throughput_hz == pytest.approx(300 / run.finished_s.max())
    cell = to_cell(run, study="s", model="m", policy="relay", devices=3)
    assert (cell.changes_per_event, cell.exploring) == (0.0, 0.0)
    told = to_timeline(run, study="s", model="m", policy="relay", title="t")
    assert min(told.throughput_hz) > 0


def test_same_seed_same_run():
    table = load_timings("resnet50")
    world = World.from_timings(table, devices=4)
    first, second, other = (simulate_relay(world, requests=60, seed=seed).finished_s for seed in (1, 1, 2))

    assert first.tolist() == second.tolist() != other.tolist()


def test_values_out_of_range():
    world = World.of([[1.0] * 6] * 3)
    with pytest.raises(ValueError, match="0 requests"):
        simulate_relay(world, requests=0)
    with pytest.raises(ValueError, match="in_flight=0"):
        simulate_relay(world, requests=1, in_flight=0)
    with pytest.raises(ValueError, match="3 and 6"):
        simulate_relay(world, requests=1, windows=Windows.parse("@3|@6"))


def test_on_many_devices_slow_for_long_it_is_no_worse_than_the_best_plans():
    """A rule that waits for the next stage, however slow, had 0.5 to 0.7 of what the best plan at each request does."""
    table = load_timings("resnet152-fine")
    world = World.from_timings(table, devices=52)
    events = Interference.periodic(devices=52, scenarios=table.scenarios, period=2, duration=100, length=400, seed=0)
    best = simulate(world, make_policy("static"), requests=400, interference=events, detector="none", best=True)

    relay = simulate_relay(world, requests=400, interference=events)

    assert relay.throughput_hz * best.best_bottleneck_s.mean() > 0.9


def test_a_policy_that_sets_windows_runs_as_a_relay_within_them():
    class Half:
        name = "half"

        def windows(self, setting):
            return f"@0-{setting.layer_count // 2}|@{setting.layer_count}"

        def start(self, setting): ...

        def decide(self, observation):
            raise AssertionError("it is not asked")

    world = World.of(np.random.default_rng(3).uniform(0.5, 2.0, (2, 6)), noise="lognormal:0.2")
    events = Interference((), "requests")

    for policy, windows in ((make_policy("relay"), "@0-6|@6"), (Half(), "@0-3|@6")):
        run = simulate(world, policy, requests=100, interference=events, best=True, seed=2)
        same = simulate_relay(world, requests=100, windows=Windows.parse(windows), seed=2)
        assert run.finished_s.tolist() == same.finished_s.tolist()
        assert run.plans == (world.setting().plan,)
        np.testing.assert_allclose(run.best_bottleneck_s, 1 / run.peak_hz)


def test_where_a_device_cannot_run_a_layer_boundaries_stay_where_the_plan_has_them():
    world = World.of([[1.0, 1.0, 1.0], [1.0, np.inf, 1.0]])

    relay, static = (simulate(world, make_policy(name), requests=30, detector="none") for name in ("relay", "static"))

    assert relay.finished_s.tolist() == static.finished_s.tolist()


def test_relay_is_a_name_beside_policies():
    assert str(Contestant.parse(" relay")) == "relay"
    setup = Setup("single", "resnet50", 4, 60, 10, 10)
    (cell,) = run_job(RunJob(setup, Contestant("relay"), 0)).cells
    assert cell.policy == "relay"
    assert cell.requests == 60
