"""The dead band: latencies just below the limit are left as they are."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal, NamedTuple

__all__ = ["BAND", "DeadBand", "Verdict", "check_limit"]

BAND = 0.85
"""DNNScaler's: a latency from 0.85 times the limit to the limit is near enough."""

Verdict = Literal["under", "within", "over"]


def check_limit(limit_s: Any) -> float:
    """Return a latency limit as a number; ``ValueError`` if it is no positive number of seconds."""
    known = isinstance(limit_s, Real) and not isinstance(limit_s, bool)
    if not known or not 0 < limit_s < math.inf:
        told = f"{limit_s:g}" if known else repr(limit_s)
        raise ValueError(f"a latency limit of {told} s is no positive number of seconds; give such as 0.05")
    return float(limit_s)


class DeadBand(NamedTuple):
    """Judges a latency: over the limit, far under it, or within the band between.

    ``low * limit_s <= latency <= limit_s`` is within (DNNScaler, arXiv 2308.13803).

    Attributes
    ----------
    limit_s
        Seconds that the latency is to keep.
    low
        Lower end of the band, as a part of the limit.

    Examples
    --------
    >>> band = DeadBand.of(limit_s=0.1)
    >>> [band.verdict(latency_s) for latency_s in (0.05, 0.085, 0.1, 0.11)]
    ['under', 'within', 'within', 'over']
    """

    limit_s: float
    low: float = BAND

    @classmethod
    def of(cls, *, limit_s: float, low: float = BAND) -> DeadBand:
        """Check and make one.

        Raises
        ------
        ValueError
            If the limit is no positive number of seconds, or the band does not lie within 0 to 1.
        """
        limit_s = check_limit(limit_s)
        if not 0 < low <= 1:
            raise ValueError(f"a dead band from {low:g} of the limit on is not within 0 to 1; DNNScaler's is {BAND}")
        return cls(limit_s, low)

    def verdict(self, latency_s: float) -> Verdict:
        """Where a latency lies."""
        if latency_s > self.limit_s:
            return "over"
        return "under" if latency_s < self.low * self.limit_s else "within"
