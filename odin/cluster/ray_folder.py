"""Folders of this user's for Ray's sockets and logs, and what is left of those whose program was killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["EmbeddedFolder", "make_ray_folder", "remove_folder"]

_RAY_ADDS = 64
"""Characters that Ray adds to the folder's name for a socket, whose path ends at 107."""
_LOCK = "in-use"
_PATIENCE_S = 3.0


def make_ray_folder() -> Path:
    """Make an empty folder that Ray can be given, below one that keeps other users out.

    It lies in ``RAY_TMPDIR`` or the temporary directory, unless that path is too long for a socket's.

    Raises
    ------
    PermissionError
        If another user has taken the name.
    """
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    name = f"odin-ray-{os.getuid()}"
    if len(str(root / name / "12345678")) + _RAY_ADDS > 107:
        root = Path("/tmp")
    parent = root / name
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(
            errno.EPERM, f"the folder for Ray's sockets belongs to user {found.st_uid}: remove it or set TMPDIR", parent
        )
    if found.st_mode & 0o077:
        parent.chmod(0o700)  # ours, and no link
    return Path(tempfile.mkdtemp(prefix="", dir=parent))


class EmbeddedFolder:
    """The folder of an embedded Ray; a lock tells whether the program that it belongs to still runs.

    Making one removes those of programs that were killed. A cluster's folders have no such lock, and are left alone.
    """

    def __init__(self) -> None:
        self.path = make_ray_folder()
        # Locked before it gets its name: whoever finds it unlocked may remove the folder.
        fresh = self.path / f"{_LOCK}.new"
        self._lock: int | None = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(self.path / _LOCK)
        _remove_abandoned(self.path.parent)

    def remove(self) -> None:
        """Remove it, once Ray has ended. Idempotent."""
        if self._lock is not None:
            remove_folder(self.path)
            os.close(self._lock)
            self._lock = None


def remove_folder(path: Path) -> None:
    """Remove a folder in which ending processes may still write for a moment."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > deadline_s:
            return
        time.sleep(0.02)


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"*/{_LOCK}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
