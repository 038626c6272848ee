"""The last requests of a run and what they say: throughput, latencies, and each stage's time, queue and busy share.

Throughput counts requests, each of those that were joined into one micro-batch by itself, and samples beside them.
Everything else is of micro-batches: latencies, times, queues. Rates are over *busy time*: the time in which at least
one was under way, from its submission to its completion. A pause between two does not count, however long it was::

    request 1   |-------|                          completions at a, b, c
    request 2      |--------|                      busy from a to b, and from the submission of request 3 to c
    request 3                       |-------|      throughput = 2 / (that time)
                        a   b               c
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from odin.monitor.events import RequestDone
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline

__all__ = ["Mix", "Rates", "RecentRequests", "StageTimes", "column_medians"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RATE_S = 3.0
"""Throughput and utilisation are those of so many seconds, or of the last few requests if fewer finished in these."""
_RATE_REQUESTS = 4
LATENCY_S = 10.0
_LATENCY_REQUESTS = 20
STAGE_REQUESTS = 16
"""A stage's time, slowdown and queue are medians over so many requests."""
_REQUESTS_PER_STAGE = 8
"""A stage that ran nothing of so many requests for each stage is passed by: most may go to one stage each."""
_COMPLETIONS = 4096
_TIMELINES = 64
_QUARTILES = (0.25, 0.5, 0.75)


class Rates(NamedTuple):
    """Requests and samples completed per second of busy time."""

    throughput_hz: float = math.nan
    samples_hz: float = math.nan


class Mix(NamedTuple):
    """What micro-batches of late were like.

    Attributes
    ----------
    requests
        How many a micro-batch answered, on average.
    share
        What it is expected to take on each stage, over what a full one does, on average, shape (stages,).
    """

    requests: float
    share: FloatArray


class _Done(NamedTuple):
    at_s: float
    latency_s: float
    requests: int
    samples: int  # 0: not known


class StageTimes(NamedTuple):
    """Each stage's times of late under one plan, shape (stages,); ``nan`` where nothing is known.

    Attributes
    ----------
    time_s, queue_s
        Medians over the requests of which the stage ran layers.
    ratio
        Median of time / baseline of the layers that each request ran there.
    baseline_s
        Median of that baseline.
    known
        Of how many requests these are the medians.
    """

    time_s: FloatArray
    queue_s: FloatArray
    ratio: FloatArray
    baseline_s: FloatArray
    known: IntArray


_Record = TypeVar("_Record", bound=tuple[float, ...])


class RecentRequests:
    """Remembers the last requests; taking one in costs two appends.

    Parameters
    ----------
    baseline_s
        Seconds of all layers before each cut on each stage's device, shape (stages, layers + 1).
    times
        What is expected by the number of samples; None: all micro-batches are full.
    """

    def __init__(self, baseline_s: FloatArray, times: SampleTimes | None = None) -> None:
        self._baseline_s, self._times = baseline_s, times
        self._stage_count = len(baseline_s)
        self.count = self.joined = 0
        """Micro-batches so far, and requests that they answered beyond one each."""
        self._completions: deque[_Done] = deque(maxlen=_COMPLETIONS)
        self._off: deque[tuple[float, float]] = deque(maxlen=_COMPLETIONS)  # (completion, that minus the expected one)
        self._timelines: deque[RequestTimeline] = deque(maxlen=_TIMELINES)

    def append(self, event: RequestDone) -> None:
        """Remember one."""
        timeline = event.timeline
        self.count += 1
        self.joined += timeline.requests - 1
        took_s = timeline.completed_s - timeline.submitted_s
        self._completions.append(_Done(event.at_s, took_s, timeline.requests, timeline.samples))
        self._timelines.append(timeline)
        if timeline.expected_s == timeline.expected_s:  # not nan
            self._off.append((event.at_s, timeline.completed_s - timeline.expected_s))

    def latencies_s(self, now_s: float) -> list[float]:
        """Seconds from submission to completion over the last seconds, oldest first."""
        return [done.latency_s for done in _of_late(self._completions, now_s, LATENCY_S, _LATENCY_REQUESTS)]

    def off_s(self, now_s: float) -> list[float]:
        """Seconds by which completions were later than expected, over the same time."""
        return [off_s for _, off_s in _of_late(self._off, now_s, LATENCY_S, _LATENCY_REQUESTS)]

    def rates(self, now_s: float, *, idle: bool = False) -> Rates:
        """Requests and samples completed per second of busy time, of late.

        Completions after the first of the last ``RATE_S`` seconds, or of the last few micro-batches if fewer finished
        in these, divided by the busy time from that first completion to the last one. Requests that come one at a time
        give the inverse of their latency, however long the pauses between them. A micro-batch of an unknown number of
        samples counts as a full one.

        Parameters
        ----------
        idle
            Whether it is known that nothing is under way now. If so, the time since the last completion is a pause.
            Otherwise a silence counts as busy time, so that the throughput of a pipeline that has stopped falls to 0.

        Returns
        -------
        Rates
            ``nan`` before two are done.
        """
        if idle and self._completions:
            now_s = self._completions[-1].at_s
        completions = _of_late(self._completions, now_s, RATE_S, _RATE_REQUESTS)
        if len(completions) < 2:
            return Rates()
        busy_s = _busy_s([done[:2] for done in completions])
        silence_s, usual_s = now_s - completions[-1].at_s, busy_s / (len(completions) - 1)
        if silence_s > max(RATE_S, 4 * usual_s):
            return Rates(0.0, 0.0)
        if silence_s > 2 * usual_s:
            busy_s += silence_s
        if busy_s <= 0:
            return Rates()
        requests = sum(done.requests for done in completions[1:])
        samples = sum(self._samples(done) for done in completions[1:])
        return Rates(requests / busy_s, samples / busy_s)

    def mix(self, now_s: float) -> Mix | None:
        """What micro-batches of late were like; None before the first."""
        completions = _of_late(self._completions, now_s, RATE_S, _RATE_REQUESTS)
        if not completions:
            return None
        share = np.ones(self._stage_count)
        if self._times is not None and self._times.batch > 1:
            sizes = Counter(done.samples for done in completions)
            for stage in range(self._stage_count):
                whole = sum(count * self._times.share(stage, samples) for samples, count in sizes.items())
                share[stage] = whole / len(completions)
        return Mix(sum(done.requests for done in completions) / len(completions), share)

    def _samples(self, done: _Done) -> int:
        batch = 1 if self._times is None else self._times.batch
        return min(done.samples or batch, batch)

    def utilisation(self, now_s: float, *, idle: bool = False) -> FloatArray:
        """Part of the busy time of late that each stage computed, 0 to 1, shape (stages,); ``nan`` without a rate."""
        if idle and self._completions:
            now_s = self._completions[-1].at_s
        recent = list(self._timelines)
        late = [timeline for timeline in recent if timeline.completed_s > now_s - RATE_S]
        timelines = late if len(late) >= _RATE_REQUESTS else recent[-_RATE_REQUESTS:]
        busy_s = _busy_s([(timeline.completed_s, timeline.latency_s) for timeline in timelines])
        if busy_s <= 0 or self.rates(now_s, idle=idle).throughput_hz == 0:
            return np.full(self._stage_count, math.nan)
        wall_s, *_ = self._tables(timelines[1:])  # the first one's work lies before the span
        share: FloatArray = np.minimum(np.nansum(wall_s, axis=0) / busy_s, 1.0)
        return share

    def stage_times(self, epoch: int, valid_from: FloatArray) -> StageTimes:
        """Each stage's times of late under one plan, as those of full micro-batches.

        Parameters
        ----------
        epoch
            The plan's.
        valid_from
            How many of the first requests not to look at, for each stage, shape (stages,).
        """
        latest = list(self._timelines)[-STAGE_REQUESTS:]
        if self._times is not None:
            latest = [self._times.as_full(timeline) for timeline in latest]
        number = self.count - len(latest) + 1 + np.arange(len(latest))
        wall_s, queue_s, work_s, _ = self._tables(latest)
        of_epoch = np.array([timeline.epoch == epoch for timeline in latest], dtype=bool)
        wall_s[~of_epoch], queue_s[~of_epoch] = math.nan, math.nan
        wall_s[number[:, None] <= valid_from] = math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = wall_s / work_s
        known = ~np.isnan(wall_s)
        return StageTimes(
            column_medians(wall_s),
            column_medians(queue_s),
            column_medians(ratio),
            column_medians(np.where(known, work_s, math.nan)),
            np.sum(known, axis=0),
        )

    def range_quartiles(self, epoch: int) -> IntArray | None:
        """Lower quartile, median and upper quartile of where each stage began and ended of late under one plan.

        Shape (3, stages, 2), over the requests of which the stage ran a layer; each is that of some request. A stage
        that ran none counts with all. None before the first request.
        """
        *_, ends = self._tables([timeline for timeline in self._timelines if timeline.epoch == epoch])
        if not len(ends):
            return None
        ranges = np.stack([ends[:, :-1], ends[:, 1:]], axis=2)
        found = []
        for of_stage in ranges.swapaxes(0, 1):
            ran = of_stage[of_stage[:, 0] < of_stage[:, 1]]
            ordered = np.sort(ran if len(ran) else of_stage, axis=0)
            found.append(ordered[[round(part * (len(ordered) - 1)) for part in _QUARTILES]])
        return np.stack(found, axis=1)

    def shares(self, epoch: int) -> tuple[FloatArray, FloatArray]:
        """Part of the requests of late under one plan of which each stage ran any layer, and each layer.

        Shapes (stages,) and (stages, layers); ``nan`` before the first such request. The former is over fewer requests:
        it is to show soon that a stage is passed by.
        """
        timelines = [timeline for timeline in self._timelines if timeline.epoch == epoch]
        stages, layers = self._baseline_s.shape[0], self._baseline_s.shape[1] - 1
        if not timelines:
            return np.full(stages, math.nan), np.full((stages, layers), math.nan)
        *_, ends = self._tables(timelines)
        first, last, layer = ends[:, :-1, None], ends[:, 1:, None], np.arange(layers)
        latest = max(STAGE_REQUESTS, _REQUESTS_PER_STAGE * stages)
        ran_any = np.mean(np.diff(ends[-latest:], axis=1) > 0, axis=0)
        return ran_any, np.mean((first <= layer) & (layer < last), axis=0)

    def _tables(self, timelines: list[RequestTimeline]) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
        """Wall, queue and baseline seconds, shape (requests, stages), ``nan`` without layers; cuts, one column more."""
        wall_s, queue_s, work_s = np.full((3, len(timelines), self._stage_count), math.nan)
        cuts = np.zeros((len(timelines), self._stage_count + 1), dtype=np.int64)
        try:
            for row, timeline in enumerate(timelines):
                for timing in timeline.stages:
                    stage, first, last = timing[:3]
                    if first < last:
                        wall_s[row, stage] = timing.wall_s
                        queue_s[row, stage] = timing.queue_s
                        work_s[row, stage] = self._baseline_s[stage, last] - self._baseline_s[stage, first]
                        cuts[row, stage + 1] = last
        except IndexError as error:
            stages, ends = self._baseline_s.shape
            raise ValueError(
                f"a request passed a stage beyond the run's {stages}, or a layer beyond its {ends - 1}"
            ) from error
        # A stage without layers ends where the one before it does.
        return wall_s, queue_s, work_s, np.maximum.accumulate(cuts, axis=1)


def _of_late(records: Sequence[_Record], now_s: float, window_s: float, at_least: int) -> list[_Record]:
    """Those of the last ``window_s``, or the last few if those are fewer; oldest first. Each begins with its time."""
    found: list[_Record] = []
    for record in reversed(records):
        if record[0] <= now_s - window_s and len(found) >= at_least:
            break
        found.append(record)
    return found[::-1]


def _busy_s(requests: Sequence[tuple[float, float]]) -> float:
    """Seconds from the first completion to the last in which a request was under way; (completion, latency) each."""
    if len(requests) < 2:
        return 0.0
    completed_s, latency_s = np.array(sorted(requests)).T
    # When the first of those still to come was submitted: before that nothing was under way.
    resumed_s = np.minimum.accumulate((completed_s - latency_s)[::-1])[::-1]
    begin_s, end_s = completed_s[:-1], completed_s[1:]
    return float((end_s - np.clip(resumed_s[1:], begin_s, end_s)).sum())


def column_medians(table: FloatArray) -> FloatArray:
    """Median of each column without its nans, and nan for a column of nothing else, where ``nanmedian`` warns."""
    if not len(table):
        return np.full(table.shape[1], math.nan)
    ordered = np.sort(table, axis=0)  # nan goes to the end
    known = np.sum(~np.isnan(ordered), axis=0)
    columns = np.arange(table.shape[1])
    low = ordered[np.maximum(known - 1, 0) // 2, columns]
    high = ordered[np.minimum(known // 2, len(table) - 1), columns]
    medians: FloatArray = np.where(known > 0, (low + high) / 2, math.nan)
    return medians
