"""The oracle, an upper limit for plans: the best plan by the true times in simulation, by trying all plans live."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.balance.exact import balance, stage_times
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Setting, not_started
from odin.partitioner.policies.exploration import Trial, TrialPolicy
from odin.partitioner.policies.in_flight import PlansInFlight

__all__ = ["DelayedOraclePolicy", "OraclePolicy", "plan_count", "sweep_order"]

FloatArray = NDArray[np.float64]

_TRIAL = 8  # more requests than the searching policies take: it is to find the best plan, not to be quick
_LIMIT = 1000


def plan_count(*, stage_count: int, layer_count: int) -> int:
    """Number of plans, those with empty stages included."""
    return comb(layer_count + stage_count - 1, stage_count - 1)


def sweep_order(*, stage_count: int, layer_count: int) -> list[Plan]:
    """All plans, from all layers on the last stage to all on the first; from each to the next one layer changes stage.

    Examples
    --------
    >>> [str(plan) for plan in sweep_order(stage_count=3, layer_count=2)]
    ['0|0|2', '0|1|1', '0|2|0', '1|1|0', '1|0|1', '2|0|0']
    """
    cuts = _rising(stage_count - 1, 0, layer_count)
    return [Plan(last - first for first, last in pairwise((0, *inner, layer_count))) for inner in cuts]


def _rising(length: int, low: int, high: int) -> Iterator[tuple[int, ...]]:
    """Never falling tuples over [low, high], from all low to all high.

    Each first number goes with a sequence of the same kind for the rest, forward and backward in turn. Where it ends
    low, the whole tuple steps up by one at once: the layer skips the empty stages between.
    """
    if length == 0:
        yield ()
        return
    for first in range(low, high + 1):
        rest = _rising(length - 1, first, high)
        forward = (first - low) % 2 == 0
        for others in rest if forward else reversed(list(rest)):
            yield (first, *others)


class _Clairvoyant:
    """Returns the exact best plan for the true times, if it is better than the present one."""

    def __init__(self, setting: Setting) -> None:
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._setting = setting
        self._plans = PlansInFlight(setting.plan)
        self._answered_s: FloatArray | None = None

    def decide(self, observation: Observation, true_s: FloatArray) -> Decision | None:
        present = self._plans.decided
        self._plans.saw(observation.plan, observation.request)
        moved = self._plans.decided != present  # by another caller
        if self._answered_s is not None and not moved and (true_s == self._answered_s).all():
            return None
        self._answered_s = true_s.copy()
        send_s, receive_s = self._setting.send_s, self._setting.receive_s
        present_s = max(stage_times(self._plans.decided, true_s, send_s, receive_s))
        try:
            best = balance(true_s, send_s=send_s, receive_s=receive_s)
        except ValueError:
            if np.isinf(true_s).any():  # every plan needs a stage that is dead: none is better
                return None
            raise
        if best.bottleneck_s >= present_s:
            return None
        self._plans.decide(best.plan, observation.request)
        return Decision(best.plan, "move", "best for the true times", best.bottleneck_s)


class OraclePolicy(TrialPolicy):
    """The best plan for the true times at no cost in simulation; live, the best of all plans, each tried.

    In simulation (``Observation.true_s`` given) it answers every request with
    :func:`odin.partitioner.balance.exact.balance` of the true times at that moment, transfers as the setting has them,
    whenever that plan's bottleneck is less than the present one's.

    Live the true times are not known. On a detected change it measures the present plan and then all others, each time
    moving one layer (but for one jump, from one end of :func:`sweep_order` back to the plan beside the first), and
    settles on the fastest. A change detected meanwhile starts the sweep again.

    Parameters
    ----------
    trial
        Requests by which each plan is judged in a live sweep.
    limit
        Most plans that a live sweep may have.

    Raises
    ------
    ValueError
        From ``decide``, with the first live observation, if there are more than ``limit`` plans.
    """

    def __init__(self, *, trial: int = _TRIAL, limit: int = _LIMIT) -> None:
        super().__init__(trial=trial)
        if limit < 1:
            raise ValueError(f"limit is {limit}; a sweep has at least 1 plan")
        self.limit = limit
        self._begin()

    @property
    def name(self) -> str:
        """``oracle``, with those parameters that are not the default."""
        given = [f"trial={self.trial}"] * (self.trial != _TRIAL) + [f"limit={self.limit}"] * (self.limit != _LIMIT)
        return ":".join(["oracle", ",".join(given)]) if given else "oracle"

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        super().start(setting)
        self._clairvoyant = _Clairvoyant(setting)
        self._checked = False

    def decide(self, observation: Observation) -> Decision | None:
        """Answer with the best plan (simulation), the next plan of the sweep or the best of it (live), or nothing."""
        if self._setting is not None and observation.true_s is not None:
            return self._clairvoyant.decide(observation, observation.true_s)
        if self._setting is not None and not self._checked:
            self.check_sweep(self._setting)
            self._checked = True
        return super().decide(observation)

    def check_sweep(self, setting: Setting) -> None:
        """Raise ``ValueError`` if a live sweep would have more than ``limit`` plans."""
        count = plan_count(stage_count=setting.stage_count, layer_count=setting.layer_count)
        if count > self.limit:
            raise ValueError(
                f"{setting.layer_count} layers on {setting.stage_count} stages have {count} plans, a live sweep may "
                f"have {self.limit}; take fewer stages, a coarser chain or oracle:limit={count}, or a simulation"
            )

    def _begin(self) -> None:
        self._best: Trial | None = None
        self._untried: list[Plan] = []

    def _judge(self, trial: Trial) -> Decision | None:
        if self._best is None:
            self._untried = _sweep_from(trial.plan)
        if self._best is None or trial.bottleneck_s < self._best.bottleneck_s:
            self._best = trial
        if self._untried:
            return Decision(self._untried.pop(), "trial", f"sweep, {len(self._untried)} plans after this one")
        if trial.plan == self._best.plan:
            return None
        return Decision(self._best.plan, "settle", "fastest of all plans")


def _sweep_from(plan: Plan) -> list[Plan]:
    """All other plans, the next one last: to the nearer end of the order, then from beside ``plan`` to the other."""
    order = sweep_order(stage_count=len(plan), layer_count=plan.layer_count)
    index = order.index(plan)
    down, up = order[:index][::-1], order[index + 1 :]
    return [*down, *up][::-1] if len(down) <= len(up) else [*up, *down][::-1]


class DelayedOraclePolicy:
    """The oracle of simulations, one request late: with each request it learns the true times of the one before.

    An upper limit for policies that know everything except the future.
    """

    name = "delayed-oracle"

    def __init__(self) -> None:
        self._clairvoyant: _Clairvoyant | None = None

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        self._clairvoyant = _Clairvoyant(setting)
        self._late_s: FloatArray | None = None

    def decide(self, observation: Observation) -> Decision | None:
        """Answer with the best plan for the true times one request ago, or nothing.

        Raises
        ------
        ValueError
            If the observation does not tell the true times.
        """
        if self._clairvoyant is None:
            raise not_started(self)
        if observation.true_s is None:
            raise ValueError("delayed-oracle needs the true times, which only a simulation knows; live, use oracle")
        late_s, self._late_s = self._late_s, observation.true_s.copy()
        return None if late_s is None else self._clairvoyant.decide(observation, late_s)
