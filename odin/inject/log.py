"""Appends records to an event log that others write to as well."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from monitor.events import LoadChanged, to_json

__all__ = ["LoadLog"]


class LoadLog:
    """Writes records of loads to a pipeline's event log, or to a new file.

    Every record is one write to a file opened for appending, so that records of several writers do not mix.

    Parameters
    ----------
    path
        The file; it is made if there is none.

    Raises
    ------
    ValueError
        If it cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ValueError(f"cannot write to the log {path}: {error.strerror}") from error

    def write(self, event: LoadChanged) -> None:
        """Append a record."""
        if self._file >= 0:
            os.write(self._file, to_json(event).encode() + b"\n")

    def close(self) -> None:
        """Close the file; later records are dropped."""
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
