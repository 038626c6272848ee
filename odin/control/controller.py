"""The controller: passes every finished request to detector and policy, moves layers, and verifies moves.

::

    gateway thread          controller thread                                   investigating thread
    request done  ------->  record -> watch (detector) -> policy.decide
                              |            |                  |
                              |            onset ------------------------------> who shares the device, and how
                              |                               move -> prepare -> switch -> (8 requests later) verified

Nothing here delays a request: the gateway hands timelines over through a queue. Where the policy never decides
anything, as in a relay, they are taken from it some at a time: waking this thread up for each takes far more CPU time
than what it does, which the stages lack where they have all cores. Whatever a policy, a detector or a
move raises, the thread goes on: the policy or detector is replaced, the plan in force stays. If requests come faster
than they can be looked at, the oldest that wait are left out and counted.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.control.decision_core import DecisionCore, Finished, PolicyFault
from odin.control.faults import Faults
from odin.control.users_code import describe, name_of, where_raised
from odin.errors import OdinError, PipelineClosedError, StageLostError
from odin.monitor.detectors.base import Detector
from odin.monitor.events import (
    Event,
    EventsMissing,
    MoveFailed,
    PlanChanged,
    PlannedTogether,
    PlanVerified,
    PolicyChanged,
    RequestDone,
    RequestFailed,
    RequestsRefused,
    SlowdownChanged,
    TenantShare,
)
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.monitor.watch import SlowdownChange, StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision, Policy, Setting
from odin.partitioner.policies.paced import share_of
from odin.partitioner.relay import Windows
from odin.process.worker_thread import Worker

__all__ = ["Controller", "Doubt", "Investigate", "Migrate"]

FloatArray = NDArray[np.float64]

Migrate = Callable[[Plan, Windows | None], int]
"""Moves the pipeline to a plan, and windows around it if there are any; returns the epoch."""

Investigate = Callable[[int, Sequence[StageTiming], Callable[[], Sequence[StageTiming]]], None]
"""Called with a disturbed stage, its timings before, and a function for those since; returns at once."""

Doubt = Callable[[int, float], None]
"""Called once with a stage that is faster than its baseline, and the ratio of its time to the baseline."""

_JOIN_S = 5.0
"""Closing waits at most so long for a policy or ``on_event`` that does not return."""
_VERIFY_REQUESTS = 8
_TIMINGS_KEPT = 64
_TELL_REFUSED_S = 1.0
_CREDIT_S = 2.0
"""CPU seconds that may be spent ahead of the budget, so that during changes every request is evaluated at once."""
_TOGETHER_S = 0.1
"""CPU seconds ahead of the budget from which on usual requests are evaluated a few at a time ..."""
_TOGETHER = 4
"""... so many: in sequence each takes far less CPU time, since caches are warm."""
_LINGER_S = 0.05
"""Seconds for which finished requests are gathered, where nothing is decided."""
_USUAL, _USUAL_RATE = 0.2, 0.1
"""Largest relative difference of a usual request's slowdowns from their EWMA, and the EWMA's weight."""
_NEWS = 64
"""So many requests after a detected change are evaluated one by one."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
"""Seconds for which the policy is not asked after a failed move; doubled after each further failure."""


class _Verification(NamedTuple):
    epoch: int
    plan: tuple[int, ...]
    predicted_hz: float
    stage_s: list[list[float]]


class _Asked(NamedTuple):
    epoch: int
    plan: Plan
    windows: Windows | None
    why: str
    at_s: float
    prepare_s: float


class Controller:
    """Connects detector, policy and migration; runs in a thread of its own.

    Parameters
    ----------
    setting
        What policies are told at the start.
    policy
        Decides.
    migrate
        Carries a decision out.
    emit
        Takes every event; called from several threads.
    investigate
        Finds out who disturbs a stage.
    doubt
        Told of baselines that turn out too long.
    watch
        Default: one with the default detector.
    faults
        Told of what goes wrong; default: tells it by warnings and ``emit``.
    budget
        Share of one core that this thread may take in the long run. Where it takes more, requests that are like those
        before them are looked at a few at a time. Recording is never left out, so with very fast models not every
        request is looked at.
    clock, cpu_clock
        Monotonic seconds; CPU seconds of the calling thread.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        policy: Policy,
        migrate: Migrate,
        emit: Callable[[Event], None],
        investigate: Investigate | None = None,
        doubt: Doubt | None = None,
        watch: StageWatch | None = None,
        faults: Faults | None = None,
        budget: float = 0.01,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._setting = setting
        self._times = SampleTimes(setting.baseline_s, setting.single_s, batch=setting.batch)
        self._migrate = migrate
        self._emit = emit
        self._faults = faults or Faults(emit, clock=clock)
        self._investigate = investigate
        self._doubt = doubt
        self._doubted: set[int] = set()
        self._core = DecisionCore(
            setting,
            policy,
            watch or StageWatch(setting.baseline_s),
            on_policy_fault=self._policy_replaced,
            on_detector_fault=self._detector_replaced,
        )
        self._budget = budget
        self._clock, self._cpu_clock = clock, cpu_clock
        self._seen_cuts: tuple[int, ...] = ()
        self._seen_plan = setting.plan
        self._finished = 0
        self._refused, self._told_refused_s = 0, -math.inf
        self._last_seen_s = math.nan
        self._debt_s = 0.0
        self._used_s = math.nan  # the CPU clock after the last request: what is between two counts as well
        self._waiting: list[tuple[int, RequestTimeline]] = []  # to be looked at, with their numbers
        self._changed_at = 0
        self._last_epoch = self._newest = -1
        self._coming: Policy | None = None
        self._paused = False
        self._before_s = [[0.0, *row] for row in np.cumsum(setting.baseline_s, axis=1).tolist()]
        self._usual = [1.0] * setting.stage_count
        self._recent: list[deque[StageTiming]] = [deque(maxlen=_TIMINGS_KEPT) for _ in range(setting.stage_count)]
        self._undisturbed: list[tuple[StageTiming, ...]] = [()] * setting.stage_count  # as of the latest onsets
        self._verification: _Verification | None = None
        self._asked: deque[_Asked] = deque()
        self._told_together: Sequence[Any] = ()
        self._moved_s = -math.inf
        self._retry_s, self._asked_again_s = _FIRST_RETRY_S, -math.inf
        self._worker: Worker[RequestTimeline | Callable[[], None]] = Worker(
            self._take,
            name="odin-controller",
            on_error=lambda error: self._faults.tell("the controller", error, "it goes on with the next request"),
            expendable=lambda item: isinstance(item, RequestTimeline),
            on_left_out=self._left_out,
            linger_s=_LINGER_S,
        )

    def start(self) -> None:
        """Begin to evaluate requests."""
        self._worker.start()

    def close(self) -> None:
        """Make no more decisions; waits for a move in progress, at most some seconds. Idempotent."""
        closed = self._worker.close(_JOIN_S)
        self._core.end()
        if closed and self._refused:
            self._told_refused_s = -math.inf
            self._count_refused()

    @property
    def policy(self) -> Policy:
        """The policy in force, or that is to be from the next request on."""
        return self._coming or self._core.policy

    def set_policy(self, policy: Policy) -> None:
        """Let another policy decide from the next request on."""
        self._coming = policy

        def change() -> None:
            try:
                self._core.set_policy(policy)
            except BaseException as error:
                self._faults.tell(
                    f"policy {name_of(policy)}",
                    f"raised {describe(error)} at its start",
                    f"{name_of(self._core.policy)} goes on",
                    repeat="both",
                    place=where_raised(error, policy, "start"),
                )
                return
            finally:
                if self._coming is policy:
                    self._coming = None
            self._debt_s = 0.0  # what the one before has cost is not its own
            self._emit(PolicyChanged(self._clock(), name_of(policy)))

        self._worker.put(change)

    def pause(self, paused: bool) -> None:
        """Let the policy decide nothing for a while; afterwards it starts anew with the plan in force."""

        def change() -> None:
            if self._paused and not paused:
                self._core.not_carried_out()
            self._paused = paused

        self._worker.put(change)

    def on_result(self, timeline: RequestTimeline) -> None:
        """Queue a finished request; does not wait."""
        self._worker.put(timeline, at_once=self._core.moves)

    def on_failure(self, request: int, error: OdinError) -> None:
        """Queue a failed request; does not wait."""
        event = RequestFailed(self._clock(), request, f"{type(error).__name__}: {error}")
        self._worker.put(lambda: self._emit(event))

    def on_refusal(self, requests: int) -> None:
        """Count requests that were refused; told at most once a second, since there may be very many."""
        self._worker.put(lambda: self._count_refused(requests), at_once=False)

    def on_migration(self, epoch: int, plan: Plan, windows: Windows | None, why: str, prepare_s: float) -> None:
        """Queue a move that the policy did not decide; does not wait. To be called before the next epoch begins."""
        self._asked.append(_Asked(epoch, plan, windows, why, self._clock(), prepare_s))
        self._worker.put(self._note_asked)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _take(self, item: RequestTimeline | Callable[[], None]) -> None:
        if callable(item):
            item()
        else:
            self.step(item)

    def _count_refused(self, requests: int = 0) -> None:
        self._refused += requests
        now_s = self._clock()
        if self._refused and now_s - self._told_refused_s >= _TELL_REFUSED_S:
            self._emit(RequestsRefused(now_s, self._refused))
            self._refused, self._told_refused_s = 0, now_s

    def _left_out(self, count: int) -> None:
        self._finished += count
        why = "they came faster than they could be looked at"
        self._faults.tell(
            "the controller",
            f"left out the oldest of the requests: {why}",
            "they are counted, serving goes on",
            kind="left out",
        )
        self._emit(EventsMissing(self._clock(), count, 0, why))

    def step(self, timeline: RequestTimeline) -> None:
        """Take one finished request."""
        if math.isnan(self._used_s):
            self._used_s = self._cpu_clock()
        self._emit(RequestDone(timeline.completed_s, timeline))
        if self._refused:
            self._count_refused()
        self._finished += 1
        timeline = self._times.as_full(timeline)
        if self._last_seen_s < timeline.completed_s:
            self._debt_s = max(0.0, self._debt_s - self._budget * (timeline.completed_s - self._last_seen_s))
        self._last_seen_s = timeline.completed_s
        self._waiting.append((self._finished, timeline))
        if self._debt_s > _CREDIT_S:
            self._waiting.clear()
        elif self._debt_s <= _TOGETHER_S or len(self._waiting) >= _TOGETHER or not self._is_usual(timeline):
            together, self._waiting = self._waiting, []
            for number, waiting in together:
                self._look(number, waiting)
        before_s, self._used_s = self._used_s, self._cpu_clock()
        self._debt_s += self._used_s - before_s

    def _is_usual(self, timeline: RequestTimeline) -> bool:
        """Whether a request's stages were about as slow as before, so that its evaluation can wait."""
        stages = timeline.stages
        if len(stages) != self._setting.stage_count:
            return False
        news = self._finished - self._changed_at <= _NEWS or timeline.epoch != self._last_epoch
        usual, self._last_epoch = not news, timeline.epoch
        for stage, timing in enumerate(stages):
            behind_s = self._before_s[stage]
            baseline_s = behind_s[timing.last] - behind_s[timing.first]
            if not baseline_s > 0:  # it ran no layers, or no time was measured for them
                continue
            slowdown, known = timing.wall_s / baseline_s, self._usual[stage]
            usual = usual and abs(slowdown - known) <= _USUAL * known
            self._usual[stage] = slowdown if news else known + _USUAL_RATE * (slowdown - known)
        return usual

    def _look(self, number: int, timeline: RequestTimeline) -> None:
        stages = timeline.stages
        stage_s = np.array([timing.wall_s for timing in stages])
        delay_s = np.array([_delay_s(timing) for timing in stages])
        layer_s = np.fromiter(itertools.chain.from_iterable(timing.layer_s for timing in stages), np.float64)
        if len(stages) != self._setting.stage_count or len(layer_s) != self._setting.layer_count:
            return  # a stage did not tell: an older record, or one cut short
        cuts = (0, *(timing.last for timing in stages))
        if cuts != self._seen_cuts:
            self._seen_cuts, self._seen_plan = cuts, Plan(timing.last - timing.first for timing in stages)
        self._newest = max(self._newest, timeline.epoch)  # requests of two epochs may come in turns
        changes, observation = self._core.observe(
            Finished(
                *(number, self._seen_plan, cuts, stage_s, layer_s, timeline.completed_s),
                plan_key=self._newest,
                delay_s=delay_s,
            )
        )
        if np.count_nonzero(observation.changed):
            self._changed_at = number
        self._tell_of_short_baselines()
        for change in changes:
            self._emit(
                SlowdownChanged(
                    timeline.completed_s, change.stage, timeline.request, change.age, change.slowdown, change.state
                )
            )
            if change.state != "end" and self._investigate is not None:
                self._send_investigator(change, timeline)
        for stage, timing in enumerate(stages):
            self._recent[stage].append(timing)
        self._verify(timeline.epoch, stages)
        if self._paused or self._clock() < self._asked_again_s:
            return  # stages are lost, or a move failed
        decision = self._core.decide(observation)
        self._tell_of_tenants()
        if decision is not None:
            self._carry_out(decision)

    def _tell_of_tenants(self) -> None:
        """Report which pipelines were planned together, when that has changed."""
        together = self._core.together
        if together is self._told_together:
            return
        self._told_together = together
        tenants = tuple(
            TenantShare(
                one.name,
                tuple(device.rpartition("/")[2] for device in one.devices),
                tuple(one.plan),
                one.rate_hz,
                one.share,
            )
            for one in together
        )
        if tenants:
            self._emit(PlannedTogether(self._clock(), tenants))

    def _tell_of_short_baselines(self) -> None:
        watch = self._core.watch
        if self._doubt is None or watch is None or not watch.any_faster:
            return
        for stage in sorted({*np.flatnonzero(watch.faster > 0).tolist()} - self._doubted):
            self._doubted.add(stage)
            self._doubt(stage, float(watch.faster[stage]))

    def _detector_replaced(self, detector: Detector, error: BaseException) -> None:
        self._faults.tell(
            f"detector {type(detector).__name__}",
            f"raised {describe(error)}",
            "cusum takes its place",
            place=where_raised(error, detector, "update"),
        )

    def _policy_replaced(self, fault: PolicyFault) -> None:
        self._faults.tell(
            f"policy {name_of(fault.policy)}",
            fault.error,
            "layers stay where they are",
            repeat="both",
            place=where_raised(fault.error, fault.policy, "decide"),
        )
        self._emit(PolicyChanged(self._clock(), name_of(self._core.policy)))

    # -- moves ------------------------------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision) -> None:
        decided_s = self._clock()
        try:
            epoch = self._migrate(decision.plan, decision.windows)
        except (PipelineClosedError, StageLostError):  # the requests' futures tell
            return
        except BaseException as error:
            self._move_failed(decision, error)
            return
        self._retry_s = _FIRST_RETRY_S
        prepare_s = self._clock() - decided_s
        self._note_asked(epoch)  # moves that were asked for meanwhile came into force before this one
        self._moved(epoch, decision, decision.kind, decided_s, prepare_s)

    def _note_asked(self, before: float = math.inf) -> None:
        """Record moves that the user asked for, of epochs before ``before``, in order."""
        while self._asked and self._asked[0].epoch < before:
            epoch, plan, windows, why, at_s, prepare_s = self._asked.popleft()
            self._moved(epoch, Decision(plan, "move", why, windows=windows), "migrate", at_s, prepare_s)

    def _move_failed(self, decision: Decision, error: BaseException) -> None:
        """Keep the plan in force, and restart the policy with it after a while."""
        now_s = self._clock()
        self._faults.tell(
            "moving layers", error, "they stay where they are, and the policy is asked again later", silent=True
        )
        self._emit(
            MoveFailed(
                now_s,
                self._finished,
                tuple(self._core.plan),
                tuple(decision.plan),
                decision.kind,
                _first_line(error),
                self._retry_s,
            )
        )
        self._asked_again_s = now_s + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        self._core.not_carried_out()

    def _moved(self, epoch: int, decision: Decision, kind: str, decided_s: float, prepare_s: float) -> None:
        predicted_hz = 1 / decision.predicted_s if decision.predicted_s > 0 else math.nan
        before, after = tuple(self._core.plan), tuple(decision.plan)
        self._core.carried_out(decision.plan, decision.windows)
        self._moved_s = decided_s = max(decided_s, self._moved_s)  # logs are read in the order of time
        self._emit(
            PlanChanged(
                decided_s,
                self._finished,
                epoch,
                before,
                after,
                kind,
                decision.why,
                predicted_hz,
                prepare_s,
                "" if decision.windows is None else str(decision.windows),
            )
        )
        # Trials are judged by the policy that makes them; where stages decide, the slowest one is not the limit.
        steady = kind != "trial" and decision.windows is None
        self._verification = _Verification(epoch, after, predicted_hz, []) if steady else None

    def _verify(self, epoch: int, stages: Sequence[StageTiming]) -> None:
        """Report a plan's measured throughput once a few requests have run under it."""
        verification = self._verification
        if verification is None or epoch != verification.epoch:
            return
        verification.stage_s.append([self._turn_s(timing) for timing in stages])
        if len(verification.stage_s) < _VERIFY_REQUESTS:
            return
        self._verification = None
        # A hand-over that waits for a slower stage takes as long as that stage: the maximum stays what it is.
        slowest_s = float(np.mean(verification.stage_s, axis=0).max())
        self._emit(
            PlanVerified(self._clock(), epoch, verification.plan, verification.predicted_hz, 1 / max(slowest_s, 1e-9))
        )

    def _turn_s(self, timing: StageTiming) -> float:
        """Seconds from one request to the next on a stage: with the pauses of one that is held to a share."""
        own_s = timing.wall_s - _delay_s(timing)
        return max(timing.wall_s + timing.transfer_s, own_s / share_of(self._setting))

    def _send_investigator(self, change: SlowdownChange, timeline: RequestTimeline) -> None:
        assert self._investigate is not None
        stage = change.stage
        recent = self._recent[stage]
        since = timeline.stages[stage]
        if change.state == "onset":  # before a later change it was disturbed as well
            self._undisturbed[stage] = _worked(tuple(recent)[: len(recent) - max(0, change.age - 1)])
        before = self._undisturbed[stage]

        def now() -> Sequence[StageTiming]:
            # Those after the ones before, read in another thread: a snapshot.
            kept = tuple(recent)
            return _worked(kept[kept.index(since) :] if since in kept else kept)

        self._investigate(stage, before, now)


def _delay_s(timing: StageTiming) -> float:
    """Seconds for which a stage was ready to compute but did not have its core."""
    return max(timing.run_delay_s, timing.wall_s - timing.cpu_s)


def _worked(timings: Sequence[StageTiming]) -> tuple[StageTiming, ...]:
    """Those of requests of which the stage ran any layers."""
    return tuple(timing for timing in timings if timing.first < timing.last)


def _first_line(error: BaseException) -> str:
    """The error's text, without the stage's traceback that Ray adds."""
    lines = describe(error).split("\\n")[0].splitlines() or [type(error).__name__]
    return lines[0][:300]
