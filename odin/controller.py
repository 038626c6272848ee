"""The controller: sees every finished request, asks the policy, moves layers, and checks what came of it.

::

    gateway thread          controller thread                                   investigating thread
    request done  ------->  record -> watch (detector) -> policy.decide
                              |            |                  |
                              |            onset ------------------------------> who shares the device, and how
                              |                               move -> prepare -> switch -> (8 requests later) verified

Nothing here is in a request's way: the gateway hands timelines over through a queue.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from monitor.events import (
    Event,
    PlanChanged,
    PlanVerified,
    PolicyChanged,
    RequestDone,
    RequestFailed,
    SlowdownChanged,
)
from monitor.timing import RequestTimeline, StageTiming
from monitor.watch import SlowdownChange, StageWatch
from odin.errors import OdinError
from partitioner.plan import Plan
from partitioner.policies import Decision, Observation, Policy, Setting, StaticPolicy

__all__ = ["Controller", "Doubt", "Investigate", "Migrate"]

Migrate = Callable[[Plan], int]
"""Moves the pipeline to a plan and returns the epoch."""

Investigate = Callable[[int, Sequence[StageTiming], Callable[[], Sequence[StageTiming]]], None]
"""Told of a disturbed stage, with its timings before, and a way to get those since; returns at once."""

Doubt = Callable[[int, float], None]
"""Told once of a stage that is faster than its baseline, and how long it takes as a part of that."""

_JOIN_S = 5.0
"""A policy or a caller's ``on_event`` that does not return holds the end up for so long."""
_VERIFY_REQUESTS = 8
_TIMINGS_KEPT = 64
_CREDIT_S = 2.0
"""CPU seconds that may be spent ahead of the budget: in the midst of things every request is looked at, at once."""
_TOGETHER_S = 0.1
"""CPU seconds ahead of the budget from which on usual requests are looked at a few at a time ..."""
_TOGETHER = 4
"""... that many: one after the other each takes far less, in warm caches."""
_USUAL, _USUAL_RATE = 0.2, 0.1
"""Part by which a usual request's stages differ from the mean at most, and how fast that follows."""
_NEWS = 64
"""Requests after a detected change of which none is usual."""


class _Verification(NamedTuple):
    epoch: int
    plan: tuple[int, ...]
    predicted_hz: float
    stage_s: list[list[float]]


class _Asked(NamedTuple):
    epoch: int
    plan: Plan
    at_s: float
    prepare_s: float


class Controller:
    """Joins watch, policy and migration; runs in a thread of its own.

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
        budget: float = 0.01,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._setting = setting
        self._migrate = migrate
        self._emit = emit
        self._investigate = investigate
        self._doubt = doubt
        self._doubted: set[int] = set()
        self._watch = watch or StageWatch(setting.baseline_s)
        self._budget = budget
        self._clock, self._cpu_clock = clock, cpu_clock
        self._policy = policy
        self._plan = setting.plan
        self._seen_cuts: tuple[int, ...] = ()
        self._seen_plan = setting.plan
        self._finished = 0
        self._last_completed_s = math.nan
        self._last_seen_s = math.nan
        self._debt_s = 0.0
        self._waiting: list[tuple[int, RequestTimeline]] = []  # to be looked at, with their numbers
        self._changed_at = 0
        self._last_cuts: tuple[int, ...] = ()
        self._usual_s: list[float] = []
        self._recent: list[deque[StageTiming]] = [deque(maxlen=_TIMINGS_KEPT) for _ in range(setting.stage_count)]
        self._undisturbed: list[tuple[StageTiming, ...]] = [()] * setting.stage_count  # as of the latest onsets
        self._verification: _Verification | None = None
        self._asked: deque[_Asked] = deque()
        self._moved_s = -math.inf
        policy.start(setting)
        self._queue: queue.SimpleQueue[RequestTimeline | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="odin-controller", daemon=True)

    def start(self) -> None:
        """Begin to look at requests."""
        self._thread.start()

    def close(self) -> None:
        """Decide nothing more; returns once what is under way has ended, some seconds later at most. Idempotent."""
        self._queue.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    @property
    def policy(self) -> Policy:
        """Who decides."""
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Let another policy decide from the next request on."""

        def change() -> None:
            try:
                policy.start(self._setting._replace(plan=self._plan))
            except Exception as error:
                warnings.warn(
                    f"policy {policy.name} raised {error!r} at its start; {self._policy.name} goes on", stacklevel=1
                )
                return
            self._policy = policy
            self._emit(PolicyChanged(self._clock(), policy.name))

        self._queue.put(change)

    def on_result(self, timeline: RequestTimeline) -> None:
        """Hand over a finished request; does not wait."""
        self._queue.put(timeline)

    def on_failure(self, request: int, error: OdinError) -> None:
        """Hand over a failed request; does not wait."""
        event = RequestFailed(self._clock(), request, f"{type(error).__name__}: {error}")
        self._queue.put(lambda: self._emit(event))

    def on_migration(self, epoch: int, plan: Plan, prepare_s: float) -> None:
        """Hand over that the user moved layers; does not wait. To be called before the next epoch begins."""
        self._asked.append(_Asked(epoch, plan, self._clock(), prepare_s))
        self._queue.put(self._note_asked)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if callable(item):
                item()
            else:
                self.step(item)

    def step(self, timeline: RequestTimeline) -> None:
        """Take one finished request."""
        begin_s = self._cpu_clock()
        self._emit(RequestDone(timeline.completed_s, timeline))
        self._finished += 1
        if self._last_seen_s < timeline.completed_s:
            self._debt_s = max(0.0, self._debt_s - self._budget * (timeline.completed_s - self._last_seen_s))
        self._last_seen_s = timeline.completed_s
        self._waiting.append((self._finished, timeline))
        if self._debt_s > _CREDIT_S:
            self._waiting.clear()
        elif self._debt_s <= _TOGETHER_S or len(self._waiting) >= _TOGETHER or not self._is_usual(timeline.stages):
            for number, waiting in self._waiting:
                self._look(number, waiting)
            self._waiting.clear()
        self._debt_s += self._cpu_clock() - begin_s

    def _is_usual(self, stages: Sequence[StageTiming]) -> bool:
        """Whether a request looks as those before it did, so that it can wait for the next ones: no detector here."""
        cuts = tuple(timing.last for timing in stages)
        if self._finished - self._changed_at <= _NEWS or self._last_cuts != cuts:
            self._last_cuts = cuts
            self._usual_s = [timing.wall_s for timing in stages]
            return False
        usual = True
        for stage, timing in enumerate(stages):
            off_s = timing.wall_s - self._usual_s[stage]
            usual = usual and abs(off_s) <= _USUAL * self._usual_s[stage]
            self._usual_s[stage] += _USUAL_RATE * off_s
        return usual

    def _look(self, number: int, timeline: RequestTimeline) -> None:
        stages = timeline.stages
        stage_s = np.array([timing.wall_s for timing in stages])
        layer_s = np.fromiter(itertools.chain.from_iterable(timing.layer_s for timing in stages), np.float64)
        if len(stages) != self._setting.stage_count or len(layer_s) != self._setting.layer_count:
            return  # a stage did not tell: an older record, or one cut short
        cuts = (0, *(timing.last for timing in stages))
        if cuts != self._seen_cuts:
            self._seen_cuts, self._seen_plan = cuts, Plan(timing.last - timing.first for timing in stages)
        plan = self._seen_plan
        detector = self._watch.detector
        try:
            changes = self._watch.update(cuts, stage_s, layer_s)
        except Exception as error:
            warnings.warn(f"detector {type(detector).__name__} raised {error!r}; cusum takes its place", stacklevel=1)
            self._watch = StageWatch(self._setting.baseline_s)
            detector, changes = self._watch.detector, []
        if np.count_nonzero(detector.changed):
            self._changed_at = number
        if self._watch.any_faster and self._doubt is not None:
            for stage in sorted({*np.flatnonzero(self._watch.faster > 0).tolist()} - self._doubted):
                self._doubted.add(stage)
                self._doubt(stage, float(self._watch.faster[stage]))
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
        observation = Observation(
            number,
            plan,
            stage_s,
            layer_s,
            timeline.completed_s - self._last_completed_s,
            detector.changed,
            detector.age,
            detector.noise,
            disturbed=detector.disturbed,
        )
        self._last_completed_s = timeline.completed_s
        try:
            decision = self._policy.decide(observation)
            if decision is not None:
                decision.plan.check_fits(layer_count=self._setting.layer_count, stage_count=self._setting.stage_count)
        except Exception as error:
            warnings.warn(f"policy {self._policy.name} raised {error!r}; layers stay where they are", stacklevel=1)
            self._policy = StaticPolicy()
            self._emit(PolicyChanged(self._clock(), self._policy.name))
            return
        if decision is not None and decision.plan != self._plan:
            self._carry_out(decision)

    # -- moves ------------------------------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision) -> None:
        decided_s = self._clock()
        try:
            epoch = self._migrate(decision.plan)
        except OdinError:  # closed, or a stage is gone: the requests' futures tell
            return
        prepare_s = self._clock() - decided_s
        self._note_asked(epoch)  # moves that were asked for meanwhile came into force before this one
        self._moved(epoch, decision, decision.kind, decided_s, prepare_s)

    def _note_asked(self, before: float = math.inf) -> None:
        """Take note of moves that the user asked for, those of epochs before ``before``, in their order."""
        while self._asked and self._asked[0].epoch < before:
            epoch, plan, at_s, prepare_s = self._asked.popleft()
            self._moved(epoch, Decision(plan, "move", "asked for"), "migrate", at_s, prepare_s)

    def _moved(self, epoch: int, decision: Decision, kind: str, decided_s: float, prepare_s: float) -> None:
        predicted_hz = 1 / decision.predicted_s if decision.predicted_s > 0 else math.nan
        before, after = tuple(self._plan), tuple(decision.plan)
        self._plan = decision.plan
        self._moved_s = decided_s = max(decided_s, self._moved_s)  # logs are read in the order of time
        self._emit(
            PlanChanged(decided_s, self._finished, epoch, before, after, kind, decision.why, predicted_hz, prepare_s)
        )
        steady = kind != "trial"  # trials are judged by the policy that makes them
        self._verification = _Verification(epoch, after, predicted_hz, []) if steady else None

    def _verify(self, epoch: int, stages: Sequence[StageTiming]) -> None:
        """Tell what a plan came to once a few requests have run under it."""
        verification = self._verification
        if verification is None or epoch != verification.epoch:
            return
        verification.stage_s.append([timing.wall_s + timing.transfer_s for timing in stages])
        if len(verification.stage_s) < _VERIFY_REQUESTS:
            return
        self._verification = None
        # A hand-over that waits for a slower stage takes as long as that stage: the maximum stays what it is.
        slowest_s = float(np.mean(verification.stage_s, axis=0).max())
        self._emit(
            PlanVerified(self._clock(), epoch, verification.plan, verification.predicted_hz, 1 / max(slowest_s, 1e-9))
        )

    def _send_investigator(self, change: SlowdownChange, timeline: RequestTimeline) -> None:
        assert self._investigate is not None
        stage = change.stage
        recent = self._recent[stage]
        since = timeline.stages[stage]
        if change.state == "onset":  # before a later change it was disturbed as well
            self._undisturbed[stage] = tuple(recent)[: len(recent) - max(0, change.age - 1)]
        before = self._undisturbed[stage]

        def now() -> Sequence[StageTiming]:
            # Those after the ones before, read in another thread: a snapshot.
            kept = tuple(recent)
            return kept[kept.index(since) :] if since in kept else kept

        self._investigate(stage, before, now)
