"""A thread that takes items one after the other, whatever that raises, and whose queue cannot grow without bound."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Worker", "leave_forked_child"]

T = TypeVar("T")

CAPACITY = 4096
"""Items that wait at most: some seconds of a very fast pipeline, a few megabytes."""


class Worker(Generic[T]):
    """Calls a function for each item handed over, in a thread of its own.

    An exception costs the item that it came with and nothing else, ``SystemExit`` and ``KeyboardInterrupt`` included:
    they are somebody else's code's, and this is not the main thread. If items come faster than they are taken, the
    oldest ones that can be spared are left out.

    Parameters
    ----------
    take
        Takes one item.
    name
        Of the thread.
    on_error
        Told in the thread of what ``take`` raised.
    expendable
        Whether an item is one of very many and can be left out. Others are left out only if there is none of these.
    on_left_out
        Told in the thread how many items were left out: at the first, then for each ``capacity`` of them, and once
        the thread has caught up.
    linger_s
        After it has taken items the thread rests so long, and then takes all that have come meanwhile, unless one is
        put that is to be taken at once: waking a thread up for each of many items takes more than most items do. An
        item that comes when there was none for so long is taken at once.
    capacity
        Items that may wait, at least 1.
    """

    def __init__(
        self,
        take: Callable[[T], object],
        *,
        name: str,
        on_error: Callable[[BaseException], object],
        expendable: Callable[[T], bool] = lambda item: False,
        on_left_out: Callable[[int], object] = lambda count: None,
        linger_s: float = 0.0,
        capacity: int = CAPACITY,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a queue of {capacity} items holds nothing; capacity must be at least 1")
        self._take, self._on_error = take, on_error
        self._expendable, self._on_left_out = expendable, on_left_out
        self._linger_s = linger_s
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._left_out = 0  # not told yet
        self._told_before = False
        self._closed = self._busy = False
        self._hurried = False  # whether resting is over before its time
        self._rests = False
        self._ready = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; items may have been put before."""
        self._thread.start()

    def put(self, item: T, *, at_once: bool = True) -> None:
        """Hand one item over; never waits for the thread. Nothing happens after :meth:`close`.

        Unless it is to be taken ``at_once``, it may wait for others while the thread rests.
        """
        with self._ready:
            if self._closed:
                return
            self._items.append(item)
            if len(self._items) > self._capacity:
                self._leave_one_out()
            self._hurried = self._hurried or at_once
            if at_once or not self._rests:
                self._ready.notify_all()

    def settle(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was put is taken, for so many seconds; whether it is. Not in the thread itself."""
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return not self._items
        with self._ready:
            self._hurried = True
            self._ready.notify_all()
            return self._ready.wait_for(lambda: not (self._items or self._busy or self._left_out), timeout_s)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Let what waits be taken, for so many seconds, and end the thread. Idempotent.

        Returns
        -------
        bool
            Whether it has ended; ``False`` also in the thread itself, which ends after its present item's turn and
            those that wait. What waits still when the time is over is left out.
        """
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return not self._thread.is_alive()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._ready:
                self._left_out += len(self._items)
                self._items.clear()
        return not self._thread.is_alive()

    def _leave_one_out(self) -> None:
        for index, item in enumerate(self._items):
            if self._expendable(item):
                del self._items[index]
                break
        else:
            self._items.popleft()
        self._left_out += 1

    def _run(self) -> None:
        while True:
            with self._ready:
                if self._busy and not self._items:
                    self._busy = False
                    self._ready.notify_all()  # who waits for this
                self._await_items()
                left_out = self._left_out
                if self._items and self._told_before and left_out < self._capacity:
                    left_out = 0  # told together with those to come
                self._left_out -= left_out
                self._told_before = bool(self._items) and (self._told_before or left_out > 0)
                waits = bool(self._items)
                self._busy = waits or left_out > 0
                item = self._items.popleft() if waits else None
                ended = self._closed and not waits
            if left_out:
                self._call(self._on_left_out, left_out)
            if waits:
                self._call(self._take, item)
            elif ended:
                return

    def _await_items(self) -> None:
        """Rest, then wait until there are items to take, or to be told of, or the end; the lock is held."""
        if self._items or self._closed or self._left_out:
            return
        self._hurried = False
        if self._linger_s > 0:
            self._rests = True
            end_s = time.monotonic() + self._linger_s
            while not (self._hurried or self._closed) and (left_s := end_s - time.monotonic()) > 0:
                self._ready.wait(left_s)
            self._rests = False
        while not self._items and not self._closed and not self._left_out:
            self._ready.wait()

    def _call(self, function: Callable[..., object], argument: object) -> None:
        pid = os.getpid()
        try:
            function(argument)
        except BaseException as error:
            leave_forked_child(pid, error)
            with contextlib.suppress(BaseException):
                self._on_error(error)
        leave_forked_child(pid)


def leave_forked_child(pid: int, error: BaseException | None = None) -> None:
    """End this process if it is a child that somebody else's code has forked in one of our threads and let return.

    It would take the parent's place in that thread's loop. Only this thread is left in it, so that there is nobody to
    end it in order.

    Parameters
    ----------
    pid
        The process that called that code.
    error
        What has come out of it; ``SystemExit`` has the status.
    """
    if os.getpid() == pid:
        return
    code = error.code if isinstance(error, SystemExit) else error
    status = code if isinstance(code, int) else int(code is not None)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)
