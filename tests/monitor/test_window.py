"""Windows of exactly the last requests, and percentiles."""

from __future__ import annotations

import math

import pytest

from odin.monitor.timing import RequestTimeline
from odin.monitor.window import TimelineWindow, percentiles_s


def test_percentiles():
    assert percentiles_s([4.0, 1.0, 3.0, 2.0, 5.0], (0, 50, 75, 100)) == (1.0, 3.0, 4.0, 5.0)
    assert percentiles_s([1.0, 2.0], (25,)) == (1.25,)
    assert [math.isnan(value) for value in percentiles_s([])] == [True, True, True]


def test_the_oldest_are_forgotten():
    window = TimelineWindow(3)
    assert window.timelines() == ()
    for number in range(5):
        window.append(RequestTimeline(number, 0, 0.0, 1.0, ()))
    assert [item.request for item in window.timelines()] == [2, 3, 4]


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_window_needs_room_for_one(capacity: int):
    with pytest.raises(ValueError, match=f"a window of {capacity} requests remembers nothing"):
        TimelineWindow(capacity)
