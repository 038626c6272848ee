"""How long a detected change is pending."""

from odin.partitioner.policies.pending_change import PendingChange


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
