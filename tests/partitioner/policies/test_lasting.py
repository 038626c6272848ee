"""How long changes last, and what that says of those at hand."""

import pytest

from odin.partitioner.policies.jumps import Jump
from odin.partitioner.policies.lasting import Lasting


def live_through(lasting, rises, *, calm=40, stage=0):
    """Let a stage rise for so many requests each time, with calm between."""
    for rise in rises:
        lasting.take({stage: Jump(1, 0.7)})
        for _ in range(rise - 1):
            lasting.take({})
        lasting.take({stage: Jump(1, -0.7)})
        for _ in range(calm - 1):
            lasting.take({})


def test_before_anything_was_seen_changes_are_expected_to_last():
    assert Lasting(2).probability([0], age=1, more=8) == pytest.approx((1 - 1 / 64) ** 8)


def rises(lasting, stage=0):
    """Probability of what a stage shows for the first time to last eight more requests."""
    lasting.take({stage: Jump(1, 0.7)})
    return lasting.probability([stage], age=1, more=8)


def test_bursts_are_expected_to_be_over_soon_on_every_stage():
    lasting = Lasting(2)
    live_through(lasting, 12 * [2])
    assert rises(lasting) < 0.3
    assert rises(lasting, stage=1) < 0.3


def test_what_has_outlived_the_bursts_is_expected_to_stay():
    lasting = Lasting(1)
    live_through(lasting, [2, 2, 50, 2, 2, 2, 60, 2, 2, 2, 2, 55, 2, 2])
    assert rises(lasting) < 0.4
    probable = [lasting.probability([0], age=age, more=8) for age in (1, 2, 3, 5)]
    assert probable[2] > 0.6
    assert probable == sorted(probable)


def test_rises_and_falls_are_told_apart():
    lasting = Lasting(2)
    live_through(lasting, 12 * [2])
    assert rises(lasting) < 0.3
    lasting.take({0: Jump(1, -0.7)})
    assert lasting.probability([0], age=1, more=8) > 0.7


def test_the_least_likely_of_several_counts():
    lasting = Lasting(2)
    live_through(lasting, 12 * [2])
    lasting.take({0: Jump(1, 0.7), 1: Jump(1, -0.7)})
    both = lasting.probability([0, 1], age=1, more=8)
    assert both == lasting.probability([0], age=1, more=8) < lasting.probability([1], age=1, more=8)
    assert lasting.probability([], age=1, more=8) == 1.0


def test_far_ahead_the_oldest_bin_counts():
    lasting = Lasting(1)
    assert lasting.probability([0], age=60, more=100) == pytest.approx((1 - 1 / 64) ** 100)
    assert lasting.probability([0], age=200, more=100) == pytest.approx((1 - 1 / 64) ** 100)


def test_what_was_long_ago_is_forgotten():
    lasting = Lasting(1)
    live_through(lasting, 40 * [2])
    live_through(lasting, 400 * [30], calm=2)
    assert rises(lasting) > 0.7
