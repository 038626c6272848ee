"""What became of a family's requests: totals, and what was seen since the last look."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from odin.family.facts import Choice
from odin.monitor.events import VariantCount

__all__ = ["WHYS", "FamilyCounts", "Taken", "VariantCounts"]

WHYS = ("asked", "deadline", "interference", "unloaded")
"""Why a request had its variant."""


class VariantCounts(NamedTuple):
    """Totals of one variant.

    Attributes
    ----------
    answered, late, failed
        Requests: answered, whose time passed while it had them (refusals by its queue included), that failed otherwise.
    samples
        In the answered ones.
    predicted_s, actual_s
        Sums of seconds over the answered ones.
    asked, deadline, interference, unloaded
        Of the answered ones, why they had it: :class:`odin.monitor.events.VariantCount`.
    """

    answered: int = 0
    late: int = 0
    failed: int = 0
    samples: int = 0
    predicted_s: float = 0.0
    actual_s: float = 0.0
    asked: int = 0
    deadline: int = 0
    interference: int = 0
    unloaded: int = 0

    def told(self, name: str) -> VariantCount:
        """As an event tells it."""
        numbers = {field: getattr(self, field) for field in VariantCount.__struct_fields__ if field != "name"}
        return VariantCount(name, **numbers)


class Taken(NamedTuple):
    """What was seen of a variant since the last look."""

    answered: int = 0
    missed: int = 0
    samples: int = 0
    latency_sum_s: float = 0.0

    @property
    def latency_s(self) -> float:
        """Mean; nan without any."""
        return self.latency_sum_s / self.answered if self.answered else math.nan


class FamilyCounts:
    """Adds up; whoever uses it holds the family's lock."""

    def __init__(self, variants: int) -> None:
        self._totals = [VariantCounts()] * variants
        self._taken = [Taken()] * variants
        self._last_s = [-math.inf] * variants
        self.refusals = 0

    def refused(self) -> None:
        """No variant took a request."""
        self.refusals += 1

    def missed(self, variant: int) -> None:
        """A request would have got it if it were loaded."""
        now = self._taken[variant]
        self._taken[variant] = now._replace(missed=now.missed + 1)

    def answered(self, choice: Choice, samples: int, *, actual_s: float) -> None:
        """A variant has answered the request that it was chosen for."""
        variant = choice.variant
        was, now = self._totals[variant], self._taken[variant]
        self._totals[variant] = was._replace(
            answered=was.answered + 1,
            samples=was.samples + samples,
            predicted_s=was.predicted_s + choice.expected_s,
            actual_s=was.actual_s + actual_s,
            **{choice.why: getattr(was, choice.why) + 1},
        )
        self._taken[variant] = now._replace(
            answered=now.answered + 1, samples=now.samples + samples, latency_sum_s=now.latency_sum_s + actual_s
        )
        self._last_s[variant] = time.monotonic()

    def failed(self, variant: int, *, late: bool) -> None:
        """It has not answered a request."""
        was = self._totals[variant]
        self._totals[variant] = was._replace(late=was.late + late, failed=was.failed + (not late))

    def of(self, variant: int) -> VariantCounts:
        """Its totals."""
        return self._totals[variant]

    def last_s(self, variant: int) -> float:
        """When it answered last, on ``time.monotonic``; -inf: never."""
        return self._last_s[variant]

    def take(self) -> list[Taken]:
        """What was seen since this was called last."""
        taken, self._taken = self._taken, [Taken()] * len(self._taken)
        return taken

    @property
    def completed(self) -> int:
        """Requests that were answered."""
        return sum(one.answered for one in self._totals)

    @property
    def failures(self) -> int:
        """Requests that were taken, and not answered."""
        return sum(one.late + one.failed for one in self._totals)
