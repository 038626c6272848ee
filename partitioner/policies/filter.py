"""A policy of one idea: will a plan, until conditions change again, save more than the move costs?

::

    request -> regimes.py   how slow is each stage, and will it still be k requests from now?   (a filter)
            -> outlook.py   expected bottleneck of a plan then                                  (exact, no samples)
            -> move if      sum over k of (present plan's - other plan's)  >  cost of a move    (in requests)

The sum begins when a move would be felt, one migration lag from now, and ends when the next one would be: with the
next change of conditions that is followed, and its lag. Until the change a plan is worth what it is worth now, after it
what it is worth under the conditions expected by then; so a disturbance that will be over before a move is felt moves
nothing. A change is followed if the new conditions last long enough to pay for a move. Where few do, a plan is kept
through many changes, and the long-run balance is what is left to gain.

Other plans are the exact balance of the present slowdowns, that of those expected in the long run, and the home plan
(the best one undisturbed).

In the same unit: a plan whose prediction did not come true is worse by its error (``plan_errors.py``); a stage without
layers is given one for a single request, a probe, once what it is expected to have saved since the last look, had it
been used, exceeds what the probe costs.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Setting, not_started, text_form
from odin.partitioner.policies.in_flight import PlansInFlight
from odin.partitioner.policies.layer_factors import LayerFactors
from odin.partitioner.policies.outlook import Outlook
from odin.partitioner.policies.paced import in_turns, share_of, turns_of
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.plan_candidates import home_plan, with_one_layer
from odin.partitioner.policies.plan_errors import OWN_EFFECT, PlanErrors
from odin.partitioner.policies.regimes import RegimeFilter

__all__ = ["FilterPolicy"]

FloatArray = NDArray[np.float64]

_EDGES: FloatArray = np.array([0.0, 0.004, 0.012, 0.032, 0.088, 0.24, 1.0])
"""The horizon in parts, each weighed by one time ahead; finer where more is known."""
_LONGEST = 100_000
"""Requests of the longest horizon: of a longer one the first part alone outlasts what is known."""
_NEWS = 0.05
"""Change of a stage's expected log slowdown that is a reason to weigh plans: 5%, as far as levels are apart."""
_SOON, _LATEST = 8, 512
"""Requests after which plans are weighed again without such a change; while all is quiet, twice as many each time, and
changes are looked for and layers learned from only so often.
"""
_MOST_ON_THEIR_WAY = 2
"""Plans decided that no request has finished under: what a third one would be worth is not known yet."""
_HOME_COST = 0.75
"""What a move to the home plan costs of another: a quarter is the risk of a wrong prediction; that plan is known."""
_LAG_RATE = 0.2
"""Weight of the latest migration lag in its mean."""
_AT_PRESENT = np.zeros(1, dtype=np.int64)
_TINY = 1e-9


class FilterPolicy:
    """Moves to the plan that is expected to save more, until conditions change, than the move costs.

    Parameters
    ----------
    cost
        What a move costs, in requests at the present speed: two plans in the line at once, layers prepared and cold,
        and the risk that the prediction is wrong. More means fewer moves.
    horizon
        Requests within which a move must have saved that: as many as the longest mean life of a disturbance, as what
        lies further ahead is not known.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(self, *, cost: float = 4.0, horizon: int = 400) -> None:
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost is {cost}; give what a move costs in requests, 0 or more, such as 4")
        if not 1 <= horizon <= _LONGEST:
            raise ValueError(f"horizon is {horizon}; give 1 to {_LONGEST:,} requests, such as 400")
        self.cost, self.horizon = cost, horizon
        self._started = False

    @property
    def name(self) -> str:
        """``filter``, with those parameters that are not the default."""
        return text_form("filter", self)

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._share, setting = share_of(setting), turns_of(setting)
        self._started = True
        self._balance = partial(balance, send_s=setting.send_s, receive_s=setting.receive_s)
        self._arrays = PlanArraysCache(setting)
        self._home = home_plan(setting)
        self._regimes = RegimeFilter(setting.stage_count)
        self._layers = LayerFactors(setting, self._arrays.of(self._home))
        self._errors = PlanErrors(self._home)
        self._plans = PlansInFlight(setting.plan)
        self._lag = 2.0 * setting.stage_count
        self._back_to: Plan | None = None
        self._off, self._missed, self._weighed_at = np.zeros((3, setting.stage_count))
        self._looked_at = 0
        self._wait, self._next_weighing = _SOON, 0
        edges = self.horizon * _EDGES
        self._ahead = np.maximum(np.round((edges[1:] + edges[:-1]) / 2), 1).astype(np.int64)
        self._span: FloatArray = np.diff(edges)

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the plan to move to, or nothing.

        Raises
        ------
        ValueError
            If the policy was not started.
        """
        if not self._started:
            raise not_started(self)
        if len(observation.plan) == 1:
            return None
        news = self._take(in_turns(observation, self._share))
        decision = self._answer(observation.request, news=news)
        if decision is not None:
            self._plans.decide(decision.plan, observation.request)
        return decision

    def _take(self, observation: Observation) -> bool:
        """Learn from a request; return whether that is a reason to weigh plans."""
        plan, request = observation.plan, observation.request
        arrays, regimes, was_quiet = self._arrays.of(plan), self._regimes, self._regimes.quiet
        noise = float(np.fmax(observation.noise, 0.0).max())
        before = self._plans.running
        lag = self._plans.saw(plan, request)
        if plan != before:
            if lag is None:  # somebody else decided this plan
                self._back_to = None
            else:
                self._lag += _LAG_RATE * (lag - 1 - self._lag)
            predicted_s = self._outlook(regimes).stage_s(arrays)[0]
            self._errors.begin(before, plan, predicted_s, regimes.survival(OWN_EFFECT), noise)
            self._off = self._layers.off(arrays)
        ratio = observation.stage_s * arrays.per_reference
        measured = ratio > 0
        log_slowdown = np.log(np.where(measured, ratio, 1.0)) - self._off
        regimes.take(log_slowdown, observation.noise, measured)
        wrong = self._errors.take(request, observation.stage_s + arrays.transfer_s, regimes.renewed, noise)
        if was_quiet and regimes.quiet and request % _SOON:
            return wrong
        self._layers.take(arrays, observation.layer_s, np.where(measured, log_slowdown, np.nan), regimes.renewed)
        self._off = self._layers.off(arrays)
        return wrong or bool(np.abs(regimes.expected - self._weighed_at).max() > _NEWS)

    # -- what to do -------------------------------------------------------------------------------------------------

    def _answer(self, request: int, *, news: bool) -> Decision | None:
        if (plan := self._back_to) is not None:
            self._back_to = None
            return Decision(plan, "probe", "one request is enough")
        waits = self._plans.on_their_way >= _MOST_ON_THEIR_WAY or self._errors.too_early
        if waits or (not news and request < self._next_weighing):
            return None
        self._weighed_at = self._regimes.expected
        self._wait = min(2 * self._wait, _LATEST) if self._regimes.quiet and not news else _SOON
        self._next_weighing = request + self._wait
        present = self._plans.decided
        best, value = self._best(self._regimes, present)
        if best == present:
            return self._probe(present, request)
        self._looked_at = request
        cost = self._cost(best)
        why = f"saves {value + cost:.0f} requests of {self.horizon}, costs {cost:g}"
        return Decision(best, "move", why, float(self._expected_s(self._outlook(self._regimes), best, present)[0]))

    def _best(self, regimes: RegimeFilter, present: Plan) -> tuple[Plan, float]:
        """The plan that saves most, and how much more than the move costs, in requests; or the present one and 0."""
        ahead, weights = self._weights(regimes)
        outlook = self._outlook(regimes, ahead)
        now_s = self._expected_s(outlook, present, present)
        best, most = present, 0.0
        for plan in sorted({self._home, self._balanced(outlook, 0), self._balanced(outlook, -1)} - {present}):
            saved_s = now_s - self._expected_s(outlook, plan, present)
            value = float(saved_s @ weights / now_s[0]) - self._cost(plan)
            if value > most:
                best, most = plan, value
        return best, most

    def _cost(self, plan: Plan) -> float:
        """What a move to a plan costs, in requests."""
        return self.cost * (_HOME_COST if plan == self._home else 1.0)

    def _weights(self, regimes: RegimeFilter) -> tuple[NDArray[np.int64], FloatArray]:
        """How many requests ahead plans are weighed: now, and in the parts of the horizon, which begins when a move
        would be felt; and for how many requests each of these counts: the present for those before the next change, the
        others for those after it.
        """
        lag = max(1, round(self._lag))
        ahead, long = lag + self._ahead, round(lag + self.cost)
        # Changes that are over sooner, which nothing follows, come before the first that lasts: 1 / p - 1 of them.
        unfollowed = long * (1.0 / max(regimes.lasting_change(long), _TINY) - 1.0)
        lasts = np.array([regimes.survival(when).prod() for when in ahead])
        kept = np.array([regimes.survival(when).prod() for when in np.maximum(self._ahead - unfollowed, 0.0)])
        changed = self._span * (kept - lasts) / np.maximum(1.0 - lasts, _TINY)
        return np.append(0, ahead), np.append((self._span - changed) @ lasts, changed)

    def _outlook(self, regimes: RegimeFilter, ahead: NDArray[np.int64] = _AT_PRESENT) -> Outlook:
        """What plans are expected to take so many requests ahead, by default at present."""
        return Outlook(self._layers.times_s(regimes.base), regimes.ahead(ahead))

    def _expected_s(self, outlook: Outlook, plan: Plan, present: Plan) -> FloatArray:
        """Expected seconds per request of the slowest stage under a plan, shape (times,): as the outlook has them,
        times the factor by which the plan was longer than predicted, over that of the present one (for itself 1).
        """
        error = math.exp(self._errors.of(plan) - self._errors.of(present))
        expected_s: FloatArray = outlook.expected_s(self._arrays.of(plan)) * error
        return expected_s

    def _balanced(self, outlook: Outlook, part: int) -> Plan:
        """The exact balance of the slowdowns expected in a part of the horizon."""
        return self._balance(outlook.times_s * outlook.factors[part][:, None]).plan

    # -- stages without layers --------------------------------------------------------------------------------------

    def _probe(self, present: Plan, request: int) -> Decision | None:
        """Give a stage without layers one for a single request, once what it is expected to have saved since the last
        look, had it been used, exceeds what the probe costs.
        """
        since, self._looked_at = request - self._looked_at, request
        has = self._arrays.of(present).has
        self._missed[has] = 0.0
        if has.all() or not self._plans.settled:
            return None
        now = self._outlook(self._regimes)
        present_s = float(self._expected_s(now, present, present)[0])
        for stage in np.flatnonzero(~has).tolist():
            calm = self._regimes.if_undisturbed(stage)
            plan, _ = self._best(calm, present)
            if plan[stage] == 0:
                continue
            saved = 1.0 - self._expected_s(self._outlook(calm), plan, present)[0] / present_s
            self._missed[stage] += since * float(self._regimes.undisturbed[stage]) * saved
            tried = min(with_one_layer(present, stage), key=lambda other: now.expected_s(self._arrays.of(other))[0])
            tried_s = float(now.expected_s(self._arrays.of(tried))[0])
            # There and back are two moves, and one request waits for the stage.
            if self._missed[stage] > 2 * self.cost + tried_s / present_s - 1.0:
                self._missed[stage], self._back_to = 0.0, present
                return Decision(tried, "probe", f"is stage {stage} still slow?", tried_s)
        return None
