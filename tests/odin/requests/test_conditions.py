"""The stages as predictions see them: by their own words, or by what the last requests took."""

from __future__ import annotations

import math
import os

import pytest

from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.relay import Windows
from odin.requests.conditions import Conditions, Sent
from odin.stages.channel.shared_queue import QueueWords, StageWords

BASELINE_S = [[0.1, 0.3], [0.2, 0.6]]
PLAN = Windows.parse("@1|@2")
OPEN = Windows.parse("@0-2|@2")


@pytest.fixture
def words():
    page = QueueWords.make(2)
    yield QueueWords(page)
    os.close(page)


def timeline(submitted_s: float, completed_s: float, *stages: tuple[int, int, int, float, float]) -> RequestTimeline:
    """Stages as (index, first, last, queue, wall)."""
    timings = tuple(
        StageTiming(stage, first, last, queue_s, wall_s, 0.0, 0.0, 0.0, ())
        for stage, first, last, queue_s, wall_s in stages
    )
    return RequestTimeline(0, 0, submitted_s, completed_s, timings)


def test_stages_say_when_they_are_free_and_how_slow(words: QueueWords):
    words.tell(0, StageWords(math.inf, 10.5, 2.0))  # busy, twice as slow: 0.8 s for a whole request
    words.tell(1, StageWords(10.0, 10.0, 1.0))  # idle: 0.8 s
    conditions = Conditions(BASELINE_S, words)
    assert [conditions.shared(10.0).exit_s(ahead) for ahead in range(3)] == pytest.approx([10.8, 11.3, 11.6])
    words.note_sent(2)
    assert conditions.shared(10.0).exit_s(0) == pytest.approx(11.6)


def test_one_that_is_late_is_expected_as_much_later_again_and_an_idle_one_recovers(words: QueueWords):
    words.tell(0, StageWords(math.inf, 9.0, 1.0))  # should have been free a second ago
    words.tell(1, StageWords(2.0, 2.0, 3.0))  # idle for as long as ten requests take: half of it is forgotten
    exits = Conditions(BASELINE_S, words).shared(10.0)
    assert [exits.exit_s(ahead) for ahead in range(2)] == pytest.approx([11.6, 11.4])


def test_those_that_have_said_nothing_yet_are_taken_for_free(words: QueueWords):
    assert Conditions(BASELINE_S, words).shared(10.0).exit_s(0) == pytest.approx(10.4)


def test_lost_stages_count_for_nothing(words: QueueWords):
    conditions = Conditions(BASELINE_S, words)
    conditions.live = [1]
    assert [conditions.shared(10.0).exit_s(ahead) for ahead in range(2)] == pytest.approx([10.8, 11.6])
    conditions.live = []
    assert conditions.shared(10.0).exit_s(0) == math.inf


def test_in_a_line_baselines_count_until_requests_have_come_back():
    conditions = Conditions(BASELINE_S)
    assert conditions.in_line(10.0, PLAN, []).exit_s(0) == pytest.approx(10.7)
    assert conditions.in_line(10.0, PLAN, [Sent(10.0), Sent(10.0)]).exit_s(0) == pytest.approx(10.1 + 3 * 0.6)
    assert conditions.in_line(10.0, Windows.parse("@2|@2"), []).exit_s(0) == pytest.approx(10.4)


def test_in_a_line_the_last_requests_tell_how_slow_stages_are():
    conditions = Conditions(BASELINE_S)
    conditions.answered(timeline(8.0, 10.0, (0, 0, 1, 0.0, 0.1), (1, 1, 2, 0.0, 1.6)))
    # slowdown 1 + 0.3 (1.6 / 0.6 - 1) = 1.5
    assert conditions.in_line(10.0, PLAN, []).exit_s(0) == pytest.approx(11.0)
    assert conditions.in_line(10.0, PLAN, [Sent(9.9)]).exit_s(0) == pytest.approx(11.8)  # it leaves stage 1 at 10.9
    # under another plan it is as slow
    assert conditions.in_line(10.0, Windows.parse("@0|@2"), []).exit_s(0) == pytest.approx(11.2)


def test_a_slowdown_that_is_not_seen_any_more_is_forgotten():
    conditions = Conditions(BASELINE_S)
    conditions.answered(timeline(8.0, 10.0, (0, 0, 1, 0.0, 0.1), (1, 1, 2, 0.0, 1.6)))
    assert conditions.in_line(18.0, PLAN, []).exit_s(0) == pytest.approx(18.0 + 0.1 + 1.25 * 0.6)
    assert conditions.in_line(1000.0, PLAN, []).exit_s(0) == pytest.approx(1000.7)


def test_where_windows_leave_open_who_runs_what_the_last_requests_tell():
    conditions = Conditions(BASELINE_S)
    assert conditions.in_line(10.0, OPEN, []).exit_s(0) == pytest.approx(10.7)  # a half each: nothing is known
    conditions.answered(timeline(9.0, 10.0, (0, 0, 2, 0.0, 0.5)))
    assert conditions.in_line(10.0, OPEN, []).exit_s(0) == pytest.approx(10.5)
    conditions.answered(timeline(9.0, 10.0, (0, 0, 1, 0.0, 0.2), (1, 1, 2, 0.0, 0.5)))
    assert conditions.in_line(10.0, OPEN, []).exit_s(0) == pytest.approx(10.0 + 0.41 + 0.15)


def test_windows_of_the_live_stages_have_a_row_for_each_of_them():
    conditions = Conditions([*BASELINE_S, [1.0, 1.0]])
    conditions.live = [0, 2]
    assert conditions.in_line(10.0, PLAN, []).exit_s(0) == pytest.approx(11.1)


def test_a_share_of_the_devices_lets_requests_wait_for_pauses(words: QueueWords):
    for stage in range(2):
        words.tell(stage, StageWords(10.0, 10.0, 1.0))
    conditions = Conditions(BASELINE_S, words, share=0.5)  # turns of 0.8 and 1.6 s
    assert [conditions.shared(10.0).exit_s(ahead) for ahead in range(3)] == pytest.approx([10.4, 10.8, 11.2])
    line = conditions.in_line(10.0, PLAN, [])  # 0.1 and 0.6 s, turns of 0.2 and 1.2 s
    assert [line.exit_s(ahead) for ahead in range(3)] == pytest.approx([10.7, 11.9, 13.1])
    # Disturbed so much that a stage has its core for less than that anyway, it does not pause.
    for _ in range(40):
        conditions.answered(timeline(0.0, 10.0, (0, 0, 1, 0.0, 0.5), (1, 1, 2, 0.0, 3.0)))
    line = conditions.in_line(10.0, PLAN, [])
    assert line.exit_s(1) - line.exit_s(0) == pytest.approx(3.0, rel=1e-3)
