"""``odin.Tuner``: turns a serving pipeline's knob so that its latencies keep a limit."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from odin.errors import PipelineClosedError
from odin.monitor.events import KnobTurned
from odin.monitor.timing import RequestTimeline
from odin.process.worker_thread import Worker
from odin.tuning.dead_band import check_limit
from odin.tuning.periods import REQUESTS, Period, Periods
from odin.tuning.policy import KNOBS, KnobName, KnobPolicy, make_knob_policy

__all__ = ["Tunable", "Tuner"]

_log = logging.getLogger(__name__)

_LINGER_S = 0.02
"""Seconds for which finished requests are gathered: waking the thread up for each is dear."""
_ATTRIBUTES = {"batch": "largest_batch", "instances": "instances"}
_NEEDED = ("batch", "dynamic_batching", "devices", "follow", "note_turn")


class Tunable(Protocol):
    """A pipeline, as the tuner uses it: with ``largest_batch`` or ``instances``, which can be set."""

    batch: int
    dynamic_batching: bool

    @property
    def devices(self) -> Sequence[Any]:
        """Of its stages."""

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        """See :meth:`odin.Pipeline.follow`."""

    def note_turn(self, event: KnobTurned) -> None:
        """See :meth:`odin.Pipeline.note_turn`."""


_tuned: weakref.WeakKeyDictionary[Tunable, Tuner] = weakref.WeakKeyDictionary()
_tuned_lock = threading.Lock()


class Tuner:
    """Turns a knob of a serving pipeline, in a thread of its own, from entering this until leaving it.

    Latencies are those with the stages: from when a micro-batch got its place until its answer. What waits in line for
    a place waits for others' requests, which no knob takes away. The batch grows only while most micro-batches are
    full: smaller ones say nothing of larger ones.

    A pipeline has one tuner at a time. Where somebody else has set the knob, the tuner goes on from there.

    Parameters
    ----------
    pipeline
        The pipeline.
    latency_s
        Seconds that latencies are to keep.
    knob
        ``"batch"``, most samples that are joined (:attr:`odin.Pipeline.largest_batch`), or ``"instances"``, how many
        stages take requests (:attr:`odin.Pipeline.instances`). Default: ``batch`` if the pipeline joins samples.
    policy
        ``"dnnscaler"`` or ``"aimd"``, or a :class:`~odin.tuning.policy.KnobPolicy` of one's own.
    statistic
        What is held against the limit, ``"p95"`` or ``"mean"``.
    requests, seconds
        A period has at least so many micro-batches and lasts at least so long; at its end the knob is turned, or not.
    on_period
        Told of each period that has ended, in the tuner's thread.
    clock
        Seconds, that of the pipeline's timings.

    Raises
    ------
    ValueError
        If it is no pipeline or has no such knob, or an option is not valid.

    Examples
    --------
    >>> import odin
    >>> with odin.Pipeline("resnet50", stages="cpu:0-1", batch=16, dynamic_batching=True) as pipe:  # doctest: +SKIP
    ...     with odin.Tuner(pipe, latency_s=0.3):
    ...         serve(pipe)
    """

    def __init__(
        self,
        pipeline: Tunable,
        *,
        latency_s: float,
        knob: KnobName | None = None,
        policy: str | KnobPolicy = "dnnscaler",
        statistic: str = "p95",
        requests: int = REQUESTS,
        seconds: float = 0.0,
        on_period: Callable[[Period], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if missing := [name for name in _NEEDED if not hasattr(pipeline, name)]:
            raise ValueError(f"{pipeline!r} is no pipeline (it has no {missing[0]}); give an odin.Pipeline")
        if on_period is not None and not callable(on_period):
            raise ValueError(f"on_period={on_period!r} cannot be called; give a function that takes a period")
        latency_s = check_limit(latency_s)
        self._pipeline, self._limit_s, self._statistic = pipeline, latency_s, statistic
        self._on_period, self._clock = on_period, clock
        self.knob: KnobName = knob or ("batch" if pipeline.dynamic_batching else "instances")
        if self.knob not in KNOBS:
            raise ValueError(f"knob {knob!r} is unknown; choose one of {', '.join(KNOBS)}")
        if self.knob == "batch" and not pipeline.dynamic_batching:
            raise ValueError(
                "the pipeline joins no samples, so that its batch cannot be turned; start it with dynamic_batching=True"
            )
        if self.knob == "instances" and len(pipeline.devices) == 1:
            raise ValueError(
                "there is nothing to turn: the pipeline has one stage, and joins no samples; start it with several "
                "stages, or with batch= and dynamic_batching=True"
            )
        if isinstance(policy, str):
            policy = make_knob_policy(
                policy,
                knob=self.knob,
                limit_s=latency_s,
                largest=pipeline.batch if self.knob == "batch" else len(pipeline.devices),
                start=getattr(pipeline, _ATTRIBUTES[self.knob]),
                free=len({str(device) for device in pipeline.devices}),
            )
        elif not callable(getattr(policy, "update", None)) or not isinstance(getattr(policy, "value", None), int):
            raise ValueError(
                f"policy={policy!r} has no update(latency_s), or no whole value; give 'dnnscaler' or 'aimd'"
            )
        self._periods = Periods(policy, limit_s=latency_s, statistic=statistic, requests=requests, seconds=seconds)
        self._leave: Callable[[], None] | None = None
        self._worker: Worker[RequestTimeline] = Worker(
            self._take,
            name="odin-tuner",
            on_error=self._warn,
            expendable=lambda timeline: True,
            linger_s=_LINGER_S,
        )
        self._started, self._warned = False, ""

    def _warn(self, error: BaseException) -> None:
        """Log what was raised, once while it is the same: it may be with each period."""
        text = f"{type(error).__name__}: {error}"
        if text != self._warned:
            self._warned = text
            _log.warning("the tuner goes on after %s", text)

    @property
    def value(self) -> int:
        """The knob's value."""
        return int(getattr(self._pipeline, _ATTRIBUTES[self.knob]))

    def start(self) -> None:
        """Begin; the knob gets the policy's value.

        Raises
        ------
        ValueError
            If the pipeline cannot have it, such as several instances without the relay, or has another tuner.
        PipelineClosedError
            If the pipeline is closed.
        RuntimeError
            If this tuner was started before.
        """
        with _tuned_lock:
            if self._started:
                raise RuntimeError("this tuner was started before; make another one for the same pipeline")
            if (other := _tuned.get(self._pipeline)) is not None:
                raise ValueError(f"the pipeline's {other.knob} is turned by another tuner; close that one first")
            _tuned[self._pipeline], self._started = self, True
        policy = self._periods.policy
        try:
            setattr(self._pipeline, _ATTRIBUTES[self.knob], policy.value)
        except BaseException:
            self._give_up()
            self._started = False
            raise
        now_s = self._clock()
        self._periods.turned(now_s)
        self._tell(now_s, policy.value, policy.value, math.nan, 0)
        self._worker.start()
        self._leave = self._pipeline.follow(lambda timeline: self._worker.put(timeline, at_once=False))

    def close(self) -> None:
        """Turn no more; the knob stays as it is. Idempotent."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
            self._give_up()
            self._worker.close()

    def _give_up(self) -> None:
        with _tuned_lock:
            if _tuned.get(self._pipeline) is self:
                del _tuned[self._pipeline]

    def _take(self, timeline: RequestTimeline) -> None:
        policy, value = self._periods.policy, self.value
        if value != policy.value:  # set by somebody else, or for all stages by another plan
            before, policy.value, now_s = policy.value, value, self._clock()
            self._periods.turned(now_s)
            self._tell(now_s, before, value, math.nan, 0)
        full = self.knob != "batch" or not 0 < timeline.samples < value
        period = self._periods.take(submitted_s=timeline.submitted_s, completed_s=timeline.completed_s, full=full)
        if period is None:
            return
        try:
            if period.after != period.before:
                self._turn(period)
        finally:
            if self._on_period is not None:
                self._on_period(period)

    def _turn(self, period: Period) -> None:
        try:
            setattr(self._pipeline, _ATTRIBUTES[self.knob], period.after)
        except BaseException as error:
            self._periods.policy.value = period.before
            if isinstance(error, PipelineClosedError):
                return
            raise
        now_s, self._warned = self._clock(), ""
        self._periods.turned(now_s)
        self._tell(now_s, period.before, period.after, period.latency_s, period.requests)

    def _tell(self, at_s: float, before: int, after: int, latency_s: float, requests: int) -> None:
        self._pipeline.note_turn(
            KnobTurned(at_s, self.knob, before, after, self._statistic, latency_s, self._limit_s, requests)
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
