"""The stage's loop: receive, compute, hand on; within the windows of each request's epoch.

A request says which layer is next. The stage runs layers up to the last cut of its window, or hands over at an earlier
one if that is better (:mod:`odin.stages.hand_over`), to whichever later stage. With the last layer done, or if it
fails, the request goes to the gateway.

Migration, seen from one stage (DESIGN: "how a layer moves")::

    control thread                    data thread
    prepare(e+1, windows)             ... request under e   -> up to layer 9
      executor.prepare                ... request under e
      under[e+1] = windows            first request of e+1  -> up to layer 7
                                      the first that says that e is over: forget e

Every request carries its epoch, so the switch needs no pause.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from odin.monitor.timing import StageTiming
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Message, Sender
from odin.stages.channel.readiness import BEGUN, Readiness
from odin.stages.channel.shared_queue import NewRequest
from odin.stages.channel.wire import GATEWAY, Failure, Header, Kind
from odin.stages.compute.executor import Executor, LayerError, Values
from odin.stages.hand_over import HandOver, Reach, Takers

__all__ = ["DEADLINE", "RECALLED", "StageLoop"]

DEADLINE = "deadline"
"""Kind of the failure of a request whose deadline passed before a stage started on it."""
RECALLED = "recalled"
"""Kind of the failure of a request that was cancelled before the first stage started on it."""

_TRACEBACK_CHARS = 6_000


class _Under(NamedTuple):
    """What holds under an epoch."""

    reach: Reach
    takers: Takers


class _Launched(NamedTuple):
    message: Message
    ticket: Any
    first: int
    last: int
    queue_s: float
    target: int = GATEWAY


class StageLoop:
    """Serves one stage until its channels close.

    Parameters
    ----------
    index
        The stage's index in the pipeline.
    executor
        Runs the layers.
    inbox
        The channels from earlier stages and the gateway; closed when the loop ends.
    senders
        The channels to later stages, by index, the next one among them, and to the gateway; closed when the loop ends.
    readiness
        The stage's own words, which those at the other end of the inbox read.
    hand_over
        Decides between layers.
    epoch, windows
        The first epoch and what holds under it.
    """

    def __init__(
        self,
        index: int,
        executor: Executor,
        inbox: Inbox,
        senders: Mapping[int, Sender],
        *,
        readiness: Readiness,
        hand_over: HandOver,
        epoch: int,
        windows: Windows,
    ) -> None:
        self._index = index
        self._executor = executor
        self._inbox = inbox
        self._senders = senders
        self._words = readiness.words
        self._hand_over = hand_over
        self._layer_count = windows.layer_count
        self._connected = sorted(stage for stage in senders if stage != GATEWAY)
        if inbox.queue is not None:
            hand_over.share(inbox.queue.words)
        self._under: dict[int, _Under] = {}
        self._oldest = epoch
        self._under_lock = threading.Lock()
        self._transfer_s = 0.0
        self._stopped = False
        memories = [*(receiver.memory for receiver in inbox.receivers), *(one.memory for one in senders.values())]
        for memory in {id(memory): memory for memory in memories}.values():
            executor.adopt(memory)
        self.prepare(epoch, windows)

    def prepare(self, epoch: int, windows: Windows) -> None:
        """Make ready for requests of ``epoch``."""
        reach = Reach.of(windows, self._index, self._connected)
        with self._under_lock:
            self._executor.prepare(reach.first, reach.last)
            self._under[epoch] = _Under(reach, self._hand_over.takers_of(reach))

    def run(self) -> None:
        """Serve until all earlier stages have said goodbye, or any neighbour is gone."""
        graceful = False
        try:
            if self._executor.overlaps:
                self._run_overlapped()
            else:
                while (launched := self._receive_and_launch()) is not None:
                    self._finish_and_send(launched)
            graceful = True
        except ChannelClosedError as error:
            if not self._stopped:
                graceful = self._announce_loss(error.peer)
        finally:
            # The receivers first: a graceful goodbye waits until the next stage has closed, and the previous stage
            # must not wait for that as well.
            self._inbox.close()
            for sender in self._senders.values():
                sender.close(graceful=graceful)

    def stop(self) -> None:
        """End the loop from another thread, dropping requests in flight."""
        self._stopped = True
        self._inbox.close()
        for sender in self._senders.values():
            sender.close(graceful=False)

    def _run_overlapped(self) -> None:
        """Launch one request while the one before is finishing in a second thread."""
        launched: queue.Queue[_Launched | None] = queue.Queue(maxsize=1)
        errors: list[BaseException] = []

        def finish_all() -> None:
            try:
                while (item := launched.get()) is not None:
                    self._finish_and_send(item)
            except BaseException as error:
                errors.append(error)
                self._inbox.close()
                while launched.get() is not None:  # let the other thread run into the closed channel
                    pass

        finisher = threading.Thread(target=finish_all, name=f"odin-stage-{self._index}-finish", daemon=True)
        finisher.start()
        try:
            while (item := self._receive_and_launch()) is not None:
                launched.put(item)
        finally:
            launched.put(None)
            finisher.join()
            if errors:
                raise errors[0]

    def _receive_and_launch(self) -> _Launched | None:
        """Receive one message and start on it; ``None`` when nothing is to come."""
        message = self._receive()
        header = message.header
        if header.kind is Kind.CLOSE:
            return None
        now_s = time.perf_counter()
        if header.kind is not Kind.REQUEST:
            return _Launched(message, None, 0, 0, 0.0)
        if not isinstance(message, NewRequest):  # which no stage has counted
            self._words[BEGUN] += 1.0
        try:
            if message.recalled:
                raise _RecalledError("nobody waits for it any more")
            late_s = now_s - header.sent_s - header.left_s
            if late_s > 0:
                raise _DeadlineError(f"its deadline passed {late_s:.3f} s before this stage's turn")
            return self._launch(message, now_s)
        except Exception as error:
            return _Launched(message, self._failure(error), 0, 0, 0.0)

    def _receive(self) -> Message:
        return self._inbox.receive(self._rest, self._hand_over.leaves, stage=self._index)

    def _rest(self) -> None:
        self._hand_over.rest(time.perf_counter())
        self._inbox.tell_readiness()

    def _launch(self, message: Message, now_s: float) -> _Launched:
        """Run the layers, or start to; decides who gets the request then."""
        header = message.header
        reach, takers = self._under_epoch(header)
        first, last = header.cut, reach.last
        executor, hand_over = self._executor, self._hand_over
        options: dict[str, Any] = {"keep_nan": True} if header.keep_nan else {}
        looks = reach.free and executor.looks_between_layers
        if looks:
            options["at_cut"] = self._at_cut if self._inbox.tells else hand_over.at_cut
        hand_over.begin(takers, first, last, now_s, shares=reach.shares)
        if looks and first < last and hand_over.passes_on(first, now_s):
            last = first
        self._inbox.tell_readiness()
        ticket = executor.launch(first, last, message.read(executor.arrays), **options)
        if looks:
            last = first + len(ticket.layer_s)
            hand_over.ran(last, time.perf_counter())
        target = GATEWAY if last == self._layer_count else hand_over.target(last)
        return _Launched(message, ticket, first, last, max(0.0, now_s - header.sent_s), target)

    def _at_cut(self, cut: int, now_s: float) -> bool:
        """Between two layers, where earlier stages on other machines have to be told what changes."""
        stop = self._hand_over.at_cut(cut, now_s)
        if not stop:
            self._inbox.tell_news()
        return stop

    def _finish_and_send(self, launched: _Launched) -> None:
        """Wait for the result and hand it to the next stage or the gateway, or the failure to the gateway."""
        message, ticket, first, last, queue_s, target = launched
        header = message.header
        if header.kind is not Kind.REQUEST:
            self._send(GATEWAY, header)
            return
        try:
            if isinstance(ticket, Failure):
                self._send(GATEWAY, header._replace(kind=Kind.ERROR, tensors=(), failure=ticket))
                return
            try:
                result = self._executor.finish(ticket)
                timing = StageTiming(self._index, first, last, queue_s, *result[1:4], self._transfer_s, result.layer_s)
                handing_s = time.perf_counter()
                passed_on = header._replace(
                    left_s=header.left_s - (handing_s - header.sent_s),
                    keep_nan=header.keep_nan or result.keep_nan,
                    cut=last,
                    timings=header.timings + timing.pack(),
                )
                self._send(target, passed_on, result.values)
                self._transfer_s = time.perf_counter() - handing_s
            except ChannelClosedError:
                raise
            except Exception as error:  # finishing or handing over failed, for example: too large for a slot
                self._send(GATEWAY, header._replace(kind=Kind.ERROR, tensors=(), failure=self._failure(error)))
        finally:
            message.release()

    def _send(self, target: int, header: Header, values: Values = ()) -> None:
        try:
            self._senders[target].send(header, values)
        except ChannelClosedError as error:
            error.peer = target if error.peer is None else error.peer
            raise

    def _under_epoch(self, header: Header) -> _Under:
        under = self._under.get(header.epoch)
        if under is None:
            raise RuntimeError(
                f"stage {self._index} was not prepared for epoch {header.epoch}; it knows {sorted(self._under)}"
            )
        # While another prepare is under way, forgetting can wait for the next request.
        if header.oldest > self._oldest and self._under_lock.acquire(blocking=False):
            try:
                self._oldest = header.oldest
                self._under = {epoch: known for epoch, known in self._under.items() if epoch >= header.oldest}
                self._executor.retain(tuple((known.reach.first, known.reach.last) for known in self._under.values()))
            finally:
                self._under_lock.release()
        return under

    def _announce_loss(self, stage: int | None) -> bool:
        """Tell the gateway which stage is gone; whether it could be told."""
        if stage is None or stage == GATEWAY:
            return False
        try:
            self._senders[GATEWAY].send(Header(Kind.LOST, stage))
        except ChannelClosedError:
            return False
        return True

    def _failure(self, error: Exception) -> Failure:
        where = f"stage {self._index}"
        if isinstance(error, LayerError):
            where, error = f"layer {error.layer}", _cause(error)
        kind = error.kind if isinstance(error, _SkippedError) else type(error).__qualname__
        text = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
        return Failure(where, kind, str(error), text)


class _SkippedError(Exception):
    """The request is not to be computed."""

    kind: str


class _DeadlineError(_SkippedError):
    """The request's deadline passed before this stage's turn."""

    kind = DEADLINE


class _RecalledError(_SkippedError):
    """The request was cancelled, or its future has failed, before this stage's turn."""

    kind = RECALLED


def _cause(error: LayerError) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
