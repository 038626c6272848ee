"""When small gains are taken, and how long a change is pending."""

import pytest

from odin.partitioner.policies.break_even import BreakEven
from odin.partitioner.policies.pending_change import PendingChange


def requests_waited(gain, *, every):
    """Requests from the first look that shows a gain to the one at which it is taken."""
    break_even = BreakEven()
    break_even.take(gain, 100)
    request = 100
    while not break_even.is_enough:
        request += every
        break_even.take(gain, request)
    return request - 100


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("gain", [0.02, 0.05, 0.25])
def test_the_smaller_a_gain_the_longer_it_has_to_last(gain, every):
    assert 2 / gain <= requests_waited(gain, every=every) < 2 / gain + every + 1


def test_a_gain_that_was_gone_for_a_moment_starts_anew():
    break_even = BreakEven()
    for request in range(20):
        break_even.take(0.1, request)
    break_even.take(0.0, 20)
    for request in range(21, 40):
        break_even.take(0.1, request)
        assert not break_even.is_enough
    break_even.take(0.1, 42)
    assert break_even.is_enough


def test_nothing_is_pending_before_a_change_was_detected():
    pending = PendingChange()
    assert not pending.is_fresh(1)
    assert not pending.is_unanswered(1)


def test_changes_of_several_stages_are_one_until_answered():
    pending = PendingChange()
    pending.detect(1, 100)
    pending.detect(0, 103)
    assert pending.stages == {0, 1}
    assert pending.is_unanswered(104)
    pending.moves += 1
    assert pending.is_fresh(104)
    assert not pending.is_unanswered(104)
    pending.detect(2, 110)
    assert pending.stages == {2}
    assert pending.is_unanswered(110)


def test_a_pending_change_grows_old():
    pending = PendingChange()
    pending.detect(1, 100)
    assert pending.is_fresh(132)
    assert not pending.is_fresh(133)
    pending.detect(0, 150)
    assert pending.stages == {0}
