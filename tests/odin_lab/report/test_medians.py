"""Medians of few repeats: their intervals hold the true median as often as they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from odin_lab.report.medians import Median, interval_level, interval_text, median_of


def test_three_repeats_were_said_to_have_a_confidence_of_95_percent():
    """Their bootstrapped interval is their range, and that holds the true median three times out of four."""
    assert median_of([2.0, 1.0, 4.0, math.nan]) == Median(2.0, 1.0, 4.0, 3, 0.75)
    assert interval_text(3) == "range of 3 repeats, which holds the true median with 75%"


@pytest.mark.parametrize(
    ("repeats", "low", "high", "level"),
    [(2, 0, 1, 0.5), (5, 0, 4, 0.9375), (6, 0, 5, 0.96875), (8, 0, 7, 0.9921875), (9, 1, 7, 0.9609375),
     (20, 5, 14, 0.95861), (21, 5, 15, 0.97340), (100, 39, 60, 0.96479)],
)  # fmt: skip
def test_the_levels_are_those_of_the_tables(repeats, low, high, level):
    found = median_of(float(value) for value in range(repeats))
    assert (found.low, found.high, found.repeats) == (low, high, repeats)
    assert found.level == interval_level(repeats) == pytest.approx(level, abs=1e-5)


@pytest.mark.parametrize("repeats", [2, 3, 5, 6, 9, 12])
def test_the_level_is_how_often_the_interval_holds_the_median(repeats):
    """Each repeat is below the true median or above it, all ways alike."""
    held = 0
    for signs in itertools.product((-1.0, 1.0), repeat=repeats):
        found = median_of(sign * (1 + index) for index, sign in enumerate(signs))
        held += found.low < 0 < found.high
    assert held / 2**repeats == interval_level(repeats)


def test_of_many_repeats_the_interval_shrinks():
    values = np.random.default_rng(0).normal(10.0, 1.0, 1000)
    found = median_of(values)
    assert 9.8 < found.low < found.median < found.high < 10.2
    assert 0.95 <= found.level < 0.96


def test_an_interval_is_told_as_far_as_there_is_one():
    assert median_of([1.0, 3.0]).told("{:.1f}".format) == "2.0 (1.0..3.0)"
    assert median_of([1.0]).told("{:.1f}".format) == "1.0"
    assert median_of([math.nan]).told("{:.1f}".format) == "-"
    assert median_of([3.0])[:1] == (3.0,)
    assert all(map(math.isnan, median_of([3.0])[1:3]))
    assert math.isnan(interval_level(1))
    assert interval_text(1) == "one repeat, no interval"
    assert interval_text(9) == "96% confidence interval of the median of 9 repeats"
    assert "100%" not in interval_text(60)
