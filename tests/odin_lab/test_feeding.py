"""The feeding loop: its bound, its answers, what it does with failures; and what a recorder tells apart."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from patience import PROMPT_S

from odin.monitor.events import PlanChanged, RequestDone
from odin.monitor.timing import RequestTimeline
from odin.testing import FakeClock
from odin_lab.feeding import Answer, Feeder, KeptEvents, keep_in_flight


def answered(value=0):
    future = Future()
    future.set_result(value)
    return future


def failed(error):
    future = Future()
    future.set_exception(error)
    return future


def test_requests_are_timed_from_submission_to_completion():
    clock, seen = FakeClock(), []

    def submit(index):
        clock.now_s += 2.0
        return answered()

    left = keep_in_flight(
        submit, in_flight=1, more=lambda index: index < 3, on_done=lambda *told: seen.append(told), clock=clock
    )
    assert left == 0
    assert seen == [(0, 0.0, 2.0, None), (1, 2.0, 4.0, None), (2, 4.0, 6.0, None)]


def test_the_bound_is_kept_and_filled():
    under_way, peak, first = [], [], threading.Event()

    def submit(index):
        future = Future()
        under_way.append(future)
        peak.append(len(under_way))
        if len(under_way) == 3:
            first.set()
            for waiting in (under_way.pop(0), under_way.pop(0), under_way.pop(0)):
                threading.Thread(target=waiting.set_result, args=(0,)).start()
        return future

    assert keep_in_flight(submit, in_flight=3, more=lambda index: index < 9, on_done=lambda *told: None) == 0
    assert max(peak) == 3


def test_what_is_never_answered_is_counted_and_not_waited_for_for_ever():
    def submit(index):
        return answered() if index else Future()

    assert (
        keep_in_flight(submit, in_flight=2, more=lambda index: index < 4, on_done=lambda *told: None, patience_s=0.01)
        == 1
    )


def test_a_failing_submission_is_raised_once_the_others_are_done():
    waiting = Future()

    def submit(index):
        if index == 1:
            threading.Timer(0.02, waiting.set_result, (0,)).start()
            raise KeyError("closed")
        return waiting

    done = []
    with pytest.raises(KeyError, match="closed"):
        keep_in_flight(submit, in_flight=2, more=lambda index: True, on_done=lambda *told: done.append(told[0]))
    assert done == [0]


def test_a_feeder_ends_with_the_first_failure_unless_told_otherwise():
    feeder = Feeder(lambda index: failed(KeyError(index)) if index == 2 else answered(), in_flight=1)
    with feeder:
        feeder._thread.join(PROMPT_S)
    assert [answer.error for answer in feeder.answers] == ["", "", "KeyError(2)"]
    assert isinstance(feeder.error, KeyError)


def test_failures_in_a_row_end_it_and_single_ones_do_not():
    def submit(index):
        return answered() if index < 6 and index % 2 == 0 else failed(OSError(index))

    feeder = Feeder(submit, in_flight=1, failures=3)
    with feeder:
        feeder._thread.join(PROMPT_S)
    assert [bool(answer.error) for answer in feeder.answers] == [False, True, False, True, False, True, True, True]
    assert str(feeder.error) == "7"


def test_leaving_ends_it_while_a_server_hangs():
    feeder = Feeder(lambda index: Future(), in_flight=2, patience_s=0.0)
    with feeder:
        assert feeder.alive
    assert not feeder.alive
    assert (feeder.finished, feeder.unanswered) == (0, 2)


def test_an_answer_without_error_says_so():
    assert Answer(1.0, 2.0).error == ""


def test_a_recorder_keeps_requests_apart_and_puts_them_in_order():
    recorder = KeptEvents()
    for at_s in (1.0, 2.0, 4.0):
        recorder(RequestDone(at_s, RequestTimeline(int(at_s), 0, at_s - 1, at_s, ())))
    moved = PlanChanged(2.0, 2, 1, (1, 1), (2, 0), "move", "", 1.0, 0.1)
    recorder(moved)
    assert recorder.events == [moved]
    assert (recorder.finished, recorder.finished_by(2.0)) == (3, 2)
    assert recorder.throughput_hz(0) == pytest.approx(2 / 3)
    assert [event.at_s for event in recorder.between(1.5, 4.0)] == [2.0, 2.0]
    assert recorder.of(PlanChanged, since_s=2.5) == []
