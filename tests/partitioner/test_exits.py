"""When a request will have left the stages: exact for both kinds of pipelines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.partitioner.exits import LineExits, SharedExits, left_line

SECONDS = st.floats(0.0, 5.0)
STAGES = st.lists(st.tuples(SECONDS, st.floats(0.05, 3.0)), min_size=1, max_size=6)

# Multiples of 1/64, of which sums are exact: where two stages are free at the same moment, rounding must not choose.
EXACT_STAGES = st.lists(
    st.tuples(st.integers(0, 320), st.integers(3, 192)).map(lambda pair: (pair[0] / 64, pair[1] / 64)),
    min_size=1,
    max_size=6,
)


def one_by_one(stages: list[tuple[float, float]], ahead: int) -> float:
    """Each request to the stage that is free first, the faster one of two that are."""
    free_s = [at_s for at_s, _ in stages]
    for _ in range(ahead + 1):
        first = min(range(len(stages)), key=lambda stage: (free_s[stage], stages[stage][1]))
        free_s[first] += stages[first][1]
    return free_s[first]


def through_all(now_s: float, stages: list[tuple[float, float]], ahead: int) -> float:
    left_s = [at_s for at_s, _ in stages]
    for _ in range(ahead + 1):
        at_s = now_s
        for stage, (_, takes_s) in enumerate(stages):
            at_s = left_s[stage] = max(at_s, left_s[stage]) + takes_s
    return at_s


def test_a_stage_that_is_free_takes_the_next_request():
    # stage 0 takes r0 10-12, r2 12-14; stage 1 takes r1 10.5-14.5, r4 14.5-18.5; r3 14-16 on stage 0
    stages = SharedExits([10.0, 10.5], [2.0, 4.0])
    assert [stages.exit_s(ahead) for ahead in range(5)] == [12.0, 14.5, 14.0, 16.0, 18.5]


def test_what_waits_in_the_queue_is_ahead():
    assert SharedExits([10.0, 10.5], [2.0, 4.0], waiting=2).exit_s(1) == 16.0


def test_in_a_line_the_slowest_stage_sets_the_pace():
    # stage 1 is busy to 11 and takes 2 s: r0 10-11, 11-13; r1 11-12, 13-15
    assert [LineExits(10.0, [10.0, 11.0], [1.0, 2.0]).exit_s(ahead) for ahead in range(3)] == [13.0, 15.0, 17.0]
    # the first stage is the slow one, and busy to 14
    assert LineExits(10.0, [14.0, 11.0], [3.0, 1.0]).exit_s(1) == 14.0 + 2 * 3.0 + 1.0


def test_a_stage_without_layers_takes_no_time():
    assert LineExits(10.0, [10.0, 10.0, 10.0], [1.0, 0.0, 2.0]).exit_s(0) == 13.0


@pytest.mark.parametrize(
    ("sent_s", "now_s", "left_s"),
    [
        ([], 5.0, [1.0, 3.0]),
        ([2.0], 2.5, [3.0, 5.0]),
        ([2.0, 2.0], 2.5, [4.0, 7.0]),
        ([2.0, 2.0], 6.0, [6.0, 9.0]),  # the first should have left at 5: expected at 7, and all else 2 s later
    ],
)
def test_what_is_under_way_keeps_the_stages_busy(sent_s: list[float], now_s: float, left_s: list[float]):
    assert left_line([1.0, 3.0], [(at_s, [1.0, 2.0], ()) for at_s in sent_s], now_s=now_s) == left_s


@given(EXACT_STAGES, st.integers(0, 150))
def test_counting_gives_what_taking_one_by_one_does(stages: list[tuple[float, float]], ahead: int):
    free_s, chain_s = zip(*stages, strict=True)
    assert SharedExits(free_s, chain_s).exit_s(ahead) == pytest.approx(one_by_one(stages, ahead), abs=1e-9)


@given(st.floats(0.0, 5.0), STAGES, st.integers(0, 80))
def test_the_longest_way_is_the_recursion(now_s: float, stages: list[tuple[float, float]], ahead: int):
    free_s, stage_s = zip(*stages, strict=True)
    assert LineExits(now_s, free_s, stage_s).exit_s(ahead) == pytest.approx(through_all(now_s, stages, ahead), abs=1e-9)


@given(STAGES, st.integers(0, 60), st.integers(0, 5))
def test_who_is_busy_longer_is_never_sooner_done(stages: list[tuple[float, float]], ahead: int, stage: int):
    free_s, chain_s = map(list, zip(*stages, strict=True))
    before_s = LineExits(0.0, free_s, chain_s).exit_s(ahead)
    free_s[stage % len(free_s)] += 1.0
    assert LineExits(0.0, free_s, chain_s).exit_s(ahead) >= before_s


def test_pauses_between_requests_hold_up_who_comes_later_but_are_no_part_of_a_request():
    line = LineExits(10.0, [10.0, 10.0], [1.0, 2.0], turn_s=[4.0, 5.0])
    assert [line.exit_s(ahead) for ahead in range(3)] == [13.0, 18.0, 23.0]
    shared = SharedExits([10.0, 10.5], [1.0, 1.0], turn_s=[4.0, 4.0])
    assert [shared.exit_s(ahead) for ahead in range(4)] == [11.0, 11.5, 15.0, 15.5]
    assert left_line([0.0, 0.0], [(10.0, [1.0, 2.0], [4.0, 5.0])] * 2, now_s=10.5) == [18.0, 21.0]
