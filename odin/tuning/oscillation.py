"""What keeps a knob from going back and forth between a value that has room and the next one, which breaks the limit.

A knob with whole steps would do so for ever. So the value that broke the limit last is remembered, and not tried again
while things are as they were.
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
    with the lower value before; here it is as far below as the dead band is wide, since p95s are noisier than means. If
    the limit was broken not by a step but by a load, there is no such latency: then it is what the lower value would
    have had by proportion.

    Examples
    --------
    Three instances have room with 30 ms, the fourth breaks the limit; things change when three take 20 ms:

    >>> memory = Oscillation()
    >>> memory.tries(4, 0.030)
    >>> memory.broke(4, 0.040)
    >>> memory.keeps_from(4, 0.029), memory.keeps_from(4, 0.020)
    (True, False)
    """

    def __init__(self) -> None:
        self._value = self._tried = 0
        self._tried_from_s = self._broke_s = 0.0
        self._before_s: float | None = None
        self._patience, self._kept = _PATIENCE, 0

    def tries(self, value: int, latency_s: float) -> None:
        """A value is tried from now on, since the one before has room with this latency."""
        self._tried, self._tried_from_s = value, latency_s

    def kept(self) -> None:
        """The limit was kept: what breaks it later was not the step before."""
        self._tried = 0

    def broke(self, value: int, latency_s: float) -> None:
        """The limit was broken with this value."""
        again = value == self._value
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if again else _PATIENCE
        self._before_s = self._tried_from_s if value == self._tried else None
        self._value, self._broke_s, self._kept, self._tried = value, latency_s, 0, 0

    def keeps_from(self, value: int, latency_s: float, *, ratio: float = 1.0) -> bool:
        """Whether a value is not to be tried now.

        Parameters
        ----------
        value
            The next one.
        latency_s
            With the present one.
        ratio
            How many times longer latencies are with the next one, at most.
        """
        if value != self._value:
            return False
        before_s = self._broke_s / ratio if self._before_s is None else self._before_s
        if latency_s < BAND * before_s:
            return False
        self._kept += 1
        return self._kept <= self._patience
