"""The filter over regimes: its posterior against a dense hidden Markov model, what it learns, what it foretells."""

import numpy as np
import pytest

from odin.partitioner.policies import regimes
from odin.partitioner.policies.regimes import LEVELS, LIVES, RegimeFilter, level_position

QUIET = np.full(1, 0.05)
MEASURED = np.ones(1, dtype=bool)


def feed(filtered, slowdowns, *, noise=0.05, seed=0):
    random = np.random.default_rng(seed)
    for slowdown in slowdowns:
        row = np.atleast_1d(np.log(slowdown)) + noise * random.standard_normal(len(filtered.base))
        filtered.update(row, np.full(len(row), noise), np.ones(len(row), dtype=bool))
    return filtered


def dense_transitions(filtered):
    """State 0 is undisturbed, then each life with each level."""
    filtered._use_counts()
    lives, levels = filtered._fresh_lives, filtered._fresh[1:]
    start, back = filtered.start_hazard, regimes._BACK
    fresh, count = np.outer(lives, levels).reshape(-1), len(LEVELS)
    step = np.zeros((1 + len(fresh), 1 + len(fresh)))
    step[0] = np.concatenate([[1 - start], start * fresh])
    for life, mean in enumerate(LIVES):
        for level in range(count):
            row = 1 + life * count + level
            step[row, row] += 1 - 1 / mean
            step[row, 0] += back / mean
            step[row, 1:] += (1 - back) / mean * fresh
    spread = np.eye(1 + len(fresh))
    for life in range(len(LIVES)):
        for level in range(1, count - 1):
            here = 1 + life * count + level
            spread[here, here] -= 2 * regimes._SPREAD
            spread[here - 1, here] += regimes._SPREAD
            spread[here + 1, here] += regimes._SPREAD
    return step @ spread


def likelihood(x, base, noise):
    def density(off, sd):
        normal = np.exp(-0.5 * (off / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
        return (1 - regimes._OUTLIER) * normal + regimes._OUTLIER * regimes._OUTLIER_DENSITY

    calm = density(x - base, np.hypot(noise, regimes._UNDISTURBED_SD))
    loaded = density(x - base - LEVELS, regimes._LOADED_NOISE * noise)
    loaded += regimes._SLIPS * (calm - loaded)
    return np.concatenate([[calm], np.tile(loaded, len(LIVES))])


def state_of(filtered):
    return np.concatenate([filtered.undisturbed, filtered._disturbed.reshape(-1)])


def test_the_posterior_is_that_of_the_dense_hidden_markov_model(monkeypatch):
    monkeypatch.setattr(regimes, "_QUIET", 2.0)
    filtered = RegimeFilter(1)
    for x in (0.01, -0.04, 0.7, 0.72, 0.66, 0.05, 1.6, 1.5, 0.0, 0.0, 0.0, 0.03):
        expected = state_of(filtered) @ dense_transitions(filtered)
        expected *= likelihood(x, filtered.base[0], 0.05)
        filtered.update(np.array([x]), QUIET, MEASURED)
        np.testing.assert_allclose(state_of(filtered), expected / expected.sum(), atol=1e-12)


def test_what_is_left_out_while_quiet_changes_little(monkeypatch):
    slowdowns = ([1.0] * 30 + [1.3] * 10 + [1.0] * 20 + [3.0] + [1.0] * 9 + [2.5] * 10 + [1.0] * 10) * 3
    row, full = np.full(2, 0.05), RegimeFilter(2)
    left_out = RegimeFilter(2)
    random = np.random.default_rng(0)
    for slowdown in slowdowns:
        x = np.array([np.log(slowdown), 0.0]) + 0.05 * random.standard_normal(2)
        left_out.update(x, row, np.ones(2, bool))
        with monkeypatch.context() as patch:
            patch.setattr(regimes, "_QUIET", 2.0)
            full.update(x, row, np.ones(2, bool))
        np.testing.assert_allclose(left_out.expected, full.expected, atol=0.05)
        np.testing.assert_allclose(left_out.undisturbed, full.undisturbed, atol=0.05)
    assert left_out.start_hazard == pytest.approx(full.start_hazard, rel=0.2)


def test_what_is_foretold_is_what_the_dense_model_foretells_of_being_undisturbed():
    filtered = feed(RegimeFilter(1), [1.0] * 5 + [2.0] * 4)
    state = state_of(filtered)
    ahead = filtered.ahead(np.array([0, 1, 7]))
    np.testing.assert_allclose(ahead.sum(axis=2), 1.0)
    near = np.abs(LEVELS) < 0.15
    for times, levels in zip((1, 7), ahead[1:, 0], strict=True):
        later = state @ np.linalg.matrix_power(dense_transitions(filtered), times)
        low = later[1:].reshape(len(LIVES), -1).sum(axis=0)[near].sum() + later[0]
        assert levels[near].sum() == pytest.approx(low, abs=0.02)  # levels of fresh disturbances spread a little
    assert ahead[0, 0] @ np.exp(LEVELS) == pytest.approx(np.exp(filtered.expected - filtered.base)[0], rel=1e-2)


def test_one_slow_request_may_be_a_hiccup_and_two_are_a_disturbance():
    filtered = feed(RegimeFilter(2), [[1.0, 1.0]] * 50)
    assert filtered.undisturbed.min() > 0.98
    feed(filtered, [[1.0, 5.0]])
    assert filtered.undisturbed[1] > 0.4
    feed(filtered, [[1.0, 5.0]])
    assert filtered.undisturbed[0] > 0.98
    assert filtered.undisturbed[1] < 0.1
    assert np.exp(filtered.expected[1]) == pytest.approx(5.0, rel=0.1)


def test_what_has_lasted_goes_on_lasting():
    filtered = feed(RegimeFilter(1), [1.0] * 20)
    survivals = []
    for _ in range(4):
        feed(filtered, [2.0] * 16)
        survivals.append(filtered.survival(20)[0])
    assert survivals == sorted(survivals)
    assert survivals[0] < survivals[-1] - 0.1


@pytest.mark.parametrize(("life", "least", "most"), [(4, 0.0, 0.35), (200, 0.6, 1.0)])
def test_lives_are_learned(life, least, most):
    filtered = feed(RegimeFilter(1), ([1.0] * 40 + [2.0] * life) * 12)
    feed(filtered, [1.0] * 40 + [2.0] * 3)
    assert least <= filtered.survival(10)[0] <= most


def test_the_hazard_of_starts_is_learned():
    assert feed(RegimeFilter(2), [[1.0, 1.0]] * 1000).start_hazard < 0.001
    assert feed(RegimeFilter(1), ([1.0] * 20 + [3.0] * 5) * 40).start_hazard == pytest.approx(1 / 20, rel=0.4)


def test_the_undisturbed_level_drifts_along():
    drift = np.exp(np.linspace(0.0, 0.3, 1500))
    filtered = feed(RegimeFilter(1), drift)
    assert filtered.undisturbed[0] > 0.9
    assert filtered.base[0] == pytest.approx(0.3, abs=0.05)


def test_a_stage_that_is_not_measured_is_known_less_and_less():
    filtered = feed(RegimeFilter(2), [[1.0, 1.0]] * 20 + [[1.0, 20.0]] * 20)
    gone = []
    for _ in range(3):
        gone.append(filtered.undisturbed[1])
        for _ in range(50):
            filtered.update(np.zeros(2), np.full(2, 0.05), np.array([True, False]))
    assert gone[0] < 0.01
    assert gone[0] < gone[1] < gone[2]
    known = filtered.if_undisturbed(1)
    assert known.survival(0) == pytest.approx([1.0, 1.0])
    assert known.undisturbed[1] == 1.0
    assert filtered.undisturbed[1] < 0.9  # the original is as it was


def test_impossible_values_are_survived():
    filtered = feed(RegimeFilter(2), [[1.0, 1.0]] * 10)
    filtered.update(np.array([np.inf, 0.0]), np.array([np.nan, 0.0]), np.array([True, True]))
    filtered.update(np.array([-700.0, 700.0]), np.array([np.inf, 1e-300]), np.array([True, True]))
    assert np.isfinite(filtered.expected).all()
    assert filtered.levels.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert filtered.undisturbed + filtered.lives.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_places_on_the_grid():
    np.testing.assert_allclose(level_position(LEVELS), np.arange(len(LEVELS)), atol=1e-9)


def test_so_many_requests_are_taken_together_that_their_mean_has_little_noise():
    rng = np.random.default_rng(3)
    for sd, least, most in ((0.05, 1, 1), (0.35, 8, 16)):
        filtered, updated = RegimeFilter(1), []
        for number in range(400):
            x = np.array([rng.normal(1.0 if number >= 50 else 0.0, sd if number >= 50 else 0.05)])
            before = filtered.levels
            filtered.take(x, QUIET, MEASURED)
            if filtered.levels is not before:
                updated.append(number)
        assert updated[:50] == list(range(50))
        assert least <= np.median(np.diff(updated[updated.index(49) :])[-12:]) <= most


def test_the_mean_of_several_requests_counts_as_so_many():
    rows = [0.0] * 40 + [1.0] * 80
    each, means = RegimeFilter(1), RegimeFilter(1)
    for x in rows:
        each.update(np.array([x]), QUIET, MEASURED)
    for x in rows[::4]:
        means.update(np.array([x]), QUIET, MEASURED, requests=4)
    assert means.expected == pytest.approx(each.expected, abs=0.01)
    assert means.survival(20) == pytest.approx(each.survival(20), abs=0.1)
    assert means.start_hazard == pytest.approx(each.start_hazard, rel=0.1)
