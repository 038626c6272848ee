"""Who is called ahead: how often that is wrong, on noise as unkind as that of machines."""

from __future__ import annotations

import numpy as np
import pytest

from odin_lab.report.medians import interval_level, leader, median_of, verdict

STUDIES = 2000


def campaign(random, *, blocks, speeds, correlation=0.8):
    """Throughputs of one benchmark, (blocks, contenders), in whose every block the contenders ran in a drawn order.

    Skewed, as hiccups only slow down; one autoregressive drift goes through all runs, in and between blocks.
    """
    contenders = len(speeds)
    hiccups = random.exponential(0.05, (blocks, contenders)) + (random.random((blocks, contenders)) < 0.1) * 0.3
    drift = np.zeros(blocks * contenders)
    for run in range(1, len(drift)):
        drift[run] = correlation * drift[run - 1] + random.normal(0.0, 0.05)
    slower = hiccups + np.take_along_axis(
        drift.reshape(blocks, contenders),
        np.argsort(random.random((blocks, contenders)), axis=1),
        axis=1,
    )
    return np.asarray(speeds) * np.exp(-slower)


@pytest.mark.parametrize("blocks", [6, 20, 25])
def test_the_paired_interval_holds_the_true_ratio_as_often_as_it_says(blocks):
    random = np.random.default_rng(blocks)
    held = 0
    for _ in range(STUDIES):
        found = campaign(random, blocks=blocks, speeds=(1.2, 1.0, 1.0))
        median = median_of(found[:, 0] / found[:, 1])
        held += median.low <= 1.2 <= median.high
    level = interval_level(blocks)
    assert level >= 0.95
    # Four standard errors of so many studies.
    assert held / STUDIES == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / STUDIES))


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 0.5, 0.5), (1.0,) * 8])
def test_of_equals_one_is_called_ahead_in_at_most_5_percent_of_the_studies(speeds):
    random = np.random.default_rng(len(speeds))
    wrong = 0
    for _ in range(STUDIES):
        found = campaign(random, blocks=20, speeds=speeds)
        wrong += leader({name: dict(enumerate(column)) for name, column in enumerate(found.T)}) is not None
    error = np.sqrt(0.05 * 0.95 / STUDIES)
    assert wrong / STUDIES <= 0.05 + 4 * error


def test_who_is_ahead_by_a_fifth_is_found():
    random = np.random.default_rng(1)
    found = [campaign(random, blocks=20, speeds=(1.0, 1.2, 1.0)).T for _ in range(200)]
    assert sum(leader(dict(enumerate(dict(enumerate(c)) for c in columns))) == 1 for columns in found) > 150


def test_the_words_for_it():
    assert verdict([1.1] * 6) == "ahead"
    assert verdict([0.9] * 6) == "behind"
    assert verdict([0.9] * 6, lower_is_better=True) == "ahead"
    assert verdict([1.1] * 5) == "no difference seen"  # all five, which is so by chance in one case of sixteen
    assert verdict([0.94, 1.07, 1.09]) == "no difference seen"
    assert verdict([1.0] * 20) == "no difference seen"
    assert verdict([]) == ""


def test_only_repeats_of_both_are_compared():
    own = dict.fromkeys(range(6), 2.0)
    assert leader({"a": own, "b": dict.fromkeys(range(6), 1.0)}) == "a"
    assert leader({"a": own, "b": dict.fromkeys(range(5), 1.0)}) is None
    assert leader({"a": own, "b": dict.fromkeys(range(6), 3.0)}, lower_is_better=True) == "a"
    assert leader({"a": own}) is None
