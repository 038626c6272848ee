"""The controller in simulated time: what it makes of a request is :mod:`odin.control.decision_core`'s, as live."""

from __future__ import annotations

import warnings
from collections import deque

import numpy as np
from numpy.typing import NDArray

from odin.control.decision_core import DecisionCore, Finished, PolicyFault
from odin.control.users_code import describe, name_of, where_raised
from odin.monitor.detectors.base import Detector
from odin.monitor.watch import StageWatch
from odin.monitor.watch_rows import WatchLoops
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Policy, Setting

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
        self._core = DecisionCore(
            setting,
            policy,
            watch,
            on_policy_fault=self._policy_replaced,
            on_detector_fault=self._detector_replaced,
        )
        self._prepare_s = prepare_s
        self._steady = setting.plan
        self.exploring = False
        self._finished = 0
        self.free_s = 0.0
        self.switches: deque[Switch] = deque()
        self.decisions: list[tuple[int, Decision]] = []
        self.changes: list[tuple[int, int]] = []

    @property
    def idle(self) -> bool:
        """Whether nobody looks at finished requests."""
        return self._core.idle

    @property
    def moves(self) -> bool:
        """Whether the policy may decide something; if not, what is seen of requests leads to :attr:`changes` alone."""
        return self._core.moves

    @property
    def looks_ahead(self) -> bool:
        """Whether :meth:`look_ahead` may be called now."""
        return self._core.watches_ahead

    def look_ahead(self, cuts: tuple[int, ...], stage_s: FloatArray, layer_s: FloatArray, loops: WatchLoops) -> None:
        """Let the watch see the next requests of a plan at once; :meth:`look` is called for each of them all the same.

        ``stage_s`` and ``layer_s`` are of shapes (requests, stages) and (requests, layers).
        """
        self._core.watch_ahead(cuts, stage_s, layer_s, loops)

    def look_all(self, cuts: tuple[int, ...], stage_s: FloatArray, layer_s: FloatArray, loops: WatchLoops) -> None:
        """Take the next requests of a plan that nobody moves: what :meth:`look` makes of each."""
        self._core.watch_ahead(cuts, stage_s, layer_s, loops)
        for _ in range(len(stage_s)):
            self._finished += 1
            self._note(self._core.next_watched().changed)

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
        _, observation = self._core.observe(Finished(self._finished, plan, cuts, stage_s, layer_s, completed_s, true_s))
        self._note(observation.changed)
        decision = self._core.decide(observation)
        if decision is not None:
            self._carry_out(decision, now_s)
        elif self.exploring and not getattr(self._core.policy, "exploring", True):
            # The plan tried last was the best: it stays without another decision.
            self.exploring, self._steady = False, self._core.plan
            self.switches.append(Switch(now_s, self._core.plan, False))

    def _note(self, changed: NDArray[np.bool_]) -> None:
        if np.count_nonzero(changed):
            self.changes.extend((self._finished, stage) for stage in np.flatnonzero(changed).tolist())

    def _policy_replaced(self, fault: PolicyFault) -> None:
        if not isinstance(fault.error, Exception):
            raise fault.error  # such as Ctrl-C
        name, place = name_of(fault.policy), where_raised(fault.error, fault.policy, "decide")
        if fault.answered:
            raise ValueError(f"policy {name}: {fault.error}{place}") from fault.error
        warnings.warn(f"policy {name} raised {describe(fault.error)}{place}; layers stay where they are", stacklevel=1)

    def _detector_replaced(self, detector: Detector, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        # Another one's results would be told as its own.
        place = where_raised(error, detector, "update")
        raise ValueError(f"detector {type(detector).__name__} raised {describe(error)}{place}") from error

    def _carry_out(self, decision: Decision, now_s: float) -> None:
        self._core.carried_out(decision.plan)
        # Kind "probe" is the way back from a probe as well.
        self.exploring = decision.kind in _EXPLORES and decision.plan != self._steady
        if not self.exploring:
            self._steady = decision.plan
        self.free_s = now_s + self._prepare_s
        self.switches.append(Switch(self.free_s, decision.plan, self.exploring))
        self.decisions.append((self._finished, decision))
