"""A recording that is not finished: what has been measured so far, one line per measurement, safe against any end.

::

    {"format": "odin-timings-partial", "version": 1, "header": {...}}
    {"round": 0, "scenario": "cpu-50", "before": [[...]], "loaded": [[...]], "after": [[...]]}
    ...

A line that was cut off in the middle was not measured; it is dropped when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from odin_lab.inject.measure import Compared
from odin_lab.timings.files import TimingsError

__all__ = ["Measured", "Partial"]

FORMAT = "odin-timings-partial"
VERSION = 1
_BEGINNING = b'{"format"'


class Measured(NamedTuple):
    """One scenario's measurement in one round."""

    round: int
    scenario: str
    passes: Compared


class Partial:
    """The file of an unfinished recording, locked against another one; a context manager.

    Parameters
    ----------
    path
        Where it lies, or is to be.
    restart
        Whether to forget what it holds.

    Attributes
    ----------
    header
        What :meth:`begin` was given, then or in an earlier run; None before.
    measured
        What has been measured, in order of time.

    Raises
    ------
    TimingsError
        If another process writes to it, it is no such file, or it cannot be written.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.measured: list[Measured] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(path)
        except BlockingIOError as error:
            raise TimingsError(f"{path} is being written by another 'odin record': wait for it, or stop it") from error
        except OSError as error:
            raise TimingsError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
        try:
            if restart:
                self._cut(0)
            else:
                self._read()
        except BaseException:
            self._file.close()
            raise

    def begin(self, header: dict[str, Any]) -> None:
        """Write the first line."""
        self._append({"format": FORMAT, "version": VERSION, "header": header})
        self.header = header

    def add(self, measured: Measured) -> None:
        """Keep a measurement; it is on the disk when this returns."""
        values: dict[str, Any] = {"round": measured.round, "scenario": measured.scenario}
        for name, passes in measured.passes._asdict().items():
            values[name] = [[round(seconds, 9) for seconds in layers] for layers in passes]
        self._append(values)
        self.measured.append(measured)

    def remove(self) -> None:
        """Delete the file; it is finished, or nothing is in it."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.header is None:
            self.remove()
        self._file.close()

    def _append(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        *lines, torn = self._file.read().split(b"\n")
        try:
            if not lines and torn and not torn.startswith(_BEGINNING[: len(torn)]):
                raise ValueError("not a line of it")
            for number, line in enumerate(lines):
                values = json.loads(line)
                if number == 0:
                    if (values["format"], values["version"]) != (FORMAT, VERSION):
                        raise ValueError("another format or version")
                    self.header = dict(values["header"])
                else:
                    passes = Compared(values["before"], values["loaded"], values["after"])
                    self.measured.append(Measured(int(values["round"]), str(values["scenario"]), passes))
        except (ValueError, KeyError, TypeError) as error:
            raise TimingsError(
                f"{self.path} is no recording that can be gone on with ({error!r}): begin anew with --restart"
            ) from error
        self._cut(sum(len(line) + 1 for line in lines))

    def _cut(self, nbytes: int) -> None:
        self._file.seek(nbytes)
        self._file.truncate()


def _open_locked(path: Path) -> Any:
    """Open a file for this process alone."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # who had it has finished and deleted it
