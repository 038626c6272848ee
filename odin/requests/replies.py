"""The futures that callers get, and the thread in which the callbacks that they add are called.

The thread that receives answers also frees places, so it must never wait for a caller's code. It resolves futures, and
what callers have added to them is called in a thread of its own, one after the other::

    gateway thread          callback thread
    answer of 7  ------->   callback of 7: may submit, wait for other results, block, raise ...
    answer of 8  ------->   callback of 8
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from odin.errors import ForkedProcessError
from odin.monitor.timing import RequestTimeline
from odin.process.worker_thread import leave_forked_child

__all__ = ["Callbacks", "Reply", "outcome_of", "when_done"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Callback = Callable[[Future[T]], object]

_BEHIND = 256
"""While so many callbacks wait, requests are queued rather than sent."""


class Callbacks:
    """Calls callers' callbacks in the order of the answers; the thread starts with the first of them.

    Parameters
    ----------
    on_caught_up
        Called when fewer callbacks wait again than make it :attr:`behind`.
    """

    def __init__(self, on_caught_up: Callable[[], None] = lambda: None) -> None:
        self._on_caught_up = on_caught_up
        self._queue: queue.SimpleQueue[tuple[Callback[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False

    @property
    def behind(self) -> bool:
        """Whether callbacks come in faster than they return."""
        return self._queue.qsize() >= _BEHIND

    def is_current(self) -> bool:
        """Whether the caller is a callback."""
        return threading.current_thread() is self._thread

    def call_later(self, callback: Callback[Any], future: Future[Any]) -> None:
        """Call ``callback(future)`` in the callbacks' thread; in this one if that has ended."""
        with self._lock:
            ended = self._ended
            if not ended:
                self._queue.put((callback, future))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="odin-callbacks", daemon=True)
                    self._thread.start()
        if ended:
            _call(callback, future)

    def close(self, timeout_s: float) -> None:
        """Let the callbacks that wait be called, for as long as that, and end the thread. Idempotent."""
        with self._lock:
            thread = self._thread
            if thread is None:
                self._ended = True
                return
            self._queue.put(None)
        if thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        closing = False
        while True:
            with self._lock:
                if closing and self._queue.empty():
                    self._ended = True
                    return
            was_behind = self.behind
            if (item := self._queue.get()) is None:
                closing = True
                continue
            _call(*item)
            item = None  # or an answer would be kept until the next
            if was_behind and not self.behind:
                self._on_caught_up()


def _call(callback: Callback[Any], future: Future[Any]) -> None:
    pid = os.getpid()
    try:
        callback(future)
    except BaseException as error:  # SystemExit too: the callbacks of other callers are still to come
        leave_forked_child(pid, error)
        _log.exception("a callback of %r failed", future)
    leave_forked_child(pid)


class Reply(Future[T]):
    """A future that is resolved by :meth:`settle`.

    Parameters
    ----------
    callbacks
        Where callbacks go when the future is resolved; ``None`` calls them at once, in the resolving thread.
    on_cancel
        Called once when the caller has cancelled.

    Attributes
    ----------
    timeline
        How long each stage had it, if one request of the stages has answered it; set before it is resolved.
    """

    def __init__(self, callbacks: Callbacks | None = None, on_cancel: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.on_cancel = on_cancel
        self.timeline: RequestTimeline | None = None
        self._callbacks = callbacks
        self._pid = os.getpid()
        self._turn = threading.Lock()  # taken, for good, by who leads the future out of its pending state
        self._settling = 0
        self._over = False

    def finish_with(self, finish: Callable[[T], Any]) -> bool:
        """Let the result be what ``finish`` makes of it, or raises; whether that is still possible.

        To be called once, by who has just got the reply, before anybody else has it.
        """
        return vars(self).setdefault("_finish", finish) is finish  # atomic: settle may be called at this moment

    def settle(self, outcome: T | BaseException) -> None:
        """Resolve, with a result or an exception, unless the caller has cancelled. From the first call on no effect."""
        if not self._turn.acquire(blocking=False):
            return
        self.on_cancel = None
        # Who has this future may have declared it running: it is ours to resolve all the same.
        if not self.running() and not self.set_running_or_notify_cancel():
            return
        self._settling = threading.get_ident()
        finish: Callable[[T], Any] | None = vars(self).setdefault("_finish", None)
        if finish is not None and not isinstance(outcome, BaseException):
            try:
                outcome = finish(outcome)
            except BaseException as defect:  # whatever the output's own types raise, its caller must not wait for ever
                outcome = defect
        try:
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        finally:
            self._settling = 0
            self._over = True

    def cancel(self) -> bool:
        """Cancel the request; ``False`` if its outcome is set already, and in a forked child."""
        if os.getpid() != self._pid or not super().cancel():
            return False
        self._over = True
        if self._turn.acquire(blocking=False):
            self.set_running_or_notify_cancel()  # or concurrent.futures.wait would wait for ever
            on_cancel, self.on_cancel = self.on_cancel, None
            if on_cancel is not None:
                on_cancel()
        return True

    def add_done_callback(self, fn: Callback[T]) -> None:
        """Call ``fn(future)`` once the future is done; it may block, and submit: no request waits for it."""
        super().add_done_callback(fn if self._callbacks is None else partial(self._hand_over, fn))

    def _hand_over(self, fn: Callback[T], _: Future[T]) -> None:
        if self._callbacks is not None and self._settling == threading.get_ident():
            self._callbacks.call_later(fn, self)
        else:  # added to a future that was done, or the caller cancelled: in its own thread, as usual
            fn(self)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result; see :meth:`concurrent.futures.Future.result`."""
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the failure, if it is one; see :meth:`concurrent.futures.Future.exception`."""
        self._check_process()
        return super().exception(timeout)

    def __reduce__(self) -> Any:
        raise TypeError("a future of a pipeline belongs to the process that submitted: send its result() instead")

    def _check_process(self) -> None:
        if not self._over and os.getpid() != self._pid:
            raise ForkedProcessError(self._pid)


def when_done(future: Future[T], callback: Callback[T]) -> None:
    """As ``add_done_callback``, for internal callbacks that neither block nor raise: called in the resolving thread."""
    Future.add_done_callback(future, callback)


async def outcome_of(reply: Reply[T]) -> T:
    """Wait for a reply without blocking the event loop; cancelling the wait cancels the reply."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def release() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(release)

    when_done(reply, wake)
    try:
        await waiter
    except BaseException:
        reply.cancel()
        raise
    return reply.result()
