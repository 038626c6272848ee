"""Windows: rates, percentiles and shares of exactly the last requests."""

from __future__ import annotations

import math

import pytest

from monitor.timing import RequestTimeline, StageTiming
from monitor.window import StageStatistics, TimelineWindow, percentiles_s


def timeline(number: int, completed_s: float, *stages: StageTiming, latency_s: float = 1.0) -> RequestTimeline:
    return RequestTimeline(number, 0, completed_s - latency_s, completed_s, stages)


def timing(stage: int, *times_s: float) -> StageTiming:
    return StageTiming(stage, 0, 0, *times_s, ())


def test_percentiles():
    assert percentiles_s([4.0, 1.0, 3.0, 2.0, 5.0], (0, 50, 75, 100)) == (1.0, 3.0, 4.0, 5.0)
    assert percentiles_s([1.0, 2.0], (25,)) == (1.25,)
    assert [math.isnan(value) for value in percentiles_s([])] == [True, True, True]


def test_an_empty_window_knows_nothing():
    window = TimelineWindow()
    assert window.timelines() == ()
    assert window.latencies_s() == []
    assert math.isnan(window.throughput_hz())
    statistics = window.stage(0)
    assert statistics.requests == 0
    assert all(math.isnan(value) for value in statistics[1:])


def test_one_request_shows_times_but_no_rate():
    window = TimelineWindow()
    window.append(timeline(0, 5.0, timing(0, 0.1, 0.2, 0.3, 0.4, 0.5)))
    assert math.isnan(window.throughput_hz())
    assert window.stage(0)[:6] == (1, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert math.isnan(window.stage(0).share)


def test_the_oldest_are_forgotten():
    window = TimelineWindow(3)
    for number in range(5):
        window.append(timeline(number, 10.0 + number * 0.5, latency_s=number))
    assert [item.request for item in window.timelines()] == [2, 3, 4]
    assert window.latencies_s() == [2.0, 3.0, 4.0]
    assert window.throughput_hz() == 2.0


def test_simultaneous_completions_give_no_rate():
    window = TimelineWindow()
    window.append(timeline(0, 5.0, timing(0, *[1.0] * 5)))
    window.append(timeline(1, 5.0, timing(0, *[1.0] * 5)))
    assert math.isnan(window.throughput_hz())
    assert math.isnan(window.stage(0).share)


def test_stage_statistics_are_medians_and_the_busy_share_of_the_span():
    window = TimelineWindow()
    for number, wall_s in enumerate((9.0, 0.5, 0.25, 0.25)):
        window.append(
            timeline(number, 2.0 * number, timing(0, 1.0, 0.0, 0.0, 0.0, 0.0), timing(1, 0, wall_s, 0.1, 0, 0))
        )
    # completions at 0, 2, 4, 6: the first request's 9 s lie before; 0.5 + 0.25 + 0.25 of 6 s were busy
    assert window.stage(1) == StageStatistics(4, 0.0, 0.375, 0.1, 0.0, 0.0, 1.0 / 6.0)
    assert window.stage(0).queue_s == 1.0
    assert window.stage(2).requests == 0


def test_the_share_is_at_most_all():
    window = TimelineWindow()
    for number in range(3):
        window.append(timeline(number, float(number), timing(0, 0.0, 5.0, 0.0, 0.0, 0.0)))
    assert window.stage(0).share == 1.0


@pytest.mark.parametrize("capacity", [1, 0, -3])
def test_a_window_needs_room_for_two(capacity: int):
    with pytest.raises(ValueError, match=f"a window of {capacity} requests shows no rate"):
        TimelineWindow(capacity)
