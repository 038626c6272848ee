"""The requests that wait for a place: who is let in at all, who is sent next, and with whom as one micro-batch."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from odin.errors import DeadlineExceededError, OdinError, QueueFullError
from odin.partitioner.code.single import copied
from odin.process.timers import Timer, Timers
from odin.requests.admission import Forecast
from odin.requests.conditions import Sent
from odin.requests.foresight import Foresight, Present
from odin.requests.joining import Joining
from odin.requests.line import Line
from odin.requests.replies import Callbacks
from odin.requests.request import Request, Values
from odin.requests.under_way import UnderWay

__all__ = ["Waiting"]

_TRICKLE_S = 1.0
"""While many callbacks wait, one request is sent per so many seconds: a callback may wait for it."""


class Waiting:
    """The line of one gateway, which calls all of this with its lock held. Nothing here waits.

    Parameters
    ----------
    under_way
        Where they are sent.
    joining, foresight, on_refusal
        As for :class:`odin.requests.gateway.Gateway`.
    callbacks
        While too many of these wait, few requests are sent.
    timers, let_in
        When the time has come to look at the line again, ``let_in`` is called without the lock: it takes the lock and
        calls :meth:`advance` with the same argument.

    Attributes
    ----------
    line
        Those who wait.
    numbers
        Of requests, and of what carries several.
    refused, dropped
        Requests that were not taken since they would be late, and that were taken and dropped in line for that.
    """

    def __init__(
        self,
        under_way: UnderWay,
        *,
        joining: Joining,
        foresight: Foresight | None,
        on_refusal: Callable[[int], None] | None,
        callbacks: Callbacks,
        timers: Timers,
        let_in: Callable[..., None],
    ) -> None:
        self._under_way = under_way
        self._joining, self._foresight, self._on_refusal = joining, foresight, on_refusal
        self._callbacks, self._timers, self._let_in = callbacks, timers, let_in
        self.line: Line[Request] = Line()
        self.numbers = itertools.count()
        self.refused = self.dropped = 0
        self._trickles = False
        self._look_again: Timer | None = None  # at who is held back to be joined

    # -- in ---------------------------------------------------------------------------------------------------------

    def admit(
        self, parts: Sequence[Request], deadline_s: float, *, urgent: bool, may_stand: float
    ) -> DeadlineExceededError | None:
        """Judge all parts of a request before they :meth:`enter`: why it is refused, if it is.

        Raises
        ------
        QueueFullError
            If more would stand in line than ``may_stand``.
        """
        if may_stand < math.inf:
            self._check_room(parts, urgent=urgent, may_stand=may_stand)
        samples = parts[0].samples if parts else 0
        forecasts, refusal = self.judge(len(parts), deadline_s, samples=samples, urgent=urgent)
        for part, forecast in zip(parts, forecasts, strict=False):
            part.forecast = forecast
        return refusal

    def _check_room(self, requests: Sequence[Request], *, urgent: bool, may_stand: float) -> None:
        count, samples = len(self.line), self.line.samples
        waiting = self._joining.batches(requests=count, samples=samples)
        samples += sum(request.samples for request in requests)
        added = self._joining.batches(requests=count + len(requests), samples=samples) - waiting
        places, free = self._under_way.places, self._under_way.free
        behind = self._callbacks.behind
        held = count > 0 and free > 0 and not behind  # back, to be joined, though there is a place
        if count and not (held or may_stand):
            added = max(added, 1)  # a place among those who wait is none at once
        free = free if urgent or held or not (count or behind) else 0
        if (held or added > free) and waiting + added - free > may_stand:
            option, limit = ("max_waiting", int(may_stand)) if may_stand else ("max_in_flight", places)
            in_flight = len(self._under_way.requests)
            raise QueueFullError(in_flight=in_flight, waiting=waiting, limit=limit, option=option)

    def judge(
        self, parts: int, deadline_s: float, *, samples: int, urgent: bool
    ) -> tuple[Sequence[Forecast], DeadlineExceededError | None]:
        """Predict when a request of so many parts will be done, and why it is refused if it is."""
        if self._foresight is None:
            return (), None
        forecasts, refusal = self._foresight.judge(
            self._present(), deadline_s=deadline_s, parts=parts, samples=samples, urgent=urgent
        )
        if refusal is not None:
            self.refused += parts
            if self._on_refusal is not None:
                self._on_refusal(parts)
        return forecasts, refusal

    def ask(self, parts: int, deadline_s: float, *, samples: int) -> Forecast | None:
        """As :meth:`judge`, for a request that is not submitted: nothing changes by asking."""
        if self._foresight is None:
            return None
        return self._foresight.ask(self._present(), deadline_s=deadline_s, parts=parts, samples=samples)

    def enter(self, request: Request) -> None:
        """Send a request, or let it stand in line."""
        has_place, behind = self._under_way.free > 0, self._callbacks.behind
        if has_place and (request.urgent or not (self.line or self._joining.wait_s or behind)):
            self._under_way.send(request)
            return
        request.sent = threading.Lock()
        request.sent.acquire()
        self.line.add(request)
        request.overtakings = self.line.overtakings
        if has_place and not request.urgent and (behind or not self._joining.wait_s):
            self._trickle()

    def let_go(self, request: Request) -> None:
        """Let the caller of one who stands in line not wait for it."""
        if request.sent is not None and request.slot < 0 and request.carrier is None and not request.over:
            request.values = tuple(copied(tensor) for tensor in request.values)
            request.sent = None

    # -- out --------------------------------------------------------------------------------------------------------

    def advance(self, *, at_least: int = 0) -> list[Request]:
        """Send those who wait while slots are free; so many at least, however many callbacks wait.

        Returns those that cannot be sent, each with its ``refusal``.
        """
        refused = []
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        while self._under_way.free > 0 and (request := self.line.head()) is not None:
            if not request.urgent and self._callbacks.behind:
                if at_least <= 0:
                    self._trickle()
                    break
                at_least -= 1
            if self._is_hopeless(request):
                why = "it was dropped in line for a place: it would be done after its deadline"
                refused.append(self._take(DeadlineExceededError(why)))
                continue
            count, until_s = self._joining.decide(self.line, now_s=time.perf_counter(), predict=self._predict)
            if not count:
                for one in self.line:
                    one.held_back = True
                self._look_again = self._timers.add(until_s, self._let_in)
                break
            members = [self._take() for _ in range(count)]
            carrier = request if count == 1 else Request.carrying(members, next(self.numbers))
            if any(one.held_back for one in members):
                self._foresee_anew(members, samples=carrier.samples)
            try:
                self._under_way.send(carrier)
            except BaseException as error:
                if count > 1:  # too large together, though not one by one; or a signal's handler has raised
                    self._line_up_alone(members, [one.values for one in members])
                if not isinstance(error, Exception):
                    raise
                if count == 1:
                    request.refusal, request.over = error, True
                    refused.append(request)
                continue
            for one in members:
                one.leave_line()
        return refused

    def part(self, carrier: Request) -> None:
        """Have those that a micro-batch carries sent again one by one, by what lies in its slot."""
        rows = self._under_way.rows(carrier)
        carrier.over = True
        self._under_way.forget(carrier)
        self._line_up_alone(carrier.members, rows)

    def clear(self, refusal: OdinError) -> list[Request]:
        """Let nobody wait any more; returns those who did."""
        refused, self.line = list(self.line), Line()
        for request in refused:
            request.refusal, request.over = refusal, True
        return refused

    def _take(self, refusal: BaseException | None = None) -> Request:
        """Take who is next out of the line, to be sent, or refused for that reason."""
        request = self.line.take()
        if request.deadline_s == math.inf and request.overtakings != self.line.overtakings:
            request.was_overtaken = True
        request.refusal, request.over = refusal, refusal is not None
        return request

    def _line_up_alone(self, members: Iterable[Request], values: Iterable[Values]) -> None:
        """Let requests that were joined be sent one by one, with these inputs, before all others."""
        for one, its_values in zip(members, values, strict=True):
            if not one.over:
                one.go_alone(its_values)
                self.line.add(one)

    def _trickle(self) -> None:
        """Set a timer to send one request, however many callbacks wait."""

        def let_one_in() -> None:
            self._trickles = False
            self._let_in(at_least=1)

        if not self._trickles:
            self._trickles = True
            self._timers.add(time.perf_counter() + _TRICKLE_S, let_one_in)

    # -- what is predicted ------------------------------------------------------------------------------------------

    def _present(self) -> Present:
        under_way = self._under_way
        sent = [Sent(request.submitted_s, request.samples) for request in under_way.requests.values()]
        return Present(under_way.in_force.windows, sent, under_way.shares, self.line, self._joining)

    def _predict(self, samples: int) -> Forecast:
        """When a micro-batch of so many samples would be done that is sent now."""
        if self._foresight is None:
            now_s = time.perf_counter()
            return Forecast(now_s, 0.0, now_s, now_s)
        return self._foresight.of_next(self._present(), samples=samples)

    def _foresee_anew(self, members: Sequence[Request], *, samples: int) -> None:
        """Predict for those who were held back and are sent now: that they waited for others was no error of ours."""
        forecast = self._predict(samples)
        for one in members:
            if one.forecast is not None:
                one.forecast, one.was_overtaken = forecast, False

    def _is_hopeless(self, request: Request) -> bool:
        """Whether a request that was accepted would be late by now; it counts as dropped then."""
        if self._foresight is None or request.deadline_s == math.inf:
            return False
        if not self._foresight.is_hopeless(self._present(), deadline_s=request.deadline_s, samples=request.samples):
            return False
        self.dropped += 1
        self._foresight.ended(request, in_time=False)
        return True
