"""Simulated tenants: together against each for itself, and what a share leaves to the other."""

from __future__ import annotations

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin_lab.simulator.tenants import Outsider, Tenant, alone_hz, simulate_tenants
from odin_lab.simulator.world import World


def world(layers: int, chain_s: float, seed: int) -> World:
    times_s = np.random.default_rng(seed).random(layers) + 0.3
    return World.of(np.tile(times_s * chain_s / times_s.sum(), (2, 1)), send_s=np.full(layers + 1, 2e-4))


LARGE, SMALL, ALSO_LARGE = world(18, 0.12, 1), world(33, 0.015, 2), world(18, 0.12, 3)


def gained(policy: str, *worlds: World, seed: int = 0, seconds: float = 30.0) -> tuple[float, float]:
    """Sum of throughputs, each over that alone, and the worst 99th percentile, seconds."""
    tenants = [Tenant(f"model {number}", own, policy) for number, own in enumerate(worlds)]
    runs = simulate_tenants(tenants, seconds=seconds, seed=seed)
    alone = [alone_hz(tenant, seconds=10.0) for tenant in tenants]
    return (
        sum(run.throughput_hz / own_hz for run, own_hz in zip(runs, alone, strict=True)),
        max(run.p99_s for run in runs),
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("worlds", [(LARGE, SMALL), (LARGE, ALSO_LARGE)], ids=["large and small", "two large"])
def test_together_serves_more_than_each_for_itself(worlds, seed):
    together, _ = gained("together", *worlds, seed=seed)
    for policy in ("static", "relay", "filter"):
        assert together > gained(policy, *worlds, seed=seed)[0] * 1.01


def test_one_comes_and_goes():
    """While the second one is there each has a device; afterwards the first one has both again."""
    runs = simulate_tenants(
        [Tenant("stays", LARGE), Tenant("visits", ALSO_LARGE, begin_s=10.0, end_s=30.0)], seconds=50.0
    )
    stays, visits = runs
    during = [plan for at_s, plan, _ in stays.moves if 10 < at_s < 30]
    assert Plan((18, 0)) in during or Plan((0, 18)) in during or max(during[-1]) >= 16
    assert any("together with visits" in why for _, _, why in stays.moves)
    at_s, plan, why = stays.moves[-1]
    assert 30 < at_s < 36
    assert min(plan) >= 6
    assert "planned alone" in why
    assert visits.moves


def test_a_share_holds_one_back_and_leaves_the_rest_to_the_other():
    free = simulate_tenants([Tenant("a", LARGE, "static"), Tenant("b", LARGE, "static")], seconds=30.0)
    capped = simulate_tenants([Tenant("a", LARGE, "static"), Tenant("b", LARGE, "static", share=0.2)], seconds=30.0)
    assert (capped[1].used_s < 0.21 * 30 + 0.2).all()
    assert (free[1].used_s > 0.35 * 30).all()
    assert capped[0].throughput_hz > 1.3 * free[0].throughput_hz


def test_a_stranger_on_one_device_gets_out_of_the_way_of_both():
    tenants = [Tenant("large", LARGE), Tenant("small", SMALL)]
    apart = [Tenant("large", LARGE, "static", plan=Plan((18, 0))), Tenant("small", SMALL, "static", plan=Plan((0, 33)))]
    stranger = [Outsider(0, begin_s=0.0)]
    together = simulate_tenants(tenants, seconds=40.0, outsiders=stranger)
    static = simulate_tenants(apart, seconds=40.0, outsiders=stranger)
    alone = [alone_hz(tenant, seconds=10.0) for tenant in tenants]
    least = [min(run.throughput_hz / hz for run, hz in zip(runs, alone, strict=True)) for runs in (together, static)]
    assert least[0] > least[1]


def test_the_same_seed_gives_the_same_run_and_open_loops_are_served():
    tenants = [Tenant("a", LARGE, rate_hz=4.0), Tenant("b", SMALL, rate_hz=20.0)]
    one, other = (simulate_tenants(tenants, seconds=20.0, seed=3) for _ in range(2))
    assert [run.moves for run in one] == [run.moves for run in other]
    assert one[0].throughput_hz == pytest.approx(4.0, rel=0.3)
    assert one[1].throughput_hz == pytest.approx(20.0, rel=0.2)
    assert one[0].p99_s < 1.0


def test_tenants_on_other_devices_are_refused():
    three = World.of(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"tenants with \[2, 3\] devices"):
        simulate_tenants([Tenant("a", LARGE), Tenant("b", three)], seconds=1.0)
