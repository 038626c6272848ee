"""The pending change: the latest detected one, its stages, and the moves made since."""

from __future__ import annotations

__all__ = ["PendingChange"]

_PENDING = 32
"""Requests for which a detected change is fresh."""
_LONG_AGO = 1 << 40


class PendingChange:
    """The latest detected change that is not an effect of this policy's own moves.

    Attributes
    ----------
    stages
        Stages that changed together, until layers are moved.
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
        """Record a detected change of a stage."""
        if self.moves or not self.is_fresh(request):
            self.stages.clear()
        self.stages.add(stage)
        self.at, self.moves = request, 0

    def since(self, request: int) -> int:
        """Requests since the last change was detected."""
        return request - self.at

    def is_fresh(self, request: int) -> bool:
        """Whether it was detected within the last requests."""
        return self.since(request) <= _PENDING

    def is_unanswered(self, request: int) -> bool:
        """Whether it is fresh and no layers have moved since."""
        return self.moves == 0 and self.is_fresh(request)
