"""The rate of changes: where it is high, waiting for certainty costs more than a move in vain."""

from __future__ import annotations

import math
from collections.abc import Collection

from odin.partitioner.policies.base import Setting

__all__ = ["LARGE", "ChangeRate"]

LARGE = 0.5
"""Logarithm of a change that interference makes, and drift and hiccups seldom do: 1.65 times as slow, or as fast."""
_MEMORY = 256.0
"""Requests over which changes are counted; what is longer ago counts less and less."""
_BEGINS, _ENDS = 8.0, 4.0
"""Large changes among them."""
_BRIEF = 16
_CLOSE_LOOK = 64
"""Requests for which one looks closely at the beginning, and after a large change."""


class ChangeRate:
    """Exponentially weighted counts of changes: large ones tell whether they are frequent, all of them how frequent.

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
        """Whether to look closely: changes come often, or there was a large one a short time ago."""
        return self.active or request <= self._closely_until

    def look_closely(self, request: int) -> bool:
        """Look closely for some time; returns whether that is new."""
        new = not self.looks_closely(request)
        self._closely_until = request + _CLOSE_LOOK
        return new

    def count(self, request: int, changes: Collection[float]) -> None:
        """Take note of changes, by how much each (logarithms), or that there were none.

        Those that begin with the same request are one.
        """
        kept = math.exp((self._at - request) / _MEMORY)
        self._recent = self._recent * kept + bool(changes)
        self._large = self._large * kept + any(abs(change) > LARGE for change in changes)
        self._at = request
        self.active = self._large > (_ENDS if self.active else _BEGINS)

    @property
    def rate(self) -> float:
        """Changes per request; 0.0 while they do not come often."""
        return self._recent / (_MEMORY * -math.expm1(-max(self._at, _BRIEF) / _MEMORY)) if self.active else 0.0

    @property
    def hazard(self) -> float:
        """Probability of a change per stage and request."""
        return max(self._recent, 1.0) / _MEMORY / self._stages
