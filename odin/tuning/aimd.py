"""Additive increase, multiplicative decrease: Clipper's way, the rival."""

from __future__ import annotations

from odin.tuning.dead_band import BAND, DeadBand
from odin.tuning.policy import check_range

__all__ = ["Aimd"]

_MORE, _LESS = 4, 0.9


class Aimd:
    """Four more where there is room, a tenth less over the limit.

    After Clipper (Crankshaw et al., NSDI 2017) as DNNScaler (arXiv 2308.13803) compares itself with it: +4 and x0.9,
    within the same dead band. It remembers nothing.

    Parameters
    ----------
    limit_s
        Seconds that the latency is to keep.
    largest
        Largest value of the knob.
    start
        Value to begin with.
    band
        Lower end of the dead band, as a part of the limit.
    knob
        What the knob is called in errors.

    Attributes
    ----------
    value
        The knob's.

    Examples
    --------
    >>> aimd = Aimd(limit_s=0.05, largest=32)
    >>> [aimd.update(0.003 * aimd.value) for _ in range(8)]
    [5, 9, 13, 17, 15, 15, 15, 15]
    """

    name = "aimd"

    def __init__(
        self, *, limit_s: float, largest: int, start: int = 1, band: float = BAND, knob: str = "batch"
    ) -> None:
        self._band = DeadBand.of(limit_s=limit_s, low=band)
        self._largest = check_range(knob, start, largest)
        self.value = start

    def update(self, latency_s: float) -> int:
        """Take the latency (p95) of the last period; returns the knob's value from now on."""
        verdict = self._band.verdict(latency_s)
        if verdict == "under":
            self.value = min(self._largest, self.value + _MORE)
        elif verdict == "over":
            self.value = max(1, int(_LESS * self.value))
        return self.value
