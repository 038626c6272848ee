"""What a viewer sees of a pipeline at a moment, as frozen values that travel as JSON."""

from __future__ import annotations

import math
from typing import Literal, Self

from msgspec import Struct

from odin.monitor.events import Culprit, TenantShare
from odin.monitor.view.view_json import read_view, view_text

__all__ = ["EventLine", "History", "InjectedLoad", "PipelineView", "StageState", "StageView", "TunedKnob"]

FORMAT = "odin-view"
VERSION = 1

StageState = Literal["quiet", "disturbed", "bypassed", "empty", "hung", "lost"]
"""How a stage is: without interference, with it, passed by of late, without layers by plan, silent, or gone."""


class StageView(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage.

    Attributes
    ----------
    first, last
        Half-open range of layers under the present plan; where requests change hands at cuts of their own, between the
        medians of their cuts of late.
    time_s
        Median wall seconds of late per request of which it ran layers, under the present plan and the present
        slowdown; ``nan`` before the first such request, and for an empty or bypassed stage.
    reference_s
        Seconds that the same layers take undisturbed.
    slowdown
        Time now / undisturbed time of the layers that each request ran there; for an empty or bypassed stage, what was
        last known.
    interference, culprits, note
        What disturbs it, as in :class:`odin.monitor.events.Attributed`; empty while nothing does, and while it is lost.
    queue_s
        Median seconds that a request of late waited before it.
    utilisation
        Part of the time in which requests were under way of late that the stage computed, 0 to 1.
    last_quartiles
        Lower and upper quartile of ``last`` where requests change hands at cuts of their own, over those of which it
        ran layers; empty where the plan says it.
    request_share
        Part of the requests of late of which it ran layers, 0 to 1; ``nan`` before the first one, and where the plan
        says of which.
    layer_shares
        Part of the requests of late of which it ran each layer, shape (layers,); empty likewise. Their sum is the mean
        number of layers that it runs of a request.
    why_lost
        What was seen when it was lost, or began to hang; empty while it is not.
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
    last_quartiles: tuple[int, ...] = ()
    request_share: float = math.nan
    layer_shares: tuple[float, ...] = ()
    why_lost: str = ""


class History(Struct, frozen=True, forbid_unknown_fields=True):
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


class EventLine(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happened, in a few words; ``at_s`` counts from the start of the run."""

    at_s: float
    kind: str
    text: str


class InjectedLoad(Struct, frozen=True, forbid_unknown_fields=True):
    """A load that is known to be injected now; see :class:`odin.monitor.events.LoadChanged`."""

    name: str
    load: str
    on: str
    intensity: float
    pid: int


class TunedKnob(Struct, frozen=True, forbid_unknown_fields=True):
    """A knob that is turned so that latencies keep a limit; see :class:`odin.monitor.events.KnobTurned`.

    Attributes
    ----------
    value
        What it is now.
    turns
        How often it was turned.
    """

    knob: str
    value: int
    statistic: str
    limit_s: float
    turns: int


class PipelineView(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole pipeline.

    Attributes
    ----------
    layers
        Names of the chain's layers.
    plan
        Layers per stage in force.
    windows
        Where requests may change hands if not only where the plan says, such as ``@0-18|@18``; see
        :mod:`odin.partitioner.relay`. Then ``plan`` is the one to return to, and each stage's ``first`` and ``last``
        are medians. Empty: at the plan's cuts.
    batch
        Largest number of images in a request.
    engine
        What computes the layers, such as ``"onnxruntime"``.
    uptime_s
        Seconds since the run started.
    in_flight
        Requests submitted and not finished; ``None`` if not known, as in a log.
    throughput_hz
        Requests completed per second of the time in which requests were under way, of late: pauses do not count. Each
        of those that were joined into one micro-batch counts; one that is larger than a micro-batch counts once for
        each of its parts. ``nan`` before two are done. See :meth:`odin.monitor.view.recent.RecentRequests.rates`.
    fluid_bound_hz
        Requests per second if work could be divided without granularity, over all devices as slow as they now are, in
        micro-batches of as many samples and requests as those of late.
    latency_p50_s, latency_p99_s
        Over the last ten seconds, or the last 20 requests if fewer finished in these.
    in_time, late, refused
        Requests with a deadline: done before it; accepted and not done before it; refused at once, which are not among
        the ``failed`` either.
    off_p50_s, off_p99_s
        Actual minus expected completion over the same requests as the latencies: median, and 99th percentile. ``nan``
        without predictions.
    event_count
        How many events there have been; ``events`` has the last ones, oldest first.
    ended
        Why the run ended; ``None`` while it goes on.
    tuned
        The knob that is turned to keep a latency limit; ``None`` if none is.
    share
        Largest part of any device's time that it uses.
    together
        Pipelines that it was planned together with last, itself among them; empty if it is planned for itself.
    samples_hz
        Samples in the requests of ``throughput_hz``, per second.
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
    windows: str = ""
    engine: str = "torch"
    in_time: int = 0
    late: int = 0
    refused: int = 0
    off_p50_s: float = math.nan
    off_p99_s: float = math.nan
    tuned: TunedKnob | None = None
    share: float = 1.0
    together: tuple[TenantShare, ...] = ()
    samples_hz: float = math.nan

    @property
    def layer_count(self) -> int:
        """Layers of the chain."""
        return len(self.layers)

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
        return read_view(text, cls, (FORMAT, VERSION), what="pipeline", null=("in_flight", "ended", "tuned"))
