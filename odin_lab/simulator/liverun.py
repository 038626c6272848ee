"""A live run as its event log tells it: when each stage was at each request, for how long, and beside what."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.monitor.eventlog import read_log
from odin.monitor.events import Event, LoadChanged, PlanChanged, PolicyChanged, RequestDone, RunStarted
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline
from odin.partitioner.plan import Plan

__all__ = ["LiveRun", "LoadSpan", "read_live_run"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LEAST_REQUESTS = 20


class LoadSpan(NamedTuple):
    """An injected load at one intensity; seconds from the first submission. ``load`` is its text form."""

    stage: int
    load: str
    intensity: float
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class LiveRun:
    """A live run; times are seconds from the first submission, index 0 is its first request.

    Requests that were joined into one micro-batch are one here, as they are to the stages.

    Attributes
    ----------
    started
        What ran.
    share
        What its micro-batches take on each stage, on average, over what full ones would, as expected by their numbers
        of samples, shape (stages,).
    cuts
        Between the stages' layers, of each request, shape (requests, stages + 1).
    submitted_s, finished_s
        Shape (requests,).
    begin_s, stage_s
        When each stage began to compute on each request, as well as it can be told, and for how long, shape (requests,
        stages).
    even_s, layer_s
        ``stage_s``, and seconds of each layer, shape (requests, layers), as if all micro-batches had had as many
        samples; ``nan`` where not measured.
    handed_s
        Seconds that each stage needed to hand its result on, waiting included, shape (requests, stages); ``nan`` for
        the last request. Under windows only their distribution means something: ``nan`` where the next request had no
        layers there.
    loads
        What was injected, in order of time.
    prepare_s
        Of each change of plan, shape (changes,).
    """

    started: RunStarted
    share: FloatArray
    cuts: IntArray
    submitted_s: FloatArray
    finished_s: FloatArray
    begin_s: FloatArray
    stage_s: FloatArray
    even_s: FloatArray
    layer_s: FloatArray
    handed_s: FloatArray
    loads: tuple[LoadSpan, ...]
    prepare_s: FloatArray

    @property
    def plan(self) -> Plan:
        """The plan in force at first; requests run under it unless there are windows."""
        return Plan(self.started.plan if self.started.windows else np.diff(self.cuts[0]))

    @property
    def throughput_hz(self) -> float:
        """Requests answered per second, from the first submission on."""
        return len(self.finished_s) / float(self.finished_s.max())

    @property
    def latency_s(self) -> FloatArray:
        """Seconds from each request's submission to its answer."""
        latency_s: FloatArray = self.finished_s - self.submitted_s
        return latency_s

    @property
    def in_flight(self) -> int:
        """Most requests under way at a time: as many as were allowed; under windows fewer may do, so it is counted."""
        if not self.started.windows:
            return self.started.max_in_flight
        answered = np.searchsorted(np.sort(self.finished_s), self.submitted_s, side="right")
        return min(self.started.max_in_flight, int(np.max(np.arange(1, len(answered) + 1) - answered)))

    @property
    def is_closed_loop(self) -> bool:
        """Whether nearly all requests were submitted as soon as there was a place, with one of them answered."""
        allowed = self.in_flight
        answered_s = np.sort(self.finished_s)  # under windows requests may overtake one another
        waited_s = self.submitted_s[allowed:] - answered_s[:-allowed]
        typical_s = float(np.median(np.diff(answered_s)))
        return bool(np.mean(waited_s < typical_s) > 0.95)


def read_live_run(path: str | os.PathLike[str]) -> LiveRun:
    """Read the event log of a live run, up to the first change of policy.

    Raises
    ------
    ValueError
        If it cannot be read, has too few requests or such that stages have not told of, or layers were moved by hand.
    """
    started: RunStarted | None = None
    timelines: list[RequestTimeline] = []
    loads: list[LoadChanged] = []
    prepare_s: list[float] = []
    for event in _until_other_policy(read_log(path)):
        if isinstance(event, RunStarted):
            started = event
        elif isinstance(event, RequestDone):
            timelines.append(event.timeline)
        elif isinstance(event, LoadChanged):
            loads.append(event)
        elif isinstance(event, PlanChanged):
            if event.decision == "migrate":
                raise ValueError(f"{path}: layers were moved by hand after request {event.request}, by no policy")
            prepare_s.append(event.prepare_s)
    assert started is not None  # read_log sees to it
    stages, layers = len(started.stages), len(started.layers)
    timelines = [
        timeline
        for timeline in timelines
        if len(timeline.stages) == stages and sum(len(timing.layer_s) for timing in timeline.stages) == layers
    ]
    if len(timelines) < _LEAST_REQUESTS:
        raise ValueError(f"{path} has {len(timelines)} whole requests; at least {_LEAST_REQUESTS} are needed")
    timelines.sort(key=lambda timeline: timeline.request)
    return _to_run(started, timelines, loads, np.array(prepare_s))


def _until_other_policy(events: Iterable[Event]) -> Iterable[Event]:
    served = False
    for event in events:
        served = served or isinstance(event, RequestDone)
        if isinstance(event, PolicyChanged) and served:
            return
        yield event


def _to_run(
    started: RunStarted, timelines: list[RequestTimeline], loads: list[LoadChanged], prepare_s: FloatArray
) -> LiveRun:
    origin_s = timelines[0].submitted_s
    queue_s = np.array([[timing.queue_s for timing in timeline.stages] for timeline in timelines])
    stage_s = np.array([[timing.wall_s for timing in timeline.stages] for timeline in timelines])
    submitted_s = np.array([timeline.submitted_s for timeline in timelines]) - origin_s
    # A stage tells how long a hand-over took with the next request.
    told_s = np.array([[timing.transfer_s for timing in timeline.stages] for timeline in timelines])
    lasts = np.array([[timing.last for timing in timeline.stages] for timeline in timelines])
    cuts = np.maximum.accumulate(np.pad(lasts, ((0, 0), (1, 0))), axis=1)
    if started.windows:
        told_s[np.diff(cuts) == 0] = np.nan
    handed_s = np.vstack([told_s[1:], np.full((1, told_s.shape[1]), np.nan)])
    begin_s = np.empty_like(stage_s)
    sent_s = submitted_s
    for stage in range(stage_s.shape[1]):
        begin_s[:, stage] = sent_s + queue_s[:, stage]
        sent_s = begin_s[:, stage] + stage_s[:, stage] + np.nan_to_num(handed_s[:, stage])
    times = SampleTimes.of_run(started)
    share = np.array(
        [np.mean([times.share(at, timeline.samples) for timeline in timelines]) for at in range(stage_s.shape[1])]
    )
    full = [times.as_full(timeline) for timeline in timelines]
    return LiveRun(
        started,
        share,
        cuts,
        submitted_s,
        np.array([timeline.completed_s for timeline in timelines]) - origin_s,
        begin_s,
        stage_s,
        share * np.array([[timing.wall_s for timing in timeline.stages] for timeline in full]),
        np.array(
            [[share[timing.stage] * s for timing in timeline.stages for s in timing.layer_s] for timeline in full]
        ),
        handed_s,
        _spans(started, loads, origin_s),
        prepare_s,
    )


def _spans(started: RunStarted, loads: list[LoadChanged], origin_s: float) -> tuple[LoadSpan, ...]:
    """Loads on the pipeline's devices; others are part of what is."""
    places = {stage.device: index for index, stage in enumerate(started.stages)}
    now: dict[tuple[str, str, str, int], tuple[float, float]] = {}
    spans = []
    for event in loads:
        key = (event.name, event.load, event.on, event.pid)
        intensity, since_s = now.pop(key, (0.0, 0.0))
        at_s = event.at_s - origin_s
        if intensity and event.on in places and at_s > max(since_s, 0.0):
            spans.append(LoadSpan(places[event.on], event.load, intensity, max(since_s, 0.0), at_s))
        if event.intensity:
            now[key] = (event.intensity, at_s)
    for (_, load, on, _), (intensity, since_s) in now.items():
        if on in places:
            spans.append(LoadSpan(places[on], load, intensity, max(since_s, 0.0), math.inf))
    return tuple(sorted(spans, key=lambda span: span.start_s))
