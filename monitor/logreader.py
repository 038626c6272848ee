"""Reads an event log back: its parts one after the other, its events in the order of their times."""

from __future__ import annotations

import heapq
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from odin.monitor.events import Event, EventsMissing, RunStarted, from_json

__all__ = ["begins_as_event", "read_log"]

_ORDER_S = 5.0
"""Lines are never further out of order than this: ten times a writer's wait, for one that was held up."""

_LONGEST_LINE = 64 * 2**20
_BEGINNING = b'{"event":'


def read_log(path: str | os.PathLike[str], *, on_note: Callable[[str], Any] = warnings.warn) -> Iterator[Event]:
    """Read a log's events in the order of their times, holding a few seconds of it in memory.

    Older parts of the log, ``PATH.1`` and so on, are read before it. Any part can also be read alone: it then begins
    with the state at that moment.

    Parameters
    ----------
    path
        A file that :class:`odin.monitor.eventlog.EventLog` wrote.
    on_note
        Told what is worth knowing about the file, at its end: that its last line is cut off, or others are, as when
        the disk was full or the machine stopped. Such lines are left out.

    Yields
    ------
    Event
        First the :class:`~odin.monitor.events.RunStarted`, then the others.

    Raises
    ------
    ValueError
        If the file cannot be read, does not begin with a run, has another run in it, or a line that is not even the
        beginning of an event; with file and line.
    """
    heap: list[tuple[float, int, Event]] = []
    newest_s = -math.inf
    run: RunStarted | None = None
    in_head = False
    for number, (where, event) in enumerate(_read_parts(Path(path), on_note)):
        if isinstance(event, RunStarted):
            if run is None:
                run = event
                yield event
            elif event != run:
                raise ValueError(f"{where}: another run begins; a log holds one")
            else:
                in_head = True  # a later part's: what it says of the state is known
            continue
        if run is None:
            raise ValueError(f"{where}: a log begins with a run, not {event.kind}")
        if in_head:
            in_head = not isinstance(event, EventsMissing)
            continue
        heapq.heappush(heap, (event.at_s, number, event))
        newest_s = max(newest_s, event.at_s)
        while heap[0][0] < newest_s - _ORDER_S:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def _read_parts(path: Path, on_note: Callable[[str], Any]) -> Iterator[tuple[str, Event]]:
    """Every event of every part with its file and line; lines cut off are left out and noted at the end."""
    count, first = 0, ""
    try:
        with ExitStack() as stack:
            for file, name in _open_parts(path, stack):
                number = 0
                while data := file.readline(_LONGEST_LINE):
                    number += 1
                    try:
                        event = _read_line(data)
                    except ValueError as error:
                        where = f"{name}, line {number}"
                        if data == b"\n" and number > 1:
                            continue  # ends a line that was cut off
                        if number == 1 or len(data) == _LONGEST_LINE or not begins_as_event(data):
                            raise ValueError(f"{where}: {error}") from error
                        if not data.endswith(b"\n") and Path(name) == path:
                            on_note(
                                f"{path}: the last line ({number}) is cut off and left out; "
                                "the run was killed, or goes on"
                            )
                        else:
                            count += 1
                            first = first or f"{where}: {error}"
                        continue
                    yield f"{name}, line {number}", event
                if number == 0:
                    raise ValueError(f"{name} is empty; a log begins with a run")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; name a log that odin wrote") from error
    if count:
        on_note(f"{path}: {count} broken line{'' if count == 1 else 's'} left out, the first is {first}")


def begins_as_event(data: bytes) -> bool:
    """Whether a line is part of an event: its beginning, or what a file system keeps of it (nothing but zeros)."""
    text = data.rstrip(b"\n").lstrip(b"\0")
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


def _read_line(data: bytes) -> Event:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not an event of an ODIN log, nor text at all ({error.reason})") from error
    event = from_json(text)
    if not (isinstance(event.at_s, float | int) and math.isfinite(event.at_s)):
        raise ValueError(f"its time is {event.at_s!r}, not seconds")
    return event


def _open_parts(path: Path, stack: ExitStack) -> list[tuple[IO[bytes], str]]:
    """The log and the older parts of the same run, oldest first; opened together, since a writer renames them."""
    parts: list[tuple[IO[bytes], str]] = [(stack.enter_context(path.open("rb")), str(path))]
    run = _first_line(parts[0][0])
    number = 1
    while run and (older := Path(f"{path}.{number}")).is_file():
        file = stack.enter_context(older.open("rb"))
        if _first_line(file) != run:
            break  # left from another run
        parts.append((file, str(older)))
        number += 1
    return parts[::-1]


def _first_line(file: IO[bytes]) -> bytes:
    """Return what says which run a part belongs to."""
    if not file.seekable():
        return b""
    line = file.readline(_LONGEST_LINE)
    file.seek(0)
    return line
