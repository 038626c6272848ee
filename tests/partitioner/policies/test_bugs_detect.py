"""Loads that were there before the start, or came soon after it: they were called "quiet, 1.0x"."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from odin.monitor.watch import StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Observation, Setting, make_policy

LAYER_S = 0.004
LAYERS = 18
BASELINE_S = np.full((2, LAYERS), LAYER_S)
HOME = Plan((9, 9))
LAG = 4


def setting(plan=HOME):
    nothing = np.zeros(LAYERS + 1)
    return Setting(plan, BASELINE_S, nothing, nothing, np.full(LAYERS, np.nan))


def noisy(requests, offset, *, seed=0, cv=0.07, persistence=0.5):
    """Logarithms of time over baseline, (requests, 2): noise that lasts, about a level that is off the baseline."""
    random = np.random.default_rng(seed)
    log = random.normal(0.0, cv, (requests, 2))
    for request in range(1, requests):
        log[request] = persistence * log[request - 1] + (1 - persistence**2) ** 0.5 * log[request]
    return log + np.log(offset)


def follow(log_slowdown, *, plan=HOME, policy="filter"):
    """What is told of the stages, and the plan of each request; a decision is felt a few requests later."""
    policy = make_policy(policy)
    policy.start(setting(plan))
    watch, coming, plans, told = StageWatch(BASELINE_S), deque(), [], []
    for request, factors in enumerate(np.exp(log_slowdown), start=1):
        if coming and coming[0][0] <= request:
            plan = coming.popleft()[1]
        plans.append(plan)
        layer_s = LAYER_S * np.repeat(factors, plan)
        stage_s = np.array([layer_s[: plan[0]].sum(), layer_s[plan[0] :].sum()])
        told += [(request, change) for change in watch.update((0, plan[0], LAYERS), stage_s, layer_s)]
        seen = watch.detector
        decision = policy.decide(
            Observation(
                request,
                plan,
                stage_s,
                layer_s,
                stage_s.max(),
                seen.changed,
                seen.age,
                seen.noise,
                disturbed=seen.disturbed,
            )
        )
        if decision is not None:
            coming.append((request + LAG + 1, decision.plan))
    return told, plans


@pytest.mark.parametrize("begin", [1, 4, 6, 21, 41])
@pytest.mark.parametrize("seed", range(3))
def test_a_load_is_told_and_answered_at_once_whenever_it_comes(begin, seed):
    """The first 24 requests defined what "alone" is; a load among them was answered by drift, 40 requests later."""
    log = noisy(300, 1.1, seed=seed)
    log[begin - 1 : 200, 1] += np.log(2)
    told, plans = follow(log)
    request, change = told[0]
    assert (change.stage, change.state) == (1, "onset")
    assert request < begin + 6
    assert change.slowdown == pytest.approx(2.1, abs=0.4)
    assert plans[begin - 1 + 12][0] in (11, 12, 13)  # 12|6 is the best
    assert [change.state for _, change in told if change.stage == 1][-1] == "end"
    assert plans[-1] == HOME
    assert plans[199 + 15] == HOME


def test_a_load_on_all_stages_is_told_though_no_plan_is_better():
    log = noisy(300, 1.1)
    log[:150] += np.log(2)
    told, plans = follow(log)
    assert sorted((change.stage, change.state) for _, change in told) == [
        (0, "end"),
        (0, "onset"),
        (1, "end"),
        (1, "onset"),
    ]
    assert max(request for request, change in told if change.state == "onset") <= 6
    assert set(plans) == {HOME}


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.9, 1.0, 1.1, 1.2, 1.25, [1.2, 1.0], [1.05, 1.25]])
def test_stages_a_fifth_above_their_profile_are_quiet(offset):
    """Both cores busy, colder caches, a lower clock: that is no interference."""
    for seed in range(3):
        told, _ = follow(noisy(2000, offset, seed=seed))
        assert told == []


def test_a_baseline_measured_beside_a_load_hides_no_load():
    log = noisy(600, 0.5)
    log[300:450, 0] += np.log(2)
    told, plans = follow(log)
    assert [(change.stage, change.state) for _, change in told] == [(0, "onset"), (0, "end")]
    assert 301 <= told[0][0] <= 306
    assert plans[320][0] < 9
    assert plans[-1] == HOME


def test_a_policy_that_starts_under_a_load_goes_home_to_the_plan_for_the_baselines():
    """Set while a load is there, it must not take the plan of that moment for the one to come back to."""
    log = noisy(400, 1.1)
    log[:200, 1] += np.log(2)
    _, plans = follow(log, plan=Plan((12, 6)))
    assert plans[150] == Plan((12, 6))
    assert plans[-1] == HOME
