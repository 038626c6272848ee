"""The break-even rule for small gains: move once staying has cost what moving may cost.

A small gain is often gone again before it has paid for the way there and back. How long it will last is not known, but
to wait until what was missed comes to what a move costs never costs more than twice what knowing would (the ski rental
problem: Karlin, Manasse, Rudolph and Sleator, Competitive snoopy caching, Algorithmica 3, 1988)::

    missed = sum of gain over the requests for which a better plan was known, without a break        move if > cost
"""

from __future__ import annotations

__all__ = ["BreakEven"]

_COST = 2.0
"""Requests that a move may cost: those that run under the new plan when its time is over already."""


class BreakEven:
    """Adds up the gain missed by staying.

    Attributes
    ----------
    known_for
        Requests for which a better plan has been known.
    """

    def __init__(self) -> None:
        self.known_for = 0
        self._missed = 0.0
        self._known_at: int | None = None

    def take(self, gain: float, request: int) -> None:
        """Take note of what the best plan would gain now, a logarithm; 0.0 for nothing worth a move."""
        if gain <= 0:
            self.known_for, self._missed, self._known_at = 0, 0.0, None
            return
        if self._known_at is not None:
            self.known_for += request - self._known_at
            self._missed += gain * (request - self._known_at)
        self._known_at = request

    @property
    def is_enough(self) -> bool:
        """Whether what was missed comes to what a move may cost."""
        return self._missed >= _COST
