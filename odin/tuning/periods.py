"""Gathers latencies into periods, and turns the knob at the end of each: the tuner without threads and pipelines."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, NamedTuple

from odin.tuning.policy import KnobPolicy
from odin.tuning.statistic import check_statistic, late_allowed, statistic_of

__all__ = ["REQUESTS", "Period", "Periods"]

REQUESTS = 40
"""Requests of a period: the p95 of fewer than 20 is their maximum."""


class Period(NamedTuple):
    """A period that has ended.

    Attributes
    ----------
    at_s
        When.
    before, after
        Values of the knob in it and from now on.
    latency_s
        The statistic of its latencies.
    requests
        How many there were.
    """

    at_s: float
    before: int
    after: int
    latency_s: float
    requests: int


class Periods:
    """Takes finished requests one by one.

    A period counts only requests that were sent after the knob was turned last: those before ran under another value.
    It ends after so many requests and so many seconds; with the p95 at once when so many were late that its p95 breaks
    the limit whatever comes. One in which most requests did not use what the knob allows, as micro-batches that are not
    full, says nothing of larger values: then the policy is asked only if the limit was broken.

    Parameters
    ----------
    policy
        Asked at the end of each period.
    limit_s
        Seconds that the statistic is to keep.
    statistic
        ``p95`` or ``mean``.
    requests, seconds
        Least length of a period.

    Attributes
    ----------
    policy
        Whose ``value`` the knob is to have.

    Examples
    --------
    >>> from odin.tuning.instance_steps import InstanceSteps
    >>> periods = Periods(InstanceSteps(limit_s=0.1, largest=4), limit_s=0.1, requests=3)
    >>> [periods.take(submitted_s=at_s, completed_s=at_s + 0.0625) for at_s in (0.0, 0.25, 0.5)][-1]
    Period(at_s=0.5625, before=1, after=2, latency_s=0.0625, requests=3)
    """

    def __init__(
        self,
        policy: KnobPolicy,
        *,
        limit_s: float,
        statistic: str = "p95",
        requests: int = REQUESTS,
        seconds: float = 0.0,
    ) -> None:
        check_statistic(statistic)
        requests, seconds = _checked(requests, seconds)
        self.policy = policy
        self._limit_s, self._statistic = limit_s, statistic
        self._requests, self._seconds = requests, seconds
        self._since_s = -math.inf
        self._began_s: float | None = None
        self._latencies_s: list[float] = []
        self._late = self._full = 0

    def take(self, *, submitted_s: float, completed_s: float, full: bool = True) -> Period | None:
        """Take a finished request, and whether it used what the knob allows; returns the period that ends with it.

        The knob is to be turned to ``after`` then, and :meth:`turned` to be called.
        """
        if submitted_s < self._since_s:
            return None
        if self._began_s is None:
            self._began_s = submitted_s
        latency_s = completed_s - submitted_s
        self._latencies_s.append(latency_s)
        self._late += latency_s > self._limit_s
        self._full += full
        count = len(self._latencies_s)
        whole = count >= self._requests and completed_s - self._began_s >= self._seconds
        lost = self._statistic == "p95" and self._late > late_allowed(max(count, self._requests))
        if not (whole or lost):
            return None
        before, value_s = self.policy.value, statistic_of(self._latencies_s, self._statistic)
        tells = 2 * self._full >= count or value_s > self._limit_s
        period = Period(completed_s, before, self.policy.update(value_s) if tells else before, value_s, count)
        self._begin_anew()
        return period

    def turned(self, at_s: float) -> None:
        """The knob has its new value from now on."""
        self._since_s = at_s
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._began_s, self._late, self._full = None, 0, 0
        self._latencies_s.clear()


def _checked(requests: Any, seconds: Any) -> tuple[int, float]:
    """The least length of a period; ``ValueError`` if it is none."""
    try:
        count = operator.index(requests)
    except TypeError:
        raise ValueError(f"a period of requests={requests!r}: give a whole number, better 20 or more") from None
    if count < 1:
        raise ValueError(f"a period of {count} requests has no latency; give at least 1, better 20 or more")
    known = isinstance(seconds, Real) and not isinstance(seconds, bool)
    if not known or not 0 <= seconds < math.inf:
        told = f"{seconds:g}" if known else repr(seconds)
        raise ValueError(f"a period of {told} s is no number of seconds; give 0 to count requests alone")
    return count, float(seconds)
