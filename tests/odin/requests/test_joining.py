"""How many requests go as one micro-batch, and when: exact decisions, on a clock of their own."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

import pytest

from odin.requests.admission import Forecast
from odin.requests.joining import Decision, Joining

NEVER = math.inf


class One(NamedTuple):
    samples: int = 1
    deadline_s: float = NEVER
    form: Hashable = "image"
    urgent: bool = False
    entered_s: float = 10.0


def takes(samples: int) -> Forecast:
    """A second, and a tenth for each sample; half as much again is allowed for."""
    seconds = 1.0 + 0.1 * samples
    return Forecast(10.0, seconds, 10.0 + seconds, 10.0 + 1.5 * seconds)


def joined(*line: One, largest: int = 8, wait_s: float = 0.0, now_s: float = 10.0) -> Decision:
    joining = Joining(8, joins=True, wait_s=wait_s)
    joining.largest = largest
    return joining.decide(line, now_s=now_s, predict=takes)


def test_those_who_wait_are_joined_up_to_the_largest():
    assert joined(*[One()] * 3) == (3, NEVER)
    assert joined(*[One()] * 20) == (8, NEVER)
    assert joined(*[One()] * 20, largest=5) == (5, NEVER)
    assert joined(*[One()] * 20, largest=1) == (1, NEVER)


def test_without_joining_each_goes_alone_and_at_once():
    assert Joining(8, wait_s=5.0).decide([One()] * 3, now_s=10.0) == (1, NEVER)


def test_nobody_is_overtaken_by_one_that_would_fit():
    assert joined(One(5), One(4), One(3)) == (1, NEVER)
    assert joined(One(), One(form="video"), One()) == (1, NEVER)


def test_one_that_is_full_or_has_to_be_alone_is_sent_alone():
    assert joined(One(8), One()) == (1, NEVER)
    assert joined(One(form=None), One()) == (1, NEVER)
    assert joined(One(0), One()) == (1, NEVER)
    assert joined(One(), One(0)) == (1, NEVER)


@pytest.mark.parametrize(("deadline_s", "count"), [(11.8, 8), (11.79, 7), (11.45, 4), (11.1, 1)])
def test_no_more_are_joined_than_leave_the_first_in_time(deadline_s: float, count: int):
    assert joined(One(deadline_s=deadline_s), *[One()] * 7).joined == count


def test_one_that_is_late_in_any_case_does_not_hold_others_back():
    assert joined(One(deadline_s=11.05), *[One()] * 7).joined == 8


def test_one_that_comes_late_and_is_in_a_hurry_counts_as_well():
    assert joined(One(), One(), One(deadline_s=11.25)).joined == 2


def test_one_is_held_back_for_others_as_long_as_it_may_be():
    assert joined(One(), One(entered_s=10.2), wait_s=0.5, now_s=10.3) == (0, 10.5)
    assert joined(One(), One(entered_s=10.2), wait_s=0.5, now_s=10.5) == (2, NEVER)


def test_nobody_is_held_back_for_whom_no_other_can_come():
    assert joined(One(8), wait_s=0.5).joined == 1
    assert joined(One(7), One(1), wait_s=0.5).joined == 2
    assert joined(One(7), One(2), wait_s=0.5).joined == 1
    assert joined(One(), One(form="video"), wait_s=0.5).joined == 1
    assert joined(One(urgent=True), wait_s=0.5).joined == 1


def test_one_is_not_held_back_so_long_that_it_would_be_late():
    # a full one takes 1.8 s, of which 2.7 s are allowed for
    assert joined(One(deadline_s=13.0), wait_s=0.5) == (0, pytest.approx(10.3))
    assert joined(One(deadline_s=20.0), wait_s=0.5) == (0, 10.5)
    assert joined(One(deadline_s=12.7), wait_s=0.5) == (1, NEVER)


def test_the_largest_is_from_one_to_the_batch():
    joining = Joining(8, joins=True)
    assert joining.largest == 8
    for wrong in (0, 9, 2.5, None):
        with pytest.raises(ValueError, match="it must be at least 1 and at most 8"):
            joining.largest = wrong  # type: ignore[assignment]


def test_the_line_is_counted_in_micro_batches():
    joining, apart = Joining(8, joins=True), Joining(8)
    assert joining.batches(requests=9, samples=17) == 3
    assert apart.batches(requests=9, samples=17) == 9
    assert joining.ahead(9, mean_samples=2.0) == 2  # 18 samples: two full ones before that of the newcomer
    assert apart.ahead(9, mean_samples=2.0) == 9
    assert [joining.size(3, ahead, mean_samples=2.0) for ahead in (0, 1, 5)] == [3, 5, 8]
    assert [apart.size(2, ahead, mean_samples=8.0) for ahead in (0, 1, 5)] == [2, 5, 7]
    assert joining.size(0, 5, mean_samples=2.0) == 0  # not known
