"""The event log of a run: one JSON line per event, written while serving, read back in the order of time.

Other processes, such as a load injector, may append whole lines to the same file. Lines of several writers are nearly
in order; :func:`read_log` puts them right.
"""

from __future__ import annotations

import heapq
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from monitor.events import Event, RequestDone, RunStarted, from_json, to_json

__all__ = ["EventLog", "read_log"]

WAIT_S = 0.5
"""Requests wait for each other so long, so that a fast pipeline does not write a file for every image."""

_ORDER_S = 5.0
"""Lines are never further out of order than this: ten times the wait, for a writer that was held up."""

_LONGEST_LINE = 64 * 2**20


def _after_the_wait(flush: Callable[[], None]) -> None:
    timer = threading.Timer(WAIT_S, flush)
    timer.daemon = True
    timer.name = "odin-event-log"
    timer.start()


class EventLog:
    """Appends events to a file; may be called from any thread.

    Finished requests are written together, at most half a second late; everything else at once. A file that cannot be
    written any more, such as on a full disk, ends the log and nothing else: see :attr:`error`.

    Parameters
    ----------
    path
        The file; created if need be.
    append
        Add to a file that has something in it, as an injector does.
    later
        Calls what it is given once, in about half a second.

    Raises
    ------
    ValueError
        If the file is not empty and ``append`` is not set, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        append: bool = False,
        later: Callable[[Callable[[], None]], None] = _after_the_wait,
    ) -> None:
        self.path = Path(path)
        self._later = later
        self._lock = threading.Lock()
        self._waiting: list[Event] = []  # encoded together: by then serving has pushed the code out of the caches
        self._error = ""
        self._descriptor: int | None = _open(self.path, append=append)

    @property
    def error(self) -> str:
        """Why the log ended before its time; empty while all is well."""
        return self._error

    def append(self, event: Event) -> None:
        """Write one event. Never raises because of the file, and does nothing after :meth:`close`."""
        with self._lock:
            if self._descriptor is None:
                return
            self._waiting.append(event)
            if not isinstance(event, RequestDone):
                self._write()
            elif len(self._waiting) == 1:
                self._later(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what waits and close the file. Idempotent."""
        with self._lock:
            self._write()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _write(self) -> None:
        if self._descriptor is None or not self._waiting:
            return
        data = "".join(f"{to_json(event)}\n" for event in self._waiting).encode()
        self._waiting.clear()
        written = 0
        try:
            while written < len(data):  # one call, unless the disk fills up
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            self._error = f"{self.path}: {error.strerror}; the log ends here, serving goes on"
            _cut_back(self._descriptor, written - (data.rfind(b"\n", 0, written) + 1))
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path, *, append: bool) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise ValueError(f"event log {path}: {error.strerror}; name a file that can be written") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0 and not append:
        os.close(descriptor)
        raise ValueError(
            f"event log {path} has {status.st_size} bytes in it, and a log holds one run: name a new file, or delete it"
        )
    return descriptor


def _cut_back(descriptor: int, nbytes: int) -> None:
    """Take back the beginning of a line, so that the next writer's line does not continue it."""
    try:
        end = os.lseek(descriptor, 0, os.SEEK_CUR)  # where our own bytes end
        if nbytes and os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - nbytes)
    except OSError:
        pass  # not a plain file; a reader puts up with a cut-off last line


def read_log(path: str | os.PathLike[str], *, on_note: Callable[[str], Any] = warnings.warn) -> Iterator[Event]:
    """Read a log's events in the order of their times, holding a few seconds of it in memory.

    Parameters
    ----------
    path
        A file that :class:`EventLog` wrote.
    on_note
        Told what is worth knowing about the file, at its end: that its last line is cut off.

    Yields
    ------
    Event
        First the :class:`~monitor.events.RunStarted`, then the others.

    Raises
    ------
    ValueError
        If the file cannot be read, does not begin with a run, or has a line that is no event; with file and line.
    """
    heap: list[tuple[float, int, Event]] = []
    newest_s = -math.inf
    for number, event in _read_lines(Path(path), on_note):
        if isinstance(event, RunStarted) != (number == 1):
            raise ValueError(
                f"{path}, line {number}: "
                + (
                    "another run begins; a log holds one"
                    if number > 1
                    else f"a log begins with a run, not {event.kind}"
                )
            )
        if number == 1:
            yield event
            continue
        heapq.heappush(heap, (event.at_s, number, event))
        newest_s = max(newest_s, event.at_s)
        while heap[0][0] < newest_s - _ORDER_S:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def _read_lines(path: Path, on_note: Callable[[str], Any]) -> Iterator[tuple[int, Event]]:
    number = 0
    try:
        with path.open("rb") as file:
            while data := file.readline(_LONGEST_LINE):
                number += 1
                whole = data.endswith(b"\n")
                try:
                    event = from_json(data.decode())
                    if not (isinstance(event.at_s, float | int) and math.isfinite(event.at_s)):
                        raise ValueError(f"its time is {event.at_s!r}, not seconds")
                except ValueError as error:
                    if whole or number == 1 or len(data) == _LONGEST_LINE:
                        raise ValueError(f"{path}, line {number}: {error}") from error
                    on_note(f"{path}: the last line ({number}) is cut off and left out; the run was killed, or goes on")
                    return
                yield number, event
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; name a log that odin wrote") from error
    if number == 0:
        raise ValueError(f"{path} is empty; a log begins with a run")
