"""Conditions that change often: whether moving for them pays, and what undoing a harmful move is followed by."""

import numpy as np
import pytest

from odin.monitor.watch import StageWatch
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation
from odin.partitioner.policies.move_checks import Check, MoveChecks
from odin.partitioner.policies.oracle import DelayedOraclePolicy
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.predictive import PredictivePolicy
from odin.partitioner.policies.shadow_comparison import ShadowComparison
from odin.partitioner.policies.static import StaticPolicy
from odin.testing import setting_for

CALM = np.tile(np.random.default_rng(3).uniform(0.5, 1.5, 18), (4, 1))
HOME = balance(CALM).plan
SETTING = setting_for(CALM, HOME)


# -- whether it pays ------------------------------------------------------------------------------------------------


def compare(shadow, slowdowns, *, request=0):
    """Let the shadow plan answer each change with the best plan at once; returns at which requests it pays."""
    plan_arrays, pays = PlanArraysCache(SETTING), []
    reference_s = plan_arrays.of(HOME).reference_s
    for slowdown in slowdowns:
        request += 1
        shadow.take(reference_s * slowdown, HOME, request)
        shadow.follow(balance(CALM * np.asarray(slowdown)[:, None]).plan, request)
        pays.append(shadow.pays)
    return pays


def slow_stages(requests, *, each, seed=0):
    random, rows = np.random.default_rng(seed), []
    while len(rows) < requests:
        row = np.ones(4)
        row[random.integers(4)] = 3.0
        rows += [row] * each
    return rows[:requests]


def test_following_short_conditions_does_not_pay_and_long_ones_does():
    short = compare(ShadowComparison(SETTING, PlanArraysCache(SETTING)), slow_stages(1000, each=3))
    assert sum(short[:100]) >= 30  # it is given a chance
    assert sum(short[100:]) <= 100
    assert all(compare(ShadowComparison(SETTING, PlanArraysCache(SETTING)), slow_stages(1000, each=100)))


def test_one_bad_stretch_is_soon_forgiven():
    shadow = ShadowComparison(SETTING, PlanArraysCache(SETTING))
    pays = compare(shadow, slow_stages(300, each=3))
    assert not pays[-1]
    pays = compare(shadow, slow_stages(100, each=50, seed=1), request=300)
    assert pays.index(True) <= 25  # a dozen of them are felt late


# -- checks -------------------------------------------------------------------------------------------------------


def harm(checks, request):
    check = Check(HOME, Plan((3, 5, 5, 5)), 1.0, calm=False, before_s=1.0, error=0.0)
    return checks.judge(check, slowest_s=1.2, error=0.05, least=0.015, request=request)


def test_moves_that_do_harm_are_followed_by_longer_and_longer_pauses():
    checks, waits = MoveChecks(), []
    for request in (100, 200, 300, 400):
        assert harm(checks, request) == pytest.approx(-np.log(1.2))
        waits.append(checks.still_until - request)
    assert waits == [16, 32, 64, 128]
    assert checks.banned == {Plan((3, 5, 5, 5))}
    checks.conditions_changed(long_after_move=False)
    assert not checks.banned
    assert checks.still_until == 528  # too often: only what comes long after a move ends it
    checks.conditions_changed(long_after_move=True)
    assert checks.still_until == 0


def test_predictions_that_are_missed_are_believed_less():
    checks = MoveChecks()
    for request in range(20):
        harm(checks, request)
    assert checks.prediction_bias == pytest.approx(0.15)
    check = Check(HOME, Plan((3, 5, 5, 5)), 1.0, calm=False, before_s=1.2, error=0.0)
    assert checks.judge(check, slowest_s=1.0, error=0.05, least=0.015, request=30) is None
    assert checks.prediction_bias == pytest.approx(0.75 * 0.15)


# -- all of it, with the detector -----------------------------------------------------------------------------------


def serve(policy, factors, *, noise=0.07, seed=0):
    """Seconds for all requests: 8 at once, request r meets ``factors[r]``, the real detector tells changes."""
    random = np.random.default_rng(seed)
    noises = np.exp(noise * random.standard_normal(factors.shape))
    plan_arrays, watch = PlanArraysCache(SETTING), StageWatch(CALM)
    clairvoyant = isinstance(policy, DelayedOraclePolicy)
    policy.start(SETTING)
    submitted, in_force, left_s, decisions = [HOME] * 8, HOME, np.zeros(4), 0
    finished_s = [0.0] * 8
    for request, (factor, noisy) in enumerate(zip(factors, noises, strict=True), start=1):
        arrays = plan_arrays.of(submitted.pop(0))
        layer_s = CALM[arrays.stage_of, arrays.layers] * (factor * noisy)[arrays.stage_of]
        stage_s = np.bincount(arrays.stage_of, layer_s, 4)
        at_s = finished_s[-8]
        for stage, busy_s in enumerate(stage_s.tolist()):
            at_s = left_s[stage] = max(at_s, left_s[stage]) + busy_s
        finished_s.append(at_s)
        watch.update([*arrays.first, 18], stage_s, layer_s)
        seen = watch.detector.changed, watch.detector.age, watch.detector.noise
        true_s = CALM * factor[:, None] if clairvoyant else None
        decision = policy.decide(Observation(request, arrays.plan, stage_s, layer_s, 1.0, *seen, true_s))
        if decision is not None:
            in_force = decision.plan
            decisions += 1
        submitted.append(in_force)
    return finished_s[-1], decisions


def interference(requests, *, period, duration, seed):
    """Every ``period`` requests one stage is slow for ``duration``; a later event on the same stage replaces it."""
    random, factors = np.random.default_rng(seed), np.ones((requests, 4))
    for first in range(period, requests, period):
        stage, slow = int(random.integers(4)), float(np.exp(random.uniform(np.log(1.1), np.log(4.5))))
        factors[first:, stage] = 1.0
        factors[first : first + duration, stage] = slow
    return factors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("period", "duration", "of_delayed", "of_static"),
    [
        (2, 2, 0.97, 0.985),  # of static 0.99 over 4,000 requests: the first ones cost most
        (2, 10, 0.97, 0.98),
        (2, 100, 0.97, 0.985),
        (10, 2, 0.97, 0.985),
        (10, 10, 0.97, 0.985),
        (10, 100, 0.93, 0.985),  # by seed 0.88 to 1.02: half of it is chance
        (100, 10, 0.97, 0.985),
        (100, 100, 0.97, 0.985),
    ],
)
def test_nearly_as_good_as_an_oracle_one_request_late_and_no_worse_than_static(period, duration, of_delayed, of_static):
    delayed, static = [], []
    for seed in (period + duration, 1, 2, 3):
        factors = interference(1200, period=period, duration=duration, seed=seed)
        total_s, moves = serve(PredictivePolicy(), factors)
        delayed.append(serve(DelayedOraclePolicy(), factors)[0] / total_s)
        static.append(serve(StaticPolicy(), factors)[0] / total_s)
        assert moves <= 2 * 1200 / period
    assert np.mean(delayed) >= of_delayed
    assert np.mean(static) >= of_static


def test_after_frequent_changes_noise_moves_nothing():
    factors = np.vstack([interference(600, period=20, duration=40, seed=5), np.ones((1400, 4))])
    policy, late = PredictivePolicy(), []
    decide = policy.decide

    def watched(observation):
        decision = decide(observation)
        if decision is not None and observation.request > 1000:
            late.append(decision)
        return decision

    policy.decide = watched
    serve(policy, factors)
    assert len(late) <= 1


def test_where_moves_are_felt_late_conditions_must_be_seen_to_last_first():
    calm = np.tile(np.random.default_rng(5).uniform(0.5, 1.5, 60), (20, 1))
    setting = setting_for(calm, balance(calm).plan)
    plan_arrays = PlanArraysCache(setting)
    shadow = ShadowComparison(setting, plan_arrays)
    assert not shadow.pays
    slow = np.ones(20)
    slow[3] = 3.0
    best = balance(calm * slow[:, None]).plan
    for request in range(1, 400):
        shadow.take(plan_arrays.of(setting.plan).reference_s * slow, setting.plan, request)
        shadow.follow(best, request)
        if shadow.pays:
            break
    assert 40 < request < 80  # after the lag of 40 it is seen what following would have been worth
