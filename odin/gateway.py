"""The gateway: tags requests, sends them into the first stage, and resolves their futures.

A request's input stays in its slot of the first channel until the result has arrived, so that it can be sent again.
The number of slots is the bound on requests in flight: a caller who would exceed it waits, which is the pipeline's
backpressure.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

import torch

from monitor.timing import RequestTimeline, unpack_timings
from monitor.window import TimelineWindow
from odin.errors import DeadlineExceededError, LayerFailedError, OdinError, PipelineClosedError
from partitioner.plan import Plan
from partitioner.single import copied
from stages.link import ChannelClosedError, Message, Receiver, Sender
from stages.loop import DEADLINE
from stages.wire import Header, Kind

__all__ = ["Gateway", "GatewayCounts"]

Values = tuple[torch.Tensor, ...]


class GatewayCounts(NamedTuple):
    """Requests finished, failed and under way."""

    completed: int
    failed: int
    in_flight: int


class _Pending(NamedTuple):
    future: Future[Values]
    slot: int
    submitted_s: float


class Gateway:
    """Both ends of the pipeline.

    Parameters
    ----------
    sender
        Channel to the first stage, opened without credits; its slots bound the requests in flight.
    receiver
        Channel from the last stage.
    plan
        The plan of epoch 0.
    describe_loss
        Called once when a stage is lost, with its index if known; returns the error for all affected futures.
    on_result
        Called in the receiving thread with each finished request's timeline.
    on_failure
        Called with the number of each request that failed, and why.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        sender: Sender,
        receiver: Receiver,
        *,
        plan: Plan,
        describe_loss: Callable[[int | None], OdinError],
        on_result: Callable[[RequestTimeline], None] | None = None,
        on_failure: Callable[[int, OdinError], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._describe_loss = describe_loss
        self._on_result = on_result
        self._on_failure = on_failure
        self._clock = clock
        self._lock = threading.Lock()
        self._plan = plan
        self._epoch = 0
        self._next_request = 0
        self._pending: dict[int, _Pending] = {}
        self._waiters: deque[Future[None]] = deque()
        self._permits = sender.memory.slots
        self._completed = self._failed = 0
        self._error: OdinError | None = None
        self._draining = False
        self._idle = threading.Condition(self._lock)
        self.window = TimelineWindow()
        self._thread = threading.Thread(target=self._receive_all, name="odin-gateway", daemon=True)
        self._thread.start()

    @property
    def plan(self) -> Plan:
        """The plan that the next request runs under."""
        return self._plan

    @property
    def epoch(self) -> int:
        """The epoch that the next request gets."""
        return self._epoch

    @property
    def lost(self) -> OdinError | None:
        """Why the pipeline broke; ``None`` while it serves, and after it was closed."""
        return None if isinstance(self._error, PipelineClosedError) else self._error

    def counts(self) -> GatewayCounts:
        """Requests finished, failed and under way."""
        with self._lock:
            return GatewayCounts(self._completed, self._failed, len(self._pending))

    def check_open(self) -> None:
        """Raise what :meth:`submit` would raise, if the pipeline is closed or broken."""
        with self._lock:
            if self._error is not None:
                raise self._error

    def switch(self, epoch: int, plan: Plan) -> None:
        """Tag requests with ``epoch`` from the next one on; every stage must have prepared for it."""
        with self._lock:
            self._epoch, self._plan = epoch, plan

    def submit(self, values: Values, *, timeout_s: float | None = None, keep_nan: bool = False) -> Future[Values]:
        """Send one request, waiting while ``max_in_flight`` are under way.

        Parameters
        ----------
        values
            Input tensors in the prepared layout; copied before this returns.
        timeout_s
            Deadline from now, seconds: a stage whose turn comes later fails the request instead of computing.
        keep_nan
            The values hold NaN: stages compute in a way that passes it on.

        Raises
        ------
        PipelineClosedError, StageLostError
            If the pipeline is closed or broken.
        """
        deadline_s = float("inf") if timeout_s is None else time.time() + timeout_s
        permit = self._request_permit()
        try:
            permit.result()
        except BaseException:
            self._return_permit(permit)
            raise
        return self._send(values, deadline_s, keep_nan)

    async def asubmit(
        self, values: Values, *, timeout_s: float | None = None, keep_nan: bool = False
    ) -> Future[Values]:
        """As :meth:`submit`, waiting without blocking the event loop."""
        deadline_s = float("inf") if timeout_s is None else time.time() + timeout_s
        permit = self._request_permit()
        try:
            await asyncio.shield(asyncio.wrap_future(permit))
        except BaseException:
            self._return_permit(permit)
            raise
        return self._send(values, deadline_s, keep_nan)

    def _request_permit(self) -> Future[None]:
        """Return a future that is done when the caller may send one request; callers are served in order."""
        permit: Future[None] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._permits > 0:
                self._permits -= 1
                permit.set_result(None)
            else:
                self._waiters.append(permit)
        return permit

    def _return_permit(self, permit: Future[None]) -> None:
        """Give up waiting, or give back a permit that was granted but not used."""
        with self._lock:
            if permit in self._waiters:
                self._waiters.remove(permit)
            elif permit.done() and permit.exception() is None:
                self._grant_next()

    def _grant_next(self) -> None:
        """Hand a free permit to the longest waiter; the lock is held."""
        if self._waiters:
            self._waiters.popleft().set_result(None)
        else:
            self._permits += 1

    def _send(self, values: Sequence[torch.Tensor], deadline_s: float, keep_nan: bool) -> Future[Values]:
        future: Future[Values] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            request = self._next_request
            submitted_s = self._clock()
            try:
                header = Header(Kind.REQUEST, request, epoch=self._epoch, deadline_s=deadline_s, keep_nan=keep_nan)
                slot = self._sender.send(header, values)
            except ChannelClosedError:
                # Word of the loss arrives from the other end, with the stage's index, and fails this future too.
                slot = -1
            except BaseException:
                self._grant_next()
                raise
            self._next_request += 1
            self._pending[request] = _Pending(future, slot, submitted_s)
        return future

    def _receive_all(self) -> None:
        """Resolve futures until the pipeline is closed or broken."""
        try:
            while True:
                message = self._receiver.receive()
                kind = message.header.kind
                if kind is Kind.CLOSE:
                    self._fail_all(PipelineClosedError("the pipeline was closed"))
                    return
                if kind is Kind.LOST:
                    self._fail_all(self._why_lost(message.header.request))
                    return
                self._resolve(message)
        except ChannelClosedError:
            self._fail_all(self._why_lost(None))
        except BaseException as error:  # a defect of ours must not leave callers waiting
            self._fail_all(OdinError(f"the gateway failed: {error!r}"))
            raise

    def _resolve(self, message: Message) -> None:
        header = message.header
        failure = header.failure
        # The slot is the last stage's: what leaves the pipeline is a copy.
        values = tuple(copied(tensor) for tensor in message.tensors) if failure is None else ()
        message.release()
        completed_s = self._clock()
        with self._lock:
            pending = self._pending.pop(header.request)
            self._sender.release(pending.slot)
            if failure is None:
                self._completed += 1
            else:
                self._failed += 1
            self._grant_next()
            if not self._pending:
                self._idle.notify_all()
        if failure is None:
            try:
                timings = unpack_timings(header.timings)
                timeline = RequestTimeline(header.request, header.epoch, pending.submitted_s, completed_s, timings)
                self.window.append(timeline)
                if self._on_result is not None:
                    self._on_result(timeline)
            finally:  # no longer among the pending: whatever happens here, its caller must not wait for ever
                _settle(pending.future, values)
        else:
            late = failure.kind == DEADLINE
            self._fail(
                header.request,
                pending,
                DeadlineExceededError(f"{failure.where}: {failure.message}") if late else LayerFailedError(*failure),
            )

    def _why_lost(self, stage: int | None) -> OdinError:
        """Return the error for a broken link, which we may have cut ourselves."""
        with self._lock:
            error = None if self._draining else self._error
        return error or self._describe_loss(stage)

    def fail(self, error: OdinError) -> None:
        """Fail everything under way and everything to come: the stages are lost, in whatever way that was learned."""
        self._fail_all(error)

    def _fail_all(self, error: OdinError) -> None:
        """Fail everything under way, and everything to come unless it fails for an earlier reason."""
        with self._lock:
            self._error = self._error or error
            pending, self._pending = self._pending, {}
            waiters, self._waiters = list(self._waiters), deque()
            self._failed += len(pending)
            self._idle.notify_all()
        for request, item in pending.items():
            self._fail(request, item, error)
        for waiter in waiters:
            waiter.set_exception(error)

    def _fail(self, request: int, pending: _Pending, error: OdinError) -> None:
        try:
            if self._on_failure is not None:
                self._on_failure(request, error)
        finally:
            _settle(pending.future, error)

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Refuse new requests, let those under way finish (if ``drain``), and close both channels. Idempotent."""
        closed = PipelineClosedError("the pipeline is closed; start a new one to submit requests")
        with self._lock:
            broken = self._error is not None
            self._error = self._error or closed
            waiters, self._waiters = list(self._waiters), deque()
            for waiter in waiters:
                waiter.set_exception(self._error)
            if not broken and drain:
                self._draining = True
                try:
                    self._idle.wait_for(lambda: not self._pending, timeout_s)
                finally:
                    self._draining = False
            graceful = not broken and not self._pending
        self._sender.close(graceful=graceful)
        elsewhere = threading.current_thread() is not self._thread  # and not in a future's callback
        if graceful and elsewhere:
            self._thread.join(timeout_s)
        self._receiver.close()
        if elsewhere:
            self._thread.join(timeout_s)


def _settle(future: Future[Values], outcome: Values | BaseException) -> None:
    """Resolve a future, unless its caller has cancelled it."""
    try:
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass
