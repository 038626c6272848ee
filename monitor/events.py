"""Events of a run, as frozen records, for the event log, the terminal UI and later analysis.

Times ``at_s`` are readings of the monotonic clock of the gateway's machine (``time.perf_counter``, which all processes
of a Linux machine share), so that records of a load injector and of the pipeline can be compared.
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
    "FamilyCounted",
    "Fault",
    "KnobTurned",
    "LoadChanged",
    "ModelEvicted",
    "ModelLoaded",
    "MoveFailed",
    "PlanChanged",
    "PlanVerified",
    "PlannedTogether",
    "PolicyChanged",
    "RequestDone",
    "RequestFailed",
    "RequestsRefused",
    "RunEnded",
    "RunStarted",
    "SlowdownChanged",
    "StageBack",
    "StageDescription",
    "StageLost",
    "TenantShare",
    "VariantChosen",
    "VariantCount",
    "from_json",
    "to_json",
]

FORMAT = "odin-log"
VERSION = 1


class _Kind:
    """An event's kind, readable from the event and from its class."""

    def __get__(self, event: Struct | None, made_by: type[Struct]) -> str:
        return str(made_by.__struct_config__.tag)


class _Event(Struct, frozen=True, tag_field="event", forbid_unknown_fields=True):
    """Attributes of every event.

    Attributes
    ----------
    kind
        The kind of event as one word, as in the log.
    at_s
        Time of the event, seconds on the monotonic clock.
    """

    kind: ClassVar[_Kind] = _Kind()
    at_s: float


class StageDescription(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage: its device, node and process, and each layer's seconds there without interference.

    Attributes
    ----------
    baseline_s, single_s
        Of a full micro-batch, and of one sample; the latter empty if that is not known.
    """

    device: str
    node_id: str
    pid: int
    baseline_s: tuple[float, ...]
    single_s: tuple[float, ...] = ()


class RunStarted(_Event, frozen=True, tag="run"):
    """First record of a log.

    Attributes
    ----------
    unix_s
        The same moment as ``at_s`` in seconds since 1970.
    layers
        Names of the chain's layers.
    windows
        Text form of where the boundaries may lie, see ``odin.partitioner.relay``; empty: where the plan has them.
    engine
        What computes the layers.
    share
        Largest part of any device's time that the pipeline uses.
    """

    unix_s: float
    model: str
    layers: tuple[str, ...]
    stages: tuple[StageDescription, ...]
    plan: tuple[int, ...]
    policy: str
    max_in_flight: int
    batch: int = 1
    windows: str = ""
    engine: str = "torch"
    format: str = FORMAT
    version: int = VERSION
    share: float = 1.0


class RequestDone(_Event, frozen=True, tag="request"):
    """A request has finished; with the timing of every stage. ``at_s`` is its completion."""

    timeline: RequestTimeline


class RequestFailed(_Event, frozen=True, tag="failure"):
    """A request has failed, and why."""

    request: int
    error: str


class RequestsRefused(_Event, frozen=True, tag="refused"):
    """So many requests were refused since the last such event, because they would not have been done in time."""

    requests: int


class SlowdownChanged(_Event, frozen=True, tag="slowdown"):
    """A change of a stage's slowdown was detected.

    Attributes
    ----------
    request
        Number of the request with which it was detected.
    age
        Requests since the estimated change point, that request included.
    slowdown
        Time now / undisturbed time under the same plan.
    state
        ``onset`` (undisturbed before), ``change`` (disturbed before and after), ``end`` (undisturbed from now on).
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
        Part of the core's or GPU's time that it used, 0 to 1; ``nan`` if unknown.
    """

    pid: int
    name: str
    share: float


class Attributed(_Event, frozen=True, tag="attribution"):
    """The kind of interference on a stage, and the processes that cause it, as far as known.

    Attributes
    ----------
    interference
        ``CPU share``, ``throttling``, ``memory``, ``core speed`` or ``memory or core speed``, joined by ``" + "`` if
        several; or ``GPU``, ``unknown``. See :mod:`odin.monitor.attribution.kind`.
    culprits
        Processes that cause it, largest share first; empty if unknown.
    note
        Why something is unknown, or what else uses the device; may be empty.
    """

    stage: int
    interference: str
    culprits: tuple[Culprit, ...] = ()
    note: str = ""


class PlanChanged(_Event, frozen=True, tag="plan"):
    """Requests change hands elsewhere from now on: at the cuts of another plan, or within other windows.

    Attributes
    ----------
    request
        Number of requests that had finished when the move was decided.
    decision
        What kind of move, see ``odin.partitioner.policies.Decision``; ``migrate`` for one that the user asked for,
        or that setting a policy entails.
    predicted_hz
        Full micro-batches per second that the policy predicted; ``nan`` if it does not predict.
    prepare_s
        Seconds from the decision until new requests were sent under the new plan.
    windows
        As of the run's start.
    """

    request: int
    epoch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    decision: str
    why: str
    predicted_hz: float
    prepare_s: float
    windows: str = ""


class PlanVerified(_Event, frozen=True, tag="verified"):
    """Measured and predicted throughput of a plan after a move: 1 / the slowest stage's seconds per micro-batch."""

    epoch: int
    plan: tuple[int, ...]
    predicted_hz: float
    measured_hz: float


class PolicyChanged(_Event, frozen=True, tag="policy"):
    """Another policy is in force from now on."""

    policy: str


class StageLost(_Event, frozen=True, tag="stage-lost"):
    """A stage is lost: its process or machine has ended, or cannot be reached, or it hangs.

    Attributes
    ----------
    why
        What was seen.
    hangs
        Whether it may answer again; else another process takes its place.
    requests
        How many requests it had, which were sent again.
    failed
        How many of these failed, since they were lost with several stages.
    """

    stage: int
    why: str
    hangs: bool
    requests: int
    failed: int = 0


class StageBack(_Event, frozen=True, tag="stage-back"):
    """A stage that was lost takes part again.

    Attributes
    ----------
    pid
        Of its process, another one if the stage was replaced.
    away_s
        Seconds since it was lost.
    replaced
        Whether it is another process.
    """

    stage: int
    pid: int
    away_s: float
    replaced: bool


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
    """A move failed; the plan before it stays in force.

    Attributes
    ----------
    request
        Number of requests that had finished when the move was decided.
    plan, wanted
        Layers per stage in force, and those that the move would have led to.
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
    """Something outside the data path failed, such as a user's ``on_event`` or the event log; serving continues.

    The first fault of a kind is reported at once; the total number of that kind at the end of the run.

    Attributes
    ----------
    part
        What failed.
    error
        What happened, and its consequence.
    times
        How often so far.
    """

    part: str
    error: str
    times: int = 1


class EventsMissing(_Event, frozen=True, tag="missing"):
    """Number of events that were not recorded, because there were too many or the log could not be written.

    Attributes
    ----------
    requests
        How many of them were finished requests.
    others
        Other events.
    why
        The reason in a few words.
    """

    requests: int
    others: int
    why: str


class KnobTurned(_Event, frozen=True, tag="knob"):
    """A knob has another value from now on, so that latencies keep a limit; first, what it has at the beginning.

    Attributes
    ----------
    knob
        ``batch`` (most samples that are joined) or ``instances`` (stages that take requests).
    before, after
        Its values; equal at the beginning.
    statistic
        What is held against the limit: ``p95`` or ``mean``.
    latency_s
        That of the latencies that led to it; ``nan`` at the beginning.
    limit_s
        What it is to keep.
    requests
        How many latencies there were.
    """

    knob: str
    before: int
    after: int
    statistic: str
    latency_s: float
    limit_s: float
    requests: int


class _MemoryChanged(_Event, frozen=True):
    """An executor of a fleet has loaded a model, or given one up.

    Attributes
    ----------
    stage
        The executor.
    predicted_s, took_s
        Seconds, as predicted when it was told to, and as it took.
    resident, resident_nbytes
        Models in memory then, and what they take.
    """

    model: str
    stage: int
    predicted_s: float
    took_s: float
    resident: int
    resident_nbytes: int


class ModelLoaded(_MemoryChanged, frozen=True, tag="model-loaded"):
    """An executor of a fleet has loaded a model."""


class ModelEvicted(_MemoryChanged, frozen=True, tag="model-evicted"):
    """An executor of a fleet has given up a model."""


class RunEnded(_Event, frozen=True, tag="end"):
    """Last record of a log: why the run ended, and its counts of requests."""

    reason: str
    completed: int
    failed: int


class TenantShare(Struct, frozen=True, forbid_unknown_fields=True):
    """One of several pipelines that are planned together.

    Attributes
    ----------
    name
        Its model's.
    devices
        Of its stages.
    plan
        Layers per stage from now on.
    rate_hz
        Requests per second that it was planned for.
    share
        Largest part of any device's time that it may use.
    """

    name: str
    devices: tuple[str, ...]
    plan: tuple[int, ...]
    rate_hz: float
    share: float = 1.0


class PlannedTogether(_Event, frozen=True, tag="together"):
    """These pipelines share devices and were planned together, this one among them; or it is alone (again).

    Where that changes this pipeline's plan, its move follows as a :class:`PlanChanged` of its own.
    """

    tenants: tuple[TenantShare, ...]


class VariantChosen(_Event, frozen=True, tag="variant"):
    """Requests that ask a family for this get another variant than before; told at most once a second for each.

    Attributes
    ----------
    accuracy, latency_s, budget
        What is asked for: least accuracy, seconds (``nan``: any time), accuracy that less computation may lose.
    before, variant
        The variant that they got, empty at first, and that they get now; empty: they are refused.
    step
        See :class:`odin.family.facts.Choice`; ``refused``.
    expected_s
        Seconds in which it is expected to be done; of a refusal, the soonest that another one would be.
    """

    accuracy: float
    latency_s: float
    budget: float
    before: str
    variant: str
    step: str
    expected_s: float


class VariantCount(Struct, frozen=True, forbid_unknown_fields=True):
    """What became of the requests that a variant was given.

    Attributes
    ----------
    answered, late, failed
        How many.
    asked, deadline, interference, unloaded
        Why it had those that it answered: it is what they ask for, the preferred one that is accurate enough; that one
        takes too long for their latency even with nothing else running; it would have been late under the conditions of
        the moment; it was not loaded.
    """

    name: str
    answered: int = 0
    late: int = 0
    failed: int = 0
    asked: int = 0
    deadline: int = 0
    interference: int = 0
    unloaded: int = 0


class FamilyCounted(_Event, frozen=True, tag="family"):
    """What each variant of a family has done since the start; told once a minute if it has changed, and at the end.

    Attributes
    ----------
    refused
        Requests that no variant was given.
    """

    refused: int
    variants: tuple[VariantCount, ...]


Event = (
    RunStarted
    | RequestDone
    | RequestFailed
    | RequestsRefused
    | SlowdownChanged
    | Attributed
    | PlanChanged
    | PlanVerified
    | PolicyChanged
    | StageLost
    | StageBack
    | LoadChanged
    | MoveFailed
    | Fault
    | EventsMissing
    | RunEnded
    | KnobTurned
    | ModelLoaded
    | ModelEvicted
    | PlannedTogether
    | VariantChosen
    | FamilyCounted
)
"""Any event of a run."""


def to_json(event: Event) -> str:
    """Write one event as one line of JSON, with its kind as ``event``; nan becomes ``null``, a named tuple a list."""
    return json_text(event)


_DECODER = msgspec.json.Decoder(Event)


class _Line(Struct):
    """A wrapper type: msgspec would analyse the bare union again on every call."""

    event: Event


def from_json(line: str) -> Event:
    """Read what :func:`to_json` wrote.

    Raises
    ------
    ValueError
        If the line is not an event of this version.
    """
    try:
        event: Event
        if "null" in line or "\\ud" in line:  # nan, or characters that are not valid Unicode
            event = msgspec.convert({"event": with_nan(plain_json(line))}, _Line).event
        else:
            event = _DECODER.decode(line)
        if isinstance(event, RunStarted) and (event.format, event.version) != (FORMAT, VERSION):
            raise ValueError(f"format {event.format!r} version {event.version!r}, not {FORMAT} {VERSION}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not an event of an ODIN log: {line[:80]!r} ({error!r})") from error
    return event
