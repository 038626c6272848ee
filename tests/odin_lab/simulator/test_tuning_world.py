"""Knob policies in simulated time: exact values without noise, and what they do under loads."""

from __future__ import annotations

import doctest

import pytest

import odin_lab.simulator.tuning as tuning
from odin.cli.main import main
from odin_lab.simulator.tuning import Spell, TuningWorld, share_within, simulate_tuning, standard_worlds

BATCH = TuningWorld("batch", "batch", each_s=0.003, limit_s=0.05, noise=0.0)


def test_examples_in_docstrings():
    found = doctest.testmod(tuning)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_latencies_are_those_of_batches_and_of_instances():
    instances = TuningWorld("instances", "instances", each_s=0.1, limit_s=1.0, cores=2, spells=(Spell(5.0, 6.0, 2.0),))
    assert [instances.latency_s(count, 0.0) for count in (1, 2, 4)] == [0.1, 0.1, 0.2]
    assert instances.latency_s(2, 5.5) == 0.2
    assert [BATCH.latency_s(count, 0.0) for count in (1, 16)] == [0.003, 0.048]


def test_the_best_value_keeps_the_limit_with_its_p95():
    assert BATCH.best(0.0) == 1  # without a fixed part no batch is better than another
    assert TuningWorld("batch", "batch", each_s=0.003, fixed_s=0.002, limit_s=0.05, noise=0.0).best(0.0) == 16
    assert TuningWorld("batch", "batch", each_s=0.003, fixed_s=0.002, limit_s=0.05, noise=0.1).best(0.0) == 13


@pytest.mark.parametrize(("policy", "values"), [("dnnscaler", [17, 9, 13, 15, 15]), ("aimd", [5, 9, 13, 17, 15])])
def test_both_policies_settle_where_latency_is_near_the_limit(policy, values):
    found = simulate_tuning(BATCH, policy, seconds=30.0)
    assert [period.after for period in found.periods[:5]] == values
    assert found.within > 0.9


def test_dnnscaler_is_within_the_limit_for_longer_than_aimd_while_a_load_comes_and_leaves():
    for world in (one for one in standard_worlds() if one.knob == "batch" and one.spells):
        ours, rival = (simulate_tuning(world, policy, seconds=420.0, seed=3) for policy in ("dnnscaler", "aimd"))
        assert ours.within > rival.within
        assert ours.of_best > 0.95


def test_instances_with_cores_of_their_own_come_back_after_a_load():
    """One instance alone lies in the dead band; the second costs no latency, and was given up under the load."""
    world = next(one for one in standard_worlds() if one.name == "instances, load")
    found = simulate_tuning(world, "dnnscaler", seconds=420.0, seed=1)
    assert {period.after for period in found.periods if 130.0 < period.at_s < 178.0} == {1}
    assert found.periods[-1].after == 2


def test_the_same_seed_gives_the_same_run():
    world = standard_worlds()[0]
    assert simulate_tuning(world, "aimd", seconds=20.0, seed=5) == simulate_tuning(world, "aimd", seconds=20.0, seed=5)


def test_no_period_no_share():
    assert share_within([], 0.1) != share_within([], 0.1)  # nan


def test_the_command_shows_both_policies(capsys):
    assert main(["simulate", "tune", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("dnnscaler") == out.count("aimd") == len(standard_worlds())


def test_the_command_refuses_what_means_nothing(capsys):
    assert main(["simulate", "tune", "--devices", "3"]) == 2
    assert "--devices means nothing with tune" in capsys.readouterr().err
