"""Layers' slowdowns out of noisy passes: against worlds where they are known."""

from __future__ import annotations

import numpy as np
import pytest

from odin_lab.timings.estimate import estimate_slowdown, pass_slowdowns


def test_without_noise_it_is_the_ratio():
    alone_s = np.tile([1.0, 2.0, 4.0], (3, 1))
    compared = [(alone_s * [2.0, 3.0, 1.5] * drift, alone_s * drift) for drift in (1.0, 10.0)]
    assert estimate_slowdown(compared, alone_s[0]) == pytest.approx([2.0, 3.0, 1.5])


def test_the_pass_is_as_slow_as_in_the_median_round():
    alone_s = np.tile([1.0, 3.0], (3, 1))
    compared = [(alone_s * factor, alone_s) for factor in (2.0, 2.5, 20.0)]  # something else ran in one round
    assert pass_slowdowns(compared) == pytest.approx([2.0, 2.5, 20.0])
    assert estimate_slowdown(compared, alone_s[0]) == pytest.approx([2.5, 2.5])


def test_a_layer_that_takes_no_time_is_as_slow_as_the_pass():
    alone_s = np.array([[0.0, 1.0, 1.0]] * 2)
    loaded_s = np.array([[0.3, 2.0, 4.0]] * 2)
    assert estimate_slowdown([(loaded_s, alone_s)], alone_s[0])[0] == pytest.approx(6.3 / 2)
    assert estimate_slowdown([(loaded_s[:1], alone_s)], alone_s[0]) == pytest.approx([3.15] * 3)  # one pass: no scatter


def taking_turns(random, work_s, count):
    """Seconds of layers that share a core with a load, in turns of about 3 ms."""
    passes, runs, left_s = [], True, 2e-3
    for _ in range(count):
        seconds = []
        for rest_s in work_s * np.exp(random.normal(0, 0.02, len(work_s))):
            spent_s = 0.0
            while rest_s > 1e-12:
                turn_s = min(rest_s, left_s) if runs else left_s
                rest_s -= turn_s * runs
                left_s -= turn_s
                spent_s += turn_s
                if left_s <= 1e-12:
                    runs, left_s = not runs, random.uniform(2.5e-3, 3.5e-3)
            seconds.append(spent_s)
        passes.append(seconds)
    return np.array(passes)


@pytest.mark.parametrize(
    ("layers", "pass_s", "passes", "worst_rms"), [(33, 0.012, 60, 0.2), (52, 0.18, 6, 0.1), (18, 0.08, 12, 0.1)]
)
def test_layers_shorter_than_a_turn_of_the_scheduler(layers, pass_s, passes, worst_rms):
    """Half of the core is gone, and half of the layers are slowed down by a further 30%."""
    random = np.random.default_rng(0)
    baseline_s = random.uniform(0.5, 1.5, layers)
    baseline_s *= pass_s / baseline_s.sum()
    truth = random.choice([2.0, 2.6], layers)
    compared = [
        (
            taking_turns(random, baseline_s * truth / 2, passes),
            baseline_s * np.exp(random.normal(0, 0.02, (passes, layers))),
        )
        for _ in range(5)
    ]
    found = estimate_slowdown(compared, baseline_s)
    assert baseline_s @ found == pytest.approx(baseline_s @ truth, rel=0.02)
    by_chance = np.mean([loaded_s.mean(axis=0) for loaded_s, _ in compared], axis=0) / baseline_s

    def rms(guess):
        return np.sqrt(np.average((guess - truth) ** 2, weights=baseline_s))

    assert rms(found) < worst_rms
    assert rms(found) <= 1.1 * rms(by_chance)  # hardly worse than plain means ever ...
    assert rms(found) < 0.75 * rms(baseline_s @ truth / baseline_s.sum())  # ... and better than one for all


def test_medians_would_miss_what_means_show():
    """Why it is done this way: most passes through a short layer meet no turn of the load's at all."""
    random = np.random.default_rng(0)
    loaded_s = taking_turns(random, np.full(40, 3e-4), 200)
    assert np.median(loaded_s, axis=0).sum() / 0.012 < 1.1
    assert loaded_s.mean(axis=0).sum() / 0.012 == pytest.approx(2.0, rel=0.02)
