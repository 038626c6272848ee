"""What happens in a run, as frozen records: the event log, the terminal UI and later analysis all read these.

Times ``at_s`` are readings of one monotonic clock of the gateway's machine (``time.perf_counter``, which all processes
of a Linux machine share), so that a load injector's records and the pipeline's fit together.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monitor.timing import RequestTimeline, StageTiming

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


@dataclass(frozen=True, slots=True)
class StageDescription:
    """One stage: where it is, and its layers' undisturbed seconds on that device."""

    device: str
    node_id: str
    pid: int
    baseline_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """First record of a log.

    Attributes
    ----------
    unix_s
        Time of day at ``at_s``, seconds since 1970.
    layers
        Names of the chain's layers.
    """

    kind: ClassVar[str] = "run"
    at_s: float
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


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A finished request with every stage's own timing; ``at_s`` is its completion."""

    kind: ClassVar[str] = "request"
    at_s: float
    timeline: RequestTimeline


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request that failed, and why."""

    kind: ClassVar[str] = "failure"
    at_s: float
    request: int
    error: str


@dataclass(frozen=True, slots=True)
class SlowdownChanged:
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

    kind: ClassVar[str] = "slowdown"
    at_s: float
    stage: int
    request: int
    age: int
    slowdown: float
    state: str


@dataclass(frozen=True, slots=True)
class Culprit:
    """A process that shares a stage's device.

    Attributes
    ----------
    share
        Part of the core, or of the GPU, that it used, 0 to 1; ``nan`` if the system does not tell.
    """

    pid: int
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Attributed:
    """What disturbs a stage, as far as the system tells.

    Attributes
    ----------
    interference
        ``CPU share``, ``throttling``, ``memory``, ``core speed`` or ``memory or core speed``, joined by ``" + "`` if
        several; or ``GPU``, ``unknown``. See :mod:`monitor.attribution`.
    culprits
        Who does it, worst first; empty if unknown.
    note
        Why something is unknown, or what else takes the device; may be empty.
    """

    kind: ClassVar[str] = "attribution"
    at_s: float
    stage: int
    interference: str
    culprits: tuple[Culprit, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Layers moved.

    Attributes
    ----------
    request
        Requests finished when it was decided.
    decision
        What kind of move, see ``partitioner.policies.Decision``; ``migrate`` for one that the user asked for.
    predicted_hz
        Requests per second that the policy expects; ``nan`` if it does not predict.
    prepare_s
        From the decision until new requests ran under the new plan.
    """

    kind: ClassVar[str] = "plan"
    at_s: float
    request: int
    epoch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    decision: str
    why: str
    predicted_hz: float
    prepare_s: float


@dataclass(frozen=True, slots=True)
class PlanVerified:
    """What a plan came to, beside what was predicted: requests per second by the slowest stage's time."""

    kind: ClassVar[str] = "verified"
    at_s: float
    epoch: int
    plan: tuple[int, ...]
    predicted_hz: float
    measured_hz: float


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy decides from now on."""

    kind: ClassVar[str] = "policy"
    at_s: float
    policy: str


@dataclass(frozen=True, slots=True)
class LoadChanged:
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

    kind: ClassVar[str] = "load"
    at_s: float
    name: str
    load: str
    on: str
    intensity: float
    pid: int = 0


@dataclass(frozen=True, slots=True)
class MoveFailed:
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

    kind: ClassVar[str] = "move-failed"
    at_s: float
    request: int
    plan: tuple[int, ...]
    wanted: tuple[int, ...]
    decision: str
    error: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class Fault:
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

    kind: ClassVar[str] = "fault"
    at_s: float
    part: str
    error: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class EventsMissing:
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

    kind: ClassVar[str] = "missing"
    at_s: float
    requests: int
    others: int
    why: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Last record: why the run ended, and what it came to."""

    kind: ClassVar[str] = "end"
    at_s: float
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

_KINDS: dict[str, Any] = {
    event.kind: event
    for event in (
        RunStarted,
        RequestDone,
        RequestFailed,
        SlowdownChanged,
        Attributed,
        PlanChanged,
        PlanVerified,
        PolicyChanged,
        LoadChanged,
        MoveFailed,
        Fault,
        EventsMissing,
        RunEnded,
    )
}


def to_json(event: Event) -> str:
    """Write one event as one line of JSON, ``event`` naming its kind; nan is ``null``, a named tuple is a list."""
    values: dict[str, Any] = {"event": event.kind}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            value = [dataclasses.asdict(item) for item in value]
        values[field.name] = value
    try:
        return _ENCODER.encode(values)
    except ValueError:  # seldom: only then look for what JSON has no word for
        return _ENCODER.encode(_without_nan(values))


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays, which others' policies and detectors work with, as plain ones."""
    if isinstance(value, np.generic | np.ndarray):
        return _without_nan(value.tolist())
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a log")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def from_json(line: str) -> Event:
    """Read what :func:`to_json` wrote.

    Raises
    ------
    ValueError
        If the line is no event of this version.
    """
    try:
        values = json.loads(line)
        make = _KINDS[values.pop("event")]
        return _READERS.get(make, _read_plain)(make, values)  # type: ignore[no-any-return]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of an ODIN log: {line[:80]!r} ({error!r})") from error


def _read_plain(make: Any, values: dict[str, Any]) -> Any:
    for field in dataclasses.fields(make):
        if field.name not in values:
            continue
        value = values[field.name]
        if value is None and field.type == "float":
            values[field.name] = math.nan
        elif isinstance(value, list) and str(field.type).startswith("tuple"):
            values[field.name] = tuple(value)
        elif not isinstance(value, _PLAIN.get(str(field.type), object)):
            raise TypeError(f"{field.name} is {value!r}, not {field.type}")
    return make(**values)


_PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "str": str}


def _read_run(make: Any, values: dict[str, Any]) -> Any:
    if values.get("version") != VERSION or values.get("format") != FORMAT:
        raise ValueError(f"format {values.get('format')!r} version {values.get('version')!r}, not {FORMAT} {VERSION}")
    values["stages"] = [
        StageDescription(**{**s, "baseline_s": tuple(math.nan if b is None else b for b in s["baseline_s"])})
        for s in values["stages"]
    ]
    return _read_plain(make, values)


def _read_request(make: Any, values: dict[str, Any]) -> Any:
    *numbers, stages = values["timeline"]
    timings = tuple(
        StageTiming._make((*timing[:8], tuple(math.nan if s is None else s for s in timing[8]))) for timing in stages
    )
    return make(values["at_s"], RequestTimeline._make((*numbers, timings)))


def _read_attribution(make: Any, values: dict[str, Any]) -> Any:
    values["culprits"] = [
        Culprit(c["pid"], c["name"], math.nan if c["share"] is None else c["share"]) for c in values["culprits"]
    ]
    return _read_plain(make, values)


_READERS: dict[Any, Any] = {RunStarted: _read_run, RequestDone: _read_request, Attributed: _read_attribution}
