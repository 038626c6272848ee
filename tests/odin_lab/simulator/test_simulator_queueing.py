"""The line of stages against closed forms and against an event simulation that knows nothing of running maxima."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import examples

from odin_lab.simulator.queueing import Line


def by_events(entries_s, busy_s, receive_s, send_s, slots):
    """When each request leaves each stage: stages as state machines, one event after the other."""
    requests, stages = busy_s.shape
    left_s = np.full((requests, stages), np.nan)
    waiting = [[] for _ in range(stages)]  # requests in each stage's channel, not begun with
    free = [slots] * stages  # of the channel behind each stage
    holding = [None] * stages  # the request that a stage is at
    blocked = [False] * stages
    events, order = [], itertools.count()

    def later(at_s, what, stage):
        heapq.heappush(events, (at_s, next(order), what, stage))

    def begin(at_s, stage):
        if holding[stage] is None and waiting[stage]:
            holding[stage] = waiting[stage].pop(0)
            later(at_s + receive_s[stage] + busy_s[holding[stage], stage], "computed", stage)

    def hand_on(at_s, stage):
        last = stage == stages - 1
        if not last and free[stage] == 0:
            blocked[stage] = True
            return
        blocked[stage] = False
        free[stage] -= not last
        later(at_s + send_s[stage], "sent", stage)

    for request, at_s in enumerate(entries_s):
        later(at_s, "entry", request)
    while events:
        at_s, _, what, stage = heapq.heappop(events)
        if what == "entry":
            waiting[0].append(stage)
            begin(at_s, 0)
        elif what == "computed":
            hand_on(at_s, stage)
        else:
            request, holding[stage] = holding[stage], None
            left_s[request, stage] = at_s
            if stage + 1 < stages:
                waiting[stage + 1].append(request)
                begin(at_s, stage + 1)
            if stage > 0:
                free[stage - 1] += 1
                if blocked[stage - 1]:
                    hand_on(at_s, stage - 1)
            begin(at_s, stage)
    return left_s


def run_line(entries_s, busy_s, receive_s, send_s, slots, chunks, late=None):
    """Let requests pass a line, loaded in chunks of the given sizes; ``late`` stages' times become known afterwards."""
    requests, stages = busy_s.shape
    line, left_s, begin = Line(stages, slots=slots), [], 0
    late = late or {}
    known_s = busy_s.copy()
    for request, stage in late.items():
        known_s[request, stage] = 0.0
    sizes = itertools.cycle(chunks)
    while begin < requests:
        end = min(requests, begin + next(sizes))
        line.load(known_s[begin:end], receive_s, send_s)
        for request in range(begin, end):
            at_s = line.step(request - begin, entries_s[request])
            if request in late:
                stage = late[request]
                at_s = line.lengthen(request - begin, stage, busy_s[request, stage], entries_s[request])
            assert at_s == line.left_s[-1]
            left_s.append(at_s)
        begin = end
    return np.array(left_s)


@st.composite
def cases(draw):
    stages = draw(st.integers(1, 6))
    requests = draw(st.integers(1, 25))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Whole numbers make ties, zeros are stages without layers.
    kind = draw(st.sampled_from(["whole", "any"]))

    def numbers(*shape):
        return random.integers(0, 5, shape).astype(float) if kind == "whole" else random.exponential(2.0, shape)

    busy_s = numbers(requests, stages)
    entries_s = np.cumsum(numbers(requests)) * draw(st.sampled_from([0.0, 0.5, 1.5]))
    slots = draw(st.integers(1, 3))
    chunks = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    late = draw(st.dictionaries(st.integers(0, requests - 1), st.integers(0, stages - 1), max_size=5))
    return entries_s, busy_s, numbers(stages), numbers(stages), slots, chunks, late


@given(cases())
@settings(max_examples=examples(300))
def test_equals_an_event_simulation(case):
    entries_s, busy_s, receive_s, send_s, slots, chunks, late = case

    expected_s = by_events(entries_s, busy_s, receive_s, send_s, slots)

    found_s = run_line(entries_s, busy_s, receive_s, send_s, slots, chunks, late)
    np.testing.assert_allclose(found_s, expected_s[:, -1], rtol=1e-12, atol=1e-9)


def test_makespan_of_a_deterministic_tandem_queue():
    busy_s = np.tile([2.0, 3.0, 1.0], (10, 1))
    free_s = np.zeros(3)

    left_s = run_line(np.zeros(10), busy_s, free_s, free_s, 2, [4])

    np.testing.assert_allclose(left_s, 6.0 + 3.0 * np.arange(10))


def test_a_stage_waits_for_a_slot_of_the_next_before_it_begins_another():
    """Stage 1 takes 10 s; with one slot stage 0 cannot hand on its second result before stage 1 is done."""
    busy_s = np.array([[1.0, 10.0], [1.0, 10.0], [1.0, 0.0]])
    line = Line(2, slots=1)
    line.load(busy_s, np.zeros(2), np.zeros(2))

    left_s = [line.step(index, 0.0) for index in range(3)]

    # Sent at 1, 11 and 21; with two slots the third would wait beside stage 1 from 11 on.
    assert left_s == [11.0, 21.0, 21.0]
    assert by_events(np.zeros(3), busy_s, np.zeros(2), np.zeros(2), 1)[:, 0].tolist() == [1.0, 11.0, 21.0]
    assert by_events(np.zeros(3), busy_s, np.zeros(2), np.zeros(2), 2)[:, 0].tolist() == [1.0, 2.0, 11.0]


def test_when_a_stage_began():
    line = Line(2)
    line.load(np.array([[1.0, 5.0], [1.0, 5.0]]), np.array([0.1, 0.2]), np.array([0.3, 0.0]))

    line.step(0, 7.0)
    assert (line.began_s(0, 7.0), line.began_s(1, 7.0)) == pytest.approx((7.1, 8.4 + 0.2))
    line.step(1, 7.0)
    assert (line.began_s(0, 7.0), line.began_s(1, 7.0)) == pytest.approx((8.4 + 0.1, 8.4 + 5.2 + 0.2))


@pytest.mark.parametrize(("stages", "slots"), [(0, 2), (2, 0)])
def test_needs_stages_and_slots(stages, slots):
    with pytest.raises(ValueError, match="at least 1"):
        Line(stages, slots=slots)
