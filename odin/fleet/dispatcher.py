"""Carries out what the scheduler decides: actions to executors, answers to the futures of requests.

::

    submit -> scheduler -> [executor 0: load m7, run m7, run m3]   at most 10 ms of work ahead
                           [executor 1: run m1]
    answer -> its true times to the scheduler -> more actions; the outputs to the future

A request's input is kept until it is answered, so that what an executor had that died is sent again to another one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from odin.errors import DeadlineExceededError, LayerFailedError, OdinError, PipelineClosedError, PoisonRequestError
from odin.fleet.actions import kind_of_action, timing_of, to_header
from odin.fleet.estimates import ModelFacts
from odin.fleet.packed import PackedModelError
from odin.fleet.scheduler import EVICT, LOAD, RUN, Action, Dropped, Measured, Scheduler, Verdict
from odin.partitioner.code.single import copied
from odin.process.timers import Timer, Timers
from odin.requests.replies import Callbacks, Reply
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Message, Receiver, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import Header, Kind
from odin.stages.loop import DEADLINE

__all__ = ["Counts", "Dispatcher", "refusal"]

Values = tuple[torch.Tensor, ...]
_log = logging.getLogger(__name__)
_DEADLY, _DEADLY_MODEL = 2, 4
"""So many executors must have died on a request before it is held to be the cause; on a model, without an answer."""
_GOODBYE_S = 5.0


class Counts(NamedTuple):
    """Requests so far, and actions.

    Attributes
    ----------
    completed, failed, refused, in_flight
        Requests that were answered; that were not, late ones included; that were refused at once, which are in none of
        the others; and those under way.
    late
        Of the failed ones: their deadline passed, or could not be met.
    hits
        Requests that were taken while their model was in memory.
    cold
        Those that were taken while it was not.
    loads, evictions
        Actions that have ended: a model may be opened by several executors.
    load_predicted_s, load_actual_s
        Seconds of all loads.
    in_time
        Of the completed ones: those with a deadline.
    """

    completed: int = 0
    failed: int = 0
    refused: int = 0
    in_flight: int = 0
    late: int = 0
    hits: int = 0
    cold: int = 0
    loads: int = 0
    evictions: int = 0
    load_predicted_s: float = 0.0
    load_actual_s: float = 0.0
    in_time: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the taken requests whose model was in memory; nan if there was none."""
        taken = self.hits + self.cold
        return self.hits / taken if taken else math.nan


class _Request:
    __slots__ = (
        "deadline_s",
        "deaths",
        "model",
        "number",
        "over",
        "reply",
        "samples",
        "submitted_s",
        "timer",
        "values",
    )

    def __init__(
        self, number: int, model: int, samples: int, values: Values, deadline_s: float, reply: Reply[Values]
    ) -> None:
        self.number, self.model, self.samples = number, model, samples
        self.values, self.deadline_s, self.reply = values, deadline_s, reply
        self.deaths: list[str] = []
        self.over = False
        self.timer: Timer | None = None


class _Running(NamedTuple):
    slot: int
    request: _Request


class Dispatcher:
    """Both ends of the executors' channels.

    Parameters
    ----------
    scheduler
        Decides.
    names
        Of the models, by number.
    pool, senders, inbox
        Slots of inputs, and the channels to and from the executors; closed with this.
    on_measured
        Called with each action that has ended, how many models are in memory then, and their bytes, in the receiving
        thread; what it waits for, all answers wait for.
    on_gone
        Called with the index of an executor that is lost, after its requests went to others, with the models that are
        in memory no more, and how many requests it had.
    on_deadly
        Called with the number of a model on which executors die again and again, and with that with which what waits
        for it fails then.
    clock
        Monotonic seconds, on which deadlines are; that of ``time.perf_counter``.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        names: Sequence[str],
        *,
        pool: SlotPool,
        senders: Mapping[int, Sender],
        inbox: Inbox,
        on_measured: Callable[[Measured, int, int], None] = lambda measured, resident, nbytes: None,
        on_gone: Callable[[int, Sequence[int], int], None] = lambda executor, models, requests: None,
        on_deadly: Callable[[int, PackedModelError], None] = lambda model, error: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._scheduler, self._names = scheduler, list(names)
        self._pool, self._inbox, self._clock = pool, inbox, clock
        self._senders = dict(senders)
        self._on_measured, self._on_gone, self._on_deadly = on_measured, on_gone, on_deadly
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._next = 0
        self._pending: dict[int, _Request] = {}
        self._running: dict[int, _Running] = {}  # by the action's number
        self._executor_of: dict[int, int] = {}  # of each action that is not answered
        self._counts = Counts()
        self._in_flight = 0
        self._deaths: Counter[int] = Counter()  # of executors at a model, since it was run last
        self._error: OdinError | None = None
        self._timers = Timers(clock)
        self._wake: tuple[float, Timer] | None = None
        self._broken = self._closing = False
        self.callbacks = Callbacks()
        self._thread = threading.Thread(target=self._receive_all, name="odin-fleet", daemon=True)
        self._thread.start()

    # -- in ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        model: int,
        values: Values,
        samples: int,
        *,
        deadline_s: float = math.inf,
        finish: Callable[[Values], Any] = lambda values: values,
    ) -> Reply[Any]:
        """Send one request, whose values must stay as they are until its future is done.

        If it is refused the future has failed when this returns; its result is what ``finish`` makes of the outputs.

        Raises
        ------
        OdinError
            If the fleet is closed, or all executors are lost.
        """
        reply: Reply[Values] = Reply(self.callbacks)
        reply.finish_with(finish)
        with self._lock:
            if self._error is not None:
                raise self._error
            number = self._next
            self._next += 1
            now_s = self._clock()
            cold = model not in self._scheduler.residency
            verdict = self._scheduler.submit(number, model, samples, deadline_s, now_s)
            if verdict.late:
                self._count(refused=1)
            else:
                request = _Request(number, model, samples, values, deadline_s, reply)
                reply.on_cancel = partial(self._withdraw, request)
                self._pending[number] = request
                self._in_flight += 1
                self._count(hits=int(not cold), cold=int(cold))
                if deadline_s < math.inf:
                    request.timer = self._timers.add(deadline_s, partial(self._expire, request))
            dropped = self._pump()
        self._fail_dropped(dropped)
        if verdict.late:
            reply.settle(refusal(self._names[model], verdict, deadline_s - now_s))
        return reply

    def _count(self, **more: float) -> None:
        counts = self._counts
        self._counts = counts._replace(**{name: getattr(counts, name) + count for name, count in more.items()})

    def counts(self) -> Counts:
        """Counts of this moment."""
        with self._lock:
            return self._counts._replace(in_flight=self._in_flight)

    def _end(self, request: _Request) -> None:
        """Nobody waits for a request any more. The lock is held."""
        request.over = True
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.notify_all()

    def look(self, reader: Callable[[Scheduler, float], Any]) -> Any:
        """What ``reader`` finds in the scheduler at this moment."""
        with self._lock:
            return reader(self._scheduler, self._clock())

    def know(self, names: Sequence[str], facts: Sequence[ModelFacts]) -> None:
        """There are more models: the names of all, and the facts of those that are new."""
        with self._lock:
            self._names = list(names)
            self._scheduler.models.extend(facts)

    # -- out --------------------------------------------------------------------------------------------------------

    def _pump(self) -> list[Dropped]:
        """Send what is to be done now; returns what is given up. The lock is held."""
        now_s = self._clock()
        actions, dropped = self._scheduler.decide(now_s)
        for action in actions:
            self._send(action, now_s)
        self._set_wake(self._scheduler.wake_s(now_s), now_s)
        return dropped

    def _send(self, action: Action, now_s: float) -> None:
        sender = self._senders.get(action.executor)
        self._executor_of[action.number] = action.executor
        header = to_header(action.number, action.kind, action.model)
        if action.request is not None:
            request = self._pending[action.request.number]
            slot = self._pool.free.pop()
            self._running[action.number] = _Running(slot, request)
            facts = self._scheduler.models[action.model]
            header = header._replace(
                slot=slot,
                home=slot,
                tensors=self._pool.memory.write(slot, request.values),
                left_s=request.deadline_s - facts.baseline_of(request.samples) - now_s,
            )
        if sender is not None:
            with contextlib.suppress(ChannelClosedError):  # its end will be heard
                sender.post(header)

    def _set_wake(self, at_s: float, now_s: float) -> None:
        if self._wake is not None:
            if self._wake[0] <= at_s and self._wake[0] > now_s:
                return
            self._wake[1].cancel()
            self._wake = None
        if at_s < math.inf:
            self._wake = at_s, self._timers.add(max(at_s, now_s + 1e-4), self._woken)

    def _woken(self) -> None:
        with self._lock:
            self._wake = None
            dropped = self._pump() if self._error is None or self._pending else []
        self._fail_dropped(dropped)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        while True:
            try:
                message = self._inbox.receive()
            except ChannelClosedError as error:
                if error.peer is None:
                    return
                self._lose(error.peer)
                continue
            if message.header.kind is Kind.CLOSE:
                return
            try:
                self._handle(message)
            except Exception:  # whatever it is, the answers behind it must be heard
                _log.exception("an answer could not be handled")

    def _handle(self, message: Message) -> None:
        header = message.header
        failure = header.failure
        outcome: Values | Exception = ()
        if failure is None:
            try:  # the slot is the executor's: what leaves here is a copy
                outcome = tuple(copied(tensor) for tensor in message.tensors)
            except Exception as error:  # out of memory
                outcome = error
        elif failure.kind == DEADLINE:
            outcome = DeadlineExceededError(f"{failure.where}: {failure.message}")
        else:
            outcome = LayerFailedError(*failure)
        message.release()
        with self._lock:
            noted = self._note(header, ok=failure is None)
            running = self._running.pop(header.request, None)
            settled = None
            failed: list[_Request] = []
            if running is not None:
                self._pool.free.append(running.slot)
                settled = self._finish(running.request, outcome)
            elif failure is not None and kind_of_action(header) == LOAD:
                failed = self._fail_waiting(header.epoch)
            for sender in self._senders.values():
                sender.push()
            dropped = self._pump()
        if settled is not None:
            self._settle(settled, outcome)
        for request in failed:
            assert isinstance(outcome, Exception)
            self._settle(request, outcome)
        self._fail_dropped(dropped)
        if noted is not None:
            self._on_measured(*noted)

    def _note(self, header: Header, *, ok: bool) -> tuple[Measured, int, int] | None:
        """Tell the scheduler how long an action took; returns what is to be told of it. The lock is held."""
        found = self._executor_of.pop(header.request, None)
        if found is None:
            return None
        if kind_of_action(header) == RUN:
            self._deaths.pop(header.epoch, None)
        took_s = bind_s = 0.0
        if ok:
            timing = timing_of(header)
            took_s = timing.wall_s
            bind_s = timing.layer_s[1] if kind_of_action(header) == LOAD else 0.0
        measured = self._scheduler.answered(found, header.request, self._clock(), took_s=took_s, bind_s=bind_s, ok=ok)
        if measured is None:
            return None
        if measured.kind == LOAD:
            self._count(loads=1, load_predicted_s=measured.expected_s, load_actual_s=measured.took_s)
        elif measured.kind == EVICT:
            self._count(evictions=1)
        residency = self._scheduler.residency
        return measured, len(residency), residency.used_nbytes

    def _finish(self, request: _Request, outcome: Values | Exception) -> _Request | None:
        """A request was answered; None if nobody waits for it. The lock is held."""
        self._pending.pop(request.number, None)
        if request.over:
            return None
        self._end(request)
        if isinstance(outcome, Exception):
            self._count(failed=1, late=int(isinstance(outcome, DeadlineExceededError)))
        else:
            self._count(completed=1, in_time=int(request.deadline_s < math.inf))
        return request

    def _fail_waiting(self, model: int) -> list[_Request]:
        """A model could not be loaded: those that wait for it fail. The lock is held."""
        failed = []
        for request in list(self._pending.values()):
            if request.model == model and self._scheduler.cancel(request.number):
                self._finish(request, LayerFailedError("", "", "", ""))
                failed.append(request)
        return failed

    def _fail_dropped(self, dropped: Sequence[Dropped]) -> None:
        for one in dropped:
            with self._lock:
                request = self._pending.get(one.request.number)
                name = self._names[one.request.model]
                error = DeadlineExceededError(
                    f"model {name!r} would be done in {one.predicted_s * 1e3:.1f} ms more, after its deadline; it was "
                    "not computed"
                )
                settled = None if request is None else self._finish(request, error)
            if settled is not None:
                self._settle(settled, error)

    @staticmethod
    def _settle(request: _Request, outcome: Values | BaseException) -> None:
        if request.timer is not None:
            request.timer.cancel()
        request.reply.settle(outcome)

    # -- requests that are not wanted any more ----------------------------------------------------------------------

    def _expire(self, request: _Request) -> None:
        with self._lock:
            if request.over:
                return
            self._end(request)
            self._count(failed=1, late=1)
            if self._scheduler.cancel(request.number):
                self._pending.pop(request.number, None)
        self._settle(request, DeadlineExceededError("its deadline passed before it was done"))

    def _withdraw(self, request: _Request) -> None:
        """The caller has cancelled; maybe in a thread that holds the lock, so another one does it."""
        self._timers.add(self._clock(), partial(self._drop, request))

    def _drop(self, request: _Request) -> None:
        with self._lock:
            if request.over:
                return
            self._end(request)
            if self._scheduler.cancel(request.number):
                self._pending.pop(request.number, None)
            if request.timer is not None:
                request.timer.cancel()

    # -- executors that are lost ------------------------------------------------------------------------------------

    def _lose(self, executor: int) -> None:
        deadly: list[tuple[_Request, Exception]] = []
        model: int | None = None
        with self._lock:
            sender = self._senders.pop(executor, None)
            lost = self._scheduler.lose(executor)
            for number in [number for number, where in self._executor_of.items() if where == executor]:
                del self._executor_of[number]
                running = self._running.pop(number, None)
                if running is not None:
                    self._pool.free.append(running.slot)
                    if running.request.over:
                        self._scheduler.cancel(running.request.number)
                        self._pending.pop(running.request.number, None)
            if lost.suspect is not None:
                self._deaths[lost.suspect.model] += 1
                if self._deaths[lost.suspect.model] >= _DEADLY_MODEL:
                    model = lost.suspect.model
            if lost.suspect is not None and (suspect := self._pending.get(lost.suspect.number)) is not None:
                suspect.deaths.append(f"executor {executor}")
                if len(suspect.deaths) >= _DEADLY and self._scheduler.cancel(suspect.number):
                    poison = PoisonRequestError(suspect.number, suspect.deaths)
                    if self._finish(suspect, poison) is not None:
                        deadly.append((suspect, poison))
        if model is not None:
            error = PackedModelError(
                f"model {self._names[model]!r} is not served: executors died {_DEADLY_MODEL} times while they loaded "
                "or ran it, without an answer in between; see what it calls, pack it anew, and have it looked at again "
                "(fleet.refresh())"
            )
            self._on_deadly(model, error)  # from now on nobody asks for it
        with self._lock:
            if model is not None:
                self._deaths.pop(model, None)
                deadly += [(one, error) for one in self._fail_waiting(model)]
            dropped = self._pump()
        if sender is not None:
            sender.close(graceful=False)
        for request, cause in deadly:
            self._settle(request, cause)
        self._fail_dropped(dropped)
        if not self._closing:
            self._on_gone(executor, lost.models, len(lost.requests))

    def regain(self, executor: int, sender: Sender, receiver: Receiver, codes: Sequence[str]) -> None:
        """Another process has taken an executor's place."""
        with self._lock:
            self._senders[executor] = sender
            self._scheduler.regain(executor, codes)
            self._inbox.add(receiver)  # so that its end, if it dies at once, is heard after this
            dropped = self._pump()
        self._fail_dropped(dropped)

    def fail(self, error: OdinError) -> None:
        """Fail all requests, present and future."""
        with self._lock:
            self._error = self._error or error
            self._broken = True
            failed = [request for request in self._pending.values() if not request.over]
            for request in failed:
                self._end(request)
                self._scheduler.cancel(request.number)
            self._count(failed=len(failed))
            self._pending = {}
        for request in failed:
            self._settle(request, error)

    # -- end --------------------------------------------------------------------------------------------------------

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Refuse new requests, let those under way finish (if ``drain``), and close the channels. Idempotent."""
        closed = PipelineClosedError("the fleet is closed; start a new one to submit requests")
        with self._lock:
            self._error = self._error or closed
            if drain and not self._broken:
                self._idle.wait_for(lambda: not self._in_flight, timeout_s)
            graceful = not self._executor_of and not self._broken
        self._closing = True
        self.fail(closed)
        for sender in tuple(self._senders.values()):
            sender.close(graceful=graceful)
        if graceful:
            self._thread.join(_GOODBYE_S)
        self._inbox.close()
        self._thread.join(timeout_s)
        self._timers.close()
        self._pool.close()
        self.callbacks.close(_GOODBYE_S)


def refusal(name: str, verdict: Verdict, left_s: float) -> DeadlineExceededError:
    """The error of a request that is not taken, whose deadline is in so many seconds."""
    if left_s <= 0:
        message = f"refused: its deadline passed {-left_s * 1e3:.1f} ms before it was submitted"
    elif math.isinf(verdict.predicted_s):
        message = "refused: no executor is there at present; submit again when one is replaced"
    else:
        load = f", {verdict.load_s * 1e3:.1f} ms of it for loading its model" if verdict.load_s else ""
        why = "; an accepted request behind it would be late" if verdict.delays else ""
        message = (
            f"refused: model {name!r} would be done in {verdict.predicted_s * 1e3:.1f} ms{load}, its deadline is "
            f"in {left_s * 1e3:.1f} ms, {verdict.ahead} requests go before it{why}; allow longer, send less at a "
            "time, or take all (admission='none')"
        )
    return DeadlineExceededError(message, refused=True, predicted_s=verdict.predicted_s)
