"""Whether others will come who could have a request's place without having to wait for it.

When far more is offered than can be served, somebody else comes before the place is free. Who is taken then had best be
who has waited least: nearly all of its time is left for what may go wrong. With ``gap_s`` between requests that are
refused, and which would have been in time had they not had to wait::

    wait_s > 3 * gap_s      three more come on average before it would begin: one at least, with 95% (Poisson)

Only refusals count, so that where all find room nobody is chosen from; twice as many requests as can be served give
half as many refusals as requests.
"""

from __future__ import annotations

import math

__all__ = ["Crowd"]

_ENOUGH = 3.0
"""So many are to come before a place is free: with fewer it stays empty too often."""
_WEIGHT = 0.05
"""Of the latest gap in the mean: some twenty are remembered."""


class Crowd:
    """Those who find no room.

    Examples
    --------
    >>> crowd = Crowd()
    >>> for at_s in (1.0, 1.5, 2.0):
    ...     crowd.turned_away(at_s)
    >>> crowd.fills(2.0, wait_s=1.6), crowd.fills(2.0, wait_s=1.4)
    (True, False)
    >>> crowd.fills(4.0, wait_s=1.6)
    False
    """

    def __init__(self) -> None:
        self._gap_s, self._last_s = math.inf, -math.inf

    def turned_away(self, now_s: float) -> None:
        """A request is refused that would have been in time without waiting."""
        gap_s, self._last_s = now_s - self._last_s, now_s
        self._gap_s = gap_s if self._gap_s == math.inf else self._gap_s + _WEIGHT * (gap_s - self._gap_s)

    def fills(self, now_s: float, wait_s: float) -> bool:
        """Whether others will come before a place is free that is free in so many seconds."""
        return wait_s > _ENOUGH * max(self._gap_s, now_s - self._last_s)
