"""How long an action will take: typically, and hardly ever longer, at an executor's present slowdown.

As in Clockwork (Gujarati et al., OSDI 2020), durations are stored as without interference, divided by the executor's
slowdown when they were measured (there: by the clock rate), and used times its slowdown now: so an estimate holds
beside a program that shares the core, from the first runs on that it slows down.

::

    slowdown of an executor   median of its last runs: measured / baseline
    a run, typically          median of the model's last ten, or its baseline  x slowdown
    a load, typically         constant + bytes / rate, by medians              x slowdown   (bytes: 0 if in memory)
    hardly ever longer        typically x the 99th percentile of actual / typical of the last 200 runs (or loads)

Clockwork takes the 99th percentile of each model's last ten runs, which is their largest: the next one exceeds that
once in eleven times if they are alike. Of many models most have fewer measurements, and one exceeds its only one every
second time. By how much actions exceed what is typical is much the same for all models, so that it is measured of all
together.

What is older than a minute is not known any more, and by how much actions exceed only for ten seconds: an outlier must
not keep out for long what is refused because of it.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Estimates", "ModelFacts", "percentile_99"]

_WINDOW = 10
_ACTIONS = 200
_RECENT_S, _KNOWN_S = 10.0, 60.0
_SLOWDOWN_RUNS, _SLOWDOWN_AGE_S = 5, 5.0
_CONSTANT_S, _RATE_NBYTES_S = 0.005, 400e6
"""Until loads were measured."""
_LEAST_S = 1e-6


class ModelFacts(NamedTuple):
    """What a scheduler knows of a model from its file.

    Attributes
    ----------
    nbytes
        That it takes in memory.
    baseline_s
        Seconds of a run alone, by samples, ascending.
    code
        What it shares with all models of its architecture.
    """

    nbytes: int
    baseline_s: tuple[tuple[int, float], ...]
    code: str = ""

    def baseline_of(self, samples: int) -> float:
        """Seconds of a run of so many samples: between and beyond those measured in proportion."""
        (before, before_s), *others = self.baseline_s
        if samples <= before:
            return before_s
        for size, size_s in others:
            if samples <= size:
                return before_s + (size_s - before_s) * (samples - before) / (size - before)
            before, before_s = size, size_s
        return before_s * samples / before


def percentile_99(values: Iterable[float]) -> float:
    """Value below which 99% lie, between neighbours in proportion; close to the largest of ten.

    Examples
    --------
    >>> round(percentile_99([1.0] * 9 + [2.0]), 2)
    1.91
    """
    ordered = sorted(values)
    at = 0.99 * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


class _Window:
    """The last ten measurements of one quantity; asked far more often than added to."""

    __slots__ = ("_last_s", "_measured", "_median")

    def __init__(self) -> None:
        self._measured: deque[float] = deque(maxlen=_WINDOW)
        self._last_s, self._median = -math.inf, math.nan

    def add(self, value: float, now_s: float) -> None:
        self._measured.append(value)
        self._last_s, self._median = now_s, statistics.median(self._measured)

    def typical(self, now_s: float, default: float) -> float:
        return self._median if now_s - self._last_s <= _KNOWN_S else default


class _Spread:
    """Actual / typical of the last actions of a kind, whatever their models: what is hardly ever exceeded."""

    __slots__ = ("_factor", "_ordered", "_ratios")

    def __init__(self) -> None:
        self._ratios: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []
        self._factor = 1.0

    def add(self, ratio: float, now_s: float) -> None:
        self._ratios.append((now_s, ratio))
        bisect.insort(self._ordered, ratio)
        self._forget(now_s)
        self._factor = max(1.0, percentile_99(self._ordered))

    def factor(self, now_s: float) -> float:
        if self._ratios and now_s - self._ratios[0][0] > _RECENT_S:
            self._forget(now_s)
            self._factor = max(1.0, percentile_99(self._ordered)) if self._ordered else 1.0
        return self._factor

    def _forget(self, now_s: float) -> None:
        while self._ratios and (len(self._ratios) > _ACTIONS or now_s - self._ratios[0][0] > _RECENT_S):
            _, old = self._ratios.popleft()
            del self._ordered[bisect.bisect_left(self._ordered, old)]


class Estimates:
    """What was measured of late, of models, loads and executors.

    Parameters
    ----------
    executors
        How many there are.
    """

    def __init__(self, executors: int) -> None:
        self._runs: dict[tuple[int, int], _Window] = {}
        self._ratios: list[deque[float]] = [deque(maxlen=_SLOWDOWN_RUNS) for _ in range(executors)]
        self._slowdowns = [(-math.inf, 1.0)] * executors  # and when it was measured
        self._constant_s, self._first_s, self._s_per_byte, self._evict_s = _Window(), _Window(), _Window(), _Window()
        self._run_spread, self._load_spread = _Spread(), _Spread()

    # -- executors ----------------------------------------------------------------------------------------------------

    def slowdown(self, executor: int, now_s: float) -> float:
        """Time now / baseline, at least 1.0; that as well after some seconds without a run."""
        at_s, slowdown = self._slowdowns[executor]
        return slowdown if now_s - at_s <= _SLOWDOWN_AGE_S else 1.0

    def forget(self, executor: int) -> None:
        """Another process takes its place."""
        self._ratios[executor].clear()
        self._slowdowns[executor] = -math.inf, 1.0

    def _note_ratio(self, executor: int, ratio: float, now_s: float) -> None:
        ratios = self._ratios[executor]
        if now_s - self._slowdowns[executor][0] > _SLOWDOWN_AGE_S:
            ratios.clear()
        ratios.append(ratio)
        self._slowdowns[executor] = now_s, max(1.0, statistics.median(ratios))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def run_factor(self, now_s: float) -> float:
        """So many times its typical seconds a run hardly ever exceeds."""
        return self._run_spread.factor(now_s)

    def typical_run_s(self, model: int, facts: ModelFacts, samples: int, now_s: float) -> float:
        """Without interference: the median of the model's last ones, or its baseline."""
        window = self._runs.get((model, samples))
        baseline_s = facts.baseline_of(samples)
        return baseline_s if window is None else window.typical(now_s, baseline_s)

    def ran(self, executor: int, model: int, facts: ModelFacts, samples: int, took_s: float, now_s: float) -> None:
        """Learn from a run that has ended."""
        typical_s = self.typical_run_s(model, facts, samples, now_s) * self.slowdown(executor, now_s)
        self._run_spread.add(took_s / typical_s, now_s)
        self._note_ratio(executor, took_s / facts.baseline_of(samples), now_s)
        window = self._runs.setdefault((model, samples), _Window())
        window.add(max(_LEAST_S, took_s / self.slowdown(executor, now_s)), now_s)

    # -- loads and evictions ------------------------------------------------------------------------------------------

    def load_factor(self, now_s: float) -> float:
        """So many times its typical seconds a load hardly ever exceeds."""
        return self._load_spread.factor(now_s)

    def typical_load_s(self, nbytes: int, now_s: float, *, first: bool = False) -> float:
        """Of so many bytes from disk without interference, by medians; ``first`` of its architecture there."""
        constant_s = self._constant_s.typical(now_s, _CONSTANT_S)
        if first:
            constant_s = max(constant_s, self._first_s.typical(now_s, constant_s))
        return constant_s + nbytes * self._s_per_byte.typical(now_s, 1 / _RATE_NBYTES_S)

    def loaded(self, executor: int, nbytes: int, read_s: float, bind_s: float, now_s: float, *, first: bool) -> None:
        """Learn from a load that has ended.

        Parameters
        ----------
        nbytes
            That were read from disk.
        read_s, bind_s
            Seconds that reading took, and all else.
        first
            Whether it was the first of its architecture there.
        """
        slowdown = self.slowdown(executor, now_s)
        typical_s = self.typical_load_s(nbytes, now_s) * slowdown
        if not first:  # which are few, and unlike the others
            self._load_spread.add((read_s + bind_s) / typical_s, now_s)
        (self._first_s if first else self._constant_s).add(bind_s / slowdown, now_s)
        if nbytes > 0:
            self._s_per_byte.add(read_s / slowdown / nbytes, now_s)

    def evict_s(self, now_s: float) -> float:
        """Seconds of an eviction without interference."""
        return self._evict_s.typical(now_s, 1e-3)

    def evicted(self, executor: int, took_s: float, now_s: float) -> None:
        """Learn from an eviction that has ended."""
        self._evict_s.add(took_s / self.slowdown(executor, now_s), now_s)
