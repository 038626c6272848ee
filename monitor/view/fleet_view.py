"""What a viewer sees of a fleet at a moment, as frozen values that travel as JSON; and which kind of view a text is."""

from __future__ import annotations

from typing import Self

from msgspec import Struct

from odin.monitor.view.pipeline_view import EventLine, PipelineView
from odin.monitor.view.view_json import read_view, view_text

__all__ = ["ExecutorState", "FleetState", "PredictionSummary", "View", "view_from_json"]

FORMAT = "odin-fleet-view"
VERSION = 1


class ExecutorState(Struct, frozen=True, forbid_unknown_fields=True):
    """One executor.

    Attributes
    ----------
    device, pid
        Where it runs.
    state
        ``serving`` or ``lost``.
    slowdown
        Its time now / baseline.
    models
        That it has open.
    """

    device: str
    pid: int
    state: str
    slowdown: float
    models: int


class PredictionSummary(Struct, frozen=True, forbid_unknown_fields=True):
    """How good predictions were of late, for one kind of action.

    Attributes
    ----------
    kind
        ``run``, ``load`` or ``evict``.
    actions
        How many were looked at.
    predicted_s, actual_s
        Medians.
    within
        Share of the actions that took no longer than predicted.
    """

    kind: str
    actions: int
    predicted_s: float
    actual_s: float
    within: float


class FleetState(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole fleet.

    Attributes
    ----------
    name
        Of its folder.
    policy
        How it schedules.
    uptime_s
        Seconds since it started.
    models
        That can be asked for.
    resident
        How many of them are in memory.
    last_used
        Names of the last ones that were used, the last one first.
    resident_mib, memory_mib
        What those in memory take, and all may take together.
    waiting
        Requests that no executor was sent.
    completed, failed, in_flight, in_time, late, refused
        Requests: answered; not answered; under way; answered, of those with a deadline; late, which are among the
        failed; refused at once, which are in none of the others.
    hits, cold
        Requests that were taken while their model was in memory, and while it was not.
    loads, evictions
        Actions that have ended.
    """

    name: str
    policy: str
    uptime_s: float
    models: int
    resident: int
    last_used: tuple[str, ...]
    resident_mib: float
    memory_mib: float
    waiting: int
    completed: int
    failed: int
    in_flight: int
    in_time: int
    late: int
    refused: int
    hits: int
    cold: int
    loads: int
    evictions: int
    executors: tuple[ExecutorState, ...]
    predictions: tuple[PredictionSummary, ...] = ()
    events: tuple[EventLine, ...] = ()
    event_count: int = 0
    ended: str | None = None

    def to_json(self) -> str:
        """Write as one line of JSON; nan and infinity are ``null``."""
        return view_text(self, (FORMAT, VERSION))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is no view of this version.
        """
        return read_view(text, cls, (FORMAT, VERSION), what="fleet", null=("ended",))


View = PipelineView | FleetState
"""What a terminal can show."""


def view_from_json(text: str) -> View:
    """Read a view of a pipeline, or of a fleet.

    Raises
    ------
    ValueError
        If it is neither.
    """
    return FleetState.from_json(text) if f'"format":"{FORMAT}"' in text[:80] else PipelineView.from_json(text)
