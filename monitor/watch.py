"""Watching the stages: from each finished request's times to slowdowns, and to when they change.

Sample of stage i::

    x_i = ln(stage_s_i / reference_i)        reference_i = sum over its layers l of baseline_s[i, l] * relative[l]

``relative[l]`` is how layer l's time compares with its baseline, against its stage as a whole, learned while nothing
disturbs the stage. Without it every error of a baseline would look like a change of slowdown when the layer moves.

Layers are those that the request ran on the stage. Under a fixed plan they change with the plan, which is a jump that
the detector is told of (``rebase``); where requests change hands at cuts of their own (:mod:`odin.partitioner.relay`)
they are others each time, which is none.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.detectors import CusumDetector, Detector

__all__ = ["SlowdownChange", "StageWatch"]

FloatArray = NDArray[np.float64]

_LEAST_S = 1e-9
"""For layers that take no time that a clock can see."""
_LEARNING_RATE = 0.05
_SETTLED, _LOOKS = 16, 4
"""Requests after a change in which a level becomes clearer; later every fourth is looked at: is it notable still?"""
_REFRESH = 16
"""Requests that are learned from at once; the reference changes slowly."""
_FASTER, _FASTER_BLOCKS = 0.85, 4
"""A stage that takes less than that part of its baseline, in the median of so many blocks of requests in a row, shows
that the baseline is too long: nothing makes layers faster than they are alone."""

_LEAST_WORK, _WORK_RATE = 0.5, 0.05
"""Where requests change hands at cuts of their own, a sample takes that part of a stage's usual work, if need be of
several requests; and the rate at which what is usual follows."""
_SAMPLED = 256
"""Requests of which it is known which stages had a sample, to tell a change's age in requests."""


class SlowdownChange(NamedTuple):
    """A stage's slowdown changed.

    Attributes
    ----------
    state
        ``onset`` (undisturbed before), ``end`` (undisturbed now) or ``change`` (disturbed before and now).
    slowdown
        Time now / undisturbed time.
    age
        Requests since it began, as far as can be told, the present one included.
    """

    stage: int
    state: Literal["onset", "change", "end"]
    slowdown: float
    age: int


class StageWatch:
    """Gives a detector the stages' times, and reports its changes.

    Parameters
    ----------
    baseline_s
        Seconds of each layer on each stage's device with nothing else running, shape (stages, layers).
    detector
        One stream per stage; default :class:`~odin.monitor.detectors.CusumDetector`.
    notable
        Slowdown from which a stage is told to be disturbed, > 1; it ends below 1 + half of what is above 1. Smaller
        ones are mostly the stages' effect on each other, through shared caches, memory and hyper-threads. They count
        for the detector, and so for policies, all the same.

    Attributes
    ----------
    faster
        Time / baseline of each stage that has been clearly faster than its baseline for long, ``nan`` of all others,
        shape (stages,): such a baseline was measured while something else ran.
    any_faster
        Whether there is such a stage.

    Raises
    ------
    ValueError
        If the baselines are no matrix of seconds.
    """

    def __init__(
        self,
        baseline_s: ArrayLike,
        detector: Detector | None = None,
        *,
        notable: float = 1.3,
    ) -> None:
        given_s = np.asarray(baseline_s, dtype=np.float64)
        if given_s.ndim != 2 or not (given_s >= 0).all():
            raise ValueError(f"baseline_s of shape {given_s.shape}: give seconds >= 0, shape (stages, layers)")
        self._baseline_s = np.maximum(given_s, _LEAST_S)
        stages, layers = self._baseline_s.shape
        self.detector: Detector = CusumDetector(stages) if detector is None else detector
        if not notable > 1:
            raise ValueError(f"notable is {notable}; it is a slowdown above 1, such as 1.3")
        self._onset_level, self._end_level = np.log(notable), np.log((1 + notable) / 2)
        self._told: NDArray[np.bool_] = np.zeros(stages, dtype=np.bool_)
        self._any_told = False
        self._since_change = 0
        self._rows, self._layers = np.arange(stages), np.arange(layers)
        self._relative = np.ones(layers)
        self._prefix_s = np.zeros((stages, layers + 1))
        self._cuts: tuple[int, ...] = ()
        self._plan_key: Hashable = None
        self._first: NDArray[np.int64] = np.zeros(stages, dtype=np.int64)
        self._last: NDArray[np.int64] = np.zeros(stages, dtype=np.int64)
        self._varies = False  # whether requests of one plan had other cuts
        self._usual_s, self._gathered = np.zeros(stages), np.zeros((2, stages))
        self._sampled: deque[NDArray[np.bool_]] = deque(maxlen=_SAMPLED)
        self._disturbed: NDArray[np.bool_] = self.detector.disturbed
        self._faster = np.zeros(stages, dtype=np.int64)  # blocks in a row
        self.faster: FloatArray = np.full(stages, np.nan)
        self.any_faster = False
        self._to_learn: list[tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.int64]]] = []
        self._refresh()

    @property
    def reference_s(self) -> FloatArray:
        """Seconds that each stage's latest layers take by their references, before its own undisturbed level."""
        reference_s: FloatArray = self._prefix_s[self._rows, self._last] - self._prefix_s[self._rows, self._first]
        return reference_s

    def update(
        self,
        cuts: Sequence[int],
        stage_s: FloatArray,
        layer_s: FloatArray,
        *,
        plan_key: Hashable | None = None,
    ) -> list[SlowdownChange]:
        """Take one finished request.

        Parameters
        ----------
        cuts
            The stages + 1 cuts that it ran under, from 0 to the number of layers.
        stage_s
            Wall seconds of each stage in its layers, shape (stages,).
        layer_s
            Seconds of each layer, shape (layers,); ``nan`` where not measured.
        plan_key
            What is equal for all requests of one plan, such as its epoch; where it changes, layers have moved. None:
            the cuts themselves.

        Returns
        -------
        list of SlowdownChange
            Mostly empty.
        """
        cuts = tuple(cuts)
        key = cuts if plan_key is None else plan_key
        if key != self._plan_key:
            self._adopt(cuts, key)
        elif cuts != self._cuts:
            self._set_cuts(cuts)
            self._varies = True
        ratio = stage_s / self._divisor_s
        told = self._gather(stage_s) if self._varies else ratio
        if told.dot(told) < math.inf and np.minimum.reduce(told) > 0.0:
            x = np.log(told)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.log(told)
            x[~np.isfinite(x)] = np.nan  # empty stages
        self.detector.update(x)
        self._to_learn.append((ratio, layer_s, self._disturbed, self._last))
        if len(self._to_learn) == _REFRESH:
            self._learn()
            self._refresh()
        self._disturbed = self.detector.disturbed
        if not (self._any_told or np.count_nonzero(self._disturbed)):
            return []
        self._since_change += 1
        if np.count_nonzero(self.detector.changed):
            self._since_change = 0
        elif self._since_change > _SETTLED and self._since_change % _LOOKS:
            return []  # levels move slowly by now
        return self._changes()

    def _adopt(self, cuts: tuple[int, ...], plan_key: Hashable) -> None:
        """Layers have moved: another plan from this request on."""
        self._learn()
        if self._cuts:
            self.detector.rebase()
            self._disturbed = self.detector.disturbed
        self._plan_key, self._varies = plan_key, False
        self._usual_s[...] = self._gathered[...] = 0.0
        self._sampled.clear()
        self._set_cuts(cuts)
        self._refresh()

    def _set_cuts(self, cuts: tuple[int, ...]) -> None:
        """Take other layers for each stage; this may be so with each request."""
        self._cuts = cuts
        ends = np.array(cuts)
        self._first, self._last = ends[:-1], ends[1:]
        self._divide()

    def _gather(self, stage_s: FloatArray) -> FloatArray:
        """Time / reference of each stage once it has worked enough for a sample, ``nan`` until then, shape (stages,).

        The fewer layers, the noisier their sum: a stage that ran one layer would be an outlier now and then.
        """
        ran = self._last > self._first
        work_s = self.reference_s
        self._gathered += np.where(ran, (stage_s, work_s), 0.0)
        known = self._usual_s > 0
        self._usual_s += np.where(ran, np.where(known, _WORK_RATE, 1.0) * (work_s - self._usual_s), 0.0)
        enough = ran & (self._gathered[1] >= _LEAST_WORK * self._usual_s)
        ratio = np.full(len(ran), np.nan)
        np.divide(self._gathered[0], self._gathered[1], out=ratio, where=enough)
        self._gathered[:, enough] = 0.0
        self._sampled.append(enough)
        return ratio

    def _requests(self, stage: int, samples: int) -> int:
        """Requests since a stage's sample so many samples ago, that one included."""
        sampled = [bool(stages[stage]) for stages in reversed(self._sampled)]
        at = np.flatnonzero(sampled)
        if len(at) >= samples > 0:
            return int(at[samples - 1]) + 1
        return len(sampled) + samples - len(at)  # requests that are not known had a sample each

    def _divide(self) -> None:
        # Nothing divided by nan is nan without a warning.
        self._divisor_s = np.where(self._last > self._first, self.reference_s, np.nan)

    def _refresh(self) -> None:
        np.cumsum(self._baseline_s * self._relative, axis=1, out=self._prefix_s[:, 1:])
        self._divide()

    def _learn(self) -> None:
        """Bring ``relative`` nearer to what undisturbed stages have shown."""
        if not self._to_learn:
            return
        ratio, layer_s, disturbed, last = (np.array(part) for part in zip(*self._to_learn, strict=True))
        self._to_learn.clear()
        self._compare(ratio)
        # Which stage ran each layer of each request, shape (requests, layers): that behind all which ended before it.
        owner = (last[:, :, None] <= self._layers).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = layer_s / (self._baseline_s[owner, self._layers] * np.take_along_axis(ratio, owner, axis=1))
        # A hiccup within one layer must not count more than a large error of its baseline would.
        known = (share > 0.25) & (share < 4.0) & ~np.take_along_axis(disturbed, owner, axis=1)
        # One after the other: what a request taught is kept in part by each that follows.
        kept = np.cumprod(np.where(known, 1.0 - _LEARNING_RATE, 1.0)[::-1], axis=0)[::-1]
        weight = _LEARNING_RATE / (1.0 - _LEARNING_RATE) * kept
        self._relative += (weight * np.where(known, share - self._relative, 0.0)).sum(axis=0)

    def _compare(self, ratio: FloatArray) -> None:
        """See whether stages are faster than their baselines, by a block of requests, (requests, stages)."""
        if len(ratio) < _REFRESH:
            return  # a move cut it short
        ratio = np.where(np.isnan(ratio), np.inf, ratio)  # a stage that ran nothing is not below
        median = np.median(ratio, axis=0)
        self._faster = np.where(median < _FASTER, self._faster + 1, 0)
        np.copyto(self.faster, median, where=self._faster >= _FASTER_BLOCKS)
        self.any_faster = bool((self.faster > 0).any())

    def _changes(self) -> list[SlowdownChange]:
        level, age, before = self.detector.level, self.detector.age, self._told
        now = np.where(before, level >= self._end_level, level >= self._onset_level) & self.detector.disturbed
        self._told = now
        self._any_told = bool(now.any())
        changes = []
        for stage in np.flatnonzero((before != now) | (before & self.detector.changed)).tolist():
            state: Literal["onset", "change", "end"] = "onset" if not before[stage] else "change"
            if not now[stage]:
                state = "end"
            since = self._requests(stage, int(age[stage]))
            changes.append(SlowdownChange(stage, state, float(np.exp(level[stage])), since))
        return changes
