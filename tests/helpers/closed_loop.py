"""Pipelines of two and of four stages for policies in a closed loop, and what plans are worth there."""

from __future__ import annotations

import numpy as np

from odin.partitioner.balance.exact import balance, stage_times
from odin.partitioner.plan import Plan
from odin.testing import drive_policy, slowed

__all__ = ["CALM", "CALM4", "best", "bottleneck", "contend", "mean_s"]

CALM = np.tile(np.random.default_rng(3).uniform(0.5, 1.5, 18), (2, 1))
CALM4 = np.tile(np.random.default_rng(4).uniform(0.5, 1.5, 52), (4, 1))
"""Undisturbed times of layers, (stages, layers)."""


def best(times_s):
    return balance(times_s).plan


def bottleneck(plan, times_s):
    return max(stage_times(Plan(plan), times_s))


def mean_s(result, first, last):
    """Mean of the bottlenecks that a run had from one request to another."""
    return float(result.bottleneck_s[first:last].mean())


def contend(policy, requests, *, factor, **options):
    """Stage 1 gets slow, and whatever leaves the first plan slows both stages: no prediction comes true."""
    home, slow = best(CALM), slowed(CALM, {1: factor})
    running = [home]

    def times(request):
        calm = CALM if request < 100 else slow
        return calm if running[0] == home else calm * 2.5

    def watch(observation, decision):
        if decision is not None:
            running[0] = decision.plan

    options = {"in_flight": 1, "noise": 0.05, "layer_noise": 0.05} | options
    return drive_policy(policy, CALM, home, changes=times, watch=watch, requests=requests, **options)
