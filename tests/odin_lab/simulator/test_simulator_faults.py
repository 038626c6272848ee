"""Devices that are lost in simulated time, and deadlines: exact schedules, and what holds whatever happens."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin_lab.simulator import Event, Interference, World, simulate
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.deadlines import ANSWERED, DROPPED, FAILED, REFUSED
from odin_lab.simulator.door import Deadline
from odin_lab.simulator.losses import Loss, Losses, parse_seconds, seconds_text
from odin_lab.simulator.run import undisturbed_s
from odin_lab.simulator.service import recoveries_s, steady_hz
from odin_lab.timings import load_timings

TWO = [[1.0, 1.0]] * 2


def run(times_s, policy="relay", *, requests, **options):
    options = {"crash_notice_s": 0.0, "prepare_s": 0.1, "detector": "none"} | options
    world = World.of(times_s, **{key: options.pop(key) for key in ("send_s", "receive_s") if key in options})
    return simulate(world, make_policy(policy), requests=requests, **options)


def times(found):
    return [round(value, 9) for value in found.finished_s.tolist()]


# -- losses, exactly ------------------------------------------------------------------------------------------------


def test_what_a_dead_stage_had_goes_to_the_other():
    """Two layers of one second; stage 0 dies at 1.5 with r0 in the midst of it.

    ::

        stage 0  |r0   x
        stage 1  |r1     |r0     |r2     |
        t        0   1   2   3   4   5   6
    """
    found = run(TWO, requests=3, losses="0@1.5s")

    assert times(found) == [4.0, 2.0, 6.0]
    assert found.attempts.tolist() == [1, 0, 0]


def test_a_replaced_stage_takes_part_at_once():
    """As above, but stage 0 is back at 2.5.

    ::

        stage 0  |r0   x   |r2     |
        stage 1  |r1     |r0     |
        t        0   1   2   3   4   5
    """
    found = run(TWO, requests=3, losses="0@1.5s+1s")

    assert times(found) == [4.0, 2.0, 4.5]
    ((seen),) = found.losses
    assert (seen.noticed_s, seen.back_s) == (1.5, 2.5)


def test_until_a_death_is_noticed_its_request_waits():
    assert times(run(TWO, requests=3, losses="0@1.5s", crash_notice_s=1.0)) == [6.0, 2.0, 4.0]


def test_a_death_in_a_hand_over_takes_the_request_along():
    """Plan 1|1, half a second to hand over; stage 0 dies at 1.25 while it copies r0, stage 1 is prepared at 1.35."""
    found = run(TWO, "static", requests=2, losses="0@1.25s", send_s=[0.0, 0.5, 0.0])

    assert times(found) == [3.35, 5.35]
    assert found.attempts.tolist() == [1, 0]  # r1 had not been sent on yet
    assert [str(plan) for plan in found.plans] == ["1|1", "0|2"]
    assert found.plan_index.tolist() == [1, 1]


def test_what_is_copied_to_a_stage_that_dies_is_sent_again():
    """The same, but stage 1 dies: stage 0 ends its copy at 1.5, and begins anew."""
    found = run(TWO, "static", requests=2, losses="1@1.25s", send_s=[0.0, 0.5, 0.0])

    assert times(found) == [3.5, 5.5]
    assert [str(plan) for plan in found.plans] == ["1|1", "2|0"]


def test_others_go_on_under_the_old_plan_while_the_new_one_is_prepared():
    """Plan 1|1|1; stage 0 dies at 2.5 with r2, and the rest ends as it would have.

    ::

        stage 0  |r0 |r1 |r x
        stage 1      |r0 |r1 |r2     |
        stage 2          |r0 |r1 |   |r2 |
        t        0   1   2   3   4   5   6
    """
    found = run([[1.0] * 3] * 3, "static", requests=3, losses="0@2.5s", prepare_s=0.5)

    assert [str(plan) for plan in found.plans] in (["1|1|1", "0|2|1"], ["1|1|1", "0|1|2"])
    assert times(found)[:2] == [3.0, 4.0]
    assert times(found)[2] == 6.0


def test_all_dead_and_back_again():
    """r0 dies with stage 0 at 1, r1 with stage 1 at 1.5; stage 0 is back at 4."""
    assert times(run(TWO, requests=2, losses="0@1s+3s,1@1.5s+9s")) == [6.0, 8.0]
    assert times(run(TWO, "static", requests=2, losses="0@1.2s+2.8s,1@1.5s+9s")) == [6.1, 8.1]


def test_all_dead_for_good():
    found = run(TWO, requests=3, losses="0@1s,1@1.5s")

    assert found.outcome.tolist() == [FAILED] * 3
    assert found.throughput_hz == 0.0


def test_a_request_on_which_two_stages_died_fails():
    found = run([[1.0, 1.0]] * 3, requests=3, in_flight=1, losses="0@1s,1@2.5s")

    assert found.outcome.tolist() == [FAILED, ANSWERED, ANSWERED]
    assert times(found)[1:] == [4.5, 6.5]


def test_a_short_hang_only_costs_its_time():
    found = run(TWO, requests=2, losses="hang:0@0.5s+1s")

    assert times(found) == [3.0, 2.0]
    assert found.losses[0].noticed_s == math.inf
    assert found.attempts.sum() == 0


@pytest.mark.parametrize(("lasts", "answered_s"), [("3s", [4.0, 2.0, 6.0]), ("1.2s", [3.2, 2.0, 5.2])])
def test_the_first_answer_wins_over_a_stage_that_hung(lasts, answered_s):
    """Taken for lost after half of what r0 should take, at 1.5: stage 1 begins with it at 2.

    Stage 0 has 1.5 s left to do when it goes on: at 3.5, which is too late, or at 1.7, which is not. The other answer
    is dropped either way.
    """
    found = run(TWO, requests=3, losses=f"hang:0@0.5s+{lasts}", hang_factor=0.5)

    assert times(found) == answered_s
    assert found.attempts.tolist() == [1, 0, 0]
    assert (found.outcome == ANSWERED).all()


def test_an_attempt_that_is_out_of_date_is_not_sent_again():
    """As above, but stage 0 dies over its old attempt while stage 1 is at the new one."""
    found = run(TWO, requests=3, losses="hang:0@0.5s+1.2s,0@2.5s", hang_factor=0.5)

    assert times(found) == [4.0, 2.0, 6.0]
    assert found.attempts.tolist() == [1, 0, 0]


def test_a_stage_that_waits_for_a_place_at_a_dead_one_gives_its_request_back():
    """Plan 1|1; stage 1 takes 3 s. When it dies at 3.5 with r0 and r1, r2 is ready for it.

    ::

        stage 0  |r0 |r1 |r2 |     |r0     |r1     |r2     |r3     |
        stage 1      |r0       x
        t        0   1   2   3   4   5   6   7   8   9  10  11
    """
    found = run([[1.0, 1.0], [3.0, 3.0]], "static", plan=Plan((1, 1)), requests=4, losses="1@3.5s")

    assert times(found) == [5.6, 7.6, 9.6, 11.6]
    assert found.attempts.tolist() == [1, 1, 1, 0]


def test_nothing_is_left_to_a_stage_that_is_dead_however_fast_it_was():
    assert times(run([[0.5, 0.5], [2.0, 2.0]], requests=1, losses="0@0.5s")) == [4.5]


def test_another_death_while_a_plan_is_prepared_begins_the_preparation_anew():
    found = run(TWO + TWO[:1], "static", requests=1, losses="0@0.5s,1@1s", prepare_s=1.0)

    assert times(found) == [4.0]


def test_a_dead_stage_frees_only_the_place_that_it_was_copying_to():
    """A stage that had sent something on once freed that place when it died later, though another one had taken it."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        world = World.of(random.uniform(0.2, 1.0, (5, 9)), send_s=[0.2] * 10, noise="lognormal:0.3")
        found = simulate(
            world, make_policy("static"), requests=60, losses="random:9s+2s", seed=seed, detector="none", prepare_s=0.1
        )
        assert np.isin(found.outcome, (ANSWERED, FAILED)).all()


def test_nobody_hands_over_to_a_stage_that_hangs_before_it_is_noticed_but_what_waits_there():
    """Plan 1|1: r1 is put beside the hanging stage 1, and comes back from there when that is taken for lost."""
    found = run(TWO, "static", requests=2, losses="hang:1@1.5s+20s", hang_factor=2.0)

    assert found.losses[0].noticed_s == 3.5
    assert times(found) == [5.6, 7.6]
    assert found.attempts.tolist() == [1, 1]


def test_a_policy_is_started_over_the_devices_that_live():
    told = []

    class Recording:
        name = "test:Recording"

        def start(self, setting):
            told.append((setting.stage_count, str(setting.plan), setting.baseline_s[:, 0].tolist()))

        def decide(self, observation):
            assert len(observation.stage_s) == told[-1][0]
            assert observation.plan.ranges[-1][1] == 4

    simulate(
        World.of([[1.0] * 4, [2.0] * 4, [3.0] * 4]),
        Recording(),
        requests=40,
        losses="1@10s+20s",
        detector="none",
    )

    assert [(count, rates) for count, _, rates in told] == [(3, [1, 2, 3]), (2, [1, 3]), (3, [1, 2, 3])]


def test_interference_decides_over_the_plan_of_those_that_live():
    """Stage 0 is three times as slow: of the two that are left stage 1 gets most."""
    world = World.of([[1.0] * 4] * 3, slowdown={"slow": [3.0] * 4})
    events = Interference((Event(0, "slow", 0.0, 100.0),), "seconds")

    found = simulate(
        world, make_policy("static"), requests=9, interference=events, losses="2@5s", detector="none", prepare_s=0.0
    )

    assert str(found.plans[-1]) == "1|3|0"


# -- deadlines, exactly ---------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(tmp_path):
    """Four requests at one moment."""
    path = tmp_path / "arrivals.txt"
    path.write_text("0\n" * 4)
    return f"trace:{path}"


@pytest.mark.parametrize(
    ("admission", "deadline", "outcome"),
    [
        ("none", "2.5s", [ANSWERED] * 4),
        ("expired", "2.5s", [ANSWERED] * 3 + [DROPPED]),  # r2 begins at 2, and is late; r3 would begin at 3
        ("clockwork", "2.5s", [ANSWERED] * 2 + [REFUSED] * 2),
        ("clockwork", "3s", [ANSWERED] * 3 + [REFUSED]),
        ("clockwork", "2.999s", [ANSWERED] * 2 + [REFUSED] * 2),
        ("predict", "0.999s", [REFUSED] * 4),
        ("predict", "100s", [ANSWERED] * 4),
    ],
)
def test_refused_is_what_would_be_late(at_once, admission, deadline, outcome):
    """One device that takes a second."""
    found = run([[1.0]], "static", requests=4, arrivals=at_once, deadline=deadline, admission=admission)

    assert found.outcome.tolist() == outcome


def test_prediction_knows_who_is_ahead_and_how_slow_a_stage_is(at_once):
    """A device three times as slow as told at first: after the first request that is known."""
    world = World.of([[1.0]], slowdown={"slow": [3.0]})
    events = Interference((Event(0, "slow", 0.0, 1000.0),), "seconds")
    found = {}
    for admission in ("clockwork", "predict"):
        run_ = simulate(
            world,
            make_policy("static"),
            requests=200,
            arrivals="poisson:0.5",
            interference=events,
            deadline="8s",
            admission=admission,
            detector="none",
        )
        found[admission] = run_
        late = (run_.outcome == ANSWERED) & (run_.finished_s > run_.deadline_s)
        assert late[20:].sum() == 0
        assert (run_.outcome == REFUSED).sum() > 20
        assert (run_.outcome == ANSWERED).sum() > 80


def test_what_cannot_be_in_time_any_more_is_dropped_before_the_next_stage():
    """Plan 1|1; the first stage takes 5 s in place of 1, and the second is spared."""
    world = World.of(TWO, slowdown={"slow": [5.0, 5.0]})
    events = Interference((Event(0, "slow", 0.0, 4.0),), "seconds")

    found = simulate(
        world,
        make_policy("static"),
        requests=2,
        interference=events,
        deadline="4.9s",
        admission="clockwork",
        detector="none",
    )

    assert found.outcome.tolist()[0] == DROPPED  # at 4.2, with 1 s to go


def test_a_deadline_in_undisturbed_latencies():
    world = World.of(TWO, send_s=[0.1, 0.2, 0.4], receive_s=[0.01, 0.02, 0.04])

    found = simulate(world, make_policy("static"), requests=1, deadline="2x", detector="none")

    assert found.deadline_s.tolist() == pytest.approx([5.54])
    assert times(found) == [2.77]  # which is what one request alone takes
    assert undisturbed_s(world, found.plans[0]) == pytest.approx(2.77)


# -- whatever happens -----------------------------------------------------------------------------------------------

losses = st.lists(
    st.tuples(
        st.integers(0, 3), st.floats(0.0, 30.0), st.one_of(st.just(math.inf), st.floats(0.01, 15.0)), st.booleans()
    ),
    max_size=5,
)


def listed(drawn):
    kept = []
    for device, at_s, for_s, hangs in drawn:
        loss = Loss(device, at_s, for_s, hangs and for_s < math.inf)
        if not any(o.device == device and loss.at_s < o.back_s and o.at_s < loss.back_s for o in kept):
            kept.append(loss)
    return Losses(tuple(kept))


@settings(max_examples=100, deadline=None)
@given(
    losses,
    st.sampled_from(["relay", "static", "lls", "filter"]),
    st.sampled_from(["closed", "closed:2", "poisson:1.5x"]),
    st.sampled_from([("", "none"), ("3x", "none"), ("3x", "expired"), ("3x", "clockwork"), ("3x", "predict")]),
    st.sampled_from([0.0, 0.3]),
    st.floats(0.2, 10.0),
    st.integers(0, 3),
)
def test_every_request_is_answered_once_or_refused(drawn, policy, arrivals, limit, notice_s, hang_factor, seed):
    random = np.random.default_rng(seed)
    world = World.of(
        random.uniform(0.2, 1.0, (4, 5)),
        send_s=random.uniform(0, 0.1, 6),
        receive_s=random.uniform(0, 0.1, 6),
        slowdown={"slow": [3.0] * 5},
        noise="lognormal:0.2",
    )
    events = Interference((Event(0, "slow", 5.0, 20.0), Event(2, "slow", 12.0, 40.0)), "seconds")

    found = simulate(
        world,
        make_policy(policy),
        requests=30,
        interference=events,
        arrivals=arrivals,
        losses=listed(drawn),
        deadline=limit[0] or None,
        admission=limit[1],
        crash_notice_s=notice_s,
        hang_factor=hang_factor,
        seed=seed,
    )

    answered = found.outcome == ANSWERED
    assert set(found.outcome.tolist()) <= {ANSWERED, REFUSED, DROPPED, FAILED}
    assert (np.isfinite(found.finished_s) == answered).all()
    assert (found.latency_s[answered] > 0).all()
    if limit[1] == "none":
        assert not np.isin(found.outcome, (REFUSED, DROPPED)).any()
    gone = sum(seen.loss.for_s == math.inf for seen in found.losses)
    if gone < 4 and len(found.losses) < 2:
        assert not (found.outcome == FAILED).any()
    assert all(sum(plan) == 5 for plan in found.plans)


@pytest.mark.parametrize("policy", ["relay", "static", "lls", "filter"])
@pytest.mark.parametrize("arrivals", ["closed", "poisson:0.8x"])
def test_without_losses_and_with_deadlines_that_are_far_away_all_is_as_before(policy, arrivals):
    """The relay to the bit; what plans drive, which another mechanism simulates else, to 1e-9 s."""
    world = World.from_timings(load_timings("resnet50"), devices=4, noise="lognormal:0.1")
    scenarios = load_timings("resnet50").scenarios
    events = Interference(
        tuple(Event(k % 4, scenarios[k % len(scenarios)], 0.7 + 1.3 * k, 2.1 + 1.7 * k) for k in range(8)), "seconds"
    )
    options = {"requests": 500, "interference": events, "arrivals": arrivals, "seed": 3}

    before = simulate(world, make_policy(policy), **options)
    after = simulate(world, make_policy(policy), deadline="1000x", **options)

    if policy == "relay":
        assert after.finished_s.tobytes() == before.finished_s.tobytes()
        assert after.submitted_s.tobytes() == before.submitted_s.tobytes()
    np.testing.assert_allclose(after.finished_s, before.finished_s, rtol=1e-9)
    np.testing.assert_allclose(after.submitted_s, before.submitted_s, rtol=1e-9)
    assert [(at, made.plan, made.kind) for at, made in after.decisions] == [
        (at, made.plan, made.kind) for at, made in before.decisions
    ]
    assert after.changes == before.changes
    assert after.plans == before.plans


def test_the_same_seed_gives_the_same_losses_for_every_policy():
    world = World.of([[0.1] * 6] * 3)
    found = [
        simulate(world, make_policy(policy), requests=200, losses="random:4s+1s", seed=5, detector="none")
        for policy in ("relay", "static", "relay")
    ]

    assert found[0].finished_s.tobytes() == found[2].finished_s.tobytes()
    common = min(len(run_.losses) for run_ in found)
    assert common > 3
    assert [seen.loss for seen in found[0].losses][:common] == [seen.loss for seen in found[1].losses][:common]


# -- recovery -------------------------------------------------------------------------------------------------------


def test_recovery_is_the_time_until_the_others_do_what_they_can():
    """Plan 1|1, 1 s each; stage 1 dies at 20.5. Stage 0 is free of an old request at 21, and takes 2 s for each."""

    def again(requests, losses, *, arrivals="", quiet=False):
        assert quiet
        return run(TWO, "static", requests=requests, losses=losses)

    assert steady_hz(again(100, Losses((Loss(1, 0.0),)), quiet=True)) == pytest.approx(0.5)
    found = run(TWO, "static", requests=60, losses="1@20.5s")
    # Answers at 20, 23, 25 ..: 8 from the one at 20 on take 17 s, 0.94 of what stage 0 allows. That is no dip.
    assert np.sort(found.finished_s)[18:22].tolist() == [20.0, 23.0, 25.0, 27.0]
    assert recoveries_s(found, again, devices=2) == (0.0,)
    # With 5 s to prepare answers are at 20, 27.5, 29.5 ..: 0.75 from the one at 20 on, 1 from the next one on.
    found = run(TWO, "static", requests=60, losses="1@20.5s", prepare_s=5.0)
    assert recoveries_s(found, again, devices=2) == (7.0,)


def test_recovery_is_not_known_where_the_device_is_back_too_early():
    found = run(TWO, "static", requests=60, losses="1@20.5s+4s")

    (recovery_s,) = recoveries_s(found, lambda n, gone, **_: run(TWO, "static", requests=n, losses=gone), devices=2)

    assert math.isnan(recovery_s)


# -- texts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1e6), st.floats(1e-6, 1e6), st.booleans()), min_size=1))
def test_losses_print_and_parse(drawn):
    made = listed(drawn)
    assert Losses.parse(str(made)) == made


def test_losses_at_random_print_and_parse():
    for text in ("random:60s+2s", "3@10s,hang:random:0.5s+2s"):
        assert str(Losses.parse(text)) == text
    assert Losses.parse(" 3@1min , random:500ms+2s") == Losses.parse("3@60s,random:0.5s+2s")
    moments = list(itertools.islice(Losses.parse("random:10s+2s,1@5s").moments(devices=3, seed=1), 3000))
    assert moments == sorted(moments, key=lambda loss: loss.at_s)
    own = [loss for loss in moments if loss.device == 2]
    lived_s = [after.at_s - before.back_s for before, after in itertools.pairwise(own)]
    assert np.mean(lived_s) == pytest.approx(10, rel=0.1)
    assert np.mean([loss.for_s for loss in own]) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "losses '' are none; write 3@10s"),
        ("3", "loss '3': a device's number, @ and a time are needed; write"),
        ("x@1s", "loss 'x@1s': a device's number"),
        ("3@1", "loss '3@1': '1' is no time; write a number and its unit"),
        ("3@1s+", "loss '3@1s.': '' is no time"),
        ("3@1s+0s", "loss 3@1s.0s: a device is 0 or more, its loss at 0 s or later, for more than 0 s"),
        ("hang:3@1s", "loss hang:3@1s: say for how long it stands still"),
        ("3@1s,3@5s", "loss 3@5s begins while the device is lost already: 3@1s; leave one out"),
        ("random:1s", "loss 'random:1s': '' is no time"),
        ("random:0s+1s", "loss 'random:0s.1s': mean times are above 0"),
    ],
)
def test_losses_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=message):
        Losses.parse(text)


@pytest.mark.parametrize("text", ["3", "x", "0x", "-1s", "nanx", "infs", "0ms"])
def test_deadlines_that_make_no_sense(text):
    with pytest.raises(ValueError, match=r"deadline .*(write a time|give a time)"):
        Deadline.parse(text)


def test_seconds_print_and_parse():
    for value in (10.0, 0.25, 1e-05, 1e16, 0.1 + 0.2):
        assert parse_seconds(seconds_text(value)) == value


def test_a_rate_in_peaks():
    assert Arrivals.parse("poisson:2x").at_peak(10.0).rate_hz == 20.0
    assert Arrivals.parse("poisson:2").at_peak(10.0).rate_hz == 2.0
    with pytest.raises(ValueError, match="arrivals 'poisson:x'"):
        Arrivals.parse("poisson:x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": "2@1s"}, "loss 2@1s is of device 2; there are 2, counted from 0"),
        ({"admission": "predict"}, "admission 'predict' means nothing without a deadline"),
        ({"deadline": "3x", "admission": "fifo"}, "admission 'fifo' is not known; write none, expired"),
        ({"deadline": "3x", "serial_trials": True}, "trials are not serial"),
        ({"losses": "0@1s", "hang_factor": 0.0}, "hang_factor=0.0"),
    ],
)
def test_runs_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        run(TWO, requests=2, **options)
