"""Plans of several tenants together: exact for two, by pairs for more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from odin.partitioner.balance.exact import balance
from odin.partitioner.balance.joint import TenantLoad, balance_jointly, device_loads
from odin.partitioner.plan import Plan


def all_plans(layers: int, stages: int) -> list[Plan]:
    cuts = itertools.combinations_with_replacement(range(layers + 1), stages - 1)
    return [Plan(b - a for a, b in itertools.pairwise((0, *cut, layers))) for cut in cuts]


def best_by_trial(tenants: list[TenantLoad], mixing: float) -> tuple[float, float]:
    """The least bound of all combinations of plans, and the least sum with it."""
    ways = itertools.product(*(all_plans(one.times_s.shape[1], len(one.devices)) for one in tenants))
    found = [device_loads(tenants, plans, mixing=mixing) for plans in ways]
    bound_s = min(one.bound_s for one in found)
    return bound_s, min(sum(one.loads_s.values()) for one in found if one.bound_s <= bound_s * (1 + 1e-9))


def some_tenant(random: np.random.Generator, devices: tuple[int, ...], *, transfers: bool, capped: bool) -> TenantLoad:
    layers = int(random.integers(1, 5))
    cut_s = random.random((2, layers + 1)) * 0.2 if transfers else np.zeros((2, layers + 1))
    return TenantLoad(
        devices,
        random.random((len(devices), layers)) + 0.05,
        float(random.choice([0.5, 1.0, 3.0])),
        float(random.choice([0.3, 0.6, 1.0])) if capped else 1.0,
        cut_s[0],
        cut_s[1],
    )


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(
    "orders",
    [((0, 1), (0, 1)), ((0, 1, 2), (2, 1, 0)), ((0, 2), (0, 1, 2)), ((1, 0), (1, 2)), ((0,), (0, 1)), ((0,), (1,))],
    ids=str,
)
def test_two_tenants_have_the_least_bound_of_all_plans_and_then_the_least_sum(orders, seed):
    random = np.random.default_rng(seed)
    tenants = [some_tenant(random, order, transfers=seed % 2 == 0, capped=seed % 3 == 0) for order in orders]
    mixing = float(random.choice([0.0, 0.2]))
    found = balance_jointly(tenants, mixing=mixing)
    bound_s, sum_s = best_by_trial(tenants, mixing)
    assert found.bound_s == pytest.approx(bound_s, rel=1e-8)
    assert sum(found.loads_s.values()) == pytest.approx(sum_s, rel=1e-8)
    told = device_loads(tenants, found.plans, mixing=mixing)
    assert (told.bound_s, told.loads_s) == (pytest.approx(found.bound_s), pytest.approx(found.loads_s))


@pytest.mark.parametrize("seed", range(20))
def test_one_tenant_alone_has_the_plan_of_the_balance_without_tenants(seed):
    times_s = np.random.default_rng(seed).random((3, 6)) + 0.05
    found = balance_jointly([TenantLoad((0, 1, 2), times_s, 2.0)])
    assert found.bound_s == pytest.approx(2 * balance(times_s).bottleneck_s)


@pytest.mark.parametrize("seed", range(20))
def test_three_tenants_are_never_worse_than_each_for_itself_and_seldom_far_from_the_best(seed):
    random = np.random.default_rng(seed)
    tenants = [some_tenant(random, (0, 1), transfers=True, capped=False) for _ in range(3)]
    found = balance_jointly(tenants)
    alone = device_loads(
        tenants, [balance(one.times_s, send_s=one.send_s, receive_s=one.receive_s).plan for one in tenants]
    )
    assert found.bound_s <= alone.bound_s * (1 + 1e-9)
    assert found.bound_s <= 1.1 * best_by_trial(tenants, 0.0)[0]


def test_tenants_whose_turns_cost_time_get_a_device_each():
    """Both halves of each on both devices would be as even, but they would take turns on either."""
    one = TenantLoad((0, 1), np.ones((2, 4)), 1.0)
    assert balance_jointly([one, one], mixing=0.05).plans in (
        (Plan((4, 0)), Plan((0, 4))),
        (Plan((0, 4)), Plan((4, 0))),
    )


def test_of_equally_good_plans_those_that_move_least_are_chosen():
    one = TenantLoad((0, 1), np.ones((2, 4)), 1.0, plan=Plan((3, 1)))
    other = one._replace(plan=Plan((0, 4)))
    assert balance_jointly([one, other], mixing=0.05).plans == (Plan((4, 0)), Plan((0, 4)))
    assert balance_jointly([other, one], mixing=0.05).plans == (Plan((0, 4)), Plan((4, 0)))


def test_a_small_tenant_fills_what_a_large_one_leaves():
    large, small = TenantLoad((0, 1), np.ones((2, 5)), 1.0), TenantLoad((0, 1), np.ones((2, 1)), 1.0)
    found = balance_jointly([large, small])
    assert found.bound_s == 3.0
    assert sorted(found.loads_s.values()) == [3.0, 3.0]


def test_a_cap_spreads_a_tenant_over_more_devices():
    times_s = np.ones((2, 4))
    free, capped = TenantLoad((0, 1), times_s, 1.0), TenantLoad((0, 1), times_s, 1.0, cap=0.5)
    assert set(balance_jointly([free, free], mixing=0.05).plans) == {Plan((4, 0)), Plan((0, 4))}
    assert balance_jointly([free, capped], mixing=0.0).plans[1] == Plan((2, 2))


def test_what_others_slow_down_gets_less_of_both():
    """Device 1 is twice as slow by a program of somebody else."""
    times_s = np.array([[1.0] * 6, [2.0] * 6])
    found = balance_jointly([TenantLoad((0, 1), times_s, 1.0), TenantLoad((0, 1), times_s, 1.0)])
    assert found.bound_s == 8.0
    assert sum(plan[0] for plan in found.plans) == 8


def test_stages_in_orders_that_do_not_fit_are_planned_one_after_the_other():
    random = np.random.default_rng(0)
    tenants = [TenantLoad(order, random.random((3, 4)) + 0.1, 1.0) for order in ((0, 1, 2), (1, 0, 2))]
    found = balance_jointly(tenants)
    alone = device_loads(tenants, [balance(one.times_s).plan for one in tenants])
    assert best_by_trial(tenants, 0.0)[0] <= found.bound_s <= alone.bound_s


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"cap": 0.0}, "cap is 0.0"),
        ({"devices": (0, 0)}, "a device of its own"),
        ({"devices": (0,)}, "1 stages need"),
        ({"times_s": -np.ones((2, 3))}, "negative or nan"),
        ({"times_s": np.full((2, 3), np.inf)}, "on none of its stages"),
        ({"send_s": np.ones(3)}, "give 4 numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        balance_jointly([TenantLoad((0, 1), np.ones((2, 3)), 1.0)._replace(**change)])
    with pytest.raises(ValueError, match="there is no tenant"):
        balance_jointly([])
    with pytest.raises(ValueError, match="mixing is -1"):
        balance_jointly([TenantLoad((0,), np.ones((1, 3)), 1.0)], mixing=-1)
