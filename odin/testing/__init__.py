"""Fakes for testing policies and detectors; ODIN's own tests use them.

Nothing here starts a process, waits or reads a clock: each call gives the same values every time.

>>> import numpy as np
>>> from odin.partitioner.policies import make_policy
>>> calm = np.ones((2, 6))  # seconds of six layers on two stages
>>> run = drive_policy(make_policy("lls"), calm, (3, 3), changes={20: slowed(calm, {1: 2.0})}, requests=60)
>>> run.plans[0], run.final_plan
(Plan((3, 3)), Plan((4, 2)))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.detectors.base import Detector
from odin.monitor.events import RequestDone, RunStarted, StageDescription
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.policies.base import Decision, Observation, Setting
from odin.testing.policy_driver import PolicyRun, drive_policy, setting_for, slowed

__all__ = [
    "START_S",
    "Change",
    "FakeClock",
    "PolicyRun",
    "ScriptedPolicy",
    "drive_detector",
    "drive_policy",
    "log_slowdowns",
    "request_done",
    "run_started",
    "setting_for",
    "slowed",
    "timeline",
]

START_S = 1000.0
"""When made-up runs start, on the clock of their events."""


class FakeClock:
    """A fake clock that advances only on request; replaces ``time.perf_counter`` and ``time.sleep``.

    Examples
    --------
    >>> clock = FakeClock(100.0)
    >>> clock.advance(2.5)
    >>> clock.sleep(1.0)
    >>> clock(), clock.slept
    (103.5, [1.0])
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    def sleep(self, seconds: float) -> None:
        """Advance the clock, and record the wait."""
        self.slept.append(seconds)
        self.now_s += seconds


# -- what stages and pipelines tell -----------------------------------------------------------------------------------


def timeline(
    number: int,
    at_s: float,
    stage_s: Sequence[float],
    *,
    plan: Sequence[int],
    epoch: int = 0,
    latency_s: float = 0.2,
    queue_s: float = 0.004,
    transfer_s: float = 0.001,
) -> RequestTimeline:
    """A finished request as its stages would have timed it, alone on their cores.

    Parameters
    ----------
    number
        The request's.
    at_s
        When it finished.
    stage_s
        Seconds of each stage, spread evenly over its layers.
    plan
        Layers per stage, of this request; 0 for one that it passed by.
    latency_s
        Seconds since its submission.
    queue_s, transfer_s
        Seconds that it waited before each stage, and that each needed to hand the request before it on.

    Examples
    --------
    >>> made = timeline(7, 1000.0, (0.5, 0.25), plan=(2, 1))
    >>> [(timing.first, timing.last, timing.layer_s) for timing in made.stages]
    [(0, 2, (0.25, 0.25)), (2, 3, (0.25,))]
    >>> passed_by = timeline(8, 1000.3, (0.75, 0.0), plan=(3, 0))
    >>> passed_by.stages[1].first, passed_by.stages[1].last
    (3, 3)
    """
    first, timings = 0, []
    for index, (count, wall_s) in enumerate(zip(plan, stage_s, strict=True)):
        layer_s = (wall_s / count,) * count if count else ()
        timings.append(StageTiming(index, first, first + count, queue_s, wall_s, wall_s, 0.0, transfer_s, layer_s))
        first += count
    return RequestTimeline(number, epoch, at_s - latency_s, at_s, tuple(timings))


def request_done(number: int, at_s: float, stage_s: Sequence[float], **options: Any) -> RequestDone:
    """The event of a finished request; options are those of :func:`timeline`.

    Examples
    --------
    >>> request_done(7, 1000.0, (0.5, 0.25), plan=(2, 1)).timeline.request
    7
    """
    return RequestDone(at_s, timeline(number, at_s, stage_s, **options))


def run_started(
    plan: Sequence[int],
    *,
    layer_s: float = 0.01,
    model: str = "resnet50",
    policy: str = "filter",
    devices: Sequence[str] = (),
    batch: int = 1,
    windows: str = "",
) -> RunStarted:
    """The first event of a run whose every layer takes ``layer_s`` on every stage; by default on cores 0, 1, ...

    With ``windows`` requests change hands at cuts of their own: give each one's :func:`timeline` its own ``plan``.

    Examples
    --------
    >>> run_started((2, 1), devices=["cpu:3", "gpu:0"]).stages[1].device
    'gpu:0'
    """
    count = sum(plan)
    stages = tuple(
        StageDescription(device, "node", 100 + index, (layer_s,) * count)
        for index, device in enumerate(devices or [f"cpu:{index}" for index in range(len(plan))])
    )
    names = tuple(f"layer{index}" for index in range(count))
    return RunStarted(START_S, 1.7e9, model, names, stages, tuple(plan), policy, 2 * len(plan), batch, windows)


# -- policies ---------------------------------------------------------------------------------------------------------


class ScriptedPolicy:
    """A policy that returns given decisions at given requests, and records its observations.

    Parameters
    ----------
    answers
        By request, from 1: a :class:`~odin.partitioner.policies.Decision`, an exception to raise, or anything else that
        a faulty policy might answer.

    Attributes
    ----------
    started
        The settings it was started with.
    seen
        Its observations.

    Examples
    --------
    >>> from odin.partitioner.plan import Plan
    >>> policy = ScriptedPolicy({3: Decision(Plan((4, 2)), "move", "scripted")})
    >>> drive_policy(policy, [[1.0] * 6] * 2, (3, 3), requests=10).plans_tried, len(policy.seen)
    (['4|2'], 10)
    """

    name = "scripted"

    def __init__(self, answers: Mapping[int, Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.started: list[Setting] = []
        self.seen: list[Observation] = []

    def start(self, setting: Setting) -> None:
        """Remember the setting."""
        self.started.append(setting)

    def decide(self, observation: Observation) -> Decision | None:
        """Remember the observation; answer, or raise, what the script says."""
        self.seen.append(observation)
        answer: Decision | None = self.answers.get(observation.request)
        if isinstance(answer, BaseException):
            raise answer
        return answer


# -- detectors --------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """A detected change: sample, stream, and the detector's properties at that moment."""

    sample: int
    stream: int
    disturbed: bool
    age: int


def log_slowdowns(samples: int, streams: int = 1, *, cv: float = 0.1, seed: int = 0) -> NDArray[np.float64]:
    """Undisturbed samples for a detector, shape (samples, streams): logarithms of times that vary by ``cv``.

    Add ``math.log(2)`` to those from some sample on for a twofold slowdown.

    Examples
    --------
    >>> made = log_slowdowns(1000, 2, cv=0.1)
    >>> made.shape, round(float(made.std()), 2)
    ((1000, 2), 0.1)
    """
    return np.random.default_rng(seed).normal(0.0, np.sqrt(np.log1p(cv**2)), (samples, streams))


def drive_detector(detector: Detector, samples: Iterable[ArrayLike], *, first: int = 0) -> list[Change]:
    """Give a detector samples, one row (streams,) after the other; returns the detected changes.

    Parameters
    ----------
    first
        Number of the first sample.

    Examples
    --------
    >>> import math
    >>> from odin.monitor.detectors import CusumDetector
    >>> samples = log_slowdowns(600, 2)
    >>> samples[500:, 1] += math.log(2)
    >>> drive_detector(CusumDetector(2), samples)
    [Change(sample=500, stream=1, disturbed=True, age=1)]
    """
    found = []
    for number, sample in enumerate(samples, start=first):
        detector.update(sample)
        found += [
            Change(number, stream, bool(detector.disturbed[stream]), int(detector.age[stream]))
            for stream in np.flatnonzero(detector.changed).tolist()
        ]
    return found
