"""One line of JSON for each request: who asked for what, what became of it, and where its time went.

``docs/operations.md`` describes the fields.
"""

from __future__ import annotations

import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from msgspec import Struct

from odin.monitor.json_text import json_text
from odin.server.answered import Answered

__all__ = ["AccessLog", "Entry", "StageEntry"]

_LONGEST_TEXT = 256
"""Characters of a text that a client chose."""


class StageEntry(Struct, frozen=True):
    """A stage's part in a micro-batch; seconds."""

    stage: int
    device: str
    first: int
    last: int
    queue_s: float
    compute_s: float
    run_delay_s: float


class Entry(Struct, frozen=True):
    """A line.

    Attributes
    ----------
    time
        When the request was over, in UTC.
    status
        HTTP's number or gRPC's name.
    latency_s, waiting_s
        See :class:`odin.server.answered.Answered`.
    stages
        A list for each micro-batch.
    """

    time: str
    protocol: str
    peer: str
    model: str
    version: str
    id: str
    outcome: str
    status: int | str
    message: str
    latency_s: float
    waiting_s: float
    request_nbytes: int
    response_nbytes: int
    traceparent: str
    stages: list[list[StageEntry]]

    @classmethod
    def of(cls, answered: Answered) -> Entry:
        """What is to be told of a request."""
        request, failure = answered.request, answered.failure
        grpc = request.caller.protocol == "grpc"
        if failure is None:
            status: int | str = "OK" if grpc else 200
        else:
            status = failure.grpc_code if grpc else failure.http_status
        return cls(
            time=datetime.fromtimestamp(answered.ended_unix_s, UTC).isoformat(timespec="milliseconds"),
            protocol=request.caller.protocol,
            peer=request.caller.address,
            model=request.model[:_LONGEST_TEXT],
            version=answered.version[:_LONGEST_TEXT],
            id=request.id[:_LONGEST_TEXT],
            outcome=answered.outcome,
            status=status,
            message=answered.message[:_LONGEST_TEXT],
            latency_s=_rounded(answered.latency_s),
            waiting_s=_rounded(answered.waiting_s),
            request_nbytes=request.caller.request_nbytes,
            response_nbytes=answered.response_nbytes,
            traceparent=request.traceparent[:_LONGEST_TEXT],
            stages=[
                [
                    StageEntry(
                        timing.stage,
                        answered.devices[timing.stage] if timing.stage < len(answered.devices) else "",
                        timing.first,
                        timing.last,
                        _rounded(timing.queue_s),
                        _rounded(timing.wall_s),
                        _rounded(timing.run_delay_s),
                    )
                    for timing in timeline.stages
                    if timing.first < timing.last
                ]
                for timeline in answered.timelines
            ],
        )


class AccessLog:
    """Writes to a file, or to standard error; to be called in a thread of its own.

    A file that was renamed or deleted, as ``logrotate`` does, is made anew.

    Parameters
    ----------
    path
        Lines are added at the end of it; None: to standard error.

    Raises
    ------
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None if path is None else _open(path)

    def __call__(self, answered: Answered) -> None:
        """Write a request's line; ``OSError`` if that is not possible now."""
        line = json_text(Entry.of(answered)).encode() + b"\n"
        if self._path is None:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            return
        if self._file is None or not _is_at(self._file, self._path):
            self.close()
            self._file = _open(self._path)
        self._file.write(line)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _open(path: Path) -> IO[bytes]:
    return path.open("ab", buffering=0)  # whole lines at once: others may read, or write to it as well


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rounded(seconds: float) -> float:
    """To a microsecond."""
    return round(seconds, 6) if math.isfinite(seconds) else seconds
