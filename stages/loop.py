"""The stage's loop: receive, compute, hand on; under the plan of each request's epoch.

Migration, seen from one stage (DESIGN: "how a layer moves")::

    control thread                    data thread
    prepare(e+1, [4, 9))              ... request under e   -> layers [0, 9)
      executor.prepare                ... request under e
      ranges[e+1] = [4, 9)            first request of e+1  -> layers [4, 9), forget e

Channels are first-in first-out and every request carries its epoch, so the switch needs no pause.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from typing import Any, NamedTuple

from odin.monitor.timing import StageTiming
from odin.stages.channel.link import ChannelClosedError, Message, Receiver, Sender
from odin.stages.channel.wire import Failure, Header, Kind
from odin.stages.compute.executor import Executor, LayerError

__all__ = ["DEADLINE", "RECALLED", "StageLoop"]

DEADLINE = "deadline"
"""Kind of the failure of a request whose deadline passed before a stage started on it."""
RECALLED = "recalled"
"""Kind of the failure of a request that was cancelled before the first stage started on it."""

_TRACEBACK_CHARS = 6_000


class _Launched(NamedTuple):
    message: Message
    ticket: Any
    first: int
    last: int
    queue_s: float


class StageLoop:
    """Serves one stage until its channel closes.

    Parameters
    ----------
    index
        The stage's index in the pipeline.
    executor
        Runs the layers.
    receiver, sender
        The channels from the previous and to the next stage; closed when the loop ends.
    epoch, first, last
        The first epoch and the layers to run under it.
    """

    def __init__(
        self, index: int, executor: Executor, receiver: Receiver, sender: Sender, *, epoch: int, first: int, last: int
    ) -> None:
        self._index = index
        self._executor = executor
        self._receiver = receiver
        self._sender = sender
        self._ranges: dict[int, tuple[int, int]] = {}
        self._newest_seen = epoch
        self._ranges_lock = threading.Lock()
        self._transfer_s = 0.0
        self._stopped = False
        for memory in (receiver.memory, sender.memory):
            executor.adopt(memory)
        self.prepare(epoch, first, last)

    def prepare(self, epoch: int, first: int, last: int) -> None:
        """Make ready for requests of ``epoch``, which run layers ``[first, last)`` here."""
        with self._ranges_lock:
            self._executor.prepare(first, last)
            self._ranges[epoch] = (first, last)

    def run(self) -> None:
        """Serve until the previous stage says goodbye or either neighbour is gone."""
        graceful = False
        try:
            if self._executor.overlaps:
                self._run_overlapped()
            else:
                while (launched := self._receive_and_launch()) is not None:
                    self._finish_and_send(launched)
            graceful = True
        except _UpstreamLostError:
            if not self._stopped:
                graceful = self._announce_loss()
        except ChannelClosedError:  # the next stage is gone; the gateway hears of it from further down
            pass
        finally:
            # The receiver first: a graceful goodbye waits until the next stage has closed, and the previous stage
            # must not wait for that as well.
            self._receiver.close()
            self._sender.close(graceful=graceful)

    def stop(self) -> None:
        """End the loop from another thread, dropping requests in flight."""
        self._stopped = True
        self._receiver.close()
        self._sender.close(graceful=False)

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
                self._receiver.close()
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
        """Receive one message and start on it; ``None`` when the previous stage said goodbye."""
        try:
            message = self._receiver.receive()
        except ChannelClosedError as error:
            raise _UpstreamLostError from error
        header = message.header
        if header.kind is Kind.CLOSE:
            return None
        now_s = time.perf_counter()
        if header.kind is not Kind.REQUEST:
            return _Launched(message, None, 0, 0, 0.0)
        try:
            if message.recalled:
                raise _RecalledError("nobody waits for it any more")
            late_s = now_s - header.sent_s - header.left_s
            if late_s > 0:
                raise _DeadlineError(f"its deadline passed {late_s:.3f} s before this stage's turn")
            first, last = self._range_of(header.epoch)
            special = {"keep_nan": True} if header.keep_nan else {}
            ticket = self._executor.launch(first, last, message.tensors, **special)
            return _Launched(message, ticket, first, last, max(0.0, now_s - header.sent_s))
        except Exception as error:
            return _Launched(message, self._failure(error), 0, 0, 0.0)

    def _finish_and_send(self, launched: _Launched) -> None:
        """Wait for the result and hand it, or the failure, to the next stage."""
        message, ticket, first, last, queue_s = launched
        header = message.header
        if header.kind is not Kind.REQUEST:
            self._sender.send(header)
            return
        try:
            if isinstance(ticket, Failure):
                self._sender.send(header._replace(kind=Kind.ERROR, tensors=(), failure=ticket))
                return
            try:
                result = self._executor.finish(ticket)
                timing = StageTiming(self._index, first, last, queue_s, *result[1:4], self._transfer_s, result.layer_s)
                handing_s = time.perf_counter()
                passed_on = header._replace(
                    left_s=header.left_s - (handing_s - header.sent_s),
                    keep_nan=header.keep_nan or result.keep_nan,
                    timings=header.timings + timing.pack(),
                )
                self._sender.send(passed_on, result.values)
                self._transfer_s = time.perf_counter() - handing_s
            except ChannelClosedError:
                raise
            except Exception as error:  # finishing or handing over failed, for example: too large for a slot
                self._sender.send(header._replace(kind=Kind.ERROR, tensors=(), failure=self._failure(error)))
        finally:
            message.release()

    def _range_of(self, epoch: int) -> tuple[int, int]:
        layers = self._ranges.get(epoch)
        if layers is None:
            raise RuntimeError(
                f"stage {self._index} was not prepared for epoch {epoch}; it knows {sorted(self._ranges)}"
            )
        if epoch > self._newest_seen:
            self._newest_seen = epoch
            # While another prepare is under way, forgetting can wait for the next switch.
            if self._ranges_lock.acquire(blocking=False):
                try:
                    self._ranges = {known: span for known, span in self._ranges.items() if known >= epoch}
                    self._executor.retain(tuple(self._ranges.values()))
                finally:
                    self._ranges_lock.release()
        return layers

    def _announce_loss(self) -> bool:
        try:
            self._sender.send(Header(Kind.LOST, max(0, self._index - 1)))
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


class _UpstreamLostError(Exception):
    """The previous stage is gone without a goodbye."""


def _cause(error: LayerError) -> Exception:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
