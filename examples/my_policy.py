"""A policy of one's own: after a detected change, layers go off the slowest stage for as long as that evens stages out.

odin simulate resnet50 --policy examples.my_policy:GreedyPolicy:step=2
"""

from __future__ import annotations

import numpy as np

from odin import Decision, Observation, Plan, Setting
from odin.partitioner.balance.exact import stage_times
from odin.partitioner.policies.exploration import shift_layer
from odin.partitioner.policies.in_flight import PlansInFlight


class GreedyPolicy:
    """Gives ``step`` layers of the slowest stage to its faster neighbour, judges by ``judge`` requests, and again."""

    name = "greedy"

    def __init__(self, *, step: int = 1, gain: float = 0.02, judge: int = 4) -> None:
        if step < 1 or judge < 1 or not 0 < gain < 1:
            raise ValueError(f"step={step}, judge={judge}, gain={gain}: at least 1 layer, 1 request, and a share")
        self.step, self.gain, self.judge = step, gain, judge

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        self.setting, self.plans = setting, PlansInFlight(setting.plan)
        self.seen_s: list[np.ndarray] | None = None  # stage times under the plan in force; None while all is well

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer with the next step, or nothing."""
        self.plans.saw(observation.plan, observation.request)
        if observation.changed.any():
            self.seen_s = []
        if self.seen_s is None or not self.plans.settled or len(observation.plan) == 1:
            return None  # requests submitted before the last decision still finish
        self.seen_s.append(observation.stage_s)
        if len(self.seen_s) < self.judge:
            return None
        decision = self.next_step(self.plans.decided, np.median(self.seen_s, axis=0))
        self.seen_s = None if decision is None else []
        if decision is not None:
            self.plans.decide(decision.plan, observation.request)
        return decision

    def next_step(self, plan: Plan, stage_s: np.ndarray) -> Decision | None:
        """The step from a plan under which stages take these times; nothing if it is not predicted to help."""
        baseline_s, send_s, receive_s = self.setting.baseline_s, self.setting.send_s, self.setting.receive_s
        usual_s = np.array([baseline_s[stage, first:last].sum() for stage, (first, last) in enumerate(plan.ranges)])
        slowdown = np.where(usual_s > 0, stage_s / np.maximum(usual_s, 1e-9), 1.0)  # an empty stage tells nothing
        times_s = baseline_s * slowdown[:, None]
        now_s = np.array(stage_times(plan, times_s, send_s, receive_s))
        slowest = int(now_s.argmax())
        faster = min({slowest - 1, slowest + 1} & set(range(len(plan))), key=lambda stage: now_s[stage])
        target = plan
        for _ in range(self.step):
            target = shift_layer(target, slowest, faster) or target
        then_s = np.array(stage_times(target, times_s, send_s, receive_s))
        # Squares: a step from one of two equally slow stages is a step, though the pipeline is as slow as before.
        if (then_s**2).sum() > (now_s**2).sum() * (1 - self.gain):
            return None
        return Decision(
            target, "move", f"stage {slowest} is slowest, stage {faster} beside it faster", float(then_s.max())
        )
