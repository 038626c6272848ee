"""The event log of a run: one JSON line per event, written while serving, in parts of limited size.

::

    run.jsonl.2   started, 7|11 | requests ...                                   oldest part
    run.jsonl.1   started, state at this moment, requests so far | requests ...
    run.jsonl     started, state at this moment, requests so far | requests ...  being written

A part that is full is renamed and a new one begun; the oldest are deleted. Each part begins with what a reader needs to
begin with it, so that any of them can be read alone, also where another program has renamed, cut off or deleted the
file. While the file cannot be written, as on a full disk, events are counted; when it can be again, a record tells how
many are missing.

Other processes, such as a load injector, may append whole lines to the same file. Lines of several writers are nearly
in order; :func:`odin.monitor.logreader.read_log` puts them right.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from odin.monitor.events import (
    Attributed,
    Event,
    EventsMissing,
    KnobTurned,
    LoadChanged,
    PlanChanged,
    PolicyChanged,
    RequestDone,
    RunStarted,
    SlowdownChanged,
    from_json,
    to_json,
)
from odin.monitor.logreader import read_log

__all__ = ["KEPT_PARTS", "PART_NBYTES", "EventLog", "read_log", "refuse_taken"]

WAIT_S = 0.5
"""Requests wait for each other so long, so that a fast pipeline does not write a file for every image."""

PART_NBYTES = 256 * 2**20
"""Size from which on a new part is begun, unless another is given."""

KEPT_PARTS = 4
"""Older parts that are kept: with the present one up to 1.25 GiB, some three hours of a pipeline of 260 requests/s."""


def _after_the_wait(flush: Callable[[], None]) -> None:
    timer = threading.Timer(WAIT_S, flush)
    timer.daemon = True
    timer.name = "odin-event-log"
    timer.start()


def _warn(kind: str, text: str) -> None:
    warnings.warn(text, stacklevel=3)


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
"""Opened non-blocking: a pipe or terminal that nobody reads fails like a full disk, instead of blocking the writer."""


class _Entry(NamedTuple):
    """Text that is written completely or not at all: a line, or the first lines of a file."""

    data: bytes
    requests: int = 0
    others: int = 0
    head: bool = False
    gap: bool = False


class EventLog:
    """Appends events to a file; may be called from any thread, and never raises because of the file or an event.

    Finished requests are written together, at most half a second late; everything else at once. While the file cannot
    be written :attr:`error` says why. An event that cannot be encoded costs itself and no other.

    Parameters
    ----------
    path
        The file; created if need be.
    append
        Add to a file that has something in it, as an injector does; whoever made it begins new parts.
    part_nbytes
        Size from which on a new part is begun.
    kept_parts
        Older parts that are kept, as ``PATH.1`` (the newest of them), ``PATH.2`` and so on; at least 1.
    on_trouble
        Told a kind of trouble and a sentence: ``write``, the file cannot be written; ``again``, it can be again;
        ``event``, one cannot be encoded; ``part``, no new part can be begun; ``end``, some are missing at the end.
        Default: a warning.
    later
        Calls what it is given once, in about half a second.
    clock
        Seconds, the clock of the events.

    Raises
    ------
    ValueError
        If the file, or an older part of its name, is not empty and ``append`` is not set, if it cannot be written, or
        if a limit is below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        append: bool = False,
        part_nbytes: int = PART_NBYTES,
        kept_parts: int = KEPT_PARTS,
        on_trouble: Callable[[str, str], Any] = _warn,
        later: Callable[[Callable[[], None]], None] = _after_the_wait,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if part_nbytes < 1 or kept_parts < 1:
            raise ValueError(f"part_nbytes is {part_nbytes} and kept_parts {kept_parts}; both must be at least 1")
        self.path = Path(path)
        self.on_trouble = on_trouble
        self._part_nbytes, self._kept_parts = part_nbytes, kept_parts
        self._later, self._clock = later, clock
        self._lock = threading.Lock()
        self._waiting: list[Event] = []  # encoded together: by then serving has pushed the code out of the caches
        self._error = self._part_error = ""
        self._notices: list[tuple[str, str]] = []
        self._run: RunStarted | None = None
        self._state: dict[Hashable, Event] = {}
        self._missing = self._accounted = (0, 0)  # requests, other events
        self._needs_head = self._torn = False
        self._descriptor: int | None = _open(self.path, append=append)
        self._end_nbytes = 0
        regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._follows = regular and not append
        self._rotates = self._follows and not self.path.is_symlink()

    @property
    def error(self) -> str:
        """Why the log cannot be written at present; empty while all is well."""
        return self._error

    def append(self, event: Event) -> None:
        """Write one event. Does nothing after :meth:`close`."""
        first_to_wait = False
        with self._lock:
            if self._descriptor is None:
                return
            self._waiting.append(event)
            if isinstance(event, RequestDone):
                first_to_wait = len(self._waiting) == 1
            else:
                self._write()
        if first_to_wait:
            try:
                self._later(self.flush)
            except Exception:  # no thread can be started now
                self.flush()
        self._tell()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._write()
        self._tell()

    def close(self) -> None:
        """Write what waits and close the file. Idempotent."""
        with self._lock:
            if self._descriptor is not None:
                self._write(last=True)
                if any(self._missing):
                    self._notice("end", f"{_told(self._missing)} are missing at the end of the event log")
                try:
                    os.close(self._descriptor)
                except OSError as error:  # some file systems tell only now that there was no space
                    self._notice("end", f"{error.strerror} when the event log was closed")
                self._descriptor = None
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            notices, self._notices = self._notices, []
        for notice in notices:
            with contextlib.suppress(Exception):  # there is nobody left to tell
                self.on_trouble(*notice)

    def _notice(self, kind: str, text: str) -> None:
        self._notices.append((kind, f"{self.path}: {text}"))

    # -- writing, with the lock held --------------------------------------------------------------------------------

    def _write(self, *, last: bool = False) -> None:
        if self._descriptor is None or not (self._waiting or (last and any(self._missing))):
            return
        events, self._waiting = self._waiting, []
        unreachable: OSError | None = None
        try:
            self._follow()
        except OSError as error:  # deleted beneath us, and it cannot be made again
            unreachable = error
        if unreachable is None and self._is_full():
            self._begin_part()
        before = []
        if self._needs_head and self._run is not None:
            before.append(_Entry(self._head(self._run), head=True))
        if any(self._missing):
            gap = EventsMissing(self._clock(), *self._missing, self._error or "the event log could not be written")
            before.append(_Entry(f"{to_json(gap)}\n".encode(), *self._missing, gap=True))
        entries = [entry for event in events if (entry := self._encode(event)) is not None]
        if unreachable is None:
            self._put([*before, *entries])
        else:
            self._fail(unreachable, entries)

    def _encode(self, event: Event) -> _Entry | None:
        request = isinstance(event, RequestDone)
        try:
            line = to_json(event)
            if not request:
                if not math.isfinite(from_json(line).at_s):  # what is written can be read
                    raise ValueError(f"its time is {event.at_s}, not seconds")
                self._remember(event)
        except Exception as error:
            kind = getattr(type(event), "kind", type(event).__name__)
            self._notice("event", f"a {kind!r} event could not be written and is left out ({error})"[:500])
            return None
        return _Entry(f"{line}\n".encode(), int(request), int(not request))

    def _remember(self, event: Event) -> None:
        """Remember the events that every new file must begin with."""
        match event:
            case RunStarted():
                self._run = self._run or event
            case SlowdownChanged() | Attributed():
                self._state[event.kind, event.stage] = event
                if isinstance(event, SlowdownChanged) and event.state == "end":
                    self._state.pop((Attributed.kind, event.stage), None)
            case PlanChanged() | PolicyChanged():
                self._state[event.kind] = event
            case KnobTurned():
                self._state[event.kind, event.knob] = event
            case LoadChanged():
                self._state.pop((event.kind, event.name, event.on), None)
                if event.intensity > 0:
                    self._state[event.kind, event.name, event.on] = event

    def _put(self, entries: list[_Entry]) -> None:
        """Write as many entries as there is room for; the others are missing."""
        assert self._descriptor is not None
        data = (b"\n" if self._torn else b"") + b"".join(entry.data for entry in entries)
        written, failure = 0, None
        try:
            while written < len(data):  # one call, unless the disk fills up
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            failure = error
        whole, done = int(self._torn), 0
        for entry in entries:
            if whole + len(entry.data) > written:
                break
            whole += len(entry.data)
            done += 1
            self._count(entry)
        if written > whole:
            self._torn = _cut_back(self._descriptor, written - whole)
        elif written:
            self._torn = False
        if failure is not None:
            self._fail(failure, entries[done:])
        elif written:
            self._error = ""
        self._end_nbytes = _position(self._descriptor)

    def _count(self, entry: _Entry) -> None:
        self._accounted = _sum(self._accounted, entry)
        if entry.head:
            self._needs_head = False
        elif entry.gap:
            self._missing = (0, 0)
            told = _told((entry.requests, entry.others))
            self._notice("again", f"the event log is written again; {told} are missing in it")

    def _fail(self, error: OSError, missing: list[_Entry]) -> None:
        if not self._error:
            self._notice("write", f"{error.strerror}; events are missing from the event log until it can be written")
        self._error = f"{self.path}: {error.strerror}"
        for entry in missing:
            if not (entry.head or entry.gap):
                self._missing = _sum(self._missing, entry)
        if self._run is not None and self._accounted == (0, 0):
            self._needs_head = True  # the run's start is among the missing, and a log begins with it

    # -- parts ------------------------------------------------------------------------------------------------------

    def _head(self, run: RunStarted) -> bytes:
        """The first events of a file: the run, its state, and the number of requests before."""
        events: list[Event] = [run, *self._state.values()]
        if any(self._accounted):
            events.append(EventsMissing(self._clock(), *self._accounted, "they are in an earlier part of the log"))
        return "".join(f"{to_json(event)}\n" for event in events).encode()

    def _follow(self) -> None:
        """Reopen the file if it was renamed or deleted; write its first events again if it was emptied."""
        if not self._follows or self._descriptor is None:
            return
        try:
            ours, there = os.fstat(self._descriptor), os.stat(self.path)
        except OSError:  # gone
            same = False
        else:
            same = os.path.samestat(ours, there)
            if same and ours.st_size < self._end_nbytes:
                self._needs_head, self._torn = True, False
        if not same:
            self._adopt(os.open(self.path, _FLAGS, 0o666))
            self._needs_head = True

    def _is_full(self) -> bool:
        if not self._rotates or self._descriptor is None or self._needs_head:
            return False
        return os.fstat(self._descriptor).st_size >= self._part_nbytes

    def _begin_part(self) -> None:
        """Rename the parts and begin a new one, whose head is written before it gets the log's name."""
        name = os.fspath(self.path)
        head = b"" if self._run is None else self._head(self._run)
        descriptor = -1
        try:
            descriptor = os.open(f"{name}.new", _FLAGS | os.O_TRUNC, 0o666)
            if os.write(descriptor, head) < len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for number in range(self._kept_parts, 1, -1):
                if os.path.exists(f"{name}.{number - 1}"):
                    os.replace(f"{name}.{number - 1}", f"{name}.{number}")
            os.replace(name, f"{name}.1")
            os.replace(f"{name}.new", name)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    os.unlink(f"{name}.new")
            if not self._part_error:
                self._notice("part", f"{error.strerror}; no new part can be begun, the event log goes on in this one")
            self._part_error = f"{self.path}: {error.strerror}"
        else:
            self._part_error = ""
            self._adopt(descriptor)

    def _adopt(self, descriptor: int) -> None:
        before, self._descriptor = self._descriptor, descriptor
        self._torn, self._end_nbytes = False, 0
        if before is not None:
            with contextlib.suppress(OSError):  # of the file that was: not there any more
                os.close(before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path, *, append: bool) -> int:
    try:
        descriptor = os.open(path, _FLAGS, 0o666)
    except OSError as error:
        raise ValueError(f"event log {path}: {error.strerror}; name a file that can be written") from error
    if not append:
        try:
            refuse_taken(path)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def refuse_taken(path: str | os.PathLike[str]) -> None:
    """Raise ``ValueError`` if the file, or an older part of its name, holds another run."""
    for taken in (Path(path), Path(f"{path}.1")):
        if taken.is_file() and (size := taken.stat().st_size):
            raise ValueError(
                f"event log {taken} has {size} bytes in it, and a log holds one run: name a new file, or delete it"
            )


def _cut_back(descriptor: int, nbytes: int) -> bool:
    """Take back the beginning of a line, so that the next writer's line does not continue it; whether it is left."""
    try:
        end = _position(descriptor)  # where our own bytes end
        if os.fstat(descriptor).st_size != end:
            return True
        os.ftruncate(descriptor, end - nbytes)
        os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        return True  # not a plain file; a reader leaves a broken line out
    return False


def _position(descriptor: int) -> int:
    try:
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    except OSError:
        return 0


def _sum(counts: tuple[int, int], entry: _Entry) -> tuple[int, int]:
    return counts[0] + entry.requests, counts[1] + entry.others


def _told(counts: tuple[int, int]) -> str:
    return f"{counts[0]} requests and {counts[1]} other events"
