"""The batch by pseudo binary search, as DNNScaler looks for it."""

from __future__ import annotations

from odin.tuning.dead_band import BAND, DeadBand
from odin.tuning.oscillation import Oscillation
from odin.tuning.policy import check_range

__all__ = ["BatchSearch"]


class BatchSearch:
    """Halves the range between a batch that had room and one that broke the limit.

    After DNNScaler (arXiv 2308.13803, code nabavinejad/DNNScaler). The bounds are no proofs, since the latency of a
    batch changes with what else runs, so each restarts when the search is stuck at it: with room at the upper bound it
    becomes the lower one, and the range is open above again; over the limit at the lower bound, the same downwards.
    Two things differ from the published code. It goes back and forth for ever between two neighbours of which one has
    room and the other breaks the limit; here the lower one is kept (:class:`~odin.tuning.oscillation.Oscillation`). And
    over the limit it tries what cannot keep it: a batch takes no less than its part of a larger one, so that 25 samples
    in 100 ms mean more than 50 ms for any batch above 12, which becomes the upper bound at once.

    Parameters
    ----------
    limit_s
        Seconds that the latency is to keep.
    largest
        Largest batch; DNNScaler's is 127.
    start
        Batch to begin with.
    band
        Lower end of the dead band, as a part of the limit.

    Attributes
    ----------
    value
        The batch.

    Examples
    --------
    Each sample takes 2 ms, and 50 ms are allowed; from 42.5 ms on it is near enough:

    >>> search = BatchSearch(limit_s=0.05, largest=32)
    >>> [search.update(0.002 * search.value) for _ in range(6)]
    [17, 25, 25, 25, 25, 25]

    Something else takes half of the cores, and leaves:

    >>> [search.update(0.004 * search.value) for _ in range(4)], [search.update(0.002 * search.value) for _ in range(4)]
    ([7, 10, 12, 12], [13, 23, 23, 23])
    """

    name = "dnnscaler"

    def __init__(self, *, limit_s: float, largest: int, start: int = 1, band: float = BAND) -> None:
        self._band = DeadBand.of(limit_s=limit_s, low=band)
        self._largest = check_range("batch", start, largest)
        self._low, self._high = 1, largest
        self._oscillation = Oscillation()
        self.value = start

    def update(self, latency_s: float) -> int:
        """Take the latency (p95) of the last period; returns the batch from now on."""
        verdict = self._band.verdict(latency_s)
        if verdict == "over":
            self._shrink(latency_s)
            return self.value
        self._oscillation.kept()
        if verdict == "under":
            self._grow(latency_s)
        return self.value

    def _grow(self, latency_s: float) -> None:
        at = self.value
        if at == self._largest or self._oscillation.keeps_from(at + 1, latency_s, ratio=(at + 1) / at):
            return
        if self.value >= self._high:  # stuck at the upper bound, where there is room by now
            self._low, self._high = self.value, self._largest
        else:
            self._low = self.value
        self.value = -(-(self._low + self._high) // 2)
        self._oscillation.tries(self.value, latency_s)

    def _shrink(self, latency_s: float) -> None:
        self._oscillation.broke(self.value, latency_s)
        if self.value == 1:
            return
        keeps_at_most = int(self.value * self._band.limit_s / latency_s)
        self._high = min(self.value, keeps_at_most + 1)
        if self._high <= self._low:  # stuck at the lower bound, which breaks the limit by now
            self._low = 1
        self.value = (self._low + self._high) // 2
