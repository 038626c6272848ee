"""Verification: one scalar per plan, how much slower it is than predicted.

Stages that share caches, memory or a core slow each other down, so a plan may be worse than its layers' times say. What
is measured under a plan holds that already; predictions for another plan q, made under plan p, are corrected by

    error[q] - error[p]        logarithms; 0 for the home plan

The first requests under a plan tell whether its prediction came true.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan

__all__ = ["OWN_EFFECT", "PlanErrors"]

FloatArray = NDArray[np.float64]

_REQUESTS = 6
"""Requests under a new plan that are compared with its prediction: few, as a bad plan costs with each of them."""
OWN_EFFECT = 3
"""What changes within so many requests under a new plan is taken for that plan's effect."""
_HALF_LIFE = 2048.0
"""Requests after which half of an error is forgotten: whoever shares the machine may be gone."""
_OWN = 0.001
"""Probability, before anything was seen, that a plan slows its own stages: one in 1,000."""
_NEAR = 0.1
"""What a stage may be off for other reasons: layers that it did not run before."""
_CERTAINTY = 2.0
"""Standard errors of what noise explains, which is no error of the plan."""


class PlanErrors:
    """What is known of how wrong predictions of plans are.

    Parameters
    ----------
    home
        The plan that others are compared with.
    """

    def __init__(self, home: Plan) -> None:
        self._home = home
        self._errors: dict[Plan, float] = {}
        self._request = 0
        self._before = self._after = home
        self._predicted_s = self._survival = np.zeros(len(home))
        self._stage_s: list[FloatArray] = []
        self._unchanged = 0.0

    def of(self, plan: Plan) -> float:
        """Logarithm of its time over the predicted one; of a plan not tried yet as of those tried, but nearer to 0."""
        if plan == self._home:
            return 0.0
        return self._errors.get(plan, sum(self._errors.values()) / (len(self._errors) + 1))

    @property
    def too_early(self) -> bool:
        """Whether a plan is being compared, and what is seen cannot be told from its own effect yet."""
        return self._unchanged > 0 and len(self._stage_s) < OWN_EFFECT

    def begin(self, before: Plan, after: Plan, predicted_s: FloatArray, survival: FloatArray, noise: float) -> None:
        """Requests finish under another plan from the next one on; judge the former by what was seen of it.

        Parameters
        ----------
        before, after
            The plans.
        predicted_s
            Seconds of each stage under the new one, transfers included, without corrections, by what was seen under the
            old one, shape (stages,).
        survival
            Probability that nothing else changes on each stage in the first ``OWN_EFFECT`` requests under it, shape
            (stages,): the plan's own effect is the likelier, the more stages are off and the less they change else.
        noise
            As for :meth:`take`.
        """
        if len(self._stage_s) == 1:  # one request, as of a probe, tells nothing: compare with the plan before it
            before = self._before
        elif self._unchanged:
            self._judge(noise)
        self._before, self._after, self._predicted_s, self._survival = before, after, predicted_s, survival
        self._stage_s, self._unchanged = [], float(before != after)

    def take(self, request: int, stage_s: FloatArray, renewed: FloatArray, noise: float) -> bool:
        """Take one request's seconds per stage, transfers included; return whether an error was learned.

        Parameters
        ----------
        request
            Its number.
        stage_s
            Shape (stages,).
        renewed
            Probability that each stage's conditions changed with it, shape (stages,).
        noise
            Standard deviation of the logarithm of a stage's time.
        """
        kept, self._request = math.exp2((self._request - request) / _HALF_LIFE), request
        self._errors = {plan: kept * error for plan, error in self._errors.items()}
        if not self._unchanged:
            return False
        self._stage_s.append(stage_s)
        if len(self._stage_s) > OWN_EFFECT:
            self._unchanged *= 1.0 - float(renewed.max())
        return len(self._stage_s) >= _REQUESTS and self._judge(noise)

    def _judge(self, noise: float) -> bool:
        """Learn by how much the plan was longer than predicted, if nothing else explains that; whether it was seen."""
        unchanged, self._unchanged = self._unchanged, 0.0
        measured_s = np.mean(self._stage_s, axis=0)
        good = (measured_s > 0) & (measured_s < np.inf) & (self._predicted_s > 0)
        if not good.any():
            return False
        measured_s, predicted_s = measured_s[good], self._predicted_s[good]
        by_noise = _CERTAINTY * noise / math.sqrt(len(self._stage_s))
        wrong = np.abs(np.log(measured_s / predicted_s)) > by_noise + _NEAR
        weight, off = unchanged, 0.0  # where a prediction came true nothing else need have happened
        if wrong.any():
            weight *= _OWN / (_OWN + float(np.prod(1.0 - self._survival[good][wrong])))
            off = math.log(measured_s.max() / predicted_s.max())
            off = math.copysign(max(abs(off) - by_noise, 0.0), off)
        # off = error[after] - error[before]: of the two that of the plan away from home is learned.
        plan, error = self._after, self.of(self._before) + off
        if self._after == self._home:
            plan, error = self._before, -off
        error = max(error, 0.0)  # no plan makes stages faster: what did was a disturbance's end
        self._errors[plan] = self.of(plan) + weight * (error - self.of(plan))
        return True
