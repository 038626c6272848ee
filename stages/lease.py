"""Leases of cores and GPUs: no two pipelines on a machine get the same one unless both ask to share.

A lease is a lock (``flock``) on a small file per device. The kernel drops it when the process that holds it ends,
however it ends, so nothing can stay taken by mistake. It covers all pipelines of a machine, in whichever cluster they
run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stages.device import Device, DeviceError

__all__ = ["Lease", "free_indices"]

DIRECTORY = Path(os.environ.get("ODIN_LEASE_DIR", "/tmp/odin-devices"))
"""Locks lie here; every pipeline of a machine must see the same directory."""

_ATTEMPTS, _PATIENCE_S = 10, 0.1


def _open(kind: str, index: int, directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        directory.chmod(0o1777)
    path = directory / f"{kind}-{index}"
    # Without O_CREAT first: in a sticky directory the kernel refuses O_CREAT on another user's file.
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor


def _lock(descriptor: int, mode: int) -> None:
    """Take the lock; ``BlockingIOError`` if somebody keeps it.

    With a moment's patience: who merely looks for free devices holds each one for an instant.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        time.sleep(_PATIENCE_S / _ATTEMPTS)
    fcntl.flock(descriptor, mode | fcntl.LOCK_NB)


class Lease:
    """Holds all cores of a device, or its GPU, until :meth:`release` or the end of the process.

    Parameters
    ----------
    device
        What to hold; its node must be this machine.
    label
        Shown to who is refused, for example the pipeline's name.
    share
        Accept to share with other pipelines that accept it too.

    Raises
    ------
    DeviceError
        If another pipeline holds part of it; the message names the holder.
    """

    def __init__(self, device: Device, *, label: str, share: bool = False, directory: Path = DIRECTORY) -> None:
        self._descriptors: list[int] = []
        mode = fcntl.LOCK_SH if share else fcntl.LOCK_EX
        try:
            for index in device.indices:
                descriptor = _open(device.kind, index, directory)
                self._descriptors.append(descriptor)
                _lock(descriptor, mode)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"pid {os.getpid()}, {label}".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._descriptors[-1], 200, 0).decode("utf-8", "replace") or "another pipeline"
            self.release()
            raise DeviceError(
                f"{device.kind}:{index} is in use by {holder}; choose another device, close that pipeline, or let both "
                "share it (share_devices=True, --share-devices)"
            ) from error
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the device back. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def free_indices(kind: str, indices: Iterable[int], *, directory: Path = DIRECTORY) -> Sequence[int]:
    """Return those of ``indices`` that no pipeline holds now."""
    free = []
    for index in indices:
        descriptor = _open(kind, index, directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(index)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return free
