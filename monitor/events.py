"""What happens in a run, as frozen records: the event log, the terminal UI and later analysis all read these.

Times ``at_s`` are readings of one monotonic clock of the gateway's machine (``time.perf_counter``, which all processes
of a Linux machine share), so that a load injector's records and the pipeline's fit together.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import Struct

from odin.monitor.json_text import json_text, plain_json, with_nan
from odin.monitor.timing import RequestTimeline

__all__ = [
    "Attributed",
    "Culprit",
    "Event",
    "EventsMissing",
    "Fault",
    "LoadChanged",
    "MoveFailed",
    "PlanChanged",
    "PlanVerified",
    "PolicyChanged",
    "RequestDone",
    "RequestFailed",
    "RunEnded",
    "RunStarted",
    "SlowdownChanged",
    "StageDescription",
    "from_json",
    "to_json",
]

FORMAT = "odin-log"
VERSION = 1


class _Kind:
    """An event's tag, to be read from the event or from its class."""

    def __get__(self, event: Struct | None, made_by: type[Struct]) -> str:
        return str(made_by.__struct_config__.tag)


class _Event(Struct, frozen=True, tag_field="event", forbid_unknown_fields=True):
    """What every event has.

    Attributes
    ----------
    kind
        What happened in a word, as in the log.
    at_s
        When.
    """

    kind: ClassVar[_Kind] = _Kind()
    at_s: float


class StageDescription(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage: where it is, and its layers' undisturbed seconds on that device."""

    device: str
    node_id: str
    pid: int
    baseline_s: tuple[float, ...]


class RunStarted(_Event, frozen=True, tag="run"):
    """First record of a log.

    Attributes
    ----------
    unix_s
        Time of day at ``at_s``, seconds since 1970.
    layers
        Names of the chain's layers.
    """

    unix_s: float
    model: str
    layers: tuple[str, ...]
    stages: tuple[StageDescription, ...]
    plan: tuple[int, ...]
    policy: str
    max_in_flight: int
    batch: int = 1
    format: str = FORMAT
    version: int = VERSION


class RequestDone(_Event, frozen=True, tag="request"):
    """A finished request with every stage's own timing; ``at_s`` is its completion."""

    timeline: RequestTimeline


class RequestFailed(_Event, frozen=True, tag="failure"):
    """A request that failed, and why."""

    request: int
    error: str


class SlowdownChanged(_Event, frozen=True, tag="slowdown"):
    """A stage's slowdown changed.

    Attributes
    ----------
    request
        Request with which it was detected.
    age
        Requests since it is estimated to have begun, that one included.
    slowdown
        Time now / undisturbed time under the same plan.
    state
        ``onset`` (was undisturbed), ``change`` (disturbed before and after), ``end`` (undisturbed again).
    """

    stage: int
    request: int
    age: int
    slowdown: float
    state: str


class Culprit(Struct, frozen=True, forbid_unknown_fields=True):
    """A process that shares a stage's device.

    Attributes
    ----------
    share
        Part of the core, or of the GPU, that it used, 0 to 1; ``nan`` if the system does not tell.
    """

    pid: int
    name: str
    share: float


class Attributed(_Event, frozen=True, tag="attribution"):
    """What disturbs a stage, as far as the system tells.

    Attributes
    ----------
    interference
        ``CPU share``, ``throttling``, ``memory``, ``core speed`` or ``memory or core speed``, joined by ``" + "`` if
        several; or ``GPU``, ``unknown``. See :mod:`odin.monitor.attribution.kind`.
    culprits
        Who does it, worst first; empty if unknown.
    note
        Why something is unknown, or what else takes the device; may be empty.
    """

    stage: int
    interference: str
    culprits: tuple[Culprit, ...] = ()
    note: str = ""


class PlanChanged(_Event, frozen=True, tag="plan"):
    """Layers moved.

    Attributes
    ----------
    request
        Requests finished when it was decided.
    decision
        What kind of move, see ``odin.partitioner.policies.Decision``; ``migrate`` for one that the user asked for.
    predicted_hz
        Requests per second that the policy expects; ``nan`` if it does not predict.
    prepare_s
        From the decision until new requests ran under the new plan.
    """

    request: int
    epoch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    decision: str
    why: str
    predicted_hz: float
    prepare_s: float


class PlanVerified(_Event, frozen=True, tag="verified"):
    """What a plan came to, beside what was predicted: requests per second by the slowest stage's time."""

    epoch: int
    plan: tuple[int, ...]
    predicted_hz: float
    measured_hz: float


class PolicyChanged(_Event, frozen=True, tag="policy"):
    """Another policy decides from now on."""

    policy: str


class LoadChanged(_Event, frozen=True, tag="load"):
    """An injected load began, changed or ended.

    Attributes
    ----------
    name
        The load's name in its scenario, or its kind.
    on
        Device, such as ``cpu:1``.
    intensity
        0 to 1; 0 when it ends.
    """

    name: str
    load: str
    on: str
    intensity: float
    pid: int = 0


class MoveFailed(_Event, frozen=True, tag="move-failed"):
    """Layers were to move and could not; the plan before stays in force.

    Attributes
    ----------
    request
        Requests finished when it was decided.
    plan, wanted
        Layers per stage that stay, and those that were decided on.
    decision
        What kind of move, as in :class:`PlanChanged`.
    retry_s
        Seconds until the policy is asked again.
    """

    request: int
    plan: tuple[int, ...]
    wanted: tuple[int, ...]
    decision: str
    error: str
    retry_s: float


class Fault(_Event, frozen=True, tag="fault"):
    """Something beside the data path failed, such as a user's ``on_event`` or the event log; serving goes on.

    The first of a kind is told when it happens; at the end of the run, how many of it there were.

    Attributes
    ----------
    part
        What failed.
    error
        What happened, and what follows.
    times
        How many there have been.
    """

    part: str
    error: str
    times: int = 1


class EventsMissing(_Event, frozen=True, tag="missing"):
    """Events that were not recorded: there were too many, or the log could not be written.

    Attributes
    ----------
    requests
        Finished requests among them.
    others
        Other events.
    why
        The reason in a few words.
    """

    requests: int
    others: int
    why: str


class RunEnded(_Event, frozen=True, tag="end"):
    """Last record: why the run ended, and what it came to."""

    reason: str
    completed: int
    failed: int


Event = (
    RunStarted
    | RequestDone
    | RequestFailed
    | SlowdownChanged
    | Attributed
    | PlanChanged
    | PlanVerified
    | PolicyChanged
    | LoadChanged
    | MoveFailed
    | Fault
    | EventsMissing
    | RunEnded
)
"""Any event of a run."""


def to_json(event: Event) -> str:
    """Write one event as one line of JSON, ``event`` naming its kind; nan is ``null``, a named tuple is a list."""
    return json_text(event)


_DECODER = msgspec.json.Decoder(Event)


class _Line(Struct):
    """A type of its own, since msgspec looks through a union anew each time."""

    event: Event


def from_json(line: str) -> Event:
    """Read what :func:`to_json` wrote.

    Raises
    ------
    ValueError
        If the line is no event of this version.
    """
    try:
        event: Event
        if "null" in line or "\\ud" in line:  # nan, or perhaps what is no text
            event = msgspec.convert({"event": with_nan(plain_json(line))}, _Line).event
        else:
            event = _DECODER.decode(line)
        if isinstance(event, RunStarted) and (event.format, event.version) != (FORMAT, VERSION):
            raise ValueError(f"format {event.format!r} version {event.version!r}, not {FORMAT} {VERSION}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not an event of an ODIN log: {line[:80]!r} ({error!r})") from error
    return event
