"""ODIN's own policy: predict every plan, move to the best one in one step, check what came of it.

::

    request -> model (slowdown.py) -> times of all layers on all stages -> exact balance -> gain = ln(present / best)
               move if   gain > ln(1 + min_gain)   and   gain > z * error   and   following changes pays (pursuit.py)

``z`` is ``certainty`` for the first move after a detected change (the detector has already ruled noise out), one more
after each further move, and one and a half times ``certainty`` when nothing was detected. Under the new plan:

    first request     what the old plan had come to under these conditions is put down
    ``verify`` later  slower than predicted: from now on leaving the home plan must promise as much more (stages that
                      share caches or a core are faster beside an idle one, and a better plan leaves them less idle)
                      slower than the old plan: undo, and no such move for a while, twice as long each time
                      otherwise: the measured times of the moved layers have corrected the model

A stage that holds nothing tells nothing. If it would help were it undisturbed, it gets a layer for one request now and
then, half as often each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitioner.balance import balance
from partitioner.plan import Plan
from partitioner.policies.base import Decision, Observation, Setting
from partitioner.policies.forecast import Estimate, Forecast
from partitioner.policies.in_flight import PlansInFlight
from partitioner.policies.pursuit import Pursuit
from partitioner.policies.slowdown import SlowdownModel
from partitioner.policies.visits import Visits, with_one_layer

__all__ = ["PredictivePolicy"]

FloatArray = NDArray[np.float64]

_LONGEST_PAUSE = 32
"""Requests between two looks when all is quiet."""
_LEAST_SAMPLES = 2
"""Of the new conditions before layers move: a single request may be a hiccup."""
_NO_FALSE_ALARM = 5.0
"""Standard errors. Noise alone makes a detector with one false alarm in 10,000 see some 4."""
_FIRST_LOOK = 8
_NEWS = 32
"""Requests for which a detected change is news."""
_FIRST_BACKOFF, _LAST_BACKOFF = 16, 65_536
_FORGIVEN = 3
"""Moves that did harm, one after the other, after which only a change long after a move ends the backoff."""
_PATIENCE = 4
"""What has lasted that many times as long as a move takes to be felt is expected to last that long again."""
_RESTLESS_PAUSE = 32
_MOST_ON_THEIR_WAY = 2
"""Plans decided that no request has finished under yet."""
_OPTIMISM_RATE, _MOST_OPTIMISM = 0.25, 0.15
"""How fast predictions that are not met are learned from, and how much gain they cost at most (logarithms)."""
_WAIT_FOR_OTHERS = 2
_SUSPICIOUS = 3.0
"""Standard errors by which a stage's latest requests must be off for its own alarm to be awaited."""


@dataclass
class _Check:
    """A move whose outcome is awaited; what was before is nan until the first request under the new plan."""

    before: Plan
    after: Plan
    predicted_s: float
    calm: bool
    before_s: float = math.nan
    error: float = math.nan


class _Solved(NamedTuple):
    """What balance answered, and for which times."""

    present: Forecast
    best: Forecast
    level: FloatArray


class PredictivePolicy:
    """Moves layers where they are predicted to be fastest, in one step.

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
        self._model = SlowdownModel(setting)
        self._pursuit = Pursuit(setting)
        self._plans = PlansInFlight(setting.plan)
        self._home = setting.plan
        self._request = 0
        self._next_look = _FIRST_LOOK
        self._next_restless_look = 0
        self._resting_until = 0
        # The last detected change that is not our own doing.
        self._news_at = -_NEWS
        self._news: set[int] = set()
        self._moves_since_news = 0
        self._waited = 0
        # What came of moves.
        self._check: _Check | None = None
        self._failures = 0
        self._optimism = 0.0
        self._backoff_until = 0
        self._banned: set[Plan] = set()
        # Stages without layers.
        self._visits = Visits()
        self._solved: _Solved | None = None

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the plan to move to, or nothing.

        Raises
        ------
        ValueError
            If the policy was not started.
        """
        if self._setting is None:
            raise ValueError(f"policy {self.name} was not started; call start(setting) before decide")
        if self._setting.stage_count == 1:
            return None
        self._request = observation.request
        self._follow(observation.plan)
        self._model.take(observation)
        self._pursuit.take(observation.stage_s, observation.plan, self._request)
        if observation.changed.any():
            self._hear(observation)
        decision = self._answer()
        if decision is not None:
            self._plans.decide(decision.plan, self._request)
        return decision

    # -- what has happened ------------------------------------------------------------------------------------------

    def _follow(self, plan: Plan) -> None:
        """See which plan requests finish under."""
        plans, check = self._plans, self._check
        if plan != plans.running and check is not None and plan == check.after and math.isnan(check.before_s):
            # All that will be seen of the old plan under these conditions has been seen.
            before = self._forecast(self._model.estimate(), check.before)
            check.before_s, check.error = before.bottleneck_s, before.bottleneck_error
        decided = plans.decided
        lag = plans.saw(plan, self._request)
        if lag is not None:
            self._pursuit.felt(lag - 1)
            self._resting_until = self._request + self.cooldown
        elif plans.decided != decided:  # not what was decided here
            self._check = None
            self._visits.abandon()
            self._resting_until = self._request

    def _hear(self, observation: Observation) -> None:
        """Stages have changed. What begins with a new plan of ours may be that plan's own effect."""
        since = self._plans.since
        for stage in np.flatnonzero(observation.changed).tolist():
            began = self._request - int(observation.age[stage]) + 1
            with_plan = since > 1 and abs(began - since) <= 1
            if with_plan and self._check is not None and self._model.rose(stage):
                continue  # the verdict will tell whether the plan does harm
            if self._moves_since_news or self._request - self._news_at > _NEWS:
                self._news.clear()
            self._news.add(stage)
            self._news_at = self._next_look = self._request
            self._moves_since_news = self._waited = 0
            self._check = None
            if not with_plan:
                self._banned.clear()
                if self._failures <= _FORGIVEN or began > since + self.verify:
                    self._backoff_until = 0

    # -- what to do -------------------------------------------------------------------------------------------------

    def _answer(self) -> Decision | None:
        if (plan := self._visits.end()) is not None:
            return Decision(plan, "probe", "one request is enough")
        if (stage := self._visits.heard(self._plans.running)) is not None:
            return self._judge_visit(stage)
        if self._check is not None and (decision := self._verdict(self._check)) is not None:
            return decision
        return self._look() if self._request >= self._next_look else None

    def _look(self) -> Decision | None:
        """Move if that is predicted to be better, surely enough, and for long enough."""
        fresh = self._request - self._news_at <= _NEWS
        self._next_look = self._request + self._pause(fresh=fresh)
        if self._request < self._resting_until and not self._is_news:
            return None
        if self._is_news and self._news_age < _LEAST_SAMPLES:
            return None
        if self._request < self._backoff_until:
            return self._go_home(self._model.in_the_long_run(self._model.estimate()))
        if not fresh:
            self._model.restart_drifted()
        estimate = self._model.estimate()
        present = self._forecast(estimate, self._plans.decided)
        best = self._best(estimate, present)
        if fresh:
            self._pursuit.follow(best.plan, self._request)
        if not self._exceeds_noise(present, best, z=self._certainty_now(estimate, fresh=fresh), fresh=fresh):
            return self._visit(estimate, present)
        if fresh and not self._pays():
            return self._look_at_long_run(estimate)
        if self._plans.on_their_way >= _MOST_ON_THEIR_WAY or (self._is_news and self._others_are_suspicious()):
            self._next_look = self._request + 1
            return None
        return self._move(present, best)

    @property
    def _is_news(self) -> bool:
        """Whether a change was detected a short time ago and nothing was done about it yet."""
        return self._request - self._news_at <= _NEWS and self._moves_since_news == 0

    @property
    def _news_age(self) -> float:
        """Requests that the latest of the changed conditions has lasted."""
        return float(self._model.segments.samples[list(self._news)].min())

    def _pause(self, *, fresh: bool) -> int:
        """Requests until the estimates may have changed enough to look again."""
        youngest = self._model.segments.samples[np.array(self._plans.running) > 0].min()
        pause = min(max(1, int(youngest) // (4 if fresh else 2)), _LONGEST_PAUSE)
        return max(1, min(pause, self._visits.next_due - self._request))

    def _forecast(self, estimate: Estimate, plan: Plan) -> Forecast:
        assert self._setting is not None
        return estimate.forecast(plan, self._setting)

    def _best(self, estimate: Estimate, present: Forecast) -> Forecast:
        """The best plan: the home plan if it is about as good, the last answer if the times are about the same."""
        solved, near = self._solved, self.min_gain / 2
        if solved is not None and solved.present.plan == present.plan and solved.best.plan not in self._banned:
            best = self._forecast(estimate, solved.best.plan)
            same = np.abs(estimate.level - solved.level).max() <= near
            if same and present.is_like(solved.present, near) and best.is_like(solved.best, near):
                return best
        best = self._prefer_home(estimate, self._forecast(estimate, self._balance(estimate)))
        if best.plan in self._banned:
            best = present
        self._solved = _Solved(present, best, estimate.level)
        return best

    def _prefer_home(self, estimate: Estimate, best: Forecast) -> Forecast:
        home = self._forecast(estimate, self._home)
        return home if home.bottleneck_s <= best.bottleneck_s * (1 + self.min_gain / 2) else best

    def _balance(self, estimate: Estimate) -> Plan:
        assert self._setting is not None
        return balance(estimate.times_s, send_s=self._setting.send_s, receive_s=self._setting.receive_s).plan

    def _certainty_now(self, estimate: Estimate, *, fresh: bool) -> float:
        """Standard errors to ask for: more without a detected change, and if it could be a false alarm."""
        if not fresh:
            return 1.5 * self.certainty
        if self._moves_since_news == 0 and not self._is_no_false_alarm(estimate):
            return 2 * self.certainty
        return min(self.certainty + self._moves_since_news, 2 * self.certainty)

    def _is_no_false_alarm(self, estimate: Estimate) -> bool:
        """Whether a stage's level has changed by more than the noise that makes false alarms."""
        news = list(self._news)
        change = np.abs(estimate.level - self._model.level_before)[news]
        return bool((change > _NO_FALSE_ALARM * np.sqrt(estimate.level_variance[news])).any())

    def _exceeds_noise(self, present: Forecast, best: Forecast, *, z: float, fresh: bool) -> bool:
        if best.plan == present.plan:
            return False
        gain = math.log(present.bottleneck_s / best.bottleneck_s)
        least = math.log1p(self.min_gain / 2 if fresh and best.plan == self._home else self.min_gain)
        if best.plan == self._home:  # known to be good, as a rule
            z = z / 2
        elif present.plan == self._home:  # away from it, corrections are not held up
            least += self._optimism
        noise = math.hypot(present.bottleneck_error, best.bottleneck_error)
        return gain > least and gain > z * noise and gain > min(z, 1.0) * best.bottleneck_doubt

    def _pays(self) -> bool:
        """Whether conditions are expected to last: as a rule they have, or these have lasted for some time already."""
        return self._pursuit.pays or self._news_age > _PATIENCE * (1 + self._pursuit.lag)

    def _look_at_long_run(self, estimate: Estimate) -> Decision | None:
        """Conditions change too fast to follow: plan for their average."""
        average = self._model.in_the_long_run(estimate)
        if (decision := self._go_home(average)) is not None or self._request < self._next_restless_look:
            return decision
        self._next_restless_look = self._request + _RESTLESS_PAUSE
        present = self._forecast(average, self._plans.decided)
        best = self._prefer_home(average, self._forecast(average, self._balance(average)))
        return self._move(present, best) if self._exceeds_noise(present, best, z=self.certainty, fresh=False) else None

    def _go_home(self, average: Estimate) -> Decision | None:
        """In doubt, be at home, unless the present plan is better on average."""
        present, home = self._forecast(average, self._plans.decided), self._forecast(average, self._home)
        if not self._exceeds_noise(present, home, z=0.0, fresh=False):
            return None
        decision = self._move(present, home)
        self._check = None  # no prediction for the present conditions that could be checked
        return decision

    def _others_are_suspicious(self) -> bool:
        """Whether other stages seem to change too, undetected yet: then one move can answer all, or none is needed."""
        if self._waited >= _WAIT_FOR_OTHERS:
            return False
        self._waited += 1
        drift = np.abs(self._model.segments.drift(min(int(self._news_age), 4)))
        drift[list(self._news)] = 0.0
        return bool((drift > _SUSPICIOUS).any())

    def _move(self, present: Forecast, best: Forecast) -> Decision:
        calm = self._request - self._news_at > _LONGEST_PAUSE and self._model.calm
        self._check = _Check(present.plan, best.plan, best.bottleneck_s, calm=calm)
        self._moves_since_news += 1
        self._resting_until = self._request + 10 * _LONGEST_PAUSE  # until requests finish under the new plan
        slowest = int(np.argmax(present.stage_s))
        gain = present.bottleneck_s / best.bottleneck_s - 1
        self._visits.moved(present.plan, best.plan, self._request)
        return Decision(best.plan, "move", f"stage {slowest} is slowest, {gain:+.0%} predicted", best.bottleneck_s)

    # -- what came of it --------------------------------------------------------------------------------------------

    def _verdict(self, check: _Check) -> Decision | None:
        """Undo a move that did harm."""
        assert self._setting is not None
        if self._plans.running != check.after or self._plans.decided != check.after:
            return None
        stage_s, samples = self._model.segments.under_present_plan()
        held = np.array(check.after) > 0
        if samples[held].min() < self.verify:
            return None
        self._check = None
        cuts = np.cumsum([0, *check.after])
        stage_s = stage_s + self._setting.receive_s[cuts[:-1]] + self._setting.send_s[cuts[1:]]
        slowest = int(np.argmax(stage_s))
        error = math.hypot(check.error, self._model.segments.spread[slowest] / math.sqrt(max(samples[slowest], 1.0)))
        gain = math.log(check.before_s / stage_s[slowest])
        missed = math.log(stage_s[slowest] / check.predicted_s)
        self._optimism = min(max(0.0, self._optimism + _OPTIMISM_RATE * (missed - self._optimism)), _MOST_OPTIMISM)
        if gain < -max(self.min_gain / 2, self.certainty * error):
            self._failures += 1
            wait = min(_FIRST_BACKOFF << (self._failures - 1), _LAST_BACKOFF)
            self._backoff_until = self._request + wait
            self._banned.add(check.after)
            self._solved = None
            self._visits.moved(check.after, check.before, self._request)
            return Decision(check.before, "undo", f"{math.expm1(gain):+.0%} measured", check.before_s)
        if gain > 0:
            self._failures //= 2
        if check.calm:
            self._home = check.after  # a correction of the baselines
            self._pursuit.settle(self._home)
        return None

    # -- stages without layers --------------------------------------------------------------------------------------

    def _visit(self, estimate: Estimate, present: Forecast) -> Decision | None:
        """Give a stage that was too slow to hold anything a layer for one request, if it is time to."""
        stage = self._visits.due(self._request)
        if stage is None or not self._plans.settled:
            return None
        self._visits.postpone(stage, self._request)
        calm = self._model.undisturbed(estimate, stage)
        would_be = self._forecast(calm, self._balance(calm))
        if would_be.plan[stage] == 0 or present.bottleneck_s < would_be.bottleneck_s * (1 + self.min_gain):
            return None
        ways = (self._forecast(estimate, plan) for plan in with_one_layer(present.plan, stage))
        least = min(ways, key=lambda way: way.stage_s[stage])
        self._visits.begin(stage, least.plan, present.plan, self._request)
        return Decision(least.plan, "probe", f"is stage {stage} still slow?", least.bottleneck_s)

    def _judge_visit(self, stage: int) -> Decision | None:
        """The stage has run a layer: if that changes the best plan, move."""
        estimate = self._model.estimate()
        present = self._forecast(estimate, self._plans.decided)
        best = self._best(estimate, present)
        if best.plan[stage] > 0 and self._exceeds_noise(present, best, z=0.0, fresh=True):
            if self._exceeds_noise(present, best, z=self.certainty / 2, fresh=True):
                return self._move(present, best)
            self._visits.hurry(stage, self._request)
        return None
