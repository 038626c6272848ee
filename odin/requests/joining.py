"""Dynamic batching: how many of those who wait in line go to the stages as one micro-batch, and when. Pure arithmetic.

::

    line      a | b | c | d | e        each with 1 sample, largest = 4, a place is free
    sent      [a b c d]                together; e is the head of the line now
    line      e                        a place is free: sent at once, or held back until others have come
                                       (at most wait_s, and never so long that it would be late)

Those who are joined are next to each other in the line, so nobody overtakes: the first that has another form, or too
many samples, begins the next micro-batch. A larger micro-batch takes longer: no more are joined than leave every one of
them in time, as is predicted of a micro-batch of so many samples.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol

from odin.requests.admission import Forecast

__all__ = ["Decision", "Joinable", "Joining"]


class Joinable(Protocol):
    """One who waits in line.

    Attributes
    ----------
    samples
        How many it has; 0 if it has no such number.
    form
        Equal for those that can be computed together; None for one that has to be alone.
    deadline_s
        Infinite for none.
    urgent
        Nobody is waited for then.
    entered_s
        When it came.
    """

    samples: int
    form: Hashable
    deadline_s: float
    urgent: bool
    entered_s: float


class Decision(NamedTuple):
    """What is to be done with a free place.

    Attributes
    ----------
    joined
        So many from the head of the line are sent as one micro-batch; 0: none yet.
    until_s
        When to look again then, if nobody comes before.
    """

    joined: int
    until_s: float = math.inf


class Joining:
    """The rule of one gateway.

    Parameters
    ----------
    batch
        Most samples that a micro-batch may have.
    joins
        Whether requests are joined at all.
    wait_s
        How long one who could be joined is held back, with a place free, for others to come.

    Attributes
    ----------
    joins, wait_s
        As given.

    Examples
    --------
    >>> Joining(8, joins=True).batches(requests=9, samples=9), Joining(8).batches(requests=9, samples=9)
    (2, 9)
    """

    def __init__(self, batch: int = 1, *, joins: bool = False, wait_s: float = 0.0) -> None:
        self._batch = self._largest = batch
        self.joins, self.wait_s = joins, wait_s if joins else 0.0

    @property
    def largest(self) -> int:
        """Most samples that are joined from now on. ``ValueError`` if it is set to less than 1 or more than batch."""
        return self._largest

    @largest.setter
    def largest(self, samples: int) -> None:
        try:
            fits = 1 <= (samples := operator.index(samples)) <= self._batch
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"largest_batch={samples!r}; it must be at least 1 and at most {self._batch} (batch)")
        self._largest = samples

    def decide(
        self, line: Iterable[Joinable], *, now_s: float, predict: Callable[[int], Forecast] | None = None
    ) -> Decision:
        """What is sent now that a place is free; somebody must wait.

        Parameters
        ----------
        line
            Those who wait, in the order in which they are taken.
        now_s
            The time, on the clock of deadlines.
        predict
            When a micro-batch of so many samples that is sent now will be done; None if nothing is predicted.
        """
        waiting = iter(line)
        head = next(waiting)
        if not self.joins or head.form is None or not 0 < head.samples < self._largest:
            return Decision(1)
        members, samples, all_taken = [head], [head.samples], True
        for one in waiting:
            total = samples[-1] + one.samples
            if one.form != head.form or one.samples < 1 or total > self._largest:
                all_taken = False
                break
            members.append(one)
            samples.append(total)
        count = len(members)
        deadline_s = min(one.deadline_s for one in members)
        if predict is not None and deadline_s < math.inf:
            count = _in_time(members, samples, predict)
        if count < len(members) or not all_taken or samples[-1] == self._largest:
            return Decision(count)
        until_s = min(one.entered_s for one in members) + self.wait_s
        if predict is not None and deadline_s < math.inf:
            # Those who come take time as well: what is waited for is a micro-batch that is full.
            until_s = min(until_s, now_s + deadline_s - predict(self._largest).latest_s)
        if until_s <= now_s or any(one.urgent for one in members):
            return Decision(count)
        return Decision(0, until_s)

    def batches(self, *, requests: int, samples: int) -> int:
        """How many micro-batches so many requests become, with so many samples together."""
        return -(-samples // self._largest) if self.joins else requests

    def ahead(self, requests: int, *, mean_samples: float) -> int:
        """How many micro-batches are sent before the one that a newcomer is in, behind so many requests."""
        return int(requests * mean_samples / self._largest) if self.joins else requests

    def size(self, samples: int, ahead: int, *, mean_samples: float) -> int:
        """Samples of the micro-batches up to the one that a newcomer with so many is in, behind so many requests.

        Without joining these are as large as requests are on average; 0 if that is not known.
        """
        if samples == 0:
            return 0
        if self.joins:
            return max(samples, min(self._largest, math.ceil(ahead * mean_samples) + samples))
        return math.ceil((ahead * mean_samples + samples) / (ahead + 1))


def _in_time(members: list[Joinable], samples: list[int], predict: Callable[[int], Forecast]) -> int:
    """Of how many from the head none is expected to be late by being joined; all, if the first is late in any case."""
    for count in range(len(members), 0, -1):
        if predict(samples[count - 1]).expected_s <= min(one.deadline_s for one in members[:count]):
            return count
    return len(members)
