"""Policies static, lls, odin, oracle: exact schedules of plans, restarts, what cannot be moved, text forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import examples

from odin.partitioner.balance.exact import stage_times
from odin.partitioner.plan import Plan
from odin.partitioner.policies import (
    POLICIES,
    Decision,
    DelayedOraclePolicy,
    LlsPolicy,
    Observation,
    OdinPolicy,
    OraclePolicy,
    Policy,
    StaticPolicy,
    make_policy,
)
from odin.partitioner.policies.exploration import Trial, shift_layer, transfer_s
from odin.partitioner.policies.lls import utilisation
from odin.partitioner.policies.oracle import plan_count, sweep_order
from odin.testing import drive_policy as drive
from odin.testing import setting_for, slowed

SEARCHING = ["lls", "odin:alpha=2", "odin:alpha=10", "oracle"]
NINE = np.ones((3, 9))  # three equal stages, nine layers of one second
SIX = np.ones((2, 6))


def all_plans(stages, layers):
    for inner in itertools.combinations_with_replacement(range(layers + 1), stages - 1):
        yield Plan(last - first for first, last in itertools.pairwise((0, *inner, layers)))


def bottleneck(plan, times_s, send_s=None, receive_s=None):
    return max(stage_times(Plan(plan), times_s, send_s, receive_s))


def seen(plan, stage_s, *, changed=(), age=100, true_s=None, interval_s=math.nan, request=1):
    """One observation, by hand."""
    stages = len(stage_s)
    flags = np.zeros(stages, dtype=bool)
    flags[list(changed)] = True
    return Observation(
        request=request,
        plan=Plan(plan),
        stage_s=np.array(stage_s, dtype=float),
        layer_s=np.full(sum(plan), np.nan),
        interval_s=interval_s,
        changed=flags,
        age=np.full(stages, age),
        noise=np.zeros(stages),
        true_s=true_s,
    )


class Scripted:
    """Moves to given plans with given requests."""

    name = "scripted"

    def __init__(self, plans):
        self._plans = plans

    def start(self, setting):
        pass

    def decide(self, observation):
        plan = self._plans.get(observation.request)
        return None if plan is None else Decision(Plan(plan), "move", "script")


# The stand-in for a pipeline


def test_stand_in_delays_decisions_by_what_is_under_way():
    table = []
    run = drive(
        Scripted({51: (4, 2)}),
        SIX,
        (3, 3),
        changes={50: slowed(SIX, {1: 2.0})},
        requests=60,
        in_flight=3,
        flag_delay=1,
        watch=lambda seen, said: table.append((str(seen.plan), *seen.stage_s, *seen.changed, *seen.age, said)),
    )
    decision = run.decisions[0][1]
    assert run.decisions == [(51, decision)]
    assert table[48:54] == [
        ("3|3", 3.0, 3.0, False, False, 49, 49, None),
        ("3|3", 3.0, 6.0, False, False, 50, 50, None),
        ("3|3", 3.0, 6.0, False, True, 51, 2, decision),
        ("3|3", 3.0, 6.0, False, False, 52, 3, None),
        ("3|3", 3.0, 6.0, False, False, 53, 4, None),
        ("4|2", 4.0, 4.0, False, False, 54, 5, None),
    ]
    # The first request fills the pipeline; then one every 3 seconds, every 6, every 4.
    assert run.finished_s[0] == 6.0
    assert np.diff(run.finished_s)[[0, 47, 48, 51, 58]].tolist() == [3.0, 3.0, 6.0, 6.0, 4.0]


def test_stand_in_sees_nothing_of_a_stage_without_layers():
    changes = {20: slowed(SIX, {1: 2.0})}
    run = drive(Scripted({10: (6, 0), 30: (3, 3)}), SIX, (3, 3), changes=changes, requests=50, flag_delay=1)
    assert run.flagged == [(34, (1,))]  # 31 and 32 ran under 6|0, 33 and 34 under 3|3
    run = drive(Scripted({10: (6, 0), 30: (3, 3)}), SIX, (3, 3), changes={**changes, 25: SIX}, requests=50)
    assert run.flagged == []  # over before anybody saw it


def test_stand_in_serves_one_request_after_the_other_when_one_is_in_flight():
    run = drive(Scripted({}), SIX, (4, 2), requests=4, in_flight=1, send_s=[0, 0, 0, 0, 0.5, 0, 0])
    assert run.finished_s.tolist() == [6.5, 13.0, 19.5, 26.0]


def test_stand_in_has_the_same_noise_whatever_the_policy_does():
    options = {"requests": 30, "noise": [0.1, 0.3], "layer_noise": 0.05, "seed": 7}
    still = drive(Scripted({}), SIX, (3, 3), **options)
    moved = drive(Scripted({5: (4, 2), 15: (3, 3)}), SIX, (3, 3), **options)
    assert still.finished_s[:7].tolist() == moved.finished_s[:7].tolist()
    assert np.diff(still.finished_s)[-5:] == pytest.approx(np.diff(moved.finished_s)[-5:])


# Trials


def test_shift_moves_one_layer_and_the_boundaries_between():
    assert shift_layer(Plan((3, 3, 3)), 0, 2) == Plan((2, 3, 4))
    assert shift_layer(Plan((3, 3, 3)), 2, 0) == Plan((4, 3, 2))
    assert shift_layer(Plan((1, 0, 2)), 0, 1) == Plan((0, 1, 2))


def test_shift_without_a_layer_to_give_is_none():
    assert shift_layer(Plan((0, 9)), 0, 1) is None
    assert shift_layer(Plan((5, 4)), 1, 1) is None


def test_trial_counts_its_own_plan_and_no_more_than_it_needs():
    trial = Trial(Plan((2, 1)), 2, np.array([0.5, 0.0]))
    for plan, stage_s in [((1, 2), [9, 9]), ((2, 1), [1, 4]), ((1, 2), [9, 9]), ((2, 1), [5, 2]), ((2, 1), [7, 7])]:
        trial.add(seen(plan, stage_s, interval_s=6.0))
    assert trial.full
    assert trial.stage_s.tolist() == [3.5, 3.0]
    assert trial.bottleneck_s == (4.0 + 5.5) / 2  # the mean of the slowest, not the slowest of the means
    assert trial.interval_s == 6.0


def test_trial_without_a_known_interval_takes_the_slowest_stage():
    trial = Trial(Plan((2, 1)), 1, np.zeros(2))
    trial.add(seen((2, 1), [1, 4]))
    assert trial.interval_s == 4.0


def test_transfers_are_those_at_the_cuts_of_the_plan():
    setting = setting_for(NINE, (3, 0, 6), send_s=np.arange(10), receive_s=100.0 * np.arange(10))
    assert transfer_s(setting, Plan((3, 0, 6))).tolist() == [0 + 3, 300 + 3, 300 + 9]


# All of them


@pytest.mark.parametrize("name", ["static", "lls", "odin", "oracle"])
def test_nothing_is_tried_while_no_change_is_detected(name):
    run = drive(make_policy(name), NINE, (5, 2, 2), requests=100, noise=0.1, seed=3)
    assert run.moves == 0


@pytest.mark.parametrize("name", POLICIES)
def test_one_stage_never_moves(name):
    calm = np.ones((1, 4))
    live = name != "delayed-oracle"
    changes = {10: slowed(calm, {0: 3.0}), 40: calm}
    run = drive(make_policy(name), calm, (4,), changes=changes, requests=60, clairvoyant=not live)
    assert run.flagged == [(10, (0,)), (40, (0,))]
    assert run.moves == 0


@pytest.mark.parametrize("name", ["lls", "odin", "oracle", "delayed-oracle"])
def test_a_policy_that_was_not_started_says_so(name):
    with pytest.raises(ValueError, match=rf"policy {name}.* was not started; call start\(setting\)"):
        make_policy(name).decide(seen((3, 3), [3, 3], true_s=SIX))


@pytest.mark.parametrize("name", SEARCHING)
def test_a_setting_whose_plan_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match=r"plan 3\|3 spreads 6 layers, the model has 9"):
        make_policy(name).start(setting_for(np.ones((2, 9)), (3, 3)))


@st.composite
def scenes(draw):
    stages, layers = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    calm = random.integers(0, 9, (stages, layers)).astype(float)
    changes = {}
    for request in random.integers(2, 150, draw(st.integers(1, 6))):
        changes[int(request)] = times = calm.copy()
        times[random.integers(stages)] *= random.choice([0.0, 1.0, 1.5, 3.0])
        if random.random() < 0.2:
            times[random.integers(stages)] = math.inf
    return {
        "baseline_s": calm,
        "plan": Plan(np.bincount(np.sort(random.integers(0, stages, layers)), minlength=stages)),
        "changes": changes,
        "send_s": random.integers(0, 3, layers + 1) / 2,
        "requests": 170,
        "in_flight": draw(st.integers(1, 8)),
        "noise": draw(st.sampled_from([0.0, 0.1, 0.5])),
        "flag_delay": draw(st.integers(0, 5)),
        "false_alarms": {int(request): (int(random.integers(stages)),) for request in random.integers(2, 200, 3)},
        "seed": 1,
    }


@settings(max_examples=examples(40))
@given(scenes(), st.sampled_from(["lls", "odin:alpha=2,trial=1", "odin", "oracle:trial=1", "lls:trial=2"]))
def test_whatever_happens_answers_are_plans_that_fit_and_differ(scene, name):
    drive(make_policy(name), **scene)  # asserts it


@settings(max_examples=examples(30))
@given(scenes(), st.sampled_from(["oracle", "delayed-oracle", "odin", "lls"]))
def test_whatever_happens_when_the_truth_is_known(scene, name):
    drive(make_policy(name), clairvoyant=True, **scene)


@pytest.mark.parametrize("name", ["lls", "odin", "oracle"])
def test_a_second_start_forgets_the_first(name):
    policy = make_policy(name)
    options = {"changes": {20: slowed(NINE, {1: 2.5})}, "requests": 37}
    first = drive(policy, NINE, (3, 3, 3), **options)  # ends in the middle of an exploration
    assert drive(policy, NINE, (3, 3, 3), **options).decisions == first.decisions
    assert first.moves > 0


# Static


def test_static_never_moves():
    run = drive(StaticPolicy(), SIX, (3, 3), changes={10: slowed(SIX, {1: 9.0})}, requests=60, clairvoyant=True)
    assert run.flagged == [(10, (1,))]
    assert run.moves == 0


# Least-loaded scheduling


def test_utilisation_is_the_executing_part_of_the_time():
    assert utilisation(np.array([2.0, 4.0, 5.0, 0.0]), 4.0).tolist() == [0.5, 1.0, 1.0, 0.0]
    assert utilisation(np.array([0.0, 0.0]), 0.0).tolist() == [0.0, 0.0]
    assert utilisation(np.array([math.inf, 2.0]), math.inf).tolist() == [1.0, 0.0]


def test_lls_moves_until_throughput_falls_and_undoes_the_last_move():
    # 3|3 takes 3, 6.6; 4|2 takes 4, 4.4; 5|1 takes 5, 2.2
    run = drive(LlsPolicy(trial=1), SIX, (3, 3), changes={10: slowed(SIX, {1: 2.2})}, requests=60, in_flight=1)
    assert run.plans_tried == ["4|2", "5|1", "4|2"]
    assert run.kinds == ["trial", "trial", "undo"]
    assert [request for request, _ in run.decisions] == [10, 11, 12]


def test_lls_ends_when_all_stages_are_as_busy():
    # 3|3 takes 3, 6; 4|2 takes 4, 4
    run = drive(LlsPolicy(), SIX, (3, 3), changes={10: slowed(SIX, {1: 2.0})}, requests=60)
    assert run.plans_tried == ["4|2"]


def test_lls_ends_when_it_would_go_in_circles():
    # 6 3 3 -> 4 4 3 -> 2 4 4 -> 4 3 4 -> 2 4 4 was tried
    changes = {10: slowed(NINE, {0: 2.0})}
    run = drive(LlsPolicy(), NINE, (3, 3, 3), changes=changes, requests=90)
    assert run.plans_tried == ["2|4|3", "1|4|4", "2|3|4"]
    assert run.kinds == ["trial"] * 3


def test_lls_goes_by_the_times_where_all_stages_are_fully_utilised():
    # Completions in bursts: no stage seems to wait.
    policy = LlsPolicy(trial=1)
    policy.start(setting_for(NINE, (3, 3, 3)))
    assert str(policy.decide(seen((3, 3, 3), [4, 6, 3], changed=[1], age=1, interval_s=0.1)).plan) == "3|2|4"


def test_lls_takes_layers_across_the_stages_between():
    calm = np.array([[1.0] * 9, [1.0] * 9, [0.25] * 9])
    changes = {10: slowed(calm, {0: 2.0})}
    run = drive(LlsPolicy(trial=2), calm, (3, 3, 3), changes=changes, requests=17, in_flight=1)
    assert run.plans_tried[:2] == ["2|3|4", "1|3|5"]  # 6 3 .75 -> 4 3 1 -> 2 3 1.25


def test_lls_judges_by_requests_under_the_new_plan_only():
    options = {"changes": {50: slowed(SIX, {1: 2.2})}, "requests": 100, "in_flight": 4}
    run = drive(LlsPolicy(trial=2), SIX, (3, 3), flag_delay=1, **options)
    # 50 and 51 judge 3|3; 52 to 54 ran under it still; 55 and 56 judge 4|2; 60 and 61 judge 5|1.
    assert [(request, str(decision.plan)) for request, decision in run.decisions] == [
        (51, "4|2"),
        (56, "5|1"),
        (61, "4|2"),
    ]
    # Detected with the first request: the requests before it were under other conditions, so one more is waited for.
    run = drive(LlsPolicy(trial=2), SIX, (3, 3), flag_delay=0, **options)
    assert [request for request, _ in run.decisions] == [51, 56, 61]
    run = drive(LlsPolicy(trial=2), SIX, (3, 3), flag_delay=5, **options)
    assert [request for request, _ in run.decisions] == [55, 60, 65]


def test_lls_goes_home_when_the_load_leaves():
    changes = {10: slowed(SIX, {1: 2.2}), 100: SIX}
    run = drive(LlsPolicy(), SIX, (3, 3), changes=changes, requests=200)
    assert run.plans_tried == ["4|2", "5|1", "4|2", "3|3"]
    assert run.final_plan == (3, 3)


def test_lls_counts_transfers():
    # Sending at cut 4 costs 9 seconds: 4|2 takes 13 instead of 4 and is undone.
    send_s = np.array([0, 0, 0, 0, 9, 0, 0])
    run = drive(LlsPolicy(), SIX, (3, 3), changes={10: slowed(SIX, {1: 2.0})}, requests=60, send_s=send_s)
    assert run.plans_tried == ["4|2", "3|3"]


@settings(max_examples=examples(50))
@given(st.integers(0, 2**32 - 1))
def test_lls_never_ends_below_where_it_began(seed):
    random = np.random.default_rng(seed)
    calm = random.integers(1, 9, (3, 7)).astype(float)  # whole seconds, so no two sums are within 1%
    times = slowed(calm, {int(random.integers(3)): 2.0})
    run = drive(LlsPolicy(trial=1), calm, (2, 3, 2), changes={5: times}, requests=300, in_flight=2)
    assert bottleneck(run.final_plan, times) <= bottleneck((2, 3, 2), times)
    assert run.decisions[-1][0] < 290 if run.decisions else True  # it came to an end


# The exploration of the ODIN paper


def test_odin_schedule_with_a_plateau():
    # 6 3 3 -> 4 4 3 better -> 2 4 4 equal, again the same way -> 0 4 5 worse: two failures, back to the best
    run = drive(
        OdinPolicy(alpha=2, trial=1),
        NINE,
        (3, 3, 3),
        changes={10: slowed(NINE, {0: 2.0})},
        requests=60,
        in_flight=1,
    )
    assert run.plans_tried == ["2|4|3", "1|4|4", "0|4|5", "2|4|3"]
    assert run.kinds == ["trial", "trial", "trial", "settle"]
    assert [request for request, _ in run.decisions] == [10, 11, 12, 13]


def test_odin_with_more_patience_goes_on_from_where_it_failed():
    run = drive(OdinPolicy(alpha=3), NINE, (3, 3, 3), changes={10: slowed(NINE, {0: 2.0})}, requests=120)
    assert run.plans_tried == ["2|4|3", "1|4|4", "0|4|5", "1|4|4", "2|4|3"]
    assert run.kinds[-1] == "settle"


def test_odin_goes_to_the_lighter_side_and_stays_if_it_is_at_the_best():
    # 4 6 3: the right is lighter -> 4 4 4 better -> 3 6 4 worse -> left of the slowest is lighter: 4 4 4, the best
    calm = np.ones((3, 10))
    run = drive(OdinPolicy(alpha=2), calm, (4, 3, 3), changes={10: slowed(calm, {1: 2.0})}, requests=120)
    assert run.plans_tried == ["4|2|4", "3|3|4", "4|2|4"]
    assert run.kinds == ["trial"] * 3


def test_odin_prefers_the_left_of_equal_sides_and_the_nearest_of_equal_stages():
    calm = np.ones((5, 20))
    run = drive(OdinPolicy(alpha=1), calm, (4, 4, 4, 4, 4), changes={10: slowed(calm, {2: 2.0})}, requests=30)
    assert run.plans_tried[0] == "4|5|3|4|4"


def test_odin_with_alpha_one_undoes_the_first_failure():
    # 3 6.6 -> 4 4.4 better -> 5 2.2 worse
    run = drive(OdinPolicy(alpha=1), SIX, (3, 3), changes={10: slowed(SIX, {1: 2.2})}, requests=60)
    assert run.plans_tried == ["4|2", "5|1", "4|2"]
    assert run.kinds == ["trial", "trial", "settle"]


def test_odin_starts_over_when_another_change_comes_in_between():
    # The load goes from stage 0 to stage 2 while 1|4|4 is on trial: 1 4 8 from there.
    changes = {10: slowed(NINE, {0: 2.0}), 12: slowed(NINE, {2: 2.0})}
    run = drive(OdinPolicy(alpha=2, trial=1), NINE, (3, 3, 3), changes=changes, requests=60, in_flight=1)
    assert run.flagged == [(10, (0,)), (12, (0, 2))]
    assert run.plans_tried == ["2|4|3", "1|4|4", "2|4|3", "3|4|2", "4|3|2", "5|2|2", "3|4|2"]
    assert run.kinds[-1] == "settle"


def test_odin_starts_over_from_the_plan_in_force_not_from_the_one_last_seen():
    policy = OdinPolicy(alpha=2, trial=1)
    policy.start(setting_for(NINE, (3, 3, 3)))
    assert str(policy.decide(seen((3, 3, 3), [6, 3, 3], changed=[0], age=1)).plan) == "2|4|3"
    # The last request under 3|3|3 brings another change; 2|4|3 is in force and must be measured first.
    assert policy.decide(seen((3, 3, 3), [3, 3, 6], changed=[0, 2], age=1)) is None
    assert str(policy.decide(seen((2, 4, 3), [2, 4, 6])).plan) == "3|4|2"


def test_odin_ends_when_somebody_else_moves():
    policy = OdinPolicy(alpha=2, trial=2)
    policy.start(setting_for(NINE, (3, 3, 3)))
    assert policy.decide(seen((3, 3, 3), [6, 3, 3])) is None
    assert str(policy.decide(seen((3, 3, 3), [6, 3, 3], changed=[0], age=2)).plan) == "2|4|3"
    assert policy.decide(seen((2, 4, 3), [4, 4, 3])) is None  # half of the trial
    assert policy.decide(seen((9, 0, 0), [18, 0, 0])) is None  # not ours
    assert policy.decide(seen((2, 4, 3), [4, 4, 3])) is None  # nor is this: the trial is over
    assert policy.decide(seen((9, 0, 0), [18, 0, 0])) is None
    assert policy.decide(seen((9, 0, 0), [18, 0, 0])) is None
    assert str(policy.decide(seen((9, 0, 0), [18, 0, 0], changed=[0], age=2)).plan) == "8|1|0"


def test_odin_starts_again_after_a_decision_that_was_not_carried_out():
    policy = OdinPolicy(alpha=2, trial=1)
    policy.start(setting_for(NINE, (3, 3, 3)))
    assert str(policy.decide(seen((3, 3, 3), [6, 3, 3], changed=[0], age=1)).plan) == "2|4|3"
    for request in range(2, 200):
        assert policy.decide(seen((3, 3, 3), [6, 3, 3], request=request)) is None
    again = seen((3, 3, 3), [6, 3, 3], changed=[0], age=1, request=200)
    assert str(policy.decide(again).plan) == "2|4|3"


def test_odin_empties_a_dead_stage():
    # 3 3 dead -> 3|4|2 -> 4|4|1 -> 4|5|0: 4 5 0; -> 4|4|1 worse -> 4|5|0
    changes = {10: slowed(NINE, {2: math.inf})}
    run = drive(OdinPolicy(alpha=2), NINE, (3, 3, 3), changes=changes, requests=120)
    assert run.plans_tried == ["3|4|2", "4|4|1", "4|5|0", "4|4|1", "4|5|0"]


@pytest.mark.parametrize("name", ["odin:trial=1", "lls:trial=1", "oracle:trial=1"])
def test_infinite_times_are_only_very_slow(name):
    policy = make_policy(name)
    policy.start(setting_for(SIX, (3, 3)))
    plan, decision = Plan((3, 3)), None
    changed = [1]
    for _ in range(30):
        stage_s = [plan[0], math.inf if plan[1] else 0.0]
        decision = policy.decide(seen(plan, stage_s, changed=changed, age=1, interval_s=max(stage_s)))
        plan = plan if decision is None else decision.plan
        changed = []
    assert plan == (6, 0)


def test_odin_gives_layers_to_an_empty_stage():
    calm = np.ones((3, 6))
    run = drive(OdinPolicy(alpha=2), calm, (3, 0, 3), changes={10: slowed(calm, {0: 2.0})}, requests=120)
    assert run.plans_tried[0] == "2|1|3"
    assert bottleneck(run.final_plan, slowed(calm, {0: 2.0})) == 3.0


def test_odin_takes_differences_below_one_percent_for_equal():
    # Layer 3 takes next to nothing: its move is a plateau, which the second move the same way leaves.
    # 3 6.002 -> 3.001 6 equal -> 4.001 4 better -> 3.001 6 worse -> 4.001 4, the best: equal
    calm = np.array([[1.0, 1.0, 1.0, 0.001, 1.0, 1.0, 1.0]] * 2)
    run = drive(OdinPolicy(alpha=2), calm, (3, 4), changes={10: slowed(calm, {1: 2.0})}, requests=120)
    assert run.plans_tried == ["4|3", "5|2", "4|3", "5|2"]
    assert run.decisions[1][1].why == "as fast as the best, one more the same way"
    assert run.kinds == ["trial"] * 4


@settings(max_examples=examples(50))
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 10]))
def test_odin_settles_on_the_best_plan_it_has_seen(seed, alpha):
    random = np.random.default_rng(seed)
    calm = random.integers(1, 9, (3, 7)).astype(float)
    times = slowed(calm, {int(random.integers(3)): 2.0})
    run = drive(OdinPolicy(alpha=alpha, trial=1), calm, (2, 3, 2), changes={5: times}, requests=400, in_flight=2)
    best_s = min(bottleneck(plan, times) for plan in [Plan((2, 3, 2)), *(d.plan for _, d in run.decisions)])
    assert bottleneck(run.final_plan, times) == best_s
    assert run.decisions[-1][0] < 390
    assert run.kinds.count("settle") <= 1


# Oracle


@settings(max_examples=examples(150))
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_oracle_is_as_good_as_trying_all_plans(seed, stages, layers, dead):
    random = np.random.default_rng(seed)
    times = random.integers(0, 9, (stages, layers)).astype(float)
    if dead:
        times[random.integers(stages)] = math.inf
    send_s, receive_s = random.integers(0, 4, (2, layers + 1)).astype(float)
    start = Plan(np.bincount(np.sort(random.integers(0, stages, layers)), minlength=stages))
    policy = OraclePolicy()
    policy.start(setting_for(np.ones((stages, layers)), start, send_s=send_s, receive_s=receive_s))
    decision = policy.decide(seen(start, [1.0] * stages, true_s=times))
    best_s = min(bottleneck(plan, times, send_s, receive_s) for plan in all_plans(stages, layers))
    if decision is None:
        assert bottleneck(start, times, send_s, receive_s) == best_s
    else:
        assert bottleneck(decision.plan, times, send_s, receive_s) == decision.predicted_s == best_s
        assert best_s < bottleneck(start, times, send_s, receive_s)
        assert decision.kind == "move"


def test_oracle_answers_the_request_with_which_the_change_comes():
    run = drive(
        OraclePolicy(),
        SIX,
        (3, 3),
        changes={50: slowed(SIX, {1: 2.0}), 80: SIX},
        requests=100,
        in_flight=3,
        flag_delay=None,
        clairvoyant=True,
    )
    assert [(request, str(decision.plan)) for request, decision in run.decisions] == [(50, "4|2"), (80, "3|3")]
    assert run.bottleneck_s[[48, 49, 51, 52]].tolist() == [3.0, 6.0, 6.0, 4.0]


def test_oracle_knows_its_own_decisions_though_several_are_under_way():
    slow = slowed(SIX, {1: 2.0})
    changes = {10: slow, 12: SIX, 13: slow, 14: SIX}
    run = drive(OraclePolicy(), SIX, (3, 3), changes=changes, requests=60, in_flight=8, clairvoyant=True)
    assert [(request, str(decision.plan)) for request, decision in run.decisions] == [
        (10, "4|2"),
        (12, "3|3"),
        (13, "4|2"),
        (14, "3|3"),
    ]
    assert [str(plan) for plan, _ in itertools.groupby(run.plans)] == ["3|3", "4|2", "3|3", "4|2", "3|3"]


def test_delayed_oracle_is_one_request_late():
    changes = {50: slowed(SIX, {1: 2.0}), 80: SIX}
    run = drive(DelayedOraclePolicy(), SIX, (3, 3), changes=changes, requests=100, clairvoyant=True)
    assert [(request, str(decision.plan)) for request, decision in run.decisions] == [(51, "4|2"), (81, "3|3")]


@pytest.mark.parametrize(("policy", "late"), [(OraclePolicy(), 0), (DelayedOraclePolicy(), 1)])
def test_oracles_notice_new_times_though_the_array_is_used_again(policy, late):
    policy.start(setting_for(SIX, (3, 3)))
    true_s = SIX.copy()
    assert policy.decide(seen((3, 3), [3, 3], true_s=true_s)) is None
    true_s[1] *= 2
    for _ in range(late):
        assert policy.decide(seen((3, 3), [3, 6], true_s=true_s)) is None
    assert policy.decide(seen((3, 3), [3, 6], true_s=true_s)).plan == (4, 2)


def test_oracle_corrects_the_move_of_somebody_else():
    policy = OraclePolicy()
    policy.start(setting_for(SIX, (3, 3)))
    assert policy.decide(seen((3, 3), [3, 3], true_s=SIX)) is None
    assert policy.decide(seen((5, 1), [5, 1], true_s=SIX)).plan == (3, 3)
    assert policy.decide(seen((5, 1), [5, 1], true_s=SIX)) is None  # under way still


def test_delayed_oracle_is_for_simulations():
    with pytest.raises(ValueError, match="only a simulation knows; live, use oracle"):
        drive(DelayedOraclePolicy(), SIX, (3, 3), requests=1)


def test_oracle_stays_when_another_plan_is_only_as_good():
    calm = np.ones((2, 5))
    run = drive(OraclePolicy(), calm, (2, 3), requests=20, clairvoyant=True)
    assert run.moves == 0  # 3|2 is no better


def test_oracle_has_no_answer_when_all_stages_are_dead():
    dead = slowed(SIX, {0: math.inf, 1: math.inf})
    run = drive(OraclePolicy(), SIX, (3, 3), changes={10: dead, 20: SIX}, requests=30, clairvoyant=True)
    assert run.moves == 0


def test_oracle_does_not_hide_times_that_are_no_times():
    policy = OraclePolicy()
    policy.start(setting_for(SIX, (3, 3)))
    with pytest.raises(ValueError, match=r"times_s\[1, 2\] is -1.0"):
        policy.decide(seen((3, 3), [3, 3], true_s=np.array([[1.0] * 6, [1.0, 1.0, -1.0, 1.0, 1.0, 1.0]])))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_sweep_has_every_plan_once_and_moves_one_layer_at_a_time(stages, layers):
    order = sweep_order(stage_count=stages, layer_count=layers)
    assert len(order) == plan_count(stage_count=stages, layer_count=layers)
    assert sorted(order) == sorted(all_plans(stages, layers))
    for before, after in itertools.pairwise(order):
        moved = np.repeat(np.arange(stages), before) != np.repeat(np.arange(stages), after)
        assert moved.sum() == 1


def test_live_oracle_sweeps_all_splits_and_settles_on_the_best():
    changes = {10: slowed(SIX, {1: 2.0})}
    run = drive(OraclePolicy(trial=2), SIX, (3, 3), changes=changes, requests=60, flag_delay=1)
    # The nearer end first (either here), then from beside the first plan to the other end.
    assert run.plans_tried == ["2|4", "1|5", "0|6", "4|2", "5|1", "6|0", "4|2"]
    assert run.kinds == ["trial"] * 6 + ["settle"]
    assert [request for request, _ in run.decisions] == [11, 15, 19, 23, 27, 31, 35]


def test_live_oracle_goes_to_the_nearer_end_first():
    run = drive(OraclePolicy(trial=1), SIX, (5, 1), changes={10: slowed(SIX, {0: 2.0})}, requests=60)
    assert run.plans_tried == ["6|0", "4|2", "3|3", "2|4", "1|5", "0|6", "2|4"]


def test_live_oracle_stays_if_the_last_plan_is_the_best():
    run = drive(OraclePolicy(trial=1), SIX, (3, 3), changes={10: slowed(SIX, {1: math.inf})}, requests=60)
    assert run.plans_tried == ["2|4", "1|5", "0|6", "4|2", "5|1", "6|0"]


def test_live_oracle_starts_over_with_a_new_change():
    changes = {10: slowed(SIX, {1: 2.0}), 12: slowed(SIX, {0: 2.0})}
    run = drive(OraclePolicy(trial=1), SIX, (3, 3), changes=changes, requests=60, in_flight=1)
    # 1|5 is in force when the load moves to stage 0: from there again.
    assert run.plans_tried == ["2|4", "1|5", "0|6", "2|4", "3|3", "4|2", "5|1", "6|0", "2|4"]


def test_live_oracle_finds_the_best_of_three_stages_in_noise():
    calm = np.ones((3, 6))
    times = slowed(calm, {1: 3.0})
    run = drive(OraclePolicy(), calm, (2, 2, 2), changes={10: times}, requests=600, noise=0.05, seed=5)
    assert run.moves == plan_count(stage_count=3, layer_count=6)  # all others, and back to the best
    assert run.final_plan in {(3, 1, 2), (2, 1, 3), (3, 0, 3)}
    assert bottleneck(run.final_plan, times) == 3.0


def test_a_live_sweep_of_too_many_plans_is_refused_with_the_first_request():
    calm = np.ones((4, 52))
    with pytest.raises(ValueError, match=r"52 layers on 4 stages have 26235 plans.* 1000; .*oracle:limit=26235"):
        drive(OraclePolicy(), calm, (13, 13, 13, 13), requests=1)
    drive(OraclePolicy(limit=26235), calm, (13, 13, 13, 13), requests=3)
    drive(OraclePolicy(), calm, (13, 13, 13, 13), requests=3, clairvoyant=True)  # no sweep, no limit


# Text forms


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("static", "static"),
        ("lls", "lls"),
        ("lls:trial=6", "lls:trial=6"),
        ("lls:trial=4", "lls"),
        ("odin", "odin:alpha=10"),
        ("odin:alpha=2", "odin:alpha=2"),
        (" odin: alpha = 2 , trial=8 ", "odin:alpha=2,trial=8"),
        ("oracle", "oracle"),
        ("oracle:trial=3", "oracle:trial=3"),
        ("oracle:limit=5000", "oracle:limit=5000"),
        ("oracle:limit=5000,trial=3", "oracle:trial=3,limit=5000"),
        ("delayed-oracle", "delayed-oracle"),
    ],
)
def test_text_form_reads_and_prints_back(text, name):
    policy: Policy = make_policy(text)
    assert policy.name == name
    assert type(make_policy(name)) is type(policy)
    assert make_policy(name).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"there is no policy ''; choose one of relay, static, lls, odin, filter, oracle",
        ),
        ("Odin", r"there is no policy 'Odin'"),
        ("predictive", r"^policy 'predictive' is gone; use 'filter'$"),
        ("predictive:min_gain=0.05", r"^policy 'predictive' is gone; use 'filter'$"),
        ("alpha=2", r"there is no policy 'alpha=2'"),
        ("odin:", r"'odin:': '' is not parameter=value; it has alpha=10, trial=4"),
        ("odin:2", r"'2' is not parameter=value; it has alpha=10"),
        ("odin:alpha=2,", r"'' is not parameter=value"),
        ("odin:beta=2", r"'odin:beta=2' has no parameter 'beta'; it has alpha=10, trial=4"),
        ("odin:alpha=2,alpha=3", r"sets 'alpha' twice"),
        ("odin:alpha=two", r"alpha is 'two'; write a whole number, such as 10"),
        ("odin:alpha=2.5", r"alpha is '2.5'; write a whole number"),
        ("odin:alpha=", r"alpha is ''; write a whole number"),
        ("odin:alpha=0", r"'odin:alpha=0': alpha is 0; at least 1"),
        ("odin:trial=0", r"trial is 0; a plan is judged by at least 1 request"),
        ("lls:trial=-3", r"trial is -3"),
        ("lls:alpha=3", r"has no parameter 'alpha'; it has trial=4"),
        ("oracle:limit=0", r"limit is 0"),
        ("static:trial=4", r"has no parameter 'trial'; it has none"),
        ("delayed-oracle:x=1", r"has no parameter 'x'; it has none"),
    ],
)
def test_bad_text_is_refused_naming_the_value_and_what_there_is(text, message):
    with pytest.raises(ValueError, match=message):
        make_policy(text)
