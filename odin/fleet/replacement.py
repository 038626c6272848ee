"""Replaces executors that die or hang, in a thread of its own, while the others serve."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

__all__ = ["Replacement"]

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_ATTEMPTS, _PAUSE_S = 5, 1.0


class Replacement:
    """Starts its thread with :meth:`start`.

    Parameters
    ----------
    replace
        Starts another process in an executor's place, and has it take part; raises if that is not possible.
    watch
        Called about once a second: ends executors that hang, which are then lost.
    give_up
        Called when an executor could not be replaced.
    """

    def __init__(
        self,
        *,
        replace: Callable[[int], None],
        watch: Callable[[], None],
        give_up: Callable[[int, Exception], None],
    ) -> None:
        self._replace, self._watch, self._give_up = replace, watch, give_up
        self._lost: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="odin-fleet-replacement", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def lost(self, executor: int) -> None:
        """Replace this one. From any thread."""
        self._lost.put(executor)

    def close(self) -> None:
        """Replace no more, and wait for what is being replaced. Idempotent."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                executor = self._lost.get(timeout=_LOOK_S)
            except queue.Empty:
                self._watch()
                continue
            self._try(executor)

    def _try(self, executor: int) -> None:
        for attempt in range(_ATTEMPTS):
            if self._stopped.is_set():
                return
            try:
                begin_s = time.monotonic()
                self._replace(executor)
            except Exception as error:
                if self._stopped.is_set():
                    return
                _log.warning("executor %d could not be replaced: %s", executor, error)
                if attempt + 1 == _ATTEMPTS:
                    self._give_up(executor, error)
                self._stopped.wait(_PAUSE_S * 2**attempt)
            else:
                _log.info("executor %d was replaced after %.1f s", executor, time.monotonic() - begin_s)
                return
