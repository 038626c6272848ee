"""Threads that send requests, each with a connection of its own; another one whenever all are busy."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from odin_lab.load.client import Client, RequestFailedError
from odin_lab.load.task import Outcome

__all__ = ["Sender"]


class Sender:
    """Sends what it is given as soon as a connection is free.

    Parameters
    ----------
    make_client
        Makes a client, not yet connected.
    prepared
        Requests to choose from.
    most
        Connections at most; beyond that, requests wait here.
    clock
        Seconds; the same in all processes of the machine.
    """

    def __init__(
        self,
        make_client: Callable[[], Client],
        prepared: Sequence[Any],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_client, self._prepared, self._most, self._clock = make_client, prepared, most, clock
        self._queue: SimpleQueue[tuple[int, int, float, Callable[[], None]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._over: list[Outcome] = []
        self.asked = 0

    def open(self, count: int) -> None:
        """Have at least so many connections."""
        while self._threads < min(count, self._most):
            self._start()

    def put(self, sample: int, then: Callable[[], None] = lambda: None) -> None:
        """Send a request with that sample, without waiting.

        Parameters
        ----------
        then
            Called when it is over, from another thread.
        """
        with self._lock:
            number, self.asked = self.asked, self.asked + 1
            self._free -= 1  # below 0: more wait than threads do
            short = self._free < 0 and self._threads < self._most
        if short:
            self._start()
        self._queue.put((number, sample % len(self._prepared), self._clock(), then))

    def take(self) -> list[Outcome]:
        """Return what became of requests since it was asked last."""
        with self._lock:
            over, self._over = self._over, []
        return over

    def _start(self) -> None:
        with self._lock:
            self._threads += 1
            self._free += 1
        threading.Thread(target=self._run, name="odin-load", daemon=True).start()

    def _run(self) -> None:
        client = self._make_client()
        with contextlib.suppress(RequestFailedError):  # the request will say so
            client.connect()
        while True:
            number, sample, asked_s, then = self._queue.get()
            sent_s, failure = self._clock(), ""
            try:
                client.infer(self._prepared[sample])
            except RequestFailedError as error:
                failure = error.label
            except Exception as error:  # a defect of ours must not look like a server that hangs
                failure = f"{type(error).__name__} here"
            over_s = self._clock()
            with self._lock:
                self._over.append(Outcome(number, asked_s, sent_s, over_s, failure))
                self._free += 1
            then()
