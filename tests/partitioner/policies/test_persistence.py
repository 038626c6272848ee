"""How long changes last, and what that says of those at hand."""

import pytest

from odin.partitioner.policies.change_points import ChangePoint
from odin.partitioner.policies.persistence import Persistence


def live_through(persistence, rises, *, calm=40, stage=0):
    """Let a stage rise for so many requests each time, with calm between."""
    for rise in rises:
        persistence.take({stage: ChangePoint(1, 0.7)})
        for _ in range(rise - 1):
            persistence.take({})
        persistence.take({stage: ChangePoint(1, -0.7)})
        for _ in range(calm - 1):
            persistence.take({})


def test_before_anything_was_seen_changes_are_expected_to_last():
    assert Persistence(2).probability([0], age=1, more=8) == pytest.approx((1 - 1 / 64) ** 8)


def rises(persistence, stage=0):
    """Probability of what a stage shows for the first time to last eight more requests."""
    persistence.take({stage: ChangePoint(1, 0.7)})
    return persistence.probability([stage], age=1, more=8)


def test_bursts_are_expected_to_be_over_soon_on_every_stage():
    persistence = Persistence(2)
    live_through(persistence, 12 * [2])
    assert rises(persistence) < 0.3
    assert rises(persistence, stage=1) < 0.3


def test_what_has_outlived_the_bursts_is_expected_to_stay():
    persistence = Persistence(1)
    live_through(persistence, [2, 2, 50, 2, 2, 2, 60, 2, 2, 2, 2, 55, 2, 2])
    assert rises(persistence) < 0.4
    probable = [persistence.probability([0], age=age, more=8) for age in (1, 2, 3, 5)]
    assert probable[2] > 0.6
    assert probable == sorted(probable)


def test_rises_and_falls_are_told_apart():
    persistence = Persistence(2)
    live_through(persistence, 12 * [2])
    assert rises(persistence) < 0.3
    persistence.take({0: ChangePoint(1, -0.7)})
    assert persistence.probability([0], age=1, more=8) > 0.7


def test_the_least_likely_of_several_counts():
    persistence = Persistence(2)
    live_through(persistence, 12 * [2])
    persistence.take({0: ChangePoint(1, 0.7), 1: ChangePoint(1, -0.7)})
    both = persistence.probability([0, 1], age=1, more=8)
    assert both == persistence.probability([0], age=1, more=8) < persistence.probability([1], age=1, more=8)
    assert persistence.probability([], age=1, more=8) == 1.0


def test_far_ahead_the_oldest_bin_counts():
    persistence = Persistence(1)
    assert persistence.probability([0], age=60, more=100) == pytest.approx((1 - 1 / 64) ** 100)
    assert persistence.probability([0], age=200, more=100) == pytest.approx((1 - 1 / 64) ** 100)


def test_what_was_long_ago_is_forgotten():
    persistence = Persistence(1)
    live_through(persistence, 40 * [2])
    live_through(persistence, 400 * [30], calm=2)
    assert rises(persistence) > 0.7
