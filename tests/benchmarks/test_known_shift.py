"""The yardstick of detection on recorded noise: what it is on noise whose bound is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmarks.detection import cell, recorded_noise
from benchmarks.known_shift import calibrate, known_shift_delays, run
from odin_lab.simulator.detection import Delay, least_delay, log_normal


def test_on_independent_noise_the_yardstick_is_near_lordens_bound():
    noise = log_normal(0.1)
    found = known_shift_delays(noise.draw, (1.25, 1.5), per_10_000=1.0, streams=1000, seed=0)
    for delay in found:
        bound = least_delay(delay.slowdown, noise.sigma)
        assert delay.missed == 0
        assert 0.9 * bound < delay.onset < 1.5 * bound


def test_on_correlated_noise_of_the_same_size_nobody_is_that_fast():
    sigma = log_normal(0.1).sigma

    def correlated(random, samples, streams):
        steps = random.normal(0.0, sigma * math.sqrt(1 - 0.9**2), (samples, streams))
        for before, now in itertools.pairwise(steps):
            now += 0.9 * before
        return steps

    (delay,) = known_shift_delays(correlated, (1.25,), per_10_000=1.0, streams=500, seed=0)
    assert delay.missed > 0.2


@pytest.mark.parametrize("per_10_000", [1.0, 30.0])
def test_the_threshold_makes_as_many_false_alarms_as_wanted_on_noise_that_it_has_not_seen(per_10_000):
    draw = log_normal(0.1).draw
    threshold = calibrate(draw(np.random.default_rng(0), 500, 1000), 0.2, per_10_000=per_10_000)
    alarms = int(run(draw(np.random.default_rng(1), 500, 1000), 0.2, threshold).sum())
    wanted = per_10_000 * 500 * 1000 / 10_000
    assert alarms == pytest.approx(wanted, abs=6 * math.sqrt(wanted))  # both are counts


def test_recorded_noise_is_correlated():
    samples = recorded_noise("resnet50").draw(np.random.default_rng(0), 500, 20)
    assert samples.shape == (500, 20)
    assert np.corrcoef(samples[1:].ravel(), samples[:-1].ravel())[0, 1] > 0.5


def test_without_a_bound_a_cell_has_the_delay_alone():
    assert cell(Delay(1.5, 2.0, 0.0, 3.0, 0.0, math.nan, 2.0, 3.0), end=False) == "2.00"
    assert cell(Delay(1.5, 2.0, 0.0, 3.0, 0.0, 1.6, 2.0, 3.0), end=False) == "2.00 1.25x"
