"""Periods: which requests count, and when one ends."""

from __future__ import annotations

import math

import pytest

from odin.tuning.instance_steps import InstanceSteps
from odin.tuning.periods import Period, Periods
from odin.tuning.statistic import late_allowed, statistic_of


def periods(**options: object) -> Periods:
    return Periods(InstanceSteps(limit_s=1.0, largest=8, start=4), limit_s=1.0, **options)  # type: ignore[arg-type]


def feed(one: Periods, latencies_s: list[float], *, begin_s: float = 0.0) -> list[Period]:
    """One request after the other, each sent when the one before is answered."""
    ended, now_s = [], begin_s
    for latency_s in latencies_s:
        if (period := one.take(submitted_s=now_s, completed_s=now_s + latency_s)) is not None:
            ended.append(period)
        now_s += latency_s
    return ended


def test_a_period_ends_after_so_many_requests():
    ended = feed(periods(requests=4), [0.5] * 9)
    assert [(one.before, one.after, one.requests) for one in ended] == [(4, 5, 4), (5, 6, 4)]


def test_and_after_so_many_seconds():
    (ended,) = feed(periods(requests=2, seconds=2.25), [0.5] * 7)
    assert (ended.at_s, ended.requests) == (2.5, 5)


def test_it_ends_at_once_when_its_p95_cannot_keep_the_limit_any_more():
    one = periods(requests=40)
    assert late_allowed(40) == 2
    (ended,) = feed(one, [0.5, 2.0, 0.5, 2.0, 0.5, 2.0])
    assert (ended.requests, ended.latency_s, ended.after) == (6, 2.0, 3)
    assert feed(one, [0.5, 2.0, 0.5, 2.0, 0.5]) == []


def test_with_the_mean_late_ones_end_nothing():
    (ended,) = feed(periods(requests=6, statistic="mean"), [0.25, 2.0] * 3)
    assert (ended.latency_s, ended.requests) == (1.125, 6)


def test_requests_that_ran_under_the_value_before_do_not_count():
    one = periods(requests=2)
    one.turned(10.0)
    assert one.take(submitted_s=9.9, completed_s=20.0) is None
    assert one.take(submitted_s=10.0, completed_s=10.9) is None
    assert one.take(submitted_s=10.1, completed_s=11.0) is not None


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (19, 19), (20, 19), (40, 38), (100, 95)])
def test_p95_is_the_value_of_nearest_rank(count, rank):
    values = list(range(count, 0, -1))
    assert statistic_of(values) == rank
    assert late_allowed(count) == count - rank


def test_nothing_has_no_p95():
    assert math.isnan(statistic_of([]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "p99"}, "statistic 'p99' is unknown; choose one of p95, mean"),
        ({"requests": 0}, "a period of 0 requests has no latency"),
        ({"seconds": -1.0}, "a period of -1 s is no number of seconds"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        periods(**options)
