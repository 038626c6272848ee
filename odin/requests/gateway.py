"""The gateway: tags requests, sends them to the stages, and resolves their futures.

A request's input stays in its slot until its outcome is known. The number of slots bounds the requests in flight;
further requests are queued, which is the pipeline's back-pressure::

    submit -> queue -> (a slot is free) -> stages -> answer: the slot is free, the next request is sent

When a stage is lost, what was with it is sent again from the slots, as another *attempt*. The first answer counts,
whichever attempt it is of; one that finds no request waiting for it is dropped. So a stage that was only taken for lost
does no harm, not even by reading a slot that holds the next input by then.

If a request is cancelled or its deadline passes, its future is done at once; its slot is freed then if no stage has
begun with it, else by the answer.

Requests may be joined into one micro-batch when a slot is free (:mod:`odin.requests.joining`). What has the slot then
is what carries them (:mod:`odin.requests.request`). If that fails, by a layer or by ending a stage, they are sent again
one by one, so that a bad input fails alone.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from odin.errors import (
    DeadlineExceededError,
    LayerFailedError,
    OdinError,
    PipelineClosedError,
    PoisonRequestError,
    QueueFullError,
)
from odin.monitor.timing import RequestTimeline, StageTiming, unpack_timings
from odin.monitor.view.builder import Serving
from odin.monitor.window import TimelineWindow
from odin.partitioner.code.single import copied
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.process.timers import Timer, Timers
from odin.requests.admission import Forecast
from odin.requests.conditions import Sent
from odin.requests.foresight import Foresight, Present
from odin.requests.joining import Joining
from odin.requests.line import Line
from odin.requests.replies import Callbacks, Reply
from odin.requests.request import Request, Values, form_of, rows_of
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import InForce, Inlet, Way
from odin.stages.channel.link import ChannelClosedError, Message, Sender
from odin.stages.channel.readiness import FINISHING, WORKING
from odin.stages.channel.shm import ShmSender
from odin.stages.channel.wire import Failure, Header, Kind
from odin.stages.loop import DEADLINE

__all__ = ["Gateway", "GatewayCounts"]

_NEVER = math.inf
_TRICKLE_S = 1.0
"""While many callbacks wait, one request is sent per so many seconds: a callback may wait for it."""
_GOODBYE_S = 5.0
"""Longest wait of closing for the stages' goodbye messages, with nothing in flight."""
_CALLBACKS_S = 1.0
"""Longest wait of closing without drain for callbacks."""
_BOUNCES, _BOUNCE_S = 6, 0.1
"""A request that comes back so often because it could not be handed on is not sent again at once, but then."""
_DEADLY, _DEADLY_OR_HUNG = 2, 3
"""So many stages must have died on a request, or died or hung, before it is held to be the cause: on a busy machine one
may seem to hang that does not."""


class GatewayCounts(NamedTuple):
    """Requests finished and failed, micro-batches in flight, and requests that were refused, in none of the former."""

    completed: int
    failed: int
    in_flight: int
    refused: int = 0


class Gateway:
    """Both ends of the pipeline.

    Parameters
    ----------
    inlet
        Slots, and the ways to the stages; closed with this.
    receiver
        Channels from all stages; closed with this.
    plan, windows
        The plan of epoch 0, and where boundaries may lie; None: where the plan has them.
    max_in_flight
        Most requests in flight; as many as there are slots by default, which are the most that there can be.
    on_result
        Called in the receiving thread with each finished request's timeline, also of a request that was cancelled or
        too late.
    on_failure
        Called with the number of each request that failed, and why.
    on_gone
        Called with the index of a stage whose channel has ended, after its requests were sent again where that is
        possible at once; else :meth:`switch` has to follow.
    foresight
        Predicts when requests will be done, and refuses those that would be late; None predicts nothing.
    on_refusal
        Called with the number of requests that were refused at once; it must not wait, nor call the gateway.
    max_waiting
        Most micro-batches that may wait in line when :meth:`enqueue` adds one; None: any number.
    joining
        How requests are joined; default: not at all.
    clock
        Monotonic seconds, for timelines.
    """

    def __init__(
        self,
        inlet: Inlet,
        receiver: Inbox,
        *,
        plan: Plan,
        windows: Windows | None = None,
        max_in_flight: int | None = None,
        on_result: Callable[[RequestTimeline], None] | None = None,
        on_failure: Callable[[int, OdinError], None] | None = None,
        on_gone: Callable[[int], None] = lambda stage: None,
        foresight: Foresight | None = None,
        on_refusal: Callable[[int], None] | None = None,
        max_waiting: int | None = None,
        joining: Joining | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inlet = inlet
        self._receiver = receiver
        self._on_result = on_result
        self._on_failure = on_failure
        self._on_gone = on_gone
        self._on_refusal = on_refusal
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self.joining = joining or Joining()
        self._clock = clock
        self._lock = threading.Lock()
        self._plan = plan
        self._in_force = InForce(0, tuple(range(len(plan))), windows or Windows.of_plan(plan))
        self._foresight = foresight
        self._lost: dict[int, str] = {}  # stages that are gone or hang, and what they are called
        self._gone: set[int] = set()  # those that are gone, until others have taken their places
        self._way: Way | None = None
        self._find_way()
        self._held: dict[int, Request] = {}  # under way, and with no stage: to be sent when there is one
        self._next_request = 0
        self._pending: dict[int, Request] = {}  # have a slot; of some the outcome is known, but a stage has them still
        self._line: Line[Request] = Line()
        self._places = min(max_in_flight or inlet.slots, inlet.slots)
        self._completed = self._failed = self._refused = 0
        self._error: OdinError | None = None
        self._draining = self._broken = False
        self._wake: Callable[[], None] | None = None
        self._trickles = False
        self._look_again: Timer | None = None  # at who is held back to be joined
        self._idle = threading.Condition(self._lock)
        self._timers = Timers()
        self.callbacks = Callbacks(self._let_in)
        self.window = TimelineWindow()
        self._thread = threading.Thread(target=self._receive_all, name="odin-gateway", daemon=True)
        self._thread.start()

    @property
    def _free(self) -> int:
        """Free slots; computed, not counted, so that an exception cannot make the number wrong."""
        return self._places - len(self._pending)

    @property
    def plan(self) -> Plan:
        """The plan that the next request runs under; stages that are lost have no layers in it."""
        return self._plan

    @property
    def windows(self) -> Windows:
        """Where the next request may change hands; one row for each stage that takes part."""
        return self._in_force.windows

    @property
    def epoch(self) -> int:
        """The epoch that the next request gets."""
        return self._in_force.epoch

    @property
    def in_force(self) -> InForce:
        """Under what the next request runs."""
        return self._in_force

    @property
    def lost(self) -> OdinError | None:
        """Why the pipeline broke; ``None`` while it serves, and after it was closed."""
        return None if isinstance(self._error, PipelineClosedError) else self._error

    def counts(self) -> GatewayCounts:
        """Requests finished, failed and in flight."""
        with self._lock:
            return GatewayCounts(self._completed, self._failed, len(self._pending), self._refused)

    def serving(self) -> Serving:
        """Counts, and the plan that the next request runs under, all of one moment."""
        with self._lock:
            epoch, stages, windows = self._in_force
            text = "" if windows.plan is not None else str(windows.with_idle(stages, len(self._plan)))
            counts = self._completed, self._failed, len(self._pending)
            return Serving(*counts, epoch, self._plan, text, self._refused)

    def check_open(self) -> None:
        """Raise the error that :meth:`submit` would raise if the pipeline is closed or broken."""
        with self._lock:
            if self._error is not None:
                raise self._error

    def check_serving(self) -> None:
        """Raise that error unless requests are under way, or may come."""
        with self._lock:
            if self._error is not None and not self._draining:
                raise self._error

    def switch(
        self,
        epoch: int,
        plan: Plan,
        windows: Windows | None = None,
        *,
        stages: Sequence[int] | None = None,
        max_in_flight: int | None = None,
    ) -> None:
        """Tag requests with ``epoch`` from the next one on; every stage that takes part must have prepared for it.

        Parameters
        ----------
        plan
            Layers of every stage, those that take no part included.
        windows
            One row for each of ``stages``; by default where the plan has the boundaries.
        stages
            Those that take part; all by default.
        max_in_flight
            So many may be in flight from now on, which cannot be more than there are slots.
        """
        taking = tuple(range(len(plan)) if stages is None else stages)
        with self._lock:
            self._plan = plan
            self._in_force = InForce(epoch, taking, windows or Windows.of_plan(Plan(plan[stage] for stage in taking)))
            self._places = min(max_in_flight or self._places, self._inlet.slots)
            self._find_way()
            self._send_held()
            for stage in self._lost:
                self._send_what_followed(stage)
            refused = self._advance()
        self._refuse(refused)

    def _find_way(self) -> None:
        """Set where new requests go; None while those that windows in force name are lost. The lock is held."""
        way, stages = self._inlet.way_under(self._in_force), self._in_force.stages
        live = [stage for stage in stages if stage not in self._lost]
        self._shares = way is not None and way is self._inlet.queue
        self._enters_here = self._shares or isinstance(way, ShmSender)
        self._way = way if self._shares or len(live) == len(stages) else None
        if self._foresight is not None:
            self._foresight.conditions.live = live

    # -- in ---------------------------------------------------------------------------------------------------------

    def submit(self, values: Values, *, deadline_s: float = _NEVER, wait: bool = True) -> Reply[Values]:
        """Send one request, waiting while ``max_in_flight`` are under way.

        Parameters
        ----------
        values
            Input tensors in the prepared layout; copied before this returns.
        deadline_s
            On ``time.perf_counter``: the future fails then, wherever the request is, and no stage starts on it later.
            If it is refused because it would be late the future has failed when this returns.
        wait
            Whether to wait for a place.

        Raises
        ------
        PipelineClosedError, StageLostError
            If the pipeline is closed or broken.
        QueueFullError
            If there is no place at once, and it is not to wait.
        """
        return self.submit_all([values], deadline_s=deadline_s, wait=wait)[0]

    def submit_all(
        self, parts: Sequence[Values], *, deadline_s: float = _NEVER, wait: bool = True, many: bool = False
    ) -> list[Reply[Values]]:
        """As :meth:`submit`, for all parts of a request: with a deadline, or without waiting, all or none are taken.

        Who is held back although there is a place, to be joined, stands in line as a copy: the caller may be who comes
        with the others. With ``many`` that is so for all who stand in line: the caller says how many may.
        """
        if wait and deadline_s == _NEVER:  # one after the other: those of other callers go in between
            groups: Iterable[Sequence[Values]] = ([part] for part in parts)
        else:
            groups = [parts]
        replies: list[Reply[Values]] = []
        try:
            for group in groups:
                requests = self._enter(group, deadline_s, may_stand=_NEVER if wait else 0, copies=True, many=many)
                replies += [request.reply for request in requests]
                for request in requests:
                    if request.sent is not None:
                        request.sent.acquire()
                        if request.refusal is not None and not isinstance(request.refusal, DeadlineExceededError):
                            raise request.refusal
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise
        return replies

    def enqueue(self, values: Values, *, deadline_s: float = _NEVER, wait: bool = True) -> Reply[Values]:
        """As :meth:`submit`, without blocking: the values must stay as they are until the future is done.

        Raises
        ------
        QueueFullError
            Also if more would wait in line than may.
        """
        return self.enqueue_all([values], deadline_s=deadline_s, wait=wait)[0]

    def enqueue_all(
        self, parts: Sequence[Values], *, deadline_s: float = _NEVER, wait: bool = True
    ) -> list[Reply[Values]]:
        """As :meth:`enqueue`, for all parts of a request: all or none are taken."""
        requests = self._enter(parts, deadline_s, may_stand=self._max_waiting if wait else 0)
        return [request.reply for request in requests]

    def _enter(
        self,
        parts: Sequence[Values],
        deadline_s: float,
        *,
        may_stand: float,
        copies: bool = False,
        many: bool = False,
    ) -> list[Request]:
        """Take a request in, part by part, or refuse it as a whole; its first part then has the error.

        ``copies`` are made of those who stand in line and whose caller is not to wait (:meth:`submit_all`).
        """
        urgent = self.callbacks.is_current()
        requests = [Request(values, deadline_s, Reply(self.callbacks), urgent) for values in parts]
        if self.joining.joins:
            entered_s = time.perf_counter()
            for request in requests:
                request.form, request.entered_s = form_of(request.values), entered_s
        unsent: list[Request] = []
        refuses = self._foresight is not None and self._foresight.admission.refuses
        late = not refuses and deadline_s < _NEVER and deadline_s <= time.perf_counter()
        refusal: DeadlineExceededError | None = None
        try:
            with self._lock:
                if self._error is not None:
                    raise self._error
                if not late:
                    self._check_room(requests, urgent, may_stand)
                    forecasts, refusal = self._foresee(
                        len(parts), deadline_s, samples=requests[0].samples if requests else 0, urgent=urgent
                    )
                    for request, forecast in zip(requests, forecasts, strict=False):
                        request.forecast = forecast
                for request in requests if refusal is None else ():
                    self._take_in(request, late=late)
                if self.joining.wait_s:  # what came last may be what was waited for
                    unsent = self._advance()
                if copies and (many or (self.joining.wait_s and self._free > 0 and not self.callbacks.behind)):
                    for request in requests:
                        self._let_go(request)
        except BaseException:  # all or none
            for request in requests:
                request.reply.cancel()
            raise
        for request in requests:
            if late:
                self._fail(request, DeadlineExceededError("its deadline passed before it was submitted"))
            elif refusal is not None:
                request.reply.settle(refusal)
        self._refuse(unsent)
        return requests

    def refuse_if_late(self, parts: int, deadline_s: float, *, samples: int = 0) -> Reply[Values] | None:
        """The failed future of a request of so many parts, the first with so many samples, that would be refused now,
        before anything is done for it.
        """
        if self._foresight is None or deadline_s == _NEVER:
            return None
        urgent = self.callbacks.is_current()
        with self._lock:
            if self._error is not None:
                raise self._error
            _, refusal = self._foresee(parts, deadline_s, samples=samples, urgent=urgent)
        if refusal is None:
            return None
        reply: Reply[Values] = Reply(self.callbacks)
        reply.settle(refusal)
        return reply

    def ask(self, parts: int, deadline_s: float, *, samples: int = 0) -> Forecast | None:
        """When a request of so many parts, the first with so many samples, would be done if it were submitted now.

        None if nothing is predicted here. Nothing changes by asking.
        """
        if self._foresight is None:
            return None
        with self._lock:
            if self._error is not None:
                raise self._error
            return self._foresight.ask(self._present(), deadline_s=deadline_s, parts=parts, samples=samples)

    def _take_in(self, request: Request, *, late: bool) -> None:
        """Send a request, or let it stand in line; the lock is held."""
        request.number = self._next_request
        self._next_request += 1
        if late:
            request.over = True
            self._failed += 1
            return
        at_once = request.urgent or not (self._line or self.joining.wait_s or self.callbacks.behind)
        if self._free > 0 and at_once:
            self._send(request)
        else:
            self._stand_in_line(request)
        if request.deadline_s < _NEVER:
            request.timer = self._timers.add(request.deadline_s, partial(self._expire, request))
        request.reply.on_cancel = partial(self._withdraw, request)

    def _check_room(self, requests: Sequence[Request], urgent: bool, may_stand: float) -> None:
        """Raise :class:`QueueFullError` if these would stand in a line that is too long; the lock is held."""
        if may_stand == _NEVER:
            return
        count, samples = len(self._line), self._line.samples
        waiting = self.joining.batches(requests=count, samples=samples)
        samples += sum(request.samples for request in requests)
        added = self.joining.batches(requests=count + len(requests), samples=samples) - waiting
        behind = self.callbacks.behind
        held = count > 0 and self._free > 0 and not behind  # back, to be joined, though there is a place
        if count and not (held or may_stand):
            added = max(added, 1)  # a place among those who wait is none at once
        free = self._free if urgent or held or not (count or behind) else 0
        if (held or added > free) and waiting + added - free > may_stand:
            option, limit = ("max_waiting", int(may_stand)) if may_stand else ("max_in_flight", self._places)
            raise QueueFullError(in_flight=len(self._pending), waiting=waiting, limit=limit, option=option)

    def _foresee(
        self, parts: int, deadline_s: float, *, samples: int, urgent: bool
    ) -> tuple[Sequence[Forecast], DeadlineExceededError | None]:
        """Predict when a request of so many parts will be done, and why it is refused if it is; the lock is held."""
        if self._foresight is None:
            return (), None
        forecasts, refusal = self._foresight.judge(
            self._present(), deadline_s=deadline_s, parts=parts, samples=samples, urgent=urgent
        )
        if refusal is not None:
            self._refused += parts
            if self._on_refusal is not None:
                self._on_refusal(parts)
        return forecasts, refusal

    def _present(self) -> Present:
        """What there is; the lock is held."""
        sent = [Sent(request.submitted_s, request.samples) for request in self._pending.values()]
        return Present(self._in_force.windows, sent, self._shares, self._line, self.joining)

    def _stand_in_line(self, request: Request) -> None:
        request.sent = threading.Lock()
        request.sent.acquire()
        self._line.add(request)
        request.overtakings = self._line.overtakings
        if not request.urgent and self._free > 0 and (self.callbacks.behind or not self.joining.wait_s):
            self._trickle()

    def _let_go(self, request: Request) -> None:
        """Let the caller of one who stands in line not wait for it; the lock is held."""
        if request.sent is not None and request.slot < 0 and request.carrier is None and not request.over:
            request.values = tuple(copied(tensor) for tensor in request.values)
            request.sent = None

    def _send(self, request: Request) -> None:
        """Take a free slot and send; the lock is held."""
        used = {other.slot for other in self._pending.values()}
        slot = next(slot for slot in range(self._inlet.slots) if slot not in used)
        if request.members:
            request.metas = self._inlet.write_rows(slot, [one.values for one in request.members])
        else:
            request.metas = self._inlet.write(slot, request.values)
        request.submitted_s = self._clock()
        if (wake := self._wake) is not None:
            self._wake = None
            wake()
        try:
            request.slot = slot
            self._pending[request.number] = request
            self._post(request)
        except BaseException:  # a signal's handler has raised, perhaps after it was sent
            request.over = True
            self._forget(request)
            raise
        for one in request.answers:
            one.values = ()

    def _post(self, request: Request) -> None:
        """Send what lies in its slot, once more perhaps; the lock is held."""
        request.epoch, request.way = self._in_force.epoch, self._way
        request.attempt += 1
        self._inlet.mark(request.slot, request.number, request.attempt)
        if request.way is None:
            self._held[request.number] = request
            return
        now_s = time.perf_counter()
        header = Header(
            Kind.REQUEST,
            request.number,
            request.epoch,
            request.deadline_s - now_s,
            now_s,
            request.slot,
            request.metas,
            oldest=min(other.epoch for other in self._pending.values()),
            attempt=request.attempt,
            home=request.slot,
            samples=request.samples,
        )
        try:
            request.way.post(header)
        except ChannelClosedError:  # who receives learns of the loss, and sends it again
            self._held[request.number] = request

    def _send_held(self) -> None:
        """Send the requests that no stage has, if there is a way; the lock is held."""
        if self._way is not None:
            held, self._held = self._held, {}
            for request in held.values():
                self._post(request)

    def _forget(self, request: Request) -> None:
        """Free a request's slot; what is on its way of it is not begun, or its answer dropped. The lock is held."""
        if self._pending.pop(request.number, None) is not None:
            self._held.pop(request.number, None)
            self._inlet.unmark(request.slot)
            if request.way is not None:
                request.way.push()

    def _advance(self, *, at_least: int = 0) -> list[Request]:
        """Send queued requests while slots are free; returns those that cannot be sent. The lock is held."""
        refused = []
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        while self._free > 0 and (request := self._line.head()) is not None:
            if not request.urgent and self.callbacks.behind:
                if at_least <= 0:
                    self._trickle()
                    break
                at_least -= 1
            try:
                self._check_hope(request)
            except DeadlineExceededError as error:
                refused.append(self._take(error))
                continue
            count, until_s = self.joining.decide(self._line, now_s=time.perf_counter(), predict=self._predict)
            if not count:
                for one in self._line:
                    one.held_back = True
                self._look_again = self._timers.add(until_s, self._let_in)
                break
            members = [self._take() for _ in range(count)]
            carrier = request if count == 1 else self._carrier(members)
            if any(one.held_back for one in members):
                self._foresee_anew(members, samples=carrier.samples)
            try:
                self._send(carrier)
            except BaseException as error:
                if count > 1:  # too large together, though not one by one; or a signal's handler has raised
                    self._line_up_alone([(one, one.values) for one in members])
                if not isinstance(error, Exception):
                    raise
                if count == 1:
                    request.refusal, request.over = error, True
                    refused.append(request)
                continue
            for one in members:
                one.leave_line()
        return refused

    def _take(self, refusal: BaseException | None = None) -> Request:
        """Take who is next out of the line, to be sent, or refused for that reason; the lock is held."""
        request = self._line.take()
        if request.deadline_s == _NEVER and request.overtakings != self._line.overtakings:
            request.was_overtaken = True
        request.refusal, request.over = refusal, refusal is not None
        return request

    def _carrier(self, members: Sequence[Request]) -> Request:
        number, self._next_request = self._next_request, self._next_request + 1
        return Request.carrying(members, number)

    def _line_up_alone(self, members: Iterable[tuple[Request, Values]]) -> None:
        """Let requests that were joined be sent one by one, with these inputs, before all others; the lock is held."""
        for one, values in members:
            if not one.over:
                one.go_alone(values)
                self._line.add(one)

    def _predict(self, samples: int) -> Forecast:
        """When a micro-batch of so many samples would be done that is sent now; the lock is held."""
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

    def _check_hope(self, request: Request) -> None:
        """Raise :class:`DeadlineExceededError` for a request that was accepted, and would be late by now."""
        if self._foresight is None or request.deadline_s == _NEVER:
            return
        if self._foresight.is_hopeless(self._present(), deadline_s=request.deadline_s, samples=request.samples):
            self._failed += 1
            self._foresight.ended(request, in_time=False)
            raise DeadlineExceededError("it was dropped in line for a place: it would be done after its deadline")

    def _let_in(self, *, at_least: int = 0) -> None:
        with self._lock:
            refused = self._advance(at_least=at_least)
        self._refuse(refused)

    def _trickle(self) -> None:
        """Set a timer to send one request, however many callbacks wait; the lock is held."""

        def let_one_in() -> None:
            self._trickles = False
            self._let_in(at_least=1)

        if not self._trickles:
            self._trickles = True
            self._timers.add(time.perf_counter() + _TRICKLE_S, let_one_in)

    # -- out --------------------------------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        """Resolve futures until the pipeline is closed or broken."""
        try:
            while True:
                try:
                    message = self._receiver.receive()
                except ChannelClosedError as error:
                    if error.peer is None or (self._error is not None and not self._receiver.receivers):
                        break  # closed here, or nobody is left to say goodbye
                    if self._error is None or self._draining:  # not by our goodbye
                        self._on_gone(error.peer)
                    continue
                if message.header.kind is Kind.CLOSE:
                    break
                if message.header.kind is Kind.UNREACHED:
                    message.release()
                    self._note_unreached(message.header.cut, by=message.header.request)
                    continue
                self._resolve(message)
            self._fail_all(PipelineClosedError("the pipeline was closed"))
        except BaseException as error:  # a defect of ours must not leave callers waiting
            self._fail_all(OdinError(f"the gateway failed: {error!r}"))
            raise

    def _resolve(self, message: Message) -> None:
        header = message.header
        failure = header.failure
        with self._lock:  # who sends it holds that until it is among the pending
            request = self._pending.get(header.request)
        if request is None:  # not one of ours, or answered before: nothing can be waiting for it
            message.release()
            return
        if header.kind is Kind.RETURNED:
            message.release()
            self._take_back(request, header)
            return
        outcomes: list[Values] | Exception = []
        if failure is None:
            try:
                # The slot is a stage's: what leaves the pipeline is a copy.
                outcomes = rows_of(message.tensors, request)
            except Exception as error:  # out of memory
                outcomes = error
        message.release()
        completed_s = self._clock()
        with self._lock:
            if header.request not in self._pending:  # failed with all others just now
                return
            if failure is not None and failure.kind != DEADLINE and request.members:
                again = self._part(request)
                refused = self._advance()
                self._notify_idle()
            else:
                again = False
                self._forget(request)
                told = [self._has_answer(one, failure) for one in request.answers]
                request.over = True
                refused = self._advance()
                self._notify_idle()
        if refused:
            self._refuse(refused)
        if again:
            return
        if failure is None:
            try:
                self._note(request, header, completed_s, told=told)
            finally:  # no longer among the pending: whatever happens here, callers must not wait for ever
                for index, one in enumerate(request.answers):
                    if told[index]:
                        self._settle(one, outcomes if isinstance(outcomes, Exception) else outcomes[index])
            return
        timings = unpack_timings(header.timings)  # of the stages that had it before
        for one in itertools.compress(request.answers, told):
            if timings:
                one.reply.timeline = RequestTimeline(
                    one.number, header.epoch, request.submitted_s, completed_s, timings, samples=request.samples
                )
            if failure.kind == DEADLINE:
                self._fail(one, DeadlineExceededError(f"{failure.where}: {failure.message}"))
            else:
                self._fail(one, LayerFailedError(*failure))

    def _has_answer(self, request: Request, failure: Failure | None) -> bool:
        """Count the outcome of one who was answered; whether it has to be told. The lock is held."""
        was_over, request.over = request.over, True
        if failure is None and (request.reply.cancelled() or not was_over):
            self._completed += 1
        elif not was_over:
            self._failed += 1
            if self._foresight is not None and failure is not None and failure.kind == DEADLINE:
                self._foresight.ended(request, in_time=False)
        return not was_over

    def _part(self, request: Request) -> bool:
        """Have those that a micro-batch carries sent again one by one, by what lies in its slot; the lock is held."""
        rows = rows_of(self._inlet.read(request.slot, request.metas), request)
        request.over = True
        self._forget(request)
        self._line_up_alone(zip(request.members, rows, strict=True))
        return True

    def _note(self, request: Request, header: Header, completed_s: float, *, told: Sequence[bool]) -> None:
        """Learn from a micro-batch that was answered, tell of it, and give each of its requests its timeline.

        ``told`` is whose outcome is still to be told: nobody else was in time.
        """
        timings = _of_all_stages(unpack_timings(header.timings), len(self._plan))
        timeline = RequestTimeline(
            header.request, header.epoch, request.submitted_s, completed_s, timings, samples=request.samples
        )
        answers = request.answers
        promised = [waits and one.deadline_s < _NEVER for one, waits in zip(answers, told, strict=True)]
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
        if self._on_result is not None:
            self._on_result(timeline)

    def _notify_idle(self) -> None:
        if not self._pending or self._draining:
            self._idle.notify_all()

    # -- stages that are lost ---------------------------------------------------------------------------------------

    def lose(self, stage: int, name: str, *, dead: bool) -> tuple[int, int]:
        """Send again what a stage has, and nothing more to it: it has died, or hangs. Idempotent.

        Parameters
        ----------
        name
            What it is called in errors.
        dead
            Whether its channels have ended. One that hangs keeps them, and may answer again: :meth:`regain`.

        Returns
        -------
        (int, int)
            How many requests it had, and how many of them fail, since other stages were lost with them before.
        """
        with self._lock:
            # A stage that others cannot reach is given up first, and its channels end then.
            known = stage in self._lost and not (dead and stage not in self._gone)
            self._lost[stage] = name
            suspects = self._computed_by(stage)
            self._inlet.silence(stage)
            if dead:
                self._gone.add(stage)
                self._inlet.disconnect(stage)
            self._find_way()
            has = [] if known else [one for one in self._pending.values() if self._is_with(one, stage)]
            deadly, again = [], []
            for request in has:
                if request.number in suspects:
                    request.fatal_to[name] = dead
                if request.over:
                    self._forget(request)
                elif request.members and request.fatal_to:  # one of them may be the reason
                    self._part(request)
                elif sum(request.fatal_to.values()) >= _DEADLY or len(request.fatal_to) >= _DEADLY_OR_HUNG:
                    deadly.append(request)
                    request.over = True
                    self._forget(request)
                else:
                    again.append(request)
            self._failed += len(deadly)
            for request in again:
                self._post(request)
            refused = self._advance()
            self._notify_idle()
        self._refuse(refused)
        for request in deadly:
            self._fail(request, PoisonRequestError(request.number, tuple(request.fatal_to)))
        return len(has), len(deadly)

    def _send_what_followed(self, stage: int) -> None:
        """Send again what others handed to a stage after its loss was known here and before they knew.

        To be called when they all know. The lock is held.
        """
        for request in list(self._pending.values()):
            holders = self._inlet.holders(request.slot, request.number, request.attempt)
            follows = stage in holders if holders else not self._enters_here
            if request.number in self._held or not (follows or self._may_be_anywhere(holders)):
                continue
            if request.over:
                self._forget(request)
                self._notify_idle()
            else:
                self._post(request)

    def _computed_by(self, stage: int) -> set[int]:
        """Requests that a stage was computing, as it said last."""
        sender = self._inlet.senders.get(stage)
        if sender is None:
            return set()
        words = sender.readiness.words
        return {int(words[WORKING]), int(words[FINISHING])}

    def _is_with(self, request: Request, stage: int) -> bool:
        """Whether a request may be with a stage, as far as can be known."""
        holders = self._inlet.holders(request.slot, request.number, request.attempt)
        return not holders or stage in holders or request.way is None or self._may_be_anywhere(holders)

    def _may_be_anywhere(self, holders: Iterable[int]) -> bool:
        """Whether a request went to another machine: the stages there do not say who has it."""
        return not all(self._inlet.is_here(holder) for holder in holders)

    def regain(self, stage: int, *, replaced: bool) -> None:
        """Count on a stage again, which answers again, or has been ``replaced``."""
        with self._lock:
            name = self._lost.pop(stage, None)
            self._gone.discard(stage)
            if name is not None and not replaced:
                for request in [*self._pending.values(), *self._line]:
                    request.fatal_to.pop(name, None)  # it was not the request's doing
            self._find_way()
            self._send_held()
            if replaced:
                self._send_what_followed(stage)
            refused = self._advance()
        self._refuse(refused)

    def sender(self, stage: int) -> Sender | None:
        """Channel to a stage; None if it is gone."""
        return self._inlet.senders.get(stage)

    def wake_when_busy(self, wake: Callable[[], None]) -> bool:
        """Call ``wake`` with the next request that is sent, unless some are under way: False then. It must not wait."""
        with self._lock:
            self._wake = None if self._pending else wake
            return self._wake is not None

    def connect(self, stage: int, sender: Sender) -> None:
        """Take the channel to a stage that replaces one that was lost; :meth:`regain` counts on it."""
        with self._lock:
            self._inlet.connect(stage, sender)

    def _take_back(self, request: Request, header: Header) -> None:
        """Send a request again that a stage could not hand on."""
        with self._lock:
            if self._pending.get(request.number) is not request or header.attempt != request.attempt:
                return
            if request.over:
                self._forget(request)
                self._notify_idle()
            elif request.number not in self._held:
                if request.attempt < _BOUNCES:
                    self._post(request)
                else:  # until more is known of who is lost
                    self._held[request.number] = request
                    self._timers.add(time.perf_counter() + _BOUNCE_S, self._try_held)
            refused = self._advance()
        self._refuse(refused)
        if header.attempt >= _BOUNCES and header.cut < len(self._plan) and header.cut not in self._lost:
            self._on_gone(header.cut)  # it cannot be reached from where it should be

    def _note_unreached(self, stage: int, *, by: int) -> None:
        """The connection to a stage from one before it is broken: what was on that way is lost, though both live.

        It is not connected again, so the stage has to be replaced. What is heard of or from one that is gone is old.
        """
        if self._gone.isdisjoint((stage, by)) and (self._error is None or self._draining):
            self._on_gone(stage)

    def _try_held(self) -> None:
        with self._lock:
            self._send_held()

    # -- requests that are not wanted any more ----------------------------------------------------------------------

    def _expire(self, request: Request) -> None:
        """Fail a request whose deadline has passed, wherever it is; its slot stays taken while stages have it."""
        with self._lock:
            if request.over:
                return
            request.over = True
            self._failed += 1
            if self._foresight is not None:
                self._foresight.ended(request, in_time=False)
            where = "in line for a place" if self._leave(request) else "with the stages"
            refused = self._advance()
        self._refuse(refused)
        self._fail(request, DeadlineExceededError(f"its deadline passed while it was {where}"))
        request.leave_line()

    def _withdraw(self, request: Request) -> None:
        """Drop a request that its caller has cancelled.

        The caller may be the garbage collector or a signal handler, in a thread that holds the lock. So this never
        waits for the lock: if it is taken, the timers' thread drops the request.
        """
        if self._lock.acquire(blocking=False):
            try:
                refused = self._drop(request)
            finally:
                self._lock.release()
            self._refuse(refused)
        else:
            self._timers.add(time.perf_counter(), partial(self._drop_later, request))

    def _drop_later(self, request: Request) -> None:
        with self._lock:
            refused = self._drop(request)
        self._refuse(refused)

    def _drop(self, request: Request) -> list[Request]:
        """Remove a request that its caller has cancelled, and send others; as :meth:`_advance`."""
        if request.over:
            return []
        request.over = True
        self._leave(request)
        if request.timer is not None:
            request.timer.cancel()
        request.leave_line()
        return self._advance()

    def _leave(self, request: Request) -> bool:
        """Remove a request from the queue, or from its slot if no stage has begun with it; the lock is held."""
        stood_in_line = self._line.remove(request)
        under_way = request.carrier or request
        if under_way.number in self._pending and not under_way.waiting():
            under_way.over = True
            self._inlet.unmark(under_way.slot)
            # On another machine it may have begun without saying so; an answer will come.
            begun = self._inlet.holders(under_way.slot, under_way.number, under_way.attempt) or not self._enters_here
            if under_way.number in self._held or not begun:
                self._forget(under_way)
        request.values = ()
        if self._draining:
            self._idle.notify_all()
        return stood_in_line

    def fail(self, error: OdinError) -> None:
        """Fail all requests, present and future: stages are lost."""
        self._broken = True
        self._fail_all(error)

    def _fail_all(self, error: OdinError) -> None:
        """Fail all requests in flight or queued, and future ones unless an earlier error is set."""
        with self._lock:
            self._error = self._error or error
            pending = [one for request in self._pending.values() for one in request.waiting()]
            self._pending, self._held = {}, {}
            self._failed += len(pending)
            for request in pending:
                request.over = True
            refused = self._close_line(error)
            self._idle.notify_all()
        for request in pending:
            self._fail(request, error)
        self._refuse(refused)

    def _close_line(self, error: OdinError) -> list[Request]:
        """Refuse all queued requests; the lock is held."""
        refused, self._line = list(self._line), Line()
        for request in refused:
            request.over = True
            request.refusal = error
        return refused

    def _refuse(self, requests: Iterable[Request]) -> None:
        """Fail queued requests that cannot be sent."""
        for request in requests:
            assert request.refusal is not None  # it is why they are here
            if isinstance(request.refusal, DeadlineExceededError):
                self._fail(request, request.refusal)
            else:
                self._settle(request, request.refusal)
            request.leave_line()

    def _fail(self, request: Request, error: OdinError) -> None:
        try:
            if self._on_failure is not None:
                self._on_failure(request.number, error)
        finally:
            self._settle(request, error)

    def _settle(self, request: Request, outcome: Values | BaseException) -> None:
        if request.timer is not None:
            request.timer.cancel()
        request.reply.settle(outcome)

    # -- end --------------------------------------------------------------------------------------------------------

    def _has_drained(self) -> bool:
        return not self._draining or all(request.over for request in self._pending.values())

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Refuse new requests, let those under way finish (if ``drain``), and close both channels. Idempotent.

        Waits for ``timeout_s`` at most until all futures are done, and then for callbacks that are still to be called.
        May be called from a callback.
        """
        closed = PipelineClosedError("the pipeline is closed; start a new one to submit requests")
        end_s = time.monotonic() + timeout_s
        with self._lock:
            broken = self._error is not None
            self._error = self._error or closed
            refused = []
            if drain and not broken and self.joining.wait_s:  # nobody comes any more who is worth waiting for
                self.joining.wait_s = 0.0
                refused = self._advance()
            refused += self._close_line(self._error)
        self._refuse(refused)
        with self._lock:
            if not broken and drain:
                self._draining = True
                try:
                    self._idle.wait_for(self._has_drained, timeout_s)
                finally:
                    self._draining = False
            else:  # who drains, in another thread, waits no more
                self._draining = False
                self._idle.notify_all()
            graceful = not (broken or self._broken or self._pending)
        self._inlet.close(graceful=graceful, silent=self._lost)
        if graceful and not self._lost and self._receiver.receivers:
            self._thread.join(_GOODBYE_S)
        self._receiver.close()
        self._thread.join(timeout_s)
        self._timers.close()
        self.callbacks.close(max(_CALLBACKS_S, end_s - time.monotonic()) if drain else _CALLBACKS_S)


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
