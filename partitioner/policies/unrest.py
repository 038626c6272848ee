"""Whether conditions change often: then waiting for certainty costs more than a move in vain."""

from __future__ import annotations

import math
from collections.abc import Collection

from odin.partitioner.policies.base import Setting

__all__ = ["LARGE", "Unrest"]

LARGE = 0.5
"""Logarithm of a change that interference makes, and drift and hiccups seldom do: 1.65 times as slow, or as fast."""
_MEMORY = 256.0
"""Requests over which changes are counted; what is longer ago counts less and less."""
_BEGINS, _ENDS = 8.0, 4.0
"""Large changes among them."""
_BRIEF = 16
_WAKE = 64
"""Requests for which one looks closely at the beginning, and after a large change."""


class Unrest:
    """Counts changes. Large ones say whether conditions change often, all of them say how often.

    Attributes
    ----------
    active
        Whether changes come often.
    """

    def __init__(self, setting: Setting) -> None:
        self._stages = setting.stage_count
        self._recent, self._large, self._at = 0.0, 0.0, 0
        self._awake_until = _WAKE
        self.active = False

    def awake(self, request: int) -> bool:
        """Whether to look closely: changes come often, or there was a large one a short time ago."""
        return self.active or request <= self._awake_until

    def wake(self, request: int) -> bool:
        """Look closely for some time; returns whether that is new."""
        new = not self.awake(request)
        self._awake_until = request + _WAKE
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
