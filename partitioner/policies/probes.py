"""When stages without layers are probed: one layer for one request, half as often each time.

::

    request      100    116   117         148   149         212   213
    stage 1      empty  a layer, empty    a layer, empty    a layer, empty    ...

The plan is taken back with the next decision, before the probe's result is known, so that a stage that is still
slow holds up one request and not all that are submitted meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from odin.partitioner.plan import Plan

__all__ = ["Probes", "with_one_layer"]

_FIRST_WAIT, _LONGEST_WAIT = 16, 2048
_HURRY = 2
_LOST = 256
"""Requests after which a probe that no request was submitted under is given up."""
_NEVER = 1 << 62


@dataclass
class _Schedule:
    wait: int
    due: int


class Probes:
    """Which stages to probe and when, and the probe under way."""

    def __init__(self) -> None:
        self._schedules: dict[int, _Schedule] = {}
        self._probed: tuple[int, Plan] | None = None
        self._lost_at = 0
        self._back_to: Plan | None = None

    def moved(self, before: Plan, after: Plan, request: int) -> None:
        """Take note of a move: stages that it empties are to be probed, those that it gives layers no more."""
        for stage, count in enumerate(after):
            if count > 0:
                self._schedules.pop(stage, None)
            elif before[stage] > 0:
                self._schedules[stage] = _Schedule(_FIRST_WAIT, request + _FIRST_WAIT)

    @property
    def next_due(self) -> int:
        """Request of the next probe; far away if there is none."""
        return min((schedule.due for schedule in self._schedules.values()), default=_NEVER)

    def due(self, request: int) -> int | None:
        """Stage to probe now."""
        if self._probed is not None and request < self._lost_at:
            return None
        return next((stage for stage, schedule in self._schedules.items() if schedule.due <= request), None)

    def postpone(self, stage: int, request: int) -> None:
        """Wait twice as long for the next probe."""
        wait = min(2 * self._schedules[stage].wait, _LONGEST_WAIT)
        self._schedules[stage] = _Schedule(wait, request + wait)

    def hurry(self, stage: int, request: int) -> None:
        """Probe the stage again before the measurement is out of date: it was promising."""
        if stage in self._schedules:
            self._schedules[stage].due = request + _HURRY

    def begin(self, stage: int, plan: Plan, back_to: Plan, request: int) -> None:
        """Take note that a probe begins."""
        self._probed, self._back_to, self._lost_at = (stage, plan), back_to, request + _LOST

    def end(self) -> Plan | None:
        """Plan to return to, once."""
        plan, self._back_to = self._back_to, None
        return plan

    def finished(self, running: Plan) -> int | None:
        """Stage whose probe has just finished, once."""
        if self._probed is None or running != self._probed[1]:
            return None
        stage, self._probed = self._probed[0], None
        return stage

    def abandon(self) -> None:
        """Somebody else moved layers meanwhile."""
        self._probed = self._back_to = None


def with_one_layer(plan: Plan, stage: int) -> list[Plan]:
    """Plans in which an empty stage has one layer of the nearest stage that has any, on either side."""
    plans = []
    for side in (range(stage - 1, -1, -1), range(stage + 1, len(plan))):
        giver = next((other for other in side if plan[other] > 0), None)
        if giver is not None:
            counts = list(plan)
            counts[giver] -= 1
            counts[stage] += 1
            plans.append(Plan(counts))
    return plans
