"""The policy of pipelines that know of each other: they are planned together over the devices that they share.

Two models on the same cores are each other's interference. Each for itself would move away from the other, and the
other after it. Here one planner (:mod:`odin.partitioner.policies.joint_planner`) has what each of them measures, and
says where the layers of all are best; each moves there with its next finished request.

Pipelines of one process are planned together if they have this policy and share a device. A pipeline that is alone is
planned for itself.
"""

from __future__ import annotations

import math

from odin.partitioner.policies.base import Decision, Observation, Setting, not_started
from odin.partitioner.policies.joint_planner import JointPlanner, Member, TenantPlan

__all__ = ["TogetherPolicy"]

_OF_THIS_PROCESS = JointPlanner()


class TogetherPolicy:
    """Moves to the plan that is best for all pipelines on the same devices.

    Parameters
    ----------
    min_gain
        Least predicted gain for which layers move, 0.03 is 3% of the load of the device that is fullest.
    certainty
        Standard errors by which the gain must exceed 0.
    weight
        Requests per second to plan for, relative to those of the others; 0: as many as are measured.
    planner
        Shared by those that are planned together; default: one of this process.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """

    def __init__(
        self,
        *,
        min_gain: float = 0.03,
        certainty: float = 2.0,
        weight: float = 0.0,
        planner: JointPlanner | None = None,
    ) -> None:
        if not 0 <= min_gain < 1:
            raise ValueError(f"min_gain is {min_gain}; it is a part, such as 0.03, at least 0, below 1")
        if not 0 < certainty < math.inf:
            raise ValueError(f"certainty is {certainty}; give standard errors above 0, such as 2")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight is {weight}; give requests per second, or 0 for as many as are measured")
        self.min_gain, self.certainty, self.weight = min_gain, certainty, weight
        self._given_planner = planner
        self._planner = planner or JointPlanner()
        self._member: Member | None = None

    @property
    def name(self) -> str:
        """``together``, with those parameters that are not the default."""
        defaults = {"min_gain": 0.03, "certainty": 2.0, "weight": 0.0}
        given = [f"{key}={getattr(self, key)}" for key, value in defaults.items() if getattr(self, key) != value]
        return "together" + (":" + ",".join(given) if given else "")

    @property
    def together(self) -> tuple[TenantPlan, ...]:
        """Those that this pipeline was planned with last, itself among them; a new tuple when that changes."""
        return () if self._member is None else self._member.together

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline.

        Raises
        ------
        ValueError
            If this object plans for another pipeline, which has not left.
        """
        known = None if self._member is None else self._member.measures
        if known is not None and known.setting.baseline_s is not setting.baseline_s:
            raise ValueError(
                f"this object of policy {self.name} plans for another pipeline, {known.tenant.name}: give each its "
                f"own, or the text {self.name!r}"
            )
        setting.plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
        self.leave()
        alone = JointPlanner() if setting.tenant is None else _OF_THIS_PROCESS
        self._planner = self._given_planner or alone
        self._member = Member(setting, self.weight)
        self._planner.join(self._member)

    def leave(self) -> None:
        """The pipeline ends, or has another policy: the others are planned without it. Idempotent."""
        if self._member is not None:
            self._planner.leave(self._member)
            self._member = None

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the plan to move to, or nothing.

        Raises
        ------
        ValueError
            If the policy was not started.
        """
        member, planner = self._member, self._planner
        if member is None:
            raise not_started(self)
        with planner.lock:
            planner.take(member, observation, min_gain=self.min_gain, certainty=self.certainty)
            wanted = member.wanted
            if wanted is None or wanted.plan == member.plans.decided:
                return None
            member.plans.decide(wanted.plan, observation.request)
        return Decision(wanted.plan, "move", wanted.why)
