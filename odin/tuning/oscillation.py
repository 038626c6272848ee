"""What keeps a knob from going back and forth between a value that has room and the next one, which breaks the limit.

A knob with whole steps would do so for ever. So the value that broke the limit last is remembered with its latency, and
not tried again while things are as they were.
"""

from __future__ import annotations

from odin.tuning.dead_band import BAND

__all__ = ["Oscillation"]

_PATIENCE, _MOST_PATIENCE = 8, 128
"""Periods for which a value is not tried again although nothing seems to change, first and at most: doubled each time
that it breaks the limit again."""


class Oscillation:
    """Remembers the last value of a knob that broke the limit.

    After DNNScaler (arXiv 2308.13803), whose published code goes on once the latency is below 0.95 times what it was
    with the lower value before. Here it is compared with the value that broke the limit, which also tells of a load
    that was there then and has gone since: a latency grows at most in proportion to a batch, and to instances on the
    same cores. If what it would be by that is as far below what was seen as the dead band is wide, things have changed.

    Examples
    --------
    Three instances have room, the fourth broke the limit with 40 ms:

    >>> memory = Oscillation()
    >>> memory.broke(4, 0.040)
    >>> memory.keeps_from(4, at=3, latency_s=0.030), memory.keeps_from(4, at=3, latency_s=0.020)
    (True, False)
    """

    def __init__(self) -> None:
        self._value: int | None = None
        self._broke_s = 0.0
        self._patience, self._kept = _PATIENCE, 0

    def broke(self, value: int, latency_s: float) -> None:
        """The limit was broken with this value."""
        again = value == self._value
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if again else _PATIENCE
        self._value, self._broke_s, self._kept = value, latency_s, 0

    def keeps_from(self, value: int, *, at: int, latency_s: float) -> bool:
        """Whether a value is not to be tried now; with the present value, and the latency that it has."""
        if value != self._value or latency_s * value / at < BAND * self._broke_s:
            return False
        self._kept += 1
        return self._kept <= self._patience
