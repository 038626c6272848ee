"""Least-loaded scheduling: from the busiest stage to the idlest, layer by layer, until it does harm."""

from __future__ import annotations

import numpy as np

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision
from odin.partitioner.policies.exploration import DEFAULT_TRIAL, EQUAL, FloatArray, Trial, TrialPolicy, shift_layer

__all__ = ["LlsPolicy", "utilisation"]


def utilisation(stage_s: FloatArray, interval_s: float) -> FloatArray:
    """Part of the time that each stage executes: v = 1 - w / (w + t), t seconds executing and w waiting per request.

    Parameters
    ----------
    stage_s
        Seconds that each stage executes per request, shape (stages,).
    interval_s
        Seconds between requests; a stage waits for what its own time leaves of them, at least 0.
    """
    with np.errstate(invalid="ignore"):
        whole_s = np.maximum(interval_s, stage_s)  # w + t
        share: FloatArray = stage_s / whole_s
    share[whole_s == 0] = 0.0  # nothing to do, and in no time
    share[np.isinf(stage_s)] = 1.0  # never done
    return share


class LlsPolicy(TrialPolicy):
    """Moves one layer from the most to the least utilised stage and looks; undoes the last move once throughput falls.

    A common technique against interference and the baseline of the ODIN paper. On a detected change:

    1. Judge the present plan.
    2. The most utilised stage that holds layers gives one to the least utilised stage; the boundaries between them
       shift. Equally utilised: the one with the longer (shorter) time, then the lower index. When both are the same
       stage, or the plan that comes out was tried in this round already (it would go in circles), it ends here.
    3. Judge the new plan. Throughput fell, by more than ``EQUAL``, against the plan before: undo and end. Otherwise
       go to 2.

    Parameters
    ----------
    trial
        Requests by which each plan is judged.
    """

    def __init__(self, *, trial: int = DEFAULT_TRIAL) -> None:
        super().__init__(trial=trial)
        self._begin()

    @property
    def name(self) -> str:
        """``lls``, with the parameter if it is not the default."""
        return "lls" if self.trial == DEFAULT_TRIAL else f"lls:trial={self.trial}"

    def _begin(self) -> None:
        self._before: Trial | None = None
        self._tried: set[Plan] = set()

    def _judge(self, trial: Trial) -> Decision | None:
        before = self._before
        if before is not None and trial.bottleneck_s > before.bottleneck_s * (1 + EQUAL):
            return Decision(before.plan, "undo", f"{trial.plan} is slower")
        self._before = trial
        self._tried.add(trial.plan)
        stage_s = trial.stage_s
        share = utilisation(stage_s, trial.interval_s)
        holding = [stage for stage, count in enumerate(trial.plan) if count > 0]
        most = max(holding, key=lambda stage: (share[stage], stage_s[stage], -stage))
        least = min(range(len(trial.plan)), key=lambda stage: (share[stage], stage_s[stage], stage))
        plan = shift_layer(trial.plan, most, least)
        if plan is None or plan in self._tried:
            return None
        return Decision(plan, "trial", f"stage {most} is busiest, stage {least} idlest")
