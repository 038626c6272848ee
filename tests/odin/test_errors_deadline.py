"""What the errors of refused requests say, and that they survive pickling."""

from __future__ import annotations

import math
import pickle

import odin


def test_a_refusal_names_prediction_deadline_and_remedy():
    error = odin.DeadlineExceededError.of_refusal(predicted_s=0.3121, left_s=0.2, ahead=4)
    assert str(error) == (
        "refused: it would be done in 312.1 ms, its deadline is in 200.0 ms, with 4 requests ahead of it; "
        "send less at a time, allow longer, or take all (admission='none')"
    )
    assert (error.refused, error.predicted_s) == (True, 0.3121)
    assert isinstance(error, TimeoutError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.refused, again.predicted_s) == (str(error), True, 0.3121)


def test_a_refusal_says_for_whose_sake_it_is():
    told = {
        "delays": "in time, but an accepted one behind it would be late (with 1 request ahead of it); send less",
        "crowded": (
            "barely in time, and others will come before its turn that need not wait for theirs (with 1 request ahead "
            "of it); send less"
        ),
    }
    for why, text in told.items():
        error = odin.DeadlineExceededError.of_refusal(predicted_s=0.1, left_s=0.2, ahead=1, **{why: True})
        assert text in str(error)


def test_a_deadline_that_passed_is_no_refusal():
    error = odin.DeadlineExceededError("its deadline passed while it was with the stages")
    assert not error.refused
    assert math.isnan(error.predicted_s)


def test_no_room_names_limit_and_remedy():
    error = odin.QueueFullError(in_flight=3, waiting=5, limit=5, option="max_waiting")
    assert str(error) == (
        "no room: 3 requests are under way and 5 wait, and max_waiting is 5; submit again later, wait for a place "
        "(wait=True), or allow more (max_waiting=)"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.in_flight, again.waiting, again.limit) == (str(error), 3, 5, 5)
