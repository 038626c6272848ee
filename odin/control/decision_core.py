"""From a finished request to a decision: detector and policy, without threads, clocks, Ray or torch.

The controller of a live pipeline and the simulator both use it, so that the simulation cannot differ from serving::

    request -> observe: watch (detector) -> changes, observation -> decide: policy -> a plan to move to, or nothing
                                                                     carried_out <- the caller has moved the layers

The callers choose which requests to pass, move the layers, and report events.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.control.users_code import start_policy
from odin.monitor.detectors.base import Detector
from odin.monitor.watch import SlowdownChange, StageWatch, Watched
from odin.monitor.watch_rows import WatchLoops
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Policy, Setting, checked_decision, windows_of
from odin.partitioner.policies.relay import RelayPolicy
from odin.partitioner.policies.static import StaticPolicy
from odin.partitioner.relay import Windows

__all__ = ["DecisionCore", "Finished", "PolicyFault"]

FloatArray = NDArray[np.float64]


class Finished(NamedTuple):
    """A finished request with its stages' timings.

    Attributes
    ----------
    number
        How many have finished, this one included.
    plan, cuts
        The plan that it ran under, and that plan's stages + 1 cuts.
    stage_s, layer_s
        Seconds of each stage, shape (stages,), and of each layer, shape (layers,).
    completed_s
        When it finished; only differences count.
    true_s
        As in :class:`~odin.partitioner.policies.Observation`.
    plan_key
        Tells plans in force apart, where cuts do not: those of a relay differ from request to request. None: by cuts.
    delay_s
        As in :class:`~odin.partitioner.policies.Observation`.
    """

    number: int
    plan: Plan
    cuts: tuple[int, ...]
    stage_s: FloatArray
    layer_s: FloatArray
    completed_s: float
    true_s: FloatArray | None = None
    plan_key: Hashable = None
    delay_s: FloatArray | None = None


class PolicyFault(NamedTuple):
    """A policy that was replaced by ``static``: what it raised, or why its answer could not be carried out."""

    policy: Policy
    error: BaseException
    answered: bool


class DecisionCore:
    """Watch and policy of one pipeline, one finished request at a time.

    A policy that raises, or whose answer cannot be carried out, is replaced by ``static``; a detector that raises, or
    returns arrays for another number of stages, by the default one. The caller is notified, and may raise instead of
    continuing.

    Parameters
    ----------
    setting
        Given to the policy at the start; its plan is the one in force.
    policy
        Decides when layers move.
    watch
        Detects changes; None for no detection.
    on_policy_fault
        Called when a policy has been replaced.
    on_detector_fault
        Called with a detector that has been replaced, and its exception.

    Attributes
    ----------
    plan, windows
        The plan in force, and where boundaries may lie; None: where the plan has them.
    """

    def __init__(
        self,
        setting: Setting,
        policy: Policy,
        watch: StageWatch | None,
        *,
        on_policy_fault: Callable[[PolicyFault], None],
        on_detector_fault: Callable[[Detector, BaseException], None],
    ) -> None:
        self.plan = setting.plan
        self.windows: Windows | None = None
        self._setting, self._policy, self._watch = setting, policy, watch
        self._on_policy_fault, self._on_detector_fault = on_policy_fault, on_detector_fault
        self._shape = (setting.stage_count,)
        self._unchanged: NDArray[np.bool_] = np.zeros(self._shape, dtype=np.bool_)
        self._noise: FloatArray = np.zeros(self._shape)
        self._ahead: deque[Watched] = deque()
        self._last_completed_s = math.nan
        self._start_anew = False
        start_policy(policy, setting)
        self.windows = windows_of(policy, setting)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    @property
    def watch(self) -> StageWatch | None:
        """What detects changes."""
        return self._watch

    @property
    def idle(self) -> bool:
        """Whether passing requests would have no effect."""
        return self._watch is None and type(self._policy) is StaticPolicy

    @property
    def moves(self) -> bool:
        """Whether the policy may decide something."""
        return type(self._policy) not in (StaticPolicy, RelayPolicy)

    @property
    def watches_ahead(self) -> bool:
        """Whether :meth:`watch_ahead` may be called: all that it was given has been observed, and the watch can."""
        return not self._ahead and self._watch is not None and self._watch.takes_rows

    def watch_ahead(self, cuts: tuple[int, ...], stage_s: FloatArray, layer_s: FloatArray, loops: WatchLoops) -> None:
        """Let the watch take the requests that :meth:`observe` will be called for next, of one plan, all at once.

        What it makes of them does not depend on decisions. Parameters as of ``StageWatch.update_rows``.
        """
        assert self._watch is not None
        assert not self._ahead
        self._ahead.extend(self._watch.update_rows(cuts, stage_s, layer_s, loops=loops))

    def next_watched(self) -> Watched:
        """What the watch made of the next of these requests."""
        return self._ahead.popleft()

    def set_policy(self, policy: Policy) -> None:
        """Replace the policy from the next request on; if the new one's start raises, the old one stays."""
        before = self._policy
        policy.start(self._setting._replace(plan=self.plan))
        self._policy, self._start_anew = policy, False
        if before is not policy:
            _leave(before)

    def end(self) -> None:
        """To be called when nothing is to be decided any more."""
        _leave(self._policy)

    @property
    def together(self) -> Sequence[Any]:
        """The tenants that the policy has planned together last; another object when that has changed."""
        together: Sequence[Any] = getattr(self._policy, "together", ())
        return together

    def carried_out(self, plan: Plan, windows: Windows | None = None) -> None:
        """To be called when layers were moved."""
        self.plan, self.windows = plan, windows

    def not_carried_out(self) -> None:
        """To be called when a decision was not carried out: the policy is started again with the plan in force."""
        self._start_anew = True

    def observe(self, finished: Finished) -> tuple[Sequence[SlowdownChange], Observation]:
        """Take one finished request; return the changes detected with it, and the observation for :meth:`decide`."""
        number, plan, cuts, stage_s, layer_s, completed_s, true_s, plan_key, delay_s = finished
        interval_s, self._last_completed_s = completed_s - self._last_completed_s, completed_s
        changes: Sequence[SlowdownChange] = ()
        if self._watch is None:
            age = np.full(self._shape, number)
            return changes, Observation(
                *(number, plan, stage_s, layer_s, interval_s, self._unchanged, age, self._noise, true_s, None),
                *(delay_s, completed_s),
            )
        if self._ahead:
            changes, changed, age, noise, disturbed = self._ahead.popleft()
            return changes, Observation(
                *(number, plan, stage_s, layer_s, interval_s, changed, age, noise, true_s, disturbed),
                *(delay_s, completed_s),
            )
        detector = self._watch.detector
        try:
            changes = self._watch.update(cuts, stage_s, layer_s, plan_key=plan_key)
            told = detector.changed, detector.age, detector.noise, detector.disturbed
            if any(np.shape(values) != self._shape for values in told):
                self._complain(*told)
        except BaseException as error:
            self._watch = StageWatch(self._setting.baseline_s)
            self._on_detector_fault(detector, error)
            detector, changes = self._watch.detector, ()
            told = detector.changed, detector.age, detector.noise, detector.disturbed
        changed, age, noise, disturbed = told
        return changes, Observation(
            *(number, plan, stage_s, layer_s, interval_s, changed, age, noise, true_s, disturbed),
            *(delay_s, completed_s),
        )

    def _complain(self, *told: Any) -> None:
        for name, values in zip(("changed", "age", "noise", "disturbed"), told, strict=True):
            if np.shape(values) != self._shape:
                raise ValueError(f"its {name} has shape {np.shape(values)}, not {self._shape}")

    def decide(self, observation: Observation) -> Decision | None:
        """Ask the policy; returns a decision to be carried out, or None."""
        policy, answered = self._policy, False
        try:
            if self._start_anew:
                self._start_anew = False
                policy.start(self._setting._replace(plan=self.plan))
            answer = policy.decide(observation)
            answered = True
            decision = checked_decision(answer, self._setting)
        except BaseException as error:
            self._policy = StaticPolicy()
            _leave(policy)
            self._on_policy_fault(PolicyFault(policy, error, answered))
            return None
        if decision is None or (decision.plan, decision.windows) == (self.plan, self.windows):
            return None
        return decision


def _leave(policy: Policy) -> None:
    """Tell a policy that it decides no more, if it wants to know."""
    with contextlib.suppress(Exception):  # of the user's own: it is not in force any more
        getattr(policy, "leave", lambda: None)()
