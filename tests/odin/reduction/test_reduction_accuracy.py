"""Shares with their intervals, and forms within a budget: exact figures."""

from __future__ import annotations

import math

import pytest

from odin.reduction.accuracy import Answers, calibration_error, judge, paired_loss, wilson
from odin.reduction.budget import Option, within_budget

FULL, LATE, EARLY = Option("full", 8e-3, 0.0), Option("exit-7", 5e-3, 0.002), Option("exit-2", 2e-3, 0.04)
OPTIONS = (EARLY, FULL, LATE)


def test_wilson_as_published():
    # Newcombe (1998), table I: 81 of 263, and 0 of 20
    assert [round(end, 4) for end in wilson(81, 263)] == [0.3080, 0.2553, 0.3662]
    assert [round(end, 4) for end in wilson(0, 20)] == [0.0, 0.0, 0.1611]
    assert wilson(20, 20).high == 1.0


@pytest.mark.parametrize(("count", "total"), [(1, 0), (3, 2), (-1, 2)])
def test_no_share(count, total):
    with pytest.raises(ValueError, match="is no share"):
        wilson(count, total)


def test_a_paired_loss_knows_more_than_two_accuracies():
    loss = paired_loss(3, 1, 600)
    assert loss.value == 2 / 600
    assert loss.low < 0 < loss.high < 0.012
    alone = wilson(594, 600)
    assert loss.high - loss.low < 2 * (alone.high - alone.low)
    assert paired_loss(1, 3, 600).value == -2 / 600
    with pytest.raises(ValueError, match="no counts of disagreement"):
        paired_loss(3, 3, 5)


def test_calibration_error_by_hand():
    # one bin of 0.9 with half of its answers right, one of 0.2 with all wrong
    assert calibration_error([0.92, 0.92, 0.21, 0.21], [True, False, False, False]) == pytest.approx(0.315)
    assert calibration_error([1.0, 1.0], [True, True]) == 0.0
    with pytest.raises(ValueError, match="one of each"):
        calibration_error([1.0], [])
    with pytest.raises(ValueError, match="bins=0"):
        calibration_error([1.0], [True], bins=0)


def test_judgement_beside_the_full_model():
    full = Answers([0, 1, 2, 3], [1.0] * 4)
    found = judge(Answers([0, 1, 2, 0], [1.0] * 4), full, [0, 1, 0, 3])
    assert (found.images, found.accuracy.value, found.lost.value, found.agreement) == (4, 0.5, 0.25, 0.75)
    assert found.calibration_error == 0.5
    with pytest.raises(ValueError, match="one of each per image"):
        judge(full, full, [1])


def test_an_option_that_is_slower_and_worse_is_left_out_and_one_that_gained_by_chance_replaces_nothing():
    slow, lucky = Option("width-0.5", 6e-3, 0.003), Option("exit-9", 7e-3, -0.001)
    assert within_budget((slow, lucky, *OPTIONS), 0.1) == [FULL, lucky, LATE, EARLY]


@pytest.mark.parametrize("budget", [1.0, -0.1, math.nan, True, "0.1"])
def test_budgets_that_make_no_sense(budget):
    with pytest.raises(ValueError, match="accuracy budget of"):
        within_budget(OPTIONS, budget)
