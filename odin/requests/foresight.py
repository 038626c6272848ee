"""What the gateway asks of prediction: whether to take a request, whether one still has hope, what has been learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from odin.errors import DeadlineExceededError
from odin.monitor.timing import RequestTimeline
from odin.partitioner.exits import Exits
from odin.partitioner.relay import Windows
from odin.requests.admission import Admission, Forecast, Promised
from odin.requests.conditions import Conditions, Sent
from odin.requests.joining import Joining
from odin.requests.line import Line, Stands

__all__ = ["Foresight", "Waits"]


class Waits(Stands, Promised, Protocol):
    """A request in the gateway's line."""


R = TypeVar("R", bound=Waits)


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
        self,
        windows: Windows,
        sent: Sequence[Sent],
        *,
        shared: bool,
        line: Line[R],
        joining: Joining,
        deadline_s: float,
        parts: int,
        samples: int,
        urgent: bool,
        alone: bool,
    ) -> tuple[list[Forecast], DeadlineExceededError | None]:
        """Predict a request that is submitted now, and return why it is refused if it is.

        Parameters
        ----------
        windows
            In force for it.
        sent
            Those under way, oldest first.
        shared
            Whether it goes to a queue from which all stages take.
        line, joining
            Those that wait, and how they are joined.
        deadline_s, parts, alone
            See :meth:`odin.requests.admission.Admission.judge`.
        samples
            Of its first part.
        urgent
            Whether it goes before all others; then it is not refused for their sake.
        """
        now_s = self._clock()
        mean_samples = line.mean_samples
        before = 0 if urgent else line.ahead(deadline_s)
        ahead = joining.ahead(before, mean_samples=mean_samples)
        size = joining.size(samples, before, mean_samples=mean_samples)
        exits = self._exits(now_s, windows, sent, shared=shared, samples=size)
        behind = () if urgent else line.behind(deadline_s)
        verdict = self.admission.judge(
            exits,
            now_s,
            deadline_s=deadline_s,
            ahead=ahead,
            parts=parts,
            alone=alone,
            behind=[(one, joining.ahead(rank, mean_samples=mean_samples)) for one, rank in behind],
        )
        refusal = None
        if verdict.late:
            refusal = DeadlineExceededError.of_refusal(
                predicted_s=verdict.forecasts[-1].latest_s - now_s,
                crowded=verdict.crowded,
                left_s=deadline_s - now_s,
                ahead=ahead + len(sent),
                delays=verdict.delays,
            )
        return verdict.forecasts, refusal

    def ask(
        self,
        windows: Windows,
        sent: Sequence[Sent],
        *,
        shared: bool,
        line: Line[R],
        joining: Joining,
        deadline_s: float,
        parts: int,
        samples: int,
        alone: bool,
    ) -> Forecast:
        """As :meth:`judge`, for a request that is not submitted: what it would be given; nothing changes by asking."""
        now_s = self._clock()
        mean_samples = line.mean_samples
        before = line.ahead(deadline_s)
        ahead = joining.ahead(before, mean_samples=mean_samples)
        size = joining.size(samples, before, mean_samples=mean_samples)
        exits = self._exits(now_s, windows, sent, shared=shared, samples=size)
        forecast = self.admission.forecast(exits, now_s, ahead + parts - 1)
        return self.admission.lenient(forecast) if alone else forecast

    def is_hopeless(
        self, windows: Windows, sent: Sequence[Sent], *, shared: bool, deadline_s: float, samples: int
    ) -> bool:
        """Whether the next request to be sent, which was accepted, would be late by now."""
        if not self.admission.refuses:
            return False
        now_s = self._clock()
        exits = self._exits(now_s, windows, sent, shared=shared, samples=samples)
        return self.admission.is_hopeless(exits, now_s, deadline_s)

    def of_next(self, windows: Windows, sent: Sequence[Sent], *, shared: bool, samples: int) -> Forecast:
        """When a micro-batch of so many samples will be done if it is the next to be sent, now."""
        now_s = self._clock()
        return self.admission.forecast(self._exits(now_s, windows, sent, shared=shared, samples=samples), now_s, 0)

    def answered(self, timeline: RequestTimeline, forecast: Forecast | None) -> None:
        """Learn from a micro-batch that has come back; with a forecast, unless others went before it since that."""
        self.conditions.answered(timeline)
        if forecast is not None:
            self.admission.learn(forecast, timeline.completed_s)

    def ended(self, request: Promised, *, in_time: bool) -> None:
        """Learn whether a request with a deadline that was accepted was answered in time."""
        if request.forecast is not None:
            self.admission.ended(request.forecast, request.deadline_s, in_time=in_time)

    def _exits(self, now_s: float, windows: Windows, sent: Sequence[Sent], *, shared: bool, samples: int) -> Exits:
        if shared:
            return self.conditions.shared(now_s, sent, samples=samples)
        return self.conditions.in_line(now_s, windows, sent, samples=samples)
