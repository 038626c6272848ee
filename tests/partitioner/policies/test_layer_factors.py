"""What layers are predicted to take, however unlike their stage's single layers are."""

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies.layer_factors import LayerFactors
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.testing import setting_for

HOME, LAYERS = Plan((4, 4)), 8
BASELINE_S = np.tile(np.random.default_rng(5).uniform(1.0, 3.0, LAYERS), (2, 1))
PLANS = [HOME, Plan((3, 5)), Plan((6, 2)), Plan((1, 7)), Plan((0, 8))]


def learned(slowdown, seed):
    """What 300 requests under several plans teach, on the second stage with stalls that each meet one of its layers."""
    rng, setting = np.random.default_rng(seed), setting_for(BASELINE_S, HOME)
    cache = PlanArraysCache(setting)
    factors = LayerFactors(setting, cache.of(HOME))
    for request in range(300):
        arrays = cache.of(PLANS[request // 60])
        layer_s = BASELINE_S[0].copy()
        of_second = np.flatnonzero(arrays.stage_of == 1)
        layer_s[rng.choice(of_second)] += (slowdown - 1.0) * layer_s[of_second].sum()
        stage_s = np.bincount(arrays.stage_of, layer_s, 2)
        with np.errstate(divide="ignore"):
            log_slowdown = np.where(arrays.has, np.log(stage_s * arrays.per_reference), np.nan) - factors.off(arrays)
        factors.take(arrays, layer_s, log_slowdown, np.zeros(2))
    return factors, cache


@pytest.mark.parametrize("slowdown", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_stage_takes_its_slowdown_times_its_baseline_whatever_single_layers_took(plan, slowdown):
    factors, cache = learned(slowdown, seed=1)
    log_slowdown = np.log([1.2, slowdown])
    times_s, arrays = factors.times_s(log_slowdown), cache.of(plan)
    stage_s = np.bincount(arrays.stage_of, times_s[arrays.stage_of, arrays.layers], 2)
    measured = np.exp(log_slowdown + factors.off(arrays))[arrays.has]
    assert (stage_s * arrays.per_reference)[arrays.has] == pytest.approx(measured, rel=1e-9)
