"""What one would do without predictions: requests in their order, models loaded when it is their turn, LRU.

To compare :class:`odin.fleet.scheduler.Scheduler` with; it has the same methods.
"""

from __future__ import annotations

from odin.fleet.scheduler import Action, Dropped, Scheduler, Verdict, Waiting

__all__ = ["OnDemand"]


class OnDemand(Scheduler):
    """First come, first served: the next request goes to a free executor that has its model open, or to any free one.

    Nothing is refused, reordered or dropped; a request that is late when its turn comes is answered as such by the
    executor.
    """

    def submit(self, number: int, model: int, samples: int, deadline_s: float, now_s: float) -> Verdict:
        """See :meth:`Scheduler.submit`."""
        key = (0.0, next(self._order))
        cold = model not in self.residency
        self._put(Waiting(number, model, samples, deadline_s, cold=cold, key=key))
        return Verdict(False, float("nan"), 0.0, len(self._queue) - 1)

    def decide(self, now_s: float) -> tuple[list[Action], list[Dropped]]:
        """See :meth:`Scheduler.decide`."""
        actions: list[Action] = []
        while self._queue:
            free = [number for number, one in enumerate(self._executors) if one.live and not one.sent]
            if not free:
                break
            request = self._queue[0][2]
            open_there = [executor for executor in free if self.residency.is_open(request.model, executor)]
            executor = (open_there or free)[0]
            if not open_there and not self._load(request.model, executor, 0.0, now_s, actions):
                break
            self._take_out(request)
            self.residency.use(request.model)
            self._add(executor, "run", request.model, 0.0, now_s, actions, request)
        return actions, []

    def wake_s(self, now_s: float) -> float:
        """See :meth:`Scheduler.wake_s`: only answers free an executor."""
        return float("inf")
