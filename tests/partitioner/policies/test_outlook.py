"""Expected bottlenecks: certain and uncertain levels, against closed forms and against samples."""

from itertools import pairwise

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies.outlook import Outlook
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.regimes import LEVELS, level_position
from odin.testing import setting_for

TIMES_S = np.tile(np.random.default_rng(7).uniform(0.5, 1.5, 12), (3, 1))


def outlook(levels):
    return Outlook(TIMES_S, np.asarray(levels, float))


def at(slowdown, share=1.0):
    levels = np.zeros(len(LEVELS))
    levels[round(float(level_position(np.log(slowdown))))] = share
    return levels


def exact(slowdown):
    return float(np.exp(LEVELS[round(float(level_position(np.log(slowdown))))]))


def expected(levels, plan):
    return outlook(levels).expected_s(PlanArraysCache(setting_for(TIMES_S, Plan(plan))).of(Plan(plan)))


def stage_s(plan):
    cuts = np.cumsum([0, *plan])
    return np.array([TIMES_S[0, first:last].sum() for first, last in pairwise(cuts)])


@pytest.mark.parametrize("slowdowns", [(1, 1, 1), (1, 2, 1), (3, 1, 1.4)])
def test_certain_levels_give_the_slowest_stage(slowdowns):
    for plan in ((4, 4, 4), (2, 5, 5), (6, 6, 0)):
        slowest = (stage_s(plan) * [exact(slowdown) for slowdown in slowdowns]).max()
        assert expected([[at(slowdown) for slowdown in slowdowns]], plan)[0] == pytest.approx(slowest, rel=0.03)


def test_uncertain_levels_are_weighed_at_once():
    levels = [at(1.0, 0.5) + at(3.0, 0.5), at(1.0, 0.7) + at(2.0, 0.3), at(1.0)]
    random, plan = np.random.default_rng(0), (4, 4, 4)
    drawn = np.stack([np.exp(LEVELS)[random.choice(len(LEVELS), 200_000, p=row)] for row in levels], axis=1)
    by_samples = (drawn * stage_s(plan)).max(axis=1).mean()
    assert expected([levels], plan)[0] == pytest.approx(by_samples, rel=0.02)
    later = [at(1.0), at(1.0), at(1.0)]
    both = expected([levels, later], plan)
    assert both[0] == pytest.approx(by_samples, rel=0.02)
    assert both[1] == pytest.approx(stage_s(plan).max(), rel=0.03)


def test_factors_are_means():
    factors = outlook([[at(1.0), at(2.0), at(1.0, 0.5) + at(3.0, 0.5)]]).factors
    np.testing.assert_allclose(factors, [[exact(1), exact(2), (exact(1) + exact(3)) / 2]])


def test_a_stage_that_cannot_run_a_layer_makes_a_plan_useless():
    times_s = TIMES_S.copy()
    times_s[1, 5] = np.inf
    arrays = PlanArraysCache(setting_for(TIMES_S, Plan((4, 4, 4)))).of(Plan((4, 4, 4)))
    bad = Outlook(times_s, np.array([[at(1.0)] * 3])).expected_s(arrays)
    assert 1e5 < bad[0] < np.inf
