"""A fleet's state at one moment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from odin.fleet.dispatcher import Counts
from odin.fleet.scheduler import EVICT, LOAD, RUN, Measured
from odin.monitor.view.fleet_view import ExecutorState, FleetState, PredictionSummary
from odin.monitor.view.pipeline_view import PipelineView

__all__ = ["FleetView", "predictions_of", "state_of"]

_LAST_USED = 8


class FleetView(NamedTuple):
    """A fleet at one moment.

    Attributes
    ----------
    models
        That can be asked for.
    resident
        Names of those in memory, the most recently used last.
    resident_mib, memory_mib
        What these take, and all may take together.
    waiting
        Requests that were not sent to an executor yet.
    counts
        Of requests and actions, since the start.
    executors
        In the order of their devices.
    predictions
        By kind of action.
    """

    models: int
    resident: tuple[str, ...]
    resident_mib: float
    memory_mib: float
    waiting: int
    counts: Counts
    executors: tuple[ExecutorState, ...]
    predictions: tuple[PredictionSummary, ...]


def state_of(view: FleetView, *, name: str, policy: str, told: PipelineView) -> FleetState:
    """What another terminal sees of a fleet.

    Parameters
    ----------
    view
        Its state.
    name, policy
        Of the folder, and of the scheduler.
    told
        What its events make of a pipeline: how long it runs, and what happened.
    """
    counts = view.counts
    return FleetState(
        name=name,
        policy=policy,
        uptime_s=told.uptime_s,
        models=view.models,
        resident=len(view.resident),
        last_used=view.resident[: -1 - _LAST_USED : -1],
        resident_mib=view.resident_mib,
        memory_mib=view.memory_mib,
        waiting=view.waiting,
        completed=counts.completed,
        failed=counts.failed,
        in_flight=counts.in_flight,
        in_time=counts.in_time,
        late=counts.late,
        refused=counts.refused,
        hits=counts.hits,
        cold=counts.cold,
        loads=counts.loads,
        evictions=counts.evictions,
        executors=view.executors,
        predictions=view.predictions,
        events=told.events,
        event_count=told.event_count,
        ended=told.ended,
    )


def predictions_of(measured: Sequence[Measured]) -> tuple[PredictionSummary, ...]:
    """Sum up what was predicted and measured."""
    found = []
    for kind in (RUN, LOAD, EVICT):
        of_kind = [one for one in measured if one.kind == kind]
        if of_kind:
            found.append(
                PredictionSummary(
                    kind,
                    len(of_kind),
                    statistics.median(one.expected_s for one in of_kind),
                    statistics.median(one.took_s for one in of_kind),
                    sum(one.took_s <= one.expected_s for one in of_kind) / len(of_kind),
                )
            )
    return tuple(found)
