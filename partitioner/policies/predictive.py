"""ODIN's own policy: predict every plan's time, move to the best plan in one step, verify the move.

::

    request -> model (slowdown.py) -> times of all layers on all stages -> exact balance -> gain = ln(present / best)
               move if   gain > ln(1 + min_gain)   and   gain > z * error   and   moving has paid off so far
               (shadow_comparison.py)

``z`` is ``certainty`` for the first move after a detected change (the detector has already ruled noise out), half of it
for a correction of a plan other than the home plan (the best one for undisturbed stages), plus half a standard error
per correction, and one and a half times ``certainty`` when nothing was detected. ``error`` is the sampling error; to
leave the home plan, or long after a change, it includes the drift of levels without a change (drift_estimate.py).
Under the new plan:

    first request     the bottleneck that the old plan had under these conditions is recorded
    ``verify`` later  slower than predicted: the prediction bias rises; to leave the home plan the gain must exceed it
                      (stages that share caches or a core are faster beside an idle one, and a better plan
                      leaves them less idle)
                      slower than the old plan: undo, and no such move for a while, twice as long each time
                      otherwise: the measured times of the moved layers have corrected the model

A move takes effect only after the migration lag. So layers move for a change only if it is likely to persist that long
(persistence.py) and if moving has paid off so far, else once it has persisted for long. The first move after a detected
change is made at once, every other one when staying has cost as much as a move may cost (break_even.py): speeds of
cores drift apart by a tenth and back again, too soon for a move to pay off.

While the rate of large changes is high (change_rate.py) the policy does not wait for the detector: change_points.py
finds change points from single requests, and moves are not verified, since the next change comes too soon for that.

A stage without layers is not measured. If it would be useful when undisturbed, it gets a layer for a single request at
times, a probe; half as often each time.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Setting
from odin.partitioner.policies.break_even import BreakEven
from odin.partitioner.policies.change_points import ChangePoints
from odin.partitioner.policies.change_rate import LARGE, ChangeRate
from odin.partitioner.policies.forecast import Estimate, Forecast
from odin.partitioner.policies.in_flight import PlansInFlight
from odin.partitioner.policies.move_checks import Check, MoveChecks
from odin.partitioner.policies.pending_change import PendingChange
from odin.partitioner.policies.persistence import Persistence
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.planner import Planner
from odin.partitioner.policies.probes import Probes, with_one_layer
from odin.partitioner.policies.shadow_comparison import ShadowComparison
from odin.partitioner.policies.slowdown import SlowdownModel

__all__ = ["PredictivePolicy"]

FloatArray = NDArray[np.float64]

_LONGEST_PAUSE = 32
"""Most requests between two evaluations when nothing changes."""
_LOOKS_SAVED = 3
"""Evaluations skipped of four, when nothing changes."""
_LEAST_SAMPLES = 2
"""Requests under new conditions before layers move: a single one may be an outlier."""
_NO_FALSE_ALARM = 5.0
"""Standard errors. Noise alone makes a detector with one false alarm in 10,000 see some 4."""
_NO_DRIFT = 2.0
"""Standard deviations of a level's drift."""
_FIRST_LOOK = 8
_CORRECTIONS = 128
"""Requests after a detected change for which a plan away from home is evaluated with every request."""
_PATIENCE = 16
"""Layers move for a change that has persisted for so many migration lags, even if moving has not paid off so far."""
_AVERAGE_PAUSE = 32
_MOST_ON_THEIR_WAY = 2
"""Most plans decided that no request has finished under yet."""
_FREQUENT_GAIN = 0.05
"""Least predicted gain while changes are frequent."""
_CORRECTED = 512
"""Requests after which a new home plan is final; it is reverted if changes turn out to be frequent before."""
_LIKELY = 0.5
"""Probability with which changes must persist for the migration lag."""
_WAIT_FOR_OTHERS = 2
_SUSPICIOUS = 3.0
"""If a stage's latest requests deviate by so many standard errors, the policy waits for its own alarm."""


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
    cooldown
        Requests under a new plan in which only a detected change leads to another.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(self, *, min_gain: float = 0.03, certainty: float = 2.0, verify: int = 6, cooldown: int = 8) -> None:
        if not 0 <= min_gain < 1:
            raise ValueError(f"min_gain is {min_gain}; it is a share of throughput, such as 0.03, at least 0, below 1")
        if not 0 < certainty < math.inf:
            raise ValueError(f"certainty is {certainty}; give standard errors above 0, such as 2")
        if verify < 1 or cooldown < 0:
            raise ValueError(f"verify is {verify} and cooldown {cooldown}; at least 1 and 0 requests")
        self.min_gain, self.certainty, self.verify, self.cooldown = min_gain, certainty, verify, cooldown
        self._setting: Setting | None = None

    @property
    def name(self) -> str:
        """``predictive``, with those parameters that are not the default."""
        defaults = PredictivePolicy.__init__.__kwdefaults__ or {}
        given = [f"{key}={getattr(self, key)}" for key, value in defaults.items() if getattr(self, key) != value]
        return "predictive" + (":" + ",".join(given) if given else "")

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._setting = setting
        self._plan_arrays = PlanArraysCache(setting)
        self._model = SlowdownModel(setting, self._plan_arrays)
        self._shadow = ShadowComparison(setting, self._plan_arrays)
        self._plans = PlansInFlight(setting.plan)
        self._planner = Planner(setting, self._plan_arrays, near=self.min_gain / 2)
        self._former_home = self._planner.home
        self._shadow.settle(self._planner.home)
        self._corrected_at = -_CORRECTED
        self._change_rate = ChangeRate(setting)
        self._change_points = ChangePoints(setting.stage_count, self._plan_arrays)
        self._persistence = Persistence(setting.stage_count)
        self._request = 0
        self._disturbed = False
        self._next_look = _FIRST_LOOK
        self._next_average_look = 0
        self._looks_saved = 0
        self._resting_until = 0
        self._pending = PendingChange()
        self._waited = 0
        self._break_even = BreakEven()
        # Checks of moves: predicted against measured.
        self._move_checks = MoveChecks()
        # Stages without layers.
        self._probes = Probes()

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the plan to move to, or nothing.

        Raises
        ------
        ValueError
            If the policy was not started.
        """
        if self._setting is None:
            raise ValueError(f"policy {self.name} was not started; call start(setting) before decide")
        if len(observation.plan) == 1:
            return None
        self._request = observation.request
        self._disturbed = observation.disturbed is not None and bool(observation.disturbed.any())
        self._follow(observation.plan)
        if self._change_rate.looks_closely(self._request):
            observation = self._see_change_points(observation)
        quiet = np.count_nonzero(observation.changed) == 0
        self._model.take(observation, quiet=quiet)
        self._shadow.take(observation.stage_s, observation.plan, self._request)
        if not quiet:
            self._note_changes(observation)
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
            check.error = math.hypot(before.bottleneck_error, before.bottleneck_drift)
        decided = plans.decided
        lag = plans.saw(plan, self._request)
        if lag is not None:
            self._shadow.observe_lag(lag - 1)
            self._resting_until = self._request + self.cooldown
        elif plans.decided != decided:  # not what was decided here
            self._move_checks.awaited = None
            self._probes.abandon()
            self._resting_until = self._request

    def _see_change_points(self, observation: Observation) -> Observation:
        """Look closely; while changes come often, change points found here are the detected changes."""
        found = self._change_points.take(observation, hazard=self._change_rate.hazard)
        self._persistence.take(found)
        if self._change_rate.active or found:
            since = self._plans.since
            began = [(self._request - point.samples + 1, point.step) for point in found.values()]
            foreign = [step for first, step in began if since <= 1 or abs(first - since) > 1]
            was_active = self._change_rate.active
            self._change_rate.count(self._request, foreign)
            self._shadow.expect(self._change_rate.rate)
            if self._change_rate.active and not was_active and self._request - self._corrected_at < _CORRECTED:
                self._settle_at(self._former_home)
        if not self._change_rate.active:
            return observation
        changed, age = np.zeros(len(observation.changed), dtype=np.bool_), observation.age.copy()
        for stage, point in found.items():
            changed[stage], age[stage] = True, point.samples
        return observation._replace(changed=changed, age=age)

    def _note_changes(self, observation: Observation) -> None:
        """Stages have changed. What begins with a new plan of ours may be that plan's own effect."""
        if self._model.has_changed_by(LARGE, observation.changed) and self._change_rate.look_closely(self._request):
            self._change_points.begin()
        since = self._plans.since
        for stage in np.flatnonzero(observation.changed).tolist():
            began = self._request - int(observation.age[stage]) + 1
            with_plan = since > 1 and abs(began - since) <= 1 and not self._change_rate.active
            if with_plan and self._move_checks.awaited is not None and self._model.rose(stage):
                continue  # the check will tell whether the plan does harm
            self._pending.detect(stage, self._request)
            self._next_look, self._waited = self._request, 0
            self._move_checks.awaited = None
            if not with_plan:
                self._move_checks.conditions_changed(long_after_move=began > since + self.verify)

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
        """Look for a better plan, if anything has changed."""
        fresh = self._pending.is_fresh(self._request)
        away = self._plans.decided != self._planner.home and self._pending.since(self._request) <= _CORRECTIONS
        self._next_look = self._request + self._pause(fresh=fresh or away)
        if self._request < self._resting_until and not self._is_pending:
            return None
        if self._is_pending and self._pending_age < _LEAST_SAMPLES and not self._change_rate.active:
            return None
        if self._request < self._move_checks.still_until:
            return self._go_home(self._model.in_the_long_run(self._model.estimate()))
        if not fresh and self._is_as_it_was(self._model.restart_drifted()) and not away:
            return None
        return self._weigh(fresh=fresh)

    def _weigh(self, *, fresh: bool) -> Decision | None:
        """Move if that is predicted to be better, surely enough, and for long enough."""
        frequent = self._change_rate.active
        estimate = self._model.estimate()
        if frequent:  # change points explain the levels' variation
            estimate = estimate._replace(drift=np.zeros_like(estimate.drift))
        present = self._planner.forecast(estimate, self._plans.decided)
        best = self._planner.best(estimate, present, self._move_checks.banned)
        gain = self._gain(present, best)
        self._break_even.take(gain, self._request)
        at_once = frequent or self._is_pending or self._break_even.is_enough
        certainty = self._certainty_now(estimate, fresh=fresh)
        sure = at_once and self._exceeds_noise(present, best, z=certainty, fresh=fresh)
        if fresh or sure:
            self._shadow.follow(best.plan, self._request)
        if not sure:
            if gain > 0:
                self._looks_saved = _LOOKS_SAVED  # at the next one it may be sure, or have persisted
            return self._probe(estimate, present)
        if not self._pays():
            self._looks_saved = _LOOKS_SAVED  # it may pay at the next one
            return self._look_at_long_run(estimate)
        too_many = self._plans.on_their_way >= _MOST_ON_THEIR_WAY
        if not frequent and (too_many or (self._is_pending and self._others_are_suspicious())):
            self._next_look = self._request + 1
            return None
        return self._move(present, best)

    def _gain(self, present: Forecast, best: Forecast) -> float:
        """Logarithm of what the best plan is predicted to gain; 0.0 if that is next to nothing."""
        gain = math.log(present.bottleneck_s / best.bottleneck_s)
        return gain if gain > math.log1p(self.min_gain / 2) else 0.0

    def _is_as_it_was(self, shift: float) -> bool:
        """Whether a full look now and then is enough, since times are what they were at the last one."""
        self._looks_saved += 1
        if shift > _SUSPICIOUS or self._looks_saved > _LOOKS_SAVED or self._probes.due(self._request) is not None:
            self._looks_saved = 0
        return self._looks_saved > 0

    @property
    def _is_pending(self) -> bool:
        return self._pending.is_unanswered(self._request)

    @property
    def _pending_age(self) -> float:
        """Requests for which the latest of the changed conditions has persisted."""
        return float(self._model.segments.samples[list(self._pending.stages)].min())

    def _pause(self, *, fresh: bool) -> int:
        """Requests until the estimates may have changed enough to look again."""
        segments = self._model.segments
        youngest = segments.samples[segments.has].min()
        pause = min(max(1, int(youngest) // (4 if fresh else 2)), _LONGEST_PAUSE)
        return max(1, min(pause, self._probes.next_due - self._request))

    def _certainty_now(self, estimate: Estimate, *, fresh: bool) -> float:
        """Standard errors to ask for: more without a detected change, and if it could be a false alarm."""
        if self._change_rate.active:
            return self.certainty
        moves = self._pending.moves
        if self._plans.decided != self._planner.home and (moves or not fresh):
            # A plan that is to be corrected: another one by a layer or two costs little if it is not better.
            return min((self.certainty + max(moves - 1, 0)) / 2, 2 * self.certainty)
        if not fresh:
            return 1.5 * self.certainty
        if moves == 0 and not self._is_no_false_alarm(estimate):
            return 2 * self.certainty
        return min(self.certainty + moves, 2 * self.certainty)

    def _is_no_false_alarm(self, estimate: Estimate) -> bool:
        """Whether a stage's level has changed by more than the noise that makes false alarms."""
        stages = list(self._pending.stages)
        change = np.abs(estimate.level - self._model.level_before)[stages]
        noise = np.hypot(_NO_FALSE_ALARM * estimate.level_error, _NO_DRIFT * estimate.drift)[stages]
        return bool((change > noise).any())

    def _exceeds_noise(self, present: Forecast, best: Forecast, *, z: float, fresh: bool) -> bool:
        if best.plan == present.plan:
            return False
        gain = math.log(present.bottleneck_s / best.bottleneck_s)
        least = math.log1p(self.min_gain / 2 if fresh and best.plan == self._planner.home else self.min_gain)
        if best.plan == self._planner.home:  # known to be good, as a rule
            z = z / 2
        elif present.plan == self._planner.home:  # away from it, corrections are not held up
            least += self._move_checks.prediction_bias
        if self._change_rate.active:
            least = max(least, _FREQUENT_GAIN)
        noise = math.hypot(present.bottleneck_error, best.bottleneck_error)
        if present.plan == self._planner.home or self._pending.since(self._request) > _CORRECTIONS:
            # Nothing has changed; levels drift there and back.
            noise = math.hypot(noise, present.bottleneck_drift, best.bottleneck_drift)
        return gain > least and gain > z * noise and gain > min(z, 1.0) * best.bottleneck_doubt

    def _pays(self) -> bool:
        """Whether moving is expected to pay: conditions are likely to persist, and moving has paid, or they already
        persist.
        """
        long = _PATIENCE * (1 + self._shadow.lag)
        fresh = self._pending.is_fresh(self._request)
        if fresh:
            persists = self._persistence.probability(
                self._pending.stages, age=self._pending_age, more=1 + self._shadow.lag
            )
            if persists < _LIKELY:
                return False
        age = self._pending_age if fresh else self._break_even.known_for
        return self._shadow.pays or age > long

    def _look_at_long_run(self, estimate: Estimate) -> Decision | None:
        """Conditions change faster than plans can: plan for their average."""
        average = self._model.in_the_long_run(estimate)
        if (decision := self._go_home(average)) is not None or self._request < self._next_average_look:
            return decision
        self._next_average_look = self._request + _AVERAGE_PAUSE
        present = self._planner.forecast(average, self._plans.decided)
        best = self._planner.at_home_if_as_good(average, self._planner.solve(average))
        return self._move(present, best) if self._exceeds_noise(present, best, z=self.certainty, fresh=False) else None

    def _go_home(self, average: Estimate) -> Decision | None:
        """Return to the home plan, unless the present plan is better on average."""
        present, home = (
            self._planner.forecast(average, self._plans.decided),
            self._planner.forecast(average, self._planner.home),
        )
        if not self._exceeds_noise(present, home, z=0.0, fresh=False):
            return None
        decision = self._move(present, home)
        self._move_checks.awaited = None  # no prediction for the present conditions that could be checked
        return decision

    def _others_are_suspicious(self) -> bool:
        """Whether other stages seem to change too, undetected yet: then one move can answer all, or none is needed."""
        if self._waited >= _WAIT_FOR_OTHERS:
            return False
        self._waited += 1
        shift = np.abs(self._model.segments.latest_shift(min(int(self._pending_age), 4)))
        shift[list(self._pending.stages)] = 0.0
        return bool((shift > _SUSPICIOUS).any())

    def _move(self, present: Forecast, best: Forecast) -> Decision:
        calm = self._pending.since(self._request) > _LONGEST_PAUSE and self._model.calm and not self._disturbed
        check = Check(present.plan, best.plan, best.bottleneck_s, calm=calm)
        self._move_checks.awaited = None if self._change_rate.active else check
        self._pending.moves += 1
        self._break_even.take(0.0, self._request)
        self._resting_until = self._request + 10 * _LONGEST_PAUSE  # until requests finish under the new plan
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
            self._former_home, self._corrected_at = self._planner.home, self._request
            self._settle_at(check.after)
        return None

    def _settle_at(self, home: Plan) -> None:
        self._planner.home = home
        self._shadow.settle(home)

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
        if best.plan[stage] > 0 and self._exceeds_noise(present, best, z=0.0, fresh=True):
            if self._exceeds_noise(present, best, z=self.certainty / 2, fresh=True):
                return self._move(present, best)
            self._probes.hurry(stage, self._request)
        return None
