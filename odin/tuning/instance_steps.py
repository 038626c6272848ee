"""The number of instances, one more or one less at a time, as DNNScaler moves it."""

from __future__ import annotations

from odin.tuning.dead_band import BAND, DeadBand
from odin.tuning.oscillation import Oscillation
from odin.tuning.policy import check_range

__all__ = ["InstanceSteps"]


class InstanceSteps:
    """One instance more where there is room, one less over the limit.

    After DNNScaler (arXiv 2308.13803, code nabavinejad/DNNScaler). There the number to begin with comes from a matrix
    completion: the latencies of this network with two numbers of instances, and those of 17 other networks with all.
    Without such a library it comes from two probes (:mod:`odin.tuning.prediction`).

    Parameters
    ----------
    limit_s
        Seconds that the latency is to keep.
    largest
        Most instances; DNNScaler's are 10.
    start
        Number to begin with.
    band
        Lower end of the dead band, as a part of the limit.
    free
        Up to so many have a core each, so that one more is no reason for longer latencies: it is also tried within the
        dead band.

    Attributes
    ----------
    value
        The number of instances.

    Examples
    --------
    With each instance more a request takes 10 ms longer; 50 ms are allowed, and 40 are too few:

    >>> steps = InstanceSteps(limit_s=0.045, largest=8)
    >>> [steps.update(0.005 + 0.01 * steps.value) for _ in range(4)]
    [2, 3, 4, 4]

    Neighbours of which one has room and the other breaks the limit:

    >>> steps = InstanceSteps(limit_s=0.038, largest=8, start=2)
    >>> [steps.update(0.01 * steps.value) for _ in range(6)]
    [3, 4, 3, 3, 3, 3]
    """

    name = "dnnscaler"

    def __init__(self, *, limit_s: float, largest: int, start: int = 1, band: float = BAND, free: int = 1) -> None:
        self._band = DeadBand.of(limit_s=limit_s, low=band)
        self._largest = check_range("instances", start, largest)
        self._free = max(1, free)
        self._oscillation = Oscillation()
        self.value = start

    def update(self, latency_s: float) -> int:
        """Take the latency (p95) of the last period; returns the number of instances from now on."""
        verdict, at = self._band.verdict(latency_s), self.value
        if verdict == "over":
            self._oscillation.broke(at, latency_s)
            self.value = max(1, at - 1)
            return self.value
        self._oscillation.kept()
        has_room = verdict == "under" or at < self._free
        ratio = max(self._free, at + 1) / max(self._free, at)
        if has_room and at < self._largest and not self._oscillation.keeps_from(at + 1, latency_s, ratio=ratio):
            self.value = at + 1
            self._oscillation.tries(self.value, latency_s)
        return self.value
