"""The one figure of a period's latencies that is held against the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

__all__ = ["STATISTICS", "StatisticName", "check_statistic", "late_allowed", "statistic_of"]

StatisticName = Literal["p95", "mean"]
STATISTICS: tuple[StatisticName, ...] = get_args(StatisticName)
_SHARE = 0.95


def check_statistic(name: str) -> None:
    """Raise ``ValueError`` for a statistic that there is not."""
    if name not in STATISTICS:
        raise ValueError(f"statistic {name!r} is unknown; choose one of {', '.join(STATISTICS)}")


def statistic_of(latencies_s: Sequence[float], name: str = "p95") -> float:
    """The 95th percentile, one of the values (nearest rank), or the mean; ``nan`` without values.

    DNNScaler (arXiv 2308.13803) is about the p95. Its published code takes the mean of the last 20 (batches) or 100
    (instances) latencies; the line with the p95 is commented out. So with ``mean`` it does what was published.

    Examples
    --------
    >>> values = [0.010] * 18 + [0.100] * 2
    >>> statistic_of(values), round(statistic_of(values, "mean"), 3)
    (0.1, 0.019)
    """
    if not latencies_s:
        return math.nan
    if name == "mean":
        return sum(latencies_s) / len(latencies_s)
    return sorted(latencies_s)[math.ceil(_SHARE * len(latencies_s)) - 1]


def late_allowed(count: int) -> int:
    """How many of so many requests may be later than the limit while their p95 keeps it.

    Examples
    --------
    >>> late_allowed(19), late_allowed(20), late_allowed(100)
    (0, 1, 5)
    """
    return count - math.ceil(_SHARE * count)
