"""The break-even rule for small gains: move once staying has cost what moving may cost.

A small gain often ends before it has paid for moving there and back. How long it will persist is not known. Waiting
until the gain missed by staying equals the cost of a move costs at most twice as much as knowing it (the ski rental
problem: Karlin, Manasse, Rudolph and Sleator, Competitive snoopy caching, Algorithmica 3, 1988)::

    missed = sum of gain over the requests for which a better plan was known, without a break        move if > cost
"""

from __future__ import annotations

__all__ = ["BreakEven"]

_COST = 2.0
"""Cost of a move in requests: those that still run under the new plan after the gain has ended."""


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
        """Add the gain of the best plan at this request, a logarithm; 0.0 resets the sum: no plan is better."""
        if gain <= 0:
            self.known_for, self._missed, self._known_at = 0, 0.0, None
            return
        if self._known_at is not None:
            self.known_for += request - self._known_at
            self._missed += gain * (request - self._known_at)
        self._known_at = request

    @property
    def is_enough(self) -> bool:
        """Whether the gain missed so far equals the cost of a move."""
        return self._missed >= _COST
