"""Leases of cores and GPUs: no two pipelines on a machine get the same one unless both ask to share.

A lease is a lock (``flock``) on a small file per device. The kernel drops it when the process that holds it ends,
however it ends, so nothing can stay taken by mistake. It covers all pipelines that see the same folder, in whichever
cluster they run: those of one user, or of all where root has made a folder for them (:mod:`odin.stages.lease_folder`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from odin.stages.company import Company
from odin.stages.device import Device, DeviceError
from odin.stages.lease_folder import default_folder, open_folder, user_name

__all__ = ["Lease", "free_indices", "refuse_taken_devices"]

_ATTEMPTS, _PATIENCE_S = 10, 0.1
_ENDING_S = 5.0


def _open(kind: str, index: int, directory: Path | None) -> int:
    """Open a device's lock file, creating it atomically."""
    folder = default_folder() if directory is None else directory
    name = f"{kind}-{index}"
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe put there must not make us wait
    with open_folder(folder) as parent:
        try:
            # Without O_CREAT first: in a sticky directory the kernel refuses O_CREAT on another user's file.
            try:
                descriptor = os.open(name, flags, dir_fd=parent)
            except FileNotFoundError:
                descriptor = os.open(name, flags | os.O_CREAT, 0o666, dir_fd=parent)
                with contextlib.suppress(PermissionError):
                    os.fchmod(descriptor, 0o666)
        except OSError as error:
            owner = user_name(os.lstat(name, dir_fd=parent).st_uid) if _exists(name, parent) else "nobody"
            raise DeviceError(
                f"the lease {folder / name}, which belongs to {owner}, cannot be opened ({error.strerror}): remove it, "
                "or name another folder in ODIN_LEASE_DIR"
            ) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise DeviceError(
            f"the lease {folder / name} of {user_name(found.st_uid)} is no file of its own: remove it, or name another "
            "folder in ODIN_LEASE_DIR"
        )
    return descriptor


def _exists(name: str, parent: int) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _lock(descriptor: int, mode: int) -> None:
    """Take the lock; ``BlockingIOError`` if another process holds it.

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
    directory
        Folder of the locks; :func:`odin.stages.lease_folder.default_folder` by default.

    Attributes
    ----------
    company
        Others that share the cores; None if they are not shared, and for a GPU.

    Raises
    ------
    DeviceError
        If another pipeline holds part of it, or the folder is not to be trusted; the message names the holder, or the
        folder with its owner.
    """

    def __init__(self, device: Device, *, label: str, share: bool = False, directory: Path | None = None) -> None:
        self._descriptors: list[int] = []
        self.company = Company(self._descriptors) if share and device.kind == "cpu" else None
        mode = fcntl.LOCK_SH if share else fcntl.LOCK_EX
        try:
            for index in device.indices:
                descriptor = _open(device.kind, index, directory)
                self._descriptors.append(descriptor)
                _lock(descriptor, mode)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"pid {os.getpid()}, {label}".encode(), 0)
        except BlockingIOError as error:
            taken = _taken(device.kind, index, self._descriptors[-1], share=share)
            self.release()
            raise taken from error
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


def refuse_taken_devices(devices: Iterable[Device], *, share: bool = False, directory: Path | None = None) -> None:
    """Raise :class:`DeviceError` if a pipeline holds part of a device now; takes nothing.

    Where the pipeline's program is gone already, as after ``kill -9``, its stages are given some seconds to end.
    """
    until_s = time.monotonic() + _ENDING_S
    for device in devices:
        for index in device.indices:
            descriptor = _open(device.kind, index, directory)
            try:
                if not _becomes_free(descriptor, fcntl.LOCK_SH if share else fcntl.LOCK_EX, until_s):
                    raise _taken(device.kind, index, descriptor, share=share)
            finally:
                os.close(descriptor)


def _becomes_free(descriptor: int, mode: int, until_s: float) -> bool:
    """Whether the lock can be had: now, or by then if it is held for a program that is gone."""
    while True:
        with contextlib.suppress(BlockingIOError):
            _lock(descriptor, mode)
            return True
        if time.monotonic() >= until_s or not _is_orphan(descriptor):
            return False


def _is_orphan(descriptor: int) -> bool:
    """Whether the holder names the program that it works for, and that is gone."""
    program = re.search(rb" of process ([0-9]+)", os.pread(descriptor, 200, 0))
    if program is None:
        return False
    try:
        os.kill(int(program[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _taken(kind: str, index: int, descriptor: int, *, share: bool) -> DeviceError:
    holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another pipeline"
    remedy = (
        "close that pipeline, or start it so that it shares, too"
        if share
        else "close that pipeline, or let both share it (share_devices=True, --share-devices)"
    )
    return DeviceError(f"{kind}:{index} is in use by {holder}; choose another device, {remedy}")


def free_indices(kind: str, indices: Iterable[int], *, directory: Path | None = None) -> Sequence[int]:
    """Return those of ``indices`` that no pipeline holds now.

    Stages whose program is gone already are given some seconds to end.
    """
    free, until_s = [], time.monotonic() + _ENDING_S
    for index in indices:
        descriptor = _open(kind, index, directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(index)
        except BlockingIOError:
            if _is_orphan(descriptor) and _becomes_free(descriptor, fcntl.LOCK_EX, until_s):
                free.append(index)
        finally:
            os.close(descriptor)
    return free
