"""Times by the number of samples: what is expected, and timings as those of a full micro-batch."""

from __future__ import annotations

import pytest

from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline, StageTiming

FULL_S = [[0.8, 0.4], [1.6, 0.8]]
SINGLE_S = [[0.1, 0.4], [0.9, 0.1]]
"""On stage 0, the first layer takes time by the sample, the second by the call."""


def timeline(*stages: StageTiming, samples: int) -> RequestTimeline:
    return RequestTimeline(0, 0, 1.0, 3.0, stages, samples=samples)


def timing(stage: int, first: int, last: int, *layer_s: float) -> StageTiming:
    wall_s = sum(layer_s)
    return StageTiming(stage, first, last, 0.25, wall_s, 2 * wall_s, 0.5 * wall_s, 0.125, layer_s)


def test_what_is_expected_lies_on_a_line():
    times = SampleTimes(FULL_S, SINGLE_S, batch=8)
    assert times.at(1)[0].layer_s == pytest.approx([0.1, 0.4])
    assert times.at(4)[0].layer_s == pytest.approx([0.4, 0.4])
    assert times.at(4)[0].behind_s == pytest.approx([0.8, 0.4, 0.0])
    assert times.share(0, 1) == pytest.approx(0.5 / 1.2)
    assert times.share(1, 8) == 1.0


@pytest.mark.parametrize("samples", [0, 8, 9])
def test_of_a_full_one_or_an_unknown_number_nothing_changes(samples: int):
    times = SampleTimes(FULL_S, SINGLE_S, batch=8)
    assert times.at(samples) is times.full
    one = timeline(timing(0, 0, 2, 1.0, 2.0), samples=samples)
    assert times.as_full(one) is one


@pytest.mark.parametrize(("single_s", "batch"), [(None, 8), ([(), ()], 8), (SINGLE_S, 1), (SINGLE_S[:1], 8)])
def test_without_times_of_one_sample_all_are_full(single_s: list[list[float]] | None, batch: int):
    times = SampleTimes(FULL_S, single_s, batch=batch)
    assert times.at(1) is times.full


def test_timings_become_those_of_a_full_micro_batch():
    times = SampleTimes(FULL_S, SINGLE_S, batch=8)
    disturbed = timing(0, 0, 2, 0.2, 0.8)  # twice as slow, of one sample
    passed_by = timing(1, 2, 2)
    full, empty = times.as_full(timeline(disturbed, passed_by, samples=1)).stages
    assert full.layer_s == pytest.approx((1.6, 0.8))
    assert full.wall_s == pytest.approx(2.4)
    assert (full.cpu_s, full.run_delay_s) == pytest.approx((4.8, 1.2))
    assert (full.queue_s, full.transfer_s) == (0.25, 0.125)
    assert empty == passed_by


def test_each_range_of_layers_has_its_own_ratio():
    times = SampleTimes(FULL_S, SINGLE_S, batch=8)
    first, second = times.as_full(timeline(timing(0, 0, 1, 0.1), timing(1, 1, 2, 0.1), samples=1)).stages
    assert (first.wall_s, second.wall_s) == pytest.approx((0.8, 0.8))
