"""Plans that are weighed beside the best one: the home plan, and those that give a stage without layers one."""

from __future__ import annotations

from odin.partitioner.balance.costs import stage_times
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Setting

__all__ = ["home_plan", "with_one_layer"]

_NEAR = 0.015
"""Relative difference between plans that counts as none when the home plan is chosen."""


def home_plan(setting: Setting) -> Plan:
    """The plan to come back to: the one that serving starts with, if it is about as good undisturbed as the best one.

    A policy may start under a plan that was made for a load; then it is the best one for the baselines.

    Parameters
    ----------
    setting
        The pipeline: baselines and transfer times.
    """
    best = balance(setting.baseline_s, send_s=setting.send_s, receive_s=setting.receive_s)
    start_s = max(stage_times(setting.plan, setting.baseline_s, setting.send_s, setting.receive_s))
    return setting.plan if start_s <= best.bottleneck_s * (1 + _NEAR) else best.plan


def with_one_layer(plan: Plan, stage: int) -> list[Plan]:
    """Plans in which an empty stage has one layer of the nearest stage that has any, on either side."""
    plans = []
    for side in (range(stage - 1, -1, -1), range(stage + 1, len(plan))):
        giver = next((other for other in side if plan[other] > 0), None)
        if giver is not None:
            counts = list(plan)
            counts[giver] -= 1
            counts[stage] += 1
            plans.append(Plan(counts))
    return plans
