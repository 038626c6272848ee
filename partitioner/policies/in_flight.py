"""The plans that requests in flight run under, between a decision and its effect."""

from __future__ import annotations

from collections import deque

from odin.partitioner.plan import Plan

__all__ = ["PlansInFlight"]

_PATIENCE = 64
"""After so many requests, plus four per stage, a decided plan that no request ran under counts as not carried out."""


class PlansInFlight:
    """The plan in force, the one that requests finish under, and those between.

    Attributes
    ----------
    decided
        Plan of requests that are submitted now.
    running
        Plan of the last finished request.
    """

    def __init__(self, plan: Plan) -> None:
        self.decided = self.running = plan
        self._coming: deque[tuple[Plan, int]] = deque()

    def decide(self, plan: Plan, request: int) -> None:
        """Record a decision of this policy."""
        self.decided = plan
        self._coming.append((plan, request))

    def saw(self, plan: Plan, request: int) -> int | None:
        """Record a finished request; return the requests since the decision if it is the first under the decided plan.

        A plan that this policy did not decide comes from another caller: it is then in force, and earlier decisions are
        void.
        """
        if plan == self.running:
            patience = _PATIENCE + 4 * len(plan)
            if self._coming and request - self._coming[-1][1] > patience:
                self._coming.clear()
                self.decided = plan
            return None
        self.running = plan
        for _ in range(len(self._coming)):
            coming, decided_at = self._coming.popleft()
            if coming == plan:
                return request - decided_at
        self.decided = plan
        return None

    @property
    def on_their_way(self) -> int:
        """Number of decided plans that no request has finished under yet."""
        return len(self._coming)

    @property
    def settled(self) -> bool:
        """Whether requests finish under the plan in force."""
        return self.running == self.decided
