"""ODIN's own policy: predict every plan's time, move to the best plan in one step, verify the move.

::

    request -> model (slowdown.py) -> times of all layers on all stages -> exact balance -> gain = ln(present / best)
               move if   gain > ln(1 + min_gain)   and   gain > z * error   and   moving has paid off so far
               (shadow_comparison.py)

``error`` is the sampling error. ``z`` is ``certainty``, half of it to return to the home plan (the best one for
undisturbed stages), half as much again where no change was detected. Under the new plan:

    first request     the bottleneck that the old plan had under these conditions is recorded
    ``verify`` later  slower than predicted: the prediction bias rises; to leave the home plan the gain must exceed it
                      (stages that share caches or a core are faster beside an idle one, and a better plan
                      leaves them less idle)
                      slower than the old plan: undo, and no such move for a while, twice as long each time
                      otherwise: the measured times of the moved layers have corrected the model

A move takes effect only after the migration lag. Where moving has not paid off so far, layers move only for the average
of the conditions, changes included.

Detectors take some requests to settle after a change. Until then another change is found by two requests that are off
by 20% and by five standard errors. What each part of this is worth: docs/measurements.md.

Where the pipeline may use only a share of its devices, times are those from one request to the next, pauses included
(``paced.py``): a program that takes what a stage leaves slows nothing down.

A stage without layers is not measured. If it would be useful when undisturbed, it gets a layer for a single request at
times, a probe; half as often each time.
"""

from __future__ import annotations

import math

import numpy as np

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Setting, not_started, text_form
from odin.partitioner.policies.forecast import Estimate, Forecast
from odin.partitioner.policies.in_flight import PlansInFlight
from odin.partitioner.policies.move_checks import Check, MoveChecks
from odin.partitioner.policies.paced import in_turns, share_of, turns_of
from odin.partitioner.policies.pending_change import PendingChange
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.planner import Planner
from odin.partitioner.policies.probes import Probes, with_one_layer
from odin.partitioner.policies.shadow_comparison import ShadowComparison
from odin.partitioner.policies.slowdown import SlowdownModel

__all__ = ["PredictivePolicy"]

_LONGEST_PAUSE = 32
"""Most requests between two evaluations when nothing changes."""
_FIRST_LOOK = 8
_CORRECTIONS = 128
"""Requests after a detected change for which a plan away from home is evaluated often."""
_AVERAGE_PAUSE = 32
_LEAST_SAMPLES = 2
"""Requests under new conditions before layers move: a single one may be an outlier."""
_WAIT_FOR_OTHERS = 2
_SUSPICIOUS = 6.0
"""Standard errors by which a stage's latest requests must deviate to count although no change was detected."""
_UNNOTICED = 32
"""So many latest requests are looked at for slow changes."""
_SOON, _SOON_ERRORS, _SOON_LEAST = 2, 5.0, 0.2
"""The same for changes that follow a detected one before the detector has settled, and the least logarithm."""
_CLOSE_LOOK = 64
"""Requests after a change in which another one is looked for in this way."""
_UNDETECTED = 1.5
"""Factor on ``certainty`` where no change was detected."""


class PredictivePolicy:
    """Moves to the plan that is predicted to be fastest, in one step.

    Parameters
    ----------
    min_gain
        Least predicted gain in throughput for which layers move, 0.03 is 3%.
    certainty
        Standard errors by which the gain must exceed 0 after a detected change; half as many again without one.
    verify
        Requests under a new plan after which it is compared with the old one.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(self, *, min_gain: float = 0.03, certainty: float = 2.0, verify: int = 6) -> None:
        if not 0 <= min_gain < 1:
            raise ValueError(f"min_gain is {min_gain}; it is a share of throughput, such as 0.03, at least 0, below 1")
        if not 0 < certainty < math.inf:
            raise ValueError(f"certainty is {certainty}; give standard errors above 0, such as 2")
        if verify < 1:
            raise ValueError(f"verify is {verify}; give at least 1 request")
        self.min_gain, self.certainty, self.verify = min_gain, certainty, verify
        self._setting: Setting | None = None

    @property
    def name(self) -> str:
        """``predictive``, with those parameters that are not the default."""
        return text_form("predictive", self)

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._share, setting = share_of(setting), turns_of(setting)
        self._setting = setting
        self._plan_arrays = PlanArraysCache(setting)
        self._model = SlowdownModel(setting, self._plan_arrays)
        self._shadow = ShadowComparison(setting, self._plan_arrays)
        self._plans = PlansInFlight(setting.plan)
        self._planner = Planner(setting, self._plan_arrays, near=self.min_gain / 2)
        self._shadow.settle(self._planner.home)
        self._request = 0
        self._disturbed = False
        self._next_look = _FIRST_LOOK
        self._next_average_look = 0
        self._pending = PendingChange()
        self._move_checks = MoveChecks()
        self._probes = Probes()

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the plan to move to, or nothing.

        Raises
        ------
        ValueError
            If the policy was not started.
        """
        if self._setting is None:
            raise not_started(self)
        if len(observation.plan) == 1:
            return None
        observation = in_turns(observation, self._share)
        self._request = observation.request
        self._disturbed = observation.disturbed is not None and bool(observation.disturbed.any())
        self._follow(observation.plan)
        quiet = np.count_nonzero(observation.changed) == 0
        self._model.take(observation, quiet=quiet)
        self._shadow.take(observation.stage_s, observation.plan, self._request)
        if not quiet:
            self._note_changes(observation)
        if self._pending.since(self._request) <= _CLOSE_LOOK:
            self._see_changes_soon()
        decision = self._answer()
        if decision is not None:
            self._plans.decide(decision.plan, self._request)
        return decision

    # -- what has happened ------------------------------------------------------------------------------------------

    def _follow(self, plan: Plan) -> None:
        """See which plan requests finish under."""
        plans, check = self._plans, self._move_checks.awaited
        if plan != plans.running and check is not None and plan == check.after and math.isnan(check.before_s):
            # All that will be seen of the old plan under these conditions has been seen.
            before = self._planner.forecast(self._model.estimate(), check.before)
            check.before_s = before.bottleneck_s
            check.error = before.bottleneck_error
        decided = plans.decided
        lag = plans.saw(plan, self._request)
        if lag is not None:
            self._shadow.observe_lag(lag - 1)
        elif plans.decided != decided:  # not what was decided here
            self._move_checks.awaited = None
            self._probes.abandon()

    def _note_changes(self, observation: Observation) -> None:
        """Stages have changed. What begins with a new plan of ours may be that plan's own effect."""
        since = self._plans.since
        for stage in np.flatnonzero(observation.changed).tolist():
            began = self._request - int(observation.age[stage]) + 1
            with_plan = since > 1 and abs(began - since) <= 1
            self._pending.detect(stage, self._request)
            self._next_look = self._request
            if with_plan and self._move_checks.awaited is not None and self._model.rose(stage):
                continue  # the check will tell whether the plan does harm
            self._move_checks.awaited = None
            if not with_plan:
                self._move_checks.conditions_changed(long_after_move=began > since + self.verify)

    def _see_changes_soon(self) -> None:
        """Find changes by two requests, sooner than the detector does: where changes follow one another."""
        for stage in self._model.restart_shifted(latest=_SOON, errors=_SOON_ERRORS, least=_SOON_LEAST):
            self._pending.detect(stage, self._request)
            self._next_look = self._request

    # -- what to do -------------------------------------------------------------------------------------------------

    def _answer(self) -> Decision | None:
        if (plan := self._probes.end()) is not None:
            return Decision(plan, "probe", "one request is enough")
        if (stage := self._probes.finished(self._plans.running)) is not None:
            return self._judge_probe(stage)
        if (check := self._move_checks.awaited) is not None and (decision := self._check_move(check)) is not None:
            return decision
        return self._look() if self._request >= self._next_look else None

    def _look(self) -> Decision | None:
        """Look for a better plan."""
        fresh = self._pending.is_fresh(self._request)
        away = self._plans.decided != self._planner.home and self._pending.since(self._request) <= _CORRECTIONS
        self._next_look = self._request + self._pause(often=fresh or away)
        pending = self._pending.is_unanswered(self._request)
        if not (pending or self._plans.settled):
            return None  # the effect of the last move is not known yet
        if pending and (self._pending_age < _LEAST_SAMPLES or self._others_are_suspicious()):
            self._next_look = self._request + 1
            return None
        if self._request < self._move_checks.still_until:
            return self._go_home(self._model.in_the_long_run(self._model.estimate()))
        self._model.restart_shifted(latest=_UNNOTICED, errors=_SUSPICIOUS)
        return self._weigh(fresh=fresh)

    def _weigh(self, *, fresh: bool) -> Decision | None:
        """Move if that is predicted to be better, surely enough, and if moving pays."""
        estimate = self._model.estimate()
        present = self._planner.forecast(estimate, self._plans.decided)
        best = self._planner.best(estimate, present, self._move_checks.banned)
        sure = self._exceeds_noise(present, best, z=self.certainty if fresh else _UNDETECTED * self.certainty)
        if fresh or sure:
            self._shadow.follow(best.plan, self._request)
        if not sure:
            return self._probe(estimate, present)
        if not self._shadow.pays:
            return self._look_at_long_run(estimate)
        return self._move(present, best)

    @property
    def _pending_age(self) -> float:
        """Requests for which the latest of the changed conditions has persisted."""
        return float(self._model.segments.samples[list(self._pending.stages)].min())

    def _others_are_suspicious(self) -> bool:
        """Whether other stages seem to change too, undetected yet: then one move can answer all, or none is needed."""
        if self._pending.since(self._request) >= _WAIT_FOR_OTHERS:
            return False
        segments, latest = self._model.segments, min(int(self._pending_age), 4)
        shift = np.abs(segments.latest_shift(latest))
        shift[list(self._pending.stages)] = 0.0
        return bool((shift > _SUSPICIOUS * segments.spread / math.sqrt(latest)).any())

    def _pause(self, *, often: bool) -> int:
        """Requests until the estimates may have changed enough to look again."""
        segments = self._model.segments
        youngest = segments.samples[segments.has].min()
        pause = min(max(1, int(youngest) // (4 if often else 2)), _LONGEST_PAUSE)
        return max(1, min(pause, self._probes.next_due - self._request))

    def _exceeds_noise(self, present: Forecast, best: Forecast, *, z: float) -> bool:
        if best.plan == present.plan:
            return False
        gain, least = math.log(present.bottleneck_s / best.bottleneck_s), math.log1p(self.min_gain)
        if best.plan == self._planner.home:  # known to be good, as a rule
            z, least = z / 2, least / 2
        elif present.plan == self._planner.home:  # away from it, corrections are not held up
            least += self._move_checks.prediction_bias
        noise = math.hypot(present.bottleneck_error, best.bottleneck_error)
        return gain > least and gain > z * noise and gain > min(z, 1.0) * best.bottleneck_doubt

    def _look_at_long_run(self, estimate: Estimate) -> Decision | None:
        """Conditions change faster than plans can: plan for their average."""
        average = self._model.in_the_long_run(estimate)
        if (decision := self._go_home(average)) is not None or self._request < self._next_average_look:
            return decision
        self._next_average_look = self._request + _AVERAGE_PAUSE
        present = self._planner.forecast(average, self._plans.decided)
        best = self._planner.at_home_if_as_good(average, self._planner.solve(average))
        return self._move(present, best) if self._exceeds_noise(present, best, z=self.certainty) else None

    def _go_home(self, average: Estimate) -> Decision | None:
        """Return to the home plan, unless the present plan is better on average."""
        present, home = (
            self._planner.forecast(average, self._plans.decided),
            self._planner.forecast(average, self._planner.home),
        )
        if not self._exceeds_noise(present, home, z=0.0):
            return None
        decision = self._move(present, home)
        self._move_checks.awaited = None  # no prediction for the present conditions that could be checked
        return decision

    def _move(self, present: Forecast, best: Forecast) -> Decision:
        calm = self._pending.since(self._request) > _LONGEST_PAUSE and self._model.calm and not self._disturbed
        self._move_checks.awaited = Check(present.plan, best.plan, best.bottleneck_s, calm=calm)
        self._pending.moves += 1
        slowest = int(np.argmax(present.stage_s))
        gain = present.bottleneck_s / best.bottleneck_s - 1
        self._probes.moved(present.plan, best.plan, self._request)
        return Decision(best.plan, "move", f"stage {slowest} is slowest, {gain:+.0%} predicted", best.bottleneck_s)

    # -- checks of moves -------------------------------------------------------------------------------------------

    def _check_move(self, check: Check) -> Decision | None:
        """Undo a move that did harm."""
        if self._plans.running != check.after or self._plans.decided != check.after:
            return None
        arrays, segments = self._plan_arrays.of(check.after), self._model.segments
        stage_s, samples = segments.under_present_plan()
        if samples[arrays.has].min() < self.verify:
            return None
        stage_s = stage_s + arrays.transfer_s
        slowest = int(np.argmax(stage_s))
        error = math.hypot(check.error, segments.spread[slowest] / math.sqrt(max(samples[slowest], 1.0)))
        gain = self._move_checks.judge(
            check,
            slowest_s=float(stage_s[slowest]),
            error=self.certainty * error,
            least=self.min_gain / 2,
            request=self._request,
        )
        if gain is not None:
            self._probes.moved(check.after, check.before, self._request)
            return Decision(check.before, "undo", f"{math.expm1(gain):+.0%} measured", check.before_s)
        if check.calm:  # a correction of the baselines
            self._planner.home = check.after
            self._shadow.settle(check.after)
        return None

    # -- stages without layers --------------------------------------------------------------------------------------

    def _probe(self, estimate: Estimate, present: Forecast) -> Decision | None:
        """Give a stage that was too slow to hold anything a layer for one request, if it is time to."""
        stage = self._probes.due(self._request)
        if stage is None or not self._plans.settled:
            return None
        self._probes.postpone(stage, self._request)
        calm = self._model.undisturbed(estimate, stage)
        would_be = self._planner.solve(calm)
        if would_be.plan[stage] == 0 or present.bottleneck_s < would_be.bottleneck_s * (1 + self.min_gain):
            return None
        ways = (self._planner.forecast(estimate, plan) for plan in with_one_layer(present.plan, stage))
        least = min(ways, key=lambda way: way.stage_s[stage])
        self._probes.begin(stage, least.plan, present.plan, self._request)
        return Decision(least.plan, "probe", f"is stage {stage} still slow?", least.bottleneck_s)

    def _judge_probe(self, stage: int) -> Decision | None:
        """The stage has run a layer: if that changes the best plan, move."""
        estimate = self._model.estimate()
        present = self._planner.forecast(estimate, self._plans.decided)
        best = self._planner.best(estimate, present, self._move_checks.banned)
        if best.plan[stage] > 0 and self._exceeds_noise(present, best, z=0.0):
            if self._exceeds_noise(present, best, z=self.certainty / 2):
                return self._move(present, best)
            self._probes.hurry(stage, self._request)
        return None
