"""When small gains are taken, and what counts as news."""

import pytest

from odin.partitioner.policies.news import News
from odin.partitioner.policies.regret import Regret


def requests_waited(gain, *, every):
    """Requests from the first look that shows a gain to the one at which it is taken."""
    regret = Regret()
    regret.take(gain, 100)
    request = 100
    while not regret.is_enough:
        request += every
        regret.take(gain, request)
    return request - 100


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("gain", [0.02, 0.05, 0.25])
def test_the_smaller_a_gain_the_longer_it_has_to_last(gain, every):
    assert 2 / gain <= requests_waited(gain, every=every) < 2 / gain + every + 1


def test_a_gain_that_was_gone_for_a_moment_starts_anew():
    regret = Regret()
    for request in range(20):
        regret.take(0.1, request)
    regret.take(0.0, 20)
    for request in range(21, 40):
        regret.take(0.1, request)
        assert not regret.is_enough
    regret.take(0.1, 42)
    assert regret.is_enough


def test_nothing_is_news_before_anything_was_heard():
    news = News()
    assert not news.is_fresh(1)
    assert not news.is_unanswered(1)


def test_changes_of_several_stages_are_one_until_answered():
    news = News()
    news.hear(1, 100)
    news.hear(0, 103)
    assert news.stages == {0, 1}
    assert news.is_unanswered(104)
    news.moves += 1
    assert news.is_fresh(104)
    assert not news.is_unanswered(104)
    news.hear(2, 110)
    assert news.stages == {2}
    assert news.is_unanswered(110)


def test_news_grow_old():
    news = News()
    news.hear(1, 100)
    assert news.is_fresh(132)
    assert not news.is_fresh(133)
    news.hear(0, 150)
    assert news.stages == {0}
