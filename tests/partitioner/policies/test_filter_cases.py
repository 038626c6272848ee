"""The filter policy in a small closed loop, case by case: what a user may expect of each."""

import math

import numpy as np
import pytest
from closed_loop import CALM, CALM4, best, bottleneck, contend, mean_s

from odin.partitioner.balance.exact import balance
from odin.partitioner.policies.base import Observation
from odin.partitioner.policies.filter import FilterPolicy
from odin.partitioner.policies.oracle import DelayedOraclePolicy
from odin.partitioner.policies.static import StaticPolicy
from odin.testing import drive_policy as drive
from odin.testing import setting_for, slowed


def run(calm=CALM, changes=None, *, requests=400, policy=None, **options):
    options = {"in_flight": 2 * len(calm), "noise": 0.05, "layer_noise": 0.05, "flag_delay": 1} | options
    return drive(policy or FilterPolicy(), calm, best(calm), changes=changes or {}, requests=requests, **options)


# -- one event ------------------------------------------------------------------------------------------------------


def missed(reason, *values):
    """A case in which the policy is not as good as it should be."""
    return pytest.param(*values, marks=pytest.mark.xfail(reason=reason, strict=True))


@pytest.mark.parametrize(
    ("calm", "factor"),
    [(calm, factor) for calm in (CALM, CALM4) for factor in (1.3, 1.5, 2.0, 3.0, 5.0)],
)
def test_there_and_back_in_few_moves(calm, factor):
    slow = slowed(calm, {1: factor})
    result = run(calm, {100: slow, 250: calm})
    assert set(result.kinds) == {"move"}
    assert result.moves <= 3
    assert sum(request > 245 for request, _ in result.decisions) == 1
    assert bottleneck(result.plans[245], slow) <= 1.05 * bottleneck(best(slow), slow)
    assert bottleneck(result.final_plan, calm) <= bottleneck(best(calm), calm) / 0.97
    # Home within 20 requests, those in the pipeline included.
    assert mean_s(result, 250 + 20, 400) <= bottleneck(best(calm), calm) / 0.97


@pytest.mark.parametrize(
    ("calm", "factor"),
    [(calm, factor) for calm in (CALM, CALM4) for factor in (1.3, 1.5, 2.0, 3.0, 5.0)],
)
def test_a_slowdown_and_its_end_are_answered_within_five_requests(calm, factor):
    result = run(calm, {100: slowed(calm, {1: factor}), 250: calm})
    assert 100 <= result.decisions[0][0] <= 104
    assert 250 <= result.decisions[-1][0] <= 254


@pytest.mark.parametrize("factor", [1.2, 1.25, 1.3, 1.4])
def test_a_small_gain_is_taken_when_conditions_last(factor):
    slow = slowed(CALM, {1: factor})
    result = run(changes={100: slow}, requests=700)
    assert mean_s(result, 500, 700) <= 1.05 * bottleneck(best(slow), slow)


@pytest.mark.parametrize("seed", range(3))
def test_a_load_that_has_the_core_by_turns_is_one_disturbance(seed):
    # A request of a few milliseconds meets one turn, two or none: on stage 1 it takes two to four times as long, and
    # one in eight as long as ever. No plan could follow that; what lasts is the mean.
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.normal([0.4, 0.95], [0.2, 0.35], (900, 2)))
    factors[rng.random(900) < 0.125, 1] = 1.0
    changes = {100 + number: slowed(CALM, dict(enumerate(pair))) for number, pair in enumerate(factors)}
    result = run(changes=changes, requests=1000, seed=seed)
    home, mean = best(CALM), slowed(CALM, dict(enumerate(factors.mean(axis=0))))
    assert result.moves <= 20
    late = bottleneck(result.final_plan, mean) / bottleneck(best(mean), mean)
    assert late <= 1.15 < 1.2 < bottleneck(home, mean) / bottleneck(best(mean), mean)


def test_the_prediction_comes_true():
    slow = slowed(CALM, {1: 2.0})
    result = run(changes={100: slow}, requests=200, noise=0.0, layer_noise=0.0, flag_delay=0)
    ((request, decision),) = result.decisions
    assert request > 100  # one slow request could be a hiccup
    assert decision.plan == best(slow)
    # An expected value, of slowdowns that are 5% apart.
    assert decision.predicted_s == pytest.approx(bottleneck(decision.plan, slow), rel=0.03)


def test_several_stages_slow_at_once():
    slow = slowed(CALM4, {0: 1.5, 1: 2.0, 3: 3.0})
    result = run(CALM4, {100: slow, 300: CALM4}, requests=500)
    assert result.moves <= 3
    assert result.decisions[0][0] <= 104
    assert bottleneck(result.decisions[0][1].plan, slow) <= 0.7 * bottleneck(best(CALM4), slow)
    assert bottleneck(result.plans[290], slow) <= 1.05 * bottleneck(best(slow), slow)
    assert bottleneck(result.final_plan, CALM4) <= bottleneck(best(CALM4), CALM4) / 0.97


def test_transfers_count():
    send = np.zeros(19)
    send[1:-1] = 4.0
    send[9] = 0.0  # the one cheap cut
    plan = balance(CALM, send_s=send).plan
    slow = slowed(CALM, {1: 2.0})
    result = drive(FilterPolicy(), CALM, plan, changes={50: slow}, requests=100, send_s=send)
    expected = balance(slow, send_s=send)
    assert result.final_plan == expected.plan
    assert result.decisions[-1][1].predicted_s == pytest.approx(expected.bottleneck_s, rel=0.03)


# -- a slowdown that changes while it reacts ------------------------------------------------------------------------


def test_worse_while_requests_under_the_old_plan_still_finish():
    first, second = slowed(CALM, {1: 1.5}), slowed(CALM, {1: 3.0})
    result = run(changes={100: first, 103: second}, requests=200)
    assert result.moves <= 3
    assert bottleneck(result.final_plan, second) <= 1.05 * bottleneck(best(second), second)
    assert result.decisions[-1][0] <= 125


def test_over_before_the_move_is_felt():
    result = run(changes={100: slowed(CALM, {1: 2.0}), 103: CALM}, requests=200)
    assert result.moves <= 2
    assert result.final_plan == best(CALM)
    assert not result.decisions or result.decisions[-1][0] <= 108


def test_the_other_stage_instead():
    second = slowed(CALM, {0: 2.0})
    result = run(changes={100: slowed(CALM, {1: 2.0}), 102: second}, requests=200)
    assert result.moves <= 3
    assert bottleneck(result.final_plan, second) <= 1.05 * bottleneck(best(second), second)


def test_a_ramp():
    ramp = {100 + 10 * step: slowed(CALM, {1: 1.0 + 0.2 * step}) for step in range(11)}
    result = run(changes=ramp, requests=300)
    assert bottleneck(result.final_plan, ramp[200]) <= 1.06 * bottleneck(best(ramp[200]), ramp[200])
    assert result.moves <= 10


def test_an_undetected_change_is_noticed_in_the_end():
    slow = slowed(CALM, {1: 1.5})
    result = run(changes={200: slow, 800: CALM}, requests=1400, flag_delay=None)
    assert 2 <= result.moves <= 4
    assert result.decisions[0][0] < 280
    assert mean_s(result, 300, 800) <= 1.05 * bottleneck(best(slow), slow)
    assert mean_s(result, 900, 1400) <= 1.05 * bottleneck(best(CALM), CALM)


@pytest.mark.parametrize("seed", range(3))
def test_a_slowdown_that_ends_soon_after_the_move_is_followed_by_the_way_back(seed):
    slow = slowed(CALM, {1: 2.0})
    result = run(changes={100: slow, 130: CALM}, requests=200, flag_delay=None, seed=seed)
    (there, _), (back, _) = result.decisions
    assert 100 <= there < 115
    assert 130 <= back <= 134


# -- quiet ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "layers", "noise"),
    [
        *((2, 18, noise) for noise in (0.05, 0.1, 0.2)),
        *((stages, layers, noise) for stages, layers in ((4, 30), (8, 52)) for noise in (0.05, 0.1)),
        missed("moves once there and back", 4, 30, 0.2),
        missed("moves once there and back", 8, 52, 0.2),
    ],
)
def test_noise_moves_nothing(stages, layers, noise):
    calm = np.tile(np.random.default_rng(stages).uniform(0.5, 1.5, layers), (stages, 1))
    result = run(calm, requests=1500, noise=noise, layer_noise=noise)
    assert result.moves == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "seed"),
    [
        *((True, seed) for seed in range(4)),
        *((False, seed) for seed in range(4)),
    ],
)
def test_wrong_baselines_lead_to_few_corrections_each_of_use(shared, seed):
    random = np.random.default_rng(seed)
    calm = np.tile(random.uniform(0.5, 1.5, 40), (5, 1))
    true = calm * random.uniform(0.75, 1.3, 40 if shared else (5, 40))
    result = run(calm, {1: true}, requests=1500, flag_delay=None, seed=seed)
    assert result.moves <= 3
    assert bottleneck(result.final_plan, true) <= bottleneck(best(calm), true)
    assert bottleneck(result.final_plan, true) <= 1.08 * bottleneck(best(true), true)


def test_stages_above_their_baselines_are_not_interference():
    true = CALM * np.random.default_rng(5).uniform(1.1, 1.4, 18)
    result = run(changes={1: true}, requests=1000, flag_delay=None)
    assert result.moves <= 1
    assert result.final_plan == best(true) or bottleneck(result.final_plan, true) <= 1.03 * bottleneck(best(true), true)


def test_hiccups_that_fool_the_detector_do_not_lead_astray():
    hiccups = {}
    for request in range(100, 1000, 100):
        hiccups |= {request: slowed(CALM, {request // 100 % 2: 5.0}), request + 1: CALM}
    result = run(changes=hiccups, requests=1200, flag_delay=0)
    static = run(changes=hiccups, requests=1200, flag_delay=0, policy=StaticPolicy())
    assert result.final_plan == best(CALM)
    assert mean_s(result, 0, 1200) <= 1.05 * mean_s(static, 0, 1200)


def test_false_alarms_move_nothing():
    alarms = {request: (request // 50 % 4,) for request in range(50, 1000, 50)}
    result = run(CALM4, requests=1000, false_alarms=alarms)
    assert result.moves <= 1


# -- a stage that should hold nothing -------------------------------------------------------------------------------


def test_a_stage_that_is_empty_by_its_baselines_is_not_visited():
    calm = np.stack([CALM[0], 40 * CALM[1]])  # a processor beside a GPU
    assert best(calm) == (18, 0)
    assert run(calm, requests=1000).moves == 0


def beside_a_gpu(factor):
    calm = np.stack([CALM[0], 40 * CALM[1]])
    slow = slowed(calm, {0: factor})
    return calm, slow, run(calm, {100: slow, 300: calm}, requests=500)


@pytest.mark.parametrize("factor", [20.0, 100.0])
def test_a_stage_that_is_empty_by_its_baselines_is_used_when_it_is_of_use(factor):
    calm, slow, result = beside_a_gpu(factor)
    assert bottleneck(result.plans[290], slow) <= 0.8 * bottleneck(best(calm), slow)
    assert result.final_plan == best(calm)


@pytest.mark.parametrize("factor", [20.0, 100.0])
def test_it_is_used_as_well_as_it_can_be(factor):
    _, slow, result = beside_a_gpu(factor)
    assert result.decisions[0][0] <= 104
    assert bottleneck(result.plans[290], slow) <= 1.05 * bottleneck(best(slow), slow)


def test_a_slow_stage_that_still_helps_keeps_its_layers():
    slow = slowed(CALM, {1: 6.0})
    result = run(changes={100: slow, 200: CALM}, requests=300)
    assert result.decisions[0][1].plan[1] > 0
    assert "probe" not in result.kinds


# -- other pipelines ------------------------------------------------------------------------------------------------


def on_different_devices():
    random = np.random.default_rng(8)
    calm = random.uniform(0.5, 1.5, (3, 30)) * np.array([[1.0], [3.0], [0.3]])
    slow = slowed(calm, {2: 3.0})
    return calm, slow, run(calm, {100: slow, 300: calm}, requests=500)


@pytest.mark.xfail(reason="4 moves, one of them between plans 0.2% apart", strict=True)
def test_different_devices_take_few_moves():
    assert on_different_devices()[-1].moves <= 3


def test_different_devices_with_layers_that_suit_them():
    calm, slow, result = on_different_devices()
    assert result.moves <= 4
    assert mean_s(result, 130, 300) <= 1.08 * bottleneck(best(slow), slow)  # a smaller gain is left, see above
    assert mean_s(result, 330, 500) <= 1.03 * bottleneck(best(calm), calm)


def test_a_large_pipeline():
    calm = np.tile(np.random.default_rng(9).uniform(0.5, 1.5, 152), (52, 1))
    slow = slowed(calm, {17: 3.0})
    result = run(calm, {60: slow}, requests=300)
    assert result.moves <= 2
    assert bottleneck(result.final_plan, slow) <= 1.05 * bottleneck(best(slow), slow)


# -- predictions that do not come true ------------------------------------------------------------------------------


def test_moved_layers_that_are_always_slower_than_predicted():
    """Stage 0 is 5 times slower than its baselines with all layers that it has not had."""
    true = CALM.copy()
    true[0, best(CALM)[0] :] *= 5.0
    slow = slowed(true, {1: 1.6})
    result = run(changes={1: true, 100: slow}, requests=1500)
    assert result.moves <= 6
    assert mean_s(result, 500, 1500) <= 1.02 * bottleneck(best(CALM), slow)
    assert bottleneck(result.final_plan, slow) <= bottleneck(best(CALM), slow)


@pytest.mark.slow
@pytest.mark.parametrize("flag_delay", [0, 1, None])
def test_contention_between_stages(flag_delay):
    """No prediction comes true. Moves get rare."""
    result, home = contend(FilterPolicy(), 3000, factor=1.5, flag_delay=flag_delay), best(CALM)
    assert 2 <= result.moves <= 14
    assert sum(plan != home for plan in result.plans) <= 120
    half = [request for request, _ in result.decisions if request > 1500]
    assert len(half) <= 4


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
def test_a_move_that_does_harm_is_taken_back(factor):
    """Layers that stage 0 has not had take 30 times as long there as their baselines say."""
    home = best(CALM)
    true = CALM.copy()
    true[0] *= np.where(np.arange(18) < home[0], 1.0, 30.0)
    result = run(changes={100: slowed(true, {1: factor})}, requests=300, noise=0.02, layer_noise=0.0)
    assert result.final_plan == home
    assert result.moves <= 5
    assert sum(plan != home for plan in result.plans) <= 16


# -- conditions that do not last ------------------------------------------------------------------------------------


def periods(calm, requests, *, duration, gap, seed=1):
    random, times, request = np.random.default_rng(seed), {}, 50
    while request < requests:
        times[request] = slowed(calm, {int(random.integers(len(calm))): float(random.choice([1.5, 2.0, 3.0]))})
        request += duration
        if gap:
            times[request] = calm
            request += gap
    return times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calm", "duration", "gap"),
    [
        *((calm, duration, gap) for calm in (CALM, CALM4) for duration in (1, 2) for gap in (0, 1)),
        *((calm, 5, gap) for calm in (CALM, CALM4) for gap in (0, 1)),
    ],
)
def test_too_short_to_follow_is_not_followed(calm, duration, gap):
    changes = periods(calm, 1000, duration=duration, gap=gap * duration)
    result = run(calm, changes, requests=1000)
    static = run(calm, changes, requests=1000, policy=StaticPolicy())
    assert result.finished_s[-1] <= static.finished_s[-1] * 1.015


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calm", "duration", "share"),
    [
        (CALM, 20, 0.95),
        (CALM4, 20, 0.95),
        (CALM, 100, 0.97),
        (CALM4, 100, 0.97),
    ],
)
def test_long_enough_to_follow_is_nearly_as_good_as_an_oracle_a_request_late(calm, duration, share):
    changes = periods(calm, 1000, duration=duration, gap=0)
    result = run(calm, changes, requests=1000)
    oracle = run(calm, changes, requests=1000, policy=DelayedOraclePolicy(), clairvoyant=True)
    assert oracle.finished_s[-1] / result.finished_s[-1] >= share


def test_bursts_of_one_stage_are_planned_for_by_their_mean():
    """Every other request is slow on stage 1, each change told: no plan can follow; the mean is 1.5."""
    times = {request: CALM if request % 2 else slowed(CALM, {1: 2.0}) for request in range(50, 1000)}
    result = run(changes=times, requests=1000, flag_delay=0)
    static = run(changes=times, requests=1000, flag_delay=0, policy=StaticPolicy())
    assert result.finished_s[-1] <= static.finished_s[-1] * 1.01


def test_after_short_conditions_long_ones_are_followed_again():
    changes = periods(CALM, 600, duration=2, gap=2)
    slow = slowed(CALM, {1: 2.0})
    changes = {request: times for request, times in changes.items() if request < 600} | {600: CALM, 700: slow}
    result = run(changes=changes, requests=900)
    assert mean_s(result, 760, 900) <= 1.05 * bottleneck(best(slow), slow)


# -- the rest -------------------------------------------------------------------------------------------------------


def test_a_decision_that_is_not_carried_out_is_made_again():
    policy, slow = FilterPolicy(), slowed(CALM, {1: 2.0})
    policy.start(setting_for(CALM, best(CALM)))
    stage_of = np.repeat([0, 1], best(CALM))
    decided = []
    for request in range(1, 600):
        layer_s = (slow if request >= 100 else CALM)[stage_of, np.arange(18)]
        observation = Observation(
            request,
            best(CALM),
            np.bincount(stage_of, weights=layer_s, minlength=2),
            layer_s,
            1.0,
            np.array([False, request == 100]),
            np.array([request, max(1, request - 99)]),
            np.full(2, 0.02),
        )
        if (decision := policy.decide(observation)) is not None:
            decided.append((request, str(decision.plan)))
    assert 2 <= len(decided) <= 8
    assert {plan for _, plan in decided} == {str(best(slow))}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_any_weather(seed):
    """Random pipelines, conditions, alarms, some of them false or missing: every answer is a plan that fits."""
    random = np.random.default_rng(seed)
    stages, layers = int(random.integers(1, 7)), int(random.integers(1, 13))
    calm = random.uniform(0.0, 1.0, (stages, layers)) * random.choice([1e-6, 1.0, 50.0], (stages, 1))
    changes = {}
    for request in random.integers(1, 300, 12).tolist():
        factors = random.choice([1.0, 1.2, 2.0, 10.0, 1e4], (stages, layers if random.random() < 0.5 else 1))
        factors[1:][random.random(stages - 1) < 0.1] = math.inf  # stage 0 lives
        changes[request] = calm * factors
    result = run(
        calm,
        changes,
        requests=300,
        in_flight=int(random.integers(1, 20)),
        noise=float(random.choice([0.0, 0.1, 0.5])),
        flag_delay=random.choice([None, 0, 1, 5]),
        false_alarms={int(request): (0,) for request in random.integers(1, 300, 5)},
        layers_measured=bool(random.random() < 0.7),
        seed=seed,
    )
    assert (stages == 1) <= (result.moves == 0)
    for _, decision in result.decisions:
        assert decision.plan.layer_count == layers


def test_start_forgets_everything():
    changes = {100: slowed(CALM, {1: 2.0}), 150: slowed(CALM, {0: 3.0}), 200: CALM}
    policy = FilterPolicy()
    first = run(changes=changes, policy=policy)
    assert run(changes=changes, policy=policy).decisions == first.decisions
