"""Throughput and latency over time, in equal parts of about a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

__all__ = ["OverTime", "over_time"]

_FEWEST, _MOST = 20, 240


class OverTime(NamedTuple):
    """The middle of each part, answers per second in it, and their mean latency; ``nan`` without answers."""

    at_s: tuple[float, ...]
    throughput_hz: tuple[float, ...]
    latency_s: tuple[float, ...]


def over_time(
    finished_s: Sequence[float], latency_s: Sequence[float], *, seconds: float, counts: Sequence[int] | None = None
) -> OverTime:
    """At least 20 parts, at most 240.

    Parameters
    ----------
    finished_s, latency_s
        When each answer came, ascending from 0 on, and how long it took.
    seconds
        The whole time.
    counts
        How many requests each answered; default: one.

    Examples
    --------
    >>> over_time([1.0, 2.0, 9.5], [0.5, 0.7, 0.6], seconds=10.0, counts=[1, 4, 1]).throughput_hz[1:6]
    (0.0, 2.0, 0.0, 8.0, 0.0)
    """
    parts = min(_MOST, max(_FEWEST, math.ceil(seconds)))
    bounds_s = np.linspace(0.0, seconds, parts + 1)
    at = np.searchsorted(np.asarray(finished_s, dtype=float), bounds_s)
    at[-1] = len(finished_s)  # the last answer may come at the very end
    before = np.concatenate([[0], np.cumsum(np.ones(len(finished_s)) if counts is None else counts)])
    took_s = np.asarray(latency_s, dtype=float)
    means = [float(took_s[a:b].mean()) if b > a else math.nan for a, b in pairwise(at)]
    return OverTime(
        tuple(((bounds_s[:-1] + bounds_s[1:]) / 2).tolist()),
        tuple((np.diff(before[at]) / np.diff(bounds_s)).tolist()),
        tuple(means),
    )
