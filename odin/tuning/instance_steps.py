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

    def __init__(self, *, limit_s: float, largest: int, start: int = 1, band: float = BAND) -> None:
        self._band = DeadBand.of(limit_s=limit_s, low=band)
        self._largest = check_range("instances", start, largest)
        self._oscillation = Oscillation()
        self.value = start

    def update(self, latency_s: float) -> int:
        """Take the latency (p95) of the last period; returns the number of instances from now on."""
        verdict = self._band.verdict(latency_s)
        at = self.value
        if verdict == "over":
            self._oscillation.broke(at, latency_s)
            self.value = max(1, at - 1)
        elif verdict == "under" and at < self._largest and self._may_try(at + 1, latency_s):
            self.value = at + 1
        return self.value

    def _may_try(self, value: int, latency_s: float) -> bool:
        return not self._oscillation.keeps_from(value, at=self.value, latency_s=latency_s)
