"""Simulated runs: closed forms, what policies are told, when their plans take effect, exploration, seeds."""

import math

import numpy as np
import pytest

from odin.control.controller import Controller
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision, make_policy
from odin.testing import ScriptedPolicy
from odin_lab.simulator import Event, Interference, LogNormalNoise, World, simulate
from odin_lab.timings import synthetic_timings

EVEN = World.of(np.full((2, 4), 0.5))


def move(plan, kind="move"):
    return Decision(Plan(plan), kind, "scripted")


def plans_of(run):
    return [str(run.plans[index]) for index in run.plan_index]


# -- closed forms ---------------------------------------------------------------------------------------------------


def test_closed_loop_of_a_deterministic_pipeline():
    """In flight N requests, the slowest stage takes T: from then on one every T seconds, each N T under way."""
    world = World.of([[1.0, 1.0, 1.0]] * 2)

    run = simulate(world, make_policy("static"), requests=50, plan=Plan((1, 2)), in_flight=5)

    np.testing.assert_allclose(np.diff(run.finished_s), 2.0)
    np.testing.assert_allclose(run.finished_s[0], 3.0)
    np.testing.assert_allclose(run.latency_s[5:], 5 * 2.0)
    np.testing.assert_allclose(run.true_bottleneck_s, 2.0)
    assert run.peak_hz == 0.5
    assert run.throughput_hz == pytest.approx(50 / (3.0 + 49 * 2.0))


def test_too_few_in_flight_leave_stages_idle():
    run = simulate(EVEN, make_policy("static"), requests=20, in_flight=1)

    np.testing.assert_allclose(np.diff(run.finished_s), 2.0)
    np.testing.assert_array_equal(run.submitted_s[1:], run.finished_s[:-1])


def test_transfers_are_part_of_the_stages_and_of_the_way_in_and_out():
    world = World.of(np.full((2, 2), 1.0), send_s=[0.1, 0.2, 0.4], receive_s=[0.01, 0.02, 0.04])

    run = simulate(world, make_policy("static"), requests=30, plan=Plan((1, 1)))

    first_s, second_s = 0.01 + 1.0 + 0.2, 0.02 + 1.0 + 0.4
    assert run.finished_s[0] == pytest.approx(0.1 + first_s + second_s + 0.04)
    np.testing.assert_allclose(np.diff(run.finished_s), second_s)
    np.testing.assert_allclose(run.true_bottleneck_s, second_s)


def test_mean_wait_of_an_m_d_1_queue():
    """Pollaczek and Khinchine: utilisation 0.7 and service time 1 make rho / (2 (1 - rho)) of waiting."""
    world = World.of([[1.0]])

    run = simulate(
        world, make_policy("static"), requests=150_000, arrivals="poisson:0.7", detector="none", in_flight=1000, seed=5
    )

    assert run.latency_s.mean() - 1.0 == pytest.approx(0.7 / (2 * 0.3), rel=0.04)
    np.testing.assert_allclose(run.submitted_s, run.arrived_s)


def test_a_full_gateway_lets_arrivals_wait_and_drops_none():
    world = World.of([[1.0]])

    many = simulate(world, make_policy("static"), requests=500, arrivals="poisson:0.9", in_flight=100, seed=1)
    few = simulate(world, make_policy("static"), requests=500, arrivals="poisson:0.9", in_flight=2, seed=1)

    np.testing.assert_array_equal(few.arrived_s, many.arrived_s)
    np.testing.assert_allclose(few.finished_s, many.finished_s)
    np.testing.assert_array_equal(few.submitted_s[2:], np.maximum(few.arrived_s[2:], few.finished_s[:-2]))


@pytest.mark.parametrize("devices", [1, 1000])
def test_any_number_of_devices(devices):
    world = World.of(np.full((devices, 7), 1.0), slowdown={"x": 3.0})

    run = simulate(
        world, make_policy("static"), requests=30, interference=Interference((Event(devices - 1, "x", 5, 9),))
    )

    assert sum(run.plans[0]) == 7
    assert (np.diff(run.finished_s) >= -1e-12).all()
    np.testing.assert_allclose(run.finished_s[0], 7.0)


# -- migration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prepare_s", "first"), [(0.0, 14), (0.001, 15), (1.0, 15), (1.001, 16), (2.5, 17)])
def test_a_decision_reaches_the_first_request_submitted_after_it_was_prepared(prepare_s, first):
    """One request per second; 10 finishes, its permit goes to 14 at that moment, and then the decision is made."""
    run = simulate(EVEN, ScriptedPolicy({10: move((3, 1))}), requests=30, in_flight=4, prepare_s=prepare_s)

    assert plans_of(run) == ["2|2"] * (first - 1) + ["3|1"] * (31 - first)
    assert run.decisions == ((10, move((3, 1))),)


def test_the_controller_looks_at_nothing_while_it_prepares():
    """Decided at 10, prepared for 2.5 requests: the decision at 11 comes as late, and is prepared as long."""
    policy = ScriptedPolicy({10: move((3, 1)), 11: move((1, 3))})

    run = simulate(EVEN, policy, requests=40, in_flight=4, prepare_s=2.5)

    plans = plans_of(run)
    assert plans.index("3|1") + 1 == 17
    assert run.submitted_s[plans.index("1|3")] - run.finished_s[9] >= 5.0
    assert [observation.request for observation in policy.seen] == list(range(1, 41))


def test_a_plan_in_force_is_no_decision_and_one_that_does_not_fit_an_error():
    assert simulate(EVEN, ScriptedPolicy({5: move((2, 2))}), requests=10).decisions == ()
    with pytest.raises(ValueError, match="3 stages"):
        simulate(EVEN, ScriptedPolicy({5: move((2, 1, 1))}), requests=10)


@pytest.mark.parametrize("answer", ["3|1", ("3|1", "move"), Decision(None, "move", ""), Decision(Plan((3, 1)), 7, "")])
def test_an_answer_that_is_no_decision_is_an_error_that_names_the_policy(answer):
    """A string used to end the simulation with an AttributeError from the simulator's own code."""
    with pytest.raises(ValueError, match="policy scripted: its "):
        simulate(EVEN, ScriptedPolicy({5: answer}), requests=10)


def test_a_policy_that_raises_becomes_static():
    policy = ScriptedPolicy({4: RuntimeError("no idea"), 6: move((1, 3))})

    with pytest.warns(UserWarning, match="no idea"):
        run = simulate(EVEN, policy, requests=20)

    assert run.decisions == ()
    assert len(policy.seen) == 4


# -- what policies are told -----------------------------------------------------------------------------------------


def test_observations_are_those_of_the_live_controller():
    """The timelines that live stages would have sent, through the live controller: the same observations."""
    table = synthetic_timings(9, seed=3)
    world = World.from_timings(table, devices=3)
    answers = {40: move((1, 4, 4)), 90: move((0, 5, 4)), 140: move((3, 3, 3))}
    interference = Interference.periodic(
        devices=3, scenarios=table.scenarios, period=50, duration=30, length=220, seed=1
    )
    simulated = ScriptedPolicy(answers)
    run = simulate(world, simulated, requests=220, plan=Plan((3, 3, 3)), interference=interference, seed=7)

    live, moved = ScriptedPolicy(answers), []
    controller = Controller(
        world.setting(Plan((3, 3, 3))),
        policy=live,
        migrate=lambda plan, windows: moved.append(plan) or len(moved),
        emit=lambda event: None,
        budget=1e9,
    )
    epoch, plan = 0, Plan((3, 3, 3))
    for index, seen in enumerate(simulated.seen):
        epoch, plan = epoch + (seen.plan != plan), seen.plan
        timings = tuple(
            StageTiming(stage, first, last, 0.0, seen.stage_s[stage], 0.0, 0.0, 0.0, tuple(seen.layer_s[first:last]))
            for stage, (first, last) in enumerate(seen.plan.ranges)
        )
        controller.step(RequestTimeline(index, epoch, run.submitted_s[index], run.finished_s[index], timings))

    assert [str(plan) for plan in moved] == [str(decision.plan) for _, decision in run.decisions]
    assert len(live.seen) == len(simulated.seen) == 220
    assert any(observation.changed.any() for observation in live.seen)
    for ours, theirs in zip(simulated.seen, live.seen, strict=True):
        assert (ours.request, ours.plan) == (theirs.request, theirs.plan)
        for field in ("stage_s", "layer_s", "interval_s", "changed", "age", "noise"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)
    assert {request for request, _ in run.changes} == {o.request for o in live.seen if o.changed.any()}


def test_a_stage_tells_what_its_layers_took_and_nothing_if_it_has_none():
    policy = ScriptedPolicy()

    simulate(World.of([[1.0, 2.0, 4.0]] * 3), policy, requests=5, plan=Plan((2, 0, 1)))

    np.testing.assert_array_equal(policy.seen[0].stage_s, [3.0, 0.0, 4.0])
    np.testing.assert_array_equal(policy.seen[0].layer_s, [1.0, 2.0, 4.0])
    assert math.isnan(policy.seen[0].interval_s)
    assert policy.seen[1].interval_s == pytest.approx(4.0)


@pytest.mark.parametrize(("truth", "first"), [("now", 10), ("finished", 14)])
def test_true_times_are_those_of_the_moment_or_of_the_finished_request(truth, first):
    """Four in flight: with the 10th answer request 14 comes in, the first one submitted under the disturbance."""
    world = World.of(np.full((2, 4), 0.5), slowdown={"x": [2.0, 2.0, 3.0, 3.0]})
    interference = Interference((Event(1, "x", 10, 20),))
    policy = ScriptedPolicy()

    simulate(world, policy, requests=30, in_flight=4, interference=interference, truth=truth)

    disturbed = [o.request for o in policy.seen if (o.true_s != 0.5).any()]
    assert disturbed == list(range(first, first + 10))
    np.testing.assert_array_equal(policy.seen[first].true_s, [[0.5] * 4, [1.0, 1.0, 1.5, 1.5]])


# -- interference and noise -----------------------------------------------------------------------------------------


def test_conditions_change_for_all_requests_under_way_when_so_many_have_been_answered():
    """Two stages of 1 s, stage 0 twice as slow from the 5th answer, at 6 s, to the 8th, at 11 s.

    ::

        stage 0    7: 6 to 8 s    8: 8 to 10    9: 10 to 11.5, half of it as slow    10: 11.5 to 12.5
        answered   6: 7           7: 9          8: 11                                9: 12.5
    """
    world = World.of(np.full((2, 4), 0.5), slowdown={"x": 2.0, "z": math.inf})
    interference = Interference((Event(0, "x", 5, 8), Event(1, "z", 12, 13)))
    policy = ScriptedPolicy()

    run = simulate(world, policy, requests=15, interference=interference, best=True)

    stage_s = np.ones((15, 2))
    stage_s[[6, 7, 8], 0] = 2.0, 2.0, 1.5
    stage_s[12, 1] = 2000.0  # dead, and yet it finishes one day
    np.testing.assert_allclose([o.stage_s for o in policy.seen], stage_s)
    np.testing.assert_allclose(run.finished_s[:12], [2, 3, 4, 5, 6, 7, 9, 11, 12.5, 13.5, 14.5, 15.5])
    # with four in flight, requests 9 to 11 were submitted meanwhile
    np.testing.assert_allclose(run.true_bottleneck_s, [1.0] * 8 + [2.0] * 3 + [1.0] * 4)
    np.testing.assert_allclose(run.best_bottleneck_s, [1.0] * 8 + [1.5] * 3 + [1.0] * 4)


def test_a_dead_device_loses_its_layers_to_a_policy_that_knows():
    world = World.of(np.full((3, 6), 0.1), slowdown={"dead": math.inf})
    interference = Interference((Event(1, "dead", 20, 10**6),))

    run = simulate(world, make_policy("oracle"), requests=60, interference=interference, prepare_s=0.0)

    assert plans_of(run)[:25] == ["2|2|2"] * 25  # five of them stay behind on the dead device
    assert {plan.split("|")[1] for plan in plans_of(run)[25:]} == {"0"}
    assert run.finished_s[-1] - run.finished_s[24] < 100


def test_conditions_that_change_in_the_midst_of_a_layer():
    """By seconds: what is half done takes half of its new time from then on."""
    world = World.of([[1.0]], slowdown={"x": 2.0})
    interference = Interference((Event(0, "x", 0.5, 2.5),), "seconds")
    policy = ScriptedPolicy()

    run = simulate(world, policy, requests=4, interference=interference, in_flight=1)

    np.testing.assert_allclose(run.finished_s, [1.5, 3.0, 4.0, 5.0])
    np.testing.assert_allclose([o.stage_s[0] for o in policy.seen], [1.5, 1.5, 1.0, 1.0])
    np.testing.assert_allclose([o.layer_s[0] for o in policy.seen], [1.5, 1.5, 1.0, 1.0])
    np.testing.assert_allclose(run.true_bottleneck_s, [1.0, 2.0, 1.0, 1.0])


def test_seconds_and_requests_agree_where_nothing_is_under_way_when_conditions_change():
    table = synthetic_timings(6)
    world = World.from_timings(table, devices=2, noise=LogNormalNoise(0.1))
    calm = simulate(world, make_policy("static"), requests=200, in_flight=1, seed=2)
    by_requests = Interference((Event(1, "cpu-50", 50, 80), Event(0, "membw-100", 60, 120)))
    slow = simulate(world, make_policy("static"), requests=200, in_flight=1, interference=by_requests, seed=2)
    times = [Event(e.device, e.scenario, slow.finished_s[int(e.start) - 1], slow.finished_s[int(e.end) - 1])
             for e in by_requests.events]  # fmt: skip

    by_seconds = simulate(
        world, make_policy("static"), requests=200, in_flight=1, interference=Interference(tuple(times), "seconds"),
        seed=2,
    )  # fmt: skip

    np.testing.assert_allclose(by_seconds.finished_s, slow.finished_s)
    np.testing.assert_allclose(by_seconds.true_bottleneck_s, slow.true_bottleneck_s)
    assert slow.finished_s[-1] > calm.finished_s[-1]


def test_the_work_of_a_pipeline_is_conserved_when_conditions_change_by_seconds():
    """Alternating twofold slowdown of all devices: as much work is done as the undisturbed parts of time allow."""
    world = World.of(np.full((3, 3), 0.7), slowdown={"x": 2.0})
    events = [Event(d, "x", t, t + 1.3) for d in range(3) for t in np.arange(0.4, 150, 2.6)]

    run = simulate(world, make_policy("static"), requests=60, interference=Interference(tuple(events), "seconds"))

    def work_until(at_s):
        slow_s = sum(max(0.0, min(at_s, t + 1.3) - t) for t in np.arange(0.4, 150, 2.6))
        return at_s - slow_s / 2

    np.testing.assert_allclose([work_until(t) for t in run.finished_s], 0.7 * (3 + np.arange(60)))


def integrated(world, interference, run, slots):
    """When requests leave, stage by stage and layer by layer from the run's submissions, plans and moments alone."""
    stages = world.device_count
    moments = {0.0: 0.0, **{index + 1.0: at_s for index, at_s in enumerate(run.finished_s)}}

    def moment(edge):
        return edge if interference.unit == "seconds" else moments.get(edge, math.inf)

    events = [(e.device, moment(e.start), moment(e.end), world.slowdown[e.scenario]) for e in interference.events]
    edges_s = sorted({edge for _, start, end, _ in events for edge in (start, end)})

    def done(stage, layer, at_s):
        left = 1.0
        while True:
            factor = 1 + sum(f[layer] - 1 for device, a, b, f in events if device == stage and a <= at_s < b)
            next_s = min((edge for edge in edges_s if edge > at_s), default=math.inf)
            needed_s = left * factor * world.baseline_s[stage, layer]
            if at_s + needed_s <= next_s:
                return at_s + needed_s
            left -= (next_s - at_s) / (factor * world.baseline_s[stage, layer])
            at_s = next_s

    left_s = np.full((len(run.finished_s) + slots, stages + 1), -math.inf)  # the gateway takes results at once
    for index, number in enumerate(run.plan_index):
        row, at_s = index + slots, run.submitted_s[index] + world.send_s[0]
        for stage, (first, last) in enumerate(run.plans[number].ranges):
            at_s = max(at_s, left_s[row - 1, stage]) + world.receive_s[first]
            for layer in range(first, last):
                at_s = done(stage, layer, at_s)
            at_s = max(at_s, left_s[row - slots, stage + 1]) + world.send_s[last]
            left_s[row, stage] = at_s
    return left_s[slots:, stages - 1] + world.receive_s[-1]


@pytest.mark.parametrize("unit", ["requests", "seconds"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(("period", "duration"), [(3, 7), (40, 30)])
def test_equals_layer_by_layer_integration(unit, slots, period, duration):
    table = synthetic_timings(12)
    world = World.from_timings(table, devices=6, speeds=[1, 2, 1, 1, 3, 1], noise="none")
    made = Interference.periodic(
        devices=6, scenarios=table.scenarios, period=period, duration=duration, length=150, seed=2
    )
    scale = 1.0 if unit == "requests" else 0.03
    events = tuple(event._replace(start=event.start * scale, end=event.end * scale) for event in made.events)
    interference = Interference(events, unit)
    answers = {request: move((2, 2, request % 3, 4 - request % 3, 0, 4)) for request in range(5, 140, 10)}

    run = simulate(world, ScriptedPolicy(answers), requests=150, interference=interference, slots=slots)

    np.testing.assert_allclose(run.finished_s, integrated(world, interference, run, slots), rtol=1e-12, atol=1e-10)
    assert len(run.plans) > 3


@pytest.mark.parametrize("unit", ["requests", "seconds"])
def test_noise_does_not_depend_on_the_policy(unit):
    table = synthetic_timings(8)
    world = World.from_timings(table, devices=2)
    events = (Event(1, "cpu-50", 20, 60), Event(0, "membw-75", 40, 50))
    interference = Interference(events, "requests") if unit == "requests" else None
    still, moving = (
        ScriptedPolicy(),
        ScriptedPolicy({request: move((request % 8, 8 - request % 8)) for request in range(3, 95, 7)}),
    )

    first = simulate(world, still, requests=100, plan=Plan((4, 4)), interference=interference, seed=4)
    simulate(world, moving, requests=100, plan=Plan((4, 4)), interference=interference, seed=4)

    def factors(policy):
        """Noise of each request and stage; nan for those during which conditions changed."""
        rows = []
        for index, seen in enumerate(policy.seen, 1):
            true_s = world.baseline_s.copy()
            for event in interference.events if interference else ():
                if event.start <= index < event.end:
                    true_s[event.device] *= world.slowdown[event.scenario]
            sums = [true_s[stage, a:b].sum() for stage, (a, b) in enumerate(seen.plan.ranges)]
            steady = (
                all(not 0 <= index - edge <= 4 for e in events for edge in (e.start, e.end)) or interference is None
            )
            rows.append(np.divide(seen.stage_s, sums, out=np.full(2, np.nan), where=steady & (np.array(sums) > 0)))
        return np.array(rows)

    one, other = factors(still), factors(moving)
    both = np.isfinite(one) & np.isfinite(other)
    assert both.mean() > 0.65
    assert one[both].std() > 0.005
    np.testing.assert_allclose(one[both], other[both])
    assert len(set(first.plan_index.tolist())) == 1


def test_the_same_seed_gives_the_same_run_and_another_another():
    world = World.from_timings(synthetic_timings(8), devices=2)

    def finished_s(seed):
        return simulate(world, make_policy("filter"), requests=1500, arrivals="poisson:20", seed=seed).finished_s

    np.testing.assert_array_equal(finished_s(1), finished_s(1))
    assert (finished_s(1) != finished_s(2)).all()


# -- exploration ----------------------------------------------------------------------------------------------------


def test_serial_trials_let_one_request_through_at_a_time():
    answers = {20: move((3, 1), "trial"), 30: move((1, 3), "trial"), 40: move((2, 2), "settle")}
    run = simulate(EVEN, ScriptedPolicy(answers), requests=70, in_flight=4, serial_trials=True, prepare_s=0.1)

    plans = plans_of(run)
    tried = np.flatnonzero(run.trial)
    assert {plans[index] for index in tried} == {"3|1", "1|3"}
    assert tried[0] == plans.index("3|1")
    assert (run.submitted_s[tried] >= run.finished_s[tried - 1]).all()
    np.testing.assert_allclose((run.finished_s - run.submitted_s)[tried], 2.0)
    # Each goes once the controller has looked at the one before: so no request is lost to a plan that was judged.
    assert plans.index("1|3") + 1 == 31
    assert plans.index("2|2", 30) + 1 == 41
    assert not run.trial[40:].any()
    np.testing.assert_allclose(np.diff(run.finished_s)[45:], 1.0)
    np.testing.assert_allclose(np.diff(run.finished_s)[31:39], 2.0)  # two stages, one after the other


def test_trials_serve_requests_unless_they_are_serial():
    answers = {20: move((3, 1), "trial"), 30: move((2, 2), "settle")}

    run = simulate(EVEN, ScriptedPolicy(answers), requests=50, in_flight=4, prepare_s=0.0)

    assert np.flatnonzero(run.trial).tolist() == list(range(23, 33))
    np.testing.assert_allclose(np.diff(run.finished_s)[24:32], 1.5)


def test_the_way_back_from_a_visit_is_no_trial():
    answers = {10: move((3, 1), "probe"), 11: move((2, 2), "probe")}

    run = simulate(EVEN, ScriptedPolicy(answers), requests=30, in_flight=4, prepare_s=0.0)

    assert np.flatnonzero(run.trial).tolist() == [13]


class Exploring(ScriptedPolicy):
    """Says itself when it is done: with the 20th observation."""

    @property
    def exploring(self):
        return len(self.seen) < 20


def test_a_plan_that_stays_after_its_trial_is_no_trial_any_more():
    policy = Exploring({10: move((3, 1), "trial")})

    run = simulate(EVEN, policy, requests=60, in_flight=4, prepare_s=0.0, serial_trials=True)

    assert np.flatnonzero(run.trial).tolist() == list(range(13, 20))
    assert plans_of(run)[-1] == "3|1"
    np.testing.assert_allclose(np.diff(run.finished_s)[30:], 1.5)


def test_the_policies_that_explore_say_when_they_are_done():
    table = synthetic_timings(12)
    world = World.from_timings(table, devices=3, noise="none")
    interference = Interference((Event(1, "cpu-100x4", 200, 10**6),))

    run = simulate(world, make_policy("odin:alpha=2"), requests=500, interference=interference)

    assert run.trial[200:].any()
    assert not run.trial[-50:].any()


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests": 0}, "at least 1"),
        ({"in_flight": 0}, "at least 1"),
        ({"prepare_s": -1.0}, "0 or more"),
        ({"truth": "later"}, "none of now"),
        ({"plan": Plan((1, 1))}, "2 layers"),
        ({"arrivals": "often"}, "write closed"),
        ({"detector": "crystal ball"}, "crystal ball"),
        ({"interference": Interference((Event(2, "x", 1, 2),))}, "counted from 0"),
        ({"interference": Interference((Event(1, "x", 1, 2),))}, "no slowdown"),
    ],
)
def test_says_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(EVEN, make_policy("static"), **{"requests": 10, **options})
