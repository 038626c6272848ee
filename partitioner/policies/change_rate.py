"""The rate of changes: while it is high, waiting for certainty costs more than an unnecessary move."""

from __future__ import annotations

import math
from collections.abc import Collection

from odin.partitioner.policies.base import Setting

__all__ = ["LARGE", "ChangeRate"]

LARGE = 0.5
"""A large change, a logarithm: a factor of 1.65 up or down, which drift and outliers seldom reach."""
_MEMORY = 256.0
"""Time constant, in requests, of the exponentially weighted counts."""
_BEGINS, _ENDS = 8.0, 4.0
"""Large changes among them."""
_BRIEF = 16
_CLOSE_LOOK = 64
"""Requests that are evaluated individually at the beginning, and after a large change."""


class ChangeRate:
    """Exponentially weighted counts: of large changes, to decide whether changes are frequent; of all, for their rate.

    Attributes
    ----------
    active
        Whether changes come often.
    """

    def __init__(self, setting: Setting) -> None:
        self._stages = setting.stage_count
        self._recent, self._large, self._at = 0.0, 0.0, 0
        self._closely_until = _CLOSE_LOOK
        self.active = False

    def looks_closely(self, request: int) -> bool:
        """Whether to evaluate every request: changes are frequent, or a large one was recent."""
        return self.active or request <= self._closely_until

    def look_closely(self, request: int) -> bool:
        """Evaluate every request for some time; returns whether this was not so before."""
        new = not self.looks_closely(request)
        self._closely_until = request + _CLOSE_LOOK
        return new

    def count(self, request: int, changes: Collection[float]) -> None:
        """Count the changes (logarithms of their size) of one request, possibly none.

        Changes with the same request count as one.
        """
        kept = math.exp((self._at - request) / _MEMORY)
        self._recent = self._recent * kept + bool(changes)
        self._large = self._large * kept + any(abs(change) > LARGE for change in changes)
        self._at = request
        self.active = self._large > (_ENDS if self.active else _BEGINS)

    @property
    def rate(self) -> float:
        """Changes per request; 0.0 while they are not frequent."""
        return self._recent / (_MEMORY * -math.expm1(-max(self._at, _BRIEF) / _MEMORY)) if self.active else 0.0

    @property
    def hazard(self) -> float:
        """Probability of a change per stage and request."""
        return max(self._recent, 1.0) / _MEMORY / self._stages
