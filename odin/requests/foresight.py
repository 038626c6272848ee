"""What the gateway asks of prediction: whether to take a request, whether one still has hope, what has been learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from odin.errors import DeadlineExceededError
from odin.monitor.timing import RequestTimeline
from odin.partitioner.exits import Exits
from odin.partitioner.relay import Windows
from odin.requests.admission import Admission, Forecast, Promised
from odin.requests.conditions import Conditions, Sent
from odin.requests.joining import Joining
from odin.requests.line import Line, Stands

__all__ = ["Foresight", "Present", "Waits"]


class Waits(Stands, Promised, Protocol):
    """A request in the gateway's line."""


class Present(NamedTuple):
    """What there is in a gateway when it asks.

    Attributes
    ----------
    windows
        In force for the next request.
    sent
        Those under way, oldest first.
    shared
        Whether the next one goes to a queue from which all stages take.
    line, joining
        Those that wait, and how they are joined.
    """

    windows: Windows
    sent: Sequence[Sent]
    shared: bool
    line: Line[Any]
    joining: Joining

    @property
    def empty(self) -> bool:
        """Whether no request is there."""
        return not (self.sent or self.line)


class Foresight:
    """Predictions for one gateway, which calls this with its lock held.

    Parameters
    ----------
    conditions
        The stages now.
    admission
        Decides.
    clock
        That of deadlines, and of the stages on this machine.
    """

    def __init__(
        self, conditions: Conditions, admission: Admission, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.conditions, self.admission = conditions, admission
        self._clock = clock

    def judge(
        self, present: Present, *, deadline_s: float, parts: int, samples: int, urgent: bool
    ) -> tuple[list[Forecast], DeadlineExceededError | None]:
        """Predict a request that is submitted now, and return why it is refused if it is.

        Parameters
        ----------
        present
            What there is.
        deadline_s, parts
            See :meth:`odin.requests.admission.Admission.judge`.
        samples
            Of its first part.
        urgent
            Whether it goes before all others; then it is not refused for their sake.
        """
        now_s = self._clock()
        ahead, exits = self._before(now_s, present, deadline_s, samples=samples, urgent=urgent)
        line, joining, mean_samples = present.line, present.joining, present.line.mean_samples
        behind = () if urgent else line.behind(deadline_s)
        verdict = self.admission.judge(
            exits,
            now_s,
            deadline_s=deadline_s,
            ahead=ahead,
            parts=parts,
            alone=present.empty,
            behind=[(one, joining.ahead(rank, mean_samples=mean_samples)) for one, rank in behind],
        )
        refusal = None
        if verdict.late:
            refusal = DeadlineExceededError.of_refusal(
                predicted_s=verdict.forecasts[-1].latest_s - now_s,
                crowded=verdict.crowded,
                left_s=deadline_s - now_s,
                ahead=ahead + len(present.sent),
                delays=verdict.delays,
            )
        return verdict.forecasts, refusal

    def ask(self, present: Present, *, deadline_s: float, parts: int, samples: int) -> Forecast:
        """As :meth:`judge`, for a request that is not submitted: what it would be given; nothing changes by asking."""
        now_s = self._clock()
        ahead, exits = self._before(now_s, present, deadline_s, samples=samples)
        forecast = self.admission.forecast(exits, now_s, ahead + parts - 1)
        return self.admission.lenient(forecast) if present.empty else forecast

    def is_hopeless(self, present: Present, *, deadline_s: float, samples: int) -> bool:
        """Whether the next request to be sent, which was accepted, would be late by now."""
        if not self.admission.refuses:
            return False
        now_s = self._clock()
        return self.admission.is_hopeless(self._exits(now_s, present, samples), now_s, deadline_s)

    def of_next(self, present: Present, *, samples: int) -> Forecast:
        """When a micro-batch of so many samples will be done if it is the next to be sent, now."""
        now_s = self._clock()
        return self.admission.forecast(self._exits(now_s, present, samples), now_s, 0)

    def answered(self, timeline: RequestTimeline, forecast: Forecast | None) -> None:
        """Learn from a micro-batch that has come back; with a forecast, unless others went before it since that."""
        self.conditions.answered(timeline)
        if forecast is not None:
            self.admission.learn(forecast, timeline.completed_s)

    def ended(self, request: Promised, *, in_time: bool) -> None:
        """Learn whether a request with a deadline that was accepted was answered in time."""
        if request.forecast is not None:
            self.admission.ended(request.forecast, request.deadline_s, in_time=in_time)

    def _before(
        self, now_s: float, present: Present, deadline_s: float, *, samples: int, urgent: bool = False
    ) -> tuple[int, Exits]:
        """How many micro-batches of those that wait go before a request, and when it and they would be done."""
        line, joining = present.line, present.joining
        mean_samples = line.mean_samples
        before = 0 if urgent else line.ahead(deadline_s)
        size = joining.size(samples, before, mean_samples=mean_samples)
        return joining.ahead(before, mean_samples=mean_samples), self._exits(now_s, present, size)

    def _exits(self, now_s: float, present: Present, samples: int) -> Exits:
        if present.shared:
            return self.conditions.shared(now_s, present.sent, samples=samples)
        return self.conditions.in_line(now_s, present.windows, present.sent, samples=samples)
