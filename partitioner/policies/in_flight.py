"""Which plan finished requests ran under, while decisions are still on their way."""

from __future__ import annotations

from collections import deque

from odin.partitioner.plan import Plan

__all__ = ["PlansInFlight"]

_PATIENCE = 64
"""Requests, and four for each stage, after which a plan that no request ran under was not carried out."""


class PlansInFlight:
    """The plan in force, the one that requests finish under, and those between.

    Attributes
    ----------
    decided
        Plan of requests that are submitted now.
    running
        Plan of the last finished request.
    since
        Request with which it began.
    """

    def __init__(self, plan: Plan) -> None:
        self.decided = self.running = plan
        self.since = 1
        self._coming: deque[tuple[Plan, int]] = deque()

    def decide(self, plan: Plan, request: int) -> None:
        """Take note of an own decision."""
        self.decided = plan
        self._coming.append((plan, request))

    def saw(self, plan: Plan, request: int) -> int | None:
        """Take note of a finished request; answer with the requests since the decision if it is the first one under it.

        A plan that was not decided is somebody else's doing: it is in force then, and nothing is on its way.
        """
        if plan == self.running:
            patience = _PATIENCE + 4 * len(plan)
            if self._coming and request - self._coming[-1][1] > patience:
                self._coming.clear()
                self.decided = plan
            return None
        self.running, self.since = plan, request
        for _ in range(len(self._coming)):
            coming, decided_at = self._coming.popleft()
            if coming == plan:
                return request - decided_at
        self.decided = plan
        return None

    @property
    def on_their_way(self) -> int:
        """Plans decided that no request has finished under yet."""
        return len(self._coming)

    @property
    def settled(self) -> bool:
        """Whether requests finish under the plan in force."""
        return self.running == self.decided
