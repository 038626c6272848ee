"""What exploring policies share: moving one layer, and measuring a plan by requests that ran under it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Setting, not_started
from odin.partitioner.policies.in_flight import PlansInFlight

__all__ = ["DEFAULT_TRIAL", "EQUAL", "Trial", "TrialPolicy", "shift_layer", "transfer_s"]

FloatArray = NDArray[np.float64]

DEFAULT_TRIAL = 4  # requests

# Two bottlenecks within 1% of each other are equal: a layer of next to no time was moved, or it is the machine's noise.
EQUAL = 0.01


def shift_layer(plan: Plan, from_stage: int, to_stage: int) -> Plan | None:
    """Give one layer of a stage to another; the boundaries between them shift and stages between keep their counts.

    Returns
    -------
    Plan or None
        None if ``from_stage`` has no layer to give, or the two are the same stage.

    Examples
    --------
    >>> str(shift_layer(Plan((3, 3, 3)), 2, 0))
    '4|3|2'
    """
    if from_stage == to_stage or plan[from_stage] == 0:
        return None
    counts = list(plan)
    counts[from_stage] -= 1
    counts[to_stage] += 1
    return Plan(counts)


def transfer_s(setting: Setting, plan: Plan) -> FloatArray:
    """Seconds that each stage spends to receive and to send under a plan, shape (stages,)."""
    cuts = np.cumsum([0, *plan])
    seconds: FloatArray = setting.receive_s[cuts[:-1]] + setting.send_s[cuts[1:]]
    return seconds


class Trial:
    """A plan under test: averages over the first ``needed`` requests that ran under it.

    A stage's time is its layers' wall seconds plus what the setting says of its transfers. The throughput of the plan
    is taken as 1 / ``bottleneck_s``: unlike the rate of completions it does not depend on how fast requests arrive.

    Parameters
    ----------
    plan
        The plan to judge.
    needed
        Requests to judge it by, at least 1.
    transfer_s
        Seconds of each stage's transfers under the plan, shape (stages,).
    """

    def __init__(self, plan: Plan, needed: int, transfer_s: FloatArray) -> None:
        self.plan = plan
        self._needed = needed
        self._transfer_s = transfer_s
        self._stage_s: list[FloatArray] = []
        self._interval_s: list[float] = []

    def add(self, observation: Observation) -> None:
        """Count a request, unless it ran under another plan or there are enough."""
        if not self.full and observation.plan == self.plan:
            self._stage_s.append(observation.stage_s + self._transfer_s)
            self._interval_s.append(observation.interval_s)

    @property
    def full(self) -> bool:
        """Whether enough requests have been counted."""
        return len(self._stage_s) >= self._needed

    @property
    def stage_s(self) -> FloatArray:
        """Mean seconds of each stage, shape (stages,)."""
        mean_s: FloatArray = np.mean(self._stage_s, axis=0)
        return mean_s

    @property
    def bottleneck_s(self) -> float:
        """Mean over the requests of the seconds of the slowest stage."""
        return float(np.mean(np.max(self._stage_s, axis=1)))

    @property
    def interval_s(self) -> float:
        """Mean seconds between completions; ``bottleneck_s`` if not one interval is known."""
        known_s = [interval_s for interval_s in self._interval_s if interval_s == interval_s]
        return float(np.mean(known_s)) if known_s else self.bottleneck_s


class TrialPolicy(ABC):
    """A policy that answers a detected change with an exploration: one plan after another is tried and judged.

    The exploration begins with the present plan itself, judged by the requests that already ran under the new
    conditions (``Observation.age``) and as many more as are missing. A change detected meanwhile starts all over from
    the plan then in force. Nothing is tried with one stage only, and nothing while no change is detected. If somebody
    else changes the plan, or a decision is not carried out, the exploration ends there.

    Parameters
    ----------
    trial
        Requests by which each plan is judged, at least 1.
    """

    def __init__(self, *, trial: int) -> None:
        if trial < 1:
            raise ValueError(f"trial is {trial}; a plan is judged by at least 1 request")
        self.trial = trial
        self._setting: Setting | None = None
        self._running: Trial | None = None

    @property
    def exploring(self) -> bool:
        """Whether a plan is being judged, the present one at the beginning included."""
        return self._running is not None

    @property
    @abstractmethod
    def name(self) -> str:
        """Text form."""

    @abstractmethod
    def _begin(self) -> None:
        """Forget the exploration before; the next trial judged is that of the present plan."""

    @abstractmethod
    def _judge(self, trial: Trial) -> Decision | None:
        """Answer a finished trial: kind ``trial`` goes on, any other kind or None ends the exploration."""

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self._setting = setting
        self._plans = PlansInFlight(setting.plan)
        self._recent: deque[Observation] = deque(maxlen=self.trial)
        self._running = None

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the next plan to try, the one to stay with, or nothing."""
        if self._setting is None:
            raise not_started(self)
        self._recent.append(observation)
        present = self._plans.decided
        self._plans.saw(observation.plan, observation.request)
        if self._plans.decided != present:  # by somebody else, or our decision was not carried out
            self._running = None
        if observation.changed.any() and len(present) > 1:
            self._begin()
            self._running = self._new_trial()
            for recent in list(self._recent)[-max(1, int(observation.age.min())) :]:
                self._running.add(recent)
        elif self._running is not None:
            self._running.add(observation)
        if self._running is None or not self._running.full:
            return None
        decision = self._judge(self._running)
        self._running = None
        if decision is not None:
            self._plans.decide(decision.plan, observation.request)
            if decision.kind == "trial":
                self._running = self._new_trial()
        return decision

    def _new_trial(self) -> Trial:
        assert self._setting is not None
        plan = self._plans.decided
        return Trial(plan, self.trial, transfer_s(self._setting, plan))
