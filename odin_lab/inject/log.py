"""Appends records to an event log that others write to as well."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from odin.monitor.events import LoadChanged, to_json
from odin.monitor.logreader import begins_as_event

__all__ = ["LoadLog"]


class LoadLog:
    """Writes records of loads to a pipeline's event log, or to a new file.

    Every record is one write to a file opened for appending, so that records of several writers do not mix. If the file
    was renamed because a new part was begun, records go to the new one. A record that cannot be written, as on a full
    disk, is left out; the first of them is told by a warning.

    Parameters
    ----------
    path
        The file; it is made if there is none.

    Raises
    ------
    ValueError
        If it cannot be written to, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._told = False
        try:
            if Path(path).is_file() and not begins_as_event(_begin(path)):
                raise ValueError(f"{path} is no event log; name a pipeline's, or a new file")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ValueError(f"cannot write to the log {path}: {error.strerror}") from error

    def write(self, event: LoadChanged) -> None:
        """Append a record."""
        if self._file < 0:
            return
        try:
            self._follow()
            os.write(self._file, to_json(event).encode() + b"\n")
        except OSError as error:
            if not self._told:
                warnings.warn(f"the log {self._path}: {error.strerror}; records are left out", stacklevel=2)
            self._told = True

    def _follow(self) -> None:
        try:
            moved = not os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except OSError:
            return  # a new part is being begun
        if moved:
            before, self._file = self._file, os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.close(before)

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


def _begin(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)
