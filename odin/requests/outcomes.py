"""How requests have ended: counted, learned from, recorded, and told to those who wait for them."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Sequence

from odin.errors import DeadlineExceededError, LayerFailedError, OdinError
from odin.monitor.timing import RequestTimeline, StageTiming, unpack_timings
from odin.monitor.window import TimelineWindow
from odin.requests.foresight import Foresight
from odin.requests.request import Request, Values
from odin.stages.channel.wire import Failure, Header
from odin.stages.loop import DEADLINE

__all__ = ["Outcomes"]


class Outcomes:
    """The outcomes of one gateway's requests.

    The gateway holds its lock for :meth:`count`, and when it changes the counts. It never holds it for the other
    methods, which call ``on_result``, ``on_failure`` and whoever waits for a future.

    Parameters
    ----------
    lock
        The gateway's; taken here to learn.
    on_result, on_failure, foresight
        As for :class:`odin.requests.gateway.Gateway`.

    Attributes
    ----------
    completed, failed
        Requests, without those that were dropped in line (:class:`odin.requests.waiting.Waiting` counts them).
    window
        Timelines of the last micro-batches.
    """

    def __init__(
        self,
        lock: threading.Lock,
        *,
        on_result: Callable[[RequestTimeline], None] | None,
        on_failure: Callable[[int, OdinError], None] | None,
        foresight: Foresight | None,
    ) -> None:
        self._lock, self._foresight = lock, foresight
        self.on_result, self._on_failure = on_result, on_failure
        self.completed = self.failed = 0
        self.window = TimelineWindow()

    def count(self, request: Request, failure: Failure | None) -> bool:
        """Count the outcome of one who was answered; whether it has to be told. The lock is held."""
        was_over, request.over = request.over, True
        if failure is None and (request.reply.cancelled() or not was_over):
            self.completed += 1
        elif not was_over:
            self.failed += 1
            if self._foresight is not None and failure is not None and failure.kind == DEADLINE:
                self._foresight.ended(request, in_time=False)
        return not was_over

    def answer(
        self,
        request: Request,
        header: Header,
        completed_s: float,
        outcomes: Sequence[Values] | Exception,
        *,
        told: Sequence[bool],
        stage_count: int,
    ) -> None:
        """Learn from a micro-batch that was answered, and give each of its requests its outcome and timeline.

        ``told`` is whose outcome is still to be told: nobody else was in time. The timeline has all stages, those that
        take no part included.
        """
        answers = request.answers
        try:
            timings = _of_all_stages(unpack_timings(header.timings), stage_count)
            timeline = RequestTimeline(
                header.request, header.epoch, request.submitted_s, completed_s, timings, samples=request.samples
            )
            promised = [waits and one.deadline_s < math.inf for one, waits in zip(answers, told, strict=True)]
            expected_s = [math.nan if one.forecast is None else one.forecast.expected_s for one in answers]
            if self._foresight is not None:
                with self._lock:
                    if any(one.forecast is not None for one in answers):
                        kept_up = (one.forecast for one in answers if not one.was_overtaken)
                        self._foresight.answered(timeline, next(kept_up, None))
                    for one in itertools.compress(answers, promised):
                        self._foresight.ended(one, in_time=True)
            timeline = timeline._replace(
                expected_s=expected_s[0],
                in_time=sum(promised) if request.members else promised[0],
                requests=len(answers),
            )
            self.window.append(timeline)
            counted = False
            for one, its_s, kept, waits in zip(answers, expected_s, promised, told, strict=True):
                one.reply.timeline = timeline._replace(
                    request=one.number, expected_s=its_s, in_time=kept, requests=0 if counted else len(answers)
                )
                counted = counted or waits
            if self.on_result is not None:
                self.on_result(timeline)
        finally:  # no longer under way: whatever happens here, callers must not wait for ever
            for index, one in enumerate(answers):
                if told[index]:
                    one.settle(outcomes if isinstance(outcomes, Exception) else outcomes[index])

    def answer_failed(
        self, request: Request, header: Header, completed_s: float, failure: Failure, *, told: Sequence[bool]
    ) -> None:
        """Fail the requests that a stage could not compute, or that were too late there; ``told`` as above."""
        timings = unpack_timings(header.timings)  # of the stages that had it before
        for one in itertools.compress(request.answers, told):
            if timings:
                one.reply.timeline = RequestTimeline(
                    one.number, header.epoch, request.submitted_s, completed_s, timings, samples=request.samples
                )
            if failure.kind == DEADLINE:
                self.fail(one, DeadlineExceededError(f"{failure.where}: {failure.message}"))
            else:
                self.fail(one, LayerFailedError(*failure))

    def refuse(self, requests: Iterable[Request]) -> None:
        """Fail requests that waited for a place and cannot be sent."""
        for request in requests:
            assert request.refusal is not None  # it is why they are here
            if isinstance(request.refusal, DeadlineExceededError):
                self.fail(request, request.refusal)
            else:
                request.settle(request.refusal)
            request.leave_line()

    def fail(self, request: Request, error: OdinError) -> None:
        """Fail a request that was taken."""
        try:
            if self._on_failure is not None:
                self._on_failure(request.number, error)
        finally:
            request.settle(error)


def _of_all_stages(timings: tuple[StageTiming, ...], stage_count: int) -> tuple[StageTiming, ...]:
    """Add the stages that a request has passed by: they ran no layers, in no time."""
    if len(timings) == stage_count:
        return timings
    by_stage = {timing.stage: timing for timing in timings}
    cut, complete = 0, []
    for stage in range(stage_count):
        timing = by_stage.get(stage) or StageTiming(stage, cut, cut, 0.0, 0.0, 0.0, 0.0, 0.0, ())
        cut = timing.last
        complete.append(timing)
    return tuple(complete)
