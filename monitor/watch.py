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
from itertools import pairwise
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
        self._layers = np.arange(layers)
        self._relative = np.ones(layers)
        self._prefix_s: list[list[float]] = []
        self._cuts: tuple[int, ...] = ()
        self._plan_key: Hashable = None
        self._work_s = [0.0] * stages  # by the references, of the layers that each stage ran
        self._varies = False  # whether requests of one plan had other cuts
        self._usual_s, self._gathered = [0.0] * stages, [(0.0, 0.0)] * stages
        self._sampled: deque[list[bool]] = deque(maxlen=_SAMPLED)
        self._disturbed: NDArray[np.bool_] = self.detector.disturbed
        self._faster = np.zeros(stages, dtype=np.int64)  # blocks in a row
        self.faster: FloatArray = np.full(stages, np.nan)
        self.any_faster = False
        self._to_learn: list[tuple[list[float], FloatArray, NDArray[np.bool_], tuple[int, ...]]] = []
        self._refresh()

    @property
    def reference_s(self) -> FloatArray:
        """Seconds that each stage's latest layers take by their references, before its own undisturbed level."""
        return np.array(self._work_s)

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
        # Plain numbers: there is one request at a time, and few stages.
        seconds, work_s = stage_s.tolist(), self._work_s
        ratio = [now_s / usual_s if usual_s > 0 else math.nan for now_s, usual_s in zip(seconds, work_s, strict=True)]
        told = self._gather(seconds, work_s) if self._varies else ratio
        self.detector.update(np.array([math.log(each) if 0.0 < each < math.inf else math.nan for each in told]))
        self._to_learn.append((ratio, layer_s, self._disturbed, cuts[1:]))
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
        self._usual_s, self._gathered = [0.0] * len(self._usual_s), [(0.0, 0.0)] * len(self._gathered)
        self._sampled.clear()
        self._set_cuts(cuts)
        self._refresh()

    def _set_cuts(self, cuts: tuple[int, ...]) -> None:
        """Take other layers for each stage; this may be so with each request."""
        self._cuts = cuts
        self._work_s = [
            before_s[last] - before_s[first]
            for before_s, (first, last) in zip(self._prefix_s, pairwise(cuts), strict=True)
        ]

    def _gather(self, stage_s: Sequence[float], work_s: Sequence[float]) -> list[float]:
        """Time / reference of each stage once it has worked enough for a sample, ``nan`` until then.

        The fewer layers, the noisier their sum: a stage that ran one layer would be an outlier now and then.
        """
        ratio, sampled = [math.nan] * len(work_s), [False] * len(work_s)
        for stage, work in enumerate(work_s):
            if not work > 0:  # it ran no layers
                continue
            gathered_s, of_work_s = self._gathered[stage]
            gathered_s, of_work_s = gathered_s + stage_s[stage], of_work_s + work
            usual_s = self._usual_s[stage]
            usual_s += (_WORK_RATE if usual_s > 0 else 1.0) * (work - usual_s)
            self._usual_s[stage] = usual_s
            if of_work_s >= _LEAST_WORK * usual_s:
                ratio[stage], sampled[stage] = gathered_s / of_work_s, True
                gathered_s = of_work_s = 0.0
            self._gathered[stage] = gathered_s, of_work_s
        self._sampled.append(sampled)
        return ratio

    def _requests(self, stage: int, samples: int) -> int:
        """Requests since a stage's sample so many samples ago, that one included."""
        sampled = [stages[stage] for stages in reversed(self._sampled)]
        at = np.flatnonzero(sampled)
        if len(at) >= samples > 0:
            return int(at[samples - 1]) + 1
        return len(sampled) + samples - len(at)  # requests that are not known had a sample each

    def _refresh(self) -> None:
        prefix_s = np.zeros((len(self._baseline_s), len(self._layers) + 1))
        np.cumsum(self._baseline_s * self._relative, axis=1, out=prefix_s[:, 1:])
        self._prefix_s = prefix_s.tolist()
        if self._cuts:
            self._set_cuts(self._cuts)

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
