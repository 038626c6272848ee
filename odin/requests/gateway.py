"""The gateway: tags requests, sends them to the stages, and resolves their futures.

A request's input stays in its slot until its outcome is known. The number of slots bounds the requests in flight;
further requests are queued, which is the pipeline's back-pressure::

    submit -> Waiting -> (a slot is free) -> UnderWay -> stages -> answer -> Outcomes: the future is done
    (line, admission, joining)     (slots, attempts, stages that are lost)   (counts, timelines, callers)

If a request is cancelled or its deadline passes, its future is done at once; its slot is freed then if no stage has
begun with it, else by the answer.

Requests may be joined into one micro-batch when a slot is free (:mod:`odin.requests.joining`). What has the slot then
is what carries them (:mod:`odin.requests.request`). If that fails, by a layer or by ending a stage, they are sent again
one by one, so that a bad input fails alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from odin.errors import DeadlineExceededError, OdinError, PipelineClosedError, PoisonRequestError
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.builder import Serving
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.process.timers import Timers
from odin.requests.admission import Forecast
from odin.requests.foresight import Foresight
from odin.requests.joining import Joining
from odin.requests.outcomes import Outcomes
from odin.requests.replies import Callbacks, Reply
from odin.requests.request import Request, Values, form_of, rows_of
from odin.requests.under_way import UnderWay
from odin.requests.waiting import Waiting
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import InForce, Inlet
from odin.stages.channel.link import ChannelClosedError, Message, Sender
from odin.stages.channel.wire import Header, Kind
from odin.stages.loop import DEADLINE

__all__ = ["Gateway", "GatewayCounts"]

_NEVER = math.inf
_GOODBYE_S = 5.0
"""Longest wait of closing for the stages' goodbye messages, with nothing in flight."""
_CALLBACKS_S = 1.0
"""Longest wait of closing without drain for callbacks."""
_BOUNCE_S = 0.1
"""A request that has come back too often is sent again after so long."""


class GatewayCounts(NamedTuple):
    """Requests finished and failed, micro-batches in flight, and requests that were refused, in none of the former."""

    completed: int
    failed: int
    in_flight: int
    refused: int = 0


class Gateway:
    """Both ends of the pipeline.

    One lock guards its state and that of its parts, :class:`UnderWay`, :class:`Waiting` and the counts of
    :class:`Outcomes`: it is held whenever these are called or changed. It is never held while futures are resolved, and
    ``on_result``, ``on_failure`` and ``on_gone`` are called. So who changes something under it gets those who cannot be
    sent from :meth:`_advance`, and refuses them afterwards.

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
        Most micro-batches that may wait in line when :meth:`enqueue_all` adds one; None: any number.
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
        self._on_gone = on_gone
        self._max_waiting = math.inf if max_waiting is None else max_waiting
        self.joining = joining or Joining()
        self._clock = clock
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._plan = plan
        self._foresight = foresight
        self._error: OdinError | None = None
        self._draining = self._broken = False
        self._timers = Timers()
        self.callbacks = Callbacks(self._let_in)
        self._outcomes = Outcomes(self._lock, on_result=on_result, on_failure=on_failure, foresight=foresight)
        self._under_way = UnderWay(
            inlet,
            InForce(0, tuple(range(len(plan))), windows or Windows.of_plan(plan)),
            places=max_in_flight,
            conditions=None if foresight is None else foresight.conditions,
            clock=clock,
        )
        self._waiting = Waiting(
            self._under_way,
            joining=self.joining,
            foresight=foresight,
            on_refusal=on_refusal,
            callbacks=self.callbacks,
            timers=self._timers,
            let_in=self._let_in,
        )
        self.window = self._outcomes.window
        self._thread = threading.Thread(target=self._receive_all, name="odin-gateway", daemon=True)
        self._thread.start()

    @property
    def plan(self) -> Plan:
        """The plan that the next request runs under; stages that are lost have no layers in it."""
        return self._plan

    @property
    def in_force(self) -> InForce:
        """Under what the next request runs."""
        return self._under_way.in_force

    @property
    def lost(self) -> OdinError | None:
        """Why the pipeline broke; ``None`` while it serves, and after it was closed."""
        return None if isinstance(self._error, PipelineClosedError) else self._error

    def counts(self) -> GatewayCounts:
        """Requests finished, failed and in flight."""
        with self._lock:
            return self._counts()

    def serving(self) -> Serving:
        """Counts, and the plan that the next request runs under, all of one moment."""
        with self._lock:
            epoch, stages, windows = self._under_way.in_force
            text = "" if windows.plan is not None else str(windows.with_idle(stages, len(self._plan)))
            completed, failed, in_flight, refused = self._counts()
            return Serving(completed, failed, in_flight, epoch, self._plan, text, refused)

    def _counts(self) -> GatewayCounts:
        outcomes, waiting = self._outcomes, self._waiting
        failed, in_flight = outcomes.failed + waiting.dropped, len(self._under_way.requests)
        return GatewayCounts(outcomes.completed, failed, in_flight, waiting.refused)

    def check_open(self) -> None:
        """Raise the error that :meth:`submit_all` would raise if the pipeline is closed or broken."""
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
        in_force = InForce(epoch, taking, windows or Windows.of_plan(Plan(plan[stage] for stage in taking)))
        with self._lock:
            self._plan = plan
            self._under_way.switch(in_force, max_in_flight)
            refused = self._advance()
        self._outcomes.refuse(refused)

    # -- in ---------------------------------------------------------------------------------------------------------

    def submit_all(
        self, parts: Sequence[Values], *, deadline_s: float = _NEVER, wait: bool = True, many: bool = False
    ) -> list[Reply[Values]]:
        """Send a request, waiting while ``max_in_flight`` micro-batches are under way.

        With a deadline, or without waiting, all parts or none are taken. Who is held back although there is a place, to
        be joined, stands in line as a copy: the caller may be who comes with the others.

        Parameters
        ----------
        parts
            One for each micro-batch: input tensors in the prepared layout, copied before this returns.
        deadline_s
            On ``time.perf_counter``: the futures fail then, wherever the request is, and no stage starts on it later.
            If it is refused because it would be late they have failed when this returns.
        wait
            Whether to wait for a place.
        many
            Whether all who stand in line do so as copies: the caller says how many may.

        Raises
        ------
        PipelineClosedError, StageLostError
            If the pipeline is closed or broken.
        QueueFullError
            If there is no place at once, and it is not to wait.
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

    def enqueue_all(
        self, parts: Sequence[Values], *, deadline_s: float = _NEVER, wait: bool = True
    ) -> list[Reply[Values]]:
        """As :meth:`submit_all`, without blocking: the values must stay as they are until the futures are done.

        Raises
        ------
        QueueFullError
            Also if more would wait in line than may.
        """
        requests = self._enter(parts, deadline_s, may_stand=self._max_waiting if wait else 0)
        return [request.reply for request in requests]

    def _enter(
        self, parts: Sequence[Values], deadline_s: float, *, may_stand: float, copies: bool = False, many: bool = False
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
                    refusal = self._waiting.admit(requests, deadline_s, urgent=urgent, may_stand=may_stand)
                for request in requests if refusal is None else ():
                    request.number = next(self._waiting.numbers)
                    if late:
                        request.over = True
                        self._outcomes.failed += 1
                        continue
                    self._waiting.enter(request)
                    if deadline_s < _NEVER:
                        request.timer = self._timers.add(deadline_s, partial(self._expire, request))
                    request.reply.on_cancel = partial(self._withdraw, request)
                holds_back = False  # although there is a place
                if self.joining.wait_s:  # what came last may be what was waited for
                    unsent = self._waiting.advance()
                    holds_back = self._under_way.free > 0 and not self.callbacks.behind
                if copies and (many or holds_back):
                    for request in requests:
                        self._waiting.let_go(request)
        except BaseException:  # all or none
            for request in requests:
                request.reply.cancel()
            raise
        for request in requests:
            if late:
                self._outcomes.fail(request, DeadlineExceededError("its deadline passed before it was submitted"))
            elif refusal is not None:
                request.reply.settle(refusal)
        self._outcomes.refuse(unsent)
        return requests

    def refuse_if_late(self, parts: int, deadline_s: float, *, samples: int = 0) -> Reply[Values] | None:
        """The failed future of a request of so many parts, the first with so many samples, that would be refused now,
        before anything is done for it.
        """
        if deadline_s == _NEVER:
            return None
        urgent = self.callbacks.is_current()
        with self._lock:
            if self._error is not None:
                raise self._error
            _, refusal = self._waiting.judge(parts, deadline_s, samples=samples, urgent=urgent)
        if refusal is None:
            return None
        reply: Reply[Values] = Reply(self.callbacks)
        reply.settle(refusal)
        return reply

    def ask(self, parts: int, deadline_s: float, *, samples: int = 0) -> Forecast | None:
        """When a request of so many parts, the first with so many samples, would be done if it were submitted now.

        None if nothing is predicted here. Nothing changes by asking.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            return self._waiting.ask(parts, deadline_s, samples=samples)

    def _advance(self) -> list[Request]:
        """Send those who wait, after a change; returns who cannot be sent. The lock is held."""
        refused = self._waiting.advance()
        if self._draining or not self._under_way.requests:
            self._idle.notify_all()
        return refused

    def _let_in(self, *, at_least: int = 0) -> None:
        with self._lock:
            refused = self._waiting.advance(at_least=at_least)
        self._outcomes.refuse(refused)

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
        header, failure = message.header, message.header.failure
        with self._lock:  # who sends it holds that until it is under way
            request = self._under_way.requests.get(header.request)
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
        told: list[bool] = []
        with self._lock:
            if header.request not in self._under_way.requests:  # failed with all others just now
                return
            parts = failure is not None and failure.kind != DEADLINE and bool(request.members)
            if parts:
                self._waiting.part(request)
            else:
                self._under_way.forget(request)
                told = [self._outcomes.count(one, failure) for one in request.answers]
                request.over = True
            refused = self._advance()
        if refused:
            self._outcomes.refuse(refused)
        if failure is None:
            stage_count = len(self._plan)
            self._outcomes.answer(request, header, completed_s, outcomes, told=told, stage_count=stage_count)
        elif not parts:
            self._outcomes.answer_failed(request, header, completed_s, failure, told=told)

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
            has = self._under_way.lose(stage, name, dead=dead)
            deadly, again = [], []
            for request in has:
                if request.over:
                    self._under_way.forget(request)
                elif request.members and request.fatal_to:  # one of them may be the reason
                    self._waiting.part(request)
                elif request.seems_deadly:
                    deadly.append(request)
                    request.over = True
                    self._under_way.forget(request)
                else:
                    again.append(request)
            self._outcomes.failed += len(deadly)
            for request in again:
                self._under_way.post(request)
            refused = self._advance()
        self._outcomes.refuse(refused)
        for request in deadly:
            self._outcomes.fail(request, PoisonRequestError(request.number, tuple(request.fatal_to)))
        return len(has), len(deadly)

    def regain(self, stage: int, *, replaced: bool) -> None:
        """Count on a stage again, which answers again, or has been ``replaced``."""
        with self._lock:
            name = self._under_way.regain(stage, replaced=replaced)
            if name is not None and not replaced:
                for request in [*self._under_way.requests.values(), *self._waiting.line]:
                    request.fatal_to.pop(name, None)  # it was not the request's doing
            refused = self._advance()
        self._outcomes.refuse(refused)

    def sender(self, stage: int) -> Sender | None:
        """Channel to a stage; None if it is gone."""
        return self._inlet.senders.get(stage)

    def wake_when_busy(self, wake: Callable[[], None]) -> bool:
        """Call ``wake`` with the next request that is sent, unless some are under way: False then. It must not wait."""
        with self._lock:
            under_way = self._under_way
            under_way.wake = None if under_way.requests else wake
            return under_way.wake is not None

    def connect(self, stage: int, sender: Sender) -> None:
        """Take the channel to a stage that replaces one that was lost; :meth:`regain` counts on it."""
        with self._lock:
            self._inlet.connect(stage, sender)

    def _take_back(self, request: Request, header: Header) -> None:
        """Send a request again that a stage could not hand on."""
        with self._lock:
            if self._under_way.requests.get(request.number) is not request or header.attempt != request.attempt:
                return
            too_often = self._under_way.returned(request)
            if too_often:  # it is held until more is known of who is lost
                self._timers.add(time.perf_counter() + _BOUNCE_S, self._send_held)
            refused = self._advance()
        self._outcomes.refuse(refused)
        if too_often and header.cut < len(self._plan) and header.cut not in self._under_way.lost:
            self._on_gone(header.cut)  # it cannot be reached from where it should be

    def _send_held(self) -> None:
        with self._lock:
            self._under_way.send_held()

    def _note_unreached(self, stage: int, *, by: int) -> None:
        """The connection to a stage from one before it is broken: what was on that way is lost, though both live.

        It is not connected again, so the stage has to be replaced. What is heard of or from one that is gone is old.
        """
        if self._under_way.gone.isdisjoint((stage, by)) and (self._error is None or self._draining):
            self._on_gone(stage)

    # -- requests that are not wanted any more ----------------------------------------------------------------------

    def _expire(self, request: Request) -> None:
        """Fail a request whose deadline has passed, wherever it is; its slot stays taken while stages have it."""
        with self._lock:
            if request.over:
                return
            request.over = True
            self._outcomes.failed += 1
            if self._foresight is not None:
                self._foresight.ended(request, in_time=False)
            where = "in line for a place" if self._leave(request) else "with the stages"
            refused = self._advance()
        self._outcomes.refuse(refused)
        self._outcomes.fail(request, DeadlineExceededError(f"its deadline passed while it was {where}"))
        request.leave_line()

    def _withdraw(self, request: Request, *, may_wait: bool = False) -> None:
        """Drop a request that its caller has cancelled.

        The caller may be the garbage collector or a signal handler, in a thread that holds the lock. So this never
        waits for the lock: if it is taken, the timers' thread drops the request.
        """
        if not self._lock.acquire(blocking=may_wait):
            self._timers.add(time.perf_counter(), partial(self._withdraw, request, may_wait=True))
            return
        try:
            if request.over:
                return
            request.over = True
            self._leave(request)
            if request.timer is not None:
                request.timer.cancel()
            request.leave_line()
            refused = self._advance()
        finally:
            self._lock.release()
        self._outcomes.refuse(refused)

    def _leave(self, request: Request) -> bool:
        """Remove a request from the line, or from its slot if no stage has begun with it; whether it stood in line.

        The lock is held.
        """
        stood_in_line = self._waiting.line.remove(request)
        under_way = request.carrier or request
        if under_way.number in self._under_way.requests and not under_way.waiting():
            self._under_way.give_up(under_way)
        request.values = ()
        return stood_in_line

    def fail(self, error: OdinError) -> None:
        """Fail all requests, present and future: stages are lost."""
        self._broken = True
        self._fail_all(error)

    def _fail_all(self, error: OdinError) -> None:
        """Fail all requests in flight or queued, and future ones unless an earlier error is set."""
        with self._lock:
            self._error = self._error or error
            pending = self._under_way.clear()
            self._outcomes.failed += len(pending)
            for request in pending:
                request.over = True
            refused = self._waiting.clear(error)
            self._idle.notify_all()
        for request in pending:
            self._outcomes.fail(request, error)
        self._outcomes.refuse(refused)

    # -- end --------------------------------------------------------------------------------------------------------

    def _has_drained(self) -> bool:
        return not self._draining or all(request.over for request in self._under_way.requests.values())

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
                refused = self._waiting.advance()
            refused += self._waiting.clear(self._error)
        self._outcomes.refuse(refused)
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
            graceful = not (broken or self._broken or self._under_way.requests)
        self._inlet.close(graceful=graceful, silent=self._under_way.lost)
        if graceful and not self._under_way.lost and self._receiver.receivers:
            self._thread.join(_GOODBYE_S)
        self._receiver.close()
        self._thread.join(timeout_s)
        self._timers.close()
        self.callbacks.close(max(_CALLBACKS_S, end_s - time.monotonic()) if drain else _CALLBACKS_S)
