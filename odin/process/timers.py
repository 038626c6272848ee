"""Timers: functions to be called at a later time, by one thread for all."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Timer", "Timers"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 3600.0
"""Longest single wait of the thread; Python's locks cannot wait for more than some decades."""
_FEW = 64
"""Cancelled timers that may stay in the heap before it is rebuilt."""


class Timer:
    """One pending call."""

    __slots__ = ("_timers", "call")

    def __init__(self, call: Callable[[], None], timers: Timers) -> None:
        self.call: Callable[[], None] | None = call
        self._timers = timers

    def cancel(self) -> None:
        """Cancel the call. Idempotent; no effect once the call has begun."""
        self._timers.cancel(self)


class Timers:
    """Starts its thread with the first timer; costs nothing before.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._off = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, at_s: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, at ``at_s`` on the clock; it should be short: all other timers wait for it."""
        timer = Timer(call, self)
        with self._changed:
            heapq.heappush(self._heap, (at_s, next(self._numbers), timer))
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="odin-timers", daemon=True)
                thread.start()  # first: an exception of a signal's handler may come in between
                self._thread = thread
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def cancel(self, timer: Timer) -> None:
        """See :meth:`Timer.cancel`."""
        with self._changed:
            if timer.call is None:
                return
            timer.call = None
            self._off += 1
            if self._off > _FEW and 2 * self._off > len(self._heap):
                # What is over must not stay in memory until its time: deadlines may be hours away.
                self._heap = [entry for entry in self._heap if entry[2].call is not None]
                heapq.heapify(self._heap)
                self._off = 0

    def __len__(self) -> int:
        """Calls to come."""
        with self._changed:
            return len(self._heap) - self._off

    def close(self) -> None:
        """Call nothing more, and end the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._off = 0
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # one call that fails must not be the end of the others
                _log.exception("a timer's call failed")

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next call that is due; ``None`` at the end."""
        with self._changed:
            while not self._closed:
                while self._heap and self._heap[0][2].call is None:
                    heapq.heappop(self._heap)
                    self._off -= 1
                left_s = self._heap[0][0] - self._clock() if self._heap else _LONGEST_WAIT_S
                if left_s > 0:
                    self._changed.wait(min(left_s, _LONGEST_WAIT_S))
                    continue
                timer = heapq.heappop(self._heap)[2]
                call, timer.call = timer.call, None
                return call
            return None
