"""What a viewer sees of a pipeline at a moment, as frozen values that travel as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from monitor.events import Culprit

__all__ = ["EventLine", "History", "InjectedLoad", "PipelineView", "StageState", "StageView"]

FORMAT = "odin-view"
VERSION = 1

StageState = Literal["quiet", "disturbed", "empty", "lost"]


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage.

    Attributes
    ----------
    first, last
        Half-open range of layers under the present plan.
    time_s
        Median wall seconds per request of late, under the present plan and the present slowdown; ``nan`` before the
        first such request, and for an empty stage.
    reference_s
        Seconds that the same layers take undisturbed.
    slowdown
        Time now / undisturbed time; for an empty stage, what was last known.
    interference, culprits, note
        What disturbs it, as in :class:`monitor.events.Attributed`; empty while nothing does.
    queue_s
        Median seconds that a request of late waited before it.
    utilisation
        Part of the time in which requests were under way of late that the stage computed, 0 to 1.
    """

    stage: int
    device: str
    node_id: str
    pid: int
    first: int
    last: int
    state: StageState
    time_s: float
    reference_s: float
    slowdown: float
    queue_s: float
    utilisation: float
    interference: str = ""
    culprits: tuple[Culprit, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """One point per second, oldest first; ``nan`` where there was nothing to measure.

    Attributes
    ----------
    seconds
        Whole seconds since the start: the last point is of second ``seconds - 1``.
    """

    seconds: int
    throughput_hz: tuple[float, ...]
    fluid_bound_hz: tuple[float, ...]
    latency_p50_s: tuple[float, ...]
    latency_p99_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EventLine:
    """Something that happened, in a few words; ``at_s`` counts from the start of the run."""

    at_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class InjectedLoad:
    """A load that is known to be injected now; see :class:`monitor.events.LoadChanged`."""

    name: str
    load: str
    on: str
    intensity: float
    pid: int


@dataclass(frozen=True, slots=True)
class PipelineView:
    """The whole pipeline.

    Attributes
    ----------
    layers
        Names of the chain's layers.
    plan
        Layers per stage.
    batch
        Largest number of images in a request.
    uptime_s
        Seconds since the run started.
    in_flight
        Requests submitted and not finished; ``None`` if not known, as in a log.
    throughput_hz
        Requests completed per second of the time in which requests were under way, of late: pauses do not count.
        ``nan`` before two are done. See :meth:`monitor.recent.RecentRequests.throughput_hz`.
    fluid_bound_hz
        Requests per second if work could be divided without granularity, over all devices as slow as they now are.
    latency_p50_s, latency_p99_s
        Over the last ten seconds, or the last 20 requests if fewer finished in these.
    event_count
        How many events there have been; ``events`` has the last ones, oldest first.
    ended
        Why the run ended; ``None`` while it goes on.
    """

    model: str
    policy: str
    plan: tuple[int, ...]
    epoch: int
    layers: tuple[str, ...]
    batch: int
    uptime_s: float
    completed: int
    failed: int
    in_flight: int | None
    max_in_flight: int
    throughput_hz: float
    fluid_bound_hz: float
    latency_p50_s: float
    latency_p99_s: float
    stages: tuple[StageView, ...]
    history: History
    loads: tuple[InjectedLoad, ...] = ()
    events: tuple[EventLine, ...] = ()
    event_count: int = 0
    ended: str | None = None

    @property
    def layer_count(self) -> int:
        """Layers of the chain."""
        return len(self.layers)

    def to_json(self) -> str:
        """Write as one line of JSON; nan and infinity are ``null``."""
        values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If it is no view of this version.
        """
        try:
            values = json.loads(text)
            made = values.pop("format"), values.pop("version")
            if made != (FORMAT, VERSION):
                raise ValueError(f"format {made[0]!r} version {made[1]!r}, not {FORMAT} {VERSION}")
            values["stages"] = [
                _read(StageView, {**stage, "culprits": [_read(Culprit, item) for item in stage["culprits"]]})
                for stage in values["stages"]
            ]
            values["history"] = _read(History, values["history"])
            values["loads"] = [_read(InjectedLoad, load) for load in values["loads"]]
            values["events"] = [_read(EventLine, event) for event in values["events"]]
            view = _read(cls, values)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a view of an ODIN pipeline: {text[:80]!r} ({error!r})") from error
        return view  # type: ignore[no-any-return]


_PLAIN = {
    "int": int,
    "float": (int, float),
    "str": str,
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
}


def _read(make: Any, values: dict[str, Any]) -> Any:
    read = {}
    for field in dataclasses.fields(make):
        value = values.pop(field.name)
        if isinstance(value, list):
            value = tuple(math.nan if item is None else item for item in value)
        elif value is None and field.type == "float":
            value = math.nan
        elif field.type == "StageState" and value not in get_args(StageState):
            raise ValueError(f"{value!r} is no state of a stage")
        if not isinstance(value, _PLAIN.get(str(field.type), object)):  # type: ignore[arg-type]
            raise TypeError(f"{field.name} is {value!r}, not {field.type}")
        read[field.name] = value
    if values:
        raise ValueError(f"unknown: {', '.join(values)}")
    return make(**read)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
