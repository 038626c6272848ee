"""The pending change: the latest one detected, on which stages, and what was done about it."""

from __future__ import annotations

__all__ = ["PendingChange"]

_PENDING = 32
"""Requests for which a detected change is fresh."""
_LONG_AGO = 1 << 40


class PendingChange:
    """Detected changes that are no effect of a move of ours.

    Attributes
    ----------
    stages
        Those that changed, first to last, until something was done about it.
    at
        Request with which the last of them was detected.
    moves
        Moves since then.
    """

    def __init__(self) -> None:
        self.stages: set[int] = set()
        self.at = -_LONG_AGO
        self.moves = 0

    def detect(self, stage: int, request: int) -> None:
        """A stage has changed."""
        if self.moves or not self.is_fresh(request):
            self.stages.clear()
        self.stages.add(stage)
        self.at, self.moves = request, 0

    def since(self, request: int) -> int:
        """Requests since the last change was detected."""
        return request - self.at

    def is_fresh(self, request: int) -> bool:
        """Whether it was detected a short time ago."""
        return self.since(request) <= _PENDING

    def is_unanswered(self, request: int) -> bool:
        """Whether that, and nothing was done about it yet."""
        return self.moves == 0 and self.is_fresh(request)
