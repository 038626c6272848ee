"""What ``odin/controller.py`` does with each finished request, in simulated time."""

from __future__ import annotations

import warnings
from collections import deque

import numpy as np
from numpy.typing import NDArray

from monitor.watch import StageWatch
from odin.users_code import describe, name_of, start_policy, where_raised
from partitioner.plan import Plan
from partitioner.policies.base import Decision, Observation, Policy, Setting, checked_decision
from partitioner.policies.static import StaticPolicy

__all__ = ["Control", "Switch"]

FloatArray = NDArray[np.float64]

_EXPLORES = ("trial", "probe")


class Switch:
    """Requests submitted at or after ``at_s`` run under another plan."""

    __slots__ = ("at_s", "plan", "trial")

    def __init__(self, at_s: float, plan: Plan, trial: bool) -> None:
        self.at_s, self.plan, self.trial = at_s, plan, trial


class Control:
    """Watch, policy and migration: one request at a time, in the order in which they finish.

    As live: while a migration is prepared the next finished requests wait to be looked at, and a policy that raises is
    replaced by ``static``. Looking and deciding themselves take no simulated time. What a policy answers that is no
    decision, and a detector that raises, are a ``ValueError`` here, which names it and the place in its file.

    Parameters
    ----------
    setting
        What policies are told at the start.
    policy
        Decides.
    watch
        None: no changes are detected.
    prepare_s
        Seconds from a decision to the first request that can be submitted under the new plan.

    Attributes
    ----------
    exploring
        Whether a plan is being tried out: the last decision was of kind ``trial`` or ``probe`` and, if the policy has
        a property ``exploring``, that still says so.
    free_s
        When the latest migration was, or will be, prepared.
    switches
        Those that no request has been submitted after yet.
    decisions
        (requests finished, decision), those that were carried out.
    changes
        (requests finished, stage), changes detected.
    """

    def __init__(self, setting: Setting, policy: Policy, watch: StageWatch | None, *, prepare_s: float) -> None:
        self._setting, self._policy, self._watch, self._prepare_s = setting, policy, watch, prepare_s
        self._plan = self._steady = setting.plan
        self.exploring = False
        self._finished = 0
        self._last_completed_s = float("nan")
        stages = setting.stage_count
        self._unchanged: NDArray[np.bool_] = np.zeros(stages, dtype=np.bool_)
        self._noise = np.zeros(stages)
        self.free_s = 0.0
        self.switches: deque[Switch] = deque()
        self.decisions: list[tuple[int, Decision]] = []
        self.changes: list[tuple[int, int]] = []
        start_policy(policy, setting)

    @property
    def idle(self) -> bool:
        """Whether nobody looks at finished requests."""
        return self._watch is None and type(self._policy) is StaticPolicy

    def look(
        self,
        plan: Plan,
        cuts: tuple[int, ...],
        stage_s: FloatArray,
        layer_s: FloatArray,
        true_s: FloatArray | None,
        completed_s: float,
        now_s: float,
    ) -> None:
        """Take one finished request, at the time ``now_s``."""
        self._finished += 1
        if self._watch is not None:
            detector = self._watch.detector
            try:
                self._watch.update(cuts, stage_s, layer_s)
                changed, age, noise, disturbed = detector.changed, detector.age, detector.noise, detector.disturbed
                if changed.any():
                    self.changes.extend((self._finished, stage) for stage in np.flatnonzero(changed).tolist())
            except Exception as error:
                place = where_raised(error, detector, "update")
                raise ValueError(f"detector {type(detector).__name__} raised {describe(error)}{place}") from error
        else:
            changed, noise, disturbed = self._unchanged, self._noise, None
            age = np.full(len(plan), self._finished)
        observation = Observation(
            self._finished,
            plan,
            stage_s,
            layer_s,
            completed_s - self._last_completed_s,
            changed,
            age,
            noise,
            true_s,
            disturbed,
        )
        self._last_completed_s = completed_s
        try:
            answer = self._policy.decide(observation)
        except Exception as error:
            warnings.warn(
                f"policy {name_of(self._policy)} raised {describe(error)}"
                f"{where_raised(error, self._policy, 'decide')}; layers stay where they are",
                stacklevel=1,
            )
            self._policy = StaticPolicy()
            return
        try:
            decision = checked_decision(answer, self._setting)
        except (TypeError, ValueError) as error:
            place = where_raised(error, self._policy, "decide")
            raise ValueError(f"policy {name_of(self._policy)}: {error}{place}") from error
        if decision is not None and decision.plan != self._plan:
            self._carry_out(decision, now_s)
        elif self.exploring and not getattr(self._policy, "exploring", True):
            # The plan tried last was the best: it stays without another decision.
            self.exploring, self._steady = False, self._plan
            self.switches.append(Switch(now_s, self._plan, False))

    def _carry_out(self, decision: Decision, now_s: float) -> None:
        self._plan = decision.plan
        # Kind "probe" is the way back from a visit as well.
        self.exploring = decision.kind in _EXPLORES and decision.plan != self._steady
        if not self.exploring:
            self._steady = decision.plan
        self.free_s = now_s + self._prepare_s
        self.switches.append(Switch(self.free_s, decision.plan, self.exploring))
        self.decisions.append((self._finished, decision))
