"""Drift of levels without a change."""

import numpy as np
import pytest

from odin.partitioner.policies.drift_estimate import DriftEstimate

SPREAD = 0.05


def deviation(log_slowdown, spread=SPREAD):
    """What is learned from one stage's slowdown, request by request."""
    estimate = DriftEstimate(1)
    estimate.take(np.asarray(log_slowdown)[:, None], np.array([spread]))
    return float(estimate.deviation[0])


def noise(requests, seed=0):
    return np.random.default_rng(seed).normal(0.0, SPREAD, requests)


def test_nothing_is_known_at_the_beginning():
    assert deviation(noise(40)) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_independent_noise_is_no_drift(seed):
    assert deviation(noise(2000, seed)) < 0.01


@pytest.mark.parametrize("step", [0.03, 0.08])
def test_levels_that_change_every_few_requests_drift(step):
    levels = np.repeat(np.random.default_rng(1).normal(0.0, step, 60), 16)
    assert deviation(levels + noise(len(levels))) == pytest.approx(step, rel=0.3)


def test_flicker_noise_is_as_large_as_its_blocks_differ():
    # As many octaves as there are, each with the same variance: averaging makes nothing smaller.
    random = np.random.default_rng(2)
    octaves = [np.repeat(random.normal(0.0, 0.03, 4096 // 2**k), 2**k) for k in range(9)]
    assert 0.02 < deviation(sum(octaves), spread=0.09) < 0.09


def test_a_few_large_changes_are_none():
    slowdown = noise(1600)
    slowdown[400:416] += 0.7
    slowdown[1000:1200] += 0.7
    assert deviation(slowdown) < 0.015


def test_detected_changes_are_none():
    estimate = DriftEstimate(2)
    for level in np.random.default_rng(3).normal(0.0, 0.3, 40):
        estimate.take(np.stack([level + noise(40), noise(40)], axis=1), np.array([SPREAD, SPREAD]))
        estimate.restart(0)
    assert estimate.deviation[0] < 0.015


def test_a_stage_without_layers_keeps_what_it_had():
    estimate = DriftEstimate(2)
    levels = np.repeat(np.random.default_rng(1).normal(0.0, 0.05, 60), 16)
    estimate.take(np.stack([levels, levels], axis=1), np.array([0.0, 0.0]))
    before = estimate.deviation.copy()
    estimate.take(np.stack([np.full(64, np.nan), np.zeros(64)], axis=1), np.array([0.0, 0.0]))
    assert estimate.deviation[0] == before[0] > 0.02
    assert estimate.deviation[1] != before[1]
