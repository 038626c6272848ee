"""Dynamic batching in simulated time, by the rule that serves live."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odin.cli.main import main
from odin_lab.simulator.batching import BatchingWorld, simulate_batching

QUIET = BatchingWorld("one device", fixed_s=0.012, each_s=0.008, stages=1, places=1, noise=0.0)


def test_who_comes_while_all_places_are_taken_is_joined():
    found = simulate_batching(QUIET, [0.0, 0.001, 0.002, 0.003])
    assert found.latency_s == pytest.approx((0.020, 0.055, 0.054, 0.053))  # alone; then three together take 36 ms
    assert found.mean_samples == 2.0
    one_by_one = simulate_batching(QUIET, [0.0, 0.001, 0.002, 0.003], joins=False)
    assert one_by_one.latency_s == pytest.approx((0.020, 0.039, 0.058, 0.077))


def test_nobody_is_joined_beyond_the_batch():
    assert simulate_batching(QUIET, [0.0] * 9).mean_samples == 4.5
    assert simulate_batching(QUIET, [0.0] * 9, largest=3).mean_samples == 3.0


def test_the_first_is_held_back_for_so_long_and_no_longer():
    found = simulate_batching(QUIET, [0.0, 0.004], wait_s=0.005)
    assert found.latency_s == pytest.approx((0.033, 0.029))  # sent at 5 ms, two take 28 ms
    late = simulate_batching(QUIET, [0.0, 0.006], wait_s=0.005)
    assert late.latency_s == pytest.approx((0.025, 0.039))


def test_a_deadline_ends_the_wait_and_bounds_the_number():
    tight = simulate_batching(QUIET, [0.0, 0.001], wait_s=1.0, deadline_s=0.080)  # a full one takes 76 ms
    assert tight.latency_s == pytest.approx((0.032, 0.031))
    assert tight.in_time == 1.0
    # three would take 36 ms: two do, and the third is late in any case
    few = simulate_batching(QUIET, [0.0] * 3, deadline_s=0.030)
    assert few.latency_s == pytest.approx((0.028, 0.028, 0.048))
    assert few.in_time == pytest.approx(2 / 3)


def test_stages_work_beside_each_other():
    world = BatchingWorld("two", fixed_s=0.012, each_s=0.008, stages=2, noise=0.0)
    found = simulate_batching(world, [0.0, 0.0, 0.0], joins=False)
    assert found.latency_s == pytest.approx((0.020, 0.030, 0.040))
    assert (world.alone_hz, world.full_hz) == (pytest.approx(100.0), pytest.approx(16 / 0.076))


def test_joining_keeps_up_where_one_by_one_does_not():
    random = np.random.default_rng(1)
    arrivals_s = np.cumsum(random.exponential(1 / 75, 3000)).tolist()  # 1.5 times what is answered one by one
    joined, alone = (simulate_batching(QUIET, arrivals_s, joins=joins, deadline_s=0.2) for joins in (True, False))
    assert joined.in_time > 0.95
    assert alone.in_time < 0.1
    assert joined.throughput_hz == pytest.approx(75, rel=0.05)
    assert alone.throughput_hz == pytest.approx(50, rel=0.01)


def test_a_seed_says_it_all():
    world = BatchingWorld("noisy", fixed_s=0.012, each_s=0.008)
    runs = [simulate_batching(world, [0.01 * at for at in range(50)], seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    assert not any(math.isnan(took_s) for took_s in runs[0].latency_s)


@pytest.mark.parametrize(
    ("what", "rows"), [("batching", ("joined, held back", "gains little")), ("fleet", ("predicting", "on demand"))]
)
def test_the_command_shows_a_table(what, rows, capsys, monkeypatch):
    monkeypatch.setattr("odin_lab.simulator.batching_table._SECONDS", 1.0)
    monkeypatch.setattr("odin_lab.simulator.fleet_table._SECONDS", 1.0)
    assert main(["simulate", what, "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert all(row in out for row in rows)


def test_options_that_mean_nothing_are_refused(capsys):
    assert main(["simulate", "batching", "--devices", "3"]) == 2
    assert "--devices means nothing with batching" in capsys.readouterr().err
