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
from odin.monitor.detectors.cusum_rows import Look
from odin.monitor.watch_rows import LEARNING_RATE, WatchLoops

__all__ = ["SlowdownChange", "StageWatch", "Watched"]

FloatArray = NDArray[np.float64]

_LEAST_S = 1e-9
"""For layers that take no time that a clock can see."""
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


class Watched(NamedTuple):
    """What the watch made of a request: changes, and the detector's arrays after it, shape (stages,) each."""

    changes: Sequence[SlowdownChange]
    changed: NDArray[np.bool_]
    age: NDArray[np.int64]
    noise: FloatArray
    disturbed: NDArray[np.bool_]


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
        self._prefix_s: list[list[float]] | None = None
        self._cuts: tuple[int, ...] = ()
        self._plan_key: Hashable = None
        self._work_s = [0.0] * stages  # by the references, of the layers that each stage ran
        self._varies = False  # whether requests of one plan had other cuts
        self._usual_s, self._gathered = [0.0] * stages, [(0.0, 0.0)] * stages
        self._sampled: deque[list[bool]] = deque(maxlen=_SAMPLED)
        self._disturbed: NDArray[np.bool_] = self.detector.disturbed
        self._unchanged: NDArray[np.bool_] = np.zeros(stages, dtype=np.bool_)
        self._faster = np.zeros(stages, dtype=np.int64)  # blocks in a row
        self.faster: FloatArray = np.full(stages, np.nan)
        self.any_faster = False
        # Requests to be learned from: time over reference, layers, which stages were disturbed, where each ended.
        self._to_learn = 0
        self._ratio, self._layer_s = np.empty((_REFRESH, stages)), np.empty((_REFRESH, layers))
        self._were_disturbed = np.empty((_REFRESH, stages), dtype=np.bool_)
        self._lasts = np.empty((_REFRESH, stages), dtype=np.int64)
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
        self._keep(ratio, layer_s, 1)
        if self._to_learn == _REFRESH:
            self._learn()
            self._refresh()
        return self._tell()

    @property
    def takes_rows(self) -> bool:
        """Whether :meth:`update_rows` is of any use: with the default detector."""
        return type(self.detector) is CusumDetector

    def update_rows(
        self,
        cuts: Sequence[int],
        stage_s: FloatArray,
        layer_s: FloatArray,
        *,
        loops: WatchLoops,
        plan_key: Hashable | None = None,
    ) -> list[Watched]:
        """Take finished requests of one plan at once: the results of :meth:`update`, to the bit, sooner.

        Sooner with the default detector and compiled loops. Parameters as of :meth:`update`, with a row for each
        request: shapes (requests, stages) and (requests, layers).
        """
        cuts, detector, row = tuple(cuts), self.detector, 0
        key = cuts if plan_key is None else plan_key
        told: list[Watched] = []
        while row < len(stage_s):
            plain = type(detector) is CusumDetector and detector.is_plain
            if plain and not self._varies and (key, cuts) == (self._plan_key, self._cuts):
                last = min(len(stage_s), row + _REFRESH - self._to_learn)
                self._update_plain(stage_s[row:last], layer_s[row:last], loops, told)
            if len(told) == row:
                changes = self.update(cuts, stage_s[row], layer_s[row], plan_key=plan_key)
                told.append(self._watched(changes))
            row = len(told)
        return told

    def _update_plain(self, stage_s: FloatArray, layer_s: FloatArray, loops: WatchLoops, told: list[Watched]) -> None:
        """Take the first requests that are plain, of so many of the present plan; adds what became of them."""
        detector, row = self.detector, 0
        assert isinstance(detector, CusumDetector)
        ratio, x = loops.sample(stage_s, np.array(self._work_s))
        ages = np.empty(x.shape, dtype=np.int64)
        while row < len(x) and detector.is_plain:
            look = Look(
                *(self._told, self._any_told, float(self._onset_level), float(self._end_level)),
                *(self._since_change, _SETTLED, _LOOKS),
            )
            noise = detector.noise
            done, stopped, self._since_change = detector.update_rows(x, row, len(x), look, ages, loops.take)
            for age in ages[row : row + done - stopped]:
                told.append(Watched((), self._unchanged, age, noise, self._disturbed))
            self._keep(ratio[row : row + done], layer_s[row : row + done], done)
            row += done
            if stopped:
                told.append(self._watched(self._tell()))
            elif row < len(x):
                break  # the next one is not plain
        if self._to_learn == _REFRESH:
            self._learn(loops)
            self._refresh(loops)

    def _watched(self, changes: list[SlowdownChange]) -> Watched:
        detector = self.detector
        return Watched(changes, detector.changed, detector.age, detector.noise, detector.disturbed)

    def _keep(self, ratio: ArrayLike, layer_s: FloatArray, requests: int) -> None:
        """Keep what is to be learned from some requests under the present cuts."""
        rows = slice(self._to_learn, self._to_learn + requests)
        self._ratio[rows], self._layer_s[rows] = ratio, layer_s
        self._were_disturbed[rows], self._lasts[rows] = self._disturbed, self._cuts[1:]
        self._to_learn += requests

    def _tell(self) -> list[SlowdownChange]:
        """What is to be told after a request."""
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
        self._cuts = cuts
        self._refresh()

    def _set_cuts(self, cuts: tuple[int, ...]) -> None:
        """Take other layers for each stage; this may be so with each request."""
        self._cuts = cuts
        if self._prefix_s is None:
            self._prefix_s = self._prefixes().tolist()
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

    def _refresh(self, loops: WatchLoops | None = None) -> None:
        """Take references anew, after what has been learned."""
        self._prefix_s = None
        if self._varies:
            self._set_cuts(self._cuts)
        elif self._cuts:
            cuts, stages = np.array(self._cuts), np.arange(len(self._baseline_s))
            if loops is not None:
                self._work_s = loops.work(self._baseline_s, self._relative, cuts).tolist()
            else:
                prefix_s = self._prefixes()
                self._work_s = (prefix_s[stages, cuts[1:]] - prefix_s[stages, cuts[:-1]]).tolist()

    def _prefixes(self) -> FloatArray:
        """Seconds of the layers before each cut, (stages, layers + 1)."""
        prefix_s = np.zeros((len(self._baseline_s), len(self._layers) + 1))
        np.cumsum(self._baseline_s * self._relative, axis=1, out=prefix_s[:, 1:])
        return prefix_s

    def _learn(self, loops: WatchLoops | None = None) -> None:
        """Bring ``relative`` nearer to what undisturbed stages have shown."""
        if not self._to_learn:
            return
        rows, self._to_learn = slice(0, self._to_learn), 0
        ratio, layer_s = self._ratio[rows], self._layer_s[rows]
        disturbed, last = self._were_disturbed[rows], self._lasts[rows]
        self._compare(ratio)
        # Which stage ran each layer of each request, shape (requests, layers): that behind all which ended before it.
        if (last == last[0]).all():
            owner = np.searchsorted(last[0], self._layers, side="right")[None]
            if loops is not None:
                loops.learn(ratio, layer_s, disturbed, owner[0], self._baseline_s, self._relative)
                return
            owner = np.broadcast_to(owner, layer_s.shape)
        else:
            owner = (last[:, :, None] <= self._layers).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = layer_s / (self._baseline_s[owner, self._layers] * np.take_along_axis(ratio, owner, axis=1))
        # A hiccup within one layer must not count more than a large error of its baseline would.
        known = (share > 0.25) & (share < 4.0) & ~np.take_along_axis(disturbed, owner, axis=1)
        # One after the other: what a request taught is kept in part by each that follows.
        kept = np.cumprod(np.where(known, 1.0 - LEARNING_RATE, 1.0)[::-1], axis=0)[::-1]
        weight = LEARNING_RATE / (1.0 - LEARNING_RATE) * kept
        self._relative += (weight * np.where(known, share - self._relative, 0.0)).sum(axis=0)

    def _compare(self, ratio: FloatArray) -> None:
        """See whether stages are faster than their baselines, by a block of requests, (requests, stages)."""
        if len(ratio) < _REFRESH:
            return  # a move cut it short
        if ((ratio < _FASTER).sum(axis=0) < _REFRESH // 2).all():  # no median can be below
            self._faster[...] = 0
            return
        ratio = np.where(np.isnan(ratio), np.inf, ratio)  # a stage that ran nothing is not below
        ordered = np.sort(ratio, axis=0)
        median = (ordered[_REFRESH // 2 - 1] + ordered[_REFRESH // 2]) / 2
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
