"""The choice between batching and instances, from given probes."""

from __future__ import annotations

import math

import pytest

from odin.tuning.choice import Probe, best_within, choose, largest_within, predicted_s


def probe(knob, value, ms, hz):
    return Probe(knob, value, ms / 1e3, 0.8 * ms / 1e3, hz)


BATCH = [probe("batch", 1, 10, 100), probe("batch", 8, 60, 133)]
INSTANCES = [probe("instances", 1, 18, 55), probe("instances", 2, 20, 105)]


@pytest.mark.parametrize(
    ("limit_ms", "knob", "start", "keeps"),
    [
        (60, "batch", 8, True),  # 133 samples/s
        (59, "instances", 2, True),  # the larger batch breaks it
        (19, "batch", 1, True),  # 100 against the 55 of one instance
        (9, "batch", 1, False),  # comes nearest
    ],
)
def test_the_one_with_more_throughput_within_the_limit(limit_ms, knob, start, keeps):
    found = choose([*BATCH, *INSTANCES], limit_s=limit_ms / 1e3)
    assert found[:3] == (knob, start, keeps)


def test_the_mean_allows_more_than_the_p95():
    assert choose([*BATCH, *INSTANCES], limit_s=0.050, statistic="mean").knob == "batch"


def test_it_says_why():
    assert choose([*BATCH, *INSTANCES], limit_s=0.009).why == (
        "batching: nothing that was tried keeps 9 ms; a batch of 1 comes nearest (p95 10 ms)"
    )
    assert choose([probe("batch", 1, 30, 33), *INSTANCES], limit_s=0.02).why == (
        "instances: 105 samples/s with 2 instances within 20 ms (p95 20 ms); no number of samples in a batch that was "
        "tried keeps it"
    )


def test_there_must_be_probes():
    with pytest.raises(ValueError, match="no probes to choose by"):
        choose([], limit_s=0.1)


def test_predictions_lie_on_the_line_through_the_nearest_two():
    known = [*BATCH, probe("batch", 16, 100, 160)]
    assert predicted_s(known, 12) == pytest.approx(0.080)
    assert predicted_s(known, 4) == pytest.approx(0.010 + 3 * 0.050 / 7)
    assert predicted_s(known[:1], 12) == pytest.approx(0.010)
    assert math.isnan(predicted_s([], 12))


def test_less_for_more_is_taken_for_equal():
    assert predicted_s([probe("batch", 1, 10, 100), probe("batch", 2, 9, 222)], 8) == pytest.approx(0.010)


def test_the_largest_that_keeps_the_limit_as_predicted():
    assert largest_within(BATCH, limit_s=0.061, largest=32) == 8
    assert largest_within(BATCH, limit_s=0.120, largest=32) == 16
    assert largest_within(BATCH, limit_s=0.001, largest=32) == 1


def test_the_best_of_those_that_keep_the_limit():
    assert best_within(BATCH, limit_s=0.06) == BATCH[1]
    assert best_within(BATCH, limit_s=0.001) is None
