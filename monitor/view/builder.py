"""Builds the present view of a pipeline from the events of its run.

Taking a finished request in costs a few appends; everything that takes arithmetic waits for :meth:`ViewBuilder.view` or
for the end of a second, so that it may run beside serving.
"""

from __future__ import annotations

import math
import re
import statistics
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.monitor.events import (
    Attributed,
    Event,
    EventsMissing,
    FamilyCounted,
    Fault,
    KnobTurned,
    LoadChanged,
    ModelEvicted,
    ModelLoaded,
    MoveFailed,
    PlanChanged,
    PlannedTogether,
    PlanVerified,
    PolicyChanged,
    RequestDone,
    RequestFailed,
    RequestsRefused,
    RunEnded,
    RunStarted,
    SlowdownChanged,
    StageBack,
    StageLost,
    TenantShare,
    VariantChosen,
)
from odin.monitor.samples import SampleTimes
from odin.monitor.view.event_text import event_text
from odin.monitor.view.pipeline_view import (
    EventLine,
    History,
    InjectedLoad,
    PipelineView,
    StageState,
    StageView,
    TunedKnob,
)
from odin.monitor.view.recent import Mix, RecentRequests
from odin.monitor.view.windows_text import end_ranges
from odin.monitor.window import percentiles_s

__all__ = ["EventLine", "History", "InjectedLoad", "PipelineView", "Serving", "StageView", "ViewBuilder"]

FloatArray = NDArray[np.float64]

HISTORY_S = 120
_SURE_REQUESTS = 4
"""From so many requests on, the measured slowdown is shown rather than the detector's first estimate."""
_QUIET_SECONDS = 60
_EVENT_LINES = 100
_LATE = "DeadlineExceededError"
_LOST = re.compile(r"stage (\d+) \([^)]*\) is gone")
"""In logs from before stages were replaced."""


class Serving(NamedTuple):
    """What the gateway of a running pipeline knows at a moment, before events tell it.

    Attributes
    ----------
    completed, failed, in_flight
        Requests since the start; those submitted and not finished.
    epoch, plan
        Those that the next request runs under.
    windows
        Where requests may change hands if not only where the plan says, as in the run's start.
    refused
        Requests since the start that were refused at once, which are in none of the former.
    """

    completed: int
    failed: int
    in_flight: int
    epoch: int
    plan: tuple[int, ...]
    windows: str = ""
    refused: int = 0


class _Second(NamedTuple):
    """One point of each history."""

    throughput_hz: float
    fluid_bound_hz: float
    latency_p50_s: float
    latency_p99_s: float


class _Stage:
    """What is known of one stage beyond its times."""

    def __init__(self) -> None:
        self.disturbed = False
        self.lost = self.hangs = False
        self.why_lost = ""
        self.pid: int | None = None  # of the process that has taken its place
        self.slowdown = 1.0
        self.cause: Attributed | None = None
        self.valid_from = 0
        """Only requests counted later than this belong to the present plan and slowdown."""
        self.quiet: deque[tuple[int, float]] = deque(maxlen=_QUIET_SECONDS)
        """Requests so far and time / baseline, at the end of each undisturbed second. The median of the latter says
        what 1.0x is, whatever the baselines' error."""

    @property
    def undisturbed_ratio(self) -> float:
        return statistics.median(ratio for _, ratio in self.quiet) if self.quiet else 1.0

    def forget_quiet(self, after: int) -> None:
        """The stage was disturbed already, unnoticed, after so many requests."""
        while self.quiet and self.quiet[-1][0] > after:
            self.quiet.pop()

    def adopt_other_layers(self) -> None:
        """Other layers have other errors of their baselines: learn anew, from what is known."""
        latest = self.undisturbed_ratio
        if self.quiet and not self.disturbed:
            count = self.quiet[-1][0]
            self.quiet.clear()
            self.quiet.append((count, latest))


class _Now(NamedTuple):
    """Arrays over stages: medians of late, undisturbed times, slowdowns, and between which cuts their layers lie."""

    time_s: FloatArray
    queue_s: FloatArray
    ratio: FloatArray
    reference_s: FloatArray
    slowdown: FloatArray
    cuts: NDArray[np.int64]
    fluid_bound_hz: float


class ViewBuilder:
    """Collects events and returns the present view; both may be called from any thread.

    Events are taken in the order of their times; a little disorder does no harm. The first one is the
    :class:`~odin.monitor.events.RunStarted`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: RunStarted | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunStarted: self._start,
            RequestDone: self._request,
            RequestFailed: self._failure,
            RequestsRefused: self._refusal,
            SlowdownChanged: self._slowdown,
            Attributed: self._attribution,
            PlanChanged: self._plan_change,
            PlanVerified: self._tell,
            PolicyChanged: self._policy_change,
            StageLost: self._stage_lost,
            StageBack: self._stage_back,
            LoadChanged: self._load,
            MoveFailed: self._tell,
            Fault: self._tell,
            PlannedTogether: self._planned_together,
            EventsMissing: self._missing,
            RunEnded: self._end,
            KnobTurned: self._knob,
            ModelLoaded: self._tell,
            ModelEvicted: self._tell,
            VariantChosen: self._tell,
            FamilyCounted: self._tell,
        }

    def apply(self, event: Event) -> None:
        """Take one event in.

        Raises
        ------
        ValueError
            If it comes before the run's start, or speaks of a stage that the run does not have.
        """
        with self._lock:
            if type(event) is not RunStarted:
                if self._run is None:
                    raise ValueError(f"the first event is a {event.kind!r}; it must be the run's start")
                if event.at_s >= self._second_ends_s:
                    self._close_seconds(event.at_s)
            self._handlers[type(event)](event)

    def view(self, now_s: float, serving: Serving | None = None, *, in_flight: int | None = None) -> PipelineView:
        """How the pipeline looks at ``now_s``, a reading of the clock of the events.

        Parameters
        ----------
        serving
            What is known of the present moment beyond the events, of a pipeline that runs.
        in_flight
            Requests under way, where that alone is known.

        Raises
        ------
        ValueError
            If there was no event yet.
        """
        with self._lock:
            run = self._run
            if run is None:
                raise ValueError("there is no view before the run's start")
            if self._ended_s is not None:
                now_s = self._ended_s
            self._close_seconds(now_s)
            plan, epoch, windows = self._plan, self._epoch, self._windows
            completed, failed = self._recent.count + self._recent.joined + self._not_recorded, self._failed
            refused = self._refused
            if serving is not None:
                completed, failed, in_flight, epoch, plan, windows, refused = serving
            idle = in_flight == 0
            now = self._now(now_s, plan, epoch, windows)
            rates = self._recent.rates(now_s, idle=idle)
            utilisation = self._recent.utilisation(now_s, idle=idle)
            p50_s, p99_s = percentiles_s(self._recent.latencies_s(now_s), (50, 99))
            off_s = self._recent.off_s(now_s)
            off_p50_s, off_p99_s = percentiles_s(off_s, (50, 99)) if off_s else (math.nan, math.nan)
            return PipelineView(
                model=run.model,
                policy=self._policy,
                plan=tuple(plan),
                epoch=epoch,
                layers=run.layers,
                batch=run.batch,
                engine=run.engine,
                uptime_s=max(0.0, now_s - run.at_s),
                completed=completed,
                failed=failed,
                in_flight=in_flight,
                max_in_flight=run.max_in_flight,
                throughput_hz=rates.throughput_hz,
                fluid_bound_hz=now.fluid_bound_hz,
                latency_p50_s=p50_s,
                latency_p99_s=p99_s,
                stages=self._stage_views(plan, epoch, windows, now, utilisation),
                history=History(self._seconds, *(tuple(points) for points in zip(*self._history, strict=True)))
                if self._history
                else History(self._seconds, (), (), (), ()),
                loads=tuple(self._loads.values()),
                events=tuple(self._lines),
                event_count=self._event_count,
                ended=self._ended,
                windows=windows,
                in_time=self._in_time,
                late=self._late,
                refused=refused,
                off_p50_s=off_p50_s,
                off_p99_s=off_p99_s,
                tuned=self._tuned,
                share=run.share,
                together=self._together,
                samples_hz=rates.samples_hz,
            )

    # -- events -----------------------------------------------------------------------------------------------------

    def _start(self, run: RunStarted) -> None:
        if self._run is not None:
            raise ValueError("another run begins; a view shows one")
        layers = len(run.layers)
        if sum(run.plan) != layers or len(run.plan) != len(run.stages) or not run.stages:
            raise ValueError(f"plan {run.plan} does not spread {layers} layers over {len(run.stages)} stages")
        self._check_windows(run.windows, stages=len(run.stages), layers=layers)
        for index, stage in enumerate(run.stages):
            if len(stage.baseline_s) != layers:
                raise ValueError(f"stage {index} has {len(stage.baseline_s)} baselines for {layers} layers")
        # cumulative, so that any range's baseline is one subtraction: shape (stages, layers + 1)
        self._baseline_s = np.zeros((len(run.stages), layers + 1))
        np.cumsum([stage.baseline_s for stage in run.stages], axis=1, out=self._baseline_s[:, 1:])
        self._run = run
        self._devices = [stage.device for stage in run.stages]
        self._plan, self._epoch, self._windows, self._policy = tuple(run.plan), 0, run.windows, run.policy
        self._stages = [_Stage() for _ in run.stages]
        self._in_time = self._late = self._refused = self._refused_in_a_row = 0
        self._failed = self._not_recorded = self._event_count = self._seconds = 0
        self._second_ends_s = run.at_s + 1.0
        self._second_latencies_s: list[float] = []
        self._history: deque[_Second] = deque(maxlen=HISTORY_S)
        self._recent = RecentRequests(self._baseline_s, SampleTimes.of_run(run))
        self._loads: dict[tuple[str, str], InjectedLoad] = {}
        self._together: tuple[TenantShare, ...] = ()
        self._lines: deque[EventLine] = deque(maxlen=_EVENT_LINES)
        self._last_key: object = None
        self._tuned: TunedKnob | None = None
        self._turns = 0
        self._ended: str | None = None
        self._ended_s: float | None = None
        self._say(run)

    def _request(self, event: RequestDone) -> None:
        self._recent.append(event)
        self._second_latencies_s.append(event.timeline.completed_s - event.timeline.submitted_s)
        self._in_time += event.timeline.in_time

    def _failure(self, event: RequestFailed) -> None:
        self._failed += 1
        self._late += event.error.startswith(_LATE)
        self._look_for_lost(event.error)
        self._say(event, merge=("failure", event.error))

    def _refusal(self, event: RequestsRefused) -> None:
        self._refused += event.requests
        self._refused_in_a_row = event.requests + (self._refused_in_a_row if self._last_key == "refused" else 0)
        self._say(RequestsRefused(event.at_s, self._refused_in_a_row), merge="refused")

    def _slowdown(self, event: SlowdownChanged) -> None:
        self._say(event)
        stage = self._stages[event.stage]
        stage.valid_from = max(stage.valid_from, self._recent.count - event.age)
        stage.disturbed = event.state != "end"
        if event.state == "onset":
            stage.forget_quiet(self._recent.count - event.age)
        if stage.disturbed:
            stage.slowdown = event.slowdown
        else:
            stage.slowdown, stage.cause = 1.0, None

    def _attribution(self, event: Attributed) -> None:
        self._say(event)
        self._stages[event.stage].cause = event

    def _plan_change(self, event: PlanChanged) -> None:
        assert self._run is not None
        if len(event.after) != len(self._stages) or sum(event.after) != len(self._run.layers):
            raise ValueError(f"plan {event.after} does not fit the run's {len(self._run.layers)} layers and its stages")
        self._check_windows(event.windows, stages=len(self._stages), layers=len(self._run.layers))
        now = self._now(event.at_s)
        for index, stage in enumerate(self._stages):
            if math.isfinite(now.slowdown[index]) and stage.disturbed:
                stage.slowdown = float(now.slowdown[index])  # the best guess under the new plan
            if event.after[index] != self._plan[index]:
                stage.adopt_other_layers()
        self._plan, self._epoch, self._windows = tuple(event.after), event.epoch, event.windows
        self._say(event)

    @staticmethod
    def _check_windows(windows: str, *, stages: int, layers: int) -> None:
        if windows and (len(ends := end_ranges(windows)) != stages or ends[-1] != (layers, layers)):
            raise ValueError(f"windows {windows} do not fit the run's {layers} layers and {stages} stages")

    def _policy_change(self, event: PolicyChanged) -> None:
        self._policy = event.policy
        self._together = ()  # planned for others, if at all
        self._say(event)

    def _planned_together(self, event: PlannedTogether) -> None:
        self._together = event.tenants
        self._say(event)

    def _stage_lost(self, event: StageLost) -> None:
        self._say(event)
        stage = self._stages[event.stage]
        stage.lost, stage.hangs, stage.why_lost = True, event.hangs, event.why

    def _stage_back(self, event: StageBack) -> None:
        self._say(event)
        stage = self._stages[event.stage]
        stage.lost, stage.hangs, stage.why_lost = False, False, ""
        stage.pid = event.pid

    def _load(self, event: LoadChanged) -> None:
        key = (event.name, event.on)
        if event.intensity > 0:
            self._loads[key] = InjectedLoad(event.name, event.load, event.on, event.intensity, event.pid)
        else:
            self._loads.pop(key, None)
        self._say(event, merge=("load", key) if event.intensity > 0 else None)  # a ramp is one line

    def _knob(self, event: KnobTurned) -> None:
        self._turns += event.before != event.after
        self._tuned = TunedKnob(event.knob, event.after, event.statistic, event.limit_s, self._turns)
        self._say(event)

    def _end(self, event: RunEnded) -> None:
        self._ended, self._ended_s = event.reason, event.at_s
        self._look_for_lost(event.reason)
        self._loads.clear()
        self._say(event)

    def _missing(self, event: EventsMissing) -> None:
        self._not_recorded += event.requests
        self._say(event)

    def _tell(self, event: Event) -> None:
        self._say(event)

    def _say(self, event: Event, *, merge: object = None) -> None:
        """Add a line, or replace the last one if it tells the same story."""
        assert self._run is not None
        kind = "restored" if isinstance(event, SlowdownChanged) and event.state == "end" else event.kind
        line = EventLine(event.at_s - self._run.at_s, kind, event_text(event, self._devices, batch=self._run.batch))
        if merge is not None and merge == self._last_key:
            self._lines.pop()
        else:
            self._event_count += 1
        self._last_key = merge
        self._lines.append(line)

    def _look_for_lost(self, error: str) -> None:
        if (match := _LOST.search(error)) and int(match[1]) < len(self._stages):
            self._stages[int(match[1])].lost = True

    # -- statistics -------------------------------------------------------------------------------------------------

    def _close_seconds(self, now_s: float) -> None:
        skipped = int(now_s - self._second_ends_s) - HISTORY_S  # nobody asked, and nothing happened, for long
        if skipped > 0:
            self._seconds += skipped
            self._second_ends_s += skipped
        while now_s >= self._second_ends_s:
            now = self._now(self._second_ends_s)
            self._learn_undisturbed(now)
            p50_s, p99_s = percentiles_s(self._second_latencies_s, (50, 99))
            rate_hz = self._recent.rates(self._second_ends_s).throughput_hz
            self._history.append(_Second(rate_hz, now.fluid_bound_hz, p50_s, p99_s))
            self._second_latencies_s.clear()
            self._seconds += 1
            self._second_ends_s += 1.0

    def _learn_undisturbed(self, now: _Now) -> None:
        if not self._second_latencies_s:
            return
        for stage, ratio in zip(self._stages, now.ratio, strict=True):
            if not stage.disturbed and 0 < ratio < math.inf:
                stage.quiet.append((self._recent.count, float(ratio)))

    def _now(
        self,
        now_s: float,
        plan: Sequence[int] | None = None,
        epoch: int | None = None,
        windows: str | None = None,
    ) -> _Now:
        plan, epoch = self._plan if plan is None else plan, self._epoch if epoch is None else epoch
        windows = self._windows if windows is None else windows
        stages = self._stages
        valid_from = np.array([float(stage.valid_from) for stage in stages])
        late = self._recent.stage_times(epoch, valid_from)

        cuts = np.concatenate(([0], np.cumsum(plan)))
        rows = np.arange(len(stages))
        baseline_s = self._baseline_s[rows, cuts[1:]] - self._baseline_s[rows, cuts[:-1]]
        if windows:
            np.copyto(baseline_s, late.baseline_s, where=late.known > 0)
        empty = _empty(plan, windows)
        ratio = np.where(empty, math.nan, late.ratio)
        undisturbed_ratio = np.array([stage.undisturbed_ratio for stage in stages])
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = ratio / undisturbed_ratio
        disturbed = np.array([stage.disturbed for stage in stages])
        told = np.array([stage.slowdown for stage in stages])
        unsure = empty | ~np.isfinite(measured) | (disturbed & (late.known < _SURE_REQUESTS))
        slowdown = np.where(unsure, told, measured)
        return _Now(
            np.where(empty, math.nan, late.time_s),
            np.where(empty, math.nan, late.queue_s),
            ratio,
            baseline_s * undisturbed_ratio,
            slowdown,
            cuts,
            self._fluid_bound_hz(undisturbed_ratio, np.where(disturbed, slowdown, 1.0), self._recent.mix(now_s)),
        )

    def _fluid_bound_hz(self, undisturbed_ratio: FloatArray, slowdown: FloatArray, mix: Mix | None) -> float:
        """Requests per second, of micro-batches such as those of late; before the first, of full ones of one each."""
        assert self._run is not None
        # A stage that uses only a share of its device is as slow as that, if it is not disturbed more.
        chain_s = self._baseline_s[:, -1] * undisturbed_ratio * np.maximum(slowdown, 1.0 / self._run.share)
        requests = 1.0
        if mix is not None:
            chain_s, requests = chain_s * mix.share, mix.requests
        usable = np.array([not stage.lost for stage in self._stages]) & np.isfinite(chain_s) & (chain_s > 0)
        return float(np.sum(requests / chain_s[usable])) if usable.any() else math.nan

    def _stage_views(
        self, plan: Sequence[int], epoch: int, windows: str, now: _Now, utilisation: FloatArray
    ) -> tuple[StageView, ...]:
        assert self._run is not None
        quartiles = self._recent.range_quartiles(epoch) if windows else None
        planned = np.stack([now.cuts[:-1], now.cuts[1:]], axis=1)
        low, ranges, high = np.tile(planned, (3, 1, 1)) if quartiles is None else quartiles
        empty = _empty(plan, windows)
        shares, layer_shares = self._recent.shares(epoch) if windows else (np.full(len(empty), math.nan), None)
        views = []
        for index, (stage, told) in enumerate(zip(self._stages, self._run.stages, strict=True)):
            cause = None if stage.lost else stage.cause
            view = StageView(
                stage=index,
                device=told.device,
                node_id=told.node_id,
                pid=told.pid if stage.pid is None else stage.pid,
                first=int(ranges[index, 0]),
                last=int(ranges[index, 1]),
                state=_state(stage, empty=bool(empty[index]), share=float(shares[index])),
                time_s=float(now.time_s[index]),
                reference_s=float(now.reference_s[index]),
                slowdown=float(now.slowdown[index]),
                queue_s=float(now.queue_s[index]),
                utilisation=float(utilisation[index]),
                interference=cause.interference if cause else "",
                culprits=cause.culprits if cause else (),
                note=cause.note if cause else "",
                last_quartiles=(int(low[index, 1]), int(high[index, 1])) if windows else (),
                request_share=float(shares[index]),
                layer_shares=() if quartiles is None or layer_shares is None else _rounded(layer_shares[index]),
                why_lost=stage.why_lost,
            )
            views.append(view)
        return tuple(views)


def _rounded(shares: FloatArray) -> tuple[float, ...]:
    """As short in JSON as a picture needs them."""
    return tuple(round(share, 2) for share in shares.tolist())


def _state(stage: _Stage, *, empty: bool, share: float) -> StageState:
    if stage.lost:
        return "hung" if stage.hangs else "lost"
    if empty:
        return "empty"
    return "disturbed" if stage.disturbed else "bypassed" if share == 0.0 else "quiet"


def _empty(plan: Sequence[int], windows: str) -> NDArray[np.bool_]:
    """Which stages have no layers by plan, and get none in any request, shape (stages,)."""
    if not windows:
        return np.array([count == 0 for count in plan])
    ends = end_ranges(windows)
    return np.array([first == last for (first, _), (_, last) in pairwise([(0, 0), *ends])])
