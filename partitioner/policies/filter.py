"""A policy of one idea: will a plan, until conditions change again, save more than the move costs?

::

    request -> regimes.py   how slow is each stage, and will it still be k requests from now?   (a filter)
            -> outlook.py   expected bottleneck of a plan then                                  (exact, no samples)
            -> move if      sum over k of (present plan's - other plan's)  >  cost of a move    (in requests)

The sum is taken twice, and the larger one counts: over the whole horizon, as if the plan were kept whatever comes; and
only as far as nothing is likely to have changed until then, as if plans were chosen anew with the next change.

Other plans are the exact balance of the slowdowns that are expected soon, that of those expected in the long run, and
the home plan (the best one undisturbed). Savings begin after the migration lag, so a disturbance that will be over by
then moves nothing; where disturbances come faster than plans can follow, the long-run balance is what is left to gain.

In the same unit: a plan whose prediction did not come true is worse by its error (``plan_errors.py``); a stage without
layers is given one for a single request, a probe, if what it would be worth undisturbed, times the probability that it
is, exceeds what the probe costs.
"""

from __future__ import annotations

import math

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

_EDGES: FloatArray = np.array([0.0, 2.0, 6.0, 14.0, 32.0, 96.0]) / 96.0
"""The horizon in parts, each weighed by one time ahead; finer where more is known."""
_NEWS = 0.05
"""Change of a stage's expected log slowdown that is a reason to weigh plans: 5%, as far as levels are apart."""
_SOON, _LATER = 8, 64
"""Requests after which plans are weighed without such a change, where a stage seems disturbed, and where none does."""
_CALM = 0.9
"""Probability from which a stage seems undisturbed."""
_MOST_ON_THEIR_WAY = 2
"""Plans decided that no request has finished under: what a third one would be worth is not known yet."""
_HOME_COST = 0.5
"""What a move to the home plan costs of another: half is the risk of a wrong prediction, and that plan is known."""
_LAG_RATE = 0.2
"""Weight of the latest migration lag in its mean."""
_NEAR = 0.015
"""Relative difference between plans that counts as none when the home plan is chosen."""


class FilterPolicy:
    """Moves to the plan that is expected to save more, until conditions change, than the move costs.

    Parameters
    ----------
    cost
        What a move costs, in requests at the present speed: two plans in the line at once, layers prepared and cold,
        and the risk that the prediction is wrong. More means fewer moves.
    horizon
        Requests within which a move must have saved that.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(self, *, cost: float = 8.0, horizon: int = 96) -> None:
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost is {cost}; give what a move costs in requests, 0 or more, such as 8")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; give at least 1 request, such as 96")
        self.cost, self.horizon = cost, horizon
        self._setting: Setting | None = None

    @property
    def name(self) -> str:
        """``filter``, with those parameters that are not the default."""
        return text_form("filter", self)

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._share, setting = share_of(setting), turns_of(setting)
        self._setting = setting
        self._arrays = PlanArraysCache(setting)
        self._home = home_plan(setting, near=_NEAR)
        self._regimes = RegimeFilter(setting.stage_count)
        self._layers = LayerFactors(setting)
        self._errors = PlanErrors(self._home)
        self._plans = PlansInFlight(setting.plan)
        self._lag = 2.0 * setting.stage_count
        self._back_to: Plan | None = None
        self._weighed_at: FloatArray = np.zeros(setting.stage_count)
        self._next_weighing = 0
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
        if self._setting is None:
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
        arrays, regimes = self._arrays.of(plan), self._regimes
        noise = float(np.fmax(observation.noise, 0.0).max())
        before = self._plans.running
        lag = self._plans.saw(plan, request)
        if plan != before:
            self._note_plan(before, plan, lag, noise)
        ratio = observation.stage_s * arrays.per_reference
        measured = ratio > 0
        log_slowdown = np.log(np.where(measured, ratio, 1.0))
        regimes.update(log_slowdown, observation.noise, measured)
        if request % _SOON == 0 or regimes.undisturbed.min() < _CALM:
            self._layers.take(arrays, observation.layer_s, log_slowdown, regimes.renewed)
        busy_s = observation.stage_s + arrays.transfer_s
        wrong = self._errors.take(request, busy_s, regimes.renewed, noise)
        return wrong or bool(np.abs(regimes.expected - self._weighed_at).max() > _NEWS)

    def _note_plan(self, before: Plan, plan: Plan, lag: int | None, noise: float) -> None:
        """Requests finish under another plan now; without a lag it is one that somebody else decided."""
        self._errors.end(noise)
        if lag is None:
            self._back_to = None
            return
        self._lag += _LAG_RATE * (lag - 1 - self._lag)
        predicted_s = self._now().stage_s(self._arrays.of(plan))[0]
        self._errors.begin(before, plan, predicted_s, self._regimes.survival(OWN_EFFECT))

    # -- what to do -------------------------------------------------------------------------------------------------

    def _answer(self, request: int, *, news: bool) -> Decision | None:
        if (plan := self._back_to) is not None:
            self._back_to = None
            return Decision(plan, "probe", "one request is enough")
        if not news and request < self._next_weighing:
            return None
        self._weighed_at = self._regimes.expected
        calm = self._regimes.undisturbed.min() > _CALM
        self._next_weighing = request + (_LATER if calm else _SOON)
        if self._plans.on_their_way >= _MOST_ON_THEIR_WAY:
            return None
        present = self._plans.decided
        outlook = self._outlook(self._regimes)
        best, value = self._best(outlook, present)
        if best != present:
            return self._move(present, best, value)
        return self._probe(present)

    def _outlook(self, regimes: RegimeFilter) -> Outlook:
        """Plans' times in the parts of the horizon, which begins when a move would be felt."""
        return self._times_at(regimes, max(1, round(self._lag)) + self._ahead)

    def _now(self) -> Outlook:
        """Plans' times at present."""
        return self._times_at(self._regimes, np.zeros(1, dtype=np.int64))

    def _times_at(self, regimes: RegimeFilter, ahead: NDArray[np.int64]) -> Outlook:
        return Outlook(self._layers.times_s(regimes.base), regimes.ahead(ahead))

    def _expected_now_s(self, plan: Plan) -> float:
        """Expected seconds per request of a plan's slowest stage now, its error left out."""
        return float(self._now().expected_s(self._arrays.of(plan))[0])

    def _best(self, outlook: Outlook, present: Plan) -> tuple[Plan, float]:
        """The plan that saves most, and how much more than the move costs, in requests; or the present one and 0."""
        plans = {self._home, self._balanced(outlook, 0), self._balanced(outlook, -1)} - {present}
        best, most = present, 0.0
        if plans:
            now_s = outlook.expected_s(self._arrays.of(present))
            for plan in sorted(plans):
                value = self._saving(outlook, now_s, present, plan) - self._cost(plan)
                if value > most:
                    best, most = plan, value
        return best, most

    def _cost(self, plan: Plan) -> float:
        """What a move to a plan costs, in requests."""
        return self.cost * (_HOME_COST if plan == self._home else 1.0)

    def _balanced(self, outlook: Outlook, part: int) -> Plan:
        """The exact balance of the slowdowns expected in a part of the horizon."""
        setting = self._setting
        assert setting is not None
        times_s = outlook.times_s * outlook.factors[part][:, None]
        return balance(times_s, send_s=setting.send_s, receive_s=setting.receive_s).plan

    def _saving(self, outlook: Outlook, now_s: FloatArray, present: Plan, plan: Plan) -> float:
        """What a plan saves, in requests at the present speed: kept over the whole horizon, or only while nothing
        changes, whichever is more.
        """
        saved_s = now_s - outlook.expected_s(self._arrays.of(plan)) * self._error(plan, present)
        lasts = np.array([self._regimes.survival(int(ahead)).prod() for ahead in self._ahead])
        return float(max(saved_s @ self._span, saved_s[0] * (lasts @ self._span)) / now_s[0])

    def _error(self, plan: Plan, present: Plan) -> float:
        """By what factor a plan was longer than predicted, over that of the present one."""
        return math.exp(self._errors.of(plan) - self._errors.of(present))

    def _move(self, present: Plan, plan: Plan, value: float) -> Decision:
        cost = self._cost(plan)
        why = f"saves {value + cost:.0f} requests of {self.horizon}, costs {cost:g}"
        return Decision(plan, "move", why, self._expected_now_s(plan) * self._error(plan, present))

    # -- stages without layers --------------------------------------------------------------------------------------

    def _probe(self, present: Plan) -> Decision | None:
        """Give a stage without layers one for a single request, if what may be learned is worth that."""
        if not self._plans.settled:
            return None
        for stage in np.flatnonzero(~self._arrays.of(present).has).tolist():
            calm = self._outlook(self._regimes.if_undisturbed(stage))
            plan, value = self._best(calm, present)
            if plan[stage] == 0:
                continue
            tried = min(with_one_layer(present, stage), key=self._expected_now_s)
            tried_s, present_s = self._expected_now_s(tried), self._expected_now_s(present)
            # There and back are two moves, and one request waits for the stage.
            if float(self._regimes.undisturbed[stage]) * value > 2 * self.cost + tried_s / present_s - 1.0:
                self._back_to = present
                return Decision(tried, "probe", f"is stage {stage} still slow?", tried_s)
        return None
