"""Pipelines of two and of four stages for policies in a closed loop, and what plans are worth there."""

from __future__ import annotations

import numpy as np

from odin.partitioner.balance.exact import balance, stage_times
from odin.partitioner.plan import Plan

__all__ = ["CALM", "CALM4", "best", "bottleneck", "mean_s"]

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
