"""Timing records: what a stage writes the gateway reads."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.monitor.timing import RequestTimeline, StageTiming, unpack_timings

SECONDS = st.floats(0, 1e6)
TIMINGS = st.builds(
    lambda stage, first, times, layer_s: StageTiming(stage, first, first + len(layer_s), *times, tuple(layer_s)),
    st.integers(0, 2**16 - 1),
    st.integers(0, 10_000),
    st.tuples(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS),
    st.lists(st.floats(0, 1e6, width=32), max_size=30),
)


@given(st.lists(TIMINGS, max_size=6))
def test_records_appended_by_each_stage_come_back_in_order(timings: list[StageTiming]):
    assert unpack_timings(b"".join(timing.pack() for timing in timings)) == tuple(timings)


def test_size_on_the_wire():
    timing = StageTiming(1, 4, 6, 0.5, 0.25, 0.125, 0.0, 2.0, (0.125, 0.125))
    assert len(timing.pack()) == 2 + 4 + 4 + 5 * 8 + 2 * 4


def test_layer_times_that_were_not_taken_stay_unknown():
    (timing,) = unpack_timings(StageTiming(0, 0, 1, 0.0, 1.0, 1.0, 0.0, 0.0, (float("nan"),)).pack())
    assert timing.layer_s[0] != timing.layer_s[0]


@given(TIMINGS, st.data())
def test_records_that_end_early_are_refused(timing: StageTiming, data: st.DataObject):
    packed = timing.pack()
    cut = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(ValueError, match=rf"timing records end early: {len(packed) + cut} bytes"):
        unpack_timings(packed + packed[:cut])


def test_a_range_that_ends_before_it_begins_is_refused():
    packed = bytearray(StageTiming(0, 3, 3, 0.0, 0.0, 0.0, 0.0, 0.0, ()).pack())
    struct.pack_into("<I", packed, 2, 5)
    with pytest.raises(ValueError, match="record at byte"):
        unpack_timings(bytes(packed))


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_and_raise_nothing_else(data: bytes):
    try:
        timings = unpack_timings(data)
    except ValueError:
        return
    assert b"".join(timing.pack() for timing in timings)[:2] == data[:2]


def test_latency_is_from_submission_to_completion():
    assert RequestTimeline(0, 0, submitted_s=10.0, completed_s=10.25, stages=()).latency_s == 0.25
