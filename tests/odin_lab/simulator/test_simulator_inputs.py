"""What a simulation is made of: arrivals, interference, noise, and what is true."""

import itertools
import math

import numpy as np
import pytest

from odin.stages.device import Device
from odin_lab.inject import Load, Scenario, Step
from odin_lab.simulator import Arrivals, Event, Interference, LogNormalNoise, MeasuredNoise, World
from odin_lab.simulator.interference import scenario_text
from odin_lab.simulator.noise import ALONE, ReplayedNoise, make_noise
from odin_lab.timings import synthetic_timings


def rng(seed=0):
    return np.random.default_rng(seed)


# -- arrivals -------------------------------------------------------------------------------------------------------


def test_closed_arrivals_depend_on_answers():
    assert Arrivals.parse("closed").times_s(5, rng()) is None
    assert Arrivals.parse("closed:3").clients == 3


def test_poisson_arrivals():
    times_s = Arrivals.parse("poisson:12.5").times_s(50_000, rng())

    gaps_s = np.diff(times_s, prepend=0.0)
    assert gaps_s.mean() == pytest.approx(1 / 12.5, rel=0.02)
    assert gaps_s.std() == pytest.approx(1 / 12.5, rel=0.03)


def test_bursts_come_in_the_proportions_asked_for():
    """10 per second, 40 in bursts that take a fifth of the time: 16 on average, and far from a Poisson process."""
    times_s = Arrivals.parse("bursty:10,4,2,8").times_s(60_000, rng(3))

    assert (np.diff(times_s) >= 0).all()
    assert len(times_s) / times_s[-1] == pytest.approx(16, rel=0.05)
    counts = np.histogram(times_s, np.arange(0, times_s[-1], 1.0))[0]
    assert counts.var() / counts.mean() > 5  # 1 for Poisson
    # Two humps: seconds within bursts, and seconds between them.
    assert np.mean((counts > 3) & (counts < 17)) > 0.6
    assert np.mean(counts > 28) > 0.1


def test_bursts_that_are_none_are_poisson_arrivals():
    times_s = Arrivals.parse("bursty:10,1,2,8").times_s(20_000, rng())
    np.testing.assert_allclose(times_s, Arrivals.parse("poisson:10").times_s(20_000, rng()))


def test_a_trace(tmp_path):
    path = tmp_path / "arrivals.txt"
    path.write_text("# seconds\n0.0\n0.5\n\n0.5\n2\n")
    arrivals = Arrivals.parse(f"trace:{path}")

    assert arrivals.times_s(3, rng()).tolist() == [0.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="4 arrivals, not 5"):
        arrivals.times_s(5, rng())


@pytest.mark.parametrize(
    "text",
    [
        "closed:0",
        "closed:x",
        "poisson",
        "poisson:0",
        "poisson:-1",
        "poisson:nan",
        "bursty:1,2,3",
        "bursty:1,2,0,4",
        "x",
    ],
)
def test_arrivals_that_make_no_sense(text):
    with pytest.raises(ValueError, match="write closed"):
        Arrivals.parse(text)


@pytest.mark.parametrize("content", ["1\n0\n", "-1\n", "a\n", ""])
def test_traces_that_make_no_sense(tmp_path, content):
    path = tmp_path / "arrivals.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="trace"):
        Arrivals.parse(f"trace:{path}")


# -- interference ---------------------------------------------------------------------------------------------------


def test_periodic_interference():
    made = Interference.periodic(devices=3, scenarios=["a", "b"], period=10, duration=4, length=45, seed=1)

    assert [(event.start, event.end) for event in made.events] == [(10, 14), (20, 24), (30, 34), (40, 44)]
    assert made == Interference.periodic(devices=3, scenarios=["a", "b"], period=10, duration=4, length=45, seed=1)
    assert made != Interference.periodic(devices=3, scenarios=["a", "b"], period=10, duration=4, length=45, seed=2)


def test_events_are_the_same_for_every_period_and_duration():
    short, long = (
        Interference.periodic(devices=4, scenarios="abcdef", period=period, duration=2, length=40 * period, seed=3)
        for period in (2, 100)
    )
    assert [event[:2] for event in short.events] == [event[:2] for event in long.events]


def test_a_later_event_takes_the_place_of_an_earlier_one_on_the_same_device_only():
    made = Interference.periodic(devices=2, scenarios="abcd", period=10, duration=100, length=300, seed=0)

    assert len(made.events) == 30
    assert all(event.end <= 301 for event in made.events)
    overlaps = 0
    for device in (0, 1):
        own = [event for event in made.events if event.device == device]
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
        overlaps += sum(a.end - a.start < 100 for a in own)
    assert overlaps > 10
    at_200 = [event for event in made.events if event.start <= 200 < event.end]
    assert len(at_200) == 2


def test_choices_are_even():
    made = Interference.periodic(devices=4, scenarios=["a", "b", "c"], period=1, duration=1, length=12_000, seed=5)
    counts = {}
    for event in made.events:
        counts[event[:2]] = counts.get(event[:2], 0) + 1
    assert len(counts) == 12
    assert all(count == pytest.approx(1000, rel=0.12) for count in counts.values())


def test_a_device_s_changes_with_events_that_overlap():
    events = (Event(0, "a", 1, 5), Event(0, "b", 3, 8), Event(1, "c", 2, math.inf))
    made = Interference(events, "seconds")

    assert made.on_device(0) == ((1, 3, 5, 8), (("a",), ("a", "b"), ("b",), ()))
    assert made.on_device(1) == ((2,), (("c",),))


def test_a_scenario_file_s_loads():
    cpu0, cpu1 = Device.parse("cpu:0"), Device.parse("cpu:1")
    scenario = Scenario(
        (
            Step(Load("cpu", cpu1, 1.0, 2), 1.0, 4.0),
            Step(Load("membw", cpu0, 0.5), 2.0),
            Step(Load("cpu", cpu0, 0.6), 3.0, 5.0),
        )
    )

    made = Interference.from_scenario(scenario, ("cpu:0", "cpu:1"), length_s=10.0)

    assert made.unit == "seconds"
    assert made.events == (
        Event(1, "cpu-100x2", 1.0, 4.0),
        Event(0, "membw-50", 2.0, 10.0),
        Event(0, "cpu*0.6", 3.0, 5.0),
    )
    with pytest.raises(ValueError, match="not on a device"):
        Interference.from_scenario(scenario, ("cpu:0", "cpu:2"))


def test_a_ramp_becomes_levels():
    step = Step(Load("cpu", Device.parse("cpu:0"), 1.0), 0.0, 10.0, ramp_s=2.0)

    events = Interference.from_scenario(Scenario((step,)), ("cpu:0",)).events

    assert [a.end for a in events[:-1]] == [b.start for b in events[1:]]
    assert (events[0].start, events[-1].end) == (0.0, 10.0)
    assert "cpu-100" in {event.scenario for event in events}


def test_names_of_loads():
    assert scenario_text("cpu", 1.0, 4) == "cpu-100x4"
    assert scenario_text("membw", 0.25, 1) == "membw-25"
    assert scenario_text("cpu", 0.25, 2) == "cpu*0.25x2"


@pytest.mark.parametrize("event", [Event(-1, "a", 0, 1), Event(0, "a", 1, 1), Event(0, "a", math.nan, 1)])
def test_events_that_make_no_sense(event):
    with pytest.raises(ValueError, match="a device is 0 or more"):
        Interference((event,))


# -- noise ----------------------------------------------------------------------------------------------------------


def test_log_normal_noise_has_the_coefficient_of_variation_asked_for():
    noise = LogNormalNoise(0.3)
    factors = noise.factors(next(noise.blocks(rng(), requests=50_000, devices=2)), "anything")

    assert np.median(factors) == pytest.approx(1.0, abs=0.01)
    assert factors.std() / factors.mean() == pytest.approx(0.3, rel=0.03)


def test_measured_noise_keeps_distribution_and_most_of_the_autocorrelation():
    random = rng(1)
    recorded = np.zeros(3000)
    for index in range(1, 3000):
        recorded[index] = 0.8 * recorded[index - 1] + random.normal(0, 0.06)
    noise = MeasuredNoise({ALONE: recorded})

    drawn = np.log(noise.factors(next(noise.blocks(rng(2), requests=60_000, devices=3)), ALONE))

    assert set(np.unique(drawn[:100])) <= set(np.log(np.exp(recorded)))
    assert drawn.std() == pytest.approx(recorded.std(), rel=0.05)
    for column in drawn.T:  # a jump in 16 breaks so much of it
        assert np.corrcoef(column[1:], column[:-1])[0, 1] == pytest.approx(0.8 * 15 / 16, abs=0.03)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.05


def test_measured_noise_under_a_scenario_is_that_of_the_scenario():
    noise = MeasuredNoise({ALONE: np.array([0.1]), "cpu-50": np.array([0.5, 0.7])})
    drawn = next(noise.blocks(rng(), requests=500, devices=2))

    np.testing.assert_allclose(noise.factors(drawn, ALONE), np.exp(0.1))
    np.testing.assert_allclose(noise.factors(drawn, "not recorded"), np.exp(0.1))
    assert np.mean(noise.factors(drawn, "cpu-50") > np.exp(0.6)) == pytest.approx(0.5, abs=0.05)


class Recorded:
    """Noise with three passes alone and four under load, on a host that becomes slower."""

    scenarios = ("cpu-50",)

    def residuals(self, scenario=ALONE):
        return np.array([-0.1, 0.0, 0.2]) if scenario == ALONE else np.array([-0.7, 0.0, 0.0, 1.5])

    def drift(self):
        return np.array([10.0, 20.0, 30.0]), np.array([0.0, 0.0, 0.4])


def test_noise_of_a_table_leaves_mean_slowdowns_as_they_are():
    noise = MeasuredNoise.of_table(Recorded(), interval_s=0.0)
    drawn = next(noise.blocks(rng(), requests=20_000, devices=1))

    alone, loaded = noise.factors(drawn, ALONE), noise.factors(drawn, "cpu-50")
    assert alone.max() / alone.min() == pytest.approx(np.exp(0.3))
    assert loaded.mean() == pytest.approx(alone.mean(), rel=0.03)
    assert loaded.max() / loaded.min() == pytest.approx(np.exp(2.2))


@pytest.mark.parametrize("interval_s", [0.01, 0.1])
def test_drift_goes_on_with_time_whatever_the_number_of_requests(interval_s):
    noise = MeasuredNoise({ALONE: np.zeros(1)}, drift=Recorded().drift(), interval_s=interval_s)
    blocks = noise.blocks(rng(), requests=256, devices=3)
    requests = round(40.0 / interval_s)  # forth and back
    drift = np.log(np.concatenate([noise.factors(next(blocks), "cpu-50") for _ in range(requests // 256 + 2)]))

    np.testing.assert_allclose(drift[:256], drift[requests : requests + 256], atol=1e-9)
    assert abs(np.diff(drift, axis=0)).max() == pytest.approx(0.04 * interval_s)  # no step, between blocks neither
    assert drift[:requests].max(axis=0) == pytest.approx(0.4, abs=0.04 * interval_s)
    assert (drift[:requests] < 1e-9).mean(axis=0) == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(drift[0])) > 1 or len(np.unique(drift[requests // 4])) > 1  # each device at another moment


@pytest.mark.parametrize(
    ("drift", "interval_s"),
    [
        (([0.0, 1.0], [0.0]), 0.1),
        (([], []), 0.1),
        (([0.0, 0.0], [0.0, 0.1]), 0.1),
        (([0.0, 1.0], [0.0, np.nan]), 0.1),
        (([0.0, 1.0], [0.0, 0.1]), -1.0),
    ],
)
def test_drift_that_makes_no_sense(drift, interval_s):
    with pytest.raises(ValueError, match="drift"):
        MeasuredNoise({ALONE: np.zeros(1)}, drift=drift, interval_s=interval_s)


@pytest.mark.parametrize("text", ["loud", "lognormal", "lognormal:-1", "measured"])
def test_noise_that_makes_no_sense(text):
    with pytest.raises(ValueError, match="lognormal:"):
        make_noise(text)


@pytest.mark.parametrize("residuals", [{}, {ALONE: np.array([])}, {ALONE: np.array([np.nan])}])
def test_recordings_that_make_no_sense(residuals):
    with pytest.raises(ValueError, match="residuals"):
        MeasuredNoise(residuals)


# -- world ----------------------------------------------------------------------------------------------------------


def test_a_world_of_a_timing_table():
    table = synthetic_timings(7)
    world = World.from_timings(table, devices=3, speeds=[1.0, 2.0, 0.5])

    np.testing.assert_allclose(world.baseline_s[1], table.baseline_s() / 2)
    np.testing.assert_allclose(world.baseline_s[2], table.baseline_s() * 2)
    assert set(world.slowdown) == set(table.scenarios)
    setting = world.setting()
    assert setting.plan.layer_count == 7
    assert setting.plan[2] < setting.plan[1]


def test_what_several_loads_add_adds_up_and_levels_lie_between_known_ones():
    world = World.of([[1.0, 1.0]], slowdown={"cpu-50": [1.5, 2.0], "cpu-75": [2.0, 3.0], "membw-100x2": [4.0, 2.0]})

    assert world.effect(()).tolist() == [1.0, 1.0]
    assert world.effect(("cpu-50", "membw-100x2")).tolist() == [4.5, 3.0]
    assert world.effect(("cpu*0.25",)).tolist() == [1.25, 1.5]
    np.testing.assert_allclose(world.effect(("cpu*0.6",)), [1.7, 2.4])
    for unknown in ("cpu*0.8", "cpu*0.5x2", "gpu*0.5", "nonsense"):
        with pytest.raises(ValueError, match="there is cpu-50"):
            world.effect((unknown,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: World.of([1.0, 2.0]),
        lambda: World.of([[1.0, -2.0]]),
        lambda: World.of([[]]),
        lambda: World.of([[1.0]], send_s=[0.0]),
        lambda: World.of([[1.0]], receive_s=[0.0, math.inf]),
        lambda: World.of([[1.0]], slowdown={"x": 0.0}),
        lambda: World.from_timings(synthetic_timings(3), devices=0),
        lambda: World.from_timings(synthetic_timings(3), devices=2, speeds=[1.0]),
    ],
)
def test_worlds_that_make_no_sense(make):
    with pytest.raises(ValueError, match=r"give|need|above 0|at least 1"):
        make()


def test_replayed_noise_is_what_was_recorded_and_begins_anew_at_its_end():
    recorded = rng().uniform(0.5, 2.0, (1500, 2))
    noise = ReplayedNoise(recorded)
    blocks = noise.blocks(rng(), requests=1024, devices=2)

    drawn = np.concatenate([noise.factors(next(blocks), "anything") for _ in range(2)])

    np.testing.assert_array_equal(drawn, np.concatenate([recorded, recorded])[:2048])
    with pytest.raises(ValueError, match="recorded on 2 devices"):
        next(noise.blocks(rng(), requests=8, devices=3))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [([], "shape"), ([1.0], "shape"), ([[1.0, np.nan]], "not finite"), ([[1.0, 0.0]], "above 0")],
)
def test_noise_that_cannot_be_replayed(recorded, message):
    with pytest.raises(ValueError, match=message):
        ReplayedNoise(recorded)
