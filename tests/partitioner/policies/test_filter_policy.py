"""The filter policy in a small closed loop: its decision rule, and what holds whatever it is told."""

import math
from itertools import pairwise

import numpy as np
import pytest
from closed_loop import CALM, CALM4, best, bottleneck, contend

from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin.partitioner.policies.base import Observation, TenantSetting
from odin.partitioner.policies.filter import FilterPolicy
from odin.partitioner.policies.plan_errors import PlanErrors
from odin.partitioner.policies.static import StaticPolicy
from odin.testing import drive_policy, setting_for, slowed


def run(calm=CALM, changes=None, *, requests=400, policy=None, **options):
    options = {"in_flight": 2 * len(calm), "noise": 0.05, "layer_noise": 0.05} | options
    return drive_policy(policy or FilterPolicy(), calm, best(calm), changes=changes or {}, requests=requests, **options)


# -- the decision rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0])
def test_one_move_there_and_one_back(factor):
    slow = slowed(CALM4, {1: factor})
    result = run(CALM4, {100: slow, 250: CALM4})
    there, back = result.decisions[0], result.decisions[-1]
    assert 100 <= there[0] <= 103
    assert 250 <= back[0] <= 253
    assert bottleneck(there[1].plan, slow) <= 0.75 * bottleneck(best(CALM4), slow)
    assert bottleneck(result.plans[240], slow) <= 1.1 * bottleneck(best(slow), slow)
    assert result.final_plan == best(CALM4)
    assert result.moves <= 4


def test_the_reason_is_told_in_requests():
    ((_, decision), *_) = run(changes={100: slowed(CALM, {1: 3.0})}, requests=200).decisions
    assert decision.kind == "move"
    assert decision.why.startswith("saves ")
    assert decision.why.endswith(" requests of 400, costs 4")


def test_the_dearer_a_move_the_fewer():
    slow = slowed(CALM, {1: 1.4})
    moves = [run(changes={100: slow}, policy=FilterPolicy(cost=cost)).moves for cost in (0.0, 8.0, 90.0)]
    assert moves[0] >= moves[1] >= moves[2] == 0
    assert moves[0] > 0


def test_what_is_over_before_a_move_is_felt_moves_nothing_once_that_is_known():
    changes = {}
    for request in range(50, 1500, 30):
        changes |= {request: slowed(CALM4, {request // 30 % 4: 3.0}), request + 3: CALM4}
    result = run(CALM4, changes, requests=1500)
    static = run(CALM4, changes, requests=1500, policy=StaticPolicy())
    assert sum(request > 750 for request, _ in result.decisions) <= 4
    assert result.finished_s[-1] <= 1.02 * static.finished_s[-1]


def test_a_slowdown_of_all_stages_moves_nothing():
    for seed in range(3):
        everywhere = slowed(CALM4, dict.fromkeys(range(4), 2.0))
        assert run(CALM4, {100: everywhere, 300: CALM4}, seed=seed).moves == 0


@pytest.mark.parametrize("noise", [0.05, 0.15])
def test_noise_moves_nothing(noise):
    assert run(CALM4, requests=1000, noise=noise, layer_noise=noise).moves == 0


def test_hiccups_move_nothing():
    hit = np.random.default_rng(6).random((1000, 4)) < 0.01
    times = lambda request: CALM4 * np.where(hit[request - 1], 5.0, 1.0)[:, None]  # noqa: E731
    assert run(CALM4, times, requests=1000).moves == 0


def test_layers_suffer_by_their_memory_boundness():
    intensity = np.exp(np.random.default_rng(1).uniform(0.0, 4.0, 18))
    boundness = -np.log(intensity)
    boundness = (boundness - boundness.mean()) / boundness.std()
    slow = slowed(CALM, {1: np.exp(0.8 + 0.35 * boundness)})
    result = run(changes={100: slow, 300: CALM}, requests=500, intensity=intensity)
    assert bottleneck(result.plans[290], slow) <= 1.15 * bottleneck(best(slow), slow)
    assert result.final_plan == best(CALM)


def test_layers_need_not_be_measured():
    slow = slowed(CALM, {1: 2.5})
    result = run(changes={100: slow, 250: CALM}, layers_measured=False)
    assert bottleneck(result.plans[240], slow) <= 1.05 * bottleneck(best(slow), slow)
    assert result.final_plan == best(CALM)


# -- stages without layers ------------------------------------------------------------------------------------------


def test_a_stage_far_too_slow_is_emptied_probed_ever_more_rarely_and_used_again():
    slow = slowed(CALM, {1: 100.0})
    result = run(changes={100: slow, 900: CALM}, requests=1600)
    assert next(request for request, decision in result.decisions if decision.plan == (18, 0)) <= 102
    probes = [request for request, decision in result.decisions if decision.kind == "probe" and decision.plan[1]]
    waits = [later - earlier for earlier, later in pairwise(probe for probe in probes if probe < 900)]
    assert waits[0] < waits[1] < waits[-1]
    assert sum(plan[1] > 0 for plan in result.plans[110:900]) <= 8  # a probe is one request
    assert result.final_plan == best(CALM)


def test_a_dead_stage_is_left_alone():
    dead = slowed(CALM4, {2: math.inf})
    result = run(CALM4, {50: dead}, requests=200, dead_s=1000.0)
    assert result.final_plan[2] == 0
    assert sum(plan[2] > 0 for plan in result.plans[70:]) <= 3


def test_stages_that_are_empty_by_their_baselines_are_used_when_they_are_of_use():
    calm = np.tile([1.0, 2.0, 1.0], (6, 1))
    slow = slowed(calm, {stage: 4.0 for stage, count in enumerate(best(calm)) if count})
    result = run(calm, {50: slow}, requests=150)
    assert bottleneck(result.final_plan, slow) == bottleneck(best(slow), slow)
    beside_a_gpu = np.stack([CALM[0], 40 * CALM[1]])
    assert run(beside_a_gpu, requests=600).moves == 0


# -- verification ---------------------------------------------------------------------------------------------------


def test_plans_that_do_not_come_true_are_left_and_rarely_tried_again():
    result, home = contend(FilterPolicy(), 2000, factor=2.0), best(CALM)
    assert result.moves >= 2
    assert sum(plan != home for plan in result.plans) <= 150
    assert sum(request > 1000 for request, _ in result.decisions) <= 10


def test_the_error_of_a_plan_is_learned_beyond_noise_and_forgotten():
    home, other, third = Plan((9, 9)), Plan((12, 6)), Plan((13, 5))
    errors, quiet = PlanErrors(home), np.zeros(2)
    errors.begin(home, other, predicted_s=np.ones(2), survival=np.ones(2), noise=0.0)
    learned = [errors.take(request, np.array([2.0, 1.5]), quiet, 0.0) for request in range(1, 8)]
    assert learned == [False] * 5 + [True, False]
    assert errors.of(other) == pytest.approx(math.log(2.0), rel=0.01)
    assert errors.of(home) == 0.0
    assert errors.of(third) == pytest.approx(errors.of(other) / 2)  # as those tried, but nearer to 0
    errors.take(6 + 2048, quiet, quiet, 0.0)
    assert errors.of(other) == pytest.approx(math.log(2.0) / 2)
    # Home is twice as fast as seen from there.
    errors.begin(other, home, predicted_s=np.ones(2), survival=np.ones(2), noise=0.0)
    for request in range(2055, 2061):
        errors.take(request, np.array([0.5, 0.4]), quiet, 0.0)
    assert errors.of(home) == 0.0
    assert errors.of(other) == pytest.approx(math.log(2.0))


@pytest.mark.parametrize("why", ["noise", "another change", "one request", "nan"])
def test_what_is_no_error_of_the_plan(why):
    home, other = Plan((9, 9)), Plan((12, 6))
    errors = PlanErrors(home)
    errors.begin(home, other, predicted_s=np.ones(2), survival=np.ones(2), noise=0.1)
    for request in range(1, 7):
        renewed = np.array([0.0, float(why == "another change" and request == 5)])
        seconds = {"noise": 1.05, "nan": math.nan}.get(why, 2.0)
        errors.take(request, np.array([seconds, seconds]), renewed, 0.1)
        if why == "one request":
            errors.begin(other, home, predicted_s=np.ones(2), survival=np.ones(2), noise=0.1)
            assert errors.of(other) == 0.0
            errors.begin(home, other, predicted_s=np.ones(2), survival=np.ones(2), noise=0.1)
    assert errors.of(other) == 0.0


# -- invariants -----------------------------------------------------------------------------------------------------


def weather(seed):
    """Slowdowns of all sorts, stages without layers, times that are missing, infinite, negative or 0."""
    random = np.random.default_rng(seed)
    stages, layers = int(random.integers(2, 6)), int(random.integers(3, 20))
    calm = np.tile(random.uniform(0.5, 1.5, layers), (stages, 1)) * random.uniform(0.5, 2.0, (stages, 1))
    if seed % 3 == 0:
        calm[0, 1] = np.inf  # a layer that a stage cannot run
    return random, calm


def answers(policy, seed, *, requests=250):
    random, calm = weather(seed)
    stages, layers = calm.shape
    plan = best(calm)
    policy.start(setting_for(calm, plan))
    decided = []
    factors = np.ones(stages)
    coming = [plan] * 4
    for request in range(1, requests + 1):
        if random.random() < 0.1:
            factors[random.integers(stages)] = random.choice([1.0, 1.5, 3.0, 50.0])
        plan = coming.pop(0)
        stage_of = np.repeat(np.arange(stages), plan)
        layer_s = calm[stage_of, np.arange(layers)] * factors[stage_of]
        stage_s = np.bincount(stage_of, layer_s, stages)
        noise = np.full(stages, 0.05)
        if random.random() < 0.1:
            bad = random.choice([np.nan, np.inf, 0.0, -1.0])
            stage_s[random.integers(stages)] = layer_s[random.integers(layers)] = noise[0] = bad
        observation = Observation(
            request, plan, stage_s, layer_s, 1.0, np.zeros(stages, bool), np.full(stages, request), noise
        )
        decision = policy.decide(observation)
        if decision is not None:
            decided.append((request, decision))
        coming.append(decided[-1][1].plan if decided else plan)
    return calm, decided


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_measured_plans_are_valid_and_the_same_each_time(seed):
    policy = FilterPolicy(cost=1.0)
    with np.errstate(all="ignore"):
        calm, decided = answers(policy, seed)
        again = answers(policy, seed)[1]
    assert repr(again) == repr(decided)
    for _, decision in decided:
        decision.plan.check_fits(layer_count=calm.shape[1], stage_count=calm.shape[0])
        assert np.isfinite(bottleneck(decision.plan, calm))


def test_one_stage_never_moves():
    calm = CALM[:1]
    assert run(calm, {50: slowed(calm, {0: 5.0})}, requests=100).moves == 0


def test_a_share_of_a_device_counts_pauses():
    policy = FilterPolicy()
    setting = setting_for(CALM, best(CALM))._replace(tenant=TenantSetting("a", ("cpu:0", "cpu:1"), 0.5))
    policy.start(setting)
    stage_of = np.repeat([0, 1], best(CALM))
    decided = []
    for request in range(1, 300):
        layer_s = CALM[stage_of, np.arange(18)] * np.where(stage_of == 1, 1.9, 1.0)
        stage_s = np.bincount(stage_of, layer_s)
        delay_s = np.array([0.0, stage_s[1] * 0.9 / 1.9])  # what another program took while the stage may pause
        observation = Observation(
            request, best(CALM), stage_s, layer_s, 1.0, np.zeros(2, bool), np.full(2, request), np.full(2, 0.05),
            delay_s=delay_s,
        )  # fmt: skip
        decided.append(policy.decide(observation))
    assert not any(decided)


def test_somebody_else_moves_layers():
    policy, plan = FilterPolicy(), Plan((16, 2))
    policy.start(setting_for(CALM, best(CALM)))
    decided = []
    for request in range(1, 150):
        now = best(CALM) if request <= 20 else plan
        stage_of = np.repeat([0, 1], now)
        layer_s = CALM[stage_of, np.arange(18)]
        observation = Observation(
            request, now, np.bincount(stage_of, layer_s), layer_s, 1.0,
            np.zeros(2, bool), np.full(2, request), np.full(2, 0.05),
        )  # fmt: skip
        if (decision := policy.decide(observation)) is not None:
            decided.append((request, decision.plan))
    assert decided[0][1] == best(CALM)
    assert decided[0][0] <= 20 + 65


# -- its name and parameters ----------------------------------------------------------------------------------------


def test_names():
    assert make_policy("filter").name == "filter"
    assert make_policy("filter:cost=8").name == "filter:cost=8.0"
    assert make_policy("filter:horizon=200,cost=4").name == "filter:horizon=200"


@pytest.mark.parametrize(
    "values", [{"cost": -1.0}, {"cost": math.inf}, {"cost": math.nan}, {"horizon": 0}, {"horizon": 10**25}]
)
def test_parameters_out_of_range(values):
    (parameter,) = values
    with pytest.raises(ValueError, match=f"{parameter} is"):
        FilterPolicy(**values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [{"cost": 1e300}, {"horizon": 100_000}, {"cost": 0.0, "horizon": 1}])
def test_parameters_at_the_ends_of_their_range(values):
    # A longer horizon raised in the middle of serving, dearer moves divided by a survival of 0.
    decided = run(changes={100: slowed(CALM, {1: 3.0}), 600: CALM}, policy=FilterPolicy(**values)).moves
    assert (decided > 0) == (values != {"cost": 1e300})


def test_not_started():
    quiet = Observation(1, Plan((1, 1)), np.ones(2), np.ones(2), 1.0, np.zeros(2, bool), np.ones(2, int), np.ones(2))
    with pytest.raises(ValueError, match="was not started"):
        FilterPolicy().decide(quiet)
