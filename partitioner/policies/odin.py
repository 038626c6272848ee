"""The exploration of the ODIN paper: from the slowest stage toward the lighter side, until nothing helps any more."""

from __future__ import annotations

from odin.partitioner.policies.base import Decision
from odin.partitioner.policies.exploration import DEFAULT_TRIAL, EQUAL, FloatArray, Trial, TrialPolicy, shift_layer

__all__ = ["OdinPolicy"]


class OdinPolicy(TrialPolicy):
    """Moves layers off the slowest stage and looks; settles on the best plan seen after ``alpha`` moves without gain.

    After Soomro, Papadopoulou, Pericas: ODIN: Overcoming Dynamic Interference in iNference Pipelines, Euro-Par 2023.
    *Reconstructed from published descriptions*, not from the authors' code; ties and tolerances are ours. On a
    detected change:

    1. Judge the present plan; it is the best so far.
    2. Take the slowest stage that holds layers. Sum the stage times on its left and on its right and go toward the
       side with the smaller sum (equal: left; at an end of the pipeline there is only one side). Move one layer to the
       stage with the least time on that side (equal: the nearest); boundaries between shift.
    3. Judge the new plan, by ``bottleneck_s`` of its trial against the best one's:

       - better by more than ``EQUAL``: it is the best now, and failures count from 0 again;
       - equal within ``EQUAL``: a failure; the next move is the same once more, to leave the plateau;
       - worse: a failure.

    4. At ``alpha`` failures return to the best plan, else go on from the present one with 2.

    Parameters
    ----------
    alpha
        Moves without gain before it stops, at least 1; 2 and 10 in the paper.
    trial
        Requests by which each plan is judged.
    """

    def __init__(self, *, alpha: int = 10, trial: int = DEFAULT_TRIAL) -> None:
        super().__init__(trial=trial)
        if alpha < 1:
            raise ValueError(f"alpha is {alpha}; at least 1 move without gain must be allowed, the paper has 2 and 10")
        self.alpha = alpha
        self._begin()

    @property
    def name(self) -> str:
        """``odin:alpha=10``, with ``trial`` if it is not the default."""
        return f"odin:alpha={self.alpha}" + ("" if self.trial == DEFAULT_TRIAL else f",trial={self.trial}")

    def _begin(self) -> None:
        self._best: Trial | None = None
        self._failures = 0
        self._move = (0, 0)  # stage that gave the last layer, stage that got it

    def _judge(self, trial: Trial) -> Decision | None:
        plateau = False
        if self._best is None or trial.bottleneck_s < self._best.bottleneck_s / (1 + EQUAL):
            self._best, self._failures = trial, 0
        else:
            self._failures += 1
            if self._failures >= self.alpha:
                return self._settle(trial, self._best)
            plateau = trial.bottleneck_s <= self._best.bottleneck_s * (1 + EQUAL)
        plan = shift_layer(trial.plan, *self._move) if plateau else None
        if plan is not None:
            return Decision(plan, "trial", "as fast as the best, one more the same way")
        slowest = max(
            (stage for stage, count in enumerate(trial.plan) if count > 0), key=lambda stage: trial.stage_s[stage]
        )
        self._move = slowest, _lightest_beside(trial.stage_s, slowest)
        plan = shift_layer(trial.plan, *self._move)
        assert plan is not None  # there are two stages at least, and the slowest one holds layers
        return Decision(plan, "trial", f"stage {slowest} is slowest, stage {self._move[1]} the lightest beside it")

    def _settle(self, trial: Trial, best: Trial) -> Decision | None:
        if trial.plan == best.plan:
            return None
        return Decision(best.plan, "settle", f"best seen, {self._failures} moves without gain")


def _lightest_beside(stage_s: FloatArray, slowest: int) -> int:
    """Stage with the least time on the lighter side of the slowest one."""
    left, right = range(slowest - 1, -1, -1), range(slowest + 1, len(stage_s))  # the nearest first
    left_s, right_s = stage_s[:slowest].sum(), stage_s[slowest + 1 :].sum()
    side = left if left and (not right or left_s <= right_s) else right
    return min(side, key=lambda stage: stage_s[stage])
