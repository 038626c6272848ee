"""Stages of several pipelines on the same cores: each says that it computes, and sees whether another one does.

Said by a lock on a byte of each core's lease (:mod:`odin.stages.lease`), which any number may hold, and which the
kernel drops when a process ends, however it does::

    cpu-3    | pid 4711, ... | .......... | computes: stage 0 of one pipeline, stage 1 of another

Nobody waits for it: who is to begin with a request leaves it, for a moment, to a stage that has its core for itself.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

__all__ = ["Company"]

_LOCK = struct.Struct("hhqqi4x")
"""``struct flock``: type, whence, start, length, pid."""
_BYTE = 1 << 30
"""Beyond all that is written there."""


def _lock(kind: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, _BYTE, 1, 0)


_MARK, _UNMARK, _ASK = _lock(fcntl.F_RDLCK), _lock(fcntl.F_UNLCK), _lock(fcntl.F_WRLCK)


class Company:
    """A stage among those on its cores.

    Parameters
    ----------
    descriptors
        Of the cores' files, opened by this stage for itself; not closed here.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._computes = False

    def computes(self, computes: bool) -> None:
        """Say whether this stage computes."""
        if computes != self._computes:
            self._computes = computes
            for descriptor in self._descriptors:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _MARK if computes else _UNMARK)

    @property
    def beside(self) -> bool:
        """Whether another stage computes on one of the cores."""
        return any(
            _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _ASK))[0] != fcntl.F_UNLCK
            for descriptor in self._descriptors
        )
